# SPDX-License-Identifier: GPL-2.0-or-later
"""A processor without execution and a host that speaks SEAMCALL: the contract between `seam/` and `cpu/`, in small.

Memory, keys and native CPUID are the real ones of `swtdx.cpu` (plain Python); `FakeContext` replaces the engine. Its
``run()`` takes the next scripted exit: a callable that acts as the guest, sets exit information and returns the reason.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from swtdx.cpu import cpuid
from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import Platform
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.hardware import FirstTouch
from swtdx.seam.module import TdxModule
from swtdx.seam.status import describe
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from testing.tally import gathered

GIB = 1 << 30
TDCALL, CPUID = 77, 10
POWER_ON_MSRS = {0x10A: 0x138FD7B, 0x1A0: 0x850089, 0xBC: 1, 0xBD: 1, 0x345: 3 << 12}
REGISTERS = ("rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


SEEN: set[tuple[str, int]] = gathered("statuses")
"""(leaf function, RAX) of every SEAMCALL and TDCALL that the tests' hosts and guests made."""
NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}
GUEST_NAMES = {number: name for name, number in TDCALL_NUMBERS.items()}


GuestStep: TypeAlias = "Callable[[FakeContext], int]"
"""A function that acts as the guest and returns the reason of its exit."""
Step: TypeAlias = "int | GuestStep"


class Args:
    """SeamArgs."""

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

    def __init__(self, **registers: int) -> None:
        for name in REGISTERS:
            setattr(self, name, registers.pop(name, 0))
        assert not registers, registers

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in REGISTERS}


@dataclass(frozen=True)
class FakePlatform(Platform):
    """The platform with a round TSC frequency and a processor without AVX and BMI."""

    memory_size: int = GIB
    logical_processors: int = 2
    cpu_features: frozenset[str] | None = frozenset()  # the same on every machine that runs the tests

    @property
    def tsc_hz(self) -> int:
        return 2_000_000_000


