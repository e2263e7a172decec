# SPDX-License-Identifier: GPL-2.0-or-later
"""All that is known of a leaf function, out of the module's tables, its code and the rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import swtdx.seam.module  # noqa: F401  # so that every leaf function is registered
from swtdx.explain import Rule, leaves
from swtdx.seam.dispatch import LEAVES, SEAMCALL_NUMBERS
from swtdx.seam.tables import load
from swtdx.seam.tdg.tdcall import LEAVES as TDCALLS
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.seam.tdg.vmcall import vmcall

SEAMCALL, TDCALL = "seamcall", "tdcall"
VP_VMCALL = "TDG.VP.VMCALL"


@dataclass(frozen=True)
class Operand:
    """A register of a leaf function. ``version``: it counts in that version of the leaf only."""

    register: str
    meaning: str
    version: int | None = None

    def __str__(self) -> str:
        only = f" (version {self.version})" if self.version is not None else ""
        return f"{self.register} {self.meaning}{only}"


@dataclass(frozen=True)
class Leaf:
    """A leaf function. ``served_by`` is the Python function; it is empty where the feature is not reproduced."""

    name: str
    kind: str
    number: int
    versions: tuple[int, ...]
    description: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    op_states: tuple[str, ...]
    entry_states: tuple[str, ...]
    moves: tuple[tuple[str, str], ...]
    served_by: str
    module_versions: tuple[str, ...]
    rules: tuple[Rule, ...]

    @property
    def reproduced(self) -> bool:
        """Whether it does what the real one does; otherwise it answers as a module without the feature."""
        return bool(self.served_by)

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "number": self.number,
            "versions": list(self.versions),
            "description": self.description,
            "in": [vars(operand) for operand in self.inputs],
            "out": [vars(operand) for operand in self.outputs],
            "op_states": list(self.op_states),
            "entry_states": list(self.entry_states),
            "entry_moves": dict(self.moves),
            "reproduced": self.reproduced,
            "served_by": self.served_by,
            "module_versions": list(self.module_versions),
            "rules": [{"status": rule.answer, "rule": rule.text, "remedy": rule.remedy} for rule in self.rules],
        }


@cache
def all_leaves() -> dict[str, Leaf]:
    """Every leaf function by name: SEAMCALLs by number, then TDCALLs."""
    return {leaf.name: leaf for leaf in (*_of_kind(SEAMCALL), *_of_kind(TDCALL))}


def _of_kind(kind: str) -> Iterator[Leaf]:
    numbers = SEAMCALL_NUMBERS if kind == SEAMCALL else TDCALL_NUMBERS
    operands = load("operands")[kind]
    states, entries = load("op_states")["seamcall_allowed"], load("sept_transitions")
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        handlers = _handlers(kind, name, number)
        description, served_by = _code(handlers)
        inputs, outputs = operands.get(name, ("", ""))[-2:]
        key = name.replace(".", "_")
        yield Leaf(
            name,
            kind,
            number,
            tuple(sorted(handlers)) or (0,),
            description,
            tuple(_operands(inputs)),
            tuple(_operands(outputs)),
            tuple(states.get(key, ())),
            tuple(entries["allowed"].get(key, ())),
            tuple(entries["transitions"].get(key, {}).items()),
            served_by,
            tuple(_module_versions(kind, name)),
            leaves()[name],
        )


def _handlers(kind: str, name: str, number: int) -> dict[int, Callable[..., Any]]:
    """Version of the leaf -> the function that is registered for it."""
    if name == VP_VMCALL:
        return {0: vmcall}
    if kind == SEAMCALL:
        return {fn >> 16: entry.handler for fn, entry in LEAVES.items() if fn & 0xFFFF == number}
    return {rax >> 16: handler for rax, (handler, _) in TDCALLS.items() if rax & 0xFFFF == number}


def _code(handlers: dict[int, Callable[..., Any]]) -> tuple[str, str]:
    """(what the function does, its name with its module); both empty for a feature that is not reproduced."""
    for handler in handlers.values():
        module = handler.__module__.removeprefix("swtdx.")
        if not module.endswith("not_reproduced"):
            words = inspect.cleandoc(handler.__doc__ or "").split("\n\n")[0]
            return " ".join(re.sub(r"``(.+?)``", r"\1", words).split()), f"{module}.{handler.__name__}"
    return "", ""


def _operands(text: str) -> Iterator[Operand]:
    for part in text.split():
        register, _, meaning = part.partition(":")
        meaning, _, version = meaning.partition("@")
        yield Operand(register.upper(), meaning, int(version) if version else None)


def _module_versions(kind: str, name: str) -> Iterator[str]:
    for version, row in load("versions")["versions"].items():
        if row[f"{kind}s"] is None or name in row[f"{kind}s"]:
            yield version
