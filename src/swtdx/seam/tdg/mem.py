# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.MEM.PAGE.ACCEPT: the guest takes a pending page, which becomes zero and mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.hardware import Args, ExitReason
from swtdx.seam.lifecycle import LastTdExit
from swtdx.seam.operands import GPA_RESERVED, LEVEL_MASK
from swtdx.seam.pamt import BUSY_OR_USED, OWNER_SHIFT, TYPE_MASK
from swtdx.seam.sept import ACCEPT_COUNTER, FREE, HPA_MASK, LEAF, STATE_MASK, SeptState
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_exit import ExtendedType, Interrupted, asynchronous
from swtdx.seam.tdg.guest_memory import WRITE
from swtdx.seam.tdg.tdcall import RCX, TDCALL_NUMBERS, tdcall_leaf
from swtdx.seam.tdh.mem_build import PAGE_AUG, PAGE_AUGMENTED, R8, REG_TYPE
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.hardware import PageRun
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

STATE_OR_LOCK = STATE_MASK | sept.ENTRY_LOCK | sept.HOST_PRIORITY
PENDING = int(SeptState.PENDING)
BECOME_MAPPED = sept.PENDING_LEAF ^ sept.after("TDG_MEM_PAGE_ACCEPT", sept.PENDING_LEAF)
"""Bits that differ between a pending page and an accepted one: the transition of every 4 KiB page, computed once."""
ACCEPTED = PAGE_AUGMENTED ^ BECOME_MAPPED
PAGE_ACCEPT = TDCALL_NUMBERS["TDG.MEM.PAGE.ACCEPT"]
MAX_LEVEL = 1
PAGES_BETWEEN_LOOKS = 16
"""Of 4 KiB, at an interrupt: to look costs more than to clear."""
_ASYNC_FAULT = LastTdExit.ASYNC_FAULT


