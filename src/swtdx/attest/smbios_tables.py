# SPDX-License-Identifier: GPL-2.0-or-later
"""The SMBIOS tables that firmware measures into RTMR0, from those that fw_cfg hands it.

edk2 takes the structures one by one (OvmfPkg/SmbiosPlatformDxe), adds its own type 0 unless there is one, puts an end
behind them (MdeModulePkg/SmbiosDxe), and at "ready to boot" extends RTMR0 with a copy in which everything that differs
from machine to machine is blank (MdeModulePkg/SmbiosMeasurementDxe).  Field offsets are those of DMTF DSP0134.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from swtdx.attest.firmware_traits import SMBIOS_MEASUREMENT_DXE
from swtdx.attest.firmware_volume import FirmwareFile
from swtdx.image.smbios import ANCHOR_FILE, TABLES_FILE

SMBIOS_PLATFORM_DXE = UUID("4110465d-5ff3-4f4b-b580-24ed0d06747a")
_HEADER = struct.Struct("<BBH")  # type, length, handle
_NOT_SUPPORTED, _VIRTUAL_UEFI = 1 << 3, 0x1C00
"""BIOS characteristics, and their extension: virtual machine, UEFI, targeted content distribution."""
_END, _FIRST_OEM = 127, 128
_LAST_HANDLE = 0xFEFF
"""Handles above are reserved (UEFI PI 1.8, volume 5, 6.2); the end of the table gets this one."""
_MAXIMUM_STRUCTURES = 4096
_ANCHORS = {31: (b"_SM_", 2, struct.Struct("<22xH")), 24: (b"_SM3_", 3, struct.Struct("<12xI"))}
"""By size: signature, major version, where the size of the tables is."""
_REPLACEMENTS = {"date": b"02/02/2022", "text": b"unknown"}
_MAJOR_AT = {31: 6, 24: 7}

_TEXT = 0  # the size of a field that is the number of a text
_BLANK: Mapping[int, Sequence[tuple[int, int]]] = {
    1: ((0x07, _TEXT), (0x08, 16), (0x18, 1)),  # serial number, UUID, wake-up type
    2: ((0x07, _TEXT), (0x0A, _TEXT)),  # serial number, location
    3: ((0x07, _TEXT), (0x08, _TEXT)),  # serial number, asset tag
    4: (
        *((0x20, _TEXT), (0x21, _TEXT), (0x22, _TEXT)),  # serial number, asset tag, part number
        *((0x23, 1), (0x24, 1), (0x25, 1), (0x2A, 2), (0x2C, 2), (0x2E, 2), (0x11, 1), (0x16, 2)),  # cores, volts, MHz
    ),
    17: ((0x18, _TEXT), (0x19, _TEXT), (0x1A, _TEXT)),
    22: ((0x07, _TEXT), (0x10, 2), (0x12, 2)),
    23: ((0x05, 2),),
    27: ((0x0C, 2),),
    39: ((0x08, _TEXT), (0x09, _TEXT), (0x0A, _TEXT)),
}
"""Type of structure -> (offset, size) of what is blank in it."""
_ALL_BLANK = frozenset({11, 15, 18, 31, 33})


class SmbiosTablesError(ValueError):
    """What firmware measures is not known; the text is why."""


@dataclass(frozen=True)
class _Structure:
    kind: int
    handle: int
    body: bytes
    """What follows the header, without the texts."""
    texts: tuple[bytes, ...]

    def pack(self) -> bytes:
        ending = b"".join(text + b"\0" for text in self.texts) + b"\0" if self.texts else bytes(2)
        return _HEADER.pack(self.kind, _HEADER.size + len(self.body), self.handle) + self.body + ending


def measured_tables(fw_cfg: Mapping[str, bytes], carried: Sequence[FirmwareFile]) -> bytes | None:
    """What firmware of these files extends RTMR0 with; None if it measures no tables, or fw_cfg has none.

    Raises `SmbiosTablesError` for tables that are damaged, or firmware whose own structure is not known.
    """
    tables = fw_cfg.get(TABLES_FILE, b"")
    driver = next((each for each in carried if each.name == SMBIOS_PLATFORM_DXE), None)
    if not any(each.name == SMBIOS_MEASUREMENT_DXE for each in carried) or driver is None:
        return None
    if not _is_anchor_of(fw_cfg.get(ANCHOR_FILE, b""), tables):
        return None
    found = list(_structures(tables))
    if not any(each.kind == 0 for each in found):
        found.append(_type_0(driver.executable, {each.handle for each in found}))
    if len({each.handle for each in found}) != len(found) or any(each.handle > _LAST_HANDLE for each in found):
        raise SmbiosTablesError("two structures with one handle")
    found.append(_Structure(_END, _LAST_HANDLE, b"", ()))
    return b"".join(_blanked(each) for each in found)


def _is_anchor_of(anchor: bytes, tables: bytes) -> bool:
    """Whether firmware takes the tables (OvmfPkg/Library/SmbiosVersionLib)."""
    if len(anchor) not in _ANCHORS or not tables:
        return False
    signature, major, size = _ANCHORS[len(anchor)]
    return (
        anchor.startswith(signature)
        and anchor[_MAJOR_AT[len(anchor)]] == major
        and size.unpack_from(anchor)[0] == len(tables)
    )


def _structures(tables: bytes) -> Iterator[_Structure]:
    """Up to the end of the table."""
    at = 0
    for _ in range(_MAXIMUM_STRUCTURES):
        if at + _HEADER.size > len(tables):
            break
        kind, length, handle = _HEADER.unpack_from(tables, at)
        if kind == _END:
            return
        texts_at = at + length
        end = tables.find(b"\0\0", texts_at)
        if length < _HEADER.size or end < 0:
            break
        texts = tables[texts_at:end]
        yield _Structure(kind, handle, tables[at + _HEADER.size : texts_at], tuple(texts.split(b"\0")) if texts else ())
        at = end + 2
    raise SmbiosTablesError("a table that is cut off or damaged")


def _blanked(structure: _Structure) -> bytes:
    """The structure as it is measured."""
    packed = structure.pack()
    if structure.kind >= _FIRST_OEM or structure.kind in _ALL_BLANK:
        return packed[: _HEADER.size] + bytes(len(packed) - _HEADER.size)
    body, texts = bytearray(structure.body), list(structure.texts)
    for offset, size in _BLANK.get(structure.kind, ()):
        start, end = offset - _HEADER.size, offset - _HEADER.size + (size or 1)
        if end > len(body):
            continue
        number = body[start]
        if size == _TEXT and 0 < number <= len(texts):
            texts[number - 1] = b" " * len(texts[number - 1])
        body[start:end] = bytes(end - start)
    return _Structure(structure.kind, structure.handle, bytes(body), tuple(texts)).pack()


def _type_0(driver: bytes, taken: set[int]) -> _Structure:
    """The firmware's own: its vendor, version and date are texts in its driver."""
    vendor, version, date = _firmware_texts(driver)
    handle = next(number for number in range(_LAST_HANDLE) if number not in taken)
    # after the header: texts 1 and 2, segment E800, text 3, size 0, characteristics, releases 0.0 and 255.255, size
    body = struct.pack("<BBHBBQHBBBBH", 1, 2, 0xE800, 3, 0, _NOT_SUPPORTED, _VIRTUAL_UEFI, 0, 0, 0xFF, 0xFF, 0)
    return _Structure(0, handle, body, (vendor, version, date))


