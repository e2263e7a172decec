# SPDX-License-Identifier: GPL-2.0-or-later
"""Event logs that agents in the guest write: dstack's JSON, and the text of the attestation agent (AAEL).

dstack's is a list of objects with ``imr`` (RTMR number), ``event_type``, ``digest``, ``event`` and ``event_payload``.
Newer agents leave out the digests of their own events, which follow from the rest, or the payloads of the firmware's,
and have a second way to compute a digest (``version``, with what was hashed in ``preimage`` or ``hash_input``).  Its
file of runtime events has one object a line: ``event``, ``payload`` in base64, ``version``, all for RTMR3.

The attestation agent of Confidential Containers once kept its log as text: a line ``INIT ALGORITHM/STATE``, then a line
for each event, ``domain operation content``; each line, the first too, extends RTMR3 with its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from swtdx.attest.event import MAXIMUM_EVENTS, SHA384_SIZE, Event, EventLogError
from swtdx.attest.event_digest import EV_AAEL, EV_DSTACK_RUNTIME, runtime_preimages
from swtdx.attest.event_words import EV_NO_ACTION
from swtdx.attest.text_form import JsonError, binary_of, json_of, member_of

_LOG_MEMBERS = (
    *("event_log", "eventlog", "tcb_info.event_log", "tcb_info.eventlog", "vm_config.event_log"),
    *("evidence.event_log", "quote.event_log", "attestation.event_log"),
)
"""Where agents' answers have a log of JSON events, as a list or as a string of JSON."""
_BINARY_MEMBERS = ("cc_eventlog", "ccel", "cc_event_log", "td_eventlog", "evidence.cc_eventlog", "evidence.ccel")
"""Where they have a CCEL area, in base64 or hexadecimal."""
_AAEL_MEMBERS = ("aa_eventlog", "aael", "evidence.aa_eventlog")
_RUNTIME_MEMBERS = ("runtime_events", "attestation.runtime_events")
_AGENTS_RTMR = 3


def aael_events(data: bytes, first_number: int = 0) -> list[Event]:
    """Return the events of the attestation agent's log as text. Raises `EventLogError`.

    >>> [each.words for each in aael_events(b"INIT sha384/" + b"00" * 48 + b"\\nexample.com load image\\n")][1]
    'example.com load image'
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise EventLogError(f"the agent's log is not text at offset {error.start:#x}", error.start) from None
    algorithm, _, state = lines[0].removeprefix("INIT ").strip().partition("/")
    if algorithm != "sha384":
        raise EventLogError(f"the agent's log is for {algorithm} at offset 0x5; an RTMR has sha384", 5)
    if state != "00" * SHA384_SIZE:
        raise EventLogError("the agent's log does not begin with a register of zeroes at offset 0xc", 12)
    if len(lines) > MAXIMUM_EVENTS:
        raise EventLogError(f"the agent's log has more than {MAXIMUM_EVENTS} lines", MAXIMUM_EVENTS)
    texts = [line.rstrip().encode() for line in lines]
    return [
        Event(first_number + at, at, _AGENTS_RTMR, EV_AAEL, hashlib.sha384(text).digest(), text)
        for at, text in enumerate(texts)
    ]


def binary_log(content: Any) -> bytes | None:
    """Return the CCEL area that is a member of an agent's answer; None if there is none. Raises `EventLogError`."""
    value = member_of(content, _BINARY_MEMBERS) if isinstance(content, dict) else None
    if value is None:
        return None
    try:
        return binary_of(value.encode() if isinstance(value, str) else json.dumps(value).encode())
    except ValueError as error:
        raise EventLogError(f"the log at offset 0x0 cannot be read: {error}", 0) from None


def agents_events(content: Any, first_number: int) -> list[Event]:
    """Return what an agent's answer has beside the firmware's log: its own events. Raises `EventLogError`."""
    if not isinstance(content, dict):
        return []
    found: list[Event] = []
    text = member_of(content, _AAEL_MEMBERS)
    if isinstance(text, str) and text:
        found += aael_events(text.encode("utf-8", "replace"), first_number)
    runtime = member_of(content, _RUNTIME_MEMBERS)
    if isinstance(runtime, list):
        found += _events(runtime, first_number + len(found))
    return found


def json_events(answer: Any) -> list[Event]:
    """Return the events of a JSON log, or of an agent's answer that has one. Raises `EventLogError`."""
    content = answer
    if isinstance(content, dict) and not _is_runtime(content):
        log = member_of(content, _LOG_MEMBERS)
        if log is None:
            log = next(_logs(content), None)
        if log is None and member_of(content, (*_RUNTIME_MEMBERS, *_AAEL_MEMBERS)):
            return agents_events(content, 0)
        content = log
    elif isinstance(content, dict):
        content = [content]
    if isinstance(content, str):
        content = json_content(content.encode("utf-8", "replace"))
    if not isinstance(content, list):
        raise EventLogError(f"the log at offset 0x0 is not a list of at most {MAXIMUM_EVENTS} events", 0)
    events = _events(content, 0)
    return events + agents_events(answer, len(events))


