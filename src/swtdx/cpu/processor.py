# SPDX-License-Identifier: GPL-2.0-or-later
"""The processor package: memory, native CPUID and MSRs, the SEAMCALL gate, and the virtual CPUs that run on it.

SEAMCALL is a door: the kernel passes a leaf number and registers, the TDX module that was loaded into the SEAM range
answers. Before a module is loaded the instruction fails as VMfailInvalid, which Linux reports as 0x8000FF00FFFF0000.

The kernel sees several logical processors. Virtual CPUs execute at the same time, each on an engine of its own, or take
turns on one: `Platform.parallel`. To reach one that is inside a SEAMCALL the kernel sends an interrupt to the logical
processor on which it entered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final, Protocol

from swtdx.clock import Clock
from swtdx.cpu import _engine, cpuid
from swtdx.cpu._engine import GuestContext
from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import TSC_RATIO_BITS, Platform
from swtdx.x86 import PAT_RESET, Msr

TDX_SEAMCALL_VMFAILINVALID: Final = 0x8000_FF00_FFFF_0000
"""Linux's software-defined status for a SEAMCALL that could not enter the module."""
_MSRS: Final[dict[int, int]] = {
    # What a processor with TDX has: not vulnerable to most of what bits 0 to 8 and 13 to 15 name; enhanced IBRS; and
    # MISC_PACKAGE_CTLS, energy filtering, DOITM, XAPIC_DISABLE_STATUS.
    Msr.ARCH_CAPABILITIES: sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 21)),
    Msr.MISC_PACKAGE_CTLS: 1,  # energy filtering on
    Msr.XAPIC_DISABLE_STATUS: 1,  # the APIC stays in x2APIC mode
    Msr.PERF_CAPABILITIES: 3 << 12,  # what the module wants of it, though there are no counters
    Msr.MISC_ENABLE: 0x850089,  # fast strings, thermal control, perfmon, SpeedStep, MONITOR, no xTPR messages
    Msr.MTRRCAP: 0x508,  # 8 variable ranges, fixed ranges, WC
    Msr.BIOS_SIGN_ID: 0x2B000000 << 32,
    Msr.PAT: PAT_RESET,
    Msr.TSC_ADJUST: 0,
}


class SeamArgs:
    """The registers of a SEAMCALL, in and out (the kernel's ``struct tdx_module_args``)."""

    __slots__ = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rbx", "rcx", "rdi", "rdx", "rsi")

    def __init__(
        self,
        rcx: int = 0,
        rdx: int = 0,
        r8: int = 0,
        r9: int = 0,
        r10: int = 0,
        r11: int = 0,
        r12: int = 0,
        r13: int = 0,
        r14: int = 0,
        r15: int = 0,
        rbx: int = 0,
        rdi: int = 0,
        rsi: int = 0,
    ) -> None:
        self.rcx, self.rdx, self.r8, self.r9, self.r10, self.r11 = rcx, rdx, r8, r9, r10, r11
        self.r12, self.r13, self.r14, self.r15, self.rbx, self.rdi, self.rsi = r12, r13, r14, r15, rbx, rdi, rsi

    def __repr__(self) -> str:
        registers = ((name, getattr(self, name)) for name in self.__slots__)
        return f"SeamArgs({', '.join(f'{name}={value:#x}' for name, value in registers if value)})"


class FirstTouch(Protocol):
    """What the kernel does when a TD accepts a page that is not there."""

    def __call__(self, gpa: int, aug: Callable[[int], bool]) -> int:
        """Map the page by ``aug`` and return its HPA; 0: the long way is to be taken."""
        ...

    def rest(self) -> _engine.PageRun | None:
        """Return the pages about it, of which the processor may do the same."""
        ...

    def forget(self) -> None:
        """Forget what was found for earlier pages."""
        ...


class SeamModule(Protocol):
    """What can be loaded into the SEAM range."""

    def seamcall(self, fn: int, args: SeamArgs, lp: int) -> int:
        """Serve one SEAMCALL (``fn``: RAX) on logical processor ``lp``; returns RAX, other registers in ``args``."""
        ...


