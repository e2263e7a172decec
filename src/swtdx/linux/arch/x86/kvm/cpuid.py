# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID: what KVM can offer, and what a vCPU's guest sees (arch/x86/kvm/cpuid.c).

`supported_cpuid` is the processor's own CPUID with what KVM does not virtualise removed and what it emulates added.
`CpuidTable` answers a guest from the entries of KVM_SET_CPUID2, with Intel's rule for leaves out of range: they read as
the highest basic leaf.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user, copy_to_user
from swtdx.uapi.kvm import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT,
    kvm_cpuid_entry2,
)
from swtdx.x86 import Cr4, Msr

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

KVM_MAX_CPUID_ENTRIES = 256
ENTRY_SIZE = ctypes.sizeof(kvm_cpuid_entry2)
HEADER_SIZE = 8
SIGNIFICANT = KVM_CPUID_FLAG_SIGNIFCANT_INDEX

_INDEXED = {0x4, 0x7, 0xB, 0xD, 0x12, 0x14, 0x17, 0x18, 0x1D, 0x1E, 0x1F, 0x23, 0x24, 0x8000001D}
F1_ECX_MONITOR, F1_ECX_VMX, F1_ECX_SMX, F1_ECX_X2APIC = 1 << 3, 1 << 5, 1 << 6, 1 << 21
F1_ECX_TSC_DEADLINE, F1_ECX_OSXSAVE, F1_ECX_HYPERVISOR = 1 << 24, 1 << 27, 1 << 31
F6_EAX_ARAT = 1 << 2
F1_ECX_MOVBE, F7_ECX_RDPID, F81_EDX_RDTSCP = 1 << 22, 1 << 22, 1 << 27
F1_ECX_DROPPED = F1_ECX_MONITOR | F1_ECX_VMX | F1_ECX_SMX | F1_ECX_OSXSAVE | 1 << 2 | 1 << 7 | 1 << 8 | 1 << 15
F1_EDX_DROPPED = 1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31
"""PSN, DS, ACPI, HTT, TM and PBE (kvm_set_cpu_caps)."""
F1_EDX_APIC, F7_ECX_OSPKE = 1 << 9, 1 << 4
F7_EBX_TSC_ADJUST, F7_EBX_HLE, F7_EBX_RTM, F7_ECX_WAITPKG = 1 << 1, 1 << 4, 1 << 11, 1 << 5
F7_EDX_SPEC_CTRL, F7_EDX_STIBP, F7_EDX_FLUSH_L1D = 1 << 26, 1 << 27, 1 << 28
F7_EDX_ARCH_CAPABILITIES, F7_EDX_SSBD = 1 << 29, 1 << 31
F88_EBX_IBPB, F88_EBX_IBRS, F88_EBX_STIBP, F88_EBX_SSBD = 1 << 12, 1 << 14, 1 << 15, 1 << 24
F88_EBX_SSB_NO, F88_EBX_IBPB_RET = 1 << 26, 1 << 30
_ARCH_CAP_IBRS_ALL, _ARCH_CAP_SSB_NO, _ARCH_CAP_PBRSB_NO = 1 << 1, 1 << 4, 1 << 24
FD1_EAX_XSAVEC, FD1_EAX_XSAVES = 1 << 1, 1 << 3
XSAVE_LEGACY_AND_HEADER = 512 + 64
CR4_OSXSAVE, CR4_PKE, APICBASE_ENABLE = int(Cr4.OSXSAVE), int(Cr4.PKE), 1 << 11
KVM_CPUID_SIGNATURE, KVM_CPUID_FEATURES = 0x40000000, 0x40000001
AMD_COMPATIBLE = tuple(
    (int.from_bytes(name[:4], "little"), int.from_bytes(name[8:], "little"), int.from_bytes(name[4:8], "little"))
    for name in (b"AuthenticAMD", b"HygonGenuine")
)
"""EBX, ECX, EDX of CPUID leaf 0 (guest_cpuid_is_amd_compatible)."""
KVM_SIGNATURE = 0x4B4D564B, 0x564B4D56, 0x4D  # "KVMKVMKVM"
_HYPERVISOR_BASES = range(0x40000000, 0x40010000, 0x100)
KVM_FEATURE_PV_UNHALT = 7
KVM_FEATURES = (
    1 << 0  # CLOCKSOURCE
    | 1 << 1  # NOP_IO_DELAY
    | 1 << 3  # CLOCKSOURCE2
    | 1 << 4  # ASYNC_PF
    | 1 << 5  # STEAL_TIME
    | 1 << 6  # PV_EOI
    | 1 << KVM_FEATURE_PV_UNHALT
    | 1 << 9  # PV_TLB_FLUSH
    | 1 << 10  # ASYNC_PF_VMEXIT
    | 1 << 11  # PV_SEND_IPI
    | 1 << 12  # POLL_CONTROL
    | 1 << 13  # PV_SCHED_YIELD
    | 1 << 14  # ASYNC_PF_INT
    | 1 << 24  # CLOCKSOURCE_STABLE_BIT
)
"""What KVM's paravirtual leaf offers (Documentation/virt/kvm/x86/cpuid.rst)."""
_MAXPHYADDR_UNTOLD = 36

