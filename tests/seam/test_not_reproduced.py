# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration, service TDs and partitioning, as a module answers that does not use them; and leaving the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.lifecycle import SysState
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tdh.not_reproduced import SHAPES
from swtdx.x86 import Gpr
from testing.seam.fake_host import FakeContext, GuestStep, Host

GPA = 0x8000_0000
SERVTD_RD, SERVTD_WR, VP_ENTER, INVEPT, INVVPID, ATTR_RD, ATTR_WR = 18, 20, 25, 26, 27, 23, 24


@pytest.mark.parametrize(
    ("name", "registers", "migratable", "status"),
    [
        ("EXPORT.STATE.IMMUTABLE", "rcx", False, StatusCode.TD_NOT_MIGRATABLE),
        ("EXPORT.STATE.IMMUTABLE", "rcx", True, StatusCode.MIN_MIGS_NOT_CREATED),
        ("MIG.STREAM.CREATE", "rdx", True, StatusCode.MAX_MIGS_NUM_EXCEEDED),
        ("EXPORT.PAUSE", "rcx", True, StatusCode.OP_STATE_INCORRECT),
        ("IMPORT.MEM", "rdx", True, StatusCode.OP_STATE_INCORRECT),
    ],
)
def test_where_migration_would_begin(host: Host, name: str, registers: str, migratable: bool, status: int) -> None:
    tdr, *_ = host.runnable(attributes=1 << 29 if migratable else 0)
    before = host.snapshot()
    assert host.call(f"TDH.{name}", **{registers: tdr})[0] == status
    assert host.snapshot() == before


def test_import_and_prebinding_begin_before_the_td_does(host: Host) -> None:
    tdr = host.uninitialized()
    assert host.call("TDH.IMPORT.STATE.IMMUTABLE", rcx=tdr)[0] == StatusCode.MIN_MIGS_NOT_CREATED
    assert host.call("TDH.SERVTD.PREBIND", rcx=tdr)[0] == StatusCode.OPERAND_INVALID | Operand.R9
    assert host.call("TDH.SERVTD.PREBIND", rcx=tdr, r8=1)[0] == StatusCode.OPERAND_INVALID | Operand.R8
    for wrong in (1, 32, 1 << 60):  # the hash: 64 bytes in shared memory
        status = host.call("TDH.SERVTD.PREBIND", rcx=tdr, rdx=wrong, r8=1)[0]
        assert status == StatusCode.OPERAND_INVALID | Operand.RDX


def test_a_td_that_would_serve_another(host: Host) -> None:
    """tdh_servtd_bind: not itself, before anything of it is looked at; then its page, its state, the slot, the type."""
    tdr, other = host.uninitialized(), host.uninitialized()
    assert host.call("TDH.SERVTD.BIND", rcx=1, rdx=1)[0] == StatusCode.OPERAND_INVALID | Operand.RDX
    assert host.call("TDH.SERVTD.BIND", rcx=1, rdx=tdr)[0] & 0xFF == Operand.RCX
    status = host.call("TDH.SERVTD.BIND", rcx=tdr, rdx=host.page())[0]
    assert status == StatusCode.PAGE_METADATA_INCORRECT | Operand.RDX
    assert host.call("TDH.SERVTD.BIND", rcx=tdr, rdx=other)[0] == StatusCode.OP_STATE_INCORRECT
    serving, *_ = host.runnable()
    with host.module.contention.hold(Operand.OP_STATE, serving):
        assert host.call("TDH.SERVTD.BIND", rcx=tdr, rdx=serving)[0] == StatusCode.OPERAND_BUSY | Operand.OP_STATE
    status = host.call("TDH.SERVTD.BIND", rcx=tdr, rdx=serving, r8=1)[0]
    assert status == StatusCode.OPERAND_INVALID | Operand.R8
    status, args = host.call("TDH.SERVTD.BIND", rcx=tdr, rdx=serving, r9=1 << 16, r10=5, r11=6, r12=7, r13=8)
    assert status == StatusCode.OPERAND_INVALID | Operand.R9
    assert (args.rcx, args.r10, args.r11, args.r12, args.r13) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "cleared"),
    [
        *((name, ()) for name in ("EXPORT.ABORT", "EXPORT.BLOCKW", "EXPORT.MEM", "EXPORT.PAUSE", "EXPORT.TRACK")),
        *((name, ()) for name in ("IMPORT.ABORT", "IMPORT.COMMIT", "IMPORT.END", "IMPORT.MEM", "IMPORT.TRACK")),
        *((name, ("rdx",)) for name in ("EXPORT.STATE.IMMUTABLE", "EXPORT.STATE.TD", "EXPORT.STATE.VP")),
        *((f"IMPORT.STATE.{name}", ("rcx", "rdx")) for name in ("IMMUTABLE", "TD", "VP")),
        ("EXPORT.UNBLOCKW", ("rcx", "rdx")),
    ],
)
def test_registers_of_a_migration_that_does_not_begin(host: Host, name: str, cleared: tuple[str, ...]) -> None:
    """Each leaf function gives some of its outputs a value before it looks at its operands."""
    given = {"rcx": 3, "rdx": 5, "r8": 7, "r9": 9, "r10": 11}
    status, args = host.call(f"TDH.{name}", **given)
    assert status >> 63
    assert {name: getattr(args, name) for name in given} == {**given, **dict.fromkeys(cleared, 0)}


