# SPDX-License-Identifier: GPL-2.0-or-later
"""An ordinary VM's way to a kernel's 64-bit entry point: page tables, descriptors, and the registers of its first vCPU.

What must be in memory for a kernel is `swtdx.image.boot_protocol`'s; here is the state of the processor that the
protocol asks for.  The other vCPUs wait for INIT and SIPI as after any reset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from swtdx.image.boot_protocol import BOOT_PARAMS, DESCRIPTORS, PAGE_TABLES, DirectBoot, Piece
from swtdx.image.memory_map import MIB
from swtdx.uapi import kvm
from swtdx.uapi.client import Vcpu
from swtdx.x86 import PAGE_SIZE, Cr0, Cr4, Efer, Msr, Rflags

_CODE_SELECTOR, _DATA_SELECTOR = 0x10, 0x18
_FLAT_CODE_64, _FLAT_DATA = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
_LARGE_PAGE = 2 * MIB
_PRESENT_WRITABLE, _LARGE = 3, 0x80

_MTRR_ENABLED_WRITE_BACK = 1 << 11 | 6


def ordinary_vm() -> Iterator[Piece]:
    """Descriptors, and page tables that map the first 4 GiB one to one, as they are expected at the entry point."""
    yield Piece(DESCRIPTORS, struct.pack("<4Q", 0, 0, _FLAT_CODE_64, _FLAT_DATA))
    directories = [PAGE_TABLES + (2 + number) * PAGE_SIZE | _PRESENT_WRITABLE for number in range(4)]
    tables = struct.pack("<Q", PAGE_TABLES + PAGE_SIZE | _PRESENT_WRITABLE).ljust(PAGE_SIZE, b"\0")
    tables += struct.pack("<4Q", *directories).ljust(PAGE_SIZE, b"\0")
    pages = (number * _LARGE_PAGE | _PRESENT_WRITABLE | _LARGE for number in range(4 * 512))
    yield Piece(PAGE_TABLES, tables + struct.pack("<2048Q", *pages))


def enter(vcpu: Vcpu, boot: DirectBoot) -> None:
    """Put an ordinary VM's first vCPU at the entry point: KVM_SET_SREGS, KVM_SET_REGS. Raises KvmError.

    The memory type is what firmware would have set, write-back by default: as it is after a reset, uncacheable, Linux
    takes it for a mistake.
    """
    sregs = vcpu.get_sregs()
    sregs.cs = _flat(_CODE_SELECTOR, type=0xB, l=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _flat(_DATA_SELECTOR, type=3, db=1))
    sregs.gdt.base, sregs.gdt.limit = DESCRIPTORS, 4 * 8 - 1
    sregs.cr3 = PAGE_TABLES
    sregs.cr4 |= Cr4.PAE
    sregs.cr0 = Cr0.PE | Cr0.ET | Cr0.NE | Cr0.PG
    sregs.efer |= Efer.LME | Efer.LMA
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm.kvm_regs(rip=boot.entry, rsi=BOOT_PARAMS, rflags=Rflags.FIXED_1))
    vcpu.set_msrs({Msr.MTRR_DEF_TYPE: _MTRR_ENABLED_WRITE_BACK})


def _flat(selector: int, **bits: int) -> kvm.kvm_segment:
    return kvm.kvm_segment(base=0, limit=0xFFFF_FFFF, selector=selector, present=1, s=1, g=1, **bits)
