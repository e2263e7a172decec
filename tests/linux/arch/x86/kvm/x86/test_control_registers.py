# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved bits of control registers: #GP in the guest, EINVAL from KVM_SET_SREGS.

Expectations: SDM volume 3, 2.5 "Control Registers", and arch/x86/kvm/x86.h, x86.c of Linux 6.16 (__cr4_reserved_bits,
kvm_set_cr0, kvm_set_cr4, set_efer, __kvm_set_xcr). The features that the processor has are those that KVM supports.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from testing.long_mode import DATA, GDT, GP, LongModeVm, move, rdmsr, write_cr, wrmsr
from tests.linux.conftest import refused

# bit: the CPUID feature that it needs (leaf, sub-leaf, register, bit), or None if it needs none
CR4 = {
    0: None, 1: None, 2: None, 3: None, 4: None, 6: None, 7: None, 8: None, 9: None, 10: None,
    12: (7, 0, "ecx", 16), 16: (7, 0, "ebx", 0), 18: (1, 0, "ecx", 26), 20: (7, 0, "ebx", 7), 21: (7, 0, "ebx", 20),
    22: (7, 0, "ecx", 3),
}  # fmt: skip
LA57, PAE = 12, 5
CHANGEABLE = [bit for bit in CR4 if bit != LA57]  # that one not in long mode
NEVER = [11, 13, 14, 15, 17, 19, *range(23, 64)]  # UMIP, VMX, PCID and LAM are not offered; others do not exist
LME, LMA, NXE = 8, 10, 11
EXTENDED = 0x80000001


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def without(kvm: Kvm, *features: tuple[int, int, str, int]) -> list[k.kvm_cpuid_entry2]:
    entries = kvm.supported_cpuid()
    for leaf, index, register, bit in features:
        for entry in entries:
            if (entry.function, entry.index) == (leaf, index):
                setattr(entry, register, getattr(entry, register) & ~(1 << bit))
    return entries


