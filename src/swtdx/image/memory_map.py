# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical layout of the board, as QEMU's q35 has it, so that unmodified firmware finds what it expects.

::

    0                 RAM ("low")            up to 0xb0000000, or 0x80000000 once there is more than that
    0xb0000000/...    PCI hole: 32-bit BARs
    0xe0000000        ECAM: there OVMF programs PCIEXBAR to, and there the ACPI tables say it is; 32-bit BARs above
    0xfec00000        I/O APIC
    0xfee00000        local APICs
    0xfeffc000        what KVM on Intel needs for itself to run real mode (identity map, TSS): 4 pages
    4 GiB - firmware  the firmware image
    4 GiB             RAM ("high"): what did not fit below
    2 TiB - 128 TiB   64-bit BARs, wherever in there the firmware likes: private addresses of a TD end at 128 TiB;
                      with more RAM than fits below, from the next power of two on

The I/O APIC and local APIC addresses are those of the Intel SDM; the split of RAM is QEMU's (hw/i386/pc_q35.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.units import PAGE_SIZE

MIB = 1 << 20
FOUR_GIB = 1 << 32

LOW_RAM_LIMIT = 0xB000_0000  # all RAM stays low up to here
LOW_RAM_WHEN_SPLIT = 0x8000_0000  # and this much of it when there is more

ECAM_BASE = 0xE000_0000
ECAM_SIZE = 256 * MIB
IOAPIC_BASE = 0xFEC0_0000
LOCAL_APIC_BASE = 0xFEE0_0000
PCI_HIGH_START, PCI_HIGH_END = 1 << 41, 1 << 47
IDENTITY_MAP_ADDRESS = 0xFEFF_C000
TSS_ADDRESS = 0xFEFF_D000

# GPAW 48 leaves 47 bits of private addresses, and one slot has at most 2^31-1 pages; stay far below both.
MINIMUM_MEMORY = MIB
MAXIMUM_MEMORY = 1 << 42

E820_RAM = 1
E820_RESERVED = 2


@dataclass(frozen=True)
class MemoryMap:
    """Where RAM and firmware are. Sizes in bytes."""

    memory_size: int
    firmware_size: int

    @property
    def low_size(self) -> int:
        """RAM below the PCI hole."""
        return self.memory_size if self.memory_size < LOW_RAM_LIMIT else LOW_RAM_WHEN_SPLIT

    @property
    def high_size(self) -> int:
        """RAM above 4 GiB."""
        return self.memory_size - self.low_size

    @property
    def pci_high_start(self) -> int:
        """Where 64-bit BARs may begin: above all RAM, at a power of two."""
        end = FOUR_GIB + self.high_size
        return max(PCI_HIGH_START, 1 << (end - 1).bit_length())

    @property
    def firmware_address(self) -> int:
        return FOUR_GIB - self.firmware_size

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """RAM as (GPA, length), ascending."""
        low = ((0, self.low_size),)
        return low if not self.high_size else (*low, (FOUR_GIB, self.high_size))

    @property
    def e820(self) -> tuple[tuple[int, int, int], ...]:
        """What fw_cfg's ``etc/e820`` says: (address, length, type)."""
        private_to_kvm = (IDENTITY_MAP_ADDRESS, 4 * PAGE_SIZE, E820_RESERVED)
        return (*((address, length, E820_RAM) for address, length in self.ram), private_to_kvm)
