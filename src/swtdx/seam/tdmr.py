# SPDX-License-Identifier: GPL-2.0-or-later
"""TDMR_INFO: how the host describes a trust domain memory region to TDH.SYS.CONFIG, and the rules it must keep.

320 bytes, 512-byte aligned: base, size, then (base, size) of the 1 GiB, 2 MiB and 4 KiB metadata, then 16 reserved
areas (offset, size) in ascending order, a zero size ending the list. Details of an error are bytes of DETAILS_L2: the
TDMR's position, then the area's or the metadata's page size (0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from swtdx.seam.pamt import ENTRY_SIZE, GIB, PageSize, Tdmr
from swtdx.seam.status import Status, StatusCode, detail_bytes
from swtdx.x86 import PAGE_OFFSET_MASK

SIZE = 320
ALIGNMENT = 512
MAX_TDMRS = 64
MAX_RESERVED = 16
_LAYOUT = struct.Struct(f"<8Q{2 * MAX_RESERVED}Q")
_END_OF_ADDRESSES = 1 << 64

LARGEST_FIRST = (PageSize.SIZE_1G, PageSize.SIZE_2M, PageSize.SIZE_4K)

Area = tuple[int, int]


@dataclass(frozen=True)
class MemoryRules:
    """What TDMRs are checked against: convertible memory, and the HPA bits below the KeyID."""

    cmrs: tuple[Area, ...]
    address_limit: int
    """First HPA that has a KeyID bit set."""


def parse(data: bytes) -> Tdmr:
    """Parse a TDMR_INFO, unchecked; reserved areas are still offsets, all 16 of them."""
    words = _LAYOUT.unpack(data)
    areas = tuple(zip(words[8::2], words[9::2], strict=True))
    return Tdmr(words[0], words[1], ((words[6], words[7]), (words[4], words[5]), (words[2], words[3])), areas)


def check(number: int, tdmr: Tdmr, earlier: list[Tdmr], rules: MemoryRules) -> Tdmr:
    """Check TDMR ``number`` after those before it; returns it with its reserved areas absolute.

    Raises the Status of the first rule broken, in the order of TDH.SYS.CONFIG.
    """
    _check_region(number, tdmr, earlier, rules)
    reserved = _check_reserved(number, tdmr)
    tdmr = Tdmr(tdmr.base, tdmr.size, tdmr.pamt, reserved)
    _check_pamt(number, tdmr, earlier, rules)
    for part in available(tdmr):
        if not covered(part, rules.cmrs):
            raise Status(StatusCode.TDMR_OUTSIDE_CMRS, detail_bytes(number))
    return tdmr


def _check_region(number: int, tdmr: Tdmr, earlier: list[Tdmr], rules: MemoryRules) -> None:
    if tdmr.base + tdmr.size >= _END_OF_ADDRESSES:
        raise Status(StatusCode.INVALID_TDMR, detail_bytes(number))
    if earlier and tdmr.base < earlier[-1].end:
        raise Status(StatusCode.NON_ORDERED_TDMR, detail_bytes(number))
    if tdmr.base % GIB or tdmr.size % GIB or not tdmr.size or tdmr.end > rules.address_limit:
        raise Status(StatusCode.INVALID_TDMR, detail_bytes(number))


def _check_reserved(number: int, tdmr: Tdmr) -> tuple[Area, ...]:
    """Check that reserved areas are sorted, disjoint, page aligned and inside the TDMR; a null one ends the list."""
    areas: list[Area] = []
    before = 0
    for j, (offset, size) in enumerate(tdmr.reserved):
        if size == 0:
            if any(following for _, following in tdmr.reserved[j + 1 : j + 2]):
                raise Status(StatusCode.NON_ORDERED_RESERVED_IN_TDMR, detail_bytes(number, j))
            continue
        if offset + size >= _END_OF_ADDRESSES:
            raise Status(StatusCode.INVALID_RESERVED_IN_TDMR, detail_bytes(number, j))
        if j and offset < before:
            raise Status(StatusCode.NON_ORDERED_RESERVED_IN_TDMR, detail_bytes(number, j))
        if (offset | size) & PAGE_OFFSET_MASK or offset + size > tdmr.size:
            raise Status(StatusCode.INVALID_RESERVED_IN_TDMR, detail_bytes(number, j))
        before = offset + size
        areas.append((tdmr.base + offset, size))
    return tuple(areas)


def _check_pamt(number: int, tdmr: Tdmr, earlier: list[Tdmr], rules: MemoryRules) -> None:
    """Check the metadata regions: each for itself, then against each other, free memory and convertible memory."""
    for size in LARGEST_FIRST:
        base, length = tdmr.pamt[size]
        if (
            base + length >= _END_OF_ADDRESSES
            or (base | length) & PAGE_OFFSET_MASK
            or base + length > rules.address_limit
            or length < (tdmr.size >> size.shift) * ENTRY_SIZE
        ):
            raise Status(StatusCode.INVALID_PAMT, detail_bytes(number, size))
    for j, other in enumerate(earlier):
        _check_disjoint(number, tdmr, j, other.pamt)
    for size in PageSize:
        if any(overlap(tdmr.pamt[size], tdmr.pamt[larger]) for larger in PageSize if larger > size):
            raise Status(StatusCode.PAMT_OVERLAP, detail_bytes(number, size, number))
    for j, other in enumerate([*earlier, tdmr]):
        _check_disjoint(number, tdmr, j, available(other))
        if other is not tdmr:  # and no earlier metadata may lie in this region
            _check_disjoint(j, other, number, available(tdmr))
    for size in LARGEST_FIRST:
        if not covered(tdmr.pamt[size], rules.cmrs):
            raise Status(StatusCode.PAMT_OUTSIDE_CMRS, detail_bytes(number, size))


def _check_disjoint(number: int, tdmr: Tdmr, where: int, taken: Sequence[Area]) -> None:
    """Check that no metadata of a TDMR lies in areas of TDMR ``where``."""
    for size in PageSize:
        if any(overlap(tdmr.pamt[size], area) for area in taken):
            raise Status(StatusCode.PAMT_OVERLAP, detail_bytes(number, size, where))


def available(tdmr: Tdmr) -> list[Area]:
    """Return the parts of a TDMR between its (absolute) reserved areas."""
    parts, start = [], tdmr.base
    for area, size in tdmr.reserved:
        if area > start:
            parts.append((start, area - start))
        start = area + size
    if start < tdmr.end:
        parts.append((start, tdmr.end - start))
    return parts


def overlap(first: Area, second: Area) -> bool:
    """Return whether two (base, size) areas share a byte."""
    return first[0] < second[0] + second[1] and second[0] < first[0] + first[1]


def covered(area: Area, cmrs: tuple[Area, ...]) -> bool:
    """Return whether an area lies in convertible memory; adjacent CMRs count as one."""
    position, end = area[0], area[0] + area[1]
    for base, size in sorted(cmrs):
        if base <= position < base + size:
            position = base + size
    return position >= end
