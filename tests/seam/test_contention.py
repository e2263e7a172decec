# SPDX-License-Identifier: GPL-2.0-or-later
"""What others hold, interrupt or use up: the try-locks of every leaf function, interrupted ones, no entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import sept
from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Gpr
from testing.seam.fake_host import FakeContext, GuestStep, Host, tdcall

GPA = 0x8000_0000
MIB2 = 1 << 21
BUSY = StatusCode.OPERAND_BUSY
WITH_TDR_IN_RCX = (
    "TDH.MNG.RD", "TDH.MNG.WR", "TDH.MNG.INIT", "TDH.MNG.KEY.CONFIG", "TDH.MNG.KEY.FREEID", "TDH.MNG.VPFLUSHDONE",
    "TDH.MR.FINALIZE", "TDH.MEM.TRACK",
)  # fmt: skip
WITH_TDR_IN_RDX = (
    "TDH.MNG.ADDCX", "TDH.MEM.PAGE.ADD", "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE",
    "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.RD", "TDH.MEM.SEPT.REMOVE",
    "TDH.MEM.RANGE.BLOCK", "TDH.MEM.RANGE.UNBLOCK", "TDH.MEM.RD", "TDH.MEM.WR", "TDH.MR.EXTEND", "TDH.VP.CREATE",
)  # fmt: skip
WITH_TDVPR = ("TDH.VP.ENTER", "TDH.VP.INIT", "TDH.VP.RD", "TDH.VP.WR", "TDH.VP.FLUSH")
STATE_SHARED = (
    "TDH.MNG.RD", "TDH.MNG.WR", "TDH.MEM.TRACK", "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE",
    "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.RD", "TDH.MEM.SEPT.REMOVE",
    "TDH.MEM.RANGE.BLOCK", "TDH.MEM.RANGE.UNBLOCK", "TDH.MEM.RD", "TDH.MEM.WR", "TDH.VP.CREATE",
)  # fmt: skip
TREE_SHARED = (
    "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE", "TDH.MEM.PAGE.PROMOTE",
    "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.RD", "TDH.MEM.RD", "TDH.MEM.WR",
)  # fmt: skip
TREE_EXCLUSIVE = ("TDH.MEM.SEPT.REMOVE", "TDH.MEM.RANGE.BLOCK", "TDH.MEM.RANGE.UNBLOCK")
LEVEL = dict.fromkeys(("TDH.MEM.PAGE.PROMOTE", "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.REMOVE"), 1)


def operands(name: str, tdr: int) -> Any:
    return {"rcx": tdr, "rdx": 1} if name in WITH_TDR_IN_RCX else {"rcx": GPA | LEVEL.get(name, 0), "rdx": tdr}


def refused(host: Host, status: int, name: str, **registers: Any) -> Any:
    """The call ends with this status and has changed nothing."""
    before = host.snapshot()
    got, args = host.call(name, **registers)
    assert got == status
    assert host.snapshot() == before
    return args


@pytest.mark.parametrize("name", WITH_TDR_IN_RCX + WITH_TDR_IN_RDX)
def test_somebody_has_the_td_to_himself(host: Host, name: str) -> None:
    tdr = host.build(attributes=1)
    lock = Operand.RCX if name in WITH_TDR_IN_RCX else Operand.RDX
    registers = operands(name, tdr)
    with host.module.contention.hold_page(tdr, exclusive=True):
        assert host.call(name, **registers)[0] == BUSY | lock
    assert host.call(name, **registers)[0] != BUSY | lock


@pytest.mark.parametrize("name", WITH_TDVPR)
def test_somebody_has_the_virtual_cpu_or_its_td_to_himself(host: Host, name: str) -> None:
    tdr = host.build()
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    with host.module.contention.hold_page(tdvpr, exclusive=True):
        assert host.call(name, rcx=tdvpr, rdx=1)[0] == BUSY | Operand.RCX
    with host.module.contention.hold_page(tdr, exclusive=True):
        assert host.call(name, rcx=tdvpr, rdx=1)[0] == BUSY | Operand.TDR
    assert host.module.vcpus[tdvpr].td is host.module.tds[tdr]


def test_addcx_for_a_virtual_cpu_that_is_held(host: Host) -> None:
    tdr = host.build()
    tdvpr = host.page()
    host.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
    page = host.page()
    with host.module.contention.hold_page(tdvpr):
        assert host.call("TDH.VP.ADDCX", rcx=page, rdx=tdvpr)[0] == BUSY | Operand.RDX
    with host.module.contention.hold_page(tdr, exclusive=True):
        assert host.call("TDH.VP.ADDCX", rcx=page, rdx=tdvpr)[0] == BUSY | Operand.TDR
    with host.module.contention.hold(Operand.OP_STATE, tdr):
        assert host.call("TDH.VP.ADDCX", rcx=page, rdx=tdvpr)[0] == BUSY | Operand.OP_STATE
    host.ok("TDH.VP.ADDCX", rcx=page, rdx=tdvpr)


@pytest.mark.parametrize("name", STATE_SHARED)
def test_the_op_state_is_about_to_change(host: Host, name: str) -> None:
    tdr = host.build(attributes=1)
    with host.module.contention.hold(Operand.OP_STATE, tdr):
        refused(host, BUSY | Operand.OP_STATE, name, **operands(name, tdr))
    with host.module.contention.hold(Operand.OP_STATE, tdr, shared=True):
        assert host.call(name, **operands(name, tdr))[0] != BUSY | Operand.OP_STATE


@pytest.mark.parametrize("name", ["TDH.VP.ENTER", "TDH.VP.INIT", "TDH.VP.RD", "TDH.VP.WR"])
def test_the_op_state_is_about_to_change_under_a_virtual_cpu(host: Host, name: str) -> None:
    tdr = host.build()
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    with host.module.contention.hold(Operand.OP_STATE, tdr):
        refused(host, BUSY | Operand.OP_STATE, name, rcx=tdvpr, rdx=1)


def test_leaf_functions_with_the_tdr_to_themselves_need_no_op_state_lock(host: Host) -> None:
    tdr = host.build()
    host.vcpu(tdr, x2apic_id=0)
    with host.module.contention.hold(Operand.OP_STATE, tdr), host.module.contention.hold(Operand.SEPT_TREE, tdr):
        status, _ = host.call("TDH.MEM.PAGE.ADD", rcx=GPA, rdx=tdr, r8=host.page(), r9=host.page())
        assert status == StatusCode.EPT_WALK_FAILED | Operand.RCX
        assert host.call("TDH.MR.EXTEND", rcx=GPA, rdx=tdr)[0] == StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX
        host.ok("TDH.MR.FINALIZE", rcx=tdr)


@pytest.mark.parametrize("name", TREE_SHARED + TREE_EXCLUSIVE)
def test_the_secure_ept_is_locked(host: Host, name: str) -> None:
    tdr = host.build(attributes=1)
    with host.module.contention.hold(Operand.SEPT_TREE, tdr):
        refused(host, BUSY | Operand.SEPT_TREE, name, **operands(name, tdr))
        status, _ = host.call(name, rcx=1 << 47 | LEVEL.get(name, 0), rdx=tdr)  # not private
        first = name in ("TDH.MEM.RD", "TDH.MEM.WR")
        assert status == (BUSY | Operand.SEPT_TREE if first else StatusCode.OPERAND_INVALID | Operand.RCX)
    with host.module.contention.hold(Operand.SEPT_TREE, tdr, shared=True):
        status, _ = host.call(name, **operands(name, tdr))
        assert (status == BUSY | Operand.SEPT_TREE) == (name in TREE_EXCLUSIVE)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("TDH.MEM.PAGE.AUG", 0), ("TDH.MEM.PAGE.REMOVE", 0), ("TDH.MEM.PAGE.RELOCATE", 0), ("TDH.MEM.SEPT.RD", 0),
        ("TDH.MEM.RANGE.BLOCK", 0), ("TDH.MEM.RANGE.UNBLOCK", 0), ("TDH.MEM.RD", 0), ("TDH.MEM.WR", 0),
        ("TDH.MEM.PAGE.PROMOTE", 1), ("TDH.MEM.PAGE.DEMOTE", 1), ("TDH.MEM.SEPT.ADD", 1), ("TDH.MEM.SEPT.REMOVE", 1),
    ],
)  # fmt: skip
def test_an_entry_is_locked(host: Host, name: str, level: int) -> None:
    tdr = host.build(attributes=1)
    host.add(tdr, GPA)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, level)
    host.memory.qwords[index] = entry | sept.ENTRY_LOCK | sept.HOST_PRIORITY  # another host waits for it, too
    args = refused(host, BUSY | Operand.RCX, name, rcx=GPA | level, rdx=tdr, r8=host.page())
    assert args.rdx == level | sept.ARCH_STATE[entry & sept.STATE_MASK] << 8


@pytest.mark.parametrize("name", ["TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE"])
def test_the_page_is_held(host: Host, name: str) -> None:
    tdr = host.build()
    hpa = host.add(tdr, GPA)
    with host.module.contention.hold_page(hpa):
        refused(host, BUSY | Operand.RCX, name, rcx=GPA, rdx=tdr, r8=host.page())


@pytest.mark.parametrize("name", ["TDH.MEM.SEPT.REMOVE", "TDH.MEM.PAGE.PROMOTE"])
def test_the_secure_ept_page_is_held(host: Host, name: str) -> None:
    tdr = host.build()
    host.add(tdr, GPA)
    entry, _ = host.entry(tdr, GPA, 1)
    with host.module.contention.hold_page(entry & sept.HPA_MASK):
        refused(host, BUSY | Operand.RCX, name, rcx=GPA | 1, rdx=tdr)


@pytest.mark.parametrize(
    ("name", "operand"),
    [("TDH.MNG.CREATE", 1), ("TDH.MNG.ADDCX", 1), ("TDH.VP.CREATE", 1), ("TDH.PHYMEM.PAGE.RECLAIM", 1),
     ("TDH.MEM.PAGE.ADD", 8), ("TDH.MEM.PAGE.AUG", 8), ("TDH.MEM.SEPT.ADD", 8), ("TDH.MEM.PAGE.RELOCATE", 8)],
)  # fmt: skip
def test_the_page_to_be_taken_is_held(host: Host, name: str, operand: int) -> None:
    tdr = host.build() if name != "TDH.MNG.ADDCX" else host.uninitialized()
    page = host.page()
    gpa = GPA
    if name in ("TDH.MEM.PAGE.ADD", "TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.RELOCATE"):
        host.add(tdr, GPA)
        gpa = GPA if name == "TDH.MEM.PAGE.RELOCATE" else GPA + 4096
    elif name == "TDH.MEM.SEPT.ADD":
        gpa = 3
    registers = {"rcx": gpa, "rdx": tdr, "r8": page, "r9": host.page()}
    if operand == 1:
        registers["rcx"] = page
    if name == "TDH.MNG.CREATE":
        registers["rdx"] = 60
    with host.module.contention.hold_page(page):
        refused(host, BUSY | operand, name, **registers)


def test_the_2m_page_to_be_taken_is_held_in_part(host: Host) -> None:
    tdr = host.build()
    host.tables(tdr, GPA, lowest=2)
    hpa = host.page(MIB2)
    with host.module.contention.hold_page(hpa + 5 * 4096):
        refused(host, BUSY | Operand.R8, "TDH.MEM.PAGE.AUG", rcx=GPA | 1, rdx=tdr, r8=hpa)


def test_reclaim_of_a_page_whose_td_is_held(host: Host) -> None:
    tdr = host.build()
    page = host.module.tds[tdr].tdcx[0]
    with host.module.contention.hold_page(tdr, exclusive=True):
        assert host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=page)[0] == BUSY | Operand.TDR


def test_epoch_and_metadata_locks(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    hold = host.module.contention.hold
    with hold(Operand.TD_EPOCH, tdr):
        refused(host, BUSY | Operand.TD_EPOCH, "TDH.MEM.TRACK", rcx=tdr)
        refused(host, BUSY | Operand.TD_EPOCH, "TDH.VP.ENTER", rcx=tdvpr)
    with hold(Operand.TD_EPOCH, tdr, shared=True):
        refused(host, BUSY | Operand.TD_EPOCH, "TDH.MEM.TRACK", rcx=tdr)
        assert host.guest(tdvpr, context)[0] == 1
    timeout = 0x9110000300000011
    value = host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x1110000300000000).r8
    assert value == 1 << 28
    with hold(Operand.METADATA_FIELD, tdr):
        host.ok("TDH.MNG.WR", rcx=tdr, rdx=timeout, r8=20_000, r9=(1 << 64) - 1)  # this one has no lock
        for mask, value, status in (
            (2, 2, BUSY | Operand.METADATA_FIELD),
            (1, 0, StatusCode.METADATA_FIELD_VALUE_NOT_VALID),
        ):
            # The lock is tried when the value is known to be right.
            host.guest(tdvpr, context, tdcall(8, rdx=0x9110000300000017, r8=value, r9=mask))
            assert context.gpr[Gpr.RAX] == status


def test_rtmr_lock(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA))
    with host.module.contention.hold(Operand.RTMR, tdr):
        host.guest(tdvpr, context, call(2, rcx=GPA, rdx=0))
        assert context.gpr[Gpr.RAX] == BUSY | Operand.RTMR
        host.guest(tdvpr, context, call(4, rcx=GPA, rdx=GPA + 1024, r8=0))
        assert context.gpr[Gpr.RAX] == BUSY | Operand.RTMR
    host.guest(tdvpr, context, call(2, rcx=GPA, rdx=0))
    assert context.gpr[Gpr.RAX] == 0


@pytest.mark.parametrize(
    ("bits", "status"),
    [
        (sept.ENTRY_LOCK, BUSY),
        (sept.ENTRY_LOCK | sept.HOST_PRIORITY, BUSY),
        (sept.HOST_PRIORITY, BUSY),  # free, but the host comes first: the guest is not told why
    ],
)
@pytest.mark.parametrize("leaf", [6, 23, 24])
def test_the_guest_meets_a_locked_entry(
    host: Host, call: Callable[..., GuestStep], leaf: int, bits: Any, status: int
) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    host.memory.qwords[index] = entry | bits
    host.guest(tdvpr, context, call(leaf, rcx=GPA, rdx=0, r8=0))
    assert context.gpr[Gpr.RAX] == status | Operand.RCX


def test_a_guest_that_the_host_has_to_wait_for_leaves(host: Host, call: Callable[..., GuestStep]) -> None:
    """HP_LOCK_TIMEOUT after the first refusal for the host's sake, the TDCALL ends and the TD exits, trap-like."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    host.memory.qwords[index] = entry | sept.HOST_PRIORITY

    def later(context: FakeContext) -> int:
        host.processor.tsc += 2_000_000_000  # a second
        return accept(context)

    accept = call(6, rcx=GPA)
    host.guest(tdvpr, context, accept, accept)  # no time has passed
    host.processor.tsc += 2_000_000_000
    host.guest(tdvpr, context, call(1), accept)  # any other TDCALL ends the waiting
    rip = context.rip
    context.queue(later)
    status, args = host.enter(tdvpr, rbx=5)
    assert status == StatusCode.HOST_PRIORITY_BUSY_TIMEOUT
    assert set(args.as_dict().values()) == {0}
    assert (context.gpr[Gpr.RAX], context.rip) == (BUSY | Operand.RCX, rip + context.instruction_length)
    host.guest(tdvpr, context)
    assert context.gpr[Gpr.RAX] == BUSY | Operand.RCX
    assert host.enter(tdvpr | 1 << 52)[0] == StatusCode.OPERAND_INVALID | Operand.RCX  # the last exit was no trap


