# SPDX-License-Identifier: GPL-2.0-or-later
"""SMBIOS tables (DMTF DSP0134, 3.0) as fw_cfg hands them to firmware, for those who ask with ``--smbios``.

A structure is a header (type, length, handle), fields of fixed size, and the strings that the fields name by number,
each ending in a zero, all of them in another.  `STRUCTURES` has the fields; what may be typed are those that have a
name, spelt as in QEMU's ``-smbios type=1,product=...``.  Firmware adds what it says of itself (type 0) unless that is
given, and puts the tables where it likes: the anchor's address and checksum are its business.

It is the host's word.  A TD's firmware that measures (edk2's SmbiosMeasurementDxe) extends RTMR0 with the tables, but
for serial numbers, asset tags and the UUID; Debian 12's does not, and nothing there vouches for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from swtdx.image.memory_map import MemoryMap

TABLES_FILE, ANCHOR_FILE = "etc/smbios/smbios-tables", "etc/smbios/smbios-anchor"

_ANCHOR = struct.Struct("<5sBBBBBBBIQ")  # anchor, checksum, length, version (3 bytes), revision, -, size, address
_VERSION = (3, 0, 0)
_TEXT = "text"
_NO_ERROR_HANDLE, _UNKNOWN_WIDTH = 0xFFFE, 0xFFFF
_CHASSIS, _ARRAY = 0x300, 0x1000  # handles that other structures refer to
_EXTENDED_KIB, _EXTENDED_MIB = 0x8000_0000, 0x7FFF
_VIRTUAL_MACHINE, _UEFI = 0x10, 0x08

Value = int | str | bytes


@dataclass(frozen=True)
class Item:
    """A field: how it is packed (or `_TEXT`), its value, and the name by which another can be given."""

    kind: str
    value: Value = 0
    name: str = ""
    computed: bool = False
    """Whether it follows from the machine, so that a user must not give it."""


@dataclass(frozen=True)
class Structure:
    """A type of structure. ``handle``: of the first, as QEMU numbers them; ``standing``: there without asking."""

    handle: int
    items: tuple[Item, ...]
    standing: bool = True
    repeated: str = ""
    """The name of strings that belong to no field and may be any number (OEM strings)."""

    @property
    def names(self) -> list[str]:
        """What can be given."""
        given = [item.name for item in self.items if item.name and not item.computed]
        return [*given, self.repeated] if self.repeated else given


def _text(name: str, value: str = "") -> Item:
    return Item(_TEXT, value, name)


STRUCTURES: Mapping[int, Structure] = {
    0: Structure(  # firmware
        0x000,
        (
            _text("vendor"),
            _text("version"),
            Item("H", 0xE800),
            _text("date"),
            Item("B", 0),  # 64 KiB
            Item("Q", 8),  # characteristics are not given
            Item("BB", bytes((0, _VIRTUAL_MACHINE | _UEFI))),
            Item("BB", bytes(2), "release"),
            Item("BB", b"\xff\xff"),
        ),
        standing=False,
    ),
    1: Structure(  # system
        0x100,
        (
            _text("manufacturer", "swtdx"),
            _text("product", "Q35 board in software"),
            _text("version"),
            _text("serial"),
            Item("16s", bytes(16), "uuid"),
            Item("B", 6),  # woken by the power switch
            _text("sku"),
            _text("family"),
        ),
    ),
    2: Structure(  # baseboard
        0x200,
        (
            *(_text(name) for name in ("manufacturer", "product", "version", "serial", "asset")),
            Item("B", 1),  # a hosting board
            _text("location"),
            Item("H", _CHASSIS),
            Item("BB", b"\x0a\0"),  # a motherboard that contains nothing
        ),
        standing=False,
    ),
    3: Structure(  # chassis
        _CHASSIS,
        (
            _text("manufacturer", "swtdx"),
            Item("B", 1),  # other
            *(_text(name) for name in ("version", "serial", "asset")),
            Item("BBBB", b"\x03\x03\x03\x02"),  # states: safe, safe, safe; security unknown
            Item("IBBBB", bytes(8)),
            _text("sku"),
        ),
    ),
    4: Structure(  # processor: one socket
        0x400,
        (
            Item(_TEXT, "CPU 0"),
            Item("BB", b"\x03\x01"),  # a central processor of another family
            _text("manufacturer", "swtdx"),
            Item("Q"),
            _text("version"),
            Item("BH", bytes(3)),
            Item("H", 0, "max-speed"),
            Item("H", 0, "current-speed"),
            Item("BB", b"\x41\x01"),  # populated and enabled
            Item("HHH", b"\xff" * 6),  # no structures of caches
            *(_text(name) for name in ("serial", "asset", "part")),
            Item("BBB", 0, "cores, short", computed=True),
            Item("HH", b"\x02\0\x01\0"),  # unknown; another family
            Item("HHH", 0, "cores", computed=True),
        ),
    ),
    11: Structure(0xE00, (Item("B", 0, "count", computed=True),), standing=False, repeated="value"),  # OEM strings
    16: Structure(  # an array of memory: system memory with ECC, not on the board
        _ARRAY,
        (
            Item("BBB", b"\x01\x03\x06"),
            Item("I", 0, "KiB", computed=True),
            Item("HH", struct.pack("<HH", _NO_ERROR_HANDLE, 1)),
            Item("Q", 0, "bytes", computed=True),
        ),
    ),
    17: Structure(  # the device in it
        0x1100,
        (
            Item("HHHH", struct.pack("<4H", _ARRAY, _NO_ERROR_HANDLE, _UNKNOWN_WIDTH, _UNKNOWN_WIDTH)),
            Item("H", 0, "MiB, short", computed=True),
            Item("BB", b"\x09\0"),  # a DIMM of no set
            Item(_TEXT, "DIMM 0"),
            _text("bank"),
            Item("BH", b"\x07\x02\0"),  # RAM
            Item("H", 0, "speed"),
            *(_text(name) for name in ("manufacturer", "serial", "asset", "part")),
            Item("B"),
            Item("I", 0, "MiB", computed=True),
            Item("HHHH", bytes(8)),
        ),
    ),
    19: Structure(  # where it is mapped
        0x1300,
        (Item("II", b"\xff" * 8), Item("HB", struct.pack("<HB", _ARRAY, 1)), Item("QQ", 0, "range", computed=True)),
    ),
    32: Structure(0x2000, (Item("6sB", bytes(7)),)),  # no errors detected at the last boot
    127: Structure(0x7F00, ()),  # the end
}


class SmbiosError(ValueError):
    """What was asked for cannot be; the text is one sentence for a person."""


@dataclass
class SmbiosFields:
    """What was given, by type of structure and name; strings that may repeat in ``repeated``; ``texts``: as typed."""

    texts: tuple[str, ...] = ()
    given: dict[int, dict[str, Value]] = field(default_factory=dict)
    repeated: dict[int, list[str]] = field(default_factory=dict)

    def files(self, layout: MemoryMap, cpus: int) -> dict[str, bytes]:
        """The two fw_cfg files: the tables, and the anchor that tells their version and size."""
        tables = b"".join(self._structures(layout, cpus))
        anchor = _ANCHOR.pack(b"_SM3_", 0, _ANCHOR.size, *_VERSION, 1, 0, len(tables), 0)
        anchor = anchor[:5] + bytes([-sum(anchor) & 0xFF]) + anchor[6:]
        return {TABLES_FILE: tables, ANCHOR_FILE: anchor}

    def _structures(self, layout: MemoryMap, cpus: int) -> Iterator[bytes]:
        for kind, structure in STRUCTURES.items():
            if not structure.standing and kind not in self.given and kind not in self.repeated:
                continue
            repeated = self.repeated.get(kind, [])
            for number, machine in enumerate(_of_machine(kind, layout, cpus, len(repeated))):
                values = machine | self.given.get(kind, {})
                yield _pack(kind, structure, structure.handle + number, values, repeated)


def _of_machine(kind: int, layout: MemoryMap, cpus: int, strings: int) -> Sequence[dict[str, Value]]:
    """The fields of each structure of a type that follow from the machine."""
    size = layout.memory_size
    mib = size >> 20
    if kind == 4:
        return [{"cores, short": bytes([min(cpus, 255)] * 3), "cores": struct.pack("<HHH", cpus, cpus, cpus)}]
    if kind == 11:
        return [{"count": strings}]
    if kind == 16:
        fits = size >> 10 < _EXTENDED_KIB
        return [{"KiB": size >> 10 if fits else _EXTENDED_KIB, "bytes": 0 if fits else size}]
    if kind == 17:
        return [{"MiB, short": min(mib, _EXTENDED_MIB), "MiB": mib if mib >= _EXTENDED_MIB else 0}]
    if kind == 19:
        return [{"range": struct.pack("<QQ", start, start + length - 1)} for start, length in layout.ram]
    return [{}]


def _pack(kind: int, structure: Structure, handle: int, values: Mapping[str, Value], repeated: Sequence[str]) -> bytes:
    body, strings = b"", []
    for item in structure.items:
        value = values.get(item.name, item.value)
        if item.kind == _TEXT:
            if value:
                strings.append(str(value).encode())
            body += bytes([len(strings) if value else 0])
        elif isinstance(value, bytes):
            body += value
        else:
            body += struct.pack(f"<{item.kind}", value)
    strings += [text.encode() for text in repeated]
    ending = b"".join(text + b"\0" for text in strings) + b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + (ending if strings else b"\0\0")


def parse_smbios(texts: Sequence[str]) -> SmbiosFields:
    """``type=N[,NAME=VALUE]...``, as QEMU's -smbios takes it; a comma in a value is written twice. Raises SmbiosError.

    >>> parse_smbios(["type=1,product=Board,serial=7"]).given
    {1: {'product': 'Board', 'serial': '7'}}
    """
    result = SmbiosFields(tuple(texts))
    for text in texts:
        words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
        pairs = [word.partition("=") for word in words]
        kind = _kind(text, pairs[0])
        structure = STRUCTURES[kind]
        names = structure.names
        for name, equals, value in pairs[1:]:
            if name not in names or not equals:
                raise SmbiosError(f"--smbios {text}: type {kind} has no {name!r}; it has {', '.join(names)}")
            if name == structure.repeated:
                _typed(text, Item(_TEXT, name=name), value)
                result.repeated.setdefault(kind, []).append(value)
            else:
                item = next(item for item in structure.items if item.name == name)
                result.given.setdefault(kind, {})[name] = _typed(text, item, value)
        if not structure.repeated:
            result.given.setdefault(kind, {})
        elif not 0 < len(result.repeated.get(kind, [])) < 256:
            raise SmbiosError(f"--smbios {text}: of {structure.repeated}s there can be 1 to 255")
    return result


def _kind(text: str, first: tuple[str, str, str]) -> int:
    name, _, value = first
    kinds = [kind for kind, structure in STRUCTURES.items() if structure.names]
    if name != "type":
        raise SmbiosError(f"--smbios {text!r} does not begin with a type: write it as in --smbios type=1,product=board")
    if not (value.isascii() and value.isdigit() and int(value) in kinds):
        raise SmbiosError(f"--smbios {text}: there are fields to give in types {', '.join(map(str, kinds))}")
    return int(value)


def _typed(text: str, item: Item, value: str) -> Value:
    try:
        if item.kind == _TEXT:
            if not value.encode():  # raises ValueError itself for what is not text
                raise ValueError
            return value
        if item.name == "uuid":
            return UUID(value).bytes_le
        if item.name == "release":
            major, _, minor = value.partition(".")
            return bytes((int(major), int(minor)))
        number = int(value, 0)
        struct.pack(f"<{item.kind}", number)
    except (ValueError, struct.error):
        raise SmbiosError(f"--smbios {text}: {item.name} cannot be {value!r}") from None
    return number
