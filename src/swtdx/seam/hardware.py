# SPDX-License-Identifier: GPL-2.0-or-later
"""What the module asks of the processor it runs on.

The protocols and the VMX numbers are the whole of the arrow from ``seam/`` to ``cpu/``: `swtdx.cpu` fulfils them, and
so do the small fakes in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from swtdx.cpu.vmx import EventType, ExitReason, Segment

__all__ = [
    "Args",
    "Context",
    "EventType",
    "ExitReason",
    "FirstTouch",
    "Memory",
    "PageRun",
    "Platform",
    "Processor",
    "SeamModule",
    "Segment",
]


class Args(Protocol):
    """The registers of a SEAMCALL, in and out (struct tdx_module_args); RAX travels apart."""

    rcx: int
    rdx: int
    rbx: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int


class SeamModule(Protocol):
    """What can be loaded as the TDX module: the module itself, or what stands in front of it."""

    def seamcall(self, fn: int, args: Args, lp: int) -> int: ...


class Memory(Protocol):
    """Physical memory as the module sees it: plain views, and the keys under which lines are stored."""

    @property
    def size(self) -> int: ...
    @property
    def raw(self) -> memoryview: ...
    @property
    def qwords(self) -> memoryview: ...
    def read(self, pa: int, length: int) -> bytes: ...
    def write(self, pa: int, data: bytes) -> None: ...
    def read_window(self, hpa: int, length: int) -> bytes | None: ...
    def write_window(self, hpa: int, data: bytes) -> bool: ...
    def key_of(self, hpa: int) -> int: ...
    def set_key(self, hpa: int, hkid: int) -> None: ...
    def clear_range(self, hpa: int, length: int, hkid: int) -> None: ...
    def discard_page(self, hpa: int, hkid: int) -> None: ...

    on_broken: Callable[[int], None] | None

    def integrity_broken(self, hpa: int) -> bool: ...
    def break_integrity(self, hpa: int) -> None: ...
    def create_key(self, hkid: int) -> None: ...
    def drop_key(self, hkid: int) -> None: ...


class Context(Protocol):
    """One virtual CPU in VMX non-root operation: registers, VMCS controls and exit information."""

    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    xcr0: int
    pkru: int
    tdx_mode: bool
    exception_bitmap: int
    tsc_offset: int
    tsc_multiplier: int
    cr0_guest_host_mask: int
    cr0_read_shadow: int
    cr4_guest_host_mask: int
    cr4_read_shadow: int
    interruptibility: int
    nmi_window_exiting: bool
    bus_lock_exiting: bool
    apicv: bool
    posted_interrupt_descriptor: int

    page_run: Any

    @property
    def gpr(self) -> memoryview: ...
    @property
    def vapic(self) -> memoryview: ...
    @property
    def exit_reason(self) -> int: ...
    @property
    def exit_qualification(self) -> int: ...
    @property
    def guest_linear_address(self) -> int: ...
    @property
    def guest_physical_address(self) -> int: ...
    @property
    def instruction_length(self) -> int: ...
    @property
    def instruction_info(self) -> int: ...
    @property
    def interruption_info(self) -> int: ...
    @property
    def ve_convertible(self) -> bool: ...
    def invept(self) -> None: ...
    def run(self) -> int: ...
    def page_added(self, hpa: int) -> None:
        """Note that the host has added a page for the TDCALL that exited, in one step."""
        ...

    def close(self) -> None: ...
    def inject(self, vector: int, kind: int, error_code: int | None = None, instruction_length: int = 0) -> None: ...
    def segment(self, index: int) -> tuple[int, int, int, int]: ...
    def set_segment(self, index: int, selector: int, base: int, limit: int, access_rights: int) -> None: ...
    def rdmsr(self, index: int) -> int: ...
    def wrmsr(self, index: int, value: int) -> None: ...
    def get_fpu(self) -> bytes: ...
    def set_fpu(self, image: bytes) -> None: ...
    def get_ymm_high(self) -> bytes: ...
    def set_ymm_high(self, image: bytes) -> None: ...
    def get_dr(self, index: int) -> int: ...
    def set_dr(self, index: int, value: int) -> None: ...
    def set_ept(self, eptp: int) -> None: ...
    def set_shared_ept(self, eptp: int, shared_bit: int) -> None: ...
    def set_msr_bitmap(self, bitmap: bytes) -> None: ...


class Platform(Protocol):
    """What the BIOS set up: memory, logical processors, KeyID ranges, the TSC."""

    @property
    def memory_size(self) -> int: ...
    @property
    def logical_processors(self) -> int: ...
    @property
    def packages(self) -> int: ...
    @property
    def physical_address_bits(self) -> int: ...
    @property
    def keyid_bits(self) -> int: ...
    @property
    def mktme_keyids(self) -> int: ...
    @property
    def tdx_keyids(self) -> int: ...
    @property
    def cmrs(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def tsc_hz(self) -> int: ...
    @property
    def first_private_hkid(self) -> int: ...
    @property
    def module_version(self) -> str: ...


class PageRun(Protocol):
    """Pages that a guest accepts one after another, and that the processor can take by itself."""

    def arm(
        self,
        *,
        call: int,
        table: int,
        free: int,
        made: int,
        blocks: Mapping[int, tuple[int, int, int]],
        busy: int,
        typed: int,
        used: int,
        keyid: int,
        locked: Callable[[], bool],
        same: tuple[tuple[object, str, object], ...],
        settle: Callable[[int], None],
    ) -> None: ...


class FirstTouch(Protocol):
    """What the host does about a page that the guest accepts and that is not there, as one step."""

    def __call__(self, gpa: int, aug: Callable[[int], bool]) -> int: ...
    def rest(self) -> PageRun | None: ...


class Processor(Protocol):
    """The processor: memory, native CPUID and MSRs, and the maker of virtual CPU contexts."""

    @property
    def platform(self) -> Platform: ...
    @property
    def memory(self) -> Memory: ...
    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]: ...
    def rdmsr(self, index: int) -> int: ...
    @property
    def msrs_changed(self) -> bool:
        """Whether host software has written an MSR since power-on: VP.ENTER asks for none before."""
        ...

    @property
    def first_touches(self) -> Mapping[int, FirstTouch] | None:
        """By TDVPR."""
        ...

    @property
    def random(self) -> Callable[[int], bytes]: ...

    def rdtsc(self) -> int: ...
    def new_context(self) -> Context: ...
    def enter_lp(self, lp: int, context: Any) -> None: ...
    def leave_lp(self, lp: int) -> None: ...
