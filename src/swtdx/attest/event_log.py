# SPDX-License-Identifier: GPL-2.0-or-later
"""Event logs: what firmware and boot loaders say they extended RTMRs with.

The TCG crypto-agile format (PC Client Platform Firmware Profile, TCG_PCR_EVENT2): the first record, in the old format
with a 20-byte digest, declares the digest algorithms and their sizes ("Spec ID Event03"); then come records of a
register, a type, digests, data.  In a TD's log (CCEL) the register numbers are one more than an RTMR's: 0 is MRTD, 1-4
are RTMR0-3 (UEFI, "Virtual Platform CC Event Log").  The ACPI table CCEL says where in memory the log is and how
large its area; the area's unused rest is 0xFF, or zero.

dstack's agent writes the same as JSON: a list of objects with ``imr`` (RTMR number), ``event_type``, ``digest``,
``event`` and ``event_payload``.  Newer ones leave out the digests of its own events, which follow from the rest, or the
payloads of the firmware's, and have a second way to compute a digest (``version``, ``preimage``).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from swtdx.attest.event_digest import EV_DSTACK_RUNTIME, Vouched, runtime_preimage, vouched
from swtdx.attest.event_words import EV_NO_ACTION, printable, type_name, words
from swtdx.attest.text_form import JsonError, binary_of, json_of, member_of

MAXIMUM_LOG_SIZE = 16 << 20
MAXIMUM_EVENTS = 1 << 16
MAXIMUM_ALGORITHMS = 16
ALGORITHM_SHA384 = 0x000C
SHA384_SIZE = 48
SPEC_ID_SIGNATURE = b"Spec ID Event03\0"
CCEL_SIZE = 56
CCEL_TYPE_TDX = 2
_CCEL = struct.Struct("<4sIBB6s8sI4sIBBHQQ")
assert _CCEL.size == CCEL_SIZE


class EventLogError(ValueError):
    """The log cannot be read; ``offset`` is the byte at which it goes wrong (in a JSON log: the event's number)."""

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


@dataclass(frozen=True)
class Event:
    """One record of a log."""

    number: int
    offset: int
    """Where the record starts, bytes; in a JSON log the record's number."""
    rtmr: int | None
    """0-3; None is MRTD, which a log does not extend."""
    event_type: int
    digest: bytes
    """SHA-384; empty where the record has none."""
    data: bytes
    name: str = ""
    """dstack's name for an event of its own, IMA's name of a file."""
    version: int = 1
    """How dstack's agent computed the digest of an event of its own."""
    digest_in_log: bool = True
    """False: the log left the digest out, and it was computed from name and payload."""

    @property
    def extends(self) -> bool:
        """Whether the register was extended with the digest."""
        return self.rtmr is not None and self.event_type != EV_NO_ACTION

    def as_json(self) -> dict[str, Any]:
        register = "MRTD" if self.rtmr is None else f"RTMR{self.rtmr}"
        return {
            "number": self.number,
            "offset": self.offset,
            "register": register,
            "event_type": f"{self.event_type:#x}",
            "event_type_name": type_name(self.event_type),
            "digest": self.digest.hex(),
            "words": self.words,
            "data": self.data.hex(),
            "data_measured": self.data_measured,
            "vouched": None if self.vouched is None else self.vouched.value,
            "digest_in_log": self.digest_in_log,
        }

    @property
    def vouched(self) -> Vouched | None:
        """What of `words` and `data` the digest vouches for; None for a record that extends nothing."""
        return vouched(self.event_type, self.data, self.digest, self.name, self.version) if self.extends else None

    @property
    def data_measured(self) -> bool | None:
        """Whether the digest is that of the data; None if the digest is of something else, or does not cover a name."""
        return None if self.vouched is None else self.vouched.data_measured

    @property
    def words(self) -> str:
        """What was measured, as the log describes it, in printable characters; `vouched` says how far to trust it."""
        text = ": ".join(part for part in (printable(self.name), words(self.event_type, self.data)) if part)
        if self.vouched is Vouched.ABSENT:
            return f"{text}: payload not in the log" if text else "payload not in the log"
        return text


@dataclass(frozen=True)
class CcelTable:
    """The ACPI table that points at the log."""

    revision: int
    cc_type: int
    area_length: int
    area_address: int


def parse_table(table: bytes) -> CcelTable:
    """Read the ACPI table CCEL. Raises `EventLogError`."""
    if len(table) < CCEL_SIZE:
        raise EventLogError(f"a CCEL table has {CCEL_SIZE} bytes, this has {len(table)}", len(table))
    fields = _CCEL.unpack_from(table)
    signature, length, revision, cc_type, area_length, area_address = (fields[i] for i in (0, 1, 2, 9, 12, 13))
    if signature != b"CCEL":
        raise EventLogError("not a CCEL table: it does not begin with CCEL", 0)
    if not CCEL_SIZE <= length <= len(table):
        raise EventLogError(f"the CCEL table says it has {length} bytes at offset 0x4; {len(table)} are there", 4)
    if sum(table[:length]) & 0xFF:
        raise EventLogError("the CCEL table's checksum at offset 0x9 is wrong", 9)
    if cc_type != CCEL_TYPE_TDX:
        raise EventLogError(f"the CCEL table is not of a TD: its type at offset 0x24 is {cc_type}, TDX is 2", 0x24)
    return CcelTable(revision, cc_type, area_length, area_address)


def parse_event_log(data: bytes, table: bytes | None = None) -> list[Event]:
    """The events of a log, in order. ``data`` is a CCEL area or a JSON log; ``table`` the ACPI table, if there is one.

    Raises `EventLogError`, whose text and ``offset`` say where the log goes wrong.

    >>> parse_event_log(b'[{"imr": 3, "event_type": 134217729, "digest": "' + b"00" * 48 + b'"}]')[0].rtmr
    3
    >>> parse_event_log(bytes(8))
    Traceback (most recent call last):
    swtdx.attest.event_log.EventLogError: the log ends in its first record at offset 0x0: 32 bytes wanted, 8 there
    """
    if table is not None:
        area = parse_table(table).area_length
        if len(data) > area:
            raise EventLogError(f"the log has {len(data)} bytes, its CCEL table says {area}", area)
    if data[:4] == b"CCEL":
        raise EventLogError("this is the ACPI table CCEL, not the log it points at", 0)
    if len(data) > MAXIMUM_LOG_SIZE:
        raise EventLogError(f"a log of more than {MAXIMUM_LOG_SIZE >> 20} MiB is not read", MAXIMUM_LOG_SIZE)
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        return _json_events(data)
    return _tcg_events(data)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, length: int, what: str) -> bytes:
        there = len(self.data) - self.offset
        if there < length:
            text = f"the log ends in {what} at offset {self.offset:#x}: {length} bytes wanted, {there} there"
            raise EventLogError(text, self.offset)
        piece = self.data[self.offset : self.offset + length]
        self.offset += length
        return piece

    def number(self, length: int, what: str) -> int:
        return int.from_bytes(self.take(length, what), "little")


