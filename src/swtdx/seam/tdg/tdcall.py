# SPDX-License-Identifier: GPL-2.0-or-later
"""TDCALL: the guest's calls to the module.

RAX carries leaf 15:0 and version 23:16, as in SEAMCALL; only TDG.VM.RD has a version 1. Outside 64-bit mode and
at CPL above 0 the processor itself raises #GP(0). A leaf function sets the guest's registers; RAX becomes
its status and the instruction is stepped over, unless the guest has to leave or take #VE first and try again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from swtdx.seam.hardware import Args
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.td_exit import Interrupted
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

LEAVES: dict[int, tuple[Handler, tuple[int, ...]]] = {}
"""Reproduced leaf functions by RAX, each with the registers that a failure clears."""


def tdcall_leaf(name: str, *, clears: tuple[int, ...] = ()) -> Callable[[Handler], Handler]:
    """Register a TDCALL leaf function for all its versions."""
    number = TDCALL_NUMBERS[name]

    def register(handler: Handler) -> Handler:
        for version in _VERSIONS[number]:
            LEAVES[number | version << VERSION_SHIFT] = handler, clears
        return handler

    return register


@cache
def tdcalls_of(version: ModuleVersion) -> dict[int, tuple[Handler, tuple[int, ...]]]:
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
        handler, clears = found
        try:
            status = handler(module, vcpu, args)
        except Status as failure:
            status = failure.value
            for register in clears:
                gpr[register] = 0
            for name, value in failure.outputs.items():
                gpr[REGISTERS[name]] = value
        except Interrupted as interrupted:
            # RIP stays at the TDCALL, so that the guest executes it again.
            return interrupted.result
    gpr[RAX] = module.version.present(status, None)[0] if module.version.has_own_statuses else status
    context.rip += context.instruction_length
    return None
