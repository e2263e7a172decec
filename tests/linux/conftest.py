# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel over a scripted TDX module: it records SEAMCALLs and answers what a test wants, also what none should.

The processor and its memory are real; only what stands behind SEAMCALL is not. A healthy module never says
OPERAND_BUSY out of turn or fails PAGE.REMOVE, and how KVM takes that is the subject here.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from swtdx.cpu import _engine
from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor, SeamArgs
from swtdx.linux.arch.x86.virt.vmx.tdx import seamcall as leaves
from swtdx.linux.arch.x86.virt.vmx.tdx import tdx as host
from swtdx.linux.config import KernelConfig
from swtdx.linux.kernel import EmulatedKernel
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi import tdx_v10 as v10
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import filled

LEAF_NAMES = {value: name.removeprefix("TDH_") for name, value in vars(leaves).items() if name.startswith("TDH_")}
SETUP = {"SYS_INIT", "SYS_LP_INIT", "SYS_RD", "SYS_INFO", "SYS_CONFIG", "SYS_KEY_CONFIG", "SYS_TDMR_INIT"}
CONFIGS = [  # leaf, subleaf, configurable bits
    (0x1, host.NO_SUBLEAF, (0x0FFF3FFF, 0x00FF0000, 0x31044D88, 0xB8440000)),
    (0x7, 0, (0, 0xDC2B9B18, 0x2417F65, 0x5411C)),
    (0x80000008, host.NO_SUBLEAF, (0xFF, 0x200, 0, 0)),
]
TD_CPUID = {0: (7, 0, 0, 0), 1: (1, 2, 3, 4), 0x80000000: (0x80000008, 0, 0, 0), 0x80000008: (0x3034, 0, 0, 0)}

Answer = int | Callable[[SeamArgs], int]


@dataclass
class ScriptedModule:
    """``answers``: by leaf name, the statuses of the next calls; when used up, success."""

    calls: list[tuple[str, dict[str, int], int]] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def seamcall(self, fn: int, args: SeamArgs, lp: int) -> int:
        name = LEAF_NAMES[fn & 0xFFFF]
        self.calls.append((name, {register: getattr(args, register) for register in SeamArgs.__slots__}, lp))
        script = self.answers.get(name)
        if script:
            answer = script.pop(0)
            return answer if isinstance(answer, int) else answer(args)
        return getattr(self, f"_{name.lower()}", lambda args: 0)(args)

    def names(self) -> list[str]:
        """What was called since the last time, bring-up left out."""
        names = [name for name, _, _ in self.calls if name not in SETUP]
        self.calls.clear()
        return names

    def _sys_rd(self, args: SeamArgs) -> int:
        field_id = args.rdx
        table = {
            host.MD_TDX_FEATURES0: host.FEATURE_NO_RBP_MOD | host.FEATURE_TOPOLOGY_ENUM,
            host.MD_MAX_RESERVED_PER_TDMR: 16,
            **dict.fromkeys(host.MD_PAMT_ENTRY_SIZES, 16),
            host.MD_TDCS_BASE_SIZE: 6 << 12,
            host.MD_TDVPS_BASE_SIZE: 6 << 12,
            host.MD_ATTRIBUTES_FIXED0: 0x8000000070000001,
            host.MD_ATTRIBUTES_FIXED1: 0,
            host.MD_XFAM_FIXED0: 0x6DBE7,
            host.MD_XFAM_FIXED1: 3,
            host.MD_NUM_CPUID_CONFIG: len(CONFIGS),
            host.MD_MAX_VCPUS_PER_TD: 576,
        }
        for number, (leaf, subleaf, (eax, ebx, ecx, edx)) in enumerate(CONFIGS):
            table[host.MD_CPUID_CONFIG_LEAVES + number] = leaf | subleaf << 32
            table[host.MD_CPUID_CONFIG_VALUES + 2 * number] = eax | ebx << 32
            table[host.MD_CPUID_CONFIG_VALUES + 2 * number + 1] = ecx | edx << 32
        args.r8 = table[field_id]
        return 0

    def _sys_tdmr_init(self, args: SeamArgs) -> int:
        args.rdx = args.rcx + (1 << 30)
        return 0

    def _mng_rd(self, args: SeamArgs) -> int:
        field_id = args.rdx
        if field_id >> 56 != 0x94:
            args.r8 = 1 << 48
            return 0
        leaf = (field_id >> 9 & 0x7F) | (field_id >> 16 & 1) << 31
        registers = TD_CPUID.get(leaf)
        if registers is None or field_id & 0x1FE != 0x1FE:
            return 0xC0000C02 << 32
        args.r8 = registers[field_id & 1 and 2] | registers[3 if field_id & 1 else 1] << 32
        return 0


@contextmanager
def refused(code: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """The call in the block fails with errno ``code``."""
    with pytest.raises(OSError) as caught:
        yield caught
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code], getattr(caught.value, "__notes__", "")


