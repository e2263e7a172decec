# SPDX-License-Identifier: GPL-2.0-or-later
r"""What a person asks a host to lie about, read from text.

A lie is ``CALL [OPERAND]: ANSWER [WHEN]...``, in which WHEN is that of an injection (`swtdx.inject.parse`)::

    Instruction.IO 0x3fd: R11=0x61 @3      the third read of this port
    RDMSR 0x1b: R11=0                      this MSR, always
    MapGPA: RETRY every 2                  a status, in R10
    any: random 1% seed 7                  one call in a hundred, with a value by chance
    Virtqueue 0x100: LENGTH=0xffff @2      what a device says in memory that it shares with the guest
    Interrupt: VECTOR=0x80 @40             what the host does at the guest's 40th call

CALL is a function of TDG.VP.VMCALL, its prefix omitted or not, ``any`` of these, or another way for a lie (`kinds`).
OPERAND is the port, MSR, CPUID leaf or address; with it, the calls are counted that have this operand.
ANSWER is a register or another part with a value, a status by name, or ``random``: a value of the kind that finds
faults.

>>> lie = parse("rdmsr 0x1b: R11=0xfee00900 @2")
>>> lie.function, hex(lie.operand), lie.register, hex(lie.value), lie.when.first
('Instruction.RDMSR', '0x1b', 'r11', '0xfee00900', 2)
>>> parse("MapGPA: RETRY").register, parse("any: random 1% seed 7").when.chance
('r10', 0.01)
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from swtdx.inject.injection import InjectionError, When
from swtdx.inject.parse import parse_when

FORM = "write CALL: ANSWER, as in Instruction.IO 0x3fd: R11=0x61 @3, MapGPA: RETRY, or any: random 1% seed 7"
ANY = "any"
CALLS = "calls"
"""The kind of lies that are answers to TDVMCALLs."""
_VALUE = re.compile(r"([A-Z]\w*)=(0[xX][0-9a-fA-F]{1,16}|\d{1,20})", re.IGNORECASE | re.ASCII)


class LieError(ValueError):
    """A text is not a valid lie; the message is one sentence for a person."""


@dataclass(frozen=True)
class Lie:
    """``register`` and ``value`` are None for a random answer, ``operand`` for any."""

    function: str
    operand: int | None
    register: str | None
    value: int | None
    text: str
    when: When = field(default_factory=When)


@cache
def table() -> dict[str, Any]:
    """Return answers.json."""
    parsed: dict[str, Any] = json.loads(files(__package__).joinpath("answers.json").read_text("ascii"))
    return parsed


def kind_of(function: str) -> str:
    """Return of which kind lies about a function are: `CALLS`, or by another way into the guest."""
    return str(table()["functions"].get(function, {}).get("kind", CALLS))


@cache
def kinds() -> dict[str, tuple[str, ...]]:
    """Return the functions of each kind."""
    found: dict[str, tuple[str, ...]] = {}
    for function in table()["functions"]:
        found[kind_of(function)] = (*found.get(kind_of(function), ()), function)
    return found


@cache
def statuses() -> dict[str, int]:
    """Return results of a TDVMCALL by name."""
    return {name: int(value, 16) for name, value in table()["statuses"].items()}


def parse(text: str) -> Lie:
    """Read one lie. Raises `LieError`."""
    call, colon, rest = text.partition(":")
    words, answer = call.split(), rest.replace(",", " ").split()
    if not colon or not 1 <= len(words) <= 2 or not answer:
        raise _error(text, FORM)
    function = _function(text, words[0])
    operand = None if len(words) == 1 else _operand(text, function, words[1])
    register, value = _answer(text, function, answer[0])
    try:
        when = parse_when(text, answer[1:])
    except InjectionError as error:
        raise LieError(str(error)) from None
    return Lie(function, operand, register, value, text, when)


def _error(text: str, why: str) -> LieError:
    return LieError(f"{text!r}: {why}")


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else f": there are {', '.join(names)}"


def _function(text: str, name: str) -> str:
    known: list[str] = list(table()["functions"])
    for each in (ANY, *known):
        if name.lower() in (each.lower(), each.lower().rpartition(".")[2]):
            return each
    raise _error(text, f"there is no call {name!r}{_near(name, [ANY, *known])}")


def _operand(text: str, function: str, word: str) -> int:
    if function == ANY or "operand" not in table()["functions"][function]:
        raise _error(text, f"{function} has no operand")
    try:
        value = int(word, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise _error(text, f"{word} is not a number, as 0x3fd")
    return value


def _answer(text: str, function: str, word: str) -> tuple[str | None, int | None]:
    if word.lower() == "random":
        return None, None
    is_call = kind_of(function) == CALLS
    if is_call and word.upper() in statuses():
        return "r10", statuses()[word.upper()]
    match = _VALUE.fullmatch(word)
    answers = [*(["r10"] if is_call else []), *table()["functions"].get(function, {"answers": {"r11": 64}})["answers"]]
    if match is None:
        examples = ["R11=0x61", "random", *statuses()] if is_call else [f"{answers[0].upper()}=0x61", "random"]
        raise _error(text, f"{word} is not an answer: {', '.join(examples)}")
    register, value = match[1].lower(), int(match[2], 0)
    if register not in answers:
        raise _error(text, f"{function} is answered in {', '.join(answers).upper()}, not in {register.upper()}")
    if value >= 1 << 64:
        raise _error(text, f"{match[2]} has more than 64 bits")
    return register, value
