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
EXPORT.RESTORE            all of it: each GPA of the list has the status that its entry was never exported
EXPORT.UNBLOCKW           EPT_ENTRY_STATE_INCORRECT: no entry was ever blocked for writing
MIG.STREAM.CREATE         MAX_MIGS_NUM_EXCEEDED: no stream can be created
SERVTD.BIND, PREBIND      OPERAND_INVALID|R9: there is no type of service TD
========================  ==================================================================================

Sources: TDX module 1.5.06, order of checks; Intel TDX module ABI specification, operands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, Handler, leaf
from swtdx.seam.lifecycle import OpState
from swtdx.seam.operands import check_entry, gpa_and_level, walk
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import ATTRIBUTE_MIGRATABLE
from swtdx.seam.td_params import check_limit_cpuid_maxval

if TYPE_CHECKING:
    from swtdx.seam.hardware import Args
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

PAGE_SHIFT = 12
HASH_ALIGNMENT = 64
MAX_SERVICE_TDS = 1
SERVICE_TD_STATES = frozenset([OpState.RUNNABLE])
"""OP_STATEs of a TD that can be bound as a service TD, as far as a TD has them here."""

LIST_FORMAT, LIST_RESERVED = 7, 7 << 52
LIST_HPA = 0x000F_FFFF_FFFF_F000
FIRST_SHIFT, LAST_SHIFT, INDEX_MASK = 3, 55, 511
ENTRY_RESERVED_OR_LEVEL = 7 << 61 | 3 << 54 | 0xF << 3 | 3
OPERATION, IS_OPERATION = 3 << 52, 1 << 52
STATUS_SHIFT, ENTRY_STATUS = 56, 0x1F << 56
SKIPPED, WALK_FAILED, ENTRY_BUSY, STATE_INCORRECT, ENTRY_INVALID = 1, 2, 3, 4, 15


class Shape(NamedTuple):
    """Where a leaf function has its TD or virtual CPU, how it locks it, and the registers that a failure clears."""

    operand: str
    exclusive: bool = False
    clears: tuple[str, ...] = ()
    vcpu: bool = False


_IN_RCX, _IN_RDX = Shape("rcx"), Shape("rdx")
_ALONE = Shape("rcx", exclusive=True)
_IMPORT_STATE = Shape("rcx", exclusive=True, clears=("rcx", "rdx"))
SHAPES = {
    "EXPORT.ABORT": _IN_RCX,
    "EXPORT.BLOCKW": _IN_RDX,
    "EXPORT.MEM": _IN_RDX,
    "EXPORT.PAUSE": _ALONE,
    "EXPORT.RESTORE": _IN_RDX,
    "EXPORT.STATE.IMMUTABLE": Shape("rcx", clears=("rdx",)),
    "EXPORT.STATE.TD": Shape("rcx", clears=("rdx",)),
    "EXPORT.STATE.VP": Shape("rcx", exclusive=True, clears=("rdx",), vcpu=True),
    "EXPORT.TRACK": _IN_RCX,
    "EXPORT.UNBLOCKW": Shape("rdx", clears=("rcx", "rdx")),
    "IMPORT.ABORT": _ALONE,
    "IMPORT.COMMIT": _ALONE,
    "IMPORT.END": _ALONE,
    "IMPORT.MEM": _IN_RDX,
    "IMPORT.STATE.IMMUTABLE": _IMPORT_STATE,
    "IMPORT.STATE.TD": _IMPORT_STATE,
    "IMPORT.STATE.VP": Shape("rcx", exclusive=True, clears=("rcx", "rdx"), vcpu=True),
    "IMPORT.TRACK": _ALONE,
    "MIG.STREAM.CREATE": _IN_RDX,
    "SERVTD.BIND": Shape("rcx", clears=("rcx", "r10", "r11", "r12", "r13")),
    "SERVTD.PREBIND": _IN_RCX,
}