def _firmware_texts(driver: bytes) -> tuple[bytes, bytes, bytes]:
    """Vendor, version and date that a build of edk2 was given, as GCC lays them out in its driver.

    Arrays are aligned to 16 bytes; the date comes first, then version and vendor. What is shorter than three characters
    is replaced by the driver. Raises `SmbiosTablesError`.
    """
    found = list(_aligned_texts(driver))
    date, version = _REPLACEMENTS["date"], _REPLACEMENTS["text"]
    if len(found) == 3 and re.fullmatch(rb"\d\d/\d\d/\d{4}", found[0]):
        date, version, vendor = found
    elif len(found) == 1:
        vendor = found[0]
    else:
        raise SmbiosTablesError("type 0, which this firmware makes by itself")
    return vendor, version, date


def _aligned_texts(executable: bytes) -> Iterator[bytes]:
    """Arrays of UTF-16, in their order; the driver's own literals left out, which are aligned to two bytes."""
    for match in re.finditer(rb"(?:[\x20-\x7e]\0){3,}\0\0", executable):
        start = -(-match.start() // 16) * 16
        whole = match[0][::2].rstrip(b"\0")
        text = whole[(start - match.start()) // 2 :]
        if whole not in _REPLACEMENTS.values() and start - match.start() <= 2 and len(text) >= 3:
            yield text