def json_content(data: bytes) -> Any:
    """Return what JSON, or objects of JSON a line, hold. Raises `EventLogError`."""
    try:
        return json_of(data)
    except JsonError as error:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip()[:1] == b"{" for line in lines):
            raise EventLogError(f"the log is not JSON at offset {error.offset:#x}: {error}", error.offset) from None
    try:
        return [json_of(line) for line in lines[: MAXIMUM_EVENTS + 1]]
    except JsonError as error:
        raise EventLogError(f"a line of the log is not JSON at its offset {error.offset:#x}: {error}", 0) from None


def _logs(content: Any, depth: int = 6) -> Iterator[list[Any]]:
    """Find the lists that are event logs, at any depth."""
    if isinstance(content, list) and content and all(isinstance(each, dict) and "imr" in each for each in content):
        yield content
    elif depth and isinstance(content, (dict, list)):
        for each in content.values() if isinstance(content, dict) else content:
            yield from _logs(each, depth - 1)


def _events(content: list[Any], first_number: int) -> list[Event]:
    if len(content) > MAXIMUM_EVENTS:
        raise EventLogError(f"the log at offset 0x0 is not a list of at most {MAXIMUM_EVENTS} events", 0)
    return [_event(first_number + at, each) for at, each in enumerate(content)]


def _is_runtime(content: Any) -> bool:
    """Whether an object is an event of dstack's file of runtime events."""
    return isinstance(content, dict) and "event" in content and "payload" in content and "imr" not in content


def _event(number: int, content: Any) -> Event:
    def wrong(what: str) -> EventLogError:
        return EventLogError(f"event {number} of the JSON log: {what}", number)

    if not isinstance(content, dict):
        raise wrong("not an object")
    if _is_runtime(content):
        content = _with_register(content, wrong)
    rtmr, event_type, name = content.get("imr"), content.get("event_type"), content.get("event") or ""
    version = content.get("version", 1)
    if type(rtmr) is not int or not 0 <= rtmr <= 3:
        raise wrong("imr is not a number from 0 to 3")
    if type(event_type) is not int or not 0 <= event_type < 1 << 32:
        raise wrong("event_type is not a 32-bit number")
    if not isinstance(name, str):
        raise wrong("event is not a string")
    if type(version) is not int:
        raise wrong("version is not a number")
    try:
        digest, payload, preimage, hash_input = (
            bytes.fromhex((content.get(key) or "").removeprefix("0x"))
            for key in ("digest", "event_payload", "preimage", "hash_input")
        )
        name.encode()
    except (TypeError, ValueError, AttributeError):
        raise wrong("event, digest, event_payload or preimage is not text or hexadecimal") from None
    preimage = preimage or hash_input
    if preimage and not payload and event_type == EV_DSTACK_RUNTIME:
        payload = _payload_of(preimage, event_type, name, version)
    in_log = bool(digest)
    if not in_log and event_type != EV_NO_ACTION:
        digest = hashlib.sha384(_preimage(wrong, event_type, name, payload, version, preimage)).digest()
    if len(digest) != SHA384_SIZE and event_type != EV_NO_ACTION:
        raise wrong(f"its digest has {len(digest)} bytes, SHA-384 has {SHA384_SIZE}")
    return Event(number, number, rtmr, event_type, digest, payload, name, version, in_log)


def _with_register(content: dict[str, Any], wrong: Callable[[str], EventLogError]) -> dict[str, Any]:
    """An event of dstack's file of runtime events in the form of its log."""
    try:
        payload = binary_of(content["payload"].encode()) if content["payload"] else b""
    except (ValueError, AttributeError):
        raise wrong("payload is not base64") from None
    kept: dict[str, Any] = {key: content[key] for key in ("event", "version") if key in content}
    return {**kept, "imr": _AGENTS_RTMR, "event_type": EV_DSTACK_RUNTIME, "event_payload": payload.hex()}


def _preimage(
    wrong: Callable[[str], EventLogError], event_type: int, name: str, payload: bytes, version: int, given: bytes
) -> bytes:
    """What an event without a digest was hashed from. Raises what ``wrong`` makes."""
    if event_type != EV_DSTACK_RUNTIME or not name:
        raise wrong("it has no digest, and the log does not contain what was measured")
    try:
        possible = runtime_preimages(event_type, name, payload, version)
    except ValueError as error:
        raise wrong(str(error)) from None
    if given and given not in possible:
        raise wrong("its preimage is not that of its name and payload")
    return given or possible[0]


def _payload_of(preimage: bytes, event_type: int, name: str, version: int) -> bytes:
    """The payload in the preimage of an event whose own was left out; empty if it is of another event."""
    if version == 1:
        start = event_type.to_bytes(4, "little") + b":" + name.encode() + b":"
        return preimage.removeprefix(start) if preimage.startswith(start) else b""
    try:
        content = json_of(preimage)
        payload = bytes.fromhex(content["payload"])
        return payload if preimage in runtime_preimages(event_type, name, payload, version) else b""
    except (ValueError, TypeError, KeyError):
        return b""
