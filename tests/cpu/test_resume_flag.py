# SPDX-License-Identifier: GPL-2.0-or-later
"""RF in the RFLAGS that an event pushes (Intel SDM vol. 3, 17.3.1.1): set by faults, as it is by everything else.

KVM does the same for the exceptions that it injects (kvm_check_and_inject_events: fault-class exceptions but #DB).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from testing.long_mode import CODE, MMIO, STACK, LongModeVm, move, write_cr, wrmsr

RF, TF = 1 << 16, 1 << 8
CR4_OSFXSR_OSXMMEXCPT_PAE = 0x620
FAULTS = {
    "#DE": (0, b"\x31\xc9\xf7\xf1"),  # xor ecx, ecx; div ecx
    "#UD": (6, b"\x0f\x0b"),
    "#UD of UD0": (6, b"\x0f\xff\xc0"),
    "#NM": (7, write_cr(0, 0x80010039) + b"\xd9\xc0"),  # CR0.TS; fld st0
    "#NP": (11, b"\x66\xb8\x30\x00\x8e\xe0"),  # mov fs, 0x30: a descriptor that is not present
    "#GP natively": (13, move(0, 1 << 60) + b"\x8a\x00"),  # not canonical
    "#GP by the kernel": (13, wrmsr(0x277, 2)),
    "#SS": (12, b"\x66\xb8\x30\x00\x8e\xd0"),  # mov ss, 0x30
    "#PF": (14, move(0, 1 << 32) + b"\x8a\x00"),
    "#PF of a fetch": (14, move(0, 1 << 32) + b"\xff\xe0"),
    "#XM": (19, write_cr(4, CR4_OSFXSR_OSXMMEXCPT_PAE)
            + b"\x68\x00\x1d\x00\x00\x0f\xae\x14\x24\x58"  # ldmxcsr: division by zero is not masked
            + b"\x0f\x57\xc9\x6a\x01\x58\xf3\x0f\x2a\xc0\xf3\x0f\x5e\xc1"),  # cvtsi2ss, divss
}  # fmt: skip
OTHERS = {"int3": (3, b"\xcc"), "int 3": (3, b"\xcd\x03"), "int 0x80": (0x80, b"\xcd\x80"), "int 13": (13, b"\xcd\x0d")}


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        struct.pack_into("<Q", made.memory, 0x7030, 0x00CF_1300_0000_FFFF)  # selector 0x30: data, not present
        yield made


def pushed(guest: LongModeVm) -> int:
    """The RFLAGS on the stack of the handler."""
    (rflags,) = struct.unpack_from("<Q", guest.memory, STACK - 24)
    return int(rflags)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_sets_it(guest: LongModeVm, fault: str) -> None:
    vector, code = FAULTS[fault]
    assert guest.run(code) == vector
    assert pushed(guest) & RF
    assert not guest.vcpu.get_regs().rflags & RF, "the handler runs without"


@pytest.mark.parametrize("event", OTHERS)
def test_a_software_interrupt_does_not(guest: LongModeVm, event: str) -> None:
    vector, code = OTHERS[event]
    assert guest.run(code) == vector
    assert not pushed(guest) & RF


def test_nor_does_a_single_step(guest: LongModeVm) -> None:
    guest.start(b"\x90\x90")
    regs = guest.vcpu.get_regs()
    regs.rflags |= TF
    guest.vcpu.set_regs(regs)
    assert guest.outcome() == 1
    assert not pushed(guest) & RF


def test_nor_does_an_nmi(guest: LongModeVm) -> None:
    guest.start(b"\x90")
    guest.vcpu.nmi()
    assert guest.outcome() == 2
    assert not pushed(guest) & RF


def test_a_fault_in_the_emulator(guest: LongModeVm) -> None:
    """An instruction that the kernel emulates, and whose destination the guest's tables do not map."""
    code = move(6, MMIO) + move(7, 1 << 32) + b"\xa4"  # movsb
    guest.start(code)
    outcome = guest.step()
    while outcome.name == "MMIO":
        outcome = guest.step()
    assert guest.vcpu.io_data()[0] == 14
    assert pushed(guest) & RF


@pytest.mark.parametrize("rf", [0, RF])
def test_a_return_with_it_passes_a_breakpoint_once(guest: LongModeVm, rf: int) -> None:
    """A handler returns to an instruction with a breakpoint in DR0: it is met unless RF is set, and the second time."""
    target = CODE + 0x100
    guest.load(b"\x90\xe6\xe1", at=target)
    guest.start(
        move(0, target) + b"\x0f\x23\xc0"  # mov dr0, rax
        + move(0, 1) + b"\x0f\x23\xf8"  # mov dr7, rax: a local breakpoint on execution
        + b"\x6a\x10" + b"\x68" + struct.pack("<I", STACK - 0x100)  # push ss; push rsp
        + b"\x68" + struct.pack("<I", 2 | rf) + b"\x6a\x08" + b"\x68" + struct.pack("<I", target)
        + b"\x48\xcf"  # iretq
    )  # fmt: skip
    assert guest.outcome() == (None if rf else 1)
