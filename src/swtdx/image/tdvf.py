# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVF metadata: how a TDX Virtual Firmware image says where each of its parts goes, and what of it is measured.

The image ends at guest-physical 4 GiB.  Its last 32 bytes belong to the reset vector; just below lies a table of
GUID-tagged entries that is read from its end towards its start (EDK2, ``OvmfPkg/ResetVector``)::

    ... | data | length u16 | GUID | data | length u16 | GUID | ... | length u16 | footer GUID | reset vector (32 bytes)

where an entry's length counts its data, the length word and the GUID, and the footer's length counts the whole table.
The entry ``e47a6535-...`` holds one u32: the distance of the TDX metadata descriptor from the end of the file.
Descriptor and sections are those of the TDX Virtual Firmware Design Guide (Intel 344991), chapter "TDVF metadata";
the section types beyond it (PAYLOAD and up) are td-shim's.

Everything a launch would trip over later is refused here, in one sentence that names file, section and rule.  `parse`
stops at the first rule that is broken, which is what a launch needs; `examine` continues and reports all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag, StrEnum
from itertools import combinations
from typing import NamedTuple

from swtdx.image.container import LONGEST_HEAD, container_of, unwrapping
from swtdx.image.guid import guid_bytes
from swtdx.units import PAGE_SIZE

FOUR_GIB = 1 << 32
# The firmware ends at 4 GiB; a larger image would reach down to the local APIC's page at 0xfee00000.
MAXIMUM_IMAGE_SIZE = 16 << 20

RESET_VECTOR_SIZE = 32
TABLE_FOOTER_GUID = guid_bytes("96b582de-1fb2-45f7-baea-a366c55a082d")
TDX_METADATA_OFFSET_GUID = guid_bytes("e47a6535-984a-4798-865e-4685a7bf8ec2")
DESCRIPTOR_SIGNATURE = b"TDVF"
DESCRIPTOR_VERSION = 1

_ENTRY_TAIL = struct.Struct("<H16s")  # length, GUID
_DESCRIPTOR = struct.Struct("<4sIII")  # signature, length, version, number of sections
_SECTION = struct.Struct("<IIQQII")  # data offset, raw data size, memory address, memory size, type, attributes
# More sections than fit into one page of metadata are not from firmware.
_MAXIMUM_SECTIONS = (PAGE_SIZE - _DESCRIPTOR.size) // _SECTION.size


# A firmware volume begins with 16 zero bytes, the GUID of its file system, its length and "_FVH" (UEFI PI, volume 3).
_VOLUME_SIGNATURE_AT = 40
_VOLUME_SIGNATURE = b"_FVH"
_VARIABLE_STORE_GUID = guid_bytes("fff12b8d-7696-4c8b-a985-2747075b4f50")  # EFI_SYSTEM_NV_DATA_FV_GUID


class TdvfRule(StrEnum):
    """What an image must keep to be started as a TD; the values are for programs to read."""

    IMAGE_SIZE = "image-size"
    CONTAINER = "container"  # a wrapping of another format around the image
    GUID_TABLE = "guid-table"
    NO_METADATA = "no-metadata"
    SPLIT_IMAGE = "split-image"  # half of an image: code without variable store, or the other way round
    METADATA = "metadata"
    UNKNOWN_TYPE = "unknown-type"
    BAD_ATTRIBUTES = "bad-attributes"
    DATA_OUTSIDE = "data-outside-file"
    SECTION_SIZE = "section-size"
    SECTION_DATA = "section-data"
    SECTION_OUTSIDE = "section-outside"  # of guest memory
    MISSING_BFV = "missing-bfv"
    MISSING_TD_HOB = "missing-td-hob"
    DUPLICATE = "duplicate-section"
    OVERLAP = "overlap"
    NOT_FILLED = "not-filled"  # the VMM would have to bring the contents, and this one does not
    NOT_FOR_TDS = "not-for-tds"  # the metadata are those of a TDVF, the code is not


class TdvfError(Exception):
    """The file is not a TDVF that can be launched; the text is one sentence for a person, ``rule`` for a program."""

    def __init__(self, text: str, rule: TdvfRule) -> None:
        super().__init__(text)
        self.rule = rule


