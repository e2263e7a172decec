# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering a Linux kernel without firmware: what stands where in memory, by the 64-bit boot protocol.

Documentation/arch/x86/boot.rst, "64-bit boot protocol": the protected-mode kernel is somewhere in memory, and so is the
"zero page" ``struct boot_params`` with the kernel's own setup header in it, the memory map, and the addresses of the
command line, the initrd and the ACPI tables.  The first processor arrives 0x200 bytes into the kernel in long mode,
with RSI at the zero page, flat segments 0x10 and 0x18, and all of that mapped one to one.

::

    0x100000   SYSTEM_AREA      page tables and what else the machine needs on the way (ACPI NVS in the memory map)
    0x110000   PARAMETERS       zero page, command line, ACPI tables (ACPI data in the memory map)
    preferred  the kernel       where its header wants it, with ``init_size`` bytes of room
    top        the initrd       at the end of RAM below 4 GiB

For a TD these pieces become sections of a small TDVF (`swtdx.image.shim`), which comes to the same state from a TD's
reset vector.  An ordinary VM is put there by its registers (`swtdx.vmm.kernel_entry`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from swtdx.image import acpi_tables
from swtdx.image.linux_image import BzImage, LinuxBoot, LinuxImageError, is_efi_executable
from swtdx.image.memory_map import E820_RAM, E820_RESERVED, FOUR_GIB, MIB, MemoryMap
from swtdx.units import PAGE_SIZE

SYSTEM_AREA = 0x10_0000
TD_HOB = SYSTEM_AREA  # of a TD: two pages
MAILBOX = SYSTEM_AREA + 0x2000  # of a TD: where vCPUs other than the first wait
DESCRIPTORS = SYSTEM_AREA + 0x2000  # of an ordinary VM
PAGE_TABLES = SYSTEM_AREA + 0x3000
PAGE_TABLES_SIZE = 7 * PAGE_SIZE
SHIM = FOUR_GIB - PAGE_SIZE  # of a TD: what it has instead of firmware
METADATA_ROOM = 0x400  # at its start
COME_BACK = SHIM + METADATA_ROOM  # there vCPUs go that are put off line
PARAMETERS = SYSTEM_AREA + 0x1_0000
BOOT_PARAMS = PARAMETERS

E820_ACPI = 3  # tables, which the system may reclaim
E820_NVS = 4
_LEGACY_HOLE = 0xA_0000  # up to 1 MiB: RAM here, but no system expects it there

# Offsets in struct boot_params (Documentation/arch/x86/zero-page.rst, boot.rst).
_ACPI_RSDP_ADDRESS = 0x070
_E820_ENTRIES = 0x1E8
_SETUP_HEADER = 0x1F1
_JUMP_LENGTH = 0x201  # the header ends where the jump at 0x200 leads to
_TYPE_OF_LOADER = 0x210
_CODE32_START = 0x214
_RAMDISK_IMAGE = 0x218
_COMMAND_LINE = 0x228
_E820_TABLE = 0x2D0
_E820_ENTRY = struct.Struct("<QQI")
_UNDEFINED_LOADER = 0xFF
_ENTRY_64 = 0x200
_RSDP_ROOM = 64


class Piece(NamedTuple):
    """Bytes and the guest-physical address at which they stand, a page's."""

    address: int
    contents: bytes


@dataclass(frozen=True)
class DirectBoot:
    """A kernel with all that it finds in memory. ``initrd`` None: there is none."""

    linux: LinuxBoot
    kernel: Piece
    parameters: Piece
    initrd: Piece | None
    acpi: acpi_tables.AcpiTables
    """As they are before they are placed, at ``acpi_at`` and ``rsdp_at``."""
    rsdp_at: int
    acpi_at: int

    @property
    def entry(self) -> int:
        """Guest-physical address of the 64-bit entry point."""
        return self.kernel.address + _ENTRY_64

    def pieces(self) -> Iterator[Piece]:
        """All of them, ascending by address."""
        yield self.parameters
        yield self.kernel
        if self.initrd is not None:
            yield self.initrd


def lay_out(linux: LinuxBoot, layout: MemoryMap, cpus: int, *, td: bool) -> DirectBoot:
    """Lay everything out on a machine with this memory. Raises `LinuxImageError`.

    The machine of a TD has a mailbox through which processors are started (which is then in the ACPI tables), and no
    ends of interrupt at its I/O APIC.
    """
    image = linux.kernel
    if is_efi_executable(image.image):
        raise LinuxImageError(f"{image.name} is an EFI executable and not a bzImage: only firmware can start it")
    if not image.entry_64:
        raise LinuxImageError(
            f"{image.name} has no 64-bit entry point, without which no kernel starts without firmware: "
            "it is a 32-bit kernel, or give a firmware that can start it"
        )
    if image.preferred_address < PARAMETERS + MIB:
        raise LinuxImageError(
            f"{image.name} must be loaded at {image.preferred_address:#x}, where its own parameters are"
        )
    room_end = _page_up(image.preferred_address + max(image.init_size, len(image.kernel)))
    top = min(layout.low_size, image.initrd_maximum + 1)
    initrd_at = (top - len(linux.initrd)) // PAGE_SIZE * PAGE_SIZE
    if initrd_at < room_end:
        needed = -(-(room_end + _page_up(len(linux.initrd))) // MIB)
        raise LinuxImageError(
            f"{image.name} and its initrd need {needed} MiB to start without firmware, "
            f"and the guest has {layout.memory_size // MIB} MiB"
            + (": give it more memory" if top == layout.low_size else f", of which an initrd may use {top // MIB} MiB")
        )
    tables = acpi_tables.build(layout, cpus, level_interrupts=not td, wakeup=(MAILBOX, COME_BACK) if td else None)
    initrd = Piece(initrd_at, linux.initrd) if linux.initrd else None
    return DirectBoot(
        linux,
        Piece(image.preferred_address, image.kernel),
        Piece(PARAMETERS, _parameters(linux, layout, tables, initrd)),
        initrd,
        tables,
        *_tables_at(linux),
    )


def memory_map(layout: MemoryMap, parameters_end: int) -> list[tuple[int, int, int]]:
    """The E820 map: (address, length, type), ascending."""
    entries = [
        (0, _LEGACY_HOLE, E820_RAM),
        (SYSTEM_AREA, PARAMETERS - SYSTEM_AREA, E820_NVS),
        (PARAMETERS, parameters_end - PARAMETERS, E820_ACPI),
        (parameters_end, layout.low_size - parameters_end, E820_RAM),
        *(entry for entry in layout.e820 if entry[2] != E820_RAM),
        (layout.firmware_address, layout.firmware_size, E820_RESERVED),
        *((address, length, E820_RAM) for address, length in layout.ram[1:]),
    ]
    return [entry for entry in entries if entry[1]]


def _parameters(linux: LinuxBoot, layout: MemoryMap, tables: acpi_tables.AcpiTables, initrd: Piece | None) -> bytes:
    """Zero page, command line, ACPI tables, each from a page's start on."""
    command_line = linux.command_line.encode() + b"\0"
    command_line_at = BOOT_PARAMS + PAGE_SIZE
    rsdp_at, tables_at = _tables_at(linux)
    acpi, rsdp = tables.place(tables_at, rsdp_at)
    end = _page_up(tables_at + len(acpi))

    zero_page = bytearray(PAGE_SIZE)
    header = _setup_header(linux.kernel)
    zero_page[_SETUP_HEADER : _SETUP_HEADER + len(header)] = header
    zero_page[_TYPE_OF_LOADER] = _UNDEFINED_LOADER
    struct.pack_into("<I", zero_page, _CODE32_START, linux.kernel.preferred_address)
    if initrd is not None:
        struct.pack_into("<II", zero_page, _RAMDISK_IMAGE, initrd.address, len(initrd.contents))
    struct.pack_into("<I", zero_page, _COMMAND_LINE, command_line_at)
    struct.pack_into("<Q", zero_page, _ACPI_RSDP_ADDRESS, rsdp_at)
    entries = memory_map(layout, end)
    zero_page[_E820_ENTRIES] = len(entries)
    for number, entry in enumerate(entries):
        _E820_ENTRY.pack_into(zero_page, _E820_TABLE + number * _E820_ENTRY.size, *entry)

    contents = bytes(zero_page) + command_line.ljust(rsdp_at - command_line_at, b"\0")
    contents += rsdp.ljust(_RSDP_ROOM, b"\0") + acpi
    return contents.ljust(end - PARAMETERS, b"\0")


def _tables_at(linux: LinuxBoot) -> tuple[int, int]:
    """Return where the RSDP and the other tables are, which follow the command line."""
    rsdp_at = BOOT_PARAMS + PAGE_SIZE + _page_up(len(linux.command_line.encode()) + 1)
    return rsdp_at, rsdp_at + _RSDP_ROOM


def _setup_header(kernel: BzImage) -> bytes:
    """The part of the file that the protocol has copied into the zero page."""
    end = min(0x202 + kernel.image[_JUMP_LENGTH], _E820_TABLE)
    return kernel.image[_SETUP_HEADER:end]


def _page_up(value: int) -> int:
    return -(-value // PAGE_SIZE) * PAGE_SIZE