def _no_session(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    """Refuse: the OP_STATE would have to be one of a migration, which no TD here reaches."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


def _export_immutable(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    td.check_lock(Operand.MIG)
    if not td.attributes & ATTRIBUTE_MIGRATABLE:
        raise Status(StatusCode.TD_NOT_MIGRATABLE)
    raise Status(StatusCode.MIN_MIGS_NOT_CREATED)


def _import_immutable(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    raise Status(StatusCode.MIN_MIGS_NOT_CREATED)


def _restore(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    """Go through a list of GPAs, each of which gets a status; returns how many could not be restored.

    RCX is GPA_LIST_INFO: format 2:0, first entry 11:3, page 51:12, last entry 63:55. An entry has the level 1:0, the
    page 51:12, the operation 53:52 and the status 60:56.
    """
    td.check_lock(Operand.SEPT_TREE, shared=True)
    info = args.rcx
    first, last, hpa = info >> FIRST_SHIFT & INDEX_MASK, info >> LAST_SHIFT & INDEX_MASK, info & LIST_HPA
    if info & (LIST_FORMAT | LIST_RESERVED) or first > last or not module.host.is_shared(hpa, 1 << PAGE_SHIFT):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    qwords, problems = module.memory.qwords, 0
    for number in range(first, last + 1):
        place = (hpa >> 3) + number
        entry = qwords[place]
        status = _entry_status(td, entry)
        qwords[place] = entry & ~(OPERATION | ENTRY_STATUS) | status << STATUS_SHIFT
        if status == ENTRY_INVALID:
            raise Status(StatusCode.OPERAND_INVALID, Operand.GPA_LIST_ENTRY, rcx=_from(info, number))
        problems += status != SKIPPED
        if number < last and module.contention.interrupted(lp):
            raise Status(StatusCode.INTERRUPTED_RESUMABLE, rcx=_from(info, number + 1))
    args.rcx = _from(info, last + 1)
    return problems


def _from(info: int, first: int) -> int:
    return info & ~(INDEX_MASK << FIRST_SHIFT) | (first & INDEX_MASK) << FIRST_SHIFT


def _entry_status(td: Td, entry: int) -> int:
    gpa = entry & LIST_HPA
    if entry & ENTRY_RESERVED_OR_LEVEL:
        return ENTRY_INVALID
    if not entry & IS_OPERATION:
        return SKIPPED
    if gpa >= td.private_limit:
        return ENTRY_INVALID
    index, leaf_entry, reached = td.sept.walk(gpa, 0)
    if reached:
        return WALK_FAILED
    if leaf_entry & sept.ENTRY_LOCK:
        td.sept.qwords[index] = leaf_entry | sept.HOST_PRIORITY
        return ENTRY_BUSY
    return STATE_INCORRECT  # that it was exported


def _unblock_for_writing(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    gpa, level = gpa_and_level(args.rcx, 0, 0)
    entry_index, entry = walk(td, gpa, level)
    check_entry(td, "TDH_EXPORT_UNBLOCKW", entry, level, entry_index)
    raise AssertionError("an entry that is blocked for writing")


def _stream(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    td.check_lock(Operand.MIG)
    raise Status(StatusCode.MAX_MIGS_NUM_EXCEEDED)


def _bind(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    module.td(args.rdx, Operand.RDX).check_other(SERVICE_TD_STATES)
    return _service_td(args)


def _prebind(module: TdxModule, td: Td, args: Args, lp: int) -> int:
    module.host.shared(args.rdx, HASH_ALIGNMENT, Operand.RDX)
    return _service_td(args)


def _service_td(args: Args) -> int:
    if args.r8 >= MAX_SERVICE_TDS:  # the slot
        raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
    raise Status(StatusCode.OPERAND_INVALID, Operand.R9)


AFTER_STATE = {
    "EXPORT.STATE.IMMUTABLE": _export_immutable,
    "IMPORT.STATE.IMMUTABLE": _import_immutable,
    "EXPORT.RESTORE": _restore,
    "EXPORT.UNBLOCKW": _unblock_for_writing,
    "MIG.STREAM.CREATE": _stream,
    "SERVTD.BIND": _bind,
    "SERVTD.PREBIND": _prebind,
}
"""What is left of the leaf functions whose OP_STATE a TD can have here."""


def _register(name: str, shape: Shape) -> None:
    number = SEAMCALL_NUMBERS[f"TDH.{name}"]
    operand = Operand[shape.operand.upper()]
    rest = AFTER_STATE.get(name, _no_session)

    def call(module: TdxModule, args: Args, lp: int) -> int:
        hpa = getattr(args, shape.operand)
        if name == "IMPORT.STATE.IMMUTABLE":
            check_limit_cpuid_maxval(module.processor.rdmsr)
        if name == "SERVTD.BIND" and args.rdx == hpa:  # a TD does not serve itself
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
        if shape.vcpu:
            td = module.vcpu_exclusive(hpa, operand).td
        else:
            td = (module.td_exclusive if shape.exclusive else module.td)(hpa, operand)
        td.check_state(number)
        return rest(module, td, args, lp)

    call.__doc__ = f"TDH.{name}, up to where the feature would begin."
    handler: Handler = call
    leaf(f"TDH.{name}", clears=shape.clears)(handler)


for _name, _shape in SHAPES.items():
    _register(_name, _shape)