class SectionType(IntEnum):
    """TDVF section types: the design guide's 0-4, td-shim's above."""

    BFV = 0  # boot firmware volume: the code
    CFV = 1  # configuration firmware volume: the variable store
    TD_HOB = 2  # where the VMM puts the TD HOB
    TEMP_MEM = 3  # zeroed pages for stacks and heaps
    PERM_MEM = 4  # memory that stays
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7
    TD_PARAMS = 8


class SectionAttributes(IntFlag):
    """Attribute bits of a section."""

    NONE = 0
    MR_EXTEND = 1  # TDH.MR.EXTEND: the contents are measured, not only the address
    PAGE_AUG = 2  # added at run time with TDH.MEM.PAGE.AUG, accepted by the firmware


_KNOWN_ATTRIBUTES = int(SectionAttributes.MR_EXTEND | SectionAttributes.PAGE_AUG)

# Types whose contents come from the file; all others start as zeroes (or are filled by the VMM).
_FROM_FILE = frozenset({SectionType.BFV, SectionType.CFV, SectionType.PAYLOAD, SectionType.TD_INFO})
_FROM_FILE_ALWAYS = frozenset({SectionType.BFV, SectionType.CFV})
# Types of which a TD can have only one.
_SINGLE = frozenset(
    {SectionType.CFV, SectionType.TD_HOB, SectionType.PAYLOAD, SectionType.PAYLOAD_PARAM, SectionType.TD_PARAMS}
)


@dataclass(frozen=True)
class Section:
    """One section: ``raw_size`` bytes of the file at ``data_offset`` go to ``memory_size`` bytes at GPA ``address``."""

    index: int
    type: SectionType
    attributes: SectionAttributes
    data_offset: int
    raw_size: int
    address: int
    memory_size: int

    @property
    def end(self) -> int:
        """First guest-physical address after the section."""
        return self.address + self.memory_size

    @property
    def measured(self) -> bool:
        """Whether the contents are extended into MRTD."""
        return SectionAttributes.MR_EXTEND in self.attributes

    @property
    def added(self) -> bool:
        """Whether the VMM adds the pages while it builds the TD (else they are AUGed later, or there are none)."""
        return SectionAttributes.PAGE_AUG not in self.attributes and self.memory_size > 0

    def __str__(self) -> str:
        return f"section {self.index} ({self.type.name})"


@dataclass(frozen=True)
class Tdvf:
    """A parsed image. ``sections`` are in the order of the metadata, which is the order in which they are added.

    ``brought``: contents that are not in the file because the VMM brings them, by the section's index.
    """

    name: str
    image: bytes
    sections: tuple[Section, ...]
    brought: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def load_address(self) -> int:
        """Guest-physical address of the image's first byte: it ends at 4 GiB."""
        return FOUR_GIB - len(self.image)

    @property
    def hob(self) -> Section:
        """The TD_HOB section."""
        return next(section for section in self.sections if section.type is SectionType.TD_HOB)

    def contents(self, section: Section) -> bytes:
        """What the file or the VMM puts into ``section``, padded with zeroes to its memory size."""
        return bytes(self.raw_contents(section)).ljust(section.memory_size, b"\0")

    def raw_contents(self, section: Section) -> memoryview:
        """What is put at the start of ``section``, uncopied; zeroes follow up to its memory size."""
        if section.index in self.brought:
            return memoryview(self.brought[section.index])
        return memoryview(self.image)[section.data_offset : section.data_offset + section.raw_size]

    def with_contents(self, brought: Mapping[int, bytes]) -> Tdvf:
        """The same image with contents that the VMM brings, by index; each must fit into its section."""
        for index, contents in brought.items():
            if len(contents) > self.sections[index].memory_size:
                raise ValueError(f"{self.name}: {self.sections[index]} has no room for {len(contents)} bytes")
        return replace(self, brought=dict(brought))


class Row(NamedTuple):
    """One line of the section table as it stands in the file, whatever it says."""

    data_offset: int
    raw_size: int
    address: int
    memory_size: int
    type: int
    attributes: int


@dataclass(frozen=True)
class Examination:
    """What stands in an image: all rows of its section table, those that are sections, every rule that is broken."""

    rows: tuple[Row, ...]
    sections: tuple[Section, ...]
    broken: tuple[TdvfError, ...]


def parse(image: bytes, name: str) -> Tdvf:
    """Read the metadata of ``image`` and check every rule that does not depend on the size of guest memory.

    ``name`` is the file's name for error texts. Raises `TdvfError`, for the first rule that is broken.
    """
    found = examine(image, name)
    if found.broken:
        raise found.broken[0]
    return Tdvf(name, image, found.sections)


