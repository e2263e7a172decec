# SPDX-License-Identifier: GPL-2.0-or-later
"""Removing private memory: TDH.MEM.RANGE.BLOCK, RANGE.UNBLOCK, MEM.TRACK, PAGE.REMOVE, SEPT.REMOVE; and SEPT.RD.

A mapping that a running TD may have in its TLBs is first blocked, then tracked (MEM.TRACK begins a new epoch, and
every virtual CPU that ran in the old one must leave), then removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf, versioned_leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import IMPORT_IN_PROGRESS
from swtdx.seam.operands import check_entry, check_tracked, contended, gpa_and_level, walk
from swtdx.seam.sept import ANY_BLOCKED, HPA_MASK, STATE_MASK
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tdh.mem_build import L2_REGISTERS, NULL_PAGE, TDR_RESERVED
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

RANGE_BLOCK, RANGE_UNBLOCK = SEAMCALL_NUMBERS["TDH.MEM.RANGE.BLOCK"], SEAMCALL_NUMBERS["TDH.MEM.RANGE.UNBLOCK"]
MEM_TRACK, PAGE_REMOVE = SEAMCALL_NUMBERS["TDH.MEM.TRACK"], SEAMCALL_NUMBERS["TDH.MEM.PAGE.REMOVE"]
SEPT_REMOVE, SEPT_RD = SEAMCALL_NUMBERS["TDH.MEM.SEPT.REMOVE"], SEAMCALL_NUMBERS["TDH.MEM.SEPT.RD"]
MAX_PAGE_LEVEL = 2
TABLE_REMOVED = sept.made_by("TDH_MEM_SEPT_REMOVE")
REMOVED = sept.made_by("TDH_MEM_PAGE_REMOVE")
REMOVED_DURING_IMPORT = sept.made_by("TDH_MEM_PAGE_REMOVE", "import in progress")


def mapped_page(entry: int, level: int) -> int:
    """Return the HPA that an entry points to, without the acceptance progress of a pending page."""
    hpa = entry & HPA_MASK
    return hpa & ~((1 << (12 + 9 * level)) - 1) if entry & sept.LEAF else hpa


@leaf("TDH.MEM.RANGE.BLOCK", clears=("rcx", "rdx"))
def tdh_mem_range_block(module: TdxModule, args: Args, lp: int) -> int:
    """Block a mapping for new translations, and note the epoch."""
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(RANGE_BLOCK)
    gpa, level = gpa_and_level(args.rcx, 0, td.sept.levels - 1)
    entry_index, entry = walk(td, gpa, level, exclusive=True)
    if entry & sept.ENTRY_LOCK:
        raise contended(td, entry, level, entry_index)
    if entry & STATE_MASK in ANY_BLOCKED and td.version.entry_states:
        raise Status(StatusCode.GPA_RANGE_ALREADY_BLOCKED, Operand.RCX, **sept.extended_info(entry, level))
    entry = check_entry(td, "TDH_MEM_RANGE_BLOCK", entry, level, entry_index)
    hpa = mapped_page(entry, level)
    page, _ = module.pamt.index_of(hpa)
    # The epoch of the block decides later whether a virtual CPU can still have the translation (`Td.tracked`).
    module.pamt.block_at(page, td.epoch)
    module.memory.qwords[entry_index] = sept.after("TDH_MEM_RANGE_BLOCK", entry & ~HPA_MASK | hpa)
    td.sept.forget()
    args.rcx = args.rdx = 0
    return SUCCESS


@leaf("TDH.MEM.RANGE.UNBLOCK", clears=("rcx", "rdx"))
def tdh_mem_range_unblock(module: TdxModule, args: Args, lp: int) -> int:
    """Unblock a blocked and tracked mapping."""
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(RANGE_UNBLOCK)
    gpa, level = gpa_and_level(args.rcx, 0, td.sept.levels - 1)
    entry_index, entry = walk(td, gpa, level, exclusive=True)
    entry = check_entry(td, "TDH_MEM_RANGE_UNBLOCK", entry, level, entry_index)
    page, _ = module.pamt.index_of(mapped_page(entry, level))
    required = td.tlb_tracking and entry & STATE_MASK in sept.TLB_TRACKING_REQUIRED
    if required and not td.tracked(module.pamt.epoch_at(page)):
        raise Status(StatusCode.TLB_TRACKING_NOT_DONE, Operand.RCX)
    module.memory.qwords[entry_index] = sept.after("TDH_MEM_RANGE_UNBLOCK", entry)
    args.rcx = args.rdx = 0
    return SUCCESS


@leaf("TDH.MEM.TRACK")
def tdh_mem_track(module: TdxModule, args: Args, lp: int) -> int:
    """Begin a new TLB epoch."""
    td = module.td(args.rcx, Operand.RCX)
    td.check_state(MEM_TRACK)
    td.check_lock(Operand.TD_EPOCH)
    # Only their parity distinguishes two epochs: none of the one before may still be running.
    if td.refcount[1 - (td.epoch & 1)]:
        raise Status(StatusCode.PREVIOUS_TLB_EPOCH_BUSY)
    td.epoch += 1
    return SUCCESS


@leaf("TDH.MEM.PAGE.REMOVE", clears=("rcx", "rdx"))
def tdh_mem_page_remove(module: TdxModule, args: Args, lp: int) -> int:
    """Unmap a page; RCX: its HPA. The content stays, under the TD's key."""
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(PAGE_REMOVE)
    gpa, level = gpa_and_level(args.rcx, 0, MAX_PAGE_LEVEL)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_PAGE_REMOVE", entry, level, entry_index)
    hpa = mapped_page(entry, level)
    page, _ = module.pamt.index_of(hpa)
    if module.pamt.locked(page):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    check_tracked(td, module.pamt, entry, level, page)
    # During an import the entry must show that the page was there, so that it is not imported a second time.
    module.memory.qwords[entry_index] = REMOVED_DURING_IMPORT if td.op_state in IMPORT_IN_PROGRESS else REMOVED
    module.pamt.release(page)
    td.child_count -= 1 << (9 * level)
    args.rcx, args.rdx = hpa, 0
    return SUCCESS


