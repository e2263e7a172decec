# SPDX-License-Identifier: GPL-2.0-or-later
"""What an emulated kernel offers besides the system calls, and no real one does.

A `Kernel` is what user space may call on any host. An ability is a protocol of its own, and a caller asks for it here:
the answer is None where the kernel lacks it. A wrapper around a kernel (a trace) has the abilities of what it wraps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from swtdx.clock import Clock
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.reason import NO_REASON, Reason
from swtdx.uapi.release import KernelRelease


@runtime_checkable
class Wrapper(Protocol):
    """A kernel that passes system calls to another one."""

    wrapped: Kernel


@runtime_checkable
class Explaining(Protocol):
    """A kernel that keeps the reason of its last refusal."""

    last_refusal: Reason


@runtime_checkable
class Inspectable(Protocol):
    """A kernel whose TDX module shows the state of a TD."""

    def inspect_td(self, vm_fd: int) -> dict[str, Any]:
        """Return what the TDX module holds of the TD behind a VM's descriptor; raises OSError."""
        ...


@runtime_checkable
class Injecting(Protocol):
    """A kernel that can be asked to fail calls."""

    def injections(self) -> list[dict[str, Any]]:
        """Return for each fault that was asked for ``injection``, ``calls``, ``struck``, and ``text``, a sentence."""
        ...


class DebugTd(Protocol):
    """Access to one debug TD. All methods raise OSError, whose text names the SEAMCALL and its status."""

    def mem_rd(self, gpa: int) -> int:
        """TDH.MEM.RD: read 8 bytes at a private GPA that is a multiple of 8."""
        ...

    def mem_wr(self, gpa: int, value: int) -> None:
        """TDH.MEM.WR."""
        ...

    def vp_rd(self, vcpu_fd: int, field: int) -> int:
        """TDH.VP.RD."""
        ...

    def vp_wr(self, vcpu_fd: int, field: int, value: int, mask: int) -> None:
        """TDH.VP.WR."""
        ...


@runtime_checkable
class Debuggable(Protocol):
    """A kernel that lets a debugger make the debug SEAMCALLs on a TD."""

    def debug_td(self, vm_fd: int) -> DebugTd:
        """Return access to the debug TD behind a VM's descriptor; raises OSError."""
        ...


@runtime_checkable
class VerifyingReports(Protocol):
    """A kernel on whose processor an enclave can run, and check a TDREPORT."""

    def everifyreport2(self, report_mac_struct: bytes) -> bool:
        """Return whether the REPORTMACSTRUCT (256 bytes) was made on this machine."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A kernel that states how many logical processors it was booted on."""

    @property
    def logical_processors(self) -> int: ...


@runtime_checkable
class SpeaksDialect(Protocol):
    """A kernel that states its dialect; the host's is found by asking KVM."""

    dialect: Dialect


@runtime_checkable
class PowersOff(Protocol):
    """A kernel whose machine can be switched off with its VMs still there."""

    def power_off(self) -> None:
        """Switch it off; closing what is open takes no VM down any more."""
        ...


class KeepError(Exception):
    """A machine cannot be kept, or not go on from what was kept; the text is one sentence for a person."""


@runtime_checkable
class Keeping(Protocol):
    """A kernel whose machine can be kept as it is, and go on from there again."""

    def snapshot(self, parts: Sequence[object], clock: Clock, *, movable: bool = False) -> object:
        """Keep the machine and, beside it, ``parts`` of user space with their ``clock``; raises KeepError.

        ``movable``: without what only this process can use, the mappings of its memory.
        """
        ...

    def restore(self, parts: Sequence[object], clock: Clock, snapshot: object) -> None:
        """Go on from there, with the same parts; raises KeepError."""
        ...


@runtime_checkable
class Overwriting(Protocol):
    """A kernel that can change what a guest has in private memory, as no real one can."""

    def overwrite(self, guest_memfd: int, offset: int, data: bytes) -> None:
        """Change it, as if the guest had been launched with it; its measurement stays. Raises OSError."""
        ...


@runtime_checkable
class HasRelease(Protocol):
    """A kernel that states which release of Linux it is."""

    release_name: KernelRelease


def _unwrapped(kernel: Kernel) -> Kernel:
    while isinstance(kernel, Wrapper):
        kernel = kernel.wrapped
    return kernel


def inspectable(kernel: Kernel) -> Inspectable | None:
    """Return the kernel as one whose TDs can be inspected."""
    inner = _unwrapped(kernel)
    return inner if isinstance(inner, Inspectable) else None


def injections(kernel: Kernel) -> list[dict[str, Any]]:
    """Return the faults that the kernel was asked for, and how often each has struck."""
    inner = _unwrapped(kernel)
    return inner.injections() if isinstance(inner, Injecting) else []


def debuggable(kernel: Kernel) -> Debuggable | None:
    """Return the kernel as one whose debug TDs can be accessed."""
    inner = _unwrapped(kernel)
    return inner if isinstance(inner, Debuggable) else None


def verifying_reports(kernel: Kernel) -> VerifyingReports | None:
    """Return the kernel as one on whose machine a quoting enclave can run."""
    inner = _unwrapped(kernel)
    return inner if isinstance(inner, VerifyingReports) else None


def last_refusal(kernel: Kernel) -> Reason:
    """Return why the kernel refused the last call; an empty reason where it does not say."""
    inner = _unwrapped(kernel)
    return inner.last_refusal if isinstance(inner, Explaining) else NO_REASON


def logical_processors(kernel: Kernel) -> int | None:
    """Return how many logical processors the kernel was booted on, where it states that."""
    inner = _unwrapped(kernel)
    return inner.logical_processors if isinstance(inner, Counted) else None


def stated_dialect(kernel: Kernel) -> Dialect | None:
    """Return the dialect that the kernel says it speaks."""
    inner = _unwrapped(kernel)
    return inner.dialect if isinstance(inner, SpeaksDialect) else None


def stated_release(kernel: Kernel) -> KernelRelease | None:
    """Return the release of Linux that the kernel says it is; the host's does not say."""
    inner = _unwrapped(kernel)
    return inner.release_name if isinstance(inner, HasRelease) else None


def keeping(kernel: Kernel) -> Keeping | None:
    """Return the kernel as one whose machine can be kept."""
    inner = _unwrapped(kernel)
    return inner if isinstance(inner, Keeping) else None


def overwriting(kernel: Kernel) -> Overwriting | None:
    """Return the kernel as one that can change private memory."""
    inner = _unwrapped(kernel)
    return inner if isinstance(inner, Overwriting) else None


def powers_off(kernel: Kernel) -> PowersOff | None:
    """Return the kernel as one that can be switched off; None for one that is traced, whose TDs end in the trace."""
    return None if isinstance(kernel, Wrapper) or not isinstance(kernel, PowersOff) else kernel
