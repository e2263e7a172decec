# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's floating-point control and exceptions stay its own, although the host's processor computes for it.

Each guest runs in a child. The child must come back, and between the guest's runs it must compute as it always does:
rounding, denormal numbers, and no exception unmasked.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Callable

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import GDT, IDT, Guest, assemble

PATIENCE = 60
HANDLER = 0x110000
DE, MF, XM = 0, 16, 19
NE, OSXMMEXCPT = 1 << 5, 1 << 10
ALL_MASKED, UPWARDS, FLUSH = 0x1F80, 2 << 13, 1 << 15 | 1 << 6

SSE = f"push {ALL_MASKED & ~0x1000 & ~0x200 | UPWARDS | FLUSH}\n ldmxcsr [rsp]\n mov eax, 1\n cvtsi2sd xmm0, eax\n"
"""With divisions by zero and inexact results unmasked."""
X87 = "fninit\n push 0x808\n fldcw [rsp]\n fldz\n fld1\n"
"""With all exceptions but overflows unmasked, a precision of 24 bits, rounding upwards."""


def child(body: Callable[[], None]) -> None:
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def host_is_itself() -> None:
    numbers = [1.0, 3.0, 5e-324, 0.1, 0.2, 0.0]
    assert struct.pack("<d", numbers[0] / numbers[1]) == struct.pack("<Q", 0x3FD5555555555555)
    assert numbers[2] * numbers[0] > numbers[5]
    assert numbers[3] + numbers[4] == 0.30000000000000004
    library = ctypes.CDLL(None)
    assert library.fegetround() == 0  # of the x87 control word
    assert library.fegetexcept() == 0


def with_handlers(source: str) -> Guest:
    """A guest whose exceptions all return to where they came from."""
    guest = Guest(source)
    for vector in range(32):
        gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, 0x10, 0, 0x8E, HANDLER >> 16, 0, 0)
        guest.memory.write(IDT + 16 * vector, gate)
    guest.memory.write(HANDLER, bytes.fromhex("48cf"))  # iretq
    guest.context.cr0 |= NE
    guest.context.cr4 |= OSXMMEXCPT
    return guest


