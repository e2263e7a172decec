# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing how private memory is mapped: TDH.MEM.PAGE.RELOCATE, PAGE.PROMOTE and PAGE.DEMOTE.

RELOCATE moves a page to another place in physical memory. PROMOTE makes one large page of 512 contiguous smaller ones,
and returns the Secure-EPT page that held their entries; DEMOTE is the reverse. All three remove a translation that a
running TD may have in its TLBs, and require a blocked and tracked mapping as a removal does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf, versioned_leaf
from swtdx.seam.hardware import Args
from swtdx.seam.operands import check_entry, check_tracked, gpa_and_level, walk
from swtdx.seam.pamt import PageSize, PageType
from swtdx.seam.sept import ANY_PENDING, HPA_MASK, STATE_MASK, SeptState
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tdh.mem_build import L2_REGISTERS, NULL_PAGE, TDR_RESERVED
from swtdx.seam.tdh.mem_manage import MAX_PAGE_LEVEL, mapped_page
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

RELOCATE, PROMOTE = SEAMCALL_NUMBERS["TDH.MEM.PAGE.RELOCATE"], SEAMCALL_NUMBERS["TDH.MEM.PAGE.PROMOTE"]
DEMOTE = SEAMCALL_NUMBERS["TDH.MEM.PAGE.DEMOTE"]


@leaf("TDH.MEM.PAGE.RELOCATE", clears=("rcx", "rdx"))
def tdh_mem_page_relocate(module: TdxModule, args: Args, lp: int) -> int:
    """Move a 4 KiB page to another HPA; RCX: the old one. A pending page has no content to move."""
    td, pamt, memory = module.td(args.rdx, Operand.RDX), module.pamt, module.memory
    td.check_state(RELOCATE)
    gpa, level = gpa_and_level(args.rcx, 0, 0)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_PAGE_RELOCATE", entry, level, entry_index)
    old, new = entry & HPA_MASK, args.r8
    if new == old:
        raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
    old_page, _ = pamt.index_of(old)
    if pamt.locked(old_page):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    check_tracked(td, pamt, entry, level, old_page)
    new_page = pamt.free_page(new, Operand.R8)
    # A pending page is zeroed when the guest accepts it, so there is no content yet.
    if entry & STATE_MASK not in ANY_PENDING:
        module.take_page(new, td.hkid, memory.raw[old : old + PAGE_SIZE].tobytes())
        if memory.integrity_broken(old):  # the real module takes the machine check itself; here the next reader does
            memory.break_integrity(new)
    memory.qwords[entry_index] = sept.after("TDH_MEM_PAGE_RELOCATE", entry & ~HPA_MASK | new)
    pamt.assign(new_page, PageType.REG, td.hpa)
    pamt.release(old_page)
    args.rcx, args.rdx = old, 0
    return SUCCESS