@versioned_leaf("TDH.MEM.SEPT.REMOVE", clears=("rcx", "rdx"), later=L2_REGISTERS)
def tdh_mem_sept_remove(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Take an empty page out of the Secure EPT; RCX: its HPA."""
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(SEPT_REMOVE)
    gpa, level = gpa_and_level(args.rcx, 1, td.sept.levels - 1)
    entry_index, entry = walk(td, gpa, level, exclusive=True)
    entry = check_entry(td, "TDH_MEM_SEPT_REMOVE", entry, level, entry_index)
    hpa = entry & HPA_MASK
    page, _ = module.pamt.index_of(hpa)
    if module.pamt.locked(page):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    check_tracked(td, module.pamt, entry, level, page)
    if module.memory.raw[hpa : hpa + PAGE_SIZE].tobytes() != sept.FREE_PAGE:
        raise Status(StatusCode.EPT_PAGE_NOT_FREE, Operand.RCX, **sept.extended_info(entry, level))
    module.memory.qwords[entry_index] = TABLE_REMOVED
    # A walk that starts at the removed table would read a page that is already in another use.
    td.sept.forget()
    module.pamt.release(page)
    td.child_count -= 1
    args.rcx, args.rdx = hpa, 0
    if version:
        for register in L2_REGISTERS:
            setattr(args, register, NULL_PAGE)
    return SUCCESS


@leaf("TDH.MEM.SEPT.RD", clears=("rcx", "rdx"))
def tdh_mem_sept_rd(module: TdxModule, args: Args, lp: int) -> int:
    """Read a Secure-EPT entry; RCX: the entry as the host may see it, RDX: level and state."""
    attributes = args.rdx & module.version.tdr_flags
    if args.rdx & TDR_RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    td = module.td(args.rdx & ~attributes, Operand.RDX)
    td.check_state(SEPT_RD)
    if attributes and not td.debug:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    gpa, level = gpa_and_level(args.rcx, 0, td.sept.levels - 1)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_SEPT_RD", entry, level, entry_index)
    info = td.version.entry_info(entry, level)
    args.rcx, args.rdx = info["rcx"], info["rdx"]
    if attributes:
        args.r8 = 0  # there are no L2 virtual machines
    return SUCCESS