ALONE = {"EXPORT.PAUSE", "IMPORT.ABORT", "IMPORT.COMMIT", "IMPORT.END", "IMPORT.TRACK"} | {
    "IMPORT.STATE.IMMUTABLE",
    "IMPORT.STATE.TD",
}
CHANGES_STATE = {"EXPORT.ABORT", "EXPORT.TRACK", "EXPORT.STATE.IMMUTABLE", "EXPORT.STATE.TD", "MIG.STREAM.CREATE"}


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.vcpu and name != "SERVTD.BIND"])
def test_locks_of_migration(host: Host, name: str) -> None:
    """The TDR is held alone or shared, the OP_STATE alone, shared or not at all; locks come before the OP_STATE."""
    tdr = host.uninitialized() if name.startswith(("IMPORT", "SERVTD")) else host.runnable()[0]
    register = SHAPES[name].operand
    busy_td = StatusCode.OPERAND_BUSY | Operand[register.upper()]
    busy_state = StatusCode.OPERAND_BUSY | Operand.OP_STATE

    def call() -> int:
        return host.call(f"TDH.{name}", **{register: tdr})[0]

    contention = host.module.contention
    with contention.hold_page(tdr):
        assert (call() == busy_td) == (name in ALONE)
    with contention.hold_page(tdr, exclusive=True):
        assert call() == busy_td
    with contention.hold(Operand.OP_STATE, tdr):
        assert (call() == busy_state) == (name not in ALONE)
    with contention.hold(Operand.OP_STATE, tdr, shared=True):
        assert (call() == busy_state) == (name in CHANGES_STATE)


@pytest.mark.parametrize("name", ["EXPORT.STATE.IMMUTABLE", "MIG.STREAM.CREATE"])
def test_the_lock_of_migration(host: Host, name: str) -> None:
    tdr, *_ = host.runnable()
    with host.module.contention.hold(Operand.MIG, tdr):
        status = host.call(f"TDH.{name}", **{SHAPES[name].operand: tdr})[0]
    assert status == StatusCode.OPERAND_BUSY | Operand.MIG