@versioned_leaf("TDH.MEM.PAGE.PROMOTE", clears=("rcx", "rdx"), later=L2_REGISTERS)
def tdh_mem_page_promote(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Merge 512 pages into one of the next size; RCX: HPA of the released Secure-EPT page."""
    td, pamt = module.td(args.rdx, Operand.RDX), module.pamt
    td.check_state(PROMOTE)
    gpa, level = gpa_and_level(args.rcx, 1, MAX_PAGE_LEVEL)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_PAGE_PROMOTE", entry, level, entry_index)
    table = entry & HPA_MASK
    table_page, _ = pamt.index_of(table)
    if pamt.locked(table_page):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    check_tracked(td, pamt, entry, level, table_page)
    merged = _merged(module, td, table, entry, level)
    # The last check: the host repeats the call with the same registers, and nothing has been changed.
    if td.version.interrupts_remapping and module.contention.interrupted(lp):
        raise Status(StatusCode.INTERRUPTED_RESTARTABLE, rcx=args.rcx, rdx=args.rdx)
    hpa = merged & HPA_MASK
    if pamt.any_locked(hpa, PageSize(level)):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    pamt.merge(hpa, PageSize(level), td.hpa)
    condition = "pending pages" if merged & STATE_MASK in ANY_PENDING else "mapped pages"
    module.memory.qwords[entry_index] = sept.after("TDH_MEM_PAGE_PROMOTE", entry, condition) | hpa
    td.sept.forget()
    pamt.release(table_page)
    td.child_count -= 1
    args.rcx, args.rdx = table, 0
    if version:
        for register in L2_REGISTERS:
            setattr(args, register, NULL_PAGE)
    return SUCCESS


def _merged(module: TdxModule, td: Td, table: int, entry: int, level: int) -> int:
    """Return the leaf that replaces a table of 512 leaves with equal attributes and contiguous pages.

    Raises OPERAND_BUSY for a locked one, EPT_INVALID_PROMOTE_CONDITIONS with the parent's entry.
    """
    children = module.memory.qwords[table >> 3 : (table >> 3) + sept.ENTRIES].tolist()
    size = 1 << sept.level_shift(level - 1)
    mergeable = (SeptState.MAPPED, SeptState.PENDING) if td.version.promotes_pending else (SeptState.MAPPED,)
    first = expected = mapped_child(children[0], level - 1)
    for child in children:
        if child & sept.ENTRY_LOCK:
            raise sept.locked(entry, level)
        if (
            first & STATE_MASK not in mergeable
            or first & HPA_MASK & (size * sept.ENTRIES - 1)
            or mapped_child(child, level - 1) != expected
        ):
            raise Status(StatusCode.EPT_INVALID_PROMOTE_CONDITIONS, Operand.RCX, **sept.extended_info(entry, level))
        expected += size
    return first


def mapped_child(entry: int, level: int) -> int:
    """Return an entry without its locks, and without the acceptance progress of a large pending page."""
    return entry & ~(sept.ENTRY_LOCK | sept.HOST_PRIORITY | (sept.ACCEPT_COUNTER if level else 0))


@leaf("TDH.MEM.PAGE.DEMOTE", clears=("rcx", "rdx"))
def tdh_mem_page_demote(module: TdxModule, args: Args, lp: int) -> int:
    """Split a large page into 512 of the next smaller size, whose entries go to the Secure-EPT page in R8.

    R9 to R11 come back as they are: without L2 virtual machines their pages are not looked at.
    """
    if args.rdx & TDR_RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    tdr = args.rdx & ~module.version.tdr_flags
    td, pamt, memory = module.td(tdr, Operand.RDX), module.pamt, module.memory
    td.check_state(DEMOTE)
    gpa, level = gpa_and_level(args.rcx, 1, MAX_PAGE_LEVEL)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_PAGE_DEMOTE", entry, level, entry_index)
    hpa = mapped_page(entry, level)
    page, _ = pamt.index_of(hpa)
    check_tracked(td, pamt, entry, level, page)
    if pamt.locked(page):
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    table = args.r8
    table_page = pamt.free_page(table, Operand.R8)
    if td.version.interrupts_remapping and module.contention.interrupted(lp):
        raise Status(StatusCode.INTERRUPTED_RESTARTABLE, rcx=args.rcx, rdx=args.rdx)
    first = (sept.PENDING_LEAF if entry & STATE_MASK in ANY_PENDING else sept.MAPPED_LEAF) | hpa
    size = 1 << sept.level_shift(level - 1)
    children = b"".join((first + number * size).to_bytes(8, "little") for number in range(sept.ENTRIES))
    module.take_page(table, td.hkid, children)
    pamt.assign(table_page, PageType.EPT, td.hpa)
    pamt.split(hpa, PageSize(level), td.hpa)
    td.child_count += 1
    memory.qwords[entry_index] = sept.after("TDH_MEM_PAGE_DEMOTE", entry) | table
    args.rcx = args.rdx = 0
    return SUCCESS
