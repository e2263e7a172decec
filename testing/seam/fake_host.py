# SPDX-License-Identifier: GPL-2.0-or-later
"""A processor without execution and a host that speaks SEAMCALL: the contract between `seam/` and `cpu/`, in small.

Memory, keys and native CPUID are the real ones of `swtdx.cpu` (plain Python); `FakeContext` replaces the engine. Its
``run()`` takes the next scripted exit: a callable that acts as the guest, sets exit information and returns the reason.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from swtdx.cpu import cpuid
from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import Platform
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.module import TdxModule
from swtdx.seam.status import describe
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS

GIB = 1 << 30
TDCALL, CPUID = 77, 10
POWER_ON_MSRS = {0x10A: 0x1180179, 0x1A0: 1}
REGISTERS = ("rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


SEEN: set[tuple[str, int]] = set()
"""(leaf function, RAX) of every SEAMCALL and TDCALL that the tests' hosts and guests made; for test_status_coverage."""
NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}
GUEST_NAMES = {number: name for name, number in TDCALL_NUMBERS.items()}


class Args:
    """SeamArgs."""

    def __init__(self, **registers):
        for name in REGISTERS:
            setattr(self, name, registers.pop(name, 0))
        assert not registers, registers

    def as_dict(self):
        return {name: getattr(self, name) for name in REGISTERS}


@dataclass(frozen=True)
class FakePlatform(Platform):
    """The platform with a round TSC frequency."""

    memory_size: int = GIB
    logical_processors: int = 2

    @property
    def tsc_hz(self):
        return 2_000_000_000


class FakeContext:
    """A virtual CPU whose guest is a script."""

    def __init__(self, counts=True):
        self.counts = counts
        self._gpr = memoryview(bytearray(128)).cast("Q")
        self._vapic = memoryview(bytearray(4096))
        self.script = []
        self.called = None
        self.injected = []
        self.closed = False
        self.msrs = {}
        self.segments = {}
        self.dr = {}
        self.rip = self.rflags = self.cr0 = self.cr2 = self.cr3 = self.cr4 = self.cr8 = self.efer = self.xcr0 = 0
        self.exit_qualification = self.guest_linear_address = self.guest_physical_address = 0
        self.instruction_length, self.instruction_info, self.interruption_info = 4, 0, 0
        self.exit_reason = self.interruptibility = 0
        self.ve_convertible = False
        self.nmi_window_exiting = False
        self.posted_interrupt_descriptor = 0
        self.ept = None
        self.shared_ept = None
        self.bitmap = None

    @property
    def gpr(self):
        return self._gpr

    @property
    def vapic(self):
        return self._vapic

    def run(self):
        self.note()
        step = self.script.pop(0)
        return step(self) if callable(step) else step

    def note(self):
        """The TDCALL before, if there was one, is done: note what came of it."""
        if self.called is not None and self.counts:
            SEEN.add((GUEST_NAMES.get(self.called, ""), self.gpr[0]))
        self.called = None

    def inject(self, vector, kind, error_code=None, instruction_length=0):
        self.injected.append((int(vector), int(kind), error_code))

    def close(self):
        self.closed = True

    def segment(self, index):
        return self.segments[int(index)]

    def set_segment(self, index, *parts):
        self.segments[int(index)] = parts

    def rdmsr(self, index):
        return self.msrs.get(index, 0)

    def wrmsr(self, index, value):
        self.msrs[index] = value

    def get_fpu(self):
        return bytes(range(256)) * 2

    def get_dr(self, index):
        return self.dr.get(index, 0)

    def set_dr(self, index, value):
        self.dr[index] = value

    def set_ept(self, eptp):
        self.ept = eptp

    def set_shared_ept(self, eptp, shared_bit):
        self.shared_ept = (eptp, shared_bit)

    def set_msr_bitmap(self, bitmap):
        self.bitmap = bitmap

    # --- the guest's side ---------------------------------------------------------------------------------------------

    def long_mode(self):
        self.segments[1] = (8, 0, 0xFFFFFFFF, 0xA09B)
        self.segments[2] = (16, 0, 0xFFFFFFFF, 0xC093)

    def queue(self, *steps):
        """Let the guest do these steps; a step is an exit reason or a callable."""
        self.script += steps


