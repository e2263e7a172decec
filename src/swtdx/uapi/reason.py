# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a kernel refused a call, as facts: an emulated kernel states it, and user space can explain it.

A real kernel only returns an errno. What it knows beside that is in its log at best.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """The facts of a refusal. ``text`` is the sentence for a person; it is empty where nothing is known."""

    text: str = ""
    leaf: str = ""
    """The leaf function whose failure made the kernel refuse; empty if KVM refused by a rule of its own."""
    status: int = 0
    """Its completion status."""
    rcx: int | None = None
    """Its output in RCX, for a leaf function that has one."""
    rdx: int | None = None
    by_guest: bool = False
    """Whether the guest brought it about: the host did nothing wrong."""

    @property
    def rule(self) -> str:
        """The rule of KVM that was broken; empty if it was a SEAMCALL that failed."""
        return "" if self.leaf else self.text

    @property
    def outputs(self) -> dict[str, int]:
        """The registers that came with the status, by name."""
        return {name: value for name, value in (("rcx", self.rcx), ("rdx", self.rdx)) if value is not None}

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        return bool(self.text)


NO_REASON = Reason()


def seamcall_failed(leaf: str, status: int, rcx: int | None = None, where: str = "") -> Reason:
    """Return the reason of a SEAMCALL that failed; ``where`` names its object, as in ``of tsc_offset``.

    >>> str(seamcall_failed("TDH.MNG.INIT", 0xC000010000000040, rcx=0))
    'TDH.MNG.INIT: 0xc000010000000040, rcx 0x0'
    """
    of = f" {where}" if where else ""
    output = f", rcx {rcx:#x}" if rcx is not None else ""
    return Reason(f"{leaf}{of}: {status:#x}{output}", leaf, status, rcx)


def sept_seamcall_failed(leaf: str, status: int, entry: int, level_state: int, where: str = "") -> Reason:
    """Return the reason of a SEAMCALL that walks the Secure EPT; it returns the entry in RCX, level and state in RDX.

    >>> str(sept_seamcall_failed("TDH.MEM.PAGE.AUG", 0xC0000B0200000000, 0x8000000000000400, 0x401))
    'TDH.MEM.PAGE.AUG: 0xc0000b0200000000, entry 0x8000000000000400, level and state 0x401'
    """
    of = f" {where}" if where else ""
    text = f"{leaf}{of}: {status:#x}, entry {entry:#x}, level and state {level_state:#x}"
    return Reason(text, leaf, status, entry, level_state)
