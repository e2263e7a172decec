# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID bits that follow the vCPU's state, after the guest's writes and after ioctls, in the guest and for user space.

arch/x86/kvm/cpuid.c of Linux 6.16 (kvm_update_cpuid_runtime), SDM volume 2, CPUID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from testing.long_mode import GP, UD, LongModeVm, split_irqchip, write_cr, wrmsr

PAE, OSXSAVE, PKE = 1 << 5, 1 << 18, 1 << 22
MWAIT_ENABLED = 1 << 18
NO_MWAIT_QUIRK = k.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
XSETBV = "31c931d20f01d1"


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def cpuid(leaf: int, index: int = 0) -> bytes:
    return b"\xb8" + leaf.to_bytes(4, "little") + b"\xb9" + index.to_bytes(4, "little") + b"\x0f\xa2"


def seen(guest: LongModeVm, before: bytes, leaf: int, index: int, register: str) -> tuple[int, int]:
    """One register of a leaf as the guest sees it after ``before``, and as KVM_GET_CPUID2 has it then."""
    assert guest.run(before + cpuid(leaf, index) + b"\x89\xc6") is None  # mov esi, eax: OUT takes AL
    regs = guest.vcpu.get_regs()
    value = regs.rsi if register == "eax" else getattr(regs, "r" + register[1:])
    (entry,) = (e for e in guest.vcpu.get_cpuid2() if (e.function, e.index) == (leaf, index))
    return value & 0xFFFFFFFF, getattr(entry, register)


def both(value: int) -> tuple[int, int]:
    return value, value


def test_osxsave_and_ospke(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        for bit, leaf, mask in ((OSXSAVE, 1, 1 << 27), (PKE, 7, 1 << 4)):
            for value in (PAE, PAE | bit, PAE):
                guest.reset()
                pair = seen(guest, write_cr(4, value), leaf, 0, "ecx")
                assert tuple(bool(each & mask) for each in pair) == both(bool(value & bit))
            guest.reset()
            sregs = guest.vcpu.get_sregs()
            sregs.cr4 |= bit
            guest.vcpu.set_sregs(sregs)
            (entry,) = (e for e in guest.vcpu.get_cpuid2() if (e.function, e.index) == (leaf, 0))
            assert entry.ecx & mask, "after the ioctl, before any run"


def test_the_apic_bit(kvm: Kvm) -> None:
    for setup in (split_irqchip, lambda vm: None):
        with LongModeVm(kvm, setup=setup) as guest:
            for base in (0xFEE00900, 0xFEE00100, 0xFEE00900):
                pair = seen(guest, wrmsr(0x1B, base), 1, 0, "edx")
                assert tuple(bool(each & 1 << 9) for each in pair) == both(bool(base & 0x800))


def test_xsave_sizes_follow_xcr0(kvm: Kvm) -> None:
    """EBX of leaf 0DH: the legacy area and header, and with PKRU what its sub-leaf gives as offset and size."""
    with LongModeVm(kvm) as guest:
        (pkru,) = (e for e in kvm.supported_cpuid() if (e.function, e.index) == (0xD, 9))
        for xcr0, size in ((1, 576), (3, 576), (0x201, pkru.ebx + pkru.eax), (1, 576)):
            guest.reset()
            enable = write_cr(4, PAE | OSXSAVE) + b"\xb8" + xcr0.to_bytes(4, "little") + bytes.fromhex(XSETBV)
            assert seen(guest, enable, 0xD, 0, "ebx") == both(size), hex(xcr0)
        xcrs = guest.vcpu.get_xcrs()
        xcrs.xcrs[0].value = 0x201
        guest.vcpu.set_xcrs(xcrs)
        (entry,) = (e for e in guest.vcpu.get_cpuid2() if (e.function, e.index) == (0xD, 0))
        assert entry.ebx == pkru.ebx + pkru.eax


def disabled(quirk: int) -> Callable[[Vm], None]:
    def setup(vm: Vm) -> None:
        vm.enable_cap(k.Cap.DISABLE_QUIRKS2, quirk)

    return setup


def test_mwait_follows_misc_enable_without_the_quirk(kvm: Kvm) -> None:
    with LongModeVm(kvm, setup=disabled(NO_MWAIT_QUIRK)) as guest:
        for value in (0x1800 | MWAIT_ENABLED, 0x1800):
            pair = seen(guest, wrmsr(0x1A0, value), 1, 0, "ecx")
            assert tuple(bool(each & 1 << 3) for each in pair) == both(bool(value & MWAIT_ENABLED))
    with LongModeVm(kvm) as guest:
        assert not seen(guest, wrmsr(0x1A0, 0x1800 | MWAIT_ENABLED), 1, 0, "ecx")[0] & 1 << 3


def test_misc_enable_mwait_needs_sse3_without_the_quirk(kvm: Kvm) -> None:
    entries = kvm.supported_cpuid()
    for entry in entries:
        if entry.function == 1:
            entry.ecx &= ~1
    with LongModeVm(kvm, entries, setup=disabled(NO_MWAIT_QUIRK)) as guest:
        assert guest.run(wrmsr(0x1A0, 0x1800 | MWAIT_ENABLED)) == GP
    with LongModeVm(kvm, entries) as guest:
        assert guest.run(wrmsr(0x1A0, 0x1800 | MWAIT_ENABLED)) is None


def test_monitor_is_undefined_where_cpuid_lacks_it(kvm: Kvm) -> None:
    quirks = NO_MWAIT_QUIRK | k.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    monitor = bytes.fromhex("31c931d2b800900000 0f01c8")
    with LongModeVm(kvm, setup=disabled(quirks)) as guest:
        assert guest.run(monitor) == UD
        assert guest.run(wrmsr(0x1A0, 0x1800 | MWAIT_ENABLED) + monitor) is None


def test_what_was_got_can_be_set_again_after_a_run(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        original = guest.vcpu.get_cpuid2()
        assert guest.run(write_cr(4, PAE | OSXSAVE)) is None
        now = guest.vcpu.get_cpuid2()
        guest.vcpu.set_cpuid2(now)
        guest.vcpu.set_cpuid2(original)  # the bits that KVM owns are not compared


def test_what_of_leaf_1_is_never_offered(kvm: Kvm) -> None:
    """kvm_set_cpu_caps leaves PSN, DS, ACPI, HTT, TM and PBE out of EDX: topology and power are user space's to say.

    HTT with a count of no logical processors in EBX, passed on as it is, ended kvmtool's Linux in its topology code.
    """
    (entry,) = (e for e in kvm.supported_cpuid() if e.function == 1)
    assert not entry.edx & (1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31)
    assert entry.edx & (1 << 27), "SELFSNOOP stays"
