# SPDX-License-Identifier: GPL-2.0-or-later
"""Adding private memory: TDH.MEM.SEPT.ADD, MEM.PAGE.ADD, MR.EXTEND, MR.FINALIZE and MEM.PAGE.AUG.

Before the TD is finalized pages are added with content and measured; afterwards they are augmented: pending, without
content, until the guest accepts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import measurement, sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf, versioned_leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import Event
from swtdx.seam.measurement import CHUNK_SIZE, MR_EXTEND_BLOCK, extension
from swtdx.seam.operands import (
    GPA_RESERVED,
    LEVEL_MASK,
    check_entry,
    check_leaf,
    check_state,
    gpa_and_level,
    walk,
    walk_failed,
)
from swtdx.seam.pamt import LOCK_MASK, OWNER_SHIFT, TYPE_SHIFT, PageType
from swtdx.seam.sept import FREE, HPA_MASK, STATE_MASK, SeptState
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.x86 import PAGE_OFFSET_MASK, PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

SEPT_ADD, PAGE_ADD = SEAMCALL_NUMBERS["TDH.MEM.SEPT.ADD"], SEAMCALL_NUMBERS["TDH.MEM.PAGE.ADD"]
PAGE_AUG = SEAMCALL_NUMBERS["TDH.MEM.PAGE.AUG"]
MR_EXTEND, MR_FINALIZE = SEAMCALL_NUMBERS["TDH.MR.EXTEND"], SEAMCALL_NUMBERS["TDH.MR.FINALIZE"]

MAPPED = int(SeptState.MAPPED)
TABLE_ADDED = sept.made_by("TDH_MEM_SEPT_ADD")
PAGE_ADDED = sept.made_by("TDH_MEM_PAGE_ADD")
PAGE_AUGMENTED = sept.made_by("TDH_MEM_PAGE_AUG")
TDR_RESERVED = 0xFFF0_0000_0000_0FFE
NULL_PAGE = (1 << 64) - 1
PAGE_NOT_USED = 1 << 63
L2_REGISTERS = ("r9", "r10", "r11")
CHUNK_MASK = measurement.CHUNK_SIZE - 1
REG = PageType.REG
# Looked up once: `augment` runs for each page of a TD.
REG_TYPE = int(REG) << TYPE_SHIFT
R8 = Operand.R8


@versioned_leaf("TDH.MEM.SEPT.ADD", clears=("rcx", "rdx"))
def tdh_mem_sept_add(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Add a page of the Secure EPT under the entry at the given level.

    Version 1 may find the page already there (ALLOW_EXISTING), and has R8 to R11 back: -1 for a page that was used,
    bit 63 for one that was not needed.
    """
    if version:
        for register in ("r8", *L2_REGISTERS):  # what comes back on every path
            if getattr(args, register) != NULL_PAGE:
                setattr(args, register, getattr(args, register) & ~PAGE_NOT_USED)
    if args.rdx & TDR_RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    allow_existing = args.rdx & module.version.tdr_flags
    td = module.td(args.rdx & ~allow_existing, Operand.RDX)
    td.check_state(SEPT_ADD)
    gpa, level = gpa_and_level(args.rcx, 1, td.sept.levels - 1)
    entry_index, entry = walk(td, gpa, level)
    entry = check_entry(td, "TDH_MEM_SEPT_ADD", entry, level, entry_index)
    # Two host threads may add the same table; with ALLOW_EXISTING the second one succeeds and keeps its page.
    existing = entry & STATE_MASK != SeptState.FREE
    page = args.r8
    if page == NULL_PAGE:
        if not version:
            raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
        if entry & STATE_MASK != SeptState.NL_MAPPED:
            raise sept.wrong_state(entry, level)
    elif existing and not allow_existing:
        raise sept.wrong_state(entry, level)
    page &= ~PAGE_NOT_USED
    number = 0 if existing else module.pamt.free_page(page, Operand.R8)
    if version:
        _refuse_l2_pages(td, args, level)
    if not existing:
        module.take_page(page, td.hkid, sept.FREE_PAGE)
        module.pamt.assign(number, PageType.EPT, td.hpa)
        td.child_count += 1
        module.memory.qwords[entry_index] = TABLE_ADDED | page
    args.rcx = args.rdx = 0
    if version:
        args.r8 = args.r8 | PAGE_NOT_USED if existing else NULL_PAGE
    return SUCCESS


def _refuse_l2_pages(td: Td, args: Args, level: int) -> None:
    """Refuse pages for the Secure EPT of L2 virtual machines: those that exist have no tables to put them in."""
    for vm, register in enumerate(L2_REGISTERS, 1):
        if getattr(args, register) == NULL_PAGE:
            continue
        if vm > td.num_l2_vms:
            raise Status(StatusCode.OPERAND_INVALID, Operand.R8 + vm)
        raise Status(StatusCode.L2_SEPT_WALK_FAILED, vm << 16 | level)


