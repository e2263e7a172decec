# SPDX-License-Identifier: GPL-2.0-or-later
"""An injection as data: which call fails, how, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class InjectionError(ValueError):
    """A text is not a valid injection; the message is one sentence for a person."""


class Line(Enum):
    """Where the call is made."""

    SEAMCALL = "SEAMCALL"
    IOCTL = "ioctl"


@dataclass(frozen=True)
class When:
    """Which calls are struck: all conditions hold. Calls are counted from 1, those outside ``area`` not at all."""

    first: int = 1
    last: int | None = None
    every: int = 1
    chance: float = 1.0
    seed: int = 0
    area: range | None = None
    """Guest physical addresses, of which the call must touch one."""


@dataclass(frozen=True)
class Injection:
    """A fault that is asked for. ``answer`` is a completion status, or an errno as a positive number."""

    line: Line
    target: str
    """``TDH.MEM.PAGE.AUG``, ``KVM_RUN``, ``KVM_TDX_INIT_VM``."""
    number: int
    """Of the leaf function, the ioctl, or the sub-command of KVM_MEMORY_ENCRYPT_OP."""
    answer: int
    text: str
    """As it was typed."""
    when: When = field(default_factory=When)
    is_command: bool = False
    """``number`` is that of a sub-command."""
