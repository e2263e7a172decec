# SPDX-License-Identifier: GPL-2.0-or-later
"""SYSCALL outside 64-bit mode: #UD on Intel's processors, executed by KVM for a guest of AMD (em_syscall).

AMD64 Architecture Programmer's Manual vol. 3, SYSCALL: in compatibility mode to CSTAR, with RFLAGS in R11 and SFMASK;
in legacy mode to STAR[31:0], with IF clear. CS and SS are flat, from STAR[47:32].
"""

from __future__ import annotations

import struct

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import CODE, DONE, FAULT_PORT, GDT, UD, LongModeVm

STAR, LSTAR, CSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
TARGET, USER_CODE_32, KERNEL = CODE + 0x300, 0x30, 8
IF, DF = 1 << 9, 1 << 10
VENDORS = {b"GenuineIntel": False, b"AuthenticAMD": True, b"HygonGenuine": True}


def run(vendor: bytes, mode: str, sce: bool = True) -> LongModeVm:
    """SYSCALL at privilege level 3 of compatibility mode, or at level 0 of legacy protected mode."""
    kvm = Kvm(open_kernel("emulated"))
    entries = kvm.supported_cpuid()
    for entry in entries:
        if entry.function == 0:
            entry.ebx, entry.edx, entry.ecx = struct.unpack("<3I", vendor)
    guest = LongModeVm(kvm, entries)
    struct.pack_into("<Q", guest.memory, GDT + USER_CODE_32, 0x00CF_FB00_0000_FFFF)
    guest.load(b"\x0f\x05" + DONE)
    guest.load(DONE, at=TARGET)
    msrs = {STAR: KERNEL << 32 | (TARGET if mode == "legacy" else 0), CSTAR: TARGET, LSTAR: 0, FMASK: DF}
    assert guest.vcpu.set_msrs(msrs) == len(msrs)
    sregs = guest.vcpu.get_sregs()
    sregs.cs.l, sregs.cs.db = 0, 1
    if mode == "legacy":
        sregs.cr0, sregs.cr4, sregs.efer = 0x11, 0, int(sce)
    else:
        struct.pack_into("<Q", guest.memory, 0x2000, 0x3007)
        struct.pack_into("<Q", guest.memory, 0x3000, 0x87)
        struct.pack_into("<Q", guest.memory, 0x7104, 0xF000)  # RSP0
        sregs.efer |= int(sce)
        for segment in (sregs.cs, sregs.ss, sregs.ds):
            segment.dpl = 3
            segment.selector |= 3
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2 | IF | DF, rsp=0xE000))
    return guest


@pytest.mark.parametrize("vendor", VENDORS)
def test_in_compatibility_mode(vendor: bytes) -> None:
    with run(vendor, "compatibility") as guest:
        outcome = guest.outcome()
        if not VENDORS[vendor]:
            assert outcome == UD
            return
        assert outcome is None
        regs, sregs = guest.vcpu.get_regs(), guest.vcpu.get_sregs()
        assert (regs.rcx, regs.rip & ~0xFF) == (CODE + 2, TARGET & ~0xFF)
        assert (regs.r11, regs.rflags) == (2 | IF | DF, 2 | IF)
        assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.dpl) == (KERNEL, 1, 0, 0)
        assert (sregs.ss.selector, sregs.ss.dpl, sregs.ss.limit) == (KERNEL + 8, 0, 0xFFFFFFFF)


def test_in_legacy_mode() -> None:
    with run(b"AuthenticAMD", "legacy") as guest:
        assert guest.outcome() is None
        regs, sregs = guest.vcpu.get_regs(), guest.vcpu.get_sregs()
        assert (regs.rcx, regs.rip & ~0xFF, regs.rflags) == (CODE + 2, TARGET & ~0xFF, 2 | DF)
        assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db) == (KERNEL, 0, 1)


def test_without_sce() -> None:
    with run(b"AuthenticAMD", "compatibility", sce=False) as guest:
        assert guest.outcome() == UD
        assert guest.vcpu.kvm_run.io.port == FAULT_PORT