@dataclass
class Bench:
    """A booted kernel and short ways to make its calls."""

    kernel: EmulatedKernel
    module: ScriptedModule
    keep: list[Any] = field(default_factory=list)

    def ioctl(self, fd: int, request: int, arg: Any = 0) -> int:
        """``arg``: an integer or a ctypes object."""
        return self.kernel.ioctl(fd, request, arg if isinstance(arg, int) else ctypes.addressof(arg))

    def device(self) -> int:
        return self.kernel.open("/dev/kvm")

    def vm(self, vm_type: int | None = None) -> int:
        kind = self.kernel.dialect.vm_type_tdx if vm_type is None else vm_type
        return self.ioctl(self.device(), k.KVM_CREATE_VM, kind)

    def enable(self, vm: int, cap: int, *args: int) -> int:
        request = k.kvm_enable_cap(cap=cap)
        for number, value in enumerate(args):
            request.args[number] = value
        return self.ioctl(vm, k.KVM_ENABLE_CAP, request)

    def command(self, fd: int, number: int, data: Any = 0, flags: int = 0, error: int = 0) -> int:
        """A TDX sub-command; ``self.cmd`` is the structure afterwards."""
        address = data if isinstance(data, int) else ctypes.addressof(data)
        self.keep = [data]
        dialect = self.kernel.dialect
        self.cmd = dialect.cmd(id=number, flags=flags, data=address, **{dialect.hw_error_member: error})
        return self.ioctl(fd, k.KVM_MEMORY_ENCRYPT_OP, self.cmd)

    def init_vm(self, **members: Any) -> Any:
        """An init_vm that is accepted, with ``members`` changed."""
        entries = members.pop("entries", [k.kvm_cpuid_entry2(function=0x80000008, eax=48 << 16)])
        if self.kernel.dialect is Dialect.V10:
            cpuid = filled(k.kvm_cpuid2, entries, nent=len(entries))
            self.cpuid = cpuid
            return v10.kvm_tdx_init_vm(**{"cpuid": ctypes.addressof(cpuid), **members})
        nent, padding = members.pop("nent", len(entries)), members.pop("padding", 0)
        init = filled(up.kvm_tdx_init_vm, entries, **{"attributes": 1 << 28, "xfam": 3, **members})
        init.cpuid.nent, init.cpuid.padding = nent, padding
        return init

    def td(self, *, init: bool = True) -> int:
        """A TD's VM with split irqchip, initialised."""
        vm = self.vm()
        self.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
        if init:
            self.command(vm, up.KVM_TDX_INIT_VM, self.init_vm())
        return vm

    def vcpu(self, vm: int, number: int = 0, *, init: bool = True) -> int:
        """A vCPU whose CPUID has X2APIC and 52 bits of physical address, initialised."""
        fd = self.ioctl(vm, k.KVM_CREATE_VCPU, number)
        entries = [
            k.kvm_cpuid_entry2(function=1, ecx=1 << 21),
            k.kvm_cpuid_entry2(function=0x80000000, eax=0x80000008),
            k.kvm_cpuid_entry2(function=0x80000008, eax=48 << 8 | 52),
        ]
        self.ioctl(fd, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, entries, nent=len(entries)))
        if init:
            self.command(fd, up.KVM_TDX_INIT_VCPU, 0x809000)
        return fd

    def memfd(self, vm: int, size: int = 0x10000) -> int:
        return self.ioctl(vm, k.KVM_CREATE_GUEST_MEMFD, k.kvm_create_guest_memfd(size=size))

    def memory(self, vm: int, gpa: int = 0, pages: int = 16, *, slot: int = 0) -> Any:
        """A slot with user memory and, upstream, a guest_memfd, all private. Returns the user memory."""
        size = pages << 12
        user = (ctypes.c_char * (size + 4096))()
        aligned = (ctypes.addressof(user) + 4095) & ~4095
        if self.kernel.dialect is Dialect.V10:
            region = k.kvm_userspace_memory_region(
                slot=slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=aligned
            )
            self.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, region)
        else:
            self.gmem = self.memfd(vm, size)
            region2 = k.kvm_userspace_memory_region2(
                slot=slot, flags=4, guest_phys_addr=gpa, memory_size=size, userspace_addr=aligned, guest_memfd=self.gmem
            )
            self.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region2)
            self.attributes(vm, gpa, size, 8)
        self.user_memory = user
        return aligned

    def slot_of(self, vm: int, memfd: int, *, slot: int = 0, gpa: int = 0, pages: int = 4) -> None:
        """A slot that shows the first pages of a guest_memfd."""
        user = self.user_memory = (ctypes.c_char * ((pages + 1) << 12))()
        self.ioctl(
            vm,
            k.KVM_SET_USER_MEMORY_REGION2,
            k.kvm_userspace_memory_region2(
                slot=slot,
                flags=int(k.KVM_MEM_GUEST_MEMFD),
                guest_phys_addr=gpa,
                memory_size=pages << 12,
                userspace_addr=(ctypes.addressof(user) + 4095) & ~4095,
                guest_memfd=memfd,
            ),
        )

    def attributes(self, vm: int, address: int, size: int, attributes: int, flags: int = 0) -> int:
        request = k.kvm_memory_attributes(address=address, size=size, attributes=attributes, flags=flags)
        return self.ioctl(vm, k.KVM_SET_MEMORY_ATTRIBUTES, request)

    def region(self, source: int, gpa: int, pages: int) -> Any:
        return up.kvm_tdx_init_mem_region(source_addr=source, gpa=gpa, nr_pages=pages)

    def run_page(self, vcpu: int) -> k.kvm_run:
        self.mapping = self.kernel.mmap(vcpu, 0x3000)
        return k.kvm_run.from_buffer(self.mapping)

    def vm_object(self) -> Any:
        """The newest struct kvm, to look inside."""
        return max(self.kernel.vms, key=lambda kvm: kvm.number)