def test_the_host_can_hint_that_it_has_recovered(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    host.memory.qwords[index] = entry | sept.HOST_PRIORITY
    host.module.tds[tdr].hp_lock_timeout = 0
    context.queue(call(6, rcx=GPA), call(6, rcx=GPA))
    assert host.enter(tdvpr)[0] == StatusCode.HOST_PRIORITY_BUSY_TIMEOUT
    context.queue(1)
    assert host.enter(tdvpr | 1 << 52)[0] == 1
    assert context.gpr[Gpr.RAX] == BUSY | Operand.RCX | 1 << 60


def test_a_host_that_meets_a_locked_entry_comes_before_the_guest(host: Host, call: Callable[..., GuestStep]) -> None:
    """It leaves a mark, for which guests are refused until a host has had the lock."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    host.memory.qwords[index] = entry | sept.ENTRY_LOCK
    assert host.call("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)[0] == BUSY | Operand.RCX
    assert host.memory.qwords[index] == entry | sept.ENTRY_LOCK | sept.HOST_PRIORITY
    host.memory.qwords[index] &= ~sept.ENTRY_LOCK
    host.guest(tdvpr, context, call(6, rcx=GPA))
    assert context.gpr[Gpr.RAX] == BUSY | Operand.RCX
    host.ok("TDH.MEM.SEPT.RD", rcx=GPA, rdx=tdr)
    assert host.memory.qwords[index] == entry
    host.guest(tdvpr, context, call(6, rcx=GPA))
    assert context.gpr[Gpr.RAX] == 0


def test_the_guest_meets_a_locked_tree(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    with host.module.contention.hold(Operand.SEPT_TREE, tdr):
        host.guest(tdvpr, context, call(6, rcx=GPA))
    assert context.gpr[Gpr.RAX] == BUSY | Operand.SEPT_TREE


# --- the module's own locks -------------------------------------------------------------------------------------------


def test_system_lock(cold: Host) -> None:
    hold = cold.module.contention.hold
    names = ["TDH.SYS.INIT", "TDH.SYS.LP.INIT", "TDH.SYS.CONFIG", "TDH.SYS.KEY.CONFIG", "TDH.SYS.UPDATE"]
    with hold(Operand.SYS):
        for name in names:
            refused(cold, StatusCode.SYS_BUSY, name)
    cold.bring_up()
    with hold(Operand.SYS):
        refused(cold, StatusCode.SYS_BUSY, "TDH.SYS.SHUTDOWN")


def test_tdmr_lock(cold: Host) -> None:
    cold.start()
    cold.config(cold.default_tdmr())
    cold.ok("TDH.SYS.KEY.CONFIG")
    with cold.module.contention.hold(Operand.TDMR, 0):
        assert cold.call("TDH.SYS.TDMR.INIT", rcx=0)[0] == BUSY | Operand.RCX
    cold.ok("TDH.SYS.TDMR.INIT", rcx=0)


def test_key_ownership_table_lock(host: Host) -> None:
    hold = host.module.contention.hold
    tdr = host.create()
    with hold(Operand.KOT):
        refused(host, BUSY | Operand.KOT, "TDH.MNG.CREATE", rcx=host.page(), rdx=60)
        refused(host, BUSY | Operand.KOT, "TDH.MNG.VPFLUSHDONE", rcx=tdr)
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)
    with hold(Operand.KOT):
        refused(host, BUSY | Operand.KOT, "TDH.PHYMEM.CACHE.WB")
        refused(host, BUSY | Operand.KOT, "TDH.MNG.KEY.FREEID", rcx=tdr)
    with hold(Operand.WBCACHE, 0):
        refused(host, BUSY | Operand.WBCACHE, "TDH.PHYMEM.CACHE.WB")


def test_pconfig_is_busy_or_finds_no_entropy(cold: Host) -> None:
    contention = cold.module.contention
    cold.start()
    cold.config(cold.default_tdmr())
    with contention.hold(Operand.KET):
        refused(cold, BUSY | Operand.KET, "TDH.SYS.KEY.CONFIG")
    contention.entropy = False
    refused(cold, StatusCode.KEY_GENERATION_FAILED, "TDH.SYS.KEY.CONFIG")
    contention.entropy = True
    cold.ok("TDH.SYS.KEY.CONFIG")
    while cold.ok("TDH.SYS.TDMR.INIT", rcx=0).rdx < 1 << 30:
        pass
    tdr = cold.page()
    cold.ok("TDH.MNG.CREATE", rcx=tdr, rdx=40)
    with contention.hold(Operand.KET):
        refused(cold, BUSY | Operand.KET, "TDH.MNG.KEY.CONFIG", rcx=tdr)
    contention.entropy = False
    refused(cold, StatusCode.KEY_GENERATION_FAILED, "TDH.MNG.KEY.CONFIG", rcx=tdr)


def test_no_entropy(cold: Host) -> None:
    contention = cold.module.contention
    contention.entropy = False
    refused(cold, StatusCode.RND_NO_ENTROPY, "TDH.SYS.INIT")
    contention.entropy = True
    cold.ok("TDH.SYS.INIT")
    contention.entropy = False
    refused(cold, StatusCode.RND_NO_ENTROPY, "TDH.SYS.LP.INIT")


def test_no_entropy_for_a_td(host: Host) -> None:
    contention = host.module.contention
    contention.entropy = False
    refused(host, StatusCode.RND_NO_ENTROPY, "TDH.MNG.CREATE", rcx=host.page(), rdx=60)
    contention.entropy = True
    tdr = host.uninitialized(pages=5)
    contention.entropy = False
    refused(host, StatusCode.RND_NO_ENTROPY, "TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)
    contention.entropy = True
    host.ok("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_cache_write_back_is_interrupted_and_resumed(host: Host) -> None:
    first, second = host.create(), host.create()
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=first)
    host.module.contention.interrupt(0)
    assert host.call("TDH.PHYMEM.CACHE.WB", rcx=0)[0] == StatusCode.INTERRUPTED_RESUMABLE
    assert host.call("TDH.MNG.KEY.FREEID", rcx=first)[0] == StatusCode.WBCACHE_NOT_COMPLETE
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=second)  # too late for the one that is under way
    host.ok("TDH.PHYMEM.CACHE.WB", rcx=1)
    host.ok("TDH.MNG.KEY.FREEID", rcx=first)
    assert host.call("TDH.MNG.KEY.FREEID", rcx=second)[0] == StatusCode.WBCACHE_NOT_COMPLETE
    assert host.call("TDH.PHYMEM.CACHE.WB", rcx=1)[0] == StatusCode.WBCACHE_RESUME_ERROR
    host.ok("TDH.PHYMEM.CACHE.WB", rcx=0)
    host.ok("TDH.MNG.KEY.FREEID", rcx=second)


def test_demote_is_interrupted_and_restarted(host: Host) -> None:
    tdr = host.build()
    host.augment(tdr, GPA, level=1)
    registers = {"rcx": GPA | 1, "rdx": tdr, "r8": host.page()}
    host.module.contention.interrupt(0)
    args = refused(host, StatusCode.INTERRUPTED_RESTARTABLE, "TDH.MEM.PAGE.DEMOTE", **registers)
    assert (args.rcx, args.rdx) == (GPA | 1, tdr)
    host.ok("TDH.MEM.PAGE.DEMOTE", **registers)
    host.module.contention.interrupt(0)
    args = refused(host, StatusCode.INTERRUPTED_RESTARTABLE, "TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)
    assert (args.rcx, args.rdx) == (GPA | 1, tdr)
    host.ok("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)


def test_accept_of_a_large_page_keeps_its_progress(
    host: Host, monkeypatch: pytest.MonkeyPatch, call: Callable[..., GuestStep]
) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    hpa = host.augment(tdr, GPA, level=1)
    host.memory.raw[hpa : hpa + MIB2] = b"\xee" * MIB2
    looks: list[int] = []  # after the first page, and after each 16 more
    done = 1 + 9 * 16

    def interrupted(lp: int) -> bool:
        looks.append(lp)
        return len(looks) == 10

    monkeypatch.setattr(host.module.contention, "interrupted", interrupted)
    context.rip, context.interruptibility = 0x1000, 1
    host.guest(tdvpr, context, call(6, rcx=GPA | 1))
    assert context.rip == 0x1000  # the guest will execute it again
    assert not context.interruptibility  # even if it did in the shadow of STI
    entry, _ = host.entry(tdr, GPA, 1)
    assert entry & sept.STATE_MASK == sept.SeptState.PENDING
    assert (entry & sept.ACCEPT_COUNTER) >> 12 == done
    assert host.memory.raw[hpa : hpa + done * 4096].tobytes() == bytes(done * 4096)
    assert host.memory.raw[hpa + done * 4096] == 0xEE
    host.guest(tdvpr, context, call(6, rcx=GPA | 1))
    assert (context.gpr[Gpr.RAX], context.rip) == (0, 0x1004)
    entry, _ = host.entry(tdr, GPA, 1)
    assert entry == sept.MAPPED_LEAF | hpa
    assert host.memory.raw[hpa : hpa + MIB2].tobytes() == bytes(MIB2)
    assert len(looks) == 10 + 23  # the 512 - done pages: after the first, and after each 16 more