class FakeProcessor:
    """The processor: real memory and CPUID, contexts that follow scripts."""

    def __init__(self, platform):
        self.platform = platform
        self.memory = PhysicalMemory(platform.memory_size, platform.keyid_shift)
        self.cpuid_overrides = {}
        self.msrs = dict(POWER_ON_MSRS)
        self.tsc = 1_000_000
        self.contexts = []
        self.on_lp = {}
        self.flushes = 0

    def cpuid(self, leaf, subleaf=0):
        return self.cpuid_overrides.get((leaf, subleaf)) or cpuid.native(self.platform, leaf, subleaf)

    def rdmsr(self, index):
        return self.msrs[index]

    @property
    def msrs_changed(self):
        return self.msrs != POWER_ON_MSRS

    def rdtsc(self):
        self.tsc += 1
        return self.tsc

    def new_context(self):
        self.contexts.append(FakeContext(self.platform.module_version == "1.5.06"))
        return self.contexts[-1]

    def enter_lp(self, lp, context):
        self.on_lp[lp] = context

    def invept(self):
        self.flushes += 1

    def leave_lp(self, lp):
        del self.on_lp[lp]


def tdcall(leaf, *, version=0, **registers):
    """A guest step: TDCALL with these registers (names of `GPR`); RCX is 0 unless given."""

    def step(context):
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

    def __init__(self, processor):
        self.processor = processor
        self.memory = processor.memory
        self.module = TdxModule(processor)
        self.next_page = 0x100_0000
        self.pages = []
        self.next_hkid = 33
        self.status = 0

    # --- basics -------------------------------------------------------------------------------------------------------

    def call(self, name, *, version=0, lp=0, **registers):
        """A SEAMCALL by name; returns (RAX, registers after)."""
        args = Args(**registers)
        number = SEAMCALL_NUMBERS.get(name, name)
        status = self.module.seamcall(number | version << 16, args, lp)
        if not self.module.version.has_own_statuses:
            SEEN.add((NAMES.get(number & 0xFFFF, ""), status))
        return status, args

    def ok(self, name, **keywords):
        """A SEAMCALL that must succeed."""
        status, args = self.call(name, **keywords)
        assert status == 0, f"{name}: {describe(status)}"
        return args

    def page(self, size=4096):
        """A free page of RAM."""
        self.next_page = (self.next_page + size - 1) & -size
        hpa = self.next_page
        self.next_page += size
        self.pages.append(hpa)
        return hpa

    def write(self, data, alignment=4096):
        """Put data into a fresh buffer; its HPA."""
        hpa = self.page(max(4096, alignment))
        self.memory.write(hpa, data)
        return hpa

    # --- bring-up -----------------------------------------------------------------------------------------------------

    def tdmr(self, base=0, size=GIB, pamt=0x10_0000, reserved=()):
        """A TDMR_INFO whose metadata lies at ``pamt`` (1G, 2M, 4K); reserved areas are (offset, size)."""
        sizes = [max(4096, size >> shift << 4) for shift in (30, 21, 12)]
        words = [base, size]
        for length in sizes:
            words += [pamt, length]
            pamt += length
        areas = [*reserved, *[(0, 0)] * (16 - len(reserved))]
        return struct.pack("<40Q", *words, *[word for area in areas for word in area])

    def config(self, *tdmrs, hkid=32, count=None):
        pointers = b"".join(struct.pack("<Q", self.write(tdmr)) for tdmr in tdmrs)
        array = self.write(pointers)
        return self.call("TDH.SYS.CONFIG", rcx=array, rdx=len(tdmrs) if count is None else count, r8=hkid)

    def start(self):
        """SYS.INIT and SYS.LP.INIT everywhere."""
        self.ok("TDH.SYS.INIT")
        for lp in range(self.processor.platform.logical_processors):
            self.ok("TDH.SYS.LP.INIT", lp=lp)

    def default_tdmr(self):
        """All of memory, the first 16 MiB (which hold the metadata) reserved."""
        return self.tdmr(reserved=[(0, 0x100_0000)])

    def bring_up(self):
        self.start()
        status, _ = self.config(self.default_tdmr())
        assert status == 0, describe(status)
        return self.complete()

    def complete(self):
        """After SYS.CONFIG: SYS.KEY.CONFIG on each package, and the TDMR at 0 initialised."""
        platform = self.processor.platform
        for package in range(platform.packages):
            self.ok("TDH.SYS.KEY.CONFIG", lp=package * platform.logical_processors // platform.packages)
        while self.ok("TDH.SYS.TDMR.INIT", rcx=0).rdx < platform.memory_size:
            pass
        return self

    # --- TDs ----------------------------------------------------------------------------------------------------------

    def td_params(self, **changes):
        """TD_PARAMS with fields by name; ``cpuid`` maps a slot of the configuration to registers."""
        fields = {
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

    def create(self, hkid=None):
        """A TD with its keys configured, without TDCX pages."""
        if hkid is None:
            hkid, self.next_hkid = self.next_hkid, self.next_hkid + 1
        tdr = self.page()
        self.ok("TDH.MNG.CREATE", rcx=tdr, rdx=hkid)
        platform = self.processor.platform
        for package in range(platform.packages):
            self.ok("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=package * platform.logical_processors // platform.packages)
        return tdr

    def uninitialized(self, pages=None):
        tdr = self.create()
        for _ in range(self.module.version.min_tdcx if pages is None else pages):
            self.ok("TDH.MNG.ADDCX", rcx=self.page(), rdx=tdr)
        return tdr

    def build(self, pages=None, **params):
        """A TD in OP_STATE INITIALIZED."""
        tdr = self.uninitialized(pages)
        self.ok("TDH.MNG.INIT", rcx=tdr, rdx=self.write(self.td_params(**params)))
        return tdr

    def vcpu(self, tdr, *, x2apic_id=None, rcx=0x1234, lp=0, pages=5):
        """A virtual CPU in state READY."""
        tdvpr = self.page()
        self.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
        for _ in range(pages):
            self.ok("TDH.VP.ADDCX", rcx=self.page(), rdx=tdvpr)
        version = int(x2apic_id is not None and self.module.version.leaf_versions)
        self.ok("TDH.VP.INIT", version=version, rcx=tdvpr, rdx=rcx, r8=x2apic_id or 0, lp=lp)
        return tdvpr

    def runnable(self, **params):
        """A finalized TD with one virtual CPU in 64-bit mode: (TDR, TDVPR, context)."""
        tdr = self.build(**params)
        tdvpr = self.vcpu(tdr, x2apic_id=0)
        context = self.processor.contexts[-1]
        context.long_mode()
        self.ok("TDH.MR.FINALIZE", rcx=tdr)
        return tdr, tdvpr, context

    def tables(self, tdr, gpa, lowest=1):
        """Add the Secure-EPT pages down to the entry of ``gpa`` at level ``lowest - 1``."""
        td = self.module.tds[tdr]
        for level in range(td.sept.levels - 1, lowest - 1, -1):
            rcx = gpa & ~((1 << 12 + 9 * level) - 1) | level
            _, _, reached = td.sept.walk(gpa, level - 1)
            if reached >= level:
                self.ok("TDH.MEM.SEPT.ADD", rcx=rcx, rdx=tdr, r8=self.page())

    def add(self, tdr, gpa, content=bytes(4096)):
        """Add (and do not measure) a page; its HPA."""
        self.tables(tdr, gpa)
        source, hpa = self.write(content), self.page()
        self.ok("TDH.MEM.PAGE.ADD", rcx=gpa, rdx=tdr, r8=hpa, r9=source)
        return hpa

    def augment(self, tdr, gpa, level=0):
        """Augment a page; its HPA."""
        self.tables(tdr, gpa, lowest=level + 1)
        hpa = self.page(4096 << 9 * level)
        self.ok("TDH.MEM.PAGE.AUG", rcx=gpa | level, rdx=tdr, r8=hpa)
        return hpa

    def entry(self, tdr, gpa, level=0):
        """(entry, level reached) in the real Secure EPT."""
        _, entry, reached = self.module.tds[tdr].sept.walk(gpa, level)
        return entry, reached

    def enter(self, tdvpr, *, lp=0, **registers):
        """VP.ENTER: (RAX, registers after)."""
        result = self.call("TDH.VP.ENTER", rcx=tdvpr, lp=lp, **registers)
        for context in getattr(self.processor, "contexts", ()):
            context.note()
        return result

    def guest(self, tdvpr, context, *steps, lp=0):
        """Run steps and then let the host's interrupt end it: (RAX, registers after)."""
        context.queue(*steps, 1)
        return self.enter(tdvpr, lp=lp)

    def tear_down(self, tdr, tdvprs=(), pages=(), lp=0):
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

    def snapshot(self):
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