def _tcg_events(data: bytes) -> list[Event]:
    reader = _Reader(data)
    sizes = _specification(reader)
    end = len(data.rstrip(data[-1:])) if data[-1:] in (b"\xff", b"\0") else len(data)
    events: list[Event] = []
    while reader.offset < len(data):
        rest = data[reader.offset : reader.offset + 4]
        # The unused area: all 0xFF (a register that cannot be), or all zero, which no record can be.
        if rest == b"\xff" * 4 or (end <= reader.offset and not any(rest)):
            if end > reader.offset:
                raise EventLogError(f"the log ends at offset {reader.offset:#x}, but more follows", reader.offset)
            break
        if len(events) == MAXIMUM_EVENTS:
            raise EventLogError(f"more than {MAXIMUM_EVENTS} events at offset {reader.offset:#x}", reader.offset)
        events.append(_event(reader, len(events), sizes))
    return events


def _specification(reader: _Reader) -> dict[int, int]:
    """Read the first record: digest algorithm -> digest size."""
    header = reader.take(32, "its first record")
    event_type, size = int.from_bytes(header[4:8], "little"), int.from_bytes(header[28:32], "little")
    if event_type != EV_NO_ACTION:
        raise EventLogError(f"not an event log: the first record's type at offset 0x4 is {event_type:#x}, not 3", 4)
    inner = _Reader(reader.data[: reader.offset + len(reader.take(size, "its first record"))])
    inner.offset = 32
    if inner.take(16, "its first record") != SPEC_ID_SIGNATURE:
        raise EventLogError("not a crypto-agile event log: no 'Spec ID Event03' at offset 0x20", 32)
    inner.take(8, "its first record")
    at = inner.offset
    count = inner.number(4, "its first record")
    if not 0 < count <= MAXIMUM_ALGORITHMS:
        raise EventLogError(f"the log declares {count} digest algorithms at offset {at:#x}", at)
    sizes = {}
    for _ in range(count):
        algorithm = inner.number(2, "its algorithms")
        sizes[algorithm] = inner.number(2, "its algorithms")
    if sizes.get(ALGORITHM_SHA384) != SHA384_SIZE:
        raise EventLogError(f"the log declares no SHA-384 of 48 bytes at offset {at:#x}: not the log of a TD", at)
    return sizes


