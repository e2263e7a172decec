# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands at the two lines of a machine that has injections, and counts.

At the SEAMCALL line a `FaultyModule` is loaded in place of the TDX module and hands on what is not struck. A leaf
function that is struck is not carried out; its registers are those of a failure with that status. At the system-call
line `Faults.ioctl_errno` is asked before an ioctl begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cache
from random import Random
from typing import Any

from swtdx.inject.injection import Injection, Line
from swtdx.seam.dispatch import LEAF_MASK, LEAVES, SEAMCALL_NUMBERS, failed
from swtdx.seam.hardware import Args, SeamModule
from swtdx.seam.operands import LEVEL_MASK
from swtdx.seam.status import Status
from swtdx.seam.tables import load
from swtdx.uapi.kvm import KVM_MEMORY_ENCRYPT_OP

PAGE_SHIFT = 12
GPA_OF_IOCTL = {
    "KVM_SET_USER_MEMORY_REGION": ("guest_phys_addr", "memory_size", 0),
    "KVM_SET_USER_MEMORY_REGION2": ("guest_phys_addr", "memory_size", 0),
    "KVM_SET_MEMORY_ATTRIBUTES": ("address", "size", 0),
    "KVM_PRE_FAULT_MEMORY": ("gpa", "size", 0),
    "KVM_TDX_INIT_MEM_REGION": ("gpa", "nr_pages", PAGE_SHIFT),
}
"""ioctl -> the members of its argument that are a guest physical address and a size, and the shift of the size."""


class Armed:
    """An injection that counts: ``calls`` that it may have struck, and how many it has."""

    def __init__(self, injection: Injection, *, waits: bool = False) -> None:
        self.injection = injection
        self.waits = waits
        """Calls neither count nor fail, so far."""
        self.calls = 0
        self.struck = 0
        self._random = Random(injection.when.seed)
        self._lock = threading.Lock()

    def strikes(self, touched: range | None = None) -> bool:
        """Count a call, which touches these guest physical addresses; return whether it fails."""
        when = self.injection.when
        if self.waits:
            return False
        if when.area is not None and (touched is None or not _meet(when.area, touched)):
            return False
        with self._lock:
            self.calls += 1
            number = self.calls
            due = number >= when.first and (when.last is None or number <= when.last) and not number % when.every
            if due and when.chance < 1:
                due = self._random.random() < when.chance
            self.struck += due
        return due

    def kept(self) -> object:
        """Return where it is, for `go_on`."""
        with self._lock:
            return self.calls, self.struck, self._random.getstate()

    def go_on(self, kept: tuple[int, int, tuple[Any, ...]]) -> None:
        """Count from there again."""
        with self._lock:
            self.calls, self.struck = kept[:2]
            self._random.setstate(kept[2])

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"injection": self.injection.text, "calls": self.calls, "struck": self.struck}

    def __str__(self) -> str:
        """Return a sentence for the end of a run."""
        if not self.calls:
            return f"{self.injection.text}: never called"
        calls = f"{self.calls:,} call{'s' if self.calls > 1 else ''}"
        return f"{self.injection.text}: {self.struck:,} of {calls} failed"


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


@cache
def gpa_operand(leaf: int) -> tuple[str, bool] | None:
    """Return the register of a leaf function's guest physical address, and whether it carries a level; None: none."""
    name = next(name for name, number in SEAMCALL_NUMBERS.items() if number == leaf)
    for operand in load("operands")["seamcall"].get(name, ["", ""])[0].split():
        register, _, meaning = operand.partition(":")
        if meaning in ("gpa", "gpa+level"):
            return register, meaning == "gpa+level"
    return None


class FaultyModule:
    """A TDX module some of whose leaf functions fail when they are told to."""

    def __init__(self, module: SeamModule, armed: Iterable[Armed]) -> None:
        self._seamcall: Callable[[int, Args, int], int] = module.seamcall
        self._armed: dict[int, list[Armed]] = {}
        for each in armed:
            self._armed.setdefault(each.injection.number, []).append(each)

    def seamcall(self, fn: int, args: Args, lp: int) -> int:
        """As `TdxModule.seamcall`."""
        for armed in self._armed.get(fn & LEAF_MASK, ()):
            if armed.strikes(_touched(fn & LEAF_MASK, args)):
                entry = LEAVES.get(fn)
                return failed(Status(armed.injection.answer), args, entry.defaults if entry else ())
        return self._seamcall(fn, args, lp)


def _touched(leaf: int, args: Args) -> range | None:
    operand = gpa_operand(leaf)
    if operand is None:
        return None
    register, has_level = operand
    value = getattr(args, register)
    if not has_level:
        return range(value, value + 1)
    gpa, level = value & ~LEVEL_MASK, value & LEVEL_MASK
    return range(gpa, gpa + (1 << PAGE_SHIFT + 9 * level))


class Faults:
    """The injections of one machine."""

    def __init__(self, injections: Iterable[Injection], *, wait: bool = False) -> None:
        self.armed = [Armed(injection, waits=wait) for injection in injections]
        self.seamcalls = [each for each in self.armed if each.injection.line is Line.SEAMCALL]
        self._ioctls: dict[tuple[int, bool], list[Armed]] = {}
        for each in self.armed:
            if each.injection.line is Line.IOCTL:
                key = each.injection.number, each.injection.is_command
                self._ioctls.setdefault(key, []).append(each)

    def begin(self) -> None:
        """Calls count from now on."""
        for each in self.armed:
            each.waits = False

    @property
    def has_ioctls(self) -> bool:
        """Whether an ioctl is to fail."""
        return bool(self._ioctls)

    def module(self, module: SeamModule) -> SeamModule:
        """Return what to load in place of ``module``."""
        return FaultyModule(module, self.seamcalls) if self.seamcalls else module

    def struck_ioctl(
        self, request: int, command: Callable[[], int | None], touched: Callable[[str], range | None]
    ) -> Injection | None:
        """Count an ioctl; return the injection that it fails by, or None.

        ``command`` reads the sub-command of KVM_MEMORY_ENCRYPT_OP, ``touched`` the guest physical addresses in the
        argument of the request or sub-command of that name; None where the caller's memory cannot be read.
        """
        armed = self._ioctls.get((request, False), [])
        if request == int(KVM_MEMORY_ENCRYPT_OP) and (number := command()) is not None:
            armed = armed + self._ioctls.get((number, True), [])
        for each in armed:
            area = each.injection.when.area
            if each.strikes(None if area is None else touched(each.injection.target)):
                return each.injection
        return None