def boot(
    dialect: Dialect | None = None, *, enable_tdx: bool = True, release: str | None = None, **platform: int
) -> Bench:
    """A bench with a scripted module."""
    settings: dict[str, Any] = {"memory_size": 1 << 30, "logical_processors": 2, **platform}
    processor = Processor(Platform(**settings))
    module = ScriptedModule()
    processor.load_seam_module(module)
    kernel = EmulatedKernel(processor, dialect, KernelConfig(enable_tdx=enable_tdx, kernel_release=release))
    return Bench(kernel, module)


@contextmanager
def signals(bench: Bench) -> Iterator[Callable[[], None]]:
    """Handlers of this process tell the kernel; what is yielded is such a handler."""
    bench.kernel.sees_signals = True
    try:
        yield ctypes.CFUNCTYPE(None)(_engine.signal_entry())
    finally:
        _engine.clear_signal()
        bench.kernel.sees_signals = False


def exits(*statuses: Answer) -> list[Answer]:
    """A script for VP_ENTER; an endless guest would hang the test, so what follows is a triple fault."""
    return [*statuses, *([0x4000000100000002] * 4)]


def tdvmcall(**registers: int) -> Callable[[SeamArgs], int]:
    """VP.ENTER returns with a TDVMCALL of these registers."""

    def enter(args: SeamArgs) -> int:
        for name in SeamArgs.__slots__:
            if name != "rcx":
                setattr(args, name, registers.get(name, 0))
        return 77

    return enter


def ept_violation(gpa: int, qualification: int = 2, extended: int = 0) -> Callable[[SeamArgs], int]:
    """VP.ENTER returns with an EPT violation."""

    def enter(args: SeamArgs) -> int:
        args.r10 = args.r11 = 0
        args.rcx, args.rdx, args.r8, args.r9 = qualification, extended, gpa, 0
        return 48

    return enter


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The newest released kernel, or with `on_release` another one."""
    return boot(release=getattr(request, "param", None))


@pytest.fixture
def runnable(bench: Bench) -> tuple[int, int]:
    """(VM, vCPU) of a finalised TD with 64 KiB of private memory at 0."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.module.names()
    return vm, vcpu


def on_release(name: str) -> pytest.MarkDecorator:
    """Let the fixture ``bench`` of a test be that release."""
    return pytest.mark.parametrize("bench", [name], indirect=True)


@pytest.fixture
def bench_v10() -> Bench:
    """v10; its kernel asks SYS.INFO, which this scripted module answers with zeros: see `v10_sysinfo`."""
    return boot_v10()


def boot_v10() -> Bench:
    """v10 needs TDSYSINFO in memory: the script writes it."""
    processor = Processor(Platform(memory_size=1 << 30, logical_processors=2))
    module = ScriptedModule()

    def sys_info(args: SeamArgs) -> int:
        info = bytearray(1024)
        import struct

        struct.pack_into("<3H", info, 32, 64, 16, 16)
        struct.pack_into("<H", info, 48, 4 << 12)
        struct.pack_into("<H", info, 52, 6 << 12)
        struct.pack_into("<4Q", info, 64, 0x8000000050000001, 0, 0x6DBE7, 3)
        struct.pack_into("<I", info, 128, len(CONFIGS))
        for number, (leaf, subleaf, registers) in enumerate(CONFIGS):
            struct.pack_into("<6I", info, 132 + 24 * number, leaf, subleaf, *registers)
        processor.memory.write(args.rcx, bytes(info))
        return 0

    module.answers["SYS_INFO"] = [sys_info]
    processor.load_seam_module(module)
    return Bench(EmulatedKernel(processor, Dialect.V10), module)


@pytest.fixture
def watchdog() -> Iterator[None]:
    """End the process, with all stacks shown, if a KVM_RUN neither exits nor can be interrupted."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