@leaf("TDH.MEM.PAGE.ADD", clears=("rcx", "rdx"))
def tdh_mem_page_add(module: TdxModule, args: Args, lp: int) -> int:
    """Add a page with content copied from the host, and measure its address."""
    # Exclusive: the measurement is one stream, and two calls at once would have no order.
    td = module.td_exclusive(args.rdx, Operand.RDX)
    if PAGE_ADD not in td.allowed:
        td.check_state(PAGE_ADD)
    gpa, hpa = args.rcx, args.r8
    if gpa & PAGE_OFFSET_MASK or gpa >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    entry_index, entry, level = td.sept.walk(gpa, 0)
    if level:
        raise walk_failed(td, entry, level)
    if entry & STATE_MASK != SeptState.FREE:
        check_state(td, "TDH_MEM_PAGE_ADD", entry, 0)
    source = module.host.shared(args.r9, PAGE_SIZE, Operand.R9)
    page = module.pamt.free_page(hpa, Operand.R8)
    # Read before the page gets its key: source and target may be the same page, added in place.
    content = module.read_host(source, PAGE_SIZE)
    module.memory.set_key(hpa, td.hkid)
    module.memory.raw[hpa : hpa + PAGE_SIZE] = content
    module.pamt.assign(page, REG, td.hpa)
    td.child_count += 1
    module.memory.qwords[entry_index] = PAGE_ADDED | hpa
    measurement.page_added(td, gpa)
    args.rcx = args.rdx = 0
    return SUCCESS


@leaf("TDH.MR.EXTEND", clears=("rcx", "rdx"))
def tdh_mr_extend(module: TdxModule, args: Args, lp: int) -> int:
    """Measure 256 bytes of a page that was added."""
    # Look first (see the package's docstring): this leaf runs sixteen times for each page of an image.
    td, memory = module.tds.get(args.rdx), module.memory
    if td is None or memory.qwords[td.pamt_index] & LOCK_MASK:
        td = module.td_exclusive(args.rdx, Operand.RDX)
    if MR_EXTEND not in td.allowed:
        td.check_state(MR_EXTEND)
    gpa = args.rcx
    if gpa & CHUNK_MASK or gpa >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    _, entry, level = td.sept.walk(gpa, 0)
    if entry & STATE_MASK != MAPPED:
        check_leaf(td, entry, level)
        raise Status(StatusCode.EPT_ENTRY_NOT_PRESENT)
    # The walk to level 0 may end at a large page.
    offset = (1 << (12 + 9 * level)) - 1 if level else PAGE_OFFSET_MASK
    hpa = entry & HPA_MASK & ~offset | gpa & offset
    td.mrtd_context.update(extension(MR_EXTEND_BLOCK, gpa, memory.raw[hpa : hpa + CHUNK_SIZE].tobytes()))
    args.rcx = args.rdx = 0
    return SUCCESS


@leaf("TDH.MR.FINALIZE")
def tdh_mr_finalize(module: TdxModule, args: Args, lp: int) -> int:
    """Complete the initial image: MRTD is final and the TD can run."""
    td = module.td_exclusive(args.rcx, Operand.RCX)
    td.check_state(MR_FINALIZE)
    if not td.num_vcpus and td.version.finalize_needs_vcpus:
        raise Status(StatusCode.NO_VCPUS)
    measurement.finish(td)
    td.advance(Event.MR_FINALIZE)
    return SUCCESS


@leaf("TDH.MEM.PAGE.AUG", clears=("rcx", "rdx"))
def tdh_mem_page_aug(module: TdxModule, args: Args, lp: int) -> int:
    """Map a page as pending; its content is not touched until the guest accepts it."""
    # Look first: a guest that boots touches each of its pages once. The TDR is only shared, so no lock is tried.
    td = module.tds.get(args.rdx) or module.td(args.rdx, Operand.RDX)
    if PAGE_AUG not in td.allowed:
        td.check_state(PAGE_AUG)
    rcx, hpa = args.rcx, args.r8
    level = rcx & LEVEL_MASK
    if level:
        gpa, level = gpa_and_level(rcx, 0, 1)
    elif rcx & GPA_RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    else:
        gpa = rcx
    if gpa >= td.gpa_limit:
        raise td.cannot_walk(gpa)
    entry_index, entry, reached = td.sept.walk(gpa, level)
    if reached != level:
        raise walk_failed(td, entry, reached)
    if entry != FREE:
        check_entry(td, "TDH_MEM_PAGE_AUG", entry, level, entry_index)
    augment(module, td, entry_index, hpa, level)
    args.rcx = args.rdx = 0
    return SUCCESS


def augment(module: TdxModule, td: Td, entry_index: int, hpa: int, level: int = 0) -> None:
    """Map a page as pending by a free entry. Raises the Status of the first check of the page that fails."""
    pamt = module.pamt
    if level:
        page = pamt.free_large_page(hpa, R8)
        td.child_count += sept.ENTRIES
        pamt.assign(page, REG, td.hpa)
    else:
        pamt.take_page(hpa, R8, td.hpa << OWNER_SHIFT | REG_TYPE)
        td.child_count += 1
    td.sept.qwords[entry_index] = PAGE_AUGMENTED | hpa
