# SPDX-License-Identifier: GPL-2.0-or-later
"""EPT entries as KVM writes them (Intel SDM vol. 3, "EPT Translation Mechanism"; arch/x86/kvm/mmu/spte.h).

A KVM page-table level counts from 1 (a table of 4 KiB leaves); a leaf at level 2 maps 2 MiB, at level 3 1 GiB.
"""

from __future__ import annotations

PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G, PG_LEVEL_512G, PG_LEVEL_256T = 1, 2, 3, 4, 5

EPT_READABLE, EPT_WRITABLE, EPT_EXECUTABLE = 1 << 0, 1 << 1, 1 << 2
EPT_RWX = EPT_READABLE | EPT_WRITABLE | EPT_EXECUTABLE
EPT_MT_WB = 6 << 3  # memory type of a leaf, and of the tables in an EPTP
EPT_IPAT = 1 << 6
EPT_LARGE = 1 << 7
EPT_SUPPRESS_VE = 1 << 63
EPT_ADDRESS = 0x000FFFFFFFFFF000

SHADOW_NONPRESENT_VALUE = EPT_SUPPRESS_VE
"""An empty entry: an access exits to KVM and never becomes #VE in the guest."""

TDX_MMIO_VALUE = 0
"""A TD's entry where no memory is: suppress-#VE clear, so that the access becomes #VE and then a TDVMCALL."""

EPTP_MT_WB = 6
EPTP_PWL_SHIFT = 3

EPT_VIOLATION_ACC_READ, EPT_VIOLATION_ACC_WRITE, EPT_VIOLATION_ACC_INSTR = 1 << 0, 1 << 1, 1 << 2
EPT_VIOLATION_PROT_MASK = 0x7 << 3


def eptp(root: int, levels: int) -> int:
    """Return the EPT pointer for a root table: write-back, page-walk length."""
    return root | (levels - 1) << EPTP_PWL_SHIFT | EPTP_MT_WB


def pages_per_level(level: int) -> int:
    """4 KiB pages that a leaf at ``level`` maps (KVM_PAGES_PER_HPAGE)."""
    return 1 << 9 * (level - 1)
