# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted kernel: it answers every ioctl of a launch, writes down what was called, and plays exits from a list.

It emulates nothing. What it is for: the order of the calls, the handling of each exit, and refusal at any step.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator

from swtdx.uapi import kvm
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.kvm import Cap, Exit, kvm_cpuid2, kvm_cpuid_entry2, kvm_run

Play = Callable[[kvm_run, mmap.mmap], int | None]
"""Fills the shared page for one return of KVM_RUN; a number is the errno to fail with."""

MMAP_SIZE = 0x3000
_CAPABILITIES = {
    Cap.USER_MEMORY2: 1, Cap.GUEST_MEMFD: 1, Cap.MEMORY_ATTRIBUTES: 8, Cap.MAX_VCPUS: 4, Cap.READONLY_MEM: 1,
    Cap.X86_APIC_BUS_CYCLES_NS: 1, Cap.SPLIT_IRQCHIP: 1,
}  # fmt: skip
SUPPORTED = [
    kvm_cpuid_entry2(0x0, 0, 0, 0x20, 0, 0, 0),
    kvm_cpuid_entry2(0x1, 0, 0, 0x806F8, 0x00080800, 0, 0x078BFBFF),
    kvm_cpuid_entry2(0x4, 0, 1, 0x121, 0x1C0003F, 0x3F, 1),
    kvm_cpuid_entry2(0xB, 0, 1, 0, 1, 0x100, 0),
    kvm_cpuid_entry2(0xD, 0, 1, 0x7, 0, 0, 0),
    kvm_cpuid_entry2(0x80000008, 0, 0, 0x3934, 0, 0, 0),
]


