# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata lists: many fields at once, as TDH.SYS.RDALL and TDG.SYS.RDALL write them.

A list is a header (bytes in use 15:0, number of sequences 31:16) and sequences. A sequence is the id of its first
field, with the number of elements per field less one in bits 37:34 and the number of fields less one in 46:38, and
then a 64-bit word for each element. Fields share a sequence when their ids follow each other and they have the same
element size and the same number of elements. Fields that the reader may not see are left out.

Source: TDX module 1.5.06, metadata handlers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from swtdx.seam import metadata
from swtdx.seam.metadata import NONE, Accessor, Field, FieldTable
from swtdx.seam.status import Status, StatusCode

HEADER = struct.Struct("<HHI")
LAST_ELEMENT_SHIFT, LAST_FIELD_SHIFT = 34, 38
MAX_FIELDS = 1 << 9
ELEMENT_SIZE = 3 << 32

Reader = Callable[[Field, int], int]
"""Value of one element of a field."""


def dump(table: FieldTable, start: int, accessor: Accessor, size: int, read: Reader) -> tuple[bytes, int]:
    """Return (list of at most ``size`` bytes, id to go on from or NONE when all fields fitted).

    ``start``: id of the first field, or NONE for the very first. Raises METADATA_FIELD_ID_INCORRECT unless it is the
    first element of a field and names its element size.
    """
    sequences: list[list[int]] = []
    used, first_id, rest = HEADER.size, 0, NONE
    previous: tuple[int, int, int] | None = None
    for identifier, field, number in _from(table, start, accessor):
        count = field.num_elements
        continues = previous == (identifier, identifier & ELEMENT_SIZE, count) and len(sequences[-1]) < 1 + 512 * count
        needed = 8 * count + (0 if continues else 8)
        if used + needed > size:
            rest = identifier
            break
        if not continues:
            first_id = identifier
            sequences.append([first_id | (count - 1) << LAST_ELEMENT_SHIFT])
        else:
            sequences[-1][0] += 1 << LAST_FIELD_SHIFT
        mask = field.masks[accessor][0]
        sequences[-1] += [read(field, number * count + element) & mask for element in range(count)]
        used += needed
        previous = identifier + count * field.stride, identifier & ELEMENT_SIZE, count
    words = [word for sequence in sequences for word in sequence]
    return HEADER.pack(used, len(sequences), 0) + struct.pack(f"<{len(words)}Q", *words), rest


def _from(table: FieldTable, start: int, accessor: Accessor) -> Iterator[tuple[int, Field, int]]:
    """Yield the readable fields from ``start`` on, each as (id, table row, number within the row)."""
    position, skip = 0, 0
    if start != NONE:
        if start & (metadata.RESERVED_BITS | metadata.LIST_BITS):
            raise Status(StatusCode.METADATA_FIELD_ID_INCORRECT)
        found = table.find(start)
        if found is None or found[1] % found[0].num_elements or (start ^ found[0].field_id) & ELEMENT_SIZE:
            raise Status(StatusCode.METADATA_FIELD_ID_INCORRECT)
        position, skip = table.fields.index(found[0]), found[1] // found[0].num_elements
    for field in table.fields[position:]:
        if field.masks[accessor][0]:
            for number in range(skip, field.num_fields):
                yield field.field_id + number * field.num_elements * field.stride, field, number
        skip = 0
