# SPDX-License-Identifier: GPL-2.0-or-later
"""What an event's digest vouches for: all that the log says of the event, a part of it, or nothing of it.

RTMRs vouch for digests only.  The description in a log can be trusted only as far as the digest is of that description,
and which part that is depends on the event's type:

- TCG PC Client Platform Firmware Profile, "event types": separators, actions, variables, partition tables;
- edk2 measures the contents of boot variables, not their names; td-shim the contents of a configuration, not its label;
- GRUB measures the command without its prefix; systemd-stub a section's name with its NUL, and load options in UTF-16;
- dstack's agent hashes type, name and payload, or (version 2) canonical JSON of the three, in one of two forms;
- the attestation agent of Confidential Containers (AAEL) hashes its own event, or (once) a line of its log.

For other events, such as a kernel's image, the log does not contain what was measured.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import Enum

EV_SEPARATOR = 0x04
EV_EVENT_TAG = 0x06
EV_PLATFORM_CONFIG_FLAGS = 0x0A
EV_IPL = 0x0D
EV_DSTACK_RUNTIME = 0x08000001
EV_EFI_VARIABLE_BOOT = 0x80000002
EV_IMA = 1 << 32
"""A line of Linux's IMA log (`swtdx.attest.ima_log`): a number that no type of a firmware's log can have."""
EV_AAEL = EV_IMA + 1
"""A line of the attestation agent's log as text (`swtdx.attest.agent_log`)."""
TAG_AAEL = 0x4141454C
_SHIM_NAME_SIZE = 16
_SEPARATOR_ERROR = (1).to_bytes(4, "little")

_WHOLE = frozenset(
    {
        *{EV_SEPARATOR, 0x05, 0x08, 0x12},  # separator, action, version of the CRTM, omitted boot devices
        *{0x80000001, 0x80000006, 0x80000007},  # variable of a driver's configuration, GPT, EFI action
        *{0x8000000C, 0x8000000D, 0x800000E0},  # variable as BOOT2, GPT without serial numbers, variable as authority
        *{0x800000E3, 0x800000E4},  # variables: the policy for devices, the authority of one
    }
)
"""Types whose digest is of the event's data by specification; a digest of anything else contradicts them."""
_LABELS = re.compile(rb"(?:grub_cmd|kernel_cmdline|module_cmdline|grub_kernel_cmdline)(?:: ?| )", re.DOTALL)


class Vouched(Enum):
    """What of an event's description the digest is of."""

    ALL = "measured"
    LABELLED = "measured without its label"
    CONTENTS = "contents only, not the name"
    NOTHING = "not vouched for"
    ABSENT = "not in the log"
    CONTRADICTED = "NOT what was measured"

    @property
    def data_measured(self) -> bool | None:
        """True: the data were measured; False: they were not; None: the digest cannot decide for all of them."""
        known = {Vouched.ALL: True, Vouched.LABELLED: True, Vouched.CONTRADICTED: False}
        return known.get(self)


@dataclass(frozen=True)
class _Rule:
    """Byte strings whose digest an event may have; ``strict``: one of them it must have."""

    whole: list[bytes]
    labelled: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    strict: bool = False


def vouched(event_type: int, data: bytes, digest: bytes, name: str = "", version: int = 1) -> Vouched:
    """Return what the SHA-384 ``digest`` of an event vouches for.

    ``name`` and ``version`` are those of dstack's events of its own.

    >>> vouched(0x80000007, b"x", hashlib.sha384(b"x").digest()), vouched(4, bytes(4), bytes(48))
    (<Vouched.ALL: 'measured'>, <Vouched.CONTRADICTED: 'NOT what was measured'>)
    >>> vouched(0x80000003, b"a device path", bytes(48))
    <Vouched.NOTHING: 'not vouched for'>
    >>> vouched(4, b"", bytes(48))
    <Vouched.ABSENT: 'not in the log'>
    """
    rule = _rule(event_type, data, name, version)
    for result, candidates in (
        (Vouched.ALL, rule.whole),
        (Vouched.LABELLED, rule.labelled),
        (Vouched.CONTENTS, rule.contents),
    ):
        if any(hashlib.sha384(each).digest() == digest for each in candidates):
            return result
    if not data:
        return Vouched.ABSENT
    return Vouched.CONTRADICTED if rule.strict else Vouched.NOTHING


