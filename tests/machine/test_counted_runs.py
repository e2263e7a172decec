# SPDX-License-Identifier: GPL-2.0-or-later
"""A run whose time follows from its instructions is repeated exactly: exits, registers, console."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from swtdx.cpu._engine import GuestContext
from swtdx.cpu.counted import Chance, CountedClock, Happening
from swtdx.cpu.platform import Platform
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.vmm.execution import Execution
from swtdx.vmm.launch import Plan, TdParameters, direct_boot, launch
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run
from testing.bare_processor import assemble
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import MEMORY, plan

SHAPES = {"td": TdParameters(), "vm": None}
PATIENCE = 240

pytestmark = pytest.mark.slow


@dataclass
class Told:
    """What a run did, and what was noted of it."""

    trace: list[tuple[int, int, int, int]] = field(default_factory=list)  # count, RIP, exit reason, registers
    printed: bytearray = field(default_factory=bytearray)
    happenings: list[Happening] = field(default_factory=list)
    outcome: Outcome | None = None
    count: int = 0


def carry_out(
    planned: Plan, told: Told, *, script: Iterable[Happening] | None = None, letters: int = 0, typed: bytes = b""
) -> Told:
    """Run until so many letters are printed, or the script is over; type when the first letter is there."""
    clock = CountedClock(1_700_000_000_000_000_000, script)
    kernel = boot(
        platform=Platform(memory_size=1 << 30, logical_processors=1, report_key=bytes(32)),
        counted=(clock, Chance(b"seed")),
    )

    class Seen(kernel.processor.context_class):  # type: ignore[name-defined, misc]
        def run(self) -> int:
            reason: int = super().run()
            context: GuestContext = self
            told.trace.append((clock.count, context.rip, reason, zlib.crc32(bytes(context.gpr))))
            return reason

    kernel.processor.context_class = Seen
    with Kvm(kernel) as device, launch(device, planned_with(planned, clock)) as machine:
        run = Run(machine, Execution(1))
        clock.deliver = machine.board.type
        clock.note = told.happenings.append
        clock.ended = lambda: run.finish(Outcome(End.UNTIL, "the recorded run ended here"))
        clock.diverged = lambda text: run.finish(Outcome(End.INTERNAL_ERROR, text))
        run.start()
        for _ in range(PATIENCE * 100):
            if run.wait(0.01) is not None:
                break
            if typed and told.printed:
                clock.post(typed)
                typed = b""
            if letters and len(told.printed) >= letters:
                run.finish(Outcome(End.UNTIL, "enough"))
        run.finish(Outcome(End.TIMEOUT, "too long"))
        run.stop()
        clock.finish()
        told.outcome, told.count = run.outcome, clock.count
    return told


def planned_with(planned: Plan, clock: CountedClock) -> Plan:
    from dataclasses import replace

    serial = planned.serial

    def put(data: bytes) -> None:
        clock.printed(data)
        serial(data)

    return replace(planned, serial=put, clock=clock)


_KICK = 1  # EXIT_REASON_EXTERNAL_INTERRUPT (SDM, appendix C): a kick comes when it comes, and changes nothing


def agree(recorded: Told, replayed: Told) -> None:
    """A replay did what was recorded; of the last visit, which ended it, there is no more to see."""
    assert replayed.outcome is not None
    assert replayed.outcome.text == "the recorded run ended here"
    assert replayed.count == recorded.count
    assert replayed.printed == recorded.printed
    ours, theirs = ([visit for visit in told.trace if visit[2] != _KICK] for told in (recorded, replayed))
    most = min(len(ours), len(theirs)) - 1
    assert most > 3
    assert theirs[:most] == ours[:most]
    assert abs(len(ours) - len(theirs)) <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_guest_that_counts_is_repeated_to_the_instruction(shape: str) -> None:
    def made(told: Told) -> Plan:
        return plan(SHAPES[shape], told.printed.extend)

    recorded = Told()
    carry_out(made(recorded), recorded, letters=150)
    assert recorded.happenings[-1].kind == "end"
    assert sum(happening.kind == "check" for happening in recorded.happenings) > 1
    replays = []
    for _ in range(2):
        replayed = Told()
        carry_out(made(replayed), replayed, script=recorded.happenings)
        agree(recorded, replayed)
        replays.append(replayed.trace)
    assert replays[0] == replays[1]


WITH_A_TIMER = """
    lea rax, [rip + gate]
    mov rbx, 0x30000
    lea rcx, [rip + tick]
    mov word ptr [rbx + 16*0x40], cx
    mov ax, cs
    mov word ptr [rbx + 16*0x40 + 2], ax
    mov word ptr [rbx + 16*0x40 + 4], 0x8e00
    shr rcx, 16
    mov word ptr [rbx + 16*0x40 + 6], cx
    shr rcx, 16
    mov dword ptr [rbx + 16*0x40 + 8], ecx
    mov dword ptr [rbx + 16*0x40 + 12], 0
    lidt [rip + gate]
    mov ecx, 0x1b
    rdmsr
    or eax, 0xc00
    wrmsr
    mov ecx, 0x80f
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    mov ecx, 0x83e
    mov eax, 0xb
    wrmsr
    mov ecx, 0x832
    mov eax, 0x20040
    wrmsr
    mov ecx, 0x838
    mov eax, 1000003
    wrmsr
    sti
    xor r8d, r8d
