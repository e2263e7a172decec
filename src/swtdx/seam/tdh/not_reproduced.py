# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration and service TDs: their leaf functions up to the point where the feature itself would begin.

Neither is reproduced, and TDX_FEATURES0 does not offer them. The leaf functions exist, as in a module where neither
feature is used: they check their TD and its OP_STATE, and no TD here ever enters a state of export or import. A few
leaf functions pass these checks. They answer as a module without sessions, streams and service TDs does:

========================  ==================================================================================
leaf                      answer
========================  ==================================================================================
EXPORT.STATE.IMMUTABLE    TD_NOT_MIGRATABLE; of a migratable TD MIN_MIGS_NOT_CREATED: no migration streams
IMPORT.STATE.IMMUTABLE    MIN_MIGS_NOT_CREATED
EXPORT.RESTORE            TD_NOT_MIGRATABLE, else OPERAND_INVALID|RCX: there is no list to restore from
EXPORT.UNBLOCKW           EPT_ENTRY_STATE_INCORRECT: no entry was ever blocked for writing
MIG.STREAM.CREATE         MAX_MIGS_NUM_EXCEEDED: no stream can be created
SERVTD.BIND, PREBIND      OPERAND_INVALID|R9: there is no type of service TD
========================  ==================================================================================

Sources: TDX module 1.5.06, order of checks; Intel TDX module ABI specification, operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.dispatch import SEAMCALL_NUMBERS, Handler, leaf
from swtdx.seam.operands import check_entry, gpa_and_level, walk
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import ATTRIBUTE_MIGRATABLE

if TYPE_CHECKING:
    from swtdx.seam.hardware import Args
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

TD_IN_RCX = (
    "EXPORT.ABORT", "EXPORT.PAUSE", "EXPORT.STATE.IMMUTABLE", "EXPORT.STATE.TD", "EXPORT.TRACK",
    "IMPORT.ABORT", "IMPORT.COMMIT", "IMPORT.END", "IMPORT.STATE.IMMUTABLE", "IMPORT.STATE.TD", "IMPORT.TRACK",
    "SERVTD.BIND", "SERVTD.PREBIND",
)  # fmt: skip
TD_IN_RDX = ("EXPORT.BLOCKW", "EXPORT.MEM", "EXPORT.RESTORE", "EXPORT.UNBLOCKW", "IMPORT.MEM", "MIG.STREAM.CREATE")
VCPU_IN_RCX = ("EXPORT.STATE.VP", "IMPORT.STATE.VP")


def _no_session(td: Td, args: Args) -> None:
    """Refuse: the OP_STATE would have to be one of a migration, which no TD here reaches."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


def _export_immutable(td: Td, args: Args) -> None:
    if not td.attributes & ATTRIBUTE_MIGRATABLE:
        raise Status(StatusCode.TD_NOT_MIGRATABLE)
    raise Status(StatusCode.MIN_MIGS_NOT_CREATED)


def _import_immutable(td: Td, args: Args) -> None:
    raise Status(StatusCode.MIN_MIGS_NOT_CREATED)


def _restore(td: Td, args: Args) -> None:
    if not td.attributes & ATTRIBUTE_MIGRATABLE:
        raise Status(StatusCode.TD_NOT_MIGRATABLE)
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


def _unblock_for_writing(td: Td, args: Args) -> None:
    gpa, level = gpa_and_level(args.rcx, 0, 0)
    entry_index, entry = walk(td, gpa, level)
    check_entry(td, "TDH_EXPORT_UNBLOCKW", entry, level, entry_index)


def _stream(td: Td, args: Args) -> None:
    raise Status(StatusCode.MAX_MIGS_NUM_EXCEEDED)


def _service_td(td: Td, args: Args) -> None:
    if args.r8:  # the slot
        raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
    raise Status(StatusCode.OPERAND_INVALID, Operand.R9)


AFTER_STATE = {
    "EXPORT.STATE.IMMUTABLE": _export_immutable,
    "IMPORT.STATE.IMMUTABLE": _import_immutable,
    "EXPORT.RESTORE": _restore,
    "EXPORT.UNBLOCKW": _unblock_for_writing,
    "MIG.STREAM.CREATE": _stream,
    "SERVTD.BIND": _service_td,
    "SERVTD.PREBIND": _service_td,
}
"""What is left of the leaf functions whose OP_STATE a TD can have here."""


def _register(name: str) -> None:
    number = SEAMCALL_NUMBERS[f"TDH.{name}"]

    def call(module: TdxModule, args: Args, lp: int) -> int:
        if name in VCPU_IN_RCX:
            td = module.vcpu(args.rcx, Operand.RCX).td
        elif name in TD_IN_RCX:
            td = module.td(args.rcx, Operand.RCX)
        else:
            td = module.td(args.rdx, Operand.RDX)
        td.check_state(number)
        AFTER_STATE.get(name, _no_session)(td, args)
        raise AssertionError(f"{name} passed checks that nothing here can pass")

    call.__doc__ = f"TDH.{name}, up to where the feature would begin."
    handler: Handler = call
    leaf(f"TDH.{name}", clears=("rcx", "rdx") if name == "EXPORT.UNBLOCKW" else ())(handler)


for _name in (*TD_IN_RCX, *TD_IN_RDX, *VCPU_IN_RCX):
    _register(_name)
