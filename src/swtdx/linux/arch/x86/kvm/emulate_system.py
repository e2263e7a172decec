# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's system calls and the state of its x87 unit: SYSCALL, SYSENTER, SYSEXIT, FNINIT, FXSAVE, FXRSTOR
(em_syscall, em_sysenter, em_sysexit, em_fninit, em_fxsave, em_fxrstor of arch/x86/kvm/emulate.c).

As in Linux there are no SYSENTER, FXSAVE and FXRSTOR of 64-bit code, and no SYSRET at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import Segment
from swtdx.linux.arch.x86.kvm.emulate_segments import cpl
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException, Unhandled
from swtdx.uapi.kvm import Vector
from swtdx.x86 import Cr0, Cr4, Efer, Gpr, Msr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Steps
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_FLAT_CODE_64, _FLAT_CODE_32, _FLAT_DATA, _USERS = 0xA09B, 0xC09B, 0xC093, 3 << 5  # setup_syscalls_segments
_FXSR = 1 << 24
_ST, _ST_SIZE = 32, 16
_FX_LEGACY, _FX_OF_32_BITS = 160, 160 + 8 * 16
_MXCSR = 24
_LOW32 = 0xFFFFFFFF


def _load_flat(context: GuestContext, code: int, stack: int, *, wide: bool, rights: int = 0) -> None:
    kind = _FLAT_CODE_64 if wide else _FLAT_CODE_32
    context.set_segment(Segment.CS, code, 0, _LOW32, kind | rights)
    context.set_segment(Segment.SS, stack, 0, _LOW32, _FLAT_DATA | rights)


def enter_by_syscall(vcpu: Vcpu, context: GuestContext, following: int, *, wide: bool) -> None:
    """SYSCALL before the instruction at ``following``, of 64-bit code if ``wide``: the target is in RIP then."""
    star = vcpu.ops.get_msr(vcpu, Msr.STAR, True)
    long_mode = bool(context.efer & Efer.LMA)
    _load_flat(context, star >> 32 & 0xFFFC, (star >> 32) + 8 & 0xFFFF, wide=long_mode)
    flags, gpr = context.rflags & ~Rflags.RF, context.gpr
    gpr[Gpr.RCX] = following
    if long_mode:
        gpr[Gpr.R11] = flags
        context.rip = vcpu.ops.get_msr(vcpu, Msr.LSTAR if wide else Msr.CSTAR, True)
        context.rflags = flags & ~vcpu.ops.get_msr(vcpu, Msr.FMASK, True) | Rflags.FIXED_1
    else:
        context.rip = star & _LOW32
        context.rflags = flags & ~(Rflags.VM | Rflags.IF)


def _arrive(instruction: Instruction) -> None:
    """The next instruction is where RIP is; a single step is over with the flags that are now."""
    context = instruction.context
    instruction.next_rip, instruction.trap_flag = context.rip, bool(context.rflags & Rflags.TF)


def _protected(instruction: Instruction) -> bool:
    return bool(instruction.context.cr0 & Cr0.PE) and not instruction.context.rflags & Rflags.VM


def system_call(instruction: Instruction) -> Steps:
    """SYSCALL: outside 64-bit code AMD's processors alone have it."""
    vcpu, context = instruction.vcpu, instruction.context
    elsewhere = not instruction.wide and not vcpu.cpuid.is_amd_compatible
    if not _protected(instruction) or elsewhere or not context.efer & Efer.SCE:
        raise GuestException(Vector.UD, None)
    enter_by_syscall(vcpu, context, instruction.next_rip, wide=instruction.wide)
    _arrive(instruction)
    yield from ()


def system_enter(instruction: Instruction) -> Steps:
    """SYSENTER. AMD's processors have none in compatibility mode."""
    vcpu, context = instruction.vcpu, instruction.context
    if not context.cr0 & Cr0.PE:
        raise GuestException(Vector.GP, 0)
    long_mode = bool(context.efer & Efer.LMA)
    if not instruction.wide and long_mode and vcpu.cpuid.is_amd_compatible:
        raise GuestException(Vector.UD, None)
    if instruction.wide:
        raise Unhandled
    selector = vcpu.ops.get_msr(vcpu, Msr.SYSENTER_CS, True)
    if not selector & 0xFFFC:
        raise GuestException(Vector.GP, 0)
    context.rflags &= ~(Rflags.VM | Rflags.IF)
    code = selector & 0xFFFC
    _load_flat(context, code, code + 8 & 0xFFFF, wide=long_mode)
    mask = (1 << 64) - 1 if long_mode else _LOW32
    context.rip = vcpu.ops.get_msr(vcpu, Msr.SYSENTER_EIP, True) & mask
    context.gpr[Gpr.RSP] = vcpu.ops.get_msr(vcpu, Msr.SYSENTER_ESP, True) & mask
    _arrive(instruction)
    yield from ()