class FakeContext:
    """A virtual CPU whose guest is a script."""

    def __init__(self, counts: bool = True) -> None:
        self.counts = counts
        self.page_run: Any = None
        self._gpr = memoryview(bytearray(128)).cast("Q")
        self._vapic = memoryview(bytearray(4096))
        self.script: list[Step] = []
        self.called: int | None = None
        self.injected: list[tuple[int, int, int | None]] = []
        self.closed = False
        self.flushes = 0
        self.msrs: dict[int, int] = {}
        self.fpu, self.ymm_high = bytes(range(256)) * 2, bytes(range(100, 116)) * 16
        self.segments: dict[int, tuple[int, int, int, int]] = {}
        self.dr: dict[int, int] = {}
        self.pkru = 0
        self.rip = self.rflags = self.cr0 = self.cr2 = self.cr3 = self.cr4 = self.cr8 = self.efer = self.xcr0 = 0
        self.exit_qualification = self.guest_linear_address = self.guest_physical_address = 0
        self.instruction_length, self.instruction_info, self.interruption_info = 4, 0, 0
        self.exit_reason = self.interruptibility = 0
        self.ve_convertible = False
        self.nmi_window_exiting = self.bus_lock_exiting = False
        self.posted_interrupt_descriptor = 0
        self.tdx_mode = self.apicv = False
        self.exception_bitmap = self.tsc_offset = self.tsc_multiplier = 0
        self.cr0_guest_host_mask = self.cr0_read_shadow = self.cr4_guest_host_mask = self.cr4_read_shadow = 0
        self.ept: int | None = None
        self.shared_ept: tuple[int, int] | None = None
        self.bitmap: bytes | None = None

    @property
    def gpr(self) -> memoryview:
        return self._gpr

    @property
    def vapic(self) -> memoryview:
        return self._vapic

    def invept(self) -> None:
        self.flushes += 1

    def run(self) -> int:
        self.note()
        step = self.script.pop(0)
        return step(self) if callable(step) else step

    def note(self) -> None:
        """The TDCALL before, if there was one, is done: note what came of it."""
        if self.called is not None and self.counts:
            SEEN.add((GUEST_NAMES.get(self.called, ""), self.gpr[0]))
        self.called = None

    def inject(self, vector: int, kind: int, error_code: int | None = None, instruction_length: int = 0) -> None:
        self.injected.append((int(vector), int(kind), error_code))

    def page_added(self, hpa: int) -> None:
        """Does nothing: a script is not watched."""

    def close(self) -> None:
        self.closed = True

    def segment(self, index: int) -> tuple[int, int, int, int]:
        return self.segments[int(index)]

    def set_segment(self, index: int, selector: int, base: int, limit: int, access_rights: int) -> None:
        self.segments[int(index)] = (selector, base, limit, access_rights)

    def rdmsr(self, index: int) -> int:
        return self.msrs.get(index, 0)

    def wrmsr(self, index: int, value: int) -> None:
        self.msrs[index] = value

    def get_fpu(self) -> bytes:
        return self.fpu

    def set_fpu(self, image: bytes) -> None:
        self.fpu = image

    def get_ymm_high(self) -> bytes:
        return self.ymm_high

    def set_ymm_high(self, image: bytes) -> None:
        self.ymm_high = image

    def get_dr(self, index: int) -> int:
        return self.dr.get(index, 0)

    def set_dr(self, index: int, value: int) -> None:
        self.dr[index] = value

    def set_ept(self, eptp: int) -> None:
        self.ept = eptp

    def set_shared_ept(self, eptp: int, shared_bit: int) -> None:
        self.shared_ept = (eptp, shared_bit)

    def set_msr_bitmap(self, bitmap: bytes) -> None:
        self.bitmap = bitmap

    # --- the guest's side ---------------------------------------------------------------------------------------------

    def long_mode(self) -> None:
        self.segments[1] = (8, 0, 0xFFFFFFFF, 0xA09B)
        self.segments[2] = (16, 0, 0xFFFFFFFF, 0xC093)

    def queue(self, *steps: Step) -> None:
        """Let the guest do these steps; a step is an exit reason or a callable."""
        self.script += steps


class FakeProcessor:
    """The processor: real memory and CPUID, contexts that follow scripts."""

    def __init__(self, platform: FakePlatform) -> None:
        self.platform = platform
        self.memory = PhysicalMemory(platform.memory_size, platform.keyid_shift)
        self.cpuid_overrides: dict[tuple[int, int], cpuid.Registers] = {}
        self.msrs = dict(POWER_ON_MSRS)
        self.tsc = 1_000_000
        self.contexts: list[FakeContext] = []
        self.on_lp: dict[int, FakeContext] = {}
        self.first_touches: dict[int, FirstTouch] | None = None

    def cpuid(self, leaf: int, subleaf: int = 0) -> cpuid.Registers:
        return self.cpuid_overrides.get((leaf, subleaf)) or cpuid.native(self.platform, leaf, subleaf)

    def rdmsr(self, index: int) -> int:
        return self.msrs[index]

    @property
    def msrs_changed(self) -> bool:
        return self.msrs != POWER_ON_MSRS

    @property
    def random(self) -> Callable[[int], bytes]:
        return secrets.token_bytes

    def rdtsc(self) -> int:
        self.tsc += 1
        return self.tsc

    def new_context(self) -> FakeContext:
        self.contexts.append(FakeContext(self.platform.module_version == "1.5.06"))
        return self.contexts[-1]

    def enter_lp(self, lp: int, context: FakeContext) -> None:
        self.on_lp[lp] = context

    def leave_lp(self, lp: int) -> None:
        del self.on_lp[lp]


def tdcall(leaf: int, *, version: int = 0, **registers: int) -> GuestStep:
    """A guest step: TDCALL with these registers (names of `GPR`); RCX is 0 unless given."""

    def step(context: FakeContext) -> int:
        context.called = leaf
        context.gpr[0] = leaf | version << 16
        for name, value in ({"rcx": 0} | registers).items():
            context.gpr[GPR[name]] = value
        return TDCALL

    return step


