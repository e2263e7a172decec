# SPDX-License-Identifier: GPL-2.0-or-later
"""A TDVMCALL as facts: what reaches the host, where it was made, and for which instruction."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
"""By their numbers."""
XMM_SHIFT = 16
ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Cause:
    """The instruction that raised the #VE for which a call is made. ``registers`` are those of `REGISTERS` then."""

    rip: int
    length: int
    reason: int
    qualification: int
    registers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vmcall:
    """One TDG.VP.VMCALL. ``exposed`` are the registers that the mask in RCX selects, by name."""

    function: int
    """R11, or -1 for a hypercall of KVM (R10 is not 0)."""
    mask: int
    exposed: dict[str, int]
    rip: int = 0
    """Of the TDCALL."""
    cause: Cause | None = None
    memory: dict[str, int] = field(default_factory=dict)
    """What was looked at in memory: see `rules`."""

    @property
    def row(self) -> dict[str, Any]:
        """What the specification defines for the function; empty for an unknown one."""
        if self.function < 0:
            return dict(table()["hypercall"])
        return dict(_functions().get(self.function, {}))

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.row.get("name", "a function that is not defined"))  # one name: guests choose the number

    @property
    def size(self) -> int:
        """R12 of port I/O and MMIO."""
        return self.exposed.get("r12", 0)

    @property
    def writes(self) -> bool:
        """Whether port I/O or MMIO writes."""
        return bool(self.exposed.get("r13", 0))

    def bits(self, kind: int | str) -> int:
        """Return a mask of the bits that are defined: a number of them, ``size`` or ``data``."""
        if kind == "size":
            return ALL  # the rule about lengths looks at it
        if kind == "data":
            return (1 << 8 * min(self.size, 8)) - 1 if self.writes else 0
        return ALL if kind == 64 else (1 << int(kind)) - 1

    @property
    def answer_bits(self) -> int:
        """Return the bits that an input instruction takes of the answer."""
        return (1 << 8 * min(self.size, 8)) - 1


@cache
def table() -> dict[str, Any]:
    """Return ghci.json."""
    parsed: dict[str, Any] = json.loads(files(__package__).joinpath("ghci.json").read_text("ascii"))
    return parsed


@cache
def _functions() -> dict[int, dict[str, Any]]:
    return {int(number, 0): row for number, row in table()["functions"].items()}