def hammer(guest: Guest, seconds: float = 1.5) -> None:
    """Run and kick as fast as it goes; exceptions that exit are entered again."""
    over = threading.Event()

    def kick() -> None:
        while not over.is_set():
            guest.context.kick()
            time.sleep(0)

    threads = [threading.Thread(target=kick) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < end or runs < 20:
        reason = guest.run()
        runs += 1
        assert reason in (ExitReason.EXTERNAL_INTERRUPT, ExitReason.EXCEPTION_NMI)
        host_is_itself()
    over.set()
    for thread in threads:
        thread.join()


FAULTING = {
    "sse": f"{SSE} pxor xmm1, xmm1\n 1: divsd xmm0, xmm1\n jmp 1b",
    "sse-inexact": f"{SSE} mov eax, 3\n cvtsi2sd xmm1, eax\n 1: divsd xmm0, xmm1\n jmp 1b",
    "x87": f"{X87} 1: fdiv st, st(1)\n fwait\n jmp 1b",
    "x87-mmx": f"{X87} fdiv st, st(1)\n 1: paddb mm0, mm1\n jmp 1b",
    "both": f"{SSE}{X87} pxor xmm1, xmm1\n 1: fnclex\n fdiv st, st(1)\n divsd xmm0, xmm1\n fwait\n jmp 1b",
    "masked": f"push {ALL_MASKED | UPWARDS | FLUSH}\n ldmxcsr [rsp]\n fninit\n push 0xbf\n fldcw [rsp]\n"
    " fldpi\n 1: mov eax, 3\n cvtsi2sd xmm1, eax\n divsd xmm0, xmm1\n fmul st, st\n jmp 1b",
}


@pytest.mark.parametrize("exits", [False, True], ids=["delivered", "exits"])
@pytest.mark.parametrize("source", FAULTING.values(), ids=FAULTING.keys())
def test_the_process_lives_and_computes_whatever_a_guest_unmasks(source: str, *, exits: bool) -> None:
    guest = with_handlers(source)
    guest.context.exception_bitmap = 0xFFFFFFFF if exits else 0
    child(lambda: hammer(guest))


WAITING = [
    "fld1",
    "fadd st, st(1)",
    "fwait",
    "fxch st(1)",
    "fstp qword ptr [rsp]",
    "fcomi st, st(1)",
    "paddb mm0, mm1",
    "phaddw mm0, mm1",
    "emms",
]


@pytest.mark.parametrize("numeric", [True, False], ids=["ne", "no-ne"])
@pytest.mark.parametrize("waiting", WAITING)
def test_a_pending_x87_exception_is_mf_whatever_cr0_says(waiting: str, *, numeric: bool) -> None:
    """VMX fixes CR0.NE to 1 in guests (SDM volume 3, appendix A.7); KVM shows them a shadow."""
    guest = with_handlers(f"{X87} fdiv st, st(1)\n {waiting}\n hlt")
    guest.context.cr0 = guest.context.cr0 & ~NE | (NE if numeric else 0)
    guest.context.exception_bitmap = 0xFFFFFFFF

    def body() -> None:
        assert guest.run() == ExitReason.EXCEPTION_NMI
        assert guest.context.interruption_info & 0xFF == MF
        host_is_itself()

    child(body)


@pytest.mark.parametrize(
    ("operand", "high", "low"),
    [("cx", 0x8000, 0), ("ecx", 1 << 31, 0), ("rcx", 1 << 63, 0), ("cl", 0, 0x8000)],
)
def test_the_quotient_that_does_not_exist_is_de(operand: str, high: int, low: int) -> None:
    guest = with_handlers(f"idiv {operand}\n hlt")
    guest.context.exception_bitmap = 0xFFFFFFFF
    guest.context.gpr[0], guest.context.gpr[1], guest.context.gpr[2] = low, (1 << 64) - 1, high

    def body() -> None:
        assert guest.run() == ExitReason.EXCEPTION_NMI
        assert guest.context.interruption_info & 0xFF == DE

    child(body)


THIRD = " mov eax, 1\n cvtsi2sd xmm0, eax\n mov eax, 3\n cvtsi2sd xmm1, eax\n divsd xmm0, xmm1\n"


@pytest.mark.parametrize(("mode", "value"), [(0, 0x3FD5555555555555), (UPWARDS, 0x3FD5555555555556)])
def test_virtual_cpus_of_a_processor_round_each_as_they_say(mode: int, value: int) -> None:
    """One computes without end, the other way; the other is run between its slices, and looks at its flags too."""
    busy = Guest(f"push {ALL_MASKED | mode ^ UPWARDS | FLUSH}\n ldmxcsr [rsp]\n 1: {THIRD} jmp 1b")
    other = busy.processor.new_context()
    looks = "movq rbx, xmm0\n stmxcsr [rsp]\n mov ecx, [rsp]\n hlt\n jmp 1b"
    source = assemble(f"push {ALL_MASKED | mode}\n ldmxcsr [rsp]\n 1: {THIRD} {looks}", 0x180000)
    busy.memory.write(0x180000, source)
    other.no_ept = True
    for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
        other.set_segment(segment, 0x18, 0, 0xFFFFFFFF, 0xC093)
    other.set_segment(Segment.CS, 0x10, 0, 0xFFFFFFFF, 0xA09B)
    other.set_segment(Segment.GDTR, 0, GDT, 31, 0)
    other.efer, other.cr4, other.cr3, other.cr0, other.rflags = 0xD01, 0x660, busy.context.cr3, 0x80000021, 2
    other.gpr[4], other.rip = 0x88000, 0x180000
    for _ in range(50):
        timer = threading.Timer(0.002, busy.context.kick)
        timer.start()
        assert busy.run() == ExitReason.EXTERNAL_INTERRUPT
        timer.join()
        assert other.run() == ExitReason.HLT
        assert other.gpr[3] == value
        assert other.gpr[1] == ALL_MASKED | mode | 0x20
        assert struct.unpack_from("<I", other.get_fpu(), 24)[0] == ALL_MASKED | mode | 0x20
        other.rip += 1
        host_is_itself()