def examine(image: bytes, name: str) -> Examination:
    """Read the metadata of ``image`` as far as they can be read; collect the broken rules in the order of checking."""
    try:
        check_container(image, name)
        check_image_size(image, name)
        rows = _rows(image, _descriptor_offset(image, name), name)
    except TdvfError as error:
        return Examination((), (), (error,))
    sections: list[Section] = []
    broken: list[TdvfError] = []
    for index, row in enumerate(rows):
        try:
            sections.append(_section(index, row, name))
        except TdvfError as error:
            broken.append(error)
    for section in sections:
        broken.extend(_section_faults(section, image, name))
    broken.extend(_set_faults(sections, {row.type for row in rows}, name))
    return Examination(rows, tuple(sections), tuple(broken))


def check_container(image: bytes, name: str) -> None:
    """Refuse an image that is wrapped in another format: its MRTD would be of the wrapping. Raises `TdvfError`."""
    container = container_of(image[:LONGEST_HEAD])
    if container is not None:
        raise TdvfError(
            f"{name} is not a plain firmware image but {container.name}: {unwrapping(container, name)}",
            TdvfRule.CONTAINER,
        )


def check_image_size(image: bytes, name: str) -> None:
    """Refuse what cannot be mapped as firmware below 4 GiB at all. Raises `TdvfError`."""
    if not image:
        raise TdvfError(f"{name} is empty, so it is not a firmware image", TdvfRule.IMAGE_SIZE)
    if len(image) > MAXIMUM_IMAGE_SIZE:
        raise TdvfError(
            f"{name} is {len(image)} bytes long, "
            f"but firmware must fit into the {MAXIMUM_IMAGE_SIZE >> 20} MiB below 4 GiB",
            TdvfRule.IMAGE_SIZE,
        )
    if len(image) % PAGE_SIZE:
        raise TdvfError(
            f"{name} is {len(image)} bytes long, which is not a multiple of the {PAGE_SIZE}-byte page: "
            "it is truncated, or not a firmware image",
            TdvfRule.IMAGE_SIZE,
        )


def check_memory(tdvf: Tdvf, ranges: Sequence[tuple[int, int]]) -> None:
    """Check that all sections lie in guest memory: ``ranges`` of RAM as (GPA, length), and the firmware's own window.

    Raises `TdvfError`.
    """
    for fault in memory_faults(tdvf, ranges):
        raise fault


def memory_faults(tdvf: Tdvf, ranges: Sequence[tuple[int, int]]) -> Iterator[TdvfError]:
    """Every section that does not lie in guest memory, as `check_memory` would raise it; the TD HOB first."""
    flash = (tdvf.load_address, len(tdvf.image))
    others = [section for section in tdvf.sections if section is not tdvf.hob]
    for section in (tdvf.hob, *others):
        if not section.memory_size:
            continue
        if section.type is SectionType.TD_HOB:
            if not _inside(section, ranges):
                yield TdvfError(
                    f"{tdvf.name}: {section} needs RAM at {_span(section)} for the TD HOB, "
                    "and the guest has none there: give it more memory",
                    TdvfRule.SECTION_OUTSIDE,
                )
        elif not _inside(section, [*ranges, flash]):
            yield TdvfError(
                f"{tdvf.name}: {section} at {_span(section)} lies outside guest memory "
                f"({', '.join(f'{start:#x}-{start + length:#x}' for start, length in [*ranges, flash])})",
                TdvfRule.SECTION_OUTSIDE,
            )


def unfilled(tdvf: Tdvf) -> Iterator[TdvfError]:
    """Every section that the VMM must fill and has not filled."""
    for section in tdvf.sections:
        if section.index in tdvf.brought:
            continue
        if section.type in (SectionType.PAYLOAD, SectionType.PAYLOAD_PARAM) and not section.raw_size:
            yield TdvfError(
                f"{tdvf.name}: {section} is for a kernel that the VMM brings, and there is none", TdvfRule.NOT_FILLED
            )
        if section.type is SectionType.TD_PARAMS:
            yield TdvfError(f"{tdvf.name}: {section} is of a kind that swtdx does not fill", TdvfRule.NOT_FILLED)


