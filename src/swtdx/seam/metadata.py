# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata fields: identifiers, the tables of fields, and the rules for reading and writing one element.

A 64-bit field identifier:

=====  ==================================================
bits   meaning
=====  ==================================================
23:0   field code
33:32  element size code: 1, 2, 4, 8 bytes
37:34  last element in field (lists only)
46:38  last field in sequence (lists only)
50     increment size
51     write mask valid
54:52  context: 0 module, 1 TD, 2 virtual CPU
61:56  class
63     non-architectural
=====  ==================================================

Access to a single element looks at class and field code; the context is the leaf function's, size and
non-architectural bits are not compared (KVM passes none of them). A field with several elements has consecutive codes,
except CPUID_VALUES, whose codes name leaf and sub-leaf.

`metadata_values` has what a field holds; which bits of it a caller may see or change is in
``tables/metadata.json``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from swtdx.seam.status import Status, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.version import ModuleVersion

CODE_MASK = 0xFF_FFFF
CLASS_SHIFT, CLASS_MASK = 56, 0x3F
LIST_BITS = 0x0000_7FFC_0000_0000
"""last_element and last_field, which a single-element access must leave zero."""
RESERVED_BITS = 0x4080_8000_FF00_0000
"""62, 55, 47 and 31:24."""
NONE = (1 << 64) - 1
"""The identifier before the first and after the last field."""
CONTEXT_SHIFT = 52
NON_ARCHITECTURAL = 1 << 63
EXACT_BITS = NON_ARCHITECTURAL | CLASS_MASK << CLASS_SHIFT | CODE_MASK
CPUID_VALUES = "CPUID_VALUES"


class Accessor(IntEnum):
    """Who asks: decides which pair of masks applies."""

    PRODUCTION = 0
    DEBUG = 1
    GUEST = 2


@dataclass(frozen=True)
class Field:
    """One row of the metadata table; masks are (read, write) by Accessor."""

    name: str
    field_id: int
    size: int
    num_fields: int
    num_elements: int
    masks: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    stride: int = 1
    """Field codes from one element to the next: VMCS encodings go by two, the odd ones name upper halves."""

    @property
    def code(self) -> int:
        """Field code of the first element."""
        return self.field_id & CODE_MASK

    @property
    def class_code(self) -> int:
        """Class."""
        return self.field_id >> CLASS_SHIFT & CLASS_MASK

    @property
    def count(self) -> int:
        """Elements altogether."""
        return self.num_fields * self.num_elements


class FieldTable:
    """The fields of one context, found by class and code."""

    def __init__(self, fields: list[Field], *, exact: bool = False) -> None:
        self.fields = fields
        self.exact = exact
        """Identifiers have no size and no context, and must be right in every bit (module 1.0)."""
        self._by_class: dict[int, list[Field]] = {}
        for field in fields:
            self._by_class.setdefault(field.class_code, []).append(field)
        for group in self._by_class.values():
            group.sort(key=lambda field: field.code)
        self.by_name = {field.name: field for field in fields}

    def find(self, identifier: int) -> tuple[Field, int] | None:
        """Return (field, element) of an identifier, or None. Of CPUID_VALUES the element is the field code."""
        if self.exact and identifier & ~EXACT_BITS:
            return None
        group = self._by_class.get(identifier >> CLASS_SHIFT & CLASS_MASK)
        if group is None:
            return None
        code = identifier & CODE_MASK
        position = bisect_right(group, code, key=lambda field: field.code) - 1
        if position < 0:
            return None
        field = group[position]
        if self.exact and (field.field_id ^ identifier) & NON_ARCHITECTURAL:
            return None
        if field.name == CPUID_VALUES:
            return field, code
        element, rest = divmod(code - field.code, field.stride)
        return (field, element) if not rest and element < field.count else None


def _masks(row: list[str]) -> tuple[int, int]:
    return int(row[0], 16), int(row[1], 16)