GPR = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7} | {
    f"r{n}": n for n in range(8, 16)
}


class Host:
    """A host kernel in small: it brings the module up, builds TDs and takes them down by SEAMCALL alone."""

    def __init__(self, processor: FakeProcessor) -> None:
        self.processor = processor
        self.memory = processor.memory
        self.module = TdxModule(processor)
        self.next_page = 0x100_0000
        self.pages: list[int] = []
        self.next_hkid = 33
        self.status = 0

    # --- basics -------------------------------------------------------------------------------------------------------

    def call(self, name: str | int, *, version: int = 0, lp: int = 0, **registers: int) -> tuple[int, Args]:
        """A SEAMCALL by name; returns (RAX, registers after)."""
        args = Args(**registers)
        number = name if isinstance(name, int) else SEAMCALL_NUMBERS[name]
        status = self.module.seamcall(number | version << 16, args, lp)
        if not self.module.version.has_own_statuses:
            SEEN.add((NAMES.get(number & 0xFFFF, ""), status))
        return status, args

    def ok(self, name: str, *, version: int = 0, lp: int = 0, **registers: int) -> Args:
        """A SEAMCALL that must succeed."""
        status, args = self.call(name, version=version, lp=lp, **registers)
        assert status == 0, f"{name}: {describe(status)}"
        return args

    def page(self, size: int = 4096) -> int:
        """A free page of RAM."""
        self.next_page = (self.next_page + size - 1) & -size
        hpa = self.next_page
        self.next_page += size
        self.pages.append(hpa)
        return hpa

    def write(self, data: bytes, alignment: int = 4096) -> int:
        """Put data into a fresh buffer; its HPA."""
        hpa = self.page(max(4096, alignment))
        self.memory.write(hpa, data)
        return hpa

    # --- bring-up -----------------------------------------------------------------------------------------------------

    def tdmr(
        self, base: int = 0, size: int = GIB, pamt: int = 0x10_0000, reserved: Sequence[tuple[int, int]] = ()
    ) -> bytes:
        """A TDMR_INFO whose metadata lies at ``pamt`` (1G, 2M, 4K); reserved areas are (offset, size)."""
        sizes = [max(4096, size >> shift << 4) for shift in (30, 21, 12)]
        words = [base, size]
        for length in sizes:
            words += [pamt, length]
            pamt += length
        areas = [*reserved, *[(0, 0)] * (16 - len(reserved))]
        return struct.pack("<40Q", *words, *[word for area in areas for word in area])

    def config(self, *tdmrs: bytes, hkid: int = 32, count: int | None = None) -> tuple[int, Args]:
        pointers = b"".join(struct.pack("<Q", self.write(tdmr)) for tdmr in tdmrs)
        array = self.write(pointers)
        return self.call("TDH.SYS.CONFIG", rcx=array, rdx=len(tdmrs) if count is None else count, r8=hkid)

    def start(self) -> None:
        """SYS.INIT and SYS.LP.INIT everywhere."""
        self.ok("TDH.SYS.INIT")
        for lp in range(self.processor.platform.logical_processors):
            self.ok("TDH.SYS.LP.INIT", lp=lp)

    def default_tdmr(self) -> bytes:
        """All of memory, the first 16 MiB (which hold the metadata) reserved."""
        return self.tdmr(reserved=[(0, 0x100_0000)])

    def bring_up(self) -> Host:
        self.start()
        status, _ = self.config(self.default_tdmr())
        assert status == 0, describe(status)
        return self.complete()

    def complete(self) -> Host:
        """After SYS.CONFIG: SYS.KEY.CONFIG on each package, and the TDMR at 0 initialised."""
        platform = self.processor.platform
        for package in range(platform.packages):
            self.ok("TDH.SYS.KEY.CONFIG", lp=package * platform.logical_processors // platform.packages)
        while self.ok("TDH.SYS.TDMR.INIT", rcx=0).rdx < platform.memory_size:
            pass
        return self

    # --- TDs ----------------------------------------------------------------------------------------------------------

    def td_params(self, **changes: Any) -> bytes:
        """TD_PARAMS with fields by name; ``cpuid`` maps a slot of the configuration to registers."""
        fields: dict[str, Any] = {
            "attributes": 1 << 28, "xfam": 3, "max_vcpus": 4, "num_l2_vms": 0, "msr_config_ctls": 0,
            "reserved_0": b"", "eptp_controls": 0x1E, "config_flags": 4, "tsc_frequency": 40, "reserved_1": b"",
            "mrconfigid": b"\x11" * 48, "mrowner": b"\x22" * 48, "mrownerconfig": b"\x33" * 48,
            "arch_capabilities": 0, "reserved_2": b"",
        }  # fmt: skip
        slots = changes.pop("cpuid", {})
        tail = changes.pop("reserved_3", b"")
        assert not set(changes) - set(fields), changes
        if not self.module.version.config_flags_fixed0 & fields["config_flags"]:
            fields["config_flags"] = 0
        fields |= changes
        data = bytearray(struct.pack("<QQHBB4sQQH38s48s48s48sQ24s", *fields.values()))
        for slot in range(18):
            data += struct.pack("<4I", *slots.get(slot, (0, 0, 0, 0)))
        return bytes(data + tail).ljust(1024, b"\0")

    def create(self, hkid: int | None = None) -> int:
        """A TD with its keys configured, without TDCX pages."""
        if hkid is None:
            hkid, self.next_hkid = self.next_hkid, self.next_hkid + 1
        tdr = self.page()
        self.ok("TDH.MNG.CREATE", rcx=tdr, rdx=hkid)
        platform = self.processor.platform
        for package in range(platform.packages):
            self.ok("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=package * platform.logical_processors // platform.packages)
        return tdr

    def uninitialized(self, pages: int | None = None) -> int:
        tdr = self.create()
        for _ in range(self.module.version.min_tdcx if pages is None else pages):
            self.ok("TDH.MNG.ADDCX", rcx=self.page(), rdx=tdr)
        return tdr

    def build(self, pages: int | None = None, **params: Any) -> int:
        """A TD in OP_STATE INITIALIZED."""
        tdr = self.uninitialized(pages)
        self.ok("TDH.MNG.INIT", rcx=tdr, rdx=self.write(self.td_params(**params)))
        return tdr

    def vcpu(self, tdr: int, *, x2apic_id: int | None = None, rcx: int = 0x1234, lp: int = 0, pages: int = 5) -> int:
        """A virtual CPU in state READY."""
        tdvpr = self.page()
        self.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
        for _ in range(pages):
            self.ok("TDH.VP.ADDCX", rcx=self.page(), rdx=tdvpr)
        version = int(x2apic_id is not None and self.module.version.leaf_versions)
        self.ok("TDH.VP.INIT", version=version, rcx=tdvpr, rdx=rcx, r8=x2apic_id or 0, lp=lp)
        return tdvpr

    def runnable(self, **params: Any) -> tuple[int, int, FakeContext]:
        """A finalized TD with one virtual CPU in 64-bit mode: (TDR, TDVPR, context)."""
        tdr = self.build(**params)
        tdvpr = self.vcpu(tdr, x2apic_id=0)
        context = self.processor.contexts[-1]
        context.long_mode()
        self.ok("TDH.MR.FINALIZE", rcx=tdr)
        return tdr, tdvpr, context

    def tables(self, tdr: int, gpa: int, lowest: int = 1) -> None:
        """Add the Secure-EPT pages down to the entry of ``gpa`` at level ``lowest - 1``."""
        td = self.module.tds[tdr]
        for level in range(td.sept.levels - 1, lowest - 1, -1):
            rcx = gpa & ~((1 << 12 + 9 * level) - 1) | level
            _, _, reached = td.sept.walk(gpa, level - 1)
            if reached >= level:
                self.ok("TDH.MEM.SEPT.ADD", rcx=rcx, rdx=tdr, r8=self.page())

    def add(self, tdr: int, gpa: int, content: bytes = bytes(4096)) -> int:
        """Add (and do not measure) a page; its HPA."""
        self.tables(tdr, gpa)
        source, hpa = self.write(content), self.page()
        self.ok("TDH.MEM.PAGE.ADD", rcx=gpa, rdx=tdr, r8=hpa, r9=source)
        return hpa

    def augment(self, tdr: int, gpa: int, level: int = 0) -> int:
        """Augment a page; its HPA."""
        self.tables(tdr, gpa, lowest=level + 1)
        hpa = self.page(4096 << 9 * level)
        self.ok("TDH.MEM.PAGE.AUG", rcx=gpa | level, rdx=tdr, r8=hpa)
        return hpa

    def entry(self, tdr: int, gpa: int, level: int = 0) -> tuple[int, int]:
        """(entry, level reached) in the real Secure EPT."""
        _, entry, reached = self.module.tds[tdr].sept.walk(gpa, level)
        return entry, reached

    def enter(self, tdvpr: int, *, lp: int = 0, **registers: int) -> tuple[int, Args]:
        """VP.ENTER: (RAX, registers after)."""
        result = self.call("TDH.VP.ENTER", rcx=tdvpr, lp=lp, **registers)
        for context in getattr(self.processor, "contexts", ()):
            context.note()
        return result

    def guest(self, tdvpr: int, context: FakeContext, *steps: Step, lp: int = 0) -> tuple[int, Args]:
        """Run steps and then let the host's interrupt end it: (RAX, registers after)."""
        context.queue(*steps, 1)
        return self.enter(tdvpr, lp=lp)

    def tear_down(self, tdr: int, tdvprs: Iterable[int] = (), pages: Iterable[int] = (), lp: int = 0) -> None:
        """Everything back: flush, key, pages (children first), TDR."""
        for tdvpr in tdvprs:
            self.ok("TDH.VP.FLUSH", rcx=tdvpr, lp=lp)
        self.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)
        platform = self.processor.platform
        for package in range(platform.packages):
            self.ok("TDH.PHYMEM.CACHE.WB", rcx=0, lp=package * platform.logical_processors // platform.packages)
        self.ok("TDH.MNG.KEY.FREEID", rcx=tdr)
        for page in pages:
            self.ok("TDH.PHYMEM.PAGE.RECLAIM", rcx=page)
        self.ok("TDH.PHYMEM.PAGE.RECLAIM", rcx=tdr)

    def snapshot(self) -> tuple[object, ...]:
        """Everything a failed leaf function must leave alone, comparable."""
        module = self.module
        tds = {
            hpa: {
                name: repr(value) if name in ("vcpus", "cpuid", "msrs", "sept") else value
                for name, value in vars(td).items()
                if name not in ("mrtd_context", "rtmr", "refcount", "tdcx")
            }
            | {
                "mrtd_so_far": td.mrtd_context.hexdigest(), "rtmr": tuple(td.rtmr), "refcount": tuple(td.refcount),
                "tdcx": tuple(td.tdcx),
            }
            for hpa, td in module.tds.items()
        }  # fmt: skip
        vcpus = {
            hpa: {name: value for name, value in vars(vcpu).items() if name not in ("td", "context", "pages", "ve")}
            | {"pages": tuple(vcpu.pages), "ve": repr(vcpu.ve)}
            for hpa, vcpu in module.vcpus.items()
        }
        metadata = module.memory.raw[0x10_0000 : 0x10_0000 + 0x80_0000].tobytes()
        kot = tuple((module.kot.state(h), module.kot.write_back_pending(h)) for h in module.kot.private)
        tables = tuple(module.memory.raw[page : page + 4096].tobytes() for page in self.pages)
        return module.state, tds, vcpus, hash(metadata), kot, hash(tables)
