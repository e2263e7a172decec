# SPDX-License-Identifier: GPL-2.0-or-later
"""Random ioctls on every kind of descriptor of the emulated kernel, with good payloads and bad, while guests run.

Each round makes VMs and TDs, calls what it likes on whatever is open (and on what is not), closes everything in any
order, and then makes a TD that must still run. What counts as a failure:

* anything but an int or an OSError with one of KVM's errnos comes out of a system call, or an internal error was
  caught at the line, or one ended a thread of the kernel;
* a call does not come back;
* an invariant of `invariants` does not hold;
* a VM is ended by something that a client must not be able to bring about;
* pages, HKIDs or descriptors are gone when everything is closed.

The same seed makes the same calls; where the guests' vCPU threads stand meanwhile is up to the scheduler.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import mmap
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from swtdx.cpu.platform import Platform
from swtdx.linux.uaccess import access_ok
from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream, tdx_v10
from swtdx.uapi.client import Kvm, KvmError, Vcpu, Vm
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.layout import address_of, with_entries
from testing import guest
from testing.fuzzing import guests
from testing.fuzzing.line import Failure, Line
from testing.fuzzing.requests import ARRAYS, CAPS, DEVICE, MSRS, SCALARS, SETS_WHAT_IT_GOT, STRUCTURES, VCPU, VM
from testing.invariants import check
from testing.td import fresh_td, staged

PAGE = 4096
ARENA = 64 * PAGE
RESERVE = 1 << 30
_MAP_NORESERVE = 0x4000  # linux/mman.h
NOWHERE = 0x10
MACHINES = (
    (Dialect.UPSTREAM, False, "1.5.06"),
    (Dialect.V10, False, "1.5.06"),
    (Dialect.UPSTREAM, True, "1.5.06"),
    (Dialect.V10, False, "1.0"),
)
"""Dialect, whether private pages are of 2 MiB where they can be, TDX module."""
CALLS_PER_ROUND = 2500
MAY_KILL = (  # what a guest or a client can do to its own VM on real KVM, too
    "before accepting it, with #VE disabled",
    "instruction fetch from shared memory",
    "TDH.VP.WR of field 0x200000000000000b: 0xc0000700",  # an NMI for a vCPU that a triple fault has ended
    "TDH.MR.FINALIZE: 0xc0000609",  # a TD without vCPUs
)


class _Log(logging.Handler):
    """Collects what the kernel complains of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.bad: list[str] = []
        self.deaths: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or "internal error" in text:
            self.bad.append(text + "\n" + logging.Formatter().formatException(record.exc_info or (None, None, None)))
        elif "is dead: " in text:
            reason = text.partition("is dead: ")[2]
            self.deaths[reason] += 1
            if not any(known in reason for known in MAY_KILL):
                self.bad.append(text)
        elif record.levelno >= logging.ERROR:
            self.bad.append(text)