def sregs_refuse(guest: LongModeVm, **changes: int) -> bool:
    sregs = guest.vcpu.get_sregs()
    for name, value in changes.items():
        setattr(sregs, name, value)
    try:
        guest.vcpu.set_sregs(sregs)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def test_cr4_in_the_guest(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        for bit in range(64):
            guest.reset()
            expected = None if bit in CHANGEABLE or bit == PAE else GP
            assert guest.run(write_cr(4, 1 << PAE | 1 << bit)) == expected, f"CR4 bit {bit}"
            assert guest.vcpu.get_sregs().cr4 == 1 << PAE | (1 << bit if expected is None else 0)


def test_cr4_without_the_feature(kvm: Kvm) -> None:
    for bit, feature in CR4.items():
        if feature is not None:
            with LongModeVm(kvm, without(kvm, feature)) as guest:
                assert guest.run(write_cr(4, 1 << PAE | 1 << bit)) == GP, f"CR4 bit {bit}"
                assert sregs_refuse(guest, cr4=1 << PAE | 1 << bit), f"CR4 bit {bit}"


LONG_MODE = k.kvm_cpuid_entry2(function=EXTENDED, edx=1 << 29)


def test_cr4_of_a_vcpu_with_little_in_its_cpuid(kvm: Kvm) -> None:
    with LongModeVm(kvm, [LONG_MODE]) as guest:
        for bit in range(64):
            guest.reset()
            refuses = bit in NEVER or (bit in CR4 and CR4[bit] is not None)
            assert sregs_refuse(guest, cr4=1 << PAE | 1 << bit) == refuses, f"CR4 bit {bit}"


def test_cr4_from_user_space(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        for bit in range(64):
            guest.reset()
            assert sregs_refuse(guest, cr4=1 << PAE | 1 << bit) == (bit in NEVER), f"CR4 bit {bit}"


def test_cr4_in_long_mode_keeps_pae_and_the_number_of_levels(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        assert guest.run(write_cr(4, 0)) == GP
        guest.reset()
        assert guest.run(write_cr(4, 1 << PAE | 1 << LA57)) == GP


def test_cr0_in_the_guest(kvm: Kvm) -> None:
    on = 0x80010031
    with LongModeVm(kvm) as guest:
        for bit in (*range(32, 64), 29):  # the upper half; NW without CD
            guest.reset()
            assert guest.run(write_cr(0, on | 1 << bit)) == GP, f"CR0 bit {bit}"
        for value in (on & ~(1 << 31), on & ~1, on & ~(1 << 31 | 1)):  # paging stays on in 64-bit mode
            guest.reset()
            assert guest.run(write_cr(0, value)) == GP, hex(value)
        for bit in (*range(6, 16), 17, *range(19, 29)):  # ignored
            guest.reset()
            assert guest.run(write_cr(0, on | 1 << bit)) is None, f"CR0 bit {bit}"
            assert guest.vcpu.get_sregs().cr0 == on, f"CR0 bit {bit}"


def test_cr0_from_user_space(kvm: Kvm) -> None:
    on = 0x80010031
    with LongModeVm(kvm) as guest:
        for value in (on | 1 << 29, on & ~1, *(on | 1 << bit for bit in range(32, 64))):
            guest.reset()
            assert sregs_refuse(guest, cr0=value), hex(value)


def test_cr3_and_cr8(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        for bit in range(52, 64):
            guest.reset()
            assert guest.run(write_cr(3, 0x2000 | 1 << bit)) == GP, f"CR3 bit {bit}"
            assert sregs_refuse(guest, cr3=0x2000 | 1 << bit), f"CR3 bit {bit}"
        guest.reset()
        assert guest.run(write_cr(3, 0x2018)) is None  # PWT and PCD
        for bit in range(64):
            guest.reset()
            assert guest.run(write_cr(8, 1 << bit)) == (None if bit < 4 else GP), f"CR8 bit {bit}"


def test_cr3_from_user_space_follows_the_guests_address_width(kvm: Kvm) -> None:
    entries = kvm.supported_cpuid()
    for entry in entries:
        if entry.function == 0x80000008:
            entry.eax = entry.eax & ~0xFF | 40
    with LongModeVm(kvm, entries) as guest:
        assert sregs_refuse(guest, cr3=1 << 40)
        assert not sregs_refuse(guest, cr3=0x2000)


def test_efer_in_the_guest(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        for bit in range(64):
            guest.reset()
            expected = None if bit in (0, LME, LMA, NXE) else GP
            assert guest.run(wrmsr(0xC0000080, 0x500 | 1 << bit)) == expected, f"EFER bit {bit}"
        guest.reset()
        assert guest.run(wrmsr(0xC0000080, 0)) == GP, "LME while paging is on"
        guest.reset()
        assert guest.run(wrmsr(0xC0000080, 0x101)) is None, "LMA is read-only"
        assert guest.vcpu.get_sregs().efer == 0x501


def test_efer_without_the_feature(kvm: Kvm) -> None:
    with LongModeVm(kvm, without(kvm, (EXTENDED, 0, "edx", 20))) as guest:
        assert guest.run(wrmsr(0xC0000080, 0x500 | 1 << NXE)) == GP
        assert guest.vcpu.set_msrs({0xC0000080: 0x500 | 1 << NXE}) == 1, "user space may"
        assert sregs_refuse(guest, efer=0x500 | 1 << NXE), "nor by KVM_SET_SREGS"
    for cpuid in (without(kvm, (EXTENDED, 0, "edx", 29)), None):
        with pytest.raises(KvmError), LongModeVm(kvm, cpuid):
            pass  # long mode


def test_tsc_aux_needs_rdtscp_or_rdpid(kvm: Kvm) -> None:
    for access in (wrmsr(0xC0000103, 1), rdmsr(0xC0000103)):
        with LongModeVm(kvm) as guest:
            assert guest.run(access) is None
        with LongModeVm(kvm, without(kvm, (EXTENDED, 0, "edx", 27))) as guest:
            assert guest.run(access) == GP
    with LongModeVm(kvm) as guest:
        for bit in range(32, 64):
            guest.reset()
            assert guest.run(wrmsr(0xC0000103, 1 << bit)) == GP, f"bit {bit}"


@pytest.mark.parametrize("index", [0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102], ids=hex)
def test_msrs_that_hold_an_address(kvm: Kvm, index: int) -> None:
    """The width is the processor's, 57 bits, and not that of the guest's paging (is_noncanonical_msr_address)."""
    with LongModeVm(kvm) as guest:
        for value, expected in (
            (1 << 46, None), (1 << 47, None), (1 << 55, None), (1 << 56, GP), (1 << 63, GP), (0xAAAAAAAAAAAAAAAA, GP),
            (0xFF00000000000000, None), (0xFEFFFFFFFFFFFFFF, GP), (0xFFFF800000000000, None),
        ):  # fmt: skip
            guest.reset()
            assert guest.run(wrmsr(index, value)) == expected, hex(value)


def test_pat_in_the_guest(kvm: Kvm) -> None:
    """Each of the eight bytes is a memory type: 0, 1, 4, 5, 6 or 7 (SDM volume 3, 12.12.2)."""
    with LongModeVm(kvm) as guest:
        for shift in range(0, 64, 8):
            for kind in range(10):
                guest.reset()
                assert guest.run(wrmsr(0x277, kind << shift)) == (None if kind in (0, 1, 4, 5, 6, 7) else GP)


def test_xcr0(kvm: Kvm) -> None:
    enable = write_cr(4, 1 << PAE | 1 << 18)
    with LongModeVm(kvm) as guest:
        assert guest.run(bytes.fromhex("31c931d2b8010000000f01d1")) == 6, "#UD without CR4.OSXSAVE"
        for bit in range(64):
            guest.reset()
            low, high = (1 << bit | 1) & 0xFFFFFFFF, 1 << bit >> 32
            code = enable + b"\x31\xc9\xb8" + low.to_bytes(4, "little") + b"\xba" + high.to_bytes(4, "little")
            expected = None if bit in (0, 1, 9) else GP  # x87, SSE, PKRU
            assert guest.run(code + bytes.fromhex("0f01d1")) == expected, f"XCR0 bit {bit}"
        guest.reset()
        assert guest.run(enable + bytes.fromhex("31c931d2b8020000000f01d1")) == GP, "x87 is always on"
        guest.reset()
        assert guest.run(enable + bytes.fromhex("b90100000031d2b8010000000f01d1")) == GP, "there is only XCR0"


def test_xcr0_is_what_the_guests_cpuid_has(kvm: Kvm) -> None:
    with LongModeVm(kvm, without(kvm, (0xD, 0, "eax", 9))) as guest:
        assert guest.run(write_cr(4, 1 << PAE | 1 << 18) + bytes.fromhex("31c931d2b8030200000f01d1")) == GP
    with LongModeVm(kvm, [LONG_MODE]) as guest:
        xcrs = guest.vcpu.get_xcrs()
        xcrs.xcrs[0].value = 3
        with refused(errno.EINVAL):
            guest.vcpu.set_xcrs(xcrs)


BASES = [
    (1 << 46, None),
    (1 << 55, None),
    (1 << 56, GP),
    (1 << 63, GP),
    (0xFEFF_FFFF_FFFF_FFFF, GP),
    (0xFF << 56, None),
]


@pytest.mark.parametrize("opcode", ["lgdt", "lidt"])
def test_bases_of_descriptor_tables(kvm: Kvm, opcode: str) -> None:
    """SDM volume 2, LGDT/LIDT: #GP(0) for a base that is not canonical; a table that was refused is not loaded."""
    load = {"lgdt": "0f0114 25", "lidt": "0f011c 25"}[opcode]
    with LongModeVm(kvm) as guest:
        for base, expected in BASES:
            guest.reset()
            guest.load((0x37).to_bytes(2, "little") + base.to_bytes(8, "little"), DATA)
            assert guest.run(bytes.fromhex(load) + DATA.to_bytes(4, "little")) == expected, hex(base)
            sregs = guest.vcpu.get_sregs()
            table = sregs.gdt if opcode == "lgdt" else sregs.idt
            assert (table.base == base) == (expected is None)


@pytest.mark.parametrize("opcode", ["lldt", "ltr"])
def test_bases_of_system_segments(kvm: Kvm, opcode: str) -> None:
    kind, load = {"lldt": (0x82, "0f00d0"), "ltr": (0x89, "0f00d8")}[opcode]
    with LongModeVm(kvm) as guest:
        for base, expected in BASES:
            guest.reset()
            low = 0x67 | (base & 0xFFFFFF) << 16 | kind << 40 | (base >> 24 & 0xFF) << 56
            guest.load(low.to_bytes(8, "little") + (base >> 32).to_bytes(8, "little"), GDT + 24)
            assert guest.run(bytes.fromhex("b818000000" + load)) == expected, hex(base)


def test_debug_registers(kvm: Kvm) -> None:
    """SDM volume 2, MOV DR: DR6 and DR7 have 32 bits, also as DR4 and DR5; #UD for those with CR4.DE."""
    with LongModeVm(kvm) as guest:
        for number in (4, 5, 6, 7):
            move_to = bytes([0x0F, 0x23, 0xC0 | number << 3])
            for bit in range(32, 64):
                guest.reset()
                assert guest.run(move(0, 1 << bit) + move_to) == GP, f"DR{number} bit {bit}"
            guest.reset()
            assert guest.run(move(8, 1 << 32) + b"\x41" + bytes([0x0F, 0x23, 0xC0 | number << 3])) == GP, "from R8"
            guest.reset()
            expected = 6 if number < 6 else None
            assert guest.run(write_cr(4, 1 << PAE | 1 << 3) + b"\x31\xc0" + move_to) == expected
        guest.reset()
        assert guest.run(move(0, 1 << 63) + bytes.fromhex("0f23c0")) is None, "DR0 takes any address"


def test_debug_registers_from_user_space(kvm: Kvm) -> None:
    """kvm_vcpu_ioctl_x86_set_debugregs: no flags, 32 bits of DR6 and DR7; DR0 to DR3 take anything."""
    with LongModeVm(kvm) as guest:
        for bit in range(64):
            for name, taken in (("flags", False), ("dr6", bit < 32), ("dr7", bit < 32)):
                assert debugregs_taken(guest, **{name: 1 << bit}) == taken, f"{name} bit {bit}"
            for number in range(4):
                db = [0, 0, 0, 0]
                db[number] = 1 << bit
                assert debugregs_taken(guest, db=(ctypes.c_uint64 * 4)(*db)), f"DR{number} bit {bit}"


def debugregs_taken(guest: LongModeVm, **members: Any) -> bool:
    """Whether KVM_SET_DEBUGREGS takes these members."""
    request = k.kvm_debugregs(**members)
    try:
        guest.vcpu.set_debugregs(request)
    except KvmError:
        return False
    return True
