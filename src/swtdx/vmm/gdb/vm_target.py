# SPDX-License-Identifier: GPL-2.0-or-later
"""An ordinary VM under the debugger: registers by KVM_GET/SET_REGS, SREGS, XSAVE, XCRS and MSRS, addresses by
KVM_TRANSLATE, breakpoints by KVM_SET_GUEST_DEBUG. Works on any KVM.
"""

from __future__ import annotations

from swtdx.uapi import kvm
from swtdx.uapi.capability import Cap
from swtdx.uapi.client import KvmError, Vcpu
from swtdx.vmm.gdb.breakpoints import Breakpoints
from swtdx.vmm.gdb.registers import GENERAL, SELECTORS
from swtdx.vmm.gdb.save_area import OFFERED, SaveArea, offered
from swtdx.vmm.gdb.target import AccessError
from swtdx.vmm.launch import Machine
from swtdx.x86 import XFeature

_KERNEL_GS_BASE = 0xC0000102
_INJECT = {1: kvm.KVM_GUESTDBG_INJECT_DB, 3: kvm.KVM_GUESTDBG_INJECT_BP}
_SREGS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_XSAVE_LEAF = 0xD


class VmTarget:
    """The vCPUs of an ordinary VM, by its machine."""

    gives_back = frozenset(_INJECT)

    def __init__(self, machine: Machine) -> None:
        self._vcpus = machine.vcpus
        self._memory = machine.slots.memory
        controls = machine.vm.check_extension(Cap.SET_GUEST_DEBUG2)
        self._block_interrupts = kvm.KVM_GUESTDBG_BLOCKIRQ & controls
        self._offsets = _offsets(machine.vcpus[0])
        self.extensions = offered(self._offsets)

    def registers(self, vcpu: int) -> dict[str, int]:
        """Raises AccessError."""
        try:
            return _registers(self._vcpus[vcpu], self._offsets)
        except KvmError as error:
            raise AccessError(str(error)) from error

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Raises AccessError; KVM refuses impossible values."""
        try:
            _set_register(self._vcpus[vcpu], name, value, self._offsets)
        except KvmError as error:
            raise AccessError(str(error)) from error

    def translate(self, vcpu: int, address: int) -> int:
        """Raises AccessError where the guest's tables map nothing."""
        try:
            translation = self._vcpus[vcpu].translate(address)
        except KvmError as error:
            raise AccessError(str(error)) from error
        if not translation.valid:
            raise AccessError(f"{address:#x} is not mapped")
        return int(translation.physical_address)

    def read(self, gpa: int, length: int) -> bytes:
        """Raises AccessError where there is no memory: registers of devices are not read, for that may change them."""
        try:
            return self._memory.read(gpa, length)
        except ValueError as error:
            raise AccessError(str(error)) from None

    def write(self, gpa: int, data: bytes) -> None:
        """Raises AccessError where there is no memory."""
        try:
            self._memory.write(gpa, data)
        except ValueError as error:
            raise AccessError(str(error)) from None

    def reasons(self, vcpu: int) -> int:
        return int(self._vcpus[vcpu].kvm_run.debug.arch.dr6)

    def linear_pc(self, vcpu: int) -> int:
        """Raises AccessError."""
        try:
            base = self._vcpus[vcpu].get_sregs().cs.base
            return int(base + self._vcpus[vcpu].get_regs().rip) & (1 << 64) - 1
        except KvmError as error:
            raise AccessError(str(error)) from error

    def arm(self, vcpu: int, breakpoints: Breakpoints, *, step: bool, give_back: int | None) -> None:
        """Raises AccessError."""
        control = 0
        if breakpoints.software:
            control |= kvm.KVM_GUESTDBG_USE_SW_BP
        if breakpoints.hardware:
            control |= kvm.KVM_GUESTDBG_USE_HW_BP
        if step:
            control |= kvm.KVM_GUESTDBG_SINGLESTEP | self._block_interrupts
        control |= _INJECT.get(give_back or 0, 0)
        if control:
            control |= kvm.KVM_GUESTDBG_ENABLE
        self._set(vcpu, control, breakpoints)

    def disarm(self, vcpu: int) -> None:
        """Raises AccessError."""
        self._set(vcpu, 0, Breakpoints())

    def _set(self, vcpu: int, control: int, breakpoints: Breakpoints) -> None:
        try:
            self._vcpus[vcpu].set_guest_debug(control, breakpoints.debug_registers())
        except KvmError as error:
            raise AccessError(str(error)) from error


def _offsets(vcpu: Vcpu) -> dict[XFeature, int]:
    """Where the processor's components lie in the standard form of the XSAVE area."""
    leaf = {entry.index: entry for entry in vcpu.get_cpuid2() if entry.function == _XSAVE_LEAF}
    return {each: int(leaf[each.bit_length() - 1].ebx) for each in OFFERED if 0 in leaf and leaf[0].eax & each}


def _registers(vcpu: Vcpu, offsets: dict[XFeature, int]) -> dict[str, int]:
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    values = {name: int(getattr(regs, name)) for name in (*GENERAL, "rip")}
    values["eflags"] = regs.rflags & 0xFFFF_FFFF
    values |= {name: int(getattr(sregs, name).selector) for name in SELECTORS}
    values |= {name: int(getattr(sregs, name)) for name in _SREGS}
    values["xcr0"] = vcpu.get_xcrs().xcrs[0].value
    values["fs_base"], values["gs_base"] = sregs.fs.base, sregs.gs.base
    values["k_gs_base"] = vcpu.get_msrs([_KERNEL_GS_BASE]).get(_KERNEL_GS_BASE, 0)
    return values | SaveArea(bytearray(vcpu.get_xsave()), offsets).registers()


def _set_register(vcpu: Vcpu, name: str, value: int, offsets: dict[XFeature, int]) -> None:
    if name in GENERAL or name in ("rip", "eflags"):
        regs = vcpu.get_regs()
        setattr(regs, "rflags" if name == "eflags" else name, value)
        vcpu.set_regs(regs)
    elif name in SELECTORS or name in _SREGS or name in ("fs_base", "gs_base"):
        sregs = vcpu.get_sregs()
        if name in SELECTORS:
            getattr(sregs, name).selector = value & 0xFFFF  # the descriptor behind it stays, as in QEMU
        elif name in _SREGS:
            setattr(sregs, name, value)
        else:
            getattr(sregs, name[:2]).base = value
        vcpu.set_sregs(sregs)
    elif name == "k_gs_base":
        vcpu.set_msrs({_KERNEL_GS_BASE: value})
    elif name == "xcr0":
        xcrs = vcpu.get_xcrs()
        xcrs.xcrs[0].value = value
        vcpu.set_xcrs(xcrs)
    else:
        area = SaveArea(bytearray(vcpu.get_xsave()), offsets)
        area.set_register(name, value)
        vcpu.set_xsave(kvm.kvm_xsave.from_buffer(area.image))