work:
    imul r8, r8, 1103515245
    add r8, 12345
    rdtsc
    add r8, rax
    test r9d, 7
    jnz work
    hlt
    jmp work
tick:
    push rax
    push rcx
    push rdx
    inc r9
    mov eax, r8d
    and eax, 15
    add eax, 65
    mov edx, 0x3f8
    out dx, al
    mov edx, 0x3fd
    in al, dx
    test al, 1
    jz quiet
    mov edx, 0x3f8
    in al, dx
    out dx, al
    add r8, rax
quiet:
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
    .balign 8
gate:
    .word 4095
    .quad 0x30000
"""
"""A periodic timer of the local APIC interrupts what depends on RDTSC; the handler prints, and reads what is typed."""


def test_interrupts_of_a_timer_and_typed_bytes_come_at_the_same_instructions() -> None:
    kernel = bzimage(kernel=bytes(0x200) + assemble("mov rsp, 0x40000\n" + WITH_A_TIMER))
    linux = LinuxBoot(parse(kernel, "a guest with a timer"), b"", "")

    def made(told: Told) -> Plan:
        direct, firmware = direct_boot(linux, MEMORY, 1, td=False)
        return Plan(firmware, MEMORY, 1, None, direct=direct, serial=told.printed.extend)

    recorded = Told()
    carry_out(made(recorded), recorded, letters=200, typed=b"xyz!")
    assert [happening.kind for happening in recorded.happenings].count("typed") == 1
    assert b"x" in recorded.printed
    for _ in range(2):
        replayed = Told()
        carry_out(made(replayed), replayed, script=recorded.happenings)
        agree(recorded, replayed)


def test_a_replay_that_goes_another_way_says_where_and_what() -> None:
    recorded = Told()
    carry_out(plan(None, recorded.printed.extend), recorded, letters=150)
    changed = list(recorded.happenings)
    at = next(number for number, happening in enumerate(changed) if happening.kind == "check")
    rip, _, console = changed[at].data.split()
    changed[at] = Happening(changed[at].moment, "check", f"{rip} 00000000 {console}")
    replayed = Told()
    carry_out(plan(None, replayed.printed.extend), replayed, script=changed)
    assert replayed.outcome is not None
    assert f"the replay diverged: at instruction {changed[at].moment.count:,} " in replayed.outcome.text
    assert "registers" in replayed.outcome.text
    assert "RIP" not in replayed.outcome.text