@tdcall_leaf("TDG.MEM.PAGE.ACCEPT")
def tdg_mem_page_accept(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Accept a 4 KiB or 2 MiB page.

    A 2 MiB page is zeroed piece by piece. An interrupt stops that: how far it came is kept in the entry, and the guest
    executes the same TDCALL again when it comes back.
    """
    td, memory = vcpu.td, module.memory
    operand = vcpu.context.gpr[RCX]
    level = operand & LEVEL_MASK
    gpa = operand & ~LEVEL_MASK
    if (level and (level > MAX_LEVEL or gpa & 0x1F_FFFF)) or operand & GPA_RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    if gpa >= td.gpa_limit:
        raise td.cannot_walk(gpa)
    index, entry, reached = td.sept.walk(gpa, level)
    # Look first: a guest that boots accepts each of its pages once, and once before the page is there.
    if reached != level or entry & STATE_OR_LOCK != PENDING:
        if entry == FREE and not reached and not level and (page := _touched(module, vcpu, gpa)):
            entry = PAGE_AUGMENTED | page
        else:
            _check(vcpu, args, gpa, level, entry, reached)
    hpa = entry & HPA_MASK
    if level:
        first = hpa
        hpa &= ~ACCEPT_COUNTER
        entry &= ~ACCEPT_COUNTER
        end = hpa + sept.ENTRIES * PAGE_SIZE
        interrupted, lp = module.contention.interrupted, vcpu.lp
        # Zeroing 2 MiB takes long enough to delay the host's interrupts; each call does a page at least.
        for page in range(first + PAGE_SIZE, end, PAGES_BETWEEN_LOOKS * PAGE_SIZE):
            if interrupted(lp):
                memory.clear_range(first, page - first, td.hkid)
                memory.qwords[index] = entry | page & ACCEPT_COUNTER
                raise Interrupted(None, resumes=True)
        memory.clear_range(first, end - first, td.hkid)
    else:
        memory.discard_page(hpa, td.hkid)
    if entry & STATE_MASK == PENDING:
        memory.qwords[index] = entry ^ BECOME_MAPPED
    else:
        memory.qwords[index] = sept.after("TDG_MEM_PAGE_ACCEPT", entry)
    return 0


def _touched(module: TdxModule, vcpu: Vcpu, gpa: int) -> int:
    """Let the host add the page that the guest accepts, without a TD exit.

    Return its HPA, or 0. What is left of TDH.MEM.PAGE.AUG then is the entry, pending, which is the caller's: with the
    module's lock held no call sees it before it is accepted. The TDH.VP.ENTER that would follow the exit must find
    nothing to do: no NMI to inject, no new TLB epoch.
    """
    touches = module.processor.first_touches
    touch = touches.get(vcpu.hpa) if touches else None
    td = vcpu.td
    if touch is None or PAGE_AUG not in td.allowed or td.epoch != vcpu.epoch or vcpu.pending_nmi or vcpu.flush_needed:
        return 0
    pamt, used = module.pamt, td.hpa << OWNER_SHIFT | REG_TYPE

    def aug(hpa: int) -> bool:
        try:
            pamt.take_page(hpa, R8, used)
        except Status:  # TDH.MEM.PAGE.AUG reports it
            return False
        return True

    page = touch(gpa, aug)
    if page:
        td.child_count += 1
        vcpu.context.page_added(page)
        vcpu.last_td_exit = _ASYNC_FAULT
        rest = touch.rest()
        if rest is not None and not td.debug and not module.version.has_own_statuses:
            _arm(module, vcpu, rest, used)
    return page


def _arm(module: TdxModule, vcpu: Vcpu, rest: PageRun, used: int) -> None:
    """Let the processor accept the pages that follow, until the next exit that comes here."""
    td, tree = vcpu.td, vcpu.td.sept

    def settle(pages: int) -> None:
        with module.lock:
            td.child_count += pages

    rest.arm(
        call=PAGE_ACCEPT,
        table=tree.table,
        free=FREE,
        made=ACCEPTED,
        blocks=module.pamt.blocks,
        busy=BUSY_OR_USED,
        typed=TYPE_MASK,
        used=used,
        keyid=td.hkid,
        locked=module.lock.locked,
        same=(
            (td, "allowed", td.allowed),
            (td, "epoch", vcpu.epoch),
            (td, "gpa_limit", td.gpa_limit),
            (vcpu, "pending_nmi", vcpu.pending_nmi),
            (vcpu, "flush_needed", False),
            (tree, "range", tree.range),
            (tree, "table", tree.table),
            (module.memory, "poisoned", 0),
        ),
        settle=settle,
    )
    vcpu.context.page_run = rest


def check_guest_lock(entry: int) -> None:
    """Try an entry's lock for the guest: raises OPERAND_BUSY|RCX, the host-priority form when the host waits for it."""
    if entry & sept.ENTRY_LOCK:
        raise Status(StatusCode.OPERAND_BUSY, Operand.RCX)
    if entry & sept.HOST_PRIORITY:
        raise Status(StatusCode.OPERAND_BUSY_HOST_PRIORITY, Operand.RCX)


def _check(vcpu: Vcpu, args: Args, gpa: int, level: int, entry: int, reached: int) -> None:
    """Handle everything but a pending page at the requested level; returns for the other acceptable state."""
    state = entry & STATE_MASK
    accessible = state in sept.GUEST_ACCESSIBLE
    if reached != level:
        if accessible:
            raise Status(StatusCode.PAGE_ALREADY_ACCEPTED, reached)
        raise violation(vcpu, args, gpa, level, entry, reached)
    check_guest_lock(entry)
    if not entry & LEAF and state != SeptState.FREE:
        raise Status(StatusCode.PAGE_SIZE_MISMATCH, level)
    if accessible:
        raise Status(StatusCode.PAGE_ALREADY_ACCEPTED, level)
    if state not in sept.GUEST_ACCEPTABLE:
        raise violation(vcpu, args, gpa, level, entry, reached)


def violation(
    vcpu: Vcpu,
    args: Args,
    gpa: int,
    level: int,
    entry: int,
    reached: int,
    extended: ExtendedType = ExtendedType.ACCEPT,
) -> Interrupted:
    """Report to the host which page the guest's call was about, and where the Secure EPT ends."""
    leaf = 1 if entry & LEAF else 0
    info = level | reached << 3 | sept.ARCH_STATE[entry & STATE_MASK] << 6 | leaf << 14
    return Interrupted(
        asynchronous(
            vcpu,
            args,
            ExitReason.EPT_VIOLATION,
            qualification=WRITE | (entry & 7) << 3,
            extended=extended | info << 32,
            gpa=gpa,
        )
    )