def _event(reader: _Reader, number: int, sizes: dict[int, int]) -> Event:
    start, what = reader.offset, f"event {number}"
    register, event_type, count = (reader.number(4, what) for _ in range(3))
    if register > 4:
        raise EventLogError(f"event {number} at offset {start:#x} is of register {register}; a TD has 0-4", start)
    if count > len(sizes):
        raise EventLogError(f"event {number} at offset {start:#x} has {count} digests of {len(sizes)} kinds", start)
    digests = {}
    for _ in range(count):
        at = reader.offset
        algorithm = reader.number(2, what)
        if algorithm not in sizes:
            raise EventLogError(f"event {number} has an undeclared digest {algorithm:#x} at offset {at:#x}", at)
        digests[algorithm] = reader.take(sizes[algorithm], what)
    data = reader.take(reader.number(4, what), what)
    event = Event(
        number, start, register - 1 if register else None, event_type, digests.get(ALGORITHM_SHA384, b""), data
    )
    if event.extends and not event.digest:
        raise EventLogError(f"event {number} at offset {start:#x} has no SHA-384 digest", start)
    return event


_LOG_MEMBERS = ("event_log", "eventlog", "tcb_info.event_log", "tcb_info.eventlog", "vm_config.event_log")
"""Where agents' answers have a log of JSON events, as a list or as a string of JSON."""
_BINARY_MEMBERS = ("cc_eventlog", "ccel", "cc_event_log", "td_eventlog")
"""Where they have a CCEL area, in base64 or hexadecimal."""


def _json_events(data: bytes) -> list[Event]:
    try:
        content = json_of(data)
        if isinstance(content, dict):
            binary = member_of(content, _BINARY_MEMBERS)
            if binary is not None:
                return _tcg_events(binary_of(binary.encode()) if isinstance(binary, str) else b"")
            content = member_of(content, _LOG_MEMBERS)
        if isinstance(content, str):
            content = json_of(content.encode("utf-8", "replace"))
    except JsonError as error:
        raise EventLogError(f"the log is not JSON at offset {error.offset:#x}: {error}", error.offset) from None
    except ValueError as error:
        raise EventLogError(f"the log at offset 0x0 cannot be read: {error}", 0) from None
    if not isinstance(content, list) or len(content) > MAXIMUM_EVENTS:
        raise EventLogError(f"the log at offset 0x0 is not a list of at most {MAXIMUM_EVENTS} events", 0)
    return [_json_event(number, each) for number, each in enumerate(content)]


def _json_event(number: int, content: Any) -> Event:
    def wrong(what: str) -> EventLogError:
        return EventLogError(f"event {number} of the JSON log: {what}", number)

    if not isinstance(content, dict):
        raise wrong("not an object")
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
        digest, payload, preimage = (
            bytes.fromhex((content.get(key) or "").removeprefix("0x"))
            for key in ("digest", "event_payload", "preimage")
        )
        name.encode()
    except (TypeError, ValueError, AttributeError):
        raise wrong("event, digest, event_payload or preimage is not text or hexadecimal") from None
    in_log = bool(digest)
    if not in_log:
        if event_type != EV_DSTACK_RUNTIME or not name:
            raise wrong("it has no digest, and the log does not contain what was measured")
        try:
            computed = runtime_preimage(event_type, name, payload, version)
        except ValueError as error:
            raise wrong(str(error)) from None
        if preimage and preimage != computed:
            raise wrong("its preimage is not that of its name and payload")
        digest = hashlib.sha384(computed).digest()
    if len(digest) != SHA384_SIZE:
        raise wrong(f"its digest has {len(digest)} bytes, SHA-384 has {SHA384_SIZE}")
    return Event(number, number, rtmr, event_type, digest, payload, name, version, in_log)
