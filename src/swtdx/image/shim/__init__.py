# SPDX-License-Identifier: GPL-2.0-or-later
"""A TDVF of one page that stands in for firmware: it brings a TD from its reset vector into a Linux kernel.

``shim.S`` is its source, ``shim.bin`` that source assembled (`swtdx.image.shim.assemble`; a test holds the two against
each other).  What is here writes the TDVF metadata in front of it: one section for each piece of memory that the
kernel is to find (`swtdx.image.boot_protocol`).  The shim itself comes from the image, all else the VMM brings.

**What is measured: everything.**  All sections have MR_EXTEND, so that MRTD covers the shim, the TD HOB, the kernel
(without the real-mode code, which is not loaded), its boot_params with setup header, command line and memory map, the
ACPI tables and the initrd.  It therefore depends on the size of the guest's memory and the number of vCPUs, beside the
files and the command line; ``swtdx measure none --kernel ...`` predicts it.  Nothing is left for RTMRs: the shim
extends none, and brings no event log (CCEL).

PAYLOAD and PAYLOAD_PARAM are td-shim's names for kernel and parameters.  For an initrd it has none; PERM_MEM, "memory
that stays", says what it is.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from swtdx.image.boot_protocol import (
    MAILBOX,
    METADATA_ROOM,
    PAGE_TABLES,
    PAGE_TABLES_SIZE,
    SHIM,
    TD_HOB,
    DirectBoot,
    Piece,
)
from swtdx.image.firmware import NO_FIRMWARE, Firmware
from swtdx.image.tdvf import (
    DESCRIPTOR_SIGNATURE,
    DESCRIPTOR_VERSION,
    FOUR_GIB,
    SectionAttributes,
    SectionType,
    Tdvf,
    parse,
)
from swtdx.units import PAGE_SIZE

SIZE = FOUR_GIB - SHIM
WHY = "a kernel is entered directly"


@cache
def assembled() -> bytes:
    """The page as it was assembled, without metadata."""
    page = Path(__file__).with_name("shim.bin").read_bytes()
    if len(page) != SIZE or any(page[:METADATA_ROOM]):
        raise ValueError("shim.bin is not what the assembler made of shim.S")
    return page


def image(boot: DirectBoot) -> bytes:
    """The TDVF image for this kernel: the page with its section table."""
    rows = [(0, SIZE, SHIM, SIZE, SectionType.BFV)]
    rows += [(0, 0, address, size, kind) for kind, address, size, _ in _sections(boot)]
    length = 16 + 32 * len(rows)
    metadata = struct.pack("<4sIII", DESCRIPTOR_SIGNATURE, length, DESCRIPTOR_VERSION, len(rows))
    metadata += b"".join(struct.pack("<IIQQII", *row, SectionAttributes.MR_EXTEND) for row in rows)
    return metadata.ljust(METADATA_ROOM, b"\0") + assembled()[METADATA_ROOM:]


def firmware(boot: DirectBoot) -> Firmware:
    """The image as a launch takes it."""
    return Firmware(Path(NO_FIRMWARE), WHY, image(boot))


def tdvf(boot: DirectBoot) -> Tdvf:
    """The image parsed, with what the VMM brings in its place: all that a launch adds or a verifier predicts with."""
    brought = {number: contents for number, (_, _, _, contents) in enumerate(_sections(boot), 1) if contents}
    return parse(image(boot), NO_FIRMWARE).with_contents(brought)


def _sections(boot: DirectBoot) -> list[tuple[SectionType, int, int, bytes]]:
    """(type, address, size in whole pages, contents) of each section behind the shim's own."""
    found = [
        (SectionType.TD_HOB, TD_HOB, MAILBOX - TD_HOB, b""),
        (SectionType.TEMP_MEM, MAILBOX, PAGE_TABLES + PAGE_TABLES_SIZE - MAILBOX, b""),
        _section(SectionType.PAYLOAD_PARAM, boot.parameters),
        _section(SectionType.PAYLOAD, boot.kernel),
    ]
    if boot.initrd is not None:
        found.append(_section(SectionType.PERM_MEM, boot.initrd))
    return found


def _section(kind: SectionType, piece: Piece) -> tuple[SectionType, int, int, bytes]:
    return kind, piece.address, -(-len(piece.contents) // PAGE_SIZE) * PAGE_SIZE, piece.contents