def _descriptor_offset(image: bytes, name: str) -> int:
    """Walk the GUID table backwards to the TDX entry; returns the descriptor's offset in the file."""
    end = len(image) - RESET_VECTOR_SIZE
    length, guid = _ENTRY_TAIL.unpack_from(image, end - _ENTRY_TAIL.size)
    if guid != TABLE_FOOTER_GUID:
        if _first_volume(image) == _VARIABLE_STORE_GUID:
            raise TdvfError(
                f"{name} has no GUID table at its end; it begins with a variable store: if it is the VARS half of a "
                "split image, give the whole image, code and variable store in one file",
                TdvfRule.SPLIT_IMAGE,
            )
        raise TdvfError(
            f"{name} has no GUID table at its end, so it is truncated or not an OVMF-style firmware image",
            TdvfRule.GUID_TABLE,
        )
    start = end - length
    if length < _ENTRY_TAIL.size or start < 0:
        raise TdvfError(
            f"{name}: the GUID table at its end claims {length} bytes, which is not a valid length", TdvfRule.GUID_TABLE
        )
    end -= _ENTRY_TAIL.size
    while end - start >= _ENTRY_TAIL.size:
        length, guid = _ENTRY_TAIL.unpack_from(image, end - _ENTRY_TAIL.size)
        if length < _ENTRY_TAIL.size or length > end - start:
            raise TdvfError(
                f"{name}: the GUID table at its end has an entry of {length} bytes, which is not a valid length",
                TdvfRule.GUID_TABLE,
            )
        if guid == TDX_METADATA_OFFSET_GUID:
            if length != _ENTRY_TAIL.size + 4:
                raise TdvfError(
                    f"{name}: the TDX metadata entry of the GUID table is {length} bytes long, not 22",
                    TdvfRule.METADATA,
                )
            distance = int.from_bytes(image[end - length : end - length + 4], "little")
            if not _DESCRIPTOR.size <= distance <= len(image):
                raise TdvfError(
                    f"{name}: the TDX metadata offset {distance:#x} points outside the file", TdvfRule.METADATA
                )
            return len(image) - distance
        end -= length
    raise TdvfError(
        f"{name} carries no TDX metadata, so it is not a TDVF: a build of OVMF with TDX support is needed"
        f"{_split_hint(image)}",
        TdvfRule.SPLIT_IMAGE if is_split(image) else TdvfRule.NO_METADATA,
    )


def _rows(image: bytes, at: int, name: str) -> tuple[Row, ...]:
    signature, length, version, count = _DESCRIPTOR.unpack_from(image, at)
    if signature != DESCRIPTOR_SIGNATURE:
        raise TdvfError(
            f"{name}: the TDX metadata offset leads to {signature!r} instead of the signature 'TDVF'", TdvfRule.METADATA
        )
    if version != DESCRIPTOR_VERSION:
        raise TdvfError(
            f"{name}: TDX metadata version {version} is unknown (version {DESCRIPTOR_VERSION} is)", TdvfRule.METADATA
        )
    if not 0 < count <= _MAXIMUM_SECTIONS:
        raise TdvfError(
            f"{name}: the TDX metadata claims {count} sections (1 to {_MAXIMUM_SECTIONS} can be)", TdvfRule.METADATA
        )
    if length != _DESCRIPTOR.size + count * _SECTION.size:
        raise TdvfError(
            f"{name}: the TDX metadata is {length} bytes long, which does not hold {count} sections exactly",
            TdvfRule.METADATA,
        )
    if at + length > len(image):
        raise TdvfError(f"{name} ends within the TDX metadata's section table", TdvfRule.METADATA)
    return tuple(
        Row(*_SECTION.unpack_from(image, at + _DESCRIPTOR.size + index * _SECTION.size)) for index in range(count)
    )


def _section(index: int, row: Row, name: str) -> Section:
    offset, raw, address, size, kind, attributes = row
    try:
        section_type = SectionType(kind)
    except ValueError:
        raise TdvfError(f"{name}: section {index} has the unknown type {kind}", TdvfRule.UNKNOWN_TYPE) from None
    if attributes & ~_KNOWN_ATTRIBUTES:
        raise TdvfError(
            f"{name}: section {index} ({section_type.name}) has unknown attribute bits ({attributes:#x})",
            TdvfRule.BAD_ATTRIBUTES,
        )
    return Section(index, section_type, SectionAttributes(attributes), offset, raw, address, size)


