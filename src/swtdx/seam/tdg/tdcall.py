# SPDX-License-Identifier: GPL-2.0-or-later
"""TDCALL: the guest's calls to the module.

RAX carries leaf 15:0 and version 23:16, as in SEAMCALL; only TDG.VM.RD has a version 1. Outside 64-bit mode and
at CPL above 0 the processor itself raises #GP(0). A leaf function sets the guest's registers; RAX becomes
its status and the instruction is stepped over, unless the guest has to leave or take #VE first and try again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from swtdx.seam.hardware import Args
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.td_exit import Interrupted, trap
from swtdx.seam.tdg.vmcall import vmcall
from swtdx.x86 import Gpr

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu
    from swtdx.seam.version import ModuleVersion

Handler: TypeAlias = "Callable[[TdxModule, Vcpu, Args], int]"
"""A leaf function: returns its status; raises Status or Interrupted."""

TDCALL_NUMBERS: dict[str, int] = {name: number for number, name, _ in load("leaves")["tdcall"]}
_VERSIONS: dict[int, tuple[int, ...]] = {number: tuple(v) for number, _, v in load("leaves")["tdcall"]}
# Plain integers: they index a view at each TDCALL.
RAX, RCX, RDX = int(Gpr.RAX), int(Gpr.RCX), int(Gpr.RDX)
R8, R9, R10, R11 = int(Gpr.R8), int(Gpr.R9), int(Gpr.R10), int(Gpr.R11)
VERSION_SHIFT = 16
VP_VMCALL = TDCALL_NUMBERS["TDG.VP.VMCALL"]
REGISTERS = {"rax": RAX, "rcx": RCX, "rdx": RDX, "r8": R8, "r9": R9, "r10": R10, "r11": R11}
BAD_RAX = int(StatusCode.OPERAND_INVALID | Operand.RAX)
ALL_ONES = (1 << 64) - 1
BLOCKED_BY_STI_OR_MOV_SS = 3
HOST_PRIORITY = StatusCode.OPERAND_BUSY_HOST_PRIORITY >> 32
MICROSECONDS = 1_000_000

Entry: TypeAlias = tuple[Handler, tuple[tuple[int, int], ...]]
LEAVES: dict[int, Entry] = {}
"""Reproduced leaf functions by RAX, each with the registers that a failure sets, and to what."""


def tdcall_leaf(
    name: str,
    *,
    clears: tuple[int, ...] = (),
    sets: tuple[int, ...] = (),
    also: Iterable[int] = (),
    version: int | None = None,
) -> Callable[[Handler], Handler]:
    """Register a TDCALL leaf function for all its versions, or for one and those in ``also``.

    A failure sets the registers ``clears`` to 0 and those in ``sets`` to -1.
    """
    number = TDCALL_NUMBERS[name]
    defaults = (*((register, 0) for register in clears), *((register, ALL_ONES) for register in sets))

    def register(handler: Handler) -> Handler:
        for each in (*_VERSIONS[number], *also) if version is None else (version, *also):
            LEAVES[number | each << VERSION_SHIFT] = handler, defaults
        return handler

    return register


@cache
def tdcalls_of(version: ModuleVersion) -> dict[int, Entry]:
    """Return the leaf functions that a version of the module has, by RAX, without TDG.VP.VMCALL, which all have."""
    if version.tdcalls is None:
        return LEAVES
    numbers = {TDCALL_NUMBERS[name] for name in version.tdcalls}
    return {number: LEAVES[number] for number in numbers & set(LEAVES)}


def tdcall(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Handle a TDCALL exit."""
    context = vcpu.context
    gpr = context.gpr
    rax = gpr[RAX]
    if rax == VP_VMCALL:
        return vmcall(vcpu, args)
    found = module.tdcalls.get(rax)
    if found is None:
        status = BAD_RAX
    else:
        handler, defaults = found
        try:
            status = handler(module, vcpu, args)
        except Status as failure:
            status = failure.value
            for register, value in defaults:
                gpr[register] = value
            for name, value in failure.outputs.items():
                gpr[REGISTERS[name]] = value
            if status >> 32 == HOST_PRIORITY:
                return _host_first(module, vcpu, args, status)
        except Interrupted as interrupted:
            # RIP stays at the TDCALL, so that the guest executes it again.
            if interrupted.resumes:
                vcpu.host_waits_since = None
                context.interruptibility &= ~BLOCKED_BY_STI_OR_MOV_SS
            return interrupted.result
    vcpu.host_waits_since = None
    gpr[RAX] = module.version.present(status, None)[0] if module.version.has_own_statuses else status
    context.rip += context.instruction_length
    return None


def _host_first(module: TdxModule, vcpu: Vcpu, args: Args, status: int) -> int | None:
    """Answer OPERAND_BUSY because the host waits for a lock; after HP_LOCK_TIMEOUT of that, let the host run."""
    context, processor = vcpu.context, module.processor
    context.gpr[RAX] = StatusCode.OPERAND_BUSY | status & 0xFFFF_FFFF
    context.rip += context.instruction_length
    if vcpu.host_waits_since is None:
        vcpu.host_waits_since = processor.rdtsc()
        return None
    timeout = vcpu.td.hp_lock_timeout * module.platform.tsc_hz // MICROSECONDS
    if processor.rdtsc() - vcpu.host_waits_since < timeout:
        return None
    vcpu.host_waits_since = None
    return trap(vcpu, args, StatusCode.HOST_PRIORITY_BUSY_TIMEOUT)
