# SPDX-License-Identifier: GPL-2.0-or-later
"""Debugging across instructions that KVM carries out, and DR7.GD.

SDM volume 3, 18.3.1.4 "Single-Step Exception Condition" and 18.2.4 "Debug Control Register"; kvm_vcpu_do_singlestep and
handle_dr of Linux 6.16.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import DONE, FAULT_PORT, MMIO, LongModeVm, move

DB, BS, BD, GD, TF, RF = 1, 1 << 14, 1 << 13, 1 << 13, 1 << 8, 1 << 16
READ_DR0 = "0f21c0"
EMULATED = {
    "cpuid": ("0fa2", 0), "rdmsr": ("b91b0000000f32", 5), "wrmsr": ("0f30", 0), "hlt": (None, 0), "out": ("e610", 0),
    "in": ("e410", 0), "invd": ("0f08", 0), "vmcall": ("0f01c1", 0), "mmio read": ("8a06", 0),
    "mmio write": ("8806", 0), "outs": ("6e", 0), "xsetbv": ("0f01d1", 0),
}  # fmt: skip


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        yield made


def finish(guest: LongModeVm) -> int | None:
    """Run until the guest reports something, answering I/O and MMIO: the vector of an exception, or None."""
    for _ in range(4):
        reason, run = guest.step(), guest.vcpu.kvm_run
        if reason is k.Exit.IO and run.io.port >= FAULT_PORT:
            return guest.vcpu.io_data()[0] if run.io.port == FAULT_PORT else None
        assert reason in (k.Exit.IO, k.Exit.MMIO), reason
    raise AssertionError("no end")


@pytest.mark.parametrize("name", [name for name, (code, _) in EMULATED.items() if code])
def test_a_guests_own_step_over_an_instruction_that_exits(guest: LongModeVm, name: str) -> None:
    """#DB comes after that instruction, RIP behind it, DR6.BS set."""
    last = prepare(guest, name, TF)
    assert finish(guest) == DB
    assert saved(guest, 40) == 0x1000 + len(last)
    assert guest.vcpu.get_debugregs().dr6 & BS


@pytest.mark.parametrize("name", [name for name, (code, _) in EMULATED.items() if code])
def test_a_code_breakpoint_on_an_instruction_that_exits(guest: LongModeVm, name: str) -> None:
    """#DB is a fault before it and saves RF as it is: its handler sets RF to go on (SDM volume 3, 18.3.1.1)."""
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[0], debugregs.dr7 = 0x1000, 0x402
    guest.vcpu.set_debugregs(debugregs)
    prepare(guest, name)
    assert finish(guest) == DB
    assert saved(guest, 40) == 0x1000
    assert not saved(guest, 24) & RF
    assert guest.vcpu.get_debugregs().dr6 & 0xF == 1
    guest.reset()
    prepare(guest, name, RF)
    assert finish(guest) is None
    guest.reset()
    prepare(guest, name)
    assert finish(guest) == DB, "the breakpoint is still there"


def saved(guest: LongModeVm, below: int) -> int:
    """Return a word of the frame that the exception pushed, by its place below RSP."""
    return int.from_bytes(guest.memory[0xF000 - below : 0xF000 - below + 8], "little")


def prepare(guest: LongModeVm, name: str, flags: int = 0) -> bytes:
    """Load the instruction, give its registers values, and return its code."""
    code = bytes.fromhex(EMULATED[name][0] or "")
    last = code[5:] if name == "rdmsr" else code
    guest.load(last + b"\x90\x90" + DONE)
    regs = k.kvm_regs(rip=0x1000, rflags=2 | flags, rsp=0xF000, rcx=0x1B, rax=1, rsi=MMIO, rdx=0x10)
    if name == "wrmsr":
        regs.rcx, regs.rdx = 0x8B, 0
    if name == "xsetbv":
        sregs = guest.vcpu.get_sregs()
        sregs.cr4 |= 1 << 18
        guest.vcpu.set_sregs(sregs)
        regs.rcx = regs.rdx = 0
    if name == "outs":
        regs.rsi = 0x9000
    guest.vcpu.set_regs(regs)
    return last


def test_general_detect_is_a_fault_before_mov_dr(guest: LongModeVm) -> None:
    debugregs = guest.vcpu.get_debugregs()
    debugregs.dr7 = 0x400 | GD
    guest.vcpu.set_debugregs(debugregs)
    for code in (READ_DR0, "0f23c0", "0f21f0", "0f23f8"):
        guest.vcpu.set_debugregs(debugregs)
        assert guest.run(move(0, 0) + bytes.fromhex(code)) == DB, code
        saved_rip = int.from_bytes(guest.memory[0xF000 - 40 : 0xF000 - 32], "little")
        assert saved_rip == 0x100A
        after = guest.vcpu.get_debugregs()
        assert after.dr6 & BD
        assert not after.dr7 & GD, "the handler may use the registers"


def test_general_detect_of_a_debugger_is_its_own(guest: LongModeVm) -> None:
    guest.start(bytes.fromhex(READ_DR0))
    guest.vcpu.set_guest_debug(k.KVM_GUESTDBG_ENABLE | k.KVM_GUESTDBG_USE_HW_BP, [0, 0, 0, 0, 0, 0, 0, 0x400 | GD])
    assert guest.step() is k.Exit.DEBUG
    arch = guest.vcpu.kvm_run.debug.arch
    assert (arch.exception, arch.pc, arch.dr6) == (DB, 0x1000, 0xFFFF0FF0 | BD)
    guest.vcpu.set_guest_debug(0)
    assert guest.outcome() is None
