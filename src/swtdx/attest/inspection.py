# SPDX-License-Identifier: GPL-2.0-or-later
"""A firmware image explained: its TDVF metadata, what is measured of it, and whether it can start as a TD.

All rules of `swtdx.image.tdvf` are tried, not only up to the first that is broken, and the section table is kept as it
stands in the file, so that there is something to look at where it is wrong.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from swtdx.attest.firmware_traits import FirmwareTraits, firmware_traits
from swtdx.image.memory_map import MemoryMap
from swtdx.image.tdvf import (
    Row,
    Section,
    SectionAttributes,
    SectionType,
    Tdvf,
    TdvfError,
    TdvfRule,
    examine,
    memory_faults,
    unfilled,
)

_NOT_FOR_TDS = (
    "{} has TDX metadata, but not edk2's driver for TDs (TdxDxe): a build for another use, such as OVMF's for AMD SEV. "
    "It accepts no memory, and the kernel stops its TD with EIO at the first page it touches, on hardware too"
)
DEFAULT_MEMORY = 256 << 20
"""Bytes of guest memory, unless told otherwise: as ``swtdx run`` gives."""


@dataclass(frozen=True)
class Inspection:
    """What stands in an image. ``rows`` is its section table, ``broken`` all rules that keep it from being a TD."""

    name: str
    size: int
    sha256: str
    layout: MemoryMap
    rows: tuple[Row, ...]
    sections: tuple[Section, ...]
    broken: tuple[TdvfError, ...]
    traits: FirmwareTraits

    @property
    def can_start(self) -> bool:
        """Whether a TD can be started from the image, on a machine with this much memory."""
        return not self.broken

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "image": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "memory": self.layout.memory_size,
            "can_start": self.can_start,
            "extends_rtmrs": self.traits.extends_rtmrs,
            "secure_boot": self.traits.secure_boot,
            "broken": [{"rule": str(fault.rule), "text": str(fault)} for fault in self.broken],
            "sections": [
                {
                    "section": index,
                    "type": type_name(row),
                    "type_number": row.type,
                    "attributes": attribute_names(row),
                    "attribute_bits": row.attributes,
                    "data_offset": row.data_offset,
                    "raw_size": row.raw_size,
                    "gpa": row.address,
                    "memory_size": row.memory_size,
                    "in_mrtd": in_mrtd(row),
                }
                for index, row in enumerate(self.rows)
            ],
        }


def inspect_image(image: bytes, name: str = "the image", memory_size: int = DEFAULT_MEMORY) -> Inspection:
    """Explain ``image`` for a guest with ``memory_size`` bytes. Raises nothing: what is wrong stands in ``broken``.

    >>> inspection = inspect_image(bytes(65536), "zeroes.fd")
    >>> inspection.can_start, str(inspection.broken[0].rule)
    (False, 'guid-table')
    >>> print(inspection.broken[0])
    zeroes.fd has no GUID table at its end, so it is truncated or not an OVMF-style firmware image
    """
    found = examine(image, name)
    layout = MemoryMap(memory_size, len(image))
    broken = list(found.broken)
    tdvf = Tdvf(name, image, found.sections)
    placeable = not any(fault.rule is TdvfRule.SECTION_OUTSIDE for fault in broken)
    if placeable and any(section.type is SectionType.TD_HOB for section in found.sections):
        broken += memory_faults(tdvf, layout.ram)
    broken += unfilled(tdvf)
    sha256 = hashlib.sha256(image).hexdigest()
    traits = firmware_traits(image, found.sections)
    if found.rows and traits.for_tds is False:
        broken.append(TdvfError(_NOT_FOR_TDS.format(name), TdvfRule.NOT_FOR_TDS))
    return Inspection(name, len(image), sha256, layout, found.rows, found.sections, tuple(broken), traits)


def type_name(row: Row) -> str:
    """``BFV``; of an unknown type its number.

    >>> type_name(Row(0, 0, 0x809000, 0x2000, 2, 0)), type_name(Row(0, 0, 0, 0, 77, 0))
    ('TD_HOB', 'unknown (77)')
    """
    try:
        return SectionType(row.type).name
    except ValueError:
        return f"unknown ({row.type})"


def attribute_names(row: Row) -> list[str]:
    """Names of the attribute bits, unknown ones as one number.

    >>> attribute_names(Row(0, 0, 0, 0x1000, 0, 5))
    ['MR_EXTEND', '0x4']
    """
    known = [bit for bit in SectionAttributes if bit and row.attributes & bit]
    rest = row.attributes & ~sum(known)
    return [str(bit.name) for bit in known] + ([f"{rest:#x}"] if rest else [])


def in_mrtd(row: Row) -> str:
    """What of a section goes into MRTD: ``contents`` (and addresses), ``addresses`` or ``nothing``.

    >>> [in_mrtd(Row(0, 0, 0, 0x1000, 4, attributes)) for attributes in (1, 0, 2)]
    ['contents', 'addresses', 'nothing']
    """
    if row.attributes & SectionAttributes.PAGE_AUG or not row.memory_size:
        return "nothing"
    return "contents" if row.attributes & SectionAttributes.MR_EXTEND else "addresses"