Registers = tuple[int, int, int, int]


def make_entry(function: int, index: int, flags: int, registers: Sequence[int]) -> kvm_cpuid_entry2:
    """Return a kvm_cpuid_entry2 from (eax, ebx, ecx, edx)."""
    eax, ebx, ecx, edx = registers
    return kvm_cpuid_entry2(function=function, index=index, flags=flags, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def supported_cpuid(processor: Processor, *, guest_phys_bits: bool = True) -> list[kvm_cpuid_entry2]:
    """KVM_GET_SUPPORTED_CPUID. ``guest_phys_bits``: with GuestPhysAddrSize, as Linux 6.10 and later report it."""
    entries: list[kvm_cpuid_entry2] = []

    def add(function: int, index: int, registers: Sequence[int]) -> None:
        flags = SIGNIFICANT if function in _INDEXED else 0
        entries.append(make_entry(function, index, flags, registers))

    max_basic = min(processor.cpuid(0)[0], 0x24)
    for leaf in range(max_basic + 1):
        eax, ebx, ecx, edx = processor.cpuid(leaf)
        if leaf == 0:
            add(0, 0, (max_basic, ebx, ecx, edx))
        elif leaf == 1:
            ecx = ecx & ~F1_ECX_DROPPED | F1_ECX_X2APIC | F1_ECX_TSC_DEADLINE | F1_ECX_HYPERVISOR
            add(1, 0, (eax, ebx & 0xFFFF, ecx, edx & ~F1_EDX_DROPPED))
        elif leaf == 4:
            index = 0
            while True:
                registers = processor.cpuid(4, index)
                add(4, index, registers)
                if not registers[0] & 0x1F:
                    break
                index += 1
        elif leaf == 7:
            add(7, 0, (eax, ebx & ~(F7_EBX_HLE | F7_EBX_RTM) | F7_EBX_TSC_ADJUST, ecx & ~F7_ECX_WAITPKG, edx))
            for index in range(1, eax + 1):
                add(7, index, processor.cpuid(7, index))
        elif leaf == 0xD:
            add(0xD, 0, (eax, ebx, ecx, edx))
            add(0xD, 1, processor.cpuid(0xD, 1))
            for index in range(2, 63):
                registers = processor.cpuid(0xD, index)
                if any(registers):
                    add(0xD, index, registers)
        elif leaf in (3, 5, 8, 9, 0xA, 0xC, 0xE, 0xF, 0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18):
            add(leaf, 0, (0, 0, 0, 0))  # monitor, power, PMU, resource control, SGX, PT, clocks: not virtualised
        elif leaf in (0xB, 0x1F):
            add(leaf, 0, (0, 0, 0, 0))  # the topology is user space's to say
        elif leaf == 6:
            add(6, 0, (F6_EAX_ARAT, 0, 0, 0))
        else:
            add(leaf, 0, (eax, ebx, ecx, edx))
    add(KVM_CPUID_SIGNATURE, 0, (KVM_CPUID_FEATURES, *KVM_SIGNATURE))
    add(KVM_CPUID_FEATURES, 0, (KVM_FEATURES, 0, 0, 0))
    max_extended = min(max(processor.cpuid(0x80000000)[0], 0x80000000), 0x80000008)
    for leaf in range(0x80000000, max_extended + 1):
        eax, ebx, ecx, edx = processor.cpuid(leaf)
        if leaf == 0x80000000:
            eax = max_extended
        elif leaf == 0x80000008:
            eax, ecx, edx = _address_sizes(eax, guest_phys_bits=guest_phys_bits), 0, 0
            ebx |= _speculation_bits_of_amd(processor)
        add(leaf, 0, (eax, ebx, ecx, edx))
    return entries


def _address_sizes(eax: int, *, guest_phys_bits: bool) -> int:
    """EAX of leaf 0x80000008. The processor walks five levels of EPT, so a guest can use every physical address bit."""
    physical, linear = eax & 0xFF, max(eax >> 8 & 0xFF, 48)
    return physical | linear << 8 | (physical << 16 if guest_phys_bits else 0)


def _speculation_bits_of_amd(processor: Processor) -> int:
    """EBX of leaf 0x80000008: AMD's bits for what Intel's leaf 7 and IA32_ARCH_CAPABILITIES say (kvm_set_cpu_caps).

    Where a processor with enhanced IBRS lacks PBRSB_NO (X86_BUG_EIBRS_PBRSB), IBPB leaves return predictions.
    """
    edx = processor.cpuid(7)[3]
    has = processor.rdmsr(Msr.ARCH_CAPABILITIES)
    ebx = F88_EBX_SSB_NO if has & _ARCH_CAP_SSB_NO else 0
    if edx & F7_EDX_SPEC_CTRL:
        returns = has & _ARCH_CAP_PBRSB_NO or not has & _ARCH_CAP_IBRS_ALL
        ebx |= F88_EBX_IBPB | F88_EBX_IBRS | (F88_EBX_IBPB_RET if returns else 0)
    return ebx | (F88_EBX_STIBP if edx & F7_EDX_STIBP else 0) | (F88_EBX_SSBD if edx & F7_EDX_SSBD else 0)


def _pv_features_leaf(entries: Iterable[kvm_cpuid_entry2]) -> int:
    """Return the leaf with KVM's paravirtual features, 0 for none.

    Another hypervisor's leaves may come before KVM's.
    """
    signatures = {entry.function: (entry.ebx, entry.ecx, entry.edx) for entry in entries}
    bases = (base for base in _HYPERVISOR_BASES if signatures.get(base) == KVM_SIGNATURE)
    base = next(bases, 0)
    return base + KVM_CPUID_FEATURES - KVM_CPUID_SIGNATURE if base else 0


def apply_cpuid_pv_features_quirk(entries: Sequence[kvm_cpuid_entry2]) -> None:
    """Take PV_UNHALT out of the guest's CPUID: where HLT does not exit, a hypercall cannot end another vCPU's HLT."""
    leaf = _pv_features_leaf(entries)
    for entry in entries:
        if leaf and entry.function == leaf:
            entry.eax &= ~(1 << KVM_FEATURE_PV_UNHALT)


class CpuidTable:
    """A vCPU's CPUID entries."""

    def __init__(self, entries: Iterable[kvm_cpuid_entry2] = ()) -> None:
        self.entries = list(entries)
        self._exact: dict[tuple[int, int], Registers] = {}
        self._any: dict[int, Registers] = {}
        for entry in self.entries:
            registers = (entry.eax, entry.ebx, entry.ecx, entry.edx)
            if entry.flags & SIGNIFICANT:
                self._exact.setdefault((entry.function, entry.index), registers)
            else:
                self._any.setdefault(entry.function, registers)
        basic = self.find(0)
        self._max_basic = basic[0] if basic else 0
        self.is_amd_compatible = basic is not None and basic[1:] in AMD_COMPATIBLE
        extended = self.find(0x80000000)
        self._max_extended = extended[0] if extended else 0
        self._features7 = self.find(7) or (0, 0, 0, 0)
        features = _pv_features_leaf(self.entries)
        self.pv_features = (self.find(features) or (0, 0, 0, 0))[0] if features else 0
        state = self.find(0xD, 1)
        self.has_xsaves = bool(state and state[0] & FD1_EAX_XSAVES)
        width = self.find(0x80000008) if self._max_extended >= 0x80000008 else None
        self._speculation = width[1] if width else 0
        self.reserved_gpa_bits = (1 << 64) - (1 << min((width[0] if width else _MAXPHYADDR_UNTOLD) & 0xFF, 64))
        """Bits of a guest-physical address that the guest's CPUID leaves out."""

    def has_7_ebx(self, bit: int) -> bool:
        """Return whether the guest has any of these features of leaf 7, EBX."""
        return bool(self._features7[1] & bit)

    def has_7_edx(self, bits: int) -> bool:
        """Return whether the guest has any of these features of leaf 7, EDX."""
        return bool(self._features7[3] & bits)

    def has_spec_ctrl(self, processor: Processor) -> bool:
        """Return whether the guest has IA32_SPEC_CTRL, under either name of what is in it (guest_has_spec_ctrl_msr)."""
        amd = F88_EBX_IBRS | F88_EBX_SSBD | F88_EBX_STIBP
        return self.has_7_edx(F7_EDX_SPEC_CTRL) or self._has_of_amd(processor, amd)

    def has_pred_cmd(self, processor: Processor) -> bool:
        """Return whether the guest has IA32_PRED_CMD (guest_has_pred_cmd_msr)."""
        return self.has_7_edx(F7_EDX_SPEC_CTRL) or self._has_of_amd(processor, F88_EBX_IBPB)

    def _has_of_amd(self, processor: Processor, bits: int) -> bool:
        """A feature that KVM does not offer is not the guest's, whatever user space says."""
        return bool(self._speculation & bits & _speculation_bits_of_amd(processor))

    def find(self, function: int, index: int = 0) -> Registers | None:
        """Return the entry for a leaf and sub-leaf (kvm_find_cpuid_entry_index)."""
        return self._any.get(function) or self._exact.get((function, index))

    def query(self, function: int, index: int) -> Registers:
        """Return what the CPUID instruction returns (kvm_cpuid)."""
        found = self._any.get(function) or self._exact.get((function, index))
        if found is not None:
            return found
        out_of_range = function > (self._max_extended if function >> 31 else self._max_basic)
        if out_of_range and function & 0xF0000000 != 0x40000000:
            return self.find(self._max_basic, index) or (0, 0, 0, 0)
        if function in (0xB, 0x1F) and (found := self._exact.get((function, 1))) is not None:
            return 0, 0, index & 0xFF, found[3]  # an invalid level keeps ECX[7:0] and EDX
        return 0, 0, 0, 0


def xstate_required_size(processor: Processor, xcr0: int, *, compacted: bool) -> int:
    """Return the bytes that XSAVE needs for the state components ``xcr0``: 576 for x87 and SSE, then the others."""
    end = XSAVE_LEGACY_AND_HEADER
    for number in range(2, 63):
        if xcr0 >> number & 1:
            size, offset, alignment, _ = processor.cpuid(0xD, number)
            if compacted:
                end = (end + 63 & -64 if alignment & 2 else end) + size
            else:
                end = max(end, offset + size)
    return end


def kvm_update_cpuid_runtime(vcpu: Vcpu, function: int, index: int, registers: Registers) -> Registers:
    """Return a leaf with the bits that follow the vCPU's state: OSXSAVE, APIC, MWAIT, OSPKE, sizes of XSAVE."""
    eax, ebx, ecx, edx = registers
    context = vcpu.vmx.context
    if function == 1:
        ecx = ecx & ~F1_ECX_OSXSAVE | (F1_ECX_OSXSAVE if context.cr4 & CR4_OSXSAVE else 0)
        edx = edx & ~F1_EDX_APIC | (F1_EDX_APIC if vcpu.apic_base & APICBASE_ENABLE else 0)
        if vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT:
            ecx = ecx & ~F1_ECX_MONITOR | (F1_ECX_MONITOR if vcpu.msrs.mwait_enabled else 0)
    elif function == 7 and not index:
        ecx = ecx & ~F7_ECX_OSPKE | (F7_ECX_OSPKE if context.cr4 & CR4_PKE else 0)
    elif function == 0xD and (not index or (index == 1 and eax & (FD1_EAX_XSAVEC | FD1_EAX_XSAVES))):
        ebx = xstate_required_size(vcpu.kvm.processor, context.xcr0, compacted=bool(index))
    return eax, ebx, ecx, edx


def runtime_entries(vcpu: Vcpu, entries: Iterable[kvm_cpuid_entry2]) -> list[kvm_cpuid_entry2]:
    """Return entries as the vCPU's state makes them; those of a TD stay as they are."""
    if vcpu.is_td:
        return list(entries)
    return [
        make_entry(
            entry.function, entry.index, entry.flags,
            kvm_update_cpuid_runtime(
                vcpu, entry.function, entry.index, (entry.eax, entry.ebx, entry.ecx, entry.edx)
            ),
        )
        for entry in entries
    ]  # fmt: skip


def entries_from_user(address: int, count: int) -> list[kvm_cpuid_entry2]:
    """``count`` entries at the user address. Raises OSError(EFAULT)."""
    data = copy_from_user(address, count * ENTRY_SIZE)
    return [kvm_cpuid_entry2.from_buffer_copy(data, number * ENTRY_SIZE) for number in range(count)]


def entries_to_user(address: int, entries: Sequence[kvm_cpuid_entry2]) -> None:
    """Write entries. Raises OSError(EFAULT)."""
    copy_to_user(address, b"".join(bytes(entry) for entry in entries))


def emulated_cpuid(processor: Processor) -> list[kvm_cpuid_entry2]:
    """KVM_GET_EMULATED_CPUID: MOVBE, and RDPID where there is RDTSCP (cpuid_func_emulated)."""
    rdtscp = processor.cpuid(0x80000001)[3] & F81_EDX_RDTSCP
    return [
        kvm_cpuid_entry2(function=0, eax=7),
        kvm_cpuid_entry2(function=1, ecx=F1_ECX_MOVBE),
        kvm_cpuid_entry2(function=7, flags=int(SIGNIFICANT), ecx=F7_ECX_RDPID if rdtscp else 0),
    ]


def check_padding(arg: int) -> None:
    """Raises OSError(EINVAL) if an entry of a kvm_cpuid2 request cannot be read or its padding is not 0."""
    nent = min(int.from_bytes(copy_from_user(arg, HEADER_SIZE)[:4], "little"), KVM_MAX_CPUID_ENTRIES)
    padding = kvm_cpuid_entry2.padding
    for number in range(nent):
        at = arg + HEADER_SIZE + number * ctypes.sizeof(kvm_cpuid_entry2) + padding.offset
        try:
            clean = not any(copy_from_user(at, padding.size))
        except OSError:
            clean = False
        if not clean:
            raise err(errno.EINVAL, f"the padding of entry {number} is not 0")


def cpuid2_to_user(arg: int, entries: Sequence[kvm_cpuid_entry2], needed: int = 0) -> None:
    """Answer a kvm_cpuid2 request: E2BIG if its ``nent`` is too small, else entries and count. Raises OSError.

    ``needed``: the room that is asked for, if more than the entries.
    """
    nent, needed = int.from_bytes(copy_from_user(arg, HEADER_SIZE)[:4], "little"), needed or len(entries)
    if nent < needed:
        raise err(errno.E2BIG, f"room for {nent} entries, {needed} needed")
    entries_to_user(arg + HEADER_SIZE, entries)
    copy_to_user(arg, len(entries).to_bytes(4, "little"))