class FakeKernel:
    """``calls`` is the record: (descriptor's name, request or sub-command name). ``refuse`` maps names to errnos."""

    name = "fake"

    def __init__(
        self, dialect: Dialect = Dialect.UPSTREAM, tdx: bool = True, plays: dict[int, list[Play]] | None = None
    ):
        self.dialect = dialect
        self.tdx = tdx
        self.calls: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.regions: list[tuple[int, int, bool, bytes]] = []
        self.attributes: list[tuple[int, int, int]] = []
        self.holes: list[tuple[int, int, int]] = []
        self.msis: list[tuple[int, int]] = []
        self.init_vm: bytes = b""
        self.cpuids: dict[str, list[kvm_cpuid_entry2]] = {}
        self._plays: dict[str, Iterator[Play]] = {f"vcpu{n}": iter(p) for n, p in (plays or {}).items()}
        self._pages: dict[str, mmap.mmap] = {}
        self._next = 1000

    def _new(self, name: str) -> int:
        self._next += 1
        self.names[self._next] = name
        return self._next

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        self._check("open")
        return self._new("kvm")

    def mmap(self, fd: int, length: int, offset: int = 0) -> mmap.mmap:
        return self._pages.setdefault(self.names[fd], mmap.mmap(-1, length))

    def close(self, fd: int) -> None:
        self.calls.append((self.names.pop(fd), "close"))

    def eventfd(self, initval: int = 0, flags: int = 0) -> int:
        return self._new("eventfd")

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self.holes.append((fd, offset, length))

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        name = self.names[fd]
        if request == kvm.KVM_RUN:
            return self._run(name)
        if request == kvm.KVM_MEMORY_ENCRYPT_OP:
            cmd = self.dialect.cmd.from_address(arg)
            called = f"KVM_TDX_{TdxCommand(cmd.id).name}"
        else:
            cmd, called = None, kvm.ioctl_name(request)
        if request != kvm.KVM_CHECK_EXTENSION:
            self.calls.append((name, called))
        self._check(called)
        if cmd is not None:
            return self._tdx(called, cmd)
        return self._answer(name, request, arg)

    def _check(self, called: str) -> None:
        if called in self.refuse:
            raise OSError(self.refuse[called], os.strerror(self.refuse[called]))

    def _answer(self, name: str, request: int, arg: int) -> int:
        if request == kvm.KVM_CHECK_EXTENSION:
            if arg == self.dialect.cap_vm_types:
                return 1 | (1 << self.dialect.vm_type_tdx if self.tdx else 0)
            return _CAPABILITIES.get(Cap(arg), 0) if arg in set(Cap) else 0
        if request == kvm.KVM_GET_VCPU_MMAP_SIZE:
            return MMAP_SIZE
        if request == kvm.KVM_CREATE_VM:
            return self._new("vm")
        if request == kvm.KVM_CREATE_VCPU:
            return self._new(f"vcpu{arg}")
        if request == kvm.KVM_CREATE_GUEST_MEMFD:
            return self._new("memfd")
        if request == kvm.KVM_GET_SUPPORTED_CPUID:
            table = kvm_cpuid2.from_address(arg)
            table.nent = len(SUPPORTED)
            entries = (kvm_cpuid_entry2 * len(SUPPORTED)).from_address(arg + ctypes.sizeof(kvm_cpuid2))
            for position, entry in enumerate(SUPPORTED):
                entries[position] = entry
        elif request == kvm.KVM_SET_CPUID2:
            count = kvm_cpuid2.from_address(arg).nent
            array = (kvm_cpuid_entry2 * count).from_address(arg + ctypes.sizeof(kvm_cpuid2))
            self.cpuids[name] = [kvm_cpuid_entry2.from_buffer_copy(entry) for entry in array]
        elif request == kvm.KVM_SET_MEMORY_ATTRIBUTES:
            attributes = kvm.kvm_memory_attributes.from_address(arg)
            self.attributes.append((attributes.address, attributes.size, attributes.attributes))
        elif request == kvm.KVM_SIGNAL_MSI:
            msi = kvm.kvm_msi.from_address(arg)
            self.msis.append((msi.address_lo | msi.address_hi << 32, msi.data))
        return 0

    def _tdx(self, called: str, cmd: ctypes.Structure) -> int:
        data: int = cmd.data
        if called == "KVM_TDX_CAPABILITIES":
            answer = self.dialect.capabilities.from_address(data)
            if self.dialect is Dialect.UPSTREAM:
                answer.supported_attrs, answer.supported_xfam = 1 << 28, 3
                answer.user_tdvmcallinfo_1_r11 = 2
                answer.cpuid.nent = 1
                at = data + ctypes.sizeof(self.dialect.capabilities)
                entry = kvm_cpuid_entry2.from_address(at)
                entry.function, entry.eax = 0x80000008, 0xFF0000
            else:
                answer.attrs_fixed0, answer.attrs_fixed1 = 1 << 28, 0
                answer.xfam_fixed0, answer.xfam_fixed1 = 7, 3
                answer.nr_cpuid_configs = 0
        elif called == "KVM_TDX_INIT_VM":
            self.init_vm = ctypes.string_at(data, ctypes.sizeof(self.dialect.init_vm))
        elif called == "KVM_TDX_INIT_MEM_REGION":
            region = self.dialect.init_mem_region.from_address(data)
            source, gpa, pages = region.source_addr, region.gpa, region.nr_pages
            flags: int = cmd.flags
            self.regions.append((gpa, pages, bool(flags & 1), ctypes.string_at(source, pages * 4096)))
        return 0

    def _run(self, name: str) -> int:
        page = self._pages[name]
        run = kvm_run.from_buffer(page)
        while True:
            if run.immediate_exit:
                run.exit_reason = Exit.INTR
                raise OSError(errno.EINTR, "Interrupted system call")
            play = next(self._plays.get(name, iter(())), None)
            if play is not None:
                failure = play(run, page)
                if failure:
                    raise OSError(failure, os.strerror(failure))
                return 0
            time.sleep(0.001)


def port_out(port: int, data: bytes, size: int = 1) -> Play:
    """An OUT (several items: string I/O)."""

    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason = Exit.IO
        run.io.direction, run.io.size, run.io.port = kvm.KVM_EXIT_IO_OUT, size, port
        run.io.count, run.io.data_offset = len(data) // size, 0x1000
        page[0x1000 : 0x1000 + len(data)] = data

    return play


def port_in(port: int, size: int = 1, count: int = 1) -> Play:
    """An IN; what was answered is at 0x1000 of the page when the next play comes."""

    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason = Exit.IO
        run.io.direction, run.io.size, run.io.port = kvm.KVM_EXIT_IO_IN, size, port
        run.io.count, run.io.data_offset = count, 0x1000

    return play


def typed(text: str) -> list[Play]:
    """The guest prints ``text`` on COM1."""
    return [port_out(0x3F8, bytes((byte,))) for byte in text.encode()]