@pytest.mark.parametrize("name", ["EXPORT.STATE.VP", "IMPORT.STATE.VP"])
def test_a_virtual_cpu_is_migrated_alone(host: Host, name: str) -> None:
    tdr, tdvpr, _ = host.runnable()
    with host.module.contention.hold_page(tdvpr):
        assert host.call(f"TDH.{name}", rcx=tdvpr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
    with host.module.contention.hold_page(tdr, exclusive=True):
        assert host.call(f"TDH.{name}", rcx=tdvpr)[0] == StatusCode.OPERAND_BUSY | Operand.TDR
    assert host.call(f"TDH.{name}", rcx=tdvpr)[0] == StatusCode.OP_STATE_INCORRECT


# --- TDH.EXPORT.RESTORE -----------------------------------------------------------------------------------------------

MIGRATE, CANCEL = 1 << 52, 2 << 52


def gpa_list(host: Host, *entries: int) -> int:
    return host.write(b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(4096, b"\0"))


def test_a_list_of_pages_that_were_never_exported(host: Host) -> None:
    """tdh_export_restore: each entry gets a status and no operation; RAX counts those that are not skipped."""
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    far = 1 << 40
    page = gpa_list(host, GPA | MIGRATE, GPA | CANCEL, 0, far | MIGRATE, GPA | 1 << 2 | 7 << 7 | 3 << 52)
    status, args = host.call("TDH.EXPORT.RESTORE", rcx=page | 4 << 55, rdx=tdr)
    assert (status, args.rcx) == (3, page | 5 << 3 | 4 << 55)
    entries = host.memory.qwords[page >> 3 : (page >> 3) + 5].tolist()
    assert entries == [GPA | 4 << 56, GPA | 1 << 56, 1 << 56, far | 2 << 56, GPA | 1 << 2 | 7 << 7 | 4 << 56]


def test_a_list_is_done_from_any_entry_and_ends_at_the_page(host: Host) -> None:
    tdr, *_ = host.runnable()
    page = gpa_list(host)
    status, args = host.call("TDH.EXPORT.RESTORE", rcx=page | 511 << 3 | 511 << 55, rdx=tdr)
    assert (status, args.rcx) == (0, page | 511 << 55)  # entry 512 does not fit
    assert host.memory.qwords[(page >> 3) + 511] == 1 << 56


@pytest.mark.parametrize("entry", [1, 1 << 3, 1 << 54, 1 << 61, 1 | MIGRATE, 1 << 47 | MIGRATE, 1 << 51 | MIGRATE])
def test_a_list_with_a_bad_entry(host: Host, entry: int) -> None:
    """A level, reserved bits, or an address that is not private; skipped entries need no address."""
    tdr, *_ = host.runnable()
    page = gpa_list(host, 0, entry, MIGRATE)
    status, args = host.call("TDH.EXPORT.RESTORE", rcx=page | 2 << 55, rdx=tdr)
    assert status == StatusCode.OPERAND_INVALID | Operand.GPA_LIST_ENTRY
    assert args.rcx == page | 1 << 3 | 2 << 55
    assert host.memory.qwords[(page >> 3) + 1] == entry & ~(3 << 52) | 15 << 56


@pytest.mark.parametrize("wrong", [1, 7, 1 << 52, 1 << 54, 2 << 3 | 1 << 55])
def test_a_list_that_cannot_be_read(host: Host, wrong: int) -> None:
    tdr, *_ = host.runnable()
    page = gpa_list(host)
    status, args = host.call("TDH.EXPORT.RESTORE", rcx=page | wrong, rdx=tdr)
    assert (status, args.rcx) == (StatusCode.OPERAND_INVALID | Operand.RCX, page | wrong)
    private = 32 << host.processor.platform.physical_address_bits - host.processor.platform.keyid_bits
    status, _ = host.call("TDH.EXPORT.RESTORE", rcx=page | private, rdx=tdr)
    assert status == StatusCode.OPERAND_INVALID | Operand.RCX


def test_a_list_is_interrupted_between_entries_and_goes_on(host: Host) -> None:
    tdr, *_ = host.runnable()
    page = gpa_list(host, MIGRATE, MIGRATE)
    host.module.contention.interrupt(0)
    status, args = host.call("TDH.EXPORT.RESTORE", rcx=page | 1 << 55, rdx=tdr)
    assert (status, args.rcx) == (StatusCode.INTERRUPTED_RESUMABLE, page | 1 << 3 | 1 << 55)
    assert host.call("TDH.EXPORT.RESTORE", rcx=args.rcx, rdx=tdr)[0] == 1
    host.module.contention.interrupt(0)
    assert host.call("TDH.EXPORT.RESTORE", rcx=page, rdx=tdr)[0] == 0  # after the last one it is not looked for


def test_a_list_and_locks(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    page = gpa_list(host, GPA | MIGRATE)
    with host.module.contention.hold(Operand.SEPT_TREE, tdr):
        status = host.call("TDH.EXPORT.RESTORE", rcx=page | 1, rdx=tdr)[0]
        assert status == StatusCode.OPERAND_BUSY | Operand.SEPT_TREE
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    host.memory.qwords[index] = entry | 1 << 11
    assert host.call("TDH.EXPORT.RESTORE", rcx=page, rdx=tdr)[0] == 1
    assert host.memory.qwords[page >> 3] == GPA | 3 << 56
    assert host.memory.qwords[index] == entry | 1 << 11 | 1 << 52  # the host is to have it first


# --- TDG.SERVTD.RD and WR ---------------------------------------------------------------------------------------------

UUID = ("r10", "r11", "r12", "r13")


def handle(host: Host, caller: int, target: int, slot: int = 0) -> int:
    """What TDH.SERVTD.BIND would return: slot and page of the TDR, with the first qword of the service TD's UUID."""
    first = int.from_bytes(host.module.tds[caller].uuid[:8], "little")
    return (target | slot) + first & (1 << 64) - 1


def words(uuid: bytes) -> dict[str, int]:
    return {name: int.from_bytes(uuid[8 * n : 8 * n + 8], "little") for n, name in enumerate(UUID)}


@pytest.mark.parametrize("leaf", [SERVTD_RD, SERVTD_WR])
def test_a_td_that_is_not_bound(host: Host, call: Callable[..., GuestStep], leaf: int) -> None:
    """tdg_servtd_rd_wr: the UUID, then whether it is bound, which is the other TD's fault and told to the host."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    target = host.uninitialized()
    uuid = host.module.tds[target].uuid
    rcx = handle(host, tdr, target)
    gpr = context.gpr
    host.guest(tdvpr, context, call(leaf, rcx=rcx, rdx=9, r8=5, **words(bytes(31) + b"1")))
    assert gpr[Gpr.RAX] == StatusCode.TARGET_UUID_MISMATCH
    host.guest(tdvpr, context, call(leaf, rcx=rcx, rdx=9, r8=5, **words(bytes(32))))
    assert gpr[Gpr.RAX] == StatusCode.TARGET_UUID_UPDATED
    assert {name: gpr[Gpr[name.upper()]] for name in UUID} == words(uuid)
    rip = context.rip
    context.queue(call(leaf, rcx=rcx, rdx=9, r8=5, **words(uuid)))
    status, args = host.enter(tdvpr)
    not_bound = StatusCode.SERVTD_NOT_BOUND
    assert (status, args.rcx, args.rdx, args.r8, args.r9) == (StatusCode.CROSS_TD_TRAP, 0, not_bound, target, 0)
    assert (gpr[Gpr.RAX], gpr[Gpr.R8]) == (not_bound, 0)
    assert gpr[Gpr.RDX] == ((1 << 64) - 1 if leaf == SERVTD_RD else 9)
    assert context.rip > rip  # the TDCALL is done
    with host.module.contention.hold(Operand.SERVTD_BINDINGS, target):
        host.guest(tdvpr, context, call(leaf, rcx=rcx, **words(uuid)))
    assert gpr[Gpr.RAX] == StatusCode.OPERAND_BUSY | Operand.SERVTD_BINDINGS


def test_what_is_no_td(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    page = host.page()
    context.queue(call(SERVTD_RD, rcx=handle(host, tdr, page)))
    status, args = host.enter(tdvpr)
    wrong = StatusCode.PAGE_METADATA_INCORRECT | Operand.TDR
    assert (status, args.rdx, args.r8, context.gpr[Gpr.RAX]) == (StatusCode.CROSS_TD_TRAP, wrong, page, wrong)
    bare = host.create()
    context.queue(call(SERVTD_RD, rcx=handle(host, tdr, bare)))
    status, args = host.enter(tdvpr)
    assert (status, args.rdx) == (StatusCode.CROSS_TD_TRAP, StatusCode.TDCS_NOT_ALLOCATED)
    host.guest(tdvpr, context, call(SERVTD_RD, rcx=handle(host, tdr, page, 1)))
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RCX
    other = host.uninitialized()
    with host.module.contention.hold(Operand.OP_STATE, other):
        host.guest(tdvpr, context, call(SERVTD_RD, rcx=handle(host, tdr, other)))
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_BUSY | Operand.OP_STATE


def test_no_entry_is_blocked_for_writing(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    status, args = host.call("TDH.EXPORT.UNBLOCKW", rcx=GPA, rdx=tdr)
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert args.rdx == 2 << 8


@pytest.mark.parametrize(
    ("leaf", "registers", "status"),
    [
        (VP_ENTER, {"rcx": 1 << 52, "rdx": 8}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (VP_ENTER, {"rcx": 1 << 52, "rdx": 1 << 47}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (VP_ENTER, {"rcx": 1 << 52, "rdx": GPA}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVEPT, {"rcx": 0}, 0),
        (INVEPT, {"rcx": 1}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVEPT, {"rcx": 2}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVVPID, {"rcx": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVVPID, {"rcx": 1 << 52}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_RD, {"rcx": 1 << 47}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA, "rdx": 1, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (ATTR_WR, {"rcx": GPA, "rdx": 0, "r8": 1 << 16}, StatusCode.OPERAND_INVALID | Operand.R8),
        (ATTR_WR, {"rcx": GPA | 3, "rdx": 0, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA + 4096 | 1, "rdx": 0, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA | 1, "rdx": 0, "r8": 0}, 0),
    ],
)
def test_guest_leaf_functions(
    host: Host, call: Callable[..., GuestStep], leaf: int, registers: dict[str, Any], status: int
) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(leaf, **registers))
    assert context.gpr[Gpr.RAX] == status


def test_attributes_tell_size_and_acceptance(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(ATTR_RD, rcx=GPA + 0x5678, rdx=9))
    assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (GPA | 1 | 1 << 62, 0)
    host.guest(tdvpr, context, call(6, rcx=GPA | 1), call(ATTR_RD, rcx=GPA, rdx=9))
    assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (GPA | 1, 0)


def test_attributes_for_a_virtual_machine_without_tables(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr = host.build(pages=7, num_l2_vms=1, attributes=0)
    tdvpr = host.vcpu(tdr, x2apic_id=0, pages=8)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    host.augment(tdr, GPA)
    valid, mapped, mask = 1 << 31, 7 << 16, 0x7FFF << 16
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=mask))
    assert context.gpr[Gpr.RAX] == StatusCode.L2_SEPT_WALK_FAILED | 1 << 16 | 3
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=mapped, r8=mask))  # not valid
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RDX
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=0))  # masked: nothing to set
    assert (context.gpr[Gpr.RAX], context.gpr[Gpr.RDX]) == (0, valid | mapped)
    for illegal in (
        1 << 17,
        1 << 16 | 1 << 23,
        1 << 16 | 1 << 24,
        1 << 18 | 1 << 21,
    ):  # W; SVE; reserved; PWA without R
        host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | illegal, r8=mask))
        assert context.gpr[Gpr.RAX] == StatusCode.PAGE_ATTR_INVALID
        assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (0, 0)
    host.module.tds[tdr].vm_ctls[1] = 1
    context.queue(call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=mask))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.rdx, args.r8) == (48, 2, 2 | (3 << 3 | 1 << 20) << 32, GPA)
    host.guest(tdvpr, context, call(INVVPID, rcx=1 << 52, rdx=0), call(INVEPT, rcx=2))
    assert context.gpr[Gpr.RAX] == 0
    host.guest(tdvpr, context, call(VP_ENTER, rcx=1 << 52, rdx=GPA))
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.L2_VAPIC_GPA


def test_attributes_of_a_smaller_page_are_for_the_host_to_make(host: Host, call: Callable[..., GuestStep]) -> None:
    """ATTR.WR of 4 KiB in a page of 2 MiB exits, as the host has to split it; the walk never gets to the lock."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(6, rcx=GPA | 1))
    context.queue(call(ATTR_WR, rcx=GPA, rdx=0, r8=0))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (48, GPA)
    assert args.rcx == 2 | 7 << 3  # a write; readable, writable, executable
    assert (args.rdx & 0xF, args.rdx >> 32 & 7, args.rdx >> 35 & 7) == (5, 0, 1)


@pytest.mark.parametrize("canonical", [True, False])
def test_a_list_of_addresses_to_flush(host: Host, call: Callable[..., GuestStep], canonical: bool) -> None:
    tdr = host.build(pages=7, num_l2_vms=1, attributes=0)
    tdvpr = host.vcpu(tdr, x2apic_id=0, pages=8)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    hpa = host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA))
    vm, count = 1 << 52, 3 << 52
    host.memory.qwords[(hpa >> 3) + 7] = 0x7FFF_F000 if canonical else 1 << 62
    host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=GPA | 5 | count))
    assert context.gpr[Gpr.RAX] == (0 if canonical else StatusCode.GLA_NOT_CANONICAL)
    assert context.gpr[Gpr.RDX] == (GPA | 8 if canonical else GPA | 5 | count)
    for wrong in (GPA | 511 | 2 << 52, GPA | 1 << 9, 1 << 62, 1 << 47):
        host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=wrong))
        assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RDX
    rip = context.rip
    host.module.contention.interrupt(0)
    host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=GPA | count))
    assert (context.gpr[Gpr.RDX], context.rip) == (GPA | 1 | 2 << 52, rip)
    host.guest(tdvpr, context, call(INVVPID, rcx=vm, rdx=0x7FFF_FFFF_F001 << 9))
    assert context.gpr[Gpr.RAX] == StatusCode.GLA_NOT_CANONICAL


