# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's whole life in which one SEAMCALL fails with a chosen status, and what came of it in a few words.

The life reaches every leaf function that KVM of Linux 7.2 calls: the module comes up, a TD is built, accepts a page,
sleeps, has a page converted, and ends. What it leads to is an `Outcome`: in which system call the status came, how that
ended, whether the VM is dead, and which pages and KeyIDs the host has lost. docs/injected.json says what Linux does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap as _mmap
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from swtdx.cpu.platform import Platform
from swtdx.explain import leaves
from swtdx.linux.arch.x86.virt.vmx.tdx import seamcall
from swtdx.linux.virt.kvm.kvm_main import Kvm as KvmVm
from swtdx.machine import MachineKernel, boot
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import TdxCommand
from swtdx.uapi.kvm_run import Exit
from swtdx.uapi.layout import address_of
from swtdx.vmm import bare_guest
from testing.invariants import check_ownership
from testing.places import REPOSITORY
from testing.td import close, fresh_td, staged

PAGE = 0x1000
FRESH = 0x20_0000
ACCEPTED, AWAKE = 0x80, 0x81
VECTOR = 0x41
OF_OTHER_KERNELS = {"TDH.SYS.INFO", "TDH.MEM.RD", "TDH.MEM.WR", "TDH.MEM.PAGE.DEMOTE"}
"""Called for v10, by a debugger, and by the series for 2 MiB pages."""
BRING_UP = "bring-up"
END = "close"
_MACHINE = Platform(memory_size=1 << 30, logical_processors=2)


def kernels_leaves() -> list[str]:
    """Every leaf function that KVM of Linux 7.2 calls, by number."""
    numbers = {value for name, value in vars(seamcall).items() if name.startswith("TDH_")}
    found = [name for name, number in SEAMCALL_NUMBERS.items() if number in numbers]
    return sorted(set(found) - OF_OTHER_KERNELS, key=SEAMCALL_NUMBERS.__getitem__)


def documented(leaf: str) -> list[str]:
    """Every status that a leaf function can return by its rules, with its operand."""
    return list(dict.fromkeys(rule.answer for rule in leaves()[leaf]))


# --- What Linux does --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where KVM calls a leaf function: ``call`` is the number of that call in the life (``1-10``: ten in a row), or
    ``last``."""

    leaf: str
    during: str
    source: str
    call: str
    rows: tuple[tuple[str, ...], ...]
    """(pattern of the status, what Linux does[, what swtdx does, why])."""
    more: tuple[str, ...] = ()
    """Statuses beside those that the rules name."""
    only: tuple[str, ...] = ()
    """These, in place of those that the rules name."""

    def statuses(self) -> list[str]:
        """Return all that are forced here."""
        return [*(self.only or documented(self.leaf)), *self.more]

    def row(self, status: str) -> tuple[str, ...]:
        """Return the row of a status. Raises KeyError."""
        for row in self.rows:
            if any(fnmatchcase(status, pattern) for pattern in row[0].split()):
                return row
        raise KeyError(f"{self.leaf}: no row for {status}")


@cache
def sites() -> tuple[Site, ...]:
    """The table docs/injected.json."""
    table = json.loads((REPOSITORY / "docs" / "injected.json").read_text(encoding="utf-8"))
    return tuple(
        Site(
            leaf,
            site["during"],
            site["source"],
            str(site.get("call", 1)),
            tuple(tuple(row) for row in site["rows"]),
            tuple(site.get("more", ())),
            tuple(site.get("only", ())),
        )
        for leaf, found in table["leaves"].items()
        for site in found
    )


# --- A life -----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a status."""

    during: str = ""
    result: str = ""
    dead: bool = False
    repeated: bool = False
    lost: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """``EIO, dead``; ``repeated``; ``0, dead; lost: KeyID, tdr``."""
        result = self.result
        if result == "0" and not self.dead and not self.lost:
            return "repeated" if self.repeated else "ignored"
        words = f"{result}{', dead' if self.dead else ''}"
        return f"{words}; lost: {', '.join(sorted(self.lost))}" if self.lost else words


class Watched:
    """A kernel whose calls are noted. A `uapi.kernel.Kernel` and a `uapi.abilities.Wrapper`."""

    def __init__(self, kernel: MachineKernel, ended: Callable[[str, str], None]) -> None:
        self.wrapped = kernel
        self.name = kernel.name
        self._ended = ended
        self.open, self.eventfd, self.fallocate, self.mmap = kernel.open, kernel.eventfd, kernel.fallocate, self._mmap
        self._pages: dict[int, _mmap.mmap] = {}
        self.internal_errors: list[str] = []
        """Reasons of calls that ended by an exception in the kernel."""

    def _mmap(self, fd: int, length: int, offset: int = 0) -> _mmap.mmap:
        page = self.wrapped.mmap(fd, length, offset)
        self._pages[fd] = page
        return page

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """As `EmulatedKernel.ioctl`."""
        name = k.ioctl_name(request)
        if request == k.KVM_MEMORY_ENCRYPT_OP:
            name = f"KVM_TDX_{TdxCommand(int.from_bytes(os.pread(_memory(), 4, arg), 'little')).name}"
        try:
            result = self.wrapped.ioctl(fd, request, arg)
        except OSError as error:
            self._ended(name, errno.errorcode[error.errno or 0])
            if (reason := self.wrapped.last_reason).startswith("internal error"):
                self.internal_errors.append(f"{name}: {reason}")
            raise
        text = "0"
        if name == "KVM_RUN":
            (reason,) = struct.unpack_from("<I", self._pages[fd], 8)
            text = "0" if reason == Exit.IO else f"KVM_EXIT_{Exit(reason).name}"
        self._ended(name, text)
        return result

    def close(self, fd: int) -> None:
        """As `EmulatedKernel.close`."""
        self.wrapped.close(fd)
        self._ended(END, "0")


