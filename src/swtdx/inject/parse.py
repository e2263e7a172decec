# SPDX-License-Identifier: GPL-2.0-or-later
r"""What a person types, read into an `Injection`.

An injection is ``TARGET: ANSWER [WHEN]...``::

    TDH.MEM.PAGE.AUG: OPERAND_BUSY @3                   the third call
    TDH.MEM.PAGE.AUG: OPERAND_BUSY|SEPT_TREE every 10   the 10th, the 20th, ...
    TDH.VP.ENTER: OPERAND_BUSY 1% seed 7                one in a hundred, the same ones each time
    TDH.MEM.PAGE.AUG: 0xC0000B0D00000001 gpa 0x80000000-0x80200000
    KVM_TDX_INIT_VM: EIO @1-2                           the first two
    KVM_RUN: EINTR @100+                                from the hundredth on

TARGET is a leaf function that a host calls, an ioctl, or a sub-command of KVM_MEMORY_ENCRYPT_OP. ANSWER is a status by
name (of one that comes with an operand the first documented one is meant, unless it is named) or by number, or one of
Linux's own for a SEAMCALL that does not reach the module; of an ioctl it is an errno.

>>> injection = parse("tdh_mem_page_aug: OPERAND_BUSY @3")
>>> injection.target, hex(injection.answer), injection.when.first, injection.when.last
('TDH.MEM.PAGE.AUG', '0x8000020000000002', 3, 3)
>>> parse("KVM_RUN: EINTR every 100").answer
4
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from swtdx.cpu.vmx import ExitReason
from swtdx.explain import entry_rules, leaves
from swtdx.explain.status import parse_status
from swtdx.inject.injection import Injection, InjectionError, Line, When
from swtdx.inject.line import GPA_OF_IOCTL, gpa_operand
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.status import DETAILS_L2_MASK, Operand, StatusCode
from swtdx.uapi.dialect import TdxCommand
from swtdx.uapi.kvm import REQUESTS

FORM = "write LEAF: STATUS or IOCTL: ERRNO, and when, as in TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"
COMMANDS = {f"KVM_TDX_{command.name}": int(command) for command in TdxCommand}
NOT_ENTERED = {
    "SEAMCALL_VMFAILINVALID": 0x8000FF00_FFFF0000,
    "SEAMCALL_GP": 0x8000FF00_0000000D,
    "SEAMCALL_UD": 0x8000FF00_00000006,
}
"""Statuses that Linux makes up where the instruction fails: no module, VMX off."""
_COUNT = re.compile(r"@(\d{1,18})(?:(\+)|-(\d{1,18}))?", re.ASCII)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)%", re.ASCII)
_ADDRESSES = 1 << 52


def parse(text: str) -> Injection:
    """Read one injection. Raises `InjectionError`."""
    target, colon, rest = text.partition(":")
    words = rest.replace(",", " ").split()
    if not colon or not target.strip() or not words:
        raise _error(text, FORM)
    found = _aimed(text, target.strip(), words[0])
    return replace(found, when=_when(text, found, words[1:]))


def parse_all(texts: Iterable[str]) -> tuple[Injection, ...]:
    """Read several. Raises `InjectionError`."""
    return tuple(parse(text) for text in texts)


def _error(text: str, why: str) -> InjectionError:
    return InjectionError(f"{text!r}: {why}")


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# --- Target and answer ------------------------------------------------------------------------------------------------


def _aimed(text: str, target: str, answer: str) -> Injection:
    leaf = target.upper().replace("_", ".")
    if leaf in SEAMCALL_NUMBERS:
        return Injection(Line.SEAMCALL, leaf, SEAMCALL_NUMBERS[leaf], _status(text, leaf, answer), text)
    name = target.upper()
    if name in COMMANDS:
        return Injection(Line.IOCTL, name, COMMANDS[name], _errno(text, name, answer), text, is_command=True)
    if name in REQUESTS:
        return Injection(Line.IOCTL, name, int(REQUESTS[name]), _errno(text, name, answer), text)
    if leaf in leaves():
        raise _error(text, f"{leaf} is called by guests; only SEAMCALLs (TDH...) and ioctls can be made to fail")
    dotted = _near(leaf, SEAMCALL_NUMBERS) if leaf.startswith("TD") else ""
    near = dotted or _near(name, (*COMMANDS, *REQUESTS))
    raise _error(text, f"there is no leaf function or ioctl {target!r}{near}")


def _status(text: str, leaf: str, answer: str) -> int:
    name, bar, operand = answer.upper().removeprefix("TDX_").partition("|")
    if not bar and name in NOT_ENTERED:
        return NOT_ENTERED[name]
    if operand in ExitReason.__members__ and (code := parse_status(name)) is not None:
        status: int | None = code | ExitReason[operand]
    else:
        status = parse_status(answer)
    if status is None:
        raise _error(text, _no_status(leaf, name, operand))
    if not 0 < status < 1 << 64:
        raise _error(text, f"{answer} is not a failure of {leaf}: give a status other than 0, within 64 bits")
    if not bar and not status & DETAILS_L2_MASK and name in StatusCode.__members__:
        return status | _documented_operand(leaf, name)
    return status


def _no_status(leaf: str, name: str, operand: str) -> str:
    if name in errno.errorcode.values():
        return f"{name} is an errno, and {leaf} is a leaf function: give a completion status, as OPERAND_BUSY"
    if operand and parse_status(name) is not None:
        return f"there is no operand {operand}{_near(operand, Operand.__members__)}"
    documented = {rule.status for rule in leaves()[leaf]}
    return f"there is no status {name}{_near(name, documented) or _near(name, StatusCode.__members__)}"


def _documented_operand(leaf: str, name: str) -> int:
    """Return the operand of the first check of the leaf function that fails with this status; 0 if it has none."""
    for rule in (*entry_rules(leaf), *leaves()[leaf]):
        if rule.status == name:
            return int(Operand[rule.operand]) if rule.operand in Operand.__members__ else 0
    return 0


def _errno(text: str, target: str, answer: str) -> int:
    name = answer.upper().removeprefix("-")
    numbers = {each: number for number, each in errno.errorcode.items()}
    if name in numbers:
        return numbers[name]
    if name.isdecimal() and int(name) in errno.errorcode:
        return int(name)
    if parse_status(answer) is not None:
        raise _error(text, f"{target} is an ioctl: it fails with an errno, as EIO, and not with {answer}")
    raise _error(text, f"there is no errno {answer}{_near(name, numbers)}")


# --- When -------------------------------------------------------------------------------------------------------------


def parse_when(text: str, words: Sequence[str]) -> When:
    """Read conditions other than an address: ``@3``, ``every 10``, ``1%``, ``seed 7``. Raises `InjectionError`."""
    return _when(text, None, words)


def _when(text: str, found: Injection | None, words: Sequence[str]) -> When:
    when, rest = When(), list(words)
    while rest:
        word = rest.pop(0)
        if match := _COUNT.fullmatch(word):
            first = int(match[1])
            last = None if match[2] else int(match[3] or first)
            if first < 1 or (last is not None and last < first):
                raise _error(text, f"{word}: calls are counted from 1, and a range ends after it begins")
            when = replace(when, first=first, last=last)
        elif match := _PERCENT.fullmatch(word):
            when = replace(when, chance=_chance(text, word, float(match[1]) / 100))
        elif word.lower() in _KEYWORDS and rest and (found is not None or word.lower() != "gpa"):
            when = _KEYWORDS[word.lower()](text, found, when, rest.pop(0))
        else:
            address = "" if found is None else ", gpa 0x1000-0x2000"
            raise _error(text, f"{word} does not say when: @3, @3-5, @3+, every 10, 1%, seed 7{address}")
    return when


def _chance(text: str, word: str, chance: float) -> float:
    if not 0 < chance <= 1:
        raise _error(text, f"{word}: a probability is above 0 and at most 100%")
    return chance


def _whole(text: str, word: str, lowest: int) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        value = -1
    if not lowest <= value < 1 << 64:
        raise _error(text, f"{word} is not a valid number here: {lowest} or more")
    return value


def _every(text: str, found: Injection | None, when: When, word: str) -> When:
    return replace(when, every=_whole(text, word, 1))


def _seed(text: str, found: Injection | None, when: When, word: str) -> When:
    return replace(when, seed=_whole(text, word, 0))


def _gpa(text: str, found: Injection | None, when: When, word: str) -> When:
    assert found is not None
    if found.line is Line.SEAMCALL and gpa_operand(found.number) is None:
        raise _error(text, f"{found.target} takes no guest physical address")
    if found.line is Line.IOCTL and found.target not in GPA_OF_IOCTL:
        raise _error(text, f"{found.target} takes no guest physical address; {', '.join(GPA_OF_IOCTL)} do")
    low, dash, high = word.partition("-")
    start = _whole(text, low, 0)
    end = _whole(text, high, 0) if dash else (start & ~0xFFF) + 0x1000
    if not start < end <= _ADDRESSES:
        raise _error(text, f"gpa {word} is not a range of guest physical addresses, as 0x80000000-0x80200000")
    return replace(when, area=range(start if dash else start & ~0xFFF, end))


_KEYWORDS: dict[str, Callable[[str, Injection | None, When, str], When]] = {"every": _every, "seed": _seed, "gpa": _gpa}
