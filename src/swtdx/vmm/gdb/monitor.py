# SPDX-License-Identifier: GPL-2.0-or-later
"""``monitor`` commands: text in, text out. Only what gdb cannot ask for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.vmm.gdb.target import AccessError
from swtdx.vmm.outcome import End, Outcome

if TYPE_CHECKING:
    from swtdx.vmm.gdb.stub import Stub

_WORDS_PER_LINE = 2
_MOST_BYTES = 1024


def answer(stub: Stub, line: str) -> str:
    """Carry ``line`` out; what to print."""
    words = line.split()
    if not words:
        return _help(stub, [])
    command = _COMMANDS.get(words[0])
    if command is None:
        return f"{words[0]!r} is not a command; `monitor help` lists them\n"
    try:
        return command[1](stub, words[1:])
    except AccessError as error:
        return f"{error}\n"
    except ValueError:
        return f"usage: {command[0]}\n"


def _help(stub: Stub, words: list[str]) -> str:
    """Commands."""
    return "".join(f"{usage:<24} {function.__doc__}\n" for usage, function in _COMMANDS.values())


def _info(stub: Stub, words: list[str]) -> str:
    """The machine: what it is, how long it ran, its vCPUs and memory."""
    machine, run = stub.machine, stub.run
    plan = machine.plan
    kind = "ordinary VM" if plan.td is None else "debug TD"
    lines = [f"{kind}, {len(machine.vcpus)} vCPU, {plan.memory_size >> 20} MiB, ran {run.seconds:.1f} s"]
    for number in range(len(machine.vcpus)):
        values = stub.target.registers(number)
        lines.append(
            f"vCPU {number} (thread {number + 1}): rip {values['rip']:#x}, cr0 {values['cr0']:#x}, "
            f"cr3 {values['cr3']:#x}, cr4 {values['cr4']:#x}, efer {values['efer']:#x}"
        )
    lines += [
        f"memory {slot.gpa:#x}-{slot.gpa + slot.length - 1:#x}{'' if slot.guest_memfd is None else ', private half'}"
        for slot in machine.slots.slots
    ]
    lines += [f"MRTD {digest.hex()} ({order.value})" for order, digest in machine.mrtd.items()]
    exits = ", ".join(f"{name} {count:,}" for name, count in run.exits.items())
    return "\n".join([*lines, f"exits: {exits or 'none'}"]) + "\n"


def _translate(stub: Stub, words: list[str]) -> str:
    """The guest-physical address of a linear one, in the current thread."""
    (text,) = words
    return f"{stub.target.translate(stub.thread, int(text, 0)):#x}\n"


def _xp(stub: Stub, words: list[str]) -> str:
    """Guest-physical memory (16 bytes if not told how many)."""
    if not 1 <= len(words) <= 2:
        raise ValueError
    gpa = int(words[0], 0)
    length = int(words[1], 0) if len(words) == 2 else 16
    if not 0 < length <= _MOST_BYTES or gpa < 0:
        raise ValueError
    data = stub.breakpoints.hide(gpa, stub.target.read(gpa, length))
    step = 8 * _WORDS_PER_LINE
    return "".join(
        f"{gpa + offset:#018x}: {data[offset : offset + step].hex(' ')}\n" for offset in range(0, length, step)
    )


def _quit(stub: Stub, words: list[str]) -> str:
    """End the run."""
    stub.run.finish(Outcome(End.LEFT, "the debugger ended the run"))
    return "the run is over\n"


_COMMANDS: dict[str, tuple[str, Callable[[Stub, list[str]], str]]] = {
    "help": ("help", _help),
    "info": ("info", _info),
    "translate": ("translate ADDRESS", _translate),
    "xp": ("xp ADDRESS [BYTES]", _xp),
    "quit": ("quit", _quit),
}
_help.__doc__ = "This list."
