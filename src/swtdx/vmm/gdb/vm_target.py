# SPDX-License-Identifier: GPL-2.0-or-later
"""An ordinary VM under the debugger: registers by KVM_GET/SET_REGS, SREGS, FPU and MSRS, addresses by KVM_TRANSLATE,
breakpoints by KVM_SET_GUEST_DEBUG. Works on any KVM.
"""

from __future__ import annotations

import ctypes

from swtdx.uapi import kvm
from swtdx.uapi.capability import Cap
from swtdx.uapi.client import KvmError, Vcpu
from swtdx.vmm.gdb.breakpoints import Breakpoints
from swtdx.vmm.gdb.registers import GENERAL, SELECTORS, X87_CONTROL, X87_STACK, XMM, full_tag_word
from swtdx.vmm.gdb.target import AccessError
from swtdx.vmm.launch import Machine

_KERNEL_GS_BASE = 0xC0000102
_INJECT = {1: kvm.KVM_GUESTDBG_INJECT_DB, 3: kvm.KVM_GUESTDBG_INJECT_BP}
_SREGS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_FPU_WRITABLE = {"fctrl": "fcw", "fstat": "fsw", "fop": "last_opcode"}
_ST_BYTES, _XMM_BYTES = 10, 16


class VmTarget:
    """The vCPUs of an ordinary VM, by its machine."""

    gives_back = frozenset(_INJECT)

    def __init__(self, machine: Machine) -> None:
        self._vcpus = machine.vcpus
        self._memory = machine.slots.memory
        controls = machine.vm.check_extension(Cap.SET_GUEST_DEBUG2)
        self._block_interrupts = kvm.KVM_GUESTDBG_BLOCKIRQ & controls

    def registers(self, vcpu: int) -> dict[str, int]:
        """Raises AccessError."""
        try:
            return _registers(self._vcpus[vcpu])
        except KvmError as error:
            raise AccessError(str(error)) from error

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Raises AccessError; KVM refuses impossible values."""
        try:
            _set_register(self._vcpus[vcpu], name, value)
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


def _registers(vcpu: Vcpu) -> dict[str, int]:
    regs, sregs, fpu = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_fpu()
    values = {name: int(getattr(regs, name)) for name in (*GENERAL, "rip")}
    values["eflags"] = regs.rflags & 0xFFFF_FFFF
    values |= {name: int(getattr(sregs, name).selector) for name in SELECTORS}
    values |= {name: int(getattr(sregs, name)) for name in _SREGS}
    values["fs_base"], values["gs_base"] = sregs.fs.base, sregs.gs.base
    values["k_gs_base"] = vcpu.get_msrs([_KERNEL_GS_BASE]).get(_KERNEL_GS_BASE, 0)
    stack = tuple(int.from_bytes(bytes(fpu.fpr[n])[:_ST_BYTES], "little") for n in range(len(X87_STACK)))
    values |= dict(zip(X87_STACK, stack, strict=True))
    values |= {name: int.from_bytes(bytes(fpu.xmm[n]), "little") for n, name in enumerate(XMM)}
    values |= {
        "fctrl": fpu.fcw,
        "fstat": fpu.fsw,
        "ftag": full_tag_word(fpu.ftwx, fpu.fsw, stack),
        "fiseg": fpu.last_ip >> 32 & 0xFFFF,
        "fioff": fpu.last_ip & 0xFFFF_FFFF,
        "foseg": fpu.last_dp >> 32 & 0xFFFF,
        "fooff": fpu.last_dp & 0xFFFF_FFFF,
        "fop": fpu.last_opcode,
        "mxcsr": fpu.mxcsr,
    }
    return values


def _set_register(vcpu: Vcpu, name: str, value: int) -> None:
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
    elif name in X87_CONTROL and name not in _FPU_WRITABLE:
        raise AccessError(f"{name} cannot be set")
    else:
        fpu = vcpu.get_fpu()
        if name in X87_STACK:
            _fill(fpu.fpr[X87_STACK.index(name)], value.to_bytes(_ST_BYTES, "little"))
        elif name in XMM:
            _fill(fpu.xmm[XMM.index(name)], value.to_bytes(_XMM_BYTES, "little"))
        else:
            setattr(fpu, _FPU_WRITABLE.get(name, name), value)
        vcpu.set_fpu(fpu)


def _fill(array: ctypes.Array[ctypes.c_uint8], data: bytes) -> None:
    array[: len(data)] = list(data)