@cache
def _memory() -> int:
    return os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)


def guest_code() -> bytes:
    """Accept the page at `FRESH`, report it, sleep, report that it is awake."""
    accept = b"\xb9" + struct.pack("<I", FRESH) + b"\xb8\x06\x00\x00\x00\x66\x0f\x01\xcc"  # TDG.MEM.PAGE.ACCEPT
    sleep = (
        b"\x31\xc0\xb9\x00\x1c\x00\x00"  # xor eax, eax; mov ecx, 0x1c00: R10 to R12
        b"\x45\x31\xd2\x41\xbb\x0c\x00\x00\x00"  # xor r10d, r10d; mov r11d, 12     Instruction.HLT
        b"\x45\x31\xe4\x66\x0f\x01\xcc"  # xor r12d, r12d: interrupts are not blocked; tdcall
    )
    return bare_guest.forever(
        accept + bare_guest.io_out(ACCEPTED, 1) + sleep + bare_guest.io_out(AWAKE, 1) + bare_guest.io_out(AWAKE, 1)
    )


def life(kernel: Any) -> None:
    """Build a TD, let it run, convert a page, end. Raises KvmError where it fails, RuntimeError for another exit."""
    with Kvm(kernel) as device:
        vm, vcpu, memfd = fresh_td(device, FRESH + 2 * PAGE)
        try:
            vcpu.tdx_get_cpuid()
            for gpa, contents in bare_guest.regions(guest_code()):
                source = staged(contents)
                vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE, measure=gpa == bare_guest.CODE)
            vm.tdx_finalize()
            _run_to(vcpu, ACCEPTED)
            vm.set_memory_attributes(FRESH, PAGE, 0)
            waker = threading.Timer(0.01, _wake, (vm,))
            waker.start()
            try:
                _run_to(vcpu, AWAKE)
            finally:
                waker.join()
        finally:
            close(vm, vcpu, memfd)


def _run_to(vcpu: Any, port: int) -> None:
    vcpu.run()
    reached = vcpu.kvm_run.exit_reason == Exit.IO and vcpu.kvm_run.io.port == port  # kept by no traceback
    if not reached:
        raise RuntimeError(f"the guest exits with {vcpu.exit_reason!r}, not at port {port:#x}")


def _wake(vm: Any) -> None:
    with contextlib.suppress(KvmError):  # the VM is dead, or gone
        vm.signal_msi(0xFEE00000, VECTOR)


class _Vms(set[KvmVm]):
    """The kernel's VMs, and all that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[KvmVm] = []

    def add(self, vm: KvmVm) -> None:
        super().add(vm)
        self.seen.append(vm)


def counts() -> Counter[str]:
    """How often an undisturbed life calls each leaf function, bring-up included."""
    calls: Counter[str] = Counter()
    kernel = boot(platform=_MACHINE, inject=[f"{leaf}: TD_FATAL @999999999" for leaf in kernels_leaves()])
    try:
        life(kernel)
        for armed in kernel.faults.armed:
            calls[armed.injection.target] = armed.calls
    finally:
        kernel.shutdown()
    return calls


def force(site: Site, status: str, usual: Counter[str]) -> Outcome:
    """Live with ``status`` once at a site.

    Raises RuntimeError if it never came or a call ended by an exception in the kernel, Violation if the kernel would
    use a page or a KeyID that the module holds.
    """
    call = str(usual[site.leaf]) if site.call == "last" else site.call
    kernel = boot(platform=_MACHINE, inject=[f"{site.leaf}: {status} @{call}"])
    try:
        (armed,) = kernel.faults.armed
        outcome = Outcome()
        if armed.struck:
            outcome.during = BRING_UP
            outcome.result = "0" if kernel.tdx is not None else "TDX is off"
        vms = kernel.vms = _Vms()

        def ended(name: str, result: str) -> None:
            if armed.struck and not outcome.during:
                outcome.during, outcome.result = name, result

        if kernel.tdx is not None:
            before, keyids = kernel.pages.in_use, kernel.tdx.free_hkids
            watched = Watched(kernel, ended)
            with contextlib.suppress(KvmError, RuntimeError):
                life(watched)
            if watched.internal_errors:
                raise RuntimeError(f"{site.leaf}: {status}: {watched.internal_errors}")
            check_ownership(kernel, f"{site.leaf}: {status}")
            outcome.lost = kernel.pages.in_use - before
            outcome.lost += Counter({"KeyID": keyids - kernel.tdx.free_hkids})
        outcome.dead = outcome.during != END and any(vm.dead for vm in vms.seen)  # at its end no one sees that
        outcome.repeated = armed.calls > usual[site.leaf]
        if not armed.struck:
            raise RuntimeError(f"{site.leaf} was not called so often: {call}")
        return outcome
    finally:
        kernel.shutdown()