def test_shutdown(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    assert host.call("TDH.SYS.SHUTDOWN", rcx=1)[0] == StatusCode.OPERAND_INVALID | Operand.RCX

    def inside(context: FakeContext) -> int:
        assert host.call("TDH.SYS.SHUTDOWN", lp=1)[0] == StatusCode.SYS_BUSY
        return 1

    context.queue(inside)
    host.enter(tdvpr)
    states = [host.module.state]
    host.ok("TDH.SYS.SHUTDOWN")
    assert [*states, host.module.state] == [SysState.SYS_READY, SysState.SHUTDOWN]
    assert host.call("TDH.MNG.RD", rcx=tdr)[0] == StatusCode.SYS_SHUTDOWN
    host.ok("TDH.SYS.LP.SHUTDOWN")


def test_update_finds_nothing_handed_over(cold: Host) -> None:
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_STATE_INCORRECT
    cold.start()
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_INVALID_HANDOFF
    cold.config(cold.default_tdmr())
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_STATE_INCORRECT


# --- LAST_EXIT_TSC ----------------------------------------------------------------------------------------------------


def test_when_a_virtual_cpu_exited_last(host: Host) -> None:
    """From TDH.VP.INIT on; the host of a debug TD can read it. See tdx_td_l1_l2_dispatcher_common_prologue."""
    _, tdvpr, context = host.runnable(attributes=1)
    first = host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0xA02000030000000A).r8
    assert 0 < first < host.processor.rdtsc()
    context.queue(lambda context: 1)
    host.enter(tdvpr)
    second = host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0xA02000030000000A).r8
    assert first < second < host.processor.rdtsc()