@cache
def system_fields() -> FieldTable:
    """Return the fields of TDH.SYS.RD and TDG.SYS.RD; the debug column does not exist there."""
    fields = []
    for name, field_id, size, num_fields, num_elements, host, guest in load("metadata")["SYS"]:
        masks = ((int(host, 16), 0), (int(host, 16), 0), (int(guest, 16), 0))
        fields.append(Field(name, int(field_id, 16), size, num_fields, num_elements, masks))
    return FieldTable(fields)


@cache
def td_fields(version: ModuleVersion) -> FieldTable:
    """Fields of a TD."""
    return FieldTable(_rows(version, "TD"), exact=version.exact_field_ids)


@cache
def vcpu_fields(version: ModuleVersion) -> FieldTable:
    """Return the fields of a virtual CPU, its VMCS among them (class 0)."""
    return FieldTable(_rows(version, "VP_VMCS") + _rows(version, "VP"), exact=version.exact_field_ids)


def _rows(version: ModuleVersion, key: str) -> list[Field]:
    fields, stride = [], 2 if key == "VP_VMCS" else 1
    for name, field_id, size, num_fields, num_elements, *masks in load(f"metadata{version.tables}")[key]:
        guest = _masks(masks[4:6]) if len(masks) == 6 else (0, 0)
        both = (_masks(masks[0:2]), _masks(masks[2:4]), guest)
        fields.append(Field(name, int(field_id, 16), size, num_fields, num_elements, both, stride))
    return fields


def lookup(table: FieldTable, identifier: int, accessor: Accessor) -> tuple[Field, int]:
    """Check an identifier for reading: (field, element).

    Raises METADATA_FIELD_ID_INCORRECT, METADATA_FIELD_NOT_READABLE.
    """
    found = _checked(table, identifier)
    if not found[0].masks[accessor][0]:
        raise Status(StatusCode.METADATA_FIELD_NOT_READABLE)
    return found


def lookup_writable(table: FieldTable, identifier: int, accessor: Accessor, mask: int) -> tuple[Field, int]:
    """Check an identifier and a write mask: (field, element).

    Raises METADATA_FIELD_ID_INCORRECT, METADATA_FIELD_NOT_WRITABLE.
    """
    found = _checked(table, identifier)
    if not found[0].masks[accessor][1] & mask:
        raise Status(StatusCode.METADATA_FIELD_NOT_WRITABLE)
    return found


def _checked(table: FieldTable, identifier: int) -> tuple[Field, int]:
    if identifier & (RESERVED_BITS | LIST_BITS):
        raise Status(StatusCode.METADATA_FIELD_ID_INCORRECT)
    found = table.find(identifier)
    if found is None:
        raise Status(StatusCode.METADATA_FIELD_ID_INCORRECT)
    return found


def merge(table: FieldTable, field: Field, accessor: Accessor, old: int, value: int, mask: int) -> int:
    """Return the new value of a field; raises METADATA_FIELD_VALUE_NOT_VALID if a fixed bit would change.

    Module 1.0 leaves such bits as they are.
    """
    writable = field.masks[accessor][1]
    if not table.exact and (old ^ value) & mask & ~writable & ((1 << 8 * field.size) - 1):
        raise Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
    effective = mask & writable
    return (old & ~effective) | (value & effective)


def first(table: FieldTable, accessor: Accessor) -> int:
    """Return the identifier of the first field the accessor may read, or NONE."""
    return next((field.field_id for field in table.fields if field.masks[accessor][0]), NONE)


def following(table: FieldTable, field: Field, element: int, accessor: Accessor, codes: list[int]) -> int:
    """Return the identifier of the next readable element, or NONE. ``codes`` are the codes of CPUID_VALUES."""
    if field.name == CPUID_VALUES:
        position = bisect_right(codes, element)
        if position < len(codes):
            return field.field_id | codes[position]
    elif element + 1 < field.count:
        return field.field_id + (element + 1) * field.stride
    position = table.fields.index(field) + 1
    later = next((other for other in table.fields[position:] if other.masks[accessor][0]), None)
    if later is None:
        return NONE
    return later.field_id | codes[0] if later.name == CPUID_VALUES else later.field_id