def runtime_preimages(event_type: int, name: str, payload: bytes, version: int = 1) -> list[bytes]:
    """Return what dstack's agents hash for an event of their own, today's first. Raises ValueError for other versions.

    >>> runtime_preimages(0x08000001, "app-id", b"\\xde\\xad", 2)[0]
    b'{"name":"app-id","payload":"dead","type":134217729}'
    """
    if version == 1:
        return [event_type.to_bytes(4, "little") + b":" + name.encode() + b":" + payload]
    if version == 2:
        today = {"name": name, "payload": payload.hex(), "type": event_type}
        before = {"event": name, "event_type": event_type, "payload": payload.hex(), "version": 2}
        return [
            json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            for content in (today, before)
        ]
    raise ValueError(f"version {version} of dstack's events is not known")


def without_label(data: bytes) -> bytes | None:
    """Return the text after GRUB's label (``kernel_cmdline: `` and so on); None if there is no label."""
    found = _LABELS.match(data)
    return data[found.end() :] if found else None


def shim_configuration(data: bytes) -> tuple[str, bytes] | None:
    """Return name and contents of td-shim's configuration event: 16 bytes of name, a length of 4, the contents."""
    name, _, rest = data[:_SHIM_NAME_SIZE].partition(b"\0")
    size = int.from_bytes(data[_SHIM_NAME_SIZE : _SHIM_NAME_SIZE + 4], "little")
    contents = data[_SHIM_NAME_SIZE + 4 :]
    if not name or any(rest) or not name.isascii() or not name.decode().isprintable() or len(contents) != size:
        return None
    return name.decode(), contents


def _rule(event_type: int, data: bytes, name: str, version: int) -> _Rule:
    if event_type == EV_DSTACK_RUNTIME and name:
        if version not in (1, 2):
            return _Rule([data])
        return _Rule(runtime_preimages(event_type, name, data, version), strict=True)
    if name and event_type not in (EV_IMA, EV_AAEL):  # a name that the log adds, and nothing hashes
        rule = _rule(event_type, data, "", version)
        return _Rule([], contents=[*rule.whole, *rule.labelled, *rule.contents], strict=rule.strict)
    if event_type == EV_SEPARATOR:  # after an error firmware may measure the error and log its reason
        return _Rule([data], contents=[] if data in (bytes(4), b"\xff" * 4) else [_SEPARATOR_ERROR], strict=True)
    if event_type in _WHOLE or event_type == EV_AAEL:
        return _Rule([data], strict=True)
    if event_type == EV_EFI_VARIABLE_BOOT and len(data) >= 32:  # older firmware measures all of it
        return _Rule([data], contents=[data[32 + 2 * int.from_bytes(data[16:24], "little") :]], strict=True)
    if event_type == EV_IPL:
        return _boot_loader(data)
    if event_type == EV_EVENT_TAG and data[:4] == TAG_AAEL.to_bytes(4, "little"):
        return _Rule([data, data[8:]], strict=True)
    if event_type == EV_PLATFORM_CONFIG_FLAGS:
        configuration = shim_configuration(data)
        return _Rule([data], labelled=[] if configuration is None else [configuration[1]])
    return _Rule([data])


def _boot_loader(data: bytes) -> _Rule:
    """GRUB's commands, and names and load options of systemd-stub, which logs UTF-16."""
    text = without_label(data)
    if text is not None:
        command = text.split(b"\0")[0]
        return _Rule([], labelled=[text, command, command + b"\0"], strict=True)
    narrow = data.decode("utf-16-le", "replace").rstrip("\0") if len(data) % 2 == 0 else ""
    return _Rule([data, narrow.encode("ascii", "replace") + b"\0"] if narrow else [data])