def _section_faults(section: Section, image: bytes, name: str) -> Iterator[TdvfError]:
    """Return the rules for single sections that a section breaks."""
    where = f"{name}: {section}"
    if section.data_offset + section.raw_size > len(image):
        yield TdvfError(
            f"{where} takes bytes {section.data_offset:#x}-{section.data_offset + section.raw_size:#x} of the file, "
            f"which ends at {len(image):#x}{_split_hint(image)}",
            TdvfRule.SPLIT_IMAGE if is_split(image) else TdvfRule.DATA_OUTSIDE,
        )
    if section.type is SectionType.TD_INFO and not section.memory_size:
        return  # information for a verifier: nothing of it is loaded
    if not section.memory_size:
        yield TdvfError(f"{where} has no memory (its memory size is 0)", TdvfRule.SECTION_SIZE)
    if section.address % PAGE_SIZE or section.memory_size % PAGE_SIZE:
        yield TdvfError(
            f"{where} at {_span(section)} is unaligned: address and memory size must be multiples of 4 KiB",
            TdvfRule.SECTION_SIZE,
        )
    if section.raw_size > section.memory_size:
        yield TdvfError(
            f"{where} has more data ({section.raw_size:#x} bytes) than memory ({section.memory_size:#x} bytes)",
            TdvfRule.SECTION_SIZE,
        )
    if section.end > 1 << 52:
        yield TdvfError(
            f"{where} at {_span(section)} lies outside guest memory: no guest-physical address has 53 bits",
            TdvfRule.SECTION_OUTSIDE,
        )
    if section.raw_size and section.type not in _FROM_FILE:
        yield TdvfError(
            f"{where} has data in the file, but memory of this type is not loaded from the file", TdvfRule.SECTION_DATA
        )
    if not section.raw_size and section.type in _FROM_FILE_ALWAYS:
        yield TdvfError(
            f"{where} has no data in the file, but a firmware volume must be loaded from it", TdvfRule.SECTION_DATA
        )
    if SectionAttributes.PAGE_AUG in section.attributes:
        if section.type is not SectionType.PERM_MEM:
            yield TdvfError(
                f"{where} has the attribute PAGE_AUG, which only a PERM_MEM section can have", TdvfRule.BAD_ATTRIBUTES
            )
        if section.measured:
            yield TdvfError(
                f"{where} has both attributes MR_EXTEND and PAGE_AUG, which exclude each other", TdvfRule.BAD_ATTRIBUTES
            )


def _set_faults(sections: Sequence[Section], types: Set[int], name: str) -> Iterator[TdvfError]:
    """The rules that the sections must keep together, broken; ``types`` are also those of sections broken otherwise."""
    for needed, purpose, rule in (
        (SectionType.BFV, "boot firmware volume", TdvfRule.MISSING_BFV),
        (SectionType.TD_HOB, "place for the TD HOB", TdvfRule.MISSING_TD_HOB),
    ):
        if needed not in types:
            yield TdvfError(f"{name} has no {needed.name} section ({purpose}) in its TDX metadata", rule)
    seen: set[SectionType] = set()
    for section in sections:
        if section.type in _SINGLE and section.type in seen:
            yield TdvfError(
                f"{name}: {section} is a second section of a type of which there can be only one", TdvfRule.DUPLICATE
            )
        seen.add(section.type)
    for one, other in combinations(sections, 2):
        if one.address < other.end and other.address < one.end:
            yield TdvfError(
                f"{name}: {one} at {_span(one)} and {other} at {_span(other)} overlap in memory", TdvfRule.OVERLAP
            )


def is_split(image: bytes) -> bool:
    """Whether the file is the code half of a firmware whose variable store is a file of its own.

    A whole image begins with the variable store's volume; a code half begins with a volume of another kind.
    """
    return _first_volume(image) not in (None, _VARIABLE_STORE_GUID)


def _first_volume(image: bytes) -> bytes | None:
    """The file-system GUID (as stored) of the firmware volume at the start of the file, None if there is none."""
    signature = image[_VOLUME_SIGNATURE_AT : _VOLUME_SIGNATURE_AT + len(_VOLUME_SIGNATURE)]
    return bytes(image[16:32]) if signature == _VOLUME_SIGNATURE else None


def _split_hint(image: bytes) -> str:
    if not is_split(image):
        return ""
    return "; it is the code half of a split image: give the whole image, code and variable store in one file"


def _inside(section: Section, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= section.address and section.end <= start + length for start, length in ranges)


def _span(section: Section) -> str:
    return f"{section.address:#x}-{section.end:#x}"