class Processor:
    """One package with its memory. Everything is lazy: the execution engine exists from the first virtual CPU on."""

    def __init__(self, platform: Platform | None = None) -> None:
        self.platform = platform or Platform()
        self.memory = PhysicalMemory(self.platform.memory_size, self.platform.keyid_shift)
        self.clock = Clock()
        self.random: Callable[[int], bytes] = os.urandom
        """Where random numbers come from."""
        self._tsc_ratio = self.platform.tsc_ratio
        self._tsc_bias = 0  # ticks
        self._module: SeamModule | None = None
        self._engine: _engine.Engine | None = None
        self._engine_lock = threading.Lock()
        self._on_lp: dict[int, GuestContext] = {}
        self._left_lp: dict[int, GuestContext] = {}
        self._interrupted: set[int] = set()
        self._msrs = dict(_MSRS)
        self.msrs_changed = False
        """Host software has written an MSR since power-on."""
        self.first_touches: dict[int, FirstTouch] | None = {}
        """What the kernel does when a TD's virtual CPU (by its TDVPR) accepts a page that is not there, as one step in
        place of an exit. None: never (SEAMCALLs are made to fail, or the run is recorded)."""
        self.context_class: type[GuestContext] = GuestContext
        """What `new_context` makes; `watched_context` puts another in its place."""

    # --- SEAM ---------------------------------------------------------------------------------------------------------

    def load_seam_module(self, module: SeamModule) -> None:
        """Load ``module`` as the SEAM loader does at boot: SEAMCALLs reach it from now on."""
        self._module = module

    @property
    def module_loaded(self) -> bool:
        """Is there a TDX module?"""
        return self._module is not None

    def seamcall(self, fn: int, args: SeamArgs, lp: int = 0) -> int:
        """Execute SEAMCALL: ``fn`` in RAX, ``args`` in place; returns the status (RAX)."""
        if self._module is None:
            return TDX_SEAMCALL_VMFAILINVALID
        return self._module.seamcall(fn, args, lp)

    def remove_pages(self, tdr: int, gpa: int, indices: list[int], pages: list[int]) -> bool:
        """Have the module do what BLOCK, TRACK and REMOVE do for each of these pages of a TD, or nothing: False.

        They lie in the 2 MiB from ``gpa`` on, at ``indices``. A module that cannot, or whose calls are made to fail,
        does not: it has no ``remove_pages``.
        """
        step = getattr(self._module, "remove_pages", None)
        return step is not None and bool(step(tdr, gpa, indices, pages))

    # --- inter-processor interrupts -----------------------------------------------------------------------------------

    def enter_lp(self, lp: int, context: GuestContext) -> None:
        """Note that ``context`` is about to run on ``lp``, and takes its interrupts until it leaves."""
        self._on_lp[lp] = context
        if lp in self._interrupted:
            self._interrupted.discard(lp)
            context.kick()

    def leave_lp(self, lp: int) -> None:
        """Note that no guest runs on ``lp`` any more."""
        context = self._on_lp.pop(lp, None)
        if context is not None:
            self._left_lp[lp] = context

    def polls(self, lp: int) -> bool:
        """Return whether the guest that left ``lp`` last did nothing but poll for another one."""
        context = self._left_lp.get(lp)
        return context is not None and context.polls

    def naps(self, lp: int) -> bool:
        """Return whether the guest on ``lp`` sleeps just now, since it only polls for another one."""
        context = self._on_lp.get(lp)
        return context is not None and context.naps

    def send_ipi(self, lp: int) -> None:
        """Interrupt ``lp`` for the host: the guest there exits. With no guest there, the next one exits at once."""
        context = self._on_lp.get(lp)
        if context is None:
            self._interrupted.add(lp)
        else:
            context.kick()

    def send_notification(self, lp: int) -> None:
        """Send the posted-interrupt notification to ``lp``: the guest there reads its descriptor without an exit."""
        context = self._on_lp.get(lp)
        if context is not None:
            context.notify()

    # --- instructions of the host -------------------------------------------------------------------------------------

    def cpuid(self, leaf: int, subleaf: int = 0, lp: int = 0) -> cpuid.Registers:
        """Execute CPUID as the host: returns EAX, EBX, ECX, EDX."""
        return cpuid.native(self.platform, leaf, subleaf, lp)

    def rdmsr(self, index: int) -> int:
        """Execute RDMSR as the host. Raises KeyError where the real one would be #GP."""
        return self._msrs[index]

    def wrmsr(self, index: int, value: int) -> None:
        """Execute WRMSR as the host, for any register that `rdmsr` reads. Raises KeyError for others.

        The emulated kernel writes none. Tests use it to see how the TDX module answers a host that limits CPUID or
        changes IA32_TSC_ADJUST.
        """
        if index not in self._msrs:
            raise KeyError(index)
        self._msrs[index] = value
        self.msrs_changed = True

    def rdtsc(self) -> int:
        """Return the time-stamp counter: the host's, scaled, and set back if the machine was restored."""
        return (_engine.host_tsc() * self._tsc_ratio >> TSC_RATIO_BITS) + self._tsc_bias

    def set_tsc(self, value: int) -> None:
        """Let the time-stamp counter go on from ``value``. No guest may be running."""
        self._tsc_bias += value - self.rdtsc()
        if self._engine is not None:
            self._engine.set_tsc_bias(self._tsc_bias)

    @staticmethod
    def signal_pending() -> bool:
        """Return whether a signal handler on this thread has called ``swtdx_signal`` (`_engine.signal_entry`)."""
        return _engine.signal_pending()

    # --- virtual CPUs -------------------------------------------------------------------------------------------------

    def _get_engine(self) -> _engine.Engine:
        with self._engine_lock:  # the first virtual CPUs of two machines may come at once
            if self._engine is None:
                platform = self.platform
                engine = _engine.Engine(
                    self.memory.raw, self.memory.poison, self._tsc_ratio, platform.pkru_offset, platform.parallel
                )
                engine.set_tsc_bias(self._tsc_bias)
                self.memory.attach(engine)
                self._engine = engine
            return self._engine

    def new_context(self) -> GuestContext:
        """Create a virtual CPU in its power-on state (real mode, at the reset vector), without EPT."""
        context = self.context_class(self._get_engine())
        context.attach_views()
        return context

    def cover(self) -> None:
        """Note from now on which blocks of guest code are reached for the first time: see `covered`."""
        self._get_engine().cover()

    def covered(self) -> set[int]:
        """Return the linear addresses of the blocks that were noted since the last question."""
        return set() if self._engine is None else self._engine.covered()

    def invept(self) -> None:
        """Drop every cached guest-physical translation (INVEPT, all contexts)."""
        if self._engine is not None:
            self._engine.invept()

    @property
    def ept_walks(self) -> int:
        """How often EPT was walked since power-on."""
        return self._engine.walks if self._engine is not None else 0

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def go_on(self, kept: None) -> None:
        """Forget what no longer holds when the state was given back: who ran where, what is cached of tables."""
        self._on_lp.clear()
        self._left_lp.clear()
        for touch in (self.first_touches or {}).values():
            touch.forget()
        self.invept()

    def close(self) -> None:
        """Switch off. Contexts keep what they need until they are closed themselves."""
        self._module = None
        self._on_lp.clear()
        self._left_lp.clear()
        self.memory.detach()
        self._engine = None