def _system_exit(wide: bool) -> Callable[[Instruction], Steps]:
    """SYSEXIT to 32-bit or to 64-bit code."""

    def leave(instruction: Instruction) -> Steps:
        vcpu, context = instruction.vcpu, instruction.context
        if not _protected(instruction) or cpl(instruction):
            raise GuestException(Vector.GP, 0)
        base = vcpu.ops.get_msr(vcpu, Msr.SYSENTER_CS, True)
        if not (base if wide else base & 0xFFFC):
            raise GuestException(Vector.GP, 0)
        rsp, rip = context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]
        if not wide:
            rsp, rip = rsp & _LOW32, rip & _LOW32
        elif not (instruction.is_canonical(rsp) and instruction.is_canonical(rip)):
            raise GuestException(Vector.GP, 0)
        code = base + (32 if wide else 16) & 0xFFFF
        _load_flat(context, code | 3, code + 8 & 0xFFFF | 3, wide=wide, rights=_USERS)
        context.rip, context.gpr[Gpr.RSP] = rip, rsp
        _arrive(instruction)
        yield from ()

    return leave


def _check_x87(instruction: Instruction) -> None:
    if instruction.context.cr0 & (Cr0.TS | Cr0.EM):
        raise GuestException(Vector.NM, None)


def initialize_x87(instruction: Instruction) -> Steps:
    """FNINIT: the registers keep their contents, and are empty."""
    _check_x87(instruction)
    context = instruction.context
    image = bytearray(context.get_fpu())
    top = struct.unpack_from("<H", image, 2)[0] >> 11 & 7
    stack = bytes(image[_ST : _ST + 8 * _ST_SIZE])
    for register in range(8):  # in the image ST(0) comes first, and that is register 0 now
        at = (register - top & 7) * _ST_SIZE
        image[_ST + register * _ST_SIZE : _ST + (register + 1) * _ST_SIZE] = stack[at : at + _ST_SIZE]
    struct.pack_into("<HHHHQQ", image, 0, 0x37F, 0, 0, 0, 0, 0)
    context.set_fpu(bytes(image))
    yield from ()


def _area(instruction: Instruction, *, write: bool) -> tuple[int, int]:
    """Return (linear address, bytes) of the memory operand of FXSAVE and FXRSTOR. Raises GuestException, Unhandled."""
    features = instruction.vcpu.cpuid.find(1)
    if not (features and features[3] & _FXSR):
        raise GuestException(Vector.UD, None)
    _check_x87(instruction)
    if instruction.wide:
        raise Unhandled
    size = _FX_OF_32_BITS if instruction.context.cr4 & Cr4.OSFXSR else _FX_LEGACY
    address = instruction.address(size, write=write)
    if address % 16:
        raise GuestException(Vector.GP, 0)
    return address, size


def save_x87(instruction: Instruction) -> Steps:
    """FXSAVE."""
    address, size = _area(instruction, write=True)
    image = bytes(instruction.context.get_fpu())[:size]
    yield from instruction.write(address, size, int.from_bytes(image, "little"))


def restore_x87(instruction: Instruction) -> Steps:
    """FXRSTOR: what it does not load stays."""
    address, size = _area(instruction, write=False)
    data = (yield from instruction.read(address, size)).to_bytes(size, "little")
    if struct.unpack_from("<I", data, _MXCSR)[0] >> 16:
        raise GuestException(Vector.GP, 0)
    context = instruction.context
    context.set_fpu(data + bytes(context.get_fpu())[size:])


OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    "SYSCALL": system_call,
    "SYSENTER": system_enter,
    "SYSEXIT": _system_exit(False),
    "SYSEXITQ": _system_exit(True),
    "FNINIT": initialize_x87,
    "FXSAVE": save_x87,
    "FXRSTOR": restore_x87,
}
"""By the name that iced-x86 has for the mnemonic."""
