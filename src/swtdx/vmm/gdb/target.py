# SPDX-License-Identifier: GPL-2.0-or-later
"""What the stub asks of a machine, whatever kind of machine it is."""

from __future__ import annotations

from typing import Protocol

from swtdx.vmm.gdb.breakpoints import Breakpoints


class AccessError(Exception):
    """A register or memory cannot be had; the text says why."""


class Target(Protocol):
    """A stopped machine. vCPUs are numbered from 0; all methods may raise `AccessError`."""

    gives_back: frozenset[int]
    """Vectors of exceptions that the guest can be given although they exited."""
    extensions: frozenset[str]
    """Of `registers.EXTENSIONS`: which registers the processor of this machine has beside those that all have."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """All registers by the names of `registers.REGISTERS`; one that cannot be had is left out."""
        ...

    def set_register(self, vcpu: int, name: str, value: int) -> None: ...

    def translate(self, vcpu: int, address: int) -> int:
        """The guest-physical address of a linear one."""
        ...

    def read(self, gpa: int, length: int) -> bytes:
        """Guest-physical memory."""
        ...

    def write(self, gpa: int, data: bytes) -> None: ...

    def reasons(self, vcpu: int) -> int:
        """Why this vCPU had its last #DB, as in DR6."""
        ...

    def linear_pc(self, vcpu: int) -> int:
        """CS base and RIP."""
        ...

    def arm(self, vcpu: int, breakpoints: Breakpoints, *, step: bool, give_back: int | None) -> None:
        """Before the vCPU runs. ``give_back``: the vector of an exception that was the guest's own after all."""
        ...

    def disarm(self, vcpu: int) -> None:
        """The vCPU has stopped: nothing of the debugger's shows in its registers."""
        ...