def _is_closed(fd: int) -> bool:
    """Numbers come back, also as the descriptors that Python keeps for its mappings; those are not ours to call on."""
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def _arena() -> mmap.mmap:
    """Memory for payloads and slots, and behind it addresses that cannot be touched: what runs over the end is EFAULT.

    They are so many because a slot may be as long: behind them begins memory of Python's, where a guest must not write.
    """
    arena = mmap.mmap(-1, ARENA + RESERVE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    if protect(address_of(arena) + ARENA, RESERVE, 0):
        raise OSError("mprotect")
    return arena


@dataclass
class Round:
    """One life of a set of descriptors on ``line``."""

    line: Line
    chance: random.Random
    device: Kvm
    arena: mmap.mmap = field(default_factory=_arena)
    vms: list[Vm] = field(default_factory=list)
    vcpus: list[Vcpu] = field(default_factory=list)
    others: list[int] = field(default_factory=list)  # guest_memfds, eventfds, statistics, duplicates
    closed: list[int] = field(default_factory=lambda: [-1, 9999])
    keep: list[Any] = field(default_factory=list)
    memories: list[Any] = field(default_factory=list)  # of slots: longer than the client's object for the VM lives
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = address_of(self.arena)
        self.line.lent.clear()
        self.lends(self.arena)
        self.runs = {}  # type: dict[int, Any]
        self.busy: set[int] = set()

    def lends(self, memory: mmap.mmap) -> None:
        start = address_of(memory)
        self.line.lent.append((start, start + len(memory)))

    # --- Values -------------------------------------------------------------------------------------------------------

    def scalar(self) -> int:
        return self.chance.choice(SCALARS) if self.chance.random() < 0.9 else self.chance.getrandbits(64)

    def fd(self) -> int:
        pools = [
            self.others,
            list(filter(_is_closed, self.closed)),
            [vm.fd for vm in self.vms],
            [vcpu.fd for vcpu in self.vcpus],
        ]
        return self.chance.choice(self.chance.choice([pool for pool in pools if pool]))

    def pointer(self, size: int) -> int:
        """Into the arena, across its end, or to nowhere; never to memory that is not the arena's."""
        kind = self.chance.randrange(20)
        if kind == 0:
            return NOWHERE
        if kind == 1:
            return self.chance.choice((0, (1 << 47) - 8, 1 << 63, (1 << 64) - 1))
        return self.base + self.chance.randrange(0, (ARENA - min(size, ARENA)) // 8 + 1) * 8

    def fill(self, structure: ctypes.Structure, density: float) -> None:
        """Put interesting numbers into some members."""
        for name, *_ in structure._fields_:
            if self.chance.random() >= density:
                continue
            member = getattr(structure, name)
            if isinstance(member, ctypes.Structure):
                self.fill(member, density)
            elif isinstance(member, ctypes.Array):
                for position in range(min(len(member), 40)):
                    if isinstance(member[position], int):
                        if self.chance.random() < density:
                            member[position] = self.scalar()
                    elif isinstance(member[position], ctypes.Structure) and self.chance.random() < density:
                        self.fill(member[position], density)
            elif isinstance(member, int):
                with contextlib.suppress(TypeError):
                    setattr(structure, name, self.scalar())
        for name, *_ in structure._fields_:
            if name in ("userspace_addr", "source_addr", "dirty_bitmap", "bitmap", "data", "cpuid", "addr"):
                if isinstance(getattr(structure, name), int):
                    setattr(structure, name, self.pointer(PAGE) & -8 if name != "userspace_addr" else self.memory())
            elif name in ("fd", "guest_memfd", "resamplefd"):
                setattr(structure, name, self.fd())

    def contain(self, region: k.kvm_userspace_memory_region | k.kvm_userspace_memory_region2) -> None:
        """Let a slot that the kernel could accept name the arena and nothing else: the guest writes what it likes."""
        address, size = region.userspace_addr, region.memory_size
        if not size or (address | size) % PAGE or not access_ok(address, size):
            return
        if not self.base <= address < self.base + ARENA:
            region.userspace_addr = address = self.memory_of_mine()
        region.memory_size = min(size, self.base + ARENA + RESERVE - address)

    def memory_of_mine(self) -> int:
        return self.base + self.chance.randrange(ARENA // PAGE) * PAGE

    def memory(self) -> int:
        """Page-aligned user memory for a slot."""
        return self.memory_of_mine() if self.chance.random() < 0.9 else self.scalar()

    # --- Arguments ----------------------------------------------------------------------------------------------------

    def argument(self, fd: int, name: str) -> int:
        chance = self.chance
        if chance.random() < 0.05:
            return chance.choice((0, NOWHERE, self.scalar() & 0xFFF, self.base + ARENA - 4))
        if k.REQUESTS[name].size == 0:
            return self.integer(name)
        made = self.payload(fd, name)
        if isinstance(made, int):
            return made
        self.keep.append(made)
        del self.keep[:-64]
        return ctypes.addressof(made)

    def integer(self, name: str) -> int:
        if name == "KVM_CREATE_VM":
            return self.chance.choice((0, 0, 1, 5, 2, self.scalar()))
        if name == "KVM_CREATE_VCPU":
            return self.chance.choice((0, 1, 2, 3, self.scalar()))
        if name == "KVM_RUN":
            return 0 if self.chance.random() < 0.97 else 1
        if name == "KVM_CHECK_EXTENSION":
            return self.chance.choice(list(k.Cap)) if self.chance.random() < 0.9 else self.scalar()
        return self.scalar()

    def payload(self, fd: int, name: str) -> Any:
        chance = self.chance
        if name == "KVM_MEMORY_ENCRYPT_OP":
            return self.tdx_command()
        if name.startswith("KVM_SET_") and name[8:] in SETS_WHAT_IT_GOT and chance.random() < 0.7:
            buffer = (ctypes.c_uint8 * 8192)()
            with contextlib.suppress(OSError):
                self.line.ioctl(fd, k.REQUESTS[name.replace("SET", "GET")], ctypes.addressof(buffer))
            for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
                position = chance.randrange(400) & -8
                ctypes.c_uint64.from_buffer(buffer, position).value = self.scalar()
            return buffer
        if name in ARRAYS:
            structure, counter = ARRAYS[name]
            count = chance.choice((0, 1, 2, 40, 100, 257))
            made: Any = with_entries(structure, count)()
            self.fill(made, 0.3)
            setattr(made, counter, count if chance.random() < 0.8 else chance.choice((0, 1, count, 255)) % (count + 1))
            if name.endswith("MSRS"):
                for entry in made.entries:
                    entry.index = chance.choice((*MSRS, self.scalar() >> 32))
                    if chance.random() < 0.3:
                        entry.data = chance.choice((0, 1, 6, 0x5001, 0x20041, 0xFEE00C00, (1 << 64) - 1))
            return made
        if name in STRUCTURES:
            one = STRUCTURES[name]()
            self.fill(one, chance.choice((0.0, 0.2, 0.4)))
            self.sensible(one)
            if isinstance(one, (k.kvm_userspace_memory_region, k.kvm_userspace_memory_region2)):
                self.contain(one)
            return one
        buffer = (ctypes.c_uint8 * 8192)()
        if chance.random() < 0.5:
            ctypes.c_uint64.from_buffer(buffer).value = self.scalar()
        return buffer if chance.random() < 0.7 else self.pointer(8192)

    def sensible(self, one: Any) -> None:
        """Most payloads are to get past the first check."""
        chance = self.chance
        if chance.random() < 0.25:
            return
        if isinstance(one, k.kvm_enable_cap):
            one.cap, one.flags = chance.choice(CAPS), 0
            one.args[0] = chance.choice((0, 1, 2, 3, 24, 40, one.args[0]))
        elif isinstance(one, (k.kvm_userspace_memory_region, k.kvm_userspace_memory_region2)):
            one.slot, one.flags = chance.randrange(4), chance.choice((0, 0, 1, 2, 4, 4))
            one.guest_phys_addr = chance.choice((0, 0x10000, 0x20000, 0x100000, 0xFFFFF000))
            one.memory_size = chance.choice((0, PAGE, 16 * PAGE, 32 * PAGE))
            one.userspace_addr = self.memory_of_mine()
            if isinstance(one, k.kvm_userspace_memory_region2):
                one.guest_memfd_offset = chance.choice((0, 0, PAGE, 16 * PAGE))
        elif isinstance(one, k.kvm_memory_attributes):
            one.address = guests.private_page(chance)
            one.size = chance.choice((1, 4, 16, 512, 1 << 20)) * PAGE
            one.attributes, one.flags = chance.choice((0, 8)), 0
        elif isinstance(one, k.kvm_create_guest_memfd):
            one.size, one.flags = chance.choice((PAGE, 16 * PAGE, 64 * PAGE)), 0
        elif isinstance(one, k.kvm_pre_fault_memory):
            one.gpa, one.size, one.flags = guests.private_page(chance), chance.choice((1, 4)) * PAGE, 0
        elif isinstance(one, k.kvm_irqfd):
            one.gsi, one.flags = chance.randrange(30), chance.choice((0, 0, 1, 2))
            one.resamplefd = self.fd() & 0xFFFFFFFF
        elif isinstance(one, k.kvm_ioeventfd):
            one.addr, one.len, one.flags = (
                chance.choice((0x60, 0x80, 0xD0000)),
                chance.choice((0, 1, 2, 4)),
                2 * (one.addr < 0x100) + chance.choice((0, 1, 4)),
            )
        elif isinstance(one, k.kvm_x86_mce):
            one.bank, one.status = chance.randrange(12), 1 << 63 | chance.choice((0, 1 << 61, 5 << 57)) | 1
        elif isinstance(one, k.kvm_nested_state):
            one.size, one.flags, one.format = 128, 0, 0
        elif isinstance(one, k.kvm_msi):
            one.address_lo, one.data, one.flags = 0xFEE00000 | chance.randrange(4) << 12, chance.randrange(0x800), 0
        elif isinstance(one, k.kvm_coalesced_mmio_zone):
            one.addr, one.size, one.pio = chance.choice((0x60, 0xD0000)), chance.choice((1, 4, PAGE)), 0

    def tdx_command(self) -> Any:
        chance, dialect = self.chance, self.device.dialect
        number = chance.choice(list(TdxCommand)) if chance.random() < 0.95 else self.scalar() & 0xFFFFFFFF
        cmd = dialect.cmd(id=number, flags=0 if chance.random() < 0.9 else self.scalar() & 0xFFFFFFFF)
        data: Any = (ctypes.c_uint8 * 8192)()
        if number == TdxCommand.CAPABILITIES:
            count = chance.choice((0, 6, 24, 100))
            data = with_entries(dialect.capabilities, count)()
            if dialect is Dialect.UPSTREAM:
                data.cpuid.nent = count
            else:
                data.nr_cpuid_configs = count
        elif number == TdxCommand.INIT_MEM_REGION:
            data = dialect.init_mem_region(
                source_addr=self.memory(), gpa=chance.randrange(70) * PAGE, nr_pages=chance.choice((1, 1, 2, 8))
            )
            if chance.random() < 0.2:
                self.fill(data, 0.5)
        elif number == TdxCommand.INIT_VM and dialect is Dialect.UPSTREAM:
            data = with_entries(tdx_upstream.kvm_tdx_init_vm, 2)(attributes=1 << 28, xfam=3)
            data.cpuid.nent = 1
            data.cpuid.entries[0] = k.kvm_cpuid_entry2(function=0x80000008, eax=48 << 16)
            if chance.random() < 0.3:
                self.fill(data, 0.1)
                data.cpuid.nent = chance.choice((0, 1, 2))
        elif number == TdxCommand.INIT_VM:
            cpuid = with_entries(k.kvm_cpuid2, 1)(nent=1)
            cpuid.entries[0] = k.kvm_cpuid_entry2(function=0xD, eax=3)
            self.keep.append(cpuid)
            data = tdx_v10.kvm_tdx_init_vm(max_vcpus=chance.choice((1, 2, 4)), cpuid=ctypes.addressof(cpuid))
            if chance.random() < 0.3:
                self.fill(data, 0.05)
        elif number == TdxCommand.GET_CPUID:
            data = with_entries(k.kvm_cpuid2, 100)(nent=chance.choice((0, 100)))
        self.keep.append(data)
        cmd.data = ctypes.addressof(data) if chance.random() < 0.95 else self.pointer(PAGE)
        if chance.random() < 0.03:
            setattr(cmd, dialect.hw_error_member, self.scalar())
        return cmd

    # --- Steps --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        dice = self.chance.random()
        if dice < 0.02 and len(self.vms) < 5:
            self.new_machine()
        elif dice < 0.03:
            self.close_one()
        elif dice < 0.035:
            self.bury()
        elif dice < 0.05:
            self.disturb()
        elif dice < 0.15 and self.vcpus:
            self.run(self.chance.choice(self.vcpus))
        else:
            self.random_ioctl()

    def random_ioctl(self) -> None:
        kind = self.chance.choices(("device", "vm", "vcpu", "other"), (1, 4, 6, 0.5))[0]
        if kind == "vm" and self.vms:
            fd, names = self.chance.choice(self.vms).fd, VM
        elif kind == "vcpu" and self.vcpus:
            fd, names = self.chance.choice(self.vcpus).fd, VCPU
        elif kind == "other":
            fd, names = self.fd(), VM + VCPU
        else:
            fd, names = self.device.fd, DEVICE
        if fd in self.busy:
            return
        name = self.chance.choice(names) if self.chance.random() < 0.97 else self.chance.choice(list(k.REQUESTS))
        if self.chance.random() < 0.01:
            with contextlib.suppress(OSError):
                self.line.ioctl(fd, self.chance.getrandbits(32), self.base)
            return
        if name == "KVM_RUN":
            for vcpu in self.vcpus:
                if vcpu.fd == fd:
                    self.run(vcpu)
            return
        self.take(name, fd)

    def take(self, name: str, fd: int) -> None:
        """Make the call; what it gives is remembered."""
        argument = self.argument(fd, name)
        try:
            answer = self.line.ioctl(fd, k.REQUESTS[name], argument)
        except OSError:
            return
        if name == "KVM_CREATE_VM" and fd == self.device.fd:
            is_td = argument == self.device.dialect.vm_type_tdx
            self.vms.append(Vm(self.line, answer, self.device.dialect, 0x3000, is_td))
        elif name == "KVM_CREATE_VCPU":
            self.vcpus.append(Vcpu(self.line, answer, self.device.dialect, argument, 0x3000))
        elif name in ("KVM_CREATE_GUEST_MEMFD", "KVM_GET_STATS_FD"):
            self.others.append(answer)

    def run(self, vcpu: Vcpu) -> None:
        """KVM_RUN here, or in a thread that runs on while other calls are made."""
        if vcpu.fd in self.busy:
            return
        run = vcpu.kvm_run
        run.immediate_exit = int(self.chance.random() < 0.05)
        run.request_interrupt_window = int(self.chance.random() < 0.1)
        if self.chance.random() < 0.02:
            run.kvm_valid_regs = self.scalar() & 7
        if self.chance.random() < 0.02:
            run.kvm_dirty_regs = self.scalar() & 7
        if self.chance.random() < 0.7:
            self.run_once(vcpu)
            return
        self.busy.add(vcpu.fd)
        thread = threading.Thread(target=self.run_there, args=(vcpu, self.chance.randrange(1, 20)), daemon=True)
        self.threads.append(thread)
        thread.start()

    def run_once(self, vcpu: Vcpu) -> bool:
        try:
            self.line.ioctl(vcpu.fd, k.KVM_RUN, 0, run=vcpu.kvm_run)
        except OSError as error:
            return error.errno in (errno.EINTR, errno.EAGAIN)
        if vcpu.exit_reason == k.Exit.IO and not vcpu.kvm_run.io.direction:
            vcpu.set_io_data(b"\x55" * (vcpu.kvm_run.io.size * vcpu.kvm_run.io.count))
        return True

    def run_there(self, vcpu: Vcpu, times: int) -> None:
        try:
            for _ in range(times):
                vcpu.kvm_run.immediate_exit = 0
                if not self.run_once(vcpu):
                    break
        except BaseException as failure:  # noqa: BLE001 - the main thread must see it
            self.failures.append(failure)
        finally:
            self.busy.discard(vcpu.fd)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()
        self.threads.clear()
        if self.failures:
            raise self.failures[0]

    def disturb(self) -> None:
        """Other things a client does: raise eventfds, change memory, duplicate, map, punch holes, close the wrong."""
        chance = self.chance
        what = chance.randrange(6)
        if what == 0:
            self.others.append(self.line.eventfd())
        elif what == 1 and self.others:
            with contextlib.suppress(OSError, OverflowError):
                os.eventfd_write(chance.choice(self.others), chance.choice((1, 1, 5)))
        elif what == 2:
            self.arena[:ARENA] = guests.real_mode_code(chance).ljust(ARENA, b"\0")[:ARENA]
        elif what == 3:
            with contextlib.suppress(OSError):
                self.line.fallocate(self.fd(), chance.choice((3, 3, 1, 0, 2)), guests.private_page(chance), PAGE)
        elif what == 4:
            with contextlib.suppress(OSError, OverflowError):
                self.others.append(fd := os.dup(self.fd()))
                self.line.ioctl(fd, k.KVM_CHECK_EXTENSION, 0)  # the emulated kernel learns of it when it is used
        else:
            with contextlib.suppress(OSError):
                self.keep.append(
                    self.line.mmap(self.fd(), chance.choice((PAGE, 0x3000, 0x4000)), chance.choice((0, PAGE, 5)))
                )

    def close_one(self) -> None:
        pool: Any = self.chance.choice((self.vcpus, self.vms, self.others, self.others))
        if not pool:
            return
        one = self.chance.choice(pool)
        fd = one if isinstance(one, int) else one.fd
        if fd in self.busy:
            return
        pool.remove(one)
        self.closed = [*self.closed[-6:], fd]
        self.line.close(fd)
        if not isinstance(one, int):
            one.fd = -1

    def bury(self) -> None:
        """Close what is dead, so that the calls go to the living."""
        self.join()
        for one in [*self.vms, *self.vcpus]:
            try:
                self.line.ioctl(one.fd, k.KVM_SET_TSC_KHZ, 1)
            except OSError as error:
                if error.errno == errno.EIO:
                    (self.vms if isinstance(one, Vm) else self.vcpus).remove(one)  # type: ignore[arg-type]
                    self.line.close(one.fd)
                    one.fd = -1

    def new_machine(self) -> None:
        """A VM or TD that is ready to run."""
        try:
            self.new_td() if self.chance.random() < 0.5 else self.new_vm()
        except KvmError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise Failure(f"a machine could not be made: {error}: {self.line.kernel.last_reason}") from error

    def new_vm(self) -> None:
        vm = self.device.create_vm()
        self.vms.append(vm)
        dice = self.chance.randrange(3)
        if dice == 0:
            vm.create_irqchip()
            vm.create_pit2()
        elif dice == 1:
            vm.split_irqchip()
        memory = mmap.mmap(-1, 64 * PAGE)
        self.memories.append(memory)
        self.lends(memory)
        memory[:0x10000] = guests.real_mode_code(self.chance)
        vm.set_user_memory_region(0, 0, len(memory), memory, self.chance.choice((0, 0, 1)))
        for number in range(self.chance.randrange(1, 3)):
            vcpu = vm.create_vcpu(number)
            self.vcpus.append(vcpu)
            if self.chance.random() < 0.7:
                vcpu.set_cpuid2(self.device.supported_cpuid())
            sregs = vcpu.get_sregs()
            sregs.cs.base, sregs.cs.selector = 0, 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(k.kvm_regs(rip=0, rflags=2, rsp=0x7000))
        vm.vcpus.clear()

    def new_td(self) -> None:
        vm, vcpu, memfd = self.line.trusted(lambda: fresh_td(self.device, guests.TD_MEMORY))
        self.vms.append(vm)
        self.vcpus.append(vcpu)
        if memfd >= 0:
            self.others.append(memfd)
        self.memories.extend(vm._slots.values())
        if self.chance.random() < 0.5:
            second = vm.create_vcpu(1)
            self.vcpus.append(second)
            second.set_cpuid2(vcpu.get_cpuid2())
            second.tdx_init_vcpu()
        if self.chance.random() < 0.15:
            return  # as it is: for random INIT_MEM_REGION and FINALIZE_VM
        for gpa, contents in (
            (guest.RESET_PAGE, guest.reset_page()),
            (guest.PAGE_TABLES, guest.page_tables()),
            (guest.CODE, guests.td_code(self.chance)),
        ):
            source = staged(contents)
            vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE)
        vm.tdx_finalize()

    def end(self) -> None:
        """Close everything, in any order."""
        self.join()
        fds = [*self.others, *(one.fd for one in (*self.vms, *self.vcpus))]
        self.chance.shuffle(fds)
        for fd in fds:
            self.line.close(fd)
        for one in (*self.vms, *self.vcpus):
            one.fd = -1


@dataclass
class Result:
    """What a campaign came to: calls by what they answered, why VMs died, and what must not have happened."""

    calls: int = 0
    rounds: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.calls:,} calls in {self.rounds} rounds"
        yield "  ".join(f"{name} {count:,}" for name, count in self.answers.most_common())
        for reason, count in self.deaths.most_common():
            yield f"{count} VMs died: {reason}"
        yield from self.failures


@contextlib.contextmanager
def _listening() -> Iterator[_Log]:
    log = _Log()
    logger = logging.getLogger("swtdx")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(log)
    hook = threading.excepthook

    def died(args: threading.ExceptHookArgs) -> None:
        log.bad.append(f"thread {args.thread and args.thread.name}: {args.exc_value!r}")
        hook(args)

    threading.excepthook = died
    try:
        yield log
    finally:
        threading.excepthook = hook
        logger.removeHandler(log)
        logger.propagate = propagate


def campaign(calls: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Result:
    """At least ``calls`` system calls, on each of `MACHINES` in turn, until something fails.

    ``progress`` is told how many are done. A call that hangs ends the process with a trace of every thread.
    """
    result = Result()
    lines: list[Line] = []
    with _listening() as log:
        for dialect, huge, module in MACHINES:
            platform = Platform(memory_size=1 << 30, logical_processors=4, module_version=module)
            lines.append(Line(boot(dialect, platform, tdx_huge_page=huge)))
            _start_irqfd_thread(lines[-1])
        try:
            while result.calls < calls:
                chance = random.Random(f"{seed}:{result.rounds}")
                _round(lines[result.rounds % len(lines)], chance, log, min(CALLS_PER_ROUND, calls - result.calls))
                result.rounds += 1
                result.calls = sum(line.calls for line in lines)
                progress(min(result.calls, calls))
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is what was looked for
            where = traceback.extract_tb(failure.__traceback__)[-1]
            result.failures.append(f"seed {seed}, round {result.rounds}: {failure!r} ({where.name}:{where.lineno})")
        finally:
            for line in lines:
                line.stop()
                with contextlib.suppress(OSError):
                    line.kernel.shutdown()
        result.answers = sum((line.answers for line in lines), Counter())
        result.deaths = log.deaths
    return result


def _round(line: Line, chance: random.Random, log: _Log, calls: int) -> None:
    kernel = line.kernel
    assert kernel.tdx is not None
    with Kvm(line) as device:
        _still_works(line, device)
        before = _inventory(kernel)
        this = Round(line, chance, device)
        end = line.calls + calls
        steps = 0
        try:
            while line.calls < end:
                this.step()
                steps += 1
                if log.bad:
                    raise Failure(f"step {steps}: {log.bad[0]}")
                if steps % 500 == 0:
                    this.join()
                    check(kernel)
        finally:
            this.end()
        check(kernel)
        del this
        if log.bad:
            raise Failure(log.bad[0])
        patience = time.monotonic() + 5
        while (after := _inventory(kernel)) != before:  # a thread that is about to sleep may hold the last reference
            if time.monotonic() > patience:
                raise Failure(f"not given back: pages, HKIDs, descriptors {before} -> {after}")
            time.sleep(0.05)
        if kernel.vms or kernel.module.tds:
            raise Failure(f"{len(kernel.vms)} VMs and {len(kernel.module.tds)} TDs remain")
        _still_works(line, device)


def _start_irqfd_thread(line: Line) -> None:
    """The thread has two descriptors of its own from the first irqfd on."""
    with Kvm(line) as device, device.create_vm() as vm:
        vm.split_irqchip()
        vm.irqfd(event := line.eventfd(), 1)
        line.close(event)


def _inventory(kernel: MachineKernel) -> tuple[Counter[str], int, int]:
    gc.collect()
    assert kernel.tdx is not None
    return kernel.pages.in_use, kernel.tdx.free_hkids, len(os.listdir("/proc/self/fd"))


def _still_works(line: Line, device: Kvm) -> None:
    vm, vcpu, memfd = line.trusted(lambda: fresh_td(device, 64 * PAGE))
    try:
        for gpa, contents in (
            (guest.RESET_PAGE, guest.reset_page()),
            (guest.PAGE_TABLES, guest.page_tables()),
            (guest.CODE, guest.code_page()),
        ):
            source = staged(contents)
            vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE)
        vm.tdx_finalize()
        vcpu.run()
        if (vcpu.exit_reason, vcpu.kvm_run.io.port) != (k.Exit.IO, guest.Port.WORKLOAD):
            raise Failure(f"a new TD does not run: {vcpu.exit_reason!r}")
    finally:
        vcpu.close()
        vm.close()
        if memfd >= 0:
            device.kernel.close(memfd)
