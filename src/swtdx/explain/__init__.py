# SPDX-License-Identifier: GPL-2.0-or-later
"""What a refusal of KVM or of the TDX module means, and what to do about it.

Four tables are beside this file:

==============  =====================================================================================================
table           rows
==============  =====================================================================================================
statuses.json   each completion status, operand, TD exit and TDVMCALL result: meaning, and what to do
rules.json      for each leaf function the rules that it checks, in its order, with the status of one that is broken
errnos.json     for each ioctl and sub-command, in both dialects, the rules of KVM with the errno of one that is broken
messages.json   messages of the host's kernel, of QEMU and of a guest's kernel: see `swtdx.explain.message`
==============  =====================================================================================================

A rule is written as what must hold. In rules.json it is ``"STATUS|OPERAND: rule || what to do"``, the remedy omitted
where the status has none of its own; ``"@name argument | argument"`` stands for a sequence of rules that many leaf
functions share, and ``{states}`` and ``{entries}`` are filled in from the module's own tables.

Sources: the TDX module 1.5.06 (order of checks), the Intel TDX module ABI specification (statuses, exits), the GHCI
(TDVMCALL), Linux 6.16 (errno) and the document of November 2022 (v10).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from swtdx.seam.tables import load as module_table
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS


@dataclass(frozen=True)
class Rule:
    """One check of a leaf function: what must hold, and the status (with operand) of a call that breaks it."""

    status: str
    operand: str
    text: str
    remedy: str = ""

    @property
    def answer(self) -> str:
        """``OPERAND_INVALID|RCX``."""
        return f"{self.status}|{self.operand}" if self.operand else self.status


@dataclass(frozen=True)
class Refusal:
    """One check of an ioctl: what must hold, the errno, and the SEAMCALLs that can be the reason."""

    errno: str
    rule: str
    remedy: str
    seamcalls: tuple[str, ...] = ()
    hw_error: bool = False
    """The SEAMCALL's status comes back in ``hw_error``."""


@cache
def table(name: str) -> dict[str, Any]:
    """One of the tables, as parsed JSON."""
    parsed: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text("ascii"))
    return parsed


@cache
def leaves() -> dict[str, tuple[Rule, ...]]:
    """Every leaf function with its rules, SEAMCALLs first; the checks of the entry itself are `entry_rules`."""
    rows = {**table("rules")["seamcall"], **table("rules")["tdcall"]}
    return {leaf: tuple(_expanded(rules, {}, leaf)) for leaf, rules in rows.items()}


@cache
def entry_rules(leaf: str) -> tuple[Rule, ...]:
    """What is checked before any leaf function runs."""
    return tuple(_expanded(table("rules")["entry"]["seamcall" if leaf.startswith("TDH") else "tdcall"], {}, leaf))


def _expanded(rules: list[str], arguments: dict[str, str], leaf: str) -> list[Rule]:
    """Rules with sequences written out and placeholders filled in."""
    found: list[Rule] = []
    for text in rules:
        text = _filled(text, arguments, leaf)
        if text.startswith("@"):
            name, given = _sequence(text[1:])
            found += _expanded(table("rules")["sequences"][name], given, leaf)
            continue
        answer, _, words = text.partition(": ")
        status, _, operand = answer.partition("|")
        rule, _, remedy = words.partition(" || ")
        found.append(Rule(status, operand, rule, remedy))
    return found


def _sequence(text: str) -> tuple[str, dict[str, str]]:
    """``"page R8 | free"`` as the name of the sequence and its arguments by position."""
    name = max((each for each in table("rules")["sequences"] if f"{text} ".startswith(f"{each} ")), key=len)
    given = text[len(name) :].split("|")
    return name, {str(number): argument.strip() for number, argument in enumerate(given)}


def _filled(text: str, arguments: dict[str, str], leaf: str) -> str:
    for number, argument in arguments.items():
        text = text.replace(f"{{{number}}}", argument)
    key = leaf.replace(".", "_")
    for placeholder, names in (
        ("{states}", module_table("op_states")["seamcall_allowed"].get(key, ())),
        ("{entries}", module_table("sept_transitions")["allowed"].get(key, ())),
    ):
        if placeholder in text:
            text = text.replace(placeholder, _one_of(names))
    return text


def _one_of(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def refusals(ioctl: str, dialect: Dialect) -> tuple[Refusal, ...]:
    """The rules of an ioctl or sub-command, in KVM's order as far as it has one; none for an unknown one.

    What holds for every ioctl comes last, as far as it has not been said.
    """
    ioctls = table("errnos")["ioctls"]
    rows = ioctls[dialect.value].get(ioctl) or ioctls["any"].get(ioctl)
    if rows is None and ioctl not in REQUESTS:
        return ()
    own = _refusals(rows or [])
    said = {refusal.errno for refusal in own}
    return tuple(own + [refusal for refusal in general_refusals() if refusal.errno not in said])


@cache
def general_refusals() -> tuple[Refusal, ...]:
    """The rules that hold for every ioctl."""
    return tuple(_refusals(["@every ioctl"]))


def known_ioctls(dialect: Dialect) -> list[str]:
    """Those of which `refusals` has rules of their own."""
    ioctls = table("errnos")["ioctls"]
    return [*ioctls[dialect.value], *ioctls["any"]]


def _refusals(rows: list[Any]) -> list[Refusal]:
    found: list[Refusal] = []
    for row in rows:
        if isinstance(row, str):
            found += _refusals(table("errnos")["groups"][row[1:]])
            continue
        errno, rule, remedy, seamcalls = row
        names, _, mark = seamcalls.partition("=")
        found.append(Refusal(errno, rule, remedy, tuple(names.split()), bool(mark)))
    return found
