# SPDX-License-Identifier: GPL-2.0-or-later
"""What each ioctl answers, as data: the table that the tests run and of which docs/conformance.md is made.

A `Case` says: this request, on this descriptor of these subjects (a normal VM or a TD, in a dialect), with this
argument, ends so. Cases of one request stand in the kernel's order of checks: each breaks what it is about and, where
that can be shown, also what is checked later. `PROVEN` names tests elsewhere for what needs more than one call.
`python -m tests.linux.conformance` rewrites the page.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import filled, with_entries
from tests.linux.conftest import Bench, boot, boot_v10

PAGE_PATH = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
NOWHERE = 8
"""An address at which nothing is mapped."""
BIG = 1 << 60


@dataclass
class Subject:
    """A VM of a kind with one vCPU, on a freshly booted kernel; a TD is built and not yet finalised."""

    kind: str
    bench: Bench
    fds: dict[str, int]
    keep: list[Any] = field(default_factory=list)

    def ioctl(self, fd: str, request: int, argument: Any = 0) -> int:
        self.keep.append(argument)
        return self.bench.ioctl(self.fds[fd], request, argument)


KINDS = ("VM upstream", "VM v10", "TD upstream", "TD v10")
VMS, TDS = frozenset(KINDS[:2]), frozenset(KINDS[2:])
_UP, _OLD = frozenset({KINDS[2]}), frozenset({KINDS[3]})
ALL, UPSTREAM, V10 = VMS | TDS, frozenset({KINDS[0], KINDS[2]}), frozenset({KINDS[1], KINDS[3]})


def subject(kind: str) -> Subject:
    """Both kinds of VM have a split irqchip."""
    bench = boot(Dialect.UPSTREAM) if kind in UPSTREAM else boot_v10()
    device = bench.device()
    if kind in TDS:
        vm = bench.td()
        vcpu = bench.vcpu(vm)
    else:
        vm = bench.vm(0)
        bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
        vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    return Subject(kind, bench, {"device": device, "vm": vm, "vcpu": vcpu})


@dataclass(frozen=True)
class Case:
    """``argument``: an integer, or a function of the subject that gives an integer or a ctypes object."""

    fd: str
    request: str
    outcome: int
    """errno, or 0: the call succeeds."""
    why: str
    argument: int | Callable[[Subject], Any] = 0
    on: frozenset[str] = ALL

    @property
    def id(self) -> str:
        return f"{self.fd}-{self.request}-{name_of(self.outcome)}-{self.why.replace(' ', '_')}"

    def run(self, on: Subject) -> int:
        """0 or the errno."""
        argument = self.argument(on) if callable(self.argument) else self.argument
        try:
            on.ioctl(self.fd, k.REQUESTS[self.request], argument)
        except OSError as error:
            return error.errno or -1
        return 0


def name_of(outcome: int) -> str:
    return errno.errorcode[outcome] if outcome else "0"


def room(size: int = 8192) -> Callable[[Subject], Any]:
    """Zeros to read or write."""
    return lambda _: (ctypes.c_char * size)()


def cap(number: int, *args: int, flags: int = 0) -> Callable[[Subject], Any]:
    def make(_: Subject) -> Any:
        request = k.kvm_enable_cap(cap=number, flags=flags)
        for position, value in enumerate(args):
            request.args[position] = value
        return request

    return make


def struct(kind: type[ctypes.Structure], **members: int) -> Callable[[Subject], Any]:
    return lambda _: kind(**members)


def header(kind: type[ctypes.Structure], **members: int) -> Callable[[Subject], Any]:
    return lambda _: filled(kind, [], **members)


def full(kind: type[ctypes.Structure], **counter: int) -> Callable[[Subject], Any]:
    """A structure that has as many entries as its counter says."""
    (count,) = counter.values()
    return lambda _: with_entries(kind, count)(**counter)


def slot(kind: type[ctypes.Structure]) -> Callable[[Subject], Any]:
    """A region of one page of user memory."""

    def make(on: Subject) -> Any:
        memory = (ctypes.c_char * 8192)()
        on.keep.append(memory)
        return kind(memory_size=4096, userspace_addr=(ctypes.addressof(memory) + 4095) & -4096)

    return make


E = errno
_BAD_POINTERS = {
    "device": "GET_SUPPORTED_CPUID GET_EMULATED_CPUID GET_MSR_INDEX_LIST GET_MSR_FEATURE_INDEX_LIST GET_MSRS "
    "X86_GET_MCE_CAP_SUPPORTED GET_DEVICE_ATTR HAS_DEVICE_ATTR",
    "vm": "SET_USER_MEMORY_REGION GET_DIRTY_LOG CLEAR_DIRTY_LOG ENABLE_CAP IRQ_LINE IRQ_LINE_STATUS SET_GSI_ROUTING "
    "SIGNAL_MSI IRQFD IOEVENTFD REGISTER_COALESCED_MMIO UNREGISTER_COALESCED_MMIO "
    "GET_CLOCK SET_CLOCK MEMORY_ENCRYPT_REG_REGION MEMORY_ENCRYPT_UNREG_REGION "
    "X86_SET_MSR_FILTER GET_IRQCHIP SET_IRQCHIP GET_PIT SET_PIT SET_PIT2 CREATE_PIT2 CREATE_DEVICE REINJECT_CONTROL",
    "vcpu": "SET_CPUID SET_CPUID2 GET_CPUID2 GET_MSRS SET_MSRS GET_MP_STATE SET_MP_STATE INTERRUPT GET_VCPU_EVENTS "
    "SET_VCPU_EVENTS TRANSLATE SET_SIGNAL_MASK X86_SETUP_MCE X86_SET_MCE TPR_ACCESS_REPORTING SET_VAPIC_ADDR "
    "ENABLE_CAP HAS_DEVICE_ATTR GET_DEVICE_ATTR SET_DEVICE_ATTR SET_REGS SET_SREGS SET_FPU SET_XSAVE SET_XCRS "
    "SET_DEBUGREGS SET_LAPIC SET_GUEST_DEBUG",
}
_REGISTERS = "REGS SREGS FPU XSAVE XCRS DEBUGREGS LAPIC"
_NEW_IN_UPSTREAM = "SET_USER_MEMORY_REGION2 SET_MEMORY_ATTRIBUTES CREATE_GUEST_MEMFD"


def _generated() -> Iterator[Case]:
    for fd, names in _BAD_POINTERS.items():
        for name in names.split():
            yield Case(fd, f"KVM_{name}", E.EFAULT, "a pointer to nowhere", NOWHERE)
    for name in _NEW_IN_UPSTREAM.split():
        yield Case("vm", f"KVM_{name}", E.EFAULT, "a pointer to nowhere", NOWHERE, UPSTREAM)
        yield Case("vm", f"KVM_{name}", E.ENOTTY, "not in this kernel", NOWHERE, V10)
    for name in (*_REGISTERS.split(), "XSAVE2", "SREGS2"):
        yield Case("vcpu", f"KVM_GET_{name}", E.EINVAL, "protected state, before the pointer", NOWHERE, TDS)
        yield Case("vcpu", f"KVM_GET_{name}", E.EFAULT, "a pointer to nowhere", NOWHERE, VMS)
        yield Case("vcpu", f"KVM_GET_{name}", 0, "accepted", room(), VMS)
    for name in (*_REGISTERS.split(), "GUEST_DEBUG"):
        yield Case("vcpu", f"KVM_SET_{name}", E.EINVAL, "protected state, after the pointer", room(), TDS)


def routes(*entries: tuple[int, int, int]) -> Callable[[Subject], Any]:
    """KVM_SET_GSI_ROUTING of (gsi, type, flags)."""
    made = [k.kvm_irq_routing_entry(gsi=gsi, type=kind, flags=flags) for gsi, kind, flags in entries]
    return lambda _: filled(k.kvm_irq_routing, made, nr=len(made))


def read_only(kind: type[ctypes.Structure], **members: int) -> Callable[[Subject], Any]:
    """The address of a structure in memory that cannot be written."""

    def make(on: Subject) -> int:
        page = mmap.mmap(-1, 4096)
        data = bytes(kind(**members))
        page[: len(data)] = data
        on.keep.append(page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 1)
        return address

    return make


def at_the_end(entries: int, length: int) -> Callable[[Subject], Any]:
    """A kvm_msrs of ``entries``, of which ``length`` bytes are there."""

    def make(on: Subject) -> int:
        page = mmap.mmap(-1, 8192)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        on.keep.append(page)
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + 4096), 4096, 0)
        page[4096 - length : 4100 - length] = entries.to_bytes(4, "little")
        return address + 4096 - length

    return make


def _cpuid_of_width(bits: int) -> Callable[[Subject], Any]:
    return lambda _: filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2(function=0x80000008, eax=bits << 8 | 46)], nent=1)


def _as_the_source_has_it() -> Iterator[Case]:
    """Orders and limits that no table states, by the function of Linux 6.16 that has them."""
    cap_rows: tuple[tuple[int, str, k.Cap, int], ...] = (
        (E.EINVAL, "INITIALLY_SET without PROTECT_ENABLE", k.Cap.MANUAL_DIRTY_LOG_PROTECT2, 2),
        (0, "PROTECT_ENABLE and INITIALLY_SET", k.Cap.MANUAL_DIRTY_LOG_PROTECT2, 3),
        (E.EINVAL, "HALT_POLL of more than 32 bits", k.Cap.HALT_POLL, 1 << 32),
        (0, "HALT_POLL", k.Cap.HALT_POLL, 200_000),
        (E.EINVAL, "EXIT_ON_EMULATION_FAILURE 2", k.Cap.EXIT_ON_EMULATION_FAILURE, 2),
        (0, "EXIT_ON_EMULATION_FAILURE 1", k.Cap.EXIT_ON_EMULATION_FAILURE, 1),
        (0, "TRIPLE_FAULT_EVENT", k.Cap.X86_TRIPLE_FAULT_EVENT, 1),
        (E.EINVAL, "BUS_LOCK_EXIT both modes", k.Cap.X86_BUS_LOCK_EXIT, 3),
        (E.EINVAL, "X86_DISABLE_EXITS of MWAIT, which the processor does not have", k.Cap.X86_DISABLE_EXITS, 1),
        (E.EINVAL, "X86_DISABLE_EXITS after the first vCPU", k.Cap.X86_DISABLE_EXITS, 2),
        (0, "BUS_LOCK_EXIT off", k.Cap.X86_BUS_LOCK_EXIT, 1),
        (0, "MAX_VCPU_ID as the first vCPU settled it", k.Cap.MAX_VCPU_ID, 4096),
        (E.EINVAL, "MAX_VCPU_ID after the first vCPU", k.Cap.MAX_VCPU_ID, 10),
        (0, "MSR_PLATFORM_INFO off", k.Cap.MSR_PLATFORM_INFO, 0),
    )
    for outcome, why, number, value in cap_rows:  # kvm_vm_ioctl_enable_cap_generic, kvm_vm_ioctl_enable_cap
        yield Case("vm", "KVM_ENABLE_CAP", outcome, why, cap(int(number), value))
    msi = int(k.KVM_IRQ_ROUTING_MSI)
    for outcome, why, entries in (  # kvm_set_irq_routing, setup_routing_entry
        (0, "an MSI route with VALID_DEVID", ((5, msi, 1),)),
        (E.EINVAL, "an MSI route with unknown flags", ((5, msi, 2),)),
        (E.EINVAL, "one GSI, two MSI routes", ((5, msi, 0), (5, msi, 0))),
        (0, "two GSIs", ((5, msi, 0), (6, msi, 0))),
        (E.EINVAL, "GSI 4096", ((4096, msi, 0),)),
    ):
        yield Case("vm", "KVM_SET_GSI_ROUTING", outcome, why, routes(*entries))
    # kvm_irqfd_deassign asks for the eventfd and nothing else
    yield Case("vm", "KVM_IRQFD", E.EBADF, "deassigned, not an open fd", struct(k.kvm_irqfd, flags=1, fd=9999))
    yield Case("vm", "KVM_IRQFD", 0, "deassigned though not assigned", lambda s: irqfd(s, 1))
    # ioeventfd_check_collision, kvm_deassign_ioeventfd_idx: the match is 64 bits, whatever the length
    yield Case("vm", "KVM_IOEVENTFD", 0, "a match beyond the length", lambda s: ioeventfd(s, 1, 1 << 40))
    # kvm_arch_vm_ioctl, KVM_SET_TSC_KHZ; kvm_caps.max_guest_tsc_khz
    yield Case("vm", "KVM_SET_TSC_KHZ", E.EINVAL, "2^31-1 kHz", 0x7FFFFFFF)
    yield Case("vcpu", "KVM_SET_TSC_KHZ", E.EINVAL, "2^31-1 kHz", 0x7FFFFFFF)
    # kvm_vcpu_ioctl_enable_cap
    yield Case("vcpu", "KVM_ENABLE_CAP", E.EINVAL, "flags", cap(int(k.Cap.ENFORCE_PV_FEATURE_CPUID), 1, flags=1))
    yield Case("vcpu", "KVM_ENABLE_CAP", 0, "ENFORCE_PV_FEATURE_CPUID", cap(int(k.Cap.ENFORCE_PV_FEATURE_CPUID), 1))
    # kvm_check_cpuid
    yield Case("vcpu", "KVM_SET_CPUID2", E.EINVAL, "40 bits of linear address", _cpuid_of_width(40))
    yield Case("vcpu", "KVM_SET_CPUID2", 0, "57 bits of linear address", _cpuid_of_width(57))
    # kvm_lapic_set_vapic_addr
    yield Case("vcpu", "KVM_SET_VAPIC_ADDR", E.EINVAL, "no slot there", struct(k.kvm_vapic_addr, vapic_addr=0x1000))
    # kvm_vcpu_ioctl_x86_set_vcpu_events
    yield Case(
        "vcpu", "KVM_SET_VCPU_EVENTS", E.EINVAL, "a triple fault without its capability",
        struct(k.kvm_vcpu_events, flags=int(k.KVM_VCPUEVENT_VALID_TRIPLE_FAULT)),
    )  # fmt: skip
    # kvm_is_valid_sregs: CR0 of more than 32 bits, paging without protection, NW without CD; LMA without LME
    for why, members in (
        ("cr0 above bit 31", {"cr0": 1 << 32}),
        ("cr0 PG without PE", {"cr0": 1 << 31}),
        ("cr0 NW without CD", {"cr0": 1 << 29}),
        ("efer LMA without LME", {"efer": 1 << 10}),
        ("cr4 of a reserved bit", {"cr4": 1 << 63}),
        ("cr3 beyond the address width", {"cr0": 1 << 31 | 1, "efer": 0x500, "cr4": 0x20, "cr3": 1 << 60}),
    ):
        yield Case("vcpu", "KVM_SET_SREGS", E.EINVAL, why, struct(k.kvm_sregs, **members), VMS)
    # kvm_vcpu_ioctl, KVM_PRE_FAULT_MEMORY: the rest of the range is written back in any case
    yield Case(
        "vcpu", "KVM_PRE_FAULT_MEMORY", E.EFAULT, "flags, in memory that cannot be written",
        read_only(k.kvm_pre_fault_memory, flags=1), UPSTREAM,
    )  # fmt: skip
    # msr_io copies all entries before it looks at one; kvm_dev_ioctl_get_cpuid wants room for one
    for fd in ("device", "vcpu"):
        yield Case(fd, "KVM_GET_MSRS", E.EFAULT, "the second entry is not there", at_the_end(2, 24))
    yield Case("device", "KVM_GET_EMULATED_CPUID", E.E2BIG, "no room", header(k.kvm_cpuid2, nent=0))


def irqfd(on: Subject, flags: int) -> k.kvm_irqfd:
    """An eventfd for GSI 1."""
    return k.kvm_irqfd(fd=on.bench.kernel.eventfd(), gsi=1, flags=flags)


def ioeventfd(on: Subject, flags: int, match: int) -> k.kvm_ioeventfd:
    return k.kvm_ioeventfd(fd=on.bench.kernel.eventfd(), addr=0x1000, len=4, flags=flags, datamatch=match)


CASES: tuple[Case, ...] = (
    # /dev/kvm
    Case("device", "KVM_GET_API_VERSION", E.EINVAL, "an argument", 1),
    Case("device", "KVM_GET_API_VERSION", 0, "accepted"),
    Case("device", "KVM_GET_VCPU_MMAP_SIZE", E.EINVAL, "an argument", 1),
    Case("device", "KVM_GET_VCPU_MMAP_SIZE", 0, "accepted"),
    Case("device", "KVM_CREATE_VM", E.EINVAL, "a type beyond the bitmap", 32),
    Case("device", "KVM_CREATE_VM", E.EINVAL, "a type not in KVM_CAP_VM_TYPES", 7),
    Case("device", "KVM_CREATE_VM", 0, "a default VM", 0),
    Case("device", "KVM_CREATE_VM", 0, "a TD", 5, UPSTREAM),
    Case("device", "KVM_CREATE_VM", 0, "a TD", 1, V10),
    Case("device", "KVM_CREATE_VM", 0, "KVM_X86_SW_PROTECTED_VM", 1, UPSTREAM),
    Case("device", "KVM_CREATE_VM", E.EINVAL, "KVM_X86_SEV_VM", 2, UPSTREAM),
    Case("device", "KVM_CREATE_VM", E.EINVAL, "the TD type of the other dialect", 5, V10),
    Case("device", "KVM_CHECK_EXTENSION", 0, "unknown is 0", 4711),
    Case("device", "KVM_GET_SUPPORTED_CPUID", 0, "room for 200", full(k.kvm_cpuid2, nent=200)),
    Case("device", "KVM_GET_EMULATED_CPUID", 0, "room for 10", full(k.kvm_cpuid2, nent=10)),
    Case("device", "KVM_GET_MSR_INDEX_LIST", 0, "room for 1000", full(k.kvm_msr_list, nmsrs=1000)),
    Case("device", "KVM_GET_MSR_FEATURE_INDEX_LIST", 0, "room for 100", full(k.kvm_msr_list, nmsrs=100)),
    Case("device", "KVM_GET_SUPPORTED_CPUID", E.E2BIG, "too little room", header(k.kvm_cpuid2, nent=0)),
    Case("device", "KVM_GET_MSR_INDEX_LIST", E.E2BIG, "too little room", header(k.kvm_msr_list, nmsrs=0)),
    Case("device", "KVM_GET_MSR_FEATURE_INDEX_LIST", E.E2BIG, "too little room", header(k.kvm_msr_list, nmsrs=0)),
    Case("device", "KVM_GET_MSRS", E.E2BIG, "256 at once", header(k.kvm_msrs, nmsrs=256)),
    Case("device", "KVM_GET_MSRS", 0, "none asked", header(k.kvm_msrs, nmsrs=0)),
    Case("device", "KVM_HAS_DEVICE_ATTR", E.ENXIO, "an unknown attribute", struct(k.kvm_device_attr, attr=9)),
    Case("device", "KVM_HAS_DEVICE_ATTR", 0, "XCOMP_GUEST_SUPP", struct(k.kvm_device_attr)),
    Case("device", "KVM_GET_DEVICE_ATTR", E.ENXIO, "an unknown group", struct(k.kvm_device_attr, group=1)),
    Case("device", "KVM_GET_DEVICE_ATTR", E.EFAULT, "no room for the value", struct(k.kvm_device_attr, addr=NOWHERE)),
    Case("device", "KVM_SET_DEVICE_ATTR", E.EINVAL, "not a request here", room()),
    Case("device", "KVM_MEMORY_ENCRYPT_OP", E.EINVAL, "not a request here"),
    Case("device", "KVM_X86_GET_MCE_CAP_SUPPORTED", 0, "accepted", room()),
    # VM: vCPUs and irqchips
    Case("vm", "KVM_CREATE_VCPU", E.EINVAL, "an id beyond KVM_MAX_VCPU_IDS", 4096),
    Case("vm", "KVM_CREATE_VCPU", E.EEXIST, "the id is taken", 0),
    Case("vm", "KVM_CREATE_VCPU", 0, "accepted", 1),
    Case("vm", "KVM_CREATE_IRQCHIP", E.EEXIST, "an irqchip exists, before vCPUs exist"),
    Case("vm", "KVM_CREATE_PIT", E.ENOENT, "no PIC in the kernel"),
    Case("vm", "KVM_CREATE_PIT2", E.ENOENT, "no PIC in the kernel", struct(k.kvm_pit_config)),
    Case("vm", "KVM_GET_IRQCHIP", E.ENXIO, "split irqchip", struct(k.kvm_irqchip)),
    Case("vm", "KVM_SET_IRQCHIP", E.ENXIO, "split irqchip", struct(k.kvm_irqchip)),
    Case("vm", "KVM_GET_PIT", E.ENXIO, "no PIT", room()),
    Case("vm", "KVM_SET_PIT", E.ENXIO, "no PIT", room()),
    Case("vm", "KVM_GET_PIT2", E.ENXIO, "no PIT, before the pointer", NOWHERE),
    Case("vm", "KVM_SET_PIT2", E.ENXIO, "no PIT", room()),
    Case("vm", "KVM_REINJECT_CONTROL", E.ENXIO, "no PIT", room()),
    # VM: capabilities
    Case("vm", "KVM_CHECK_EXTENSION", 0, "unknown is 0", 4711),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "flags", cap(int(k.Cap.EXIT_HYPERCALL), 0, flags=1)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "an unknown capability", cap(4711)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "SPLIT_IRQCHIP 4097 pins, before EEXIST", cap(121, 4097)),
    Case("vm", "KVM_ENABLE_CAP", E.EEXIST, "SPLIT_IRQCHIP twice", cap(121, 24)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "EXIT_HYPERCALL other than MAP_GPA_RANGE", cap(201, 1 << 13)),
    Case("vm", "KVM_ENABLE_CAP", 0, "EXIT_HYPERCALL MAP_GPA_RANGE at any time", cap(201, 1 << 12)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "X86_APIC_BUS_CYCLES_NS 0", cap(237, 0)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "X86_APIC_BUS_CYCLES_NS overflow", cap(237, BIG)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "X86_APIC_BUS_CYCLES_NS after a vCPU", cap(237, 40)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "X2APIC_API unknown flag", cap(129, 1 << 8)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "X86_USER_SPACE_MSR unknown reason", cap(188, 1 << 8)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "MAX_VCPU_ID beyond the limit", cap(128, 4097)),
    Case("vm", "KVM_ENABLE_CAP", E.EINVAL, "MANUAL_DIRTY_LOG_PROTECT2 unknown mode", cap(168, 4)),
    # VM: interrupts
    Case("vm", "KVM_SET_GSI_ROUTING", E.EINVAL, "4097 routes, before the entries", header(k.kvm_irq_routing, nr=4097)),
    Case("vm", "KVM_SET_GSI_ROUTING", E.EINVAL, "flags", header(k.kvm_irq_routing, nr=0, flags=1)),
    Case(
        "vm",
        "KVM_SET_GSI_ROUTING",
        E.EINVAL,
        "an I/O APIC route with a split irqchip",
        lambda _: filled(k.kvm_irq_routing, [k.kvm_irq_routing_entry(type=k.KVM_IRQ_ROUTING_IRQCHIP)], nr=1),
    ),
    Case("vm", "KVM_SET_GSI_ROUTING", 0, "no routes", header(k.kvm_irq_routing, nr=0)),
    Case("vm", "KVM_SIGNAL_MSI", E.EINVAL, "flags", struct(k.kvm_msi, flags=2)),
    Case("vm", "KVM_SIGNAL_MSI", 0, "VALID_DEVID is allowed and ignored", struct(k.kvm_msi, flags=1), VMS),
    Case("vm", "KVM_IRQFD", E.EINVAL, "flags, before the fd", struct(k.kvm_irqfd, flags=4, fd=9999)),
    Case("vm", "KVM_IRQFD", E.EBADF, "not an open fd", struct(k.kvm_irqfd, fd=9999)),
    Case("vm", "KVM_IRQFD", E.EINVAL, "not an eventfd", lambda s: k.kvm_irqfd(fd=s.fds["vm"])),
    Case("vm", "KVM_IRQFD", E.EINVAL, "resampling with a split irqchip", struct(k.kvm_irqfd, flags=2, fd=9999)),
    Case("vm", "KVM_IOEVENTFD", E.EINVAL, "length 3, before the fd", struct(k.kvm_ioeventfd, len=3, fd=9999)),
    Case("vm", "KVM_IOEVENTFD", E.EINVAL, "a range that wraps", struct(k.kvm_ioeventfd, len=8, addr=(1 << 64) - 4)),
    Case("vm", "KVM_IOEVENTFD", E.EINVAL, "flags", struct(k.kvm_ioeventfd, len=4, flags=32, fd=9999)),
    Case("vm", "KVM_IOEVENTFD", E.EINVAL, "a match of no length", struct(k.kvm_ioeventfd, flags=1, fd=9999)),
    Case(
        "vm", "KVM_IOEVENTFD", E.EINVAL, "a match of 4 GiB", struct(k.kvm_ioeventfd, flags=1, len=0xFFFFFFFF, fd=9999)
    ),
    Case("vm", "KVM_IOEVENTFD", E.EBADF, "not an open fd", struct(k.kvm_ioeventfd, len=4, fd=9999)),
    Case(
        "vm",
        "KVM_IOEVENTFD",
        E.ENOENT,
        "deassigned without being there",
        lambda s: k.kvm_ioeventfd(len=4, flags=4, fd=s.bench.kernel.eventfd()),
    ),
    # VM: memory
    Case("vm", "KVM_SET_USER_MEMORY_REGION", E.EINVAL, "flags", struct(k.kvm_userspace_memory_region, flags=4)),
    Case("vm", "KVM_SET_USER_MEMORY_REGION", E.EINVAL, "deletes what is not there", room()),
    Case(
        "vm",
        "KVM_SET_USER_MEMORY_REGION",
        E.EINVAL,
        "address space 1",
        struct(k.kvm_userspace_memory_region, slot=1 << 16, memory_size=4096),
    ),
    Case(
        "vm",
        "KVM_SET_USER_MEMORY_REGION",
        E.EINVAL,
        "slot 32764",
        struct(k.kvm_userspace_memory_region, slot=32764, memory_size=4096),
    ),
    Case(
        "vm",
        "KVM_SET_USER_MEMORY_REGION",
        E.EINVAL,
        "READONLY",
        struct(k.kvm_userspace_memory_region, flags=2, memory_size=4096),
        TDS,
    ),
    Case(
        "vm",
        "KVM_SET_USER_MEMORY_REGION2",
        E.EINVAL,
        "GUEST_MEMFD and LOG_DIRTY_PAGES",
        struct(k.kvm_userspace_memory_region2, flags=5, memory_size=4096),
        UPSTREAM,
    ),
    Case(
        "vm",
        "KVM_SET_USER_MEMORY_REGION2",
        E.EBADF,
        "guest_memfd not open",
        struct(k.kvm_userspace_memory_region2, flags=4, memory_size=4096, guest_memfd=9999),
        UPSTREAM,
    ),
    Case(
        "vm", "KVM_SET_MEMORY_ATTRIBUTES", 0, "PRIVATE", struct(k.kvm_memory_attributes, size=4096, attributes=8), _UP
    ),
    Case("vm", "KVM_SET_MEMORY_ATTRIBUTES", 0, "shared as it is", struct(k.kvm_memory_attributes, size=4096), UPSTREAM),
    Case("vm", "KVM_SET_USER_MEMORY_REGION", 0, "accepted", slot(k.kvm_userspace_memory_region)),
    Case("vm", "KVM_SET_USER_MEMORY_REGION2", 0, "accepted", slot(k.kvm_userspace_memory_region2), UPSTREAM),
    Case("vm", "KVM_SET_MEMORY_ATTRIBUTES", E.EINVAL, "flags", struct(k.kvm_memory_attributes, flags=1), UPSTREAM),
    Case(
        "vm",
        "KVM_SET_MEMORY_ATTRIBUTES",
        E.EINVAL,
        "PRIVATE where there is no private memory",
        struct(k.kvm_memory_attributes, size=4096, attributes=8),
        VMS & UPSTREAM,
    ),
    Case("vm", "KVM_SET_MEMORY_ATTRIBUTES", E.EINVAL, "size 0", struct(k.kvm_memory_attributes), UPSTREAM),
    Case(
        "vm", "KVM_SET_MEMORY_ATTRIBUTES", E.EINVAL, "unaligned", struct(k.kvm_memory_attributes, size=2048), UPSTREAM
    ),
    Case(
        "vm",
        "KVM_CREATE_GUEST_MEMFD",
        E.EINVAL,
        "flags",
        struct(k.kvm_create_guest_memfd, size=4096, flags=4),
        UPSTREAM,
    ),
    Case("vm", "KVM_CREATE_GUEST_MEMFD", 0, "MMAP", struct(k.kvm_create_guest_memfd, size=4096, flags=1), UPSTREAM),
    Case(
        "vm",
        "KVM_CREATE_GUEST_MEMFD",
        E.EINVAL,
        "INIT_SHARED where memory is private",
        struct(k.kvm_create_guest_memfd, size=4096, flags=3),
        TDS & UPSTREAM,
    ),
    Case("vm", "KVM_CREATE_GUEST_MEMFD", E.EINVAL, "size 0", struct(k.kvm_create_guest_memfd), UPSTREAM),
    Case("vm", "KVM_CREATE_GUEST_MEMFD", 0, "accepted", struct(k.kvm_create_guest_memfd, size=4096), UPSTREAM),
    Case("vm", "KVM_GET_DIRTY_LOG", E.EINVAL, "slot 32764", struct(k.kvm_dirty_log, slot=32764)),
    Case("vm", "KVM_GET_DIRTY_LOG", E.ENOENT, "no slot", struct(k.kvm_dirty_log)),
    Case("vm", "KVM_CLEAR_DIRTY_LOG", E.EINVAL, "slot 32764", struct(k.kvm_clear_dirty_log, slot=32764)),
    Case("vm", "KVM_CLEAR_DIRTY_LOG", E.EINVAL, "first page 1", struct(k.kvm_clear_dirty_log, first_page=1)),
    Case("vm", "KVM_CLEAR_DIRTY_LOG", E.ENOENT, "no slot", struct(k.kvm_clear_dirty_log)),
    Case("vm", "KVM_RESET_DIRTY_RINGS", E.EINVAL, "no dirty rings"),
    Case("vm", "KVM_SET_NR_MMU_PAGES", E.EINVAL, "fewer than 64", 63),
    Case("vm", "KVM_SET_NR_MMU_PAGES", 0, "accepted", 64),
    Case("vm", "KVM_REGISTER_COALESCED_MMIO", E.EINVAL, "pio 2", struct(k.kvm_coalesced_mmio_zone, pio=2)),
    Case("vm", "KVM_REGISTER_COALESCED_MMIO", 0, "memory", struct(k.kvm_coalesced_mmio_zone, addr=BIG, size=8)),
    Case("vm", "KVM_REGISTER_COALESCED_MMIO", 0, "ports", struct(k.kvm_coalesced_mmio_zone, addr=8, size=8, pio=1)),
    Case("vm", "KVM_UNREGISTER_COALESCED_MMIO", E.EINVAL, "pio 2", struct(k.kvm_coalesced_mmio_zone, pio=2)),
    Case("vm", "KVM_UNREGISTER_COALESCED_MMIO", 0, "what is not there", struct(k.kvm_coalesced_mmio_zone, size=8)),
    # VM: the rest
    Case("vm", "KVM_SET_TSS_ADDR", E.EINVAL, "beyond 4 GiB less three pages", 0xFFFFFFFF),
    Case("vm", "KVM_SET_TSS_ADDR", 0, "accepted", 0xFEFFD000),
    Case("vm", "KVM_SET_IDENTITY_MAP_ADDR", E.EINVAL, "vCPUs exist", room()),
    Case("vm", "KVM_SET_BOOT_CPU_ID", E.EBUSY, "vCPUs exist"),
    Case("vm", "KVM_SET_TSC_KHZ", E.EINVAL, "2^32-1 kHz", 0xFFFFFFFF),
    Case("vm", "KVM_SET_TSC_KHZ", E.EINVAL, "vCPUs exist", on=UPSTREAM),
    Case("vm", "KVM_SET_TSC_KHZ", 0, "the host's", on=V10),
    Case("vm", "KVM_GET_TSC_KHZ", 0, "accepted"),
    Case("vm", "KVM_GET_CLOCK", 0, "accepted", room()),
    Case("vm", "KVM_SET_CLOCK", E.EINVAL, "flags", struct(k.kvm_clock_data, flags=0x10)),
    Case("vm", "KVM_SET_CLOCK", 0, "accepted", room()),
    Case("vm", "KVM_CREATE_DEVICE", E.ENODEV, "VFIO is not built in", struct(k.kvm_create_device, type=4)),
    Case("vm", "KVM_MEMORY_ENCRYPT_REG_REGION", E.ENOTTY, "no such callback", room()),
    Case("vm", "KVM_MEMORY_ENCRYPT_UNREG_REGION", E.ENOTTY, "no such callback", room()),
    Case("vm", "KVM_MEMORY_ENCRYPT_OP", E.ENOTTY, "not a TD, before the pointer", NOWHERE, VMS),
    Case("vm", "KVM_MEMORY_ENCRYPT_OP", E.EFAULT, "a pointer to nowhere", NOWHERE, TDS),
    Case("vm", "KVM_X86_SET_MSR_FILTER", 0, "no ranges", room()),
    Case("vm", "KVM_X86_SET_MSR_FILTER", E.EINVAL, "flags", struct(k.kvm_msr_filter, flags=2)),
    Case("vm", "KVM_HAS_DEVICE_ATTR", E.ENOTTY, "not a request here", room()),
    Case("vm", "KVM_RUN", E.ENOTTY, "not a request here"),
    # vCPU
    Case("vcpu", "KVM_RUN", E.EINVAL, "an argument", 1),
    Case("vcpu", "KVM_RUN", E.EINVAL, "a TD that is not finalised", 0, TDS),
    Case("vcpu", "KVM_SET_CPUID", E.E2BIG, "257 entries", header(k.kvm_cpuid, nent=257)),
    Case("vcpu", "KVM_SET_CPUID2", E.E2BIG, "257 entries", header(k.kvm_cpuid2, nent=257)),
    Case("vcpu", "KVM_SET_CPUID2", 0, "accepted", header(k.kvm_cpuid2, nent=0)),
    Case("vcpu", "KVM_GET_CPUID2", 0, "room for 100", full(k.kvm_cpuid2, nent=100)),
    Case("vcpu", "KVM_GET_CPUID2", E.E2BIG, "too little room", header(k.kvm_cpuid2, nent=0), TDS),
    Case("vcpu", "KVM_GET_MSRS", 0, "none", header(k.kvm_msrs, nmsrs=0)),
    Case("vcpu", "KVM_GET_MSRS", E.E2BIG, "256 at once", header(k.kvm_msrs, nmsrs=256)),
    Case("vcpu", "KVM_SET_MSRS", E.E2BIG, "256 at once", header(k.kvm_msrs, nmsrs=256)),
    Case("vcpu", "KVM_SET_MSRS", 0, "none", header(k.kvm_msrs, nmsrs=0)),
    Case("vcpu", "KVM_GET_MP_STATE", 0, "accepted", room()),
    Case("vcpu", "KVM_SET_MP_STATE", E.EINVAL, "no such state", struct(k.kvm_mp_state, mp_state=5)),
    Case("vcpu", "KVM_SET_MP_STATE", E.EINVAL, "INIT_RECEIVED is blocked", struct(k.kvm_mp_state, mp_state=2), TDS),
    Case("vcpu", "KVM_SET_MP_STATE", E.EINVAL, "SIPI_RECEIVED is blocked", struct(k.kvm_mp_state, mp_state=4), TDS),
    Case("vcpu", "KVM_SET_MP_STATE", 0, "RUNNABLE", room()),
    Case("vcpu", "KVM_NMI", 0, "accepted"),
    Case("vcpu", "KVM_SMI", E.ENOTTY, "no SMM"),
    Case("vcpu", "KVM_INTERRUPT", E.EINVAL, "vector 256", struct(k.kvm_interrupt, irq=256)),
    Case("vcpu", "KVM_INTERRUPT", 0, "split irqchip", struct(k.kvm_interrupt, irq=32)),
    Case("vcpu", "KVM_GET_VCPU_EVENTS", 0, "accepted", room()),
    Case("vcpu", "KVM_SET_VCPU_EVENTS", 0, "nothing pending", room()),
    Case("vcpu", "KVM_SET_VCPU_EVENTS", E.EINVAL, "flags", struct(k.kvm_vcpu_events, flags=0x40)),
    Case("vcpu", "KVM_SET_SREGS2", E.EINVAL, "protected state, before the pointer", NOWHERE, TDS),
    Case("vcpu", "KVM_SET_SREGS2", E.EFAULT, "a pointer to nowhere", NOWHERE, VMS),
    Case("vcpu", "KVM_SET_SREGS2", E.EINVAL, "flags", struct(k.kvm_sregs2, flags=2), VMS),
    Case("vcpu", "KVM_SET_SREGS2", E.EINVAL, "PDPTRs without PAE paging", struct(k.kvm_sregs2, flags=1), VMS),
    Case(
        "vcpu", "KVM_SET_SREGS", E.EINVAL, "a reserved bit of EFER", struct(k.kvm_sregs, efer=BIG), frozenset(KINDS[:1])
    ),
    Case("vcpu", "KVM_SET_SREGS", 0, "a reserved bit of EFER", struct(k.kvm_sregs, efer=BIG), frozenset(KINDS[1:2])),
    Case("vcpu", "KVM_TRANSLATE", 0, "accepted", room()),
    Case("vcpu", "KVM_SET_SIGNAL_MASK", E.EINVAL, "a set of 4 bytes", header(k.kvm_signal_mask, len=4)),
    Case("vcpu", "KVM_SET_SIGNAL_MASK", 0, "none", 0),
    Case("vcpu", "KVM_X86_SETUP_MCE", E.EINVAL, "no banks", room()),
    Case("vcpu", "KVM_X86_SETUP_MCE", E.EINVAL, "33 banks", lambda _: ctypes.c_uint64(33)),
    Case("vcpu", "KVM_X86_SETUP_MCE", 0, "10 banks", lambda _: ctypes.c_uint64(10)),
    Case("vcpu", "KVM_X86_SET_MCE", E.EINVAL, "a status without VAL", room()),
    Case("vcpu", "KVM_SET_TSC_KHZ", E.EINVAL, "2^32-1 kHz", 0xFFFFFFFF),
    Case("vcpu", "KVM_SET_TSC_KHZ", E.EINVAL, "the module's to say", 1_000_000, TDS),
    Case("vcpu", "KVM_GET_TSC_KHZ", 0, "accepted"),
    Case("vcpu", "KVM_TPR_ACCESS_REPORTING", E.EINVAL, "flags", struct(k.kvm_tpr_access_ctl, flags=1)),
    Case("vcpu", "KVM_TPR_ACCESS_REPORTING", 0, "accepted", room()),
    Case("vcpu", "KVM_SET_VAPIC_ADDR", 0, "accepted", room()),
    Case("vcpu", "KVM_KVMCLOCK_CTRL", E.EINVAL, "the guest has no kvmclock"),
    Case("vcpu", "KVM_ENABLE_CAP", E.EINVAL, "none for a vCPU", cap(4711)),
    Case("vcpu", "KVM_HAS_DEVICE_ATTR", E.ENXIO, "an unknown attribute", struct(k.kvm_device_attr, group=9)),
    Case("vcpu", "KVM_MEMORY_ENCRYPT_OP", E.EINVAL, "not a TD", NOWHERE, VMS),
    Case("vcpu", "KVM_MEMORY_ENCRYPT_OP", E.EFAULT, "a pointer to nowhere", NOWHERE, TDS & UPSTREAM),
    Case("vcpu", "KVM_MEMORY_ENCRYPT_OP", E.EINVAL, "initialised already, before the pointer", NOWHERE, TDS & V10),
    Case("vcpu", "KVM_PRE_FAULT_MEMORY", E.EFAULT, "a pointer to nowhere", NOWHERE, UPSTREAM),
    Case("vcpu", "KVM_PRE_FAULT_MEMORY", E.EINVAL, "not in this kernel", room(), V10),
    Case("vcpu", "KVM_PRE_FAULT_MEMORY", E.EINVAL, "flags", struct(k.kvm_pre_fault_memory, flags=1), UPSTREAM),
    Case("vcpu", "KVM_PRE_FAULT_MEMORY", E.EINVAL, "size 0", room(), UPSTREAM),
    Case(
        "vcpu",
        "KVM_PRE_FAULT_MEMORY",
        E.EOPNOTSUPP,
        "before FINALIZE",
        struct(k.kvm_pre_fault_memory, size=4096),
        TDS & UPSTREAM,
    ),
    *_as_the_source_has_it(),
    *_generated(),
    # What this kernel does not have: kvm_arch_vm_ioctl and its siblings end in these for a number they do not know.
    Case("vm", "KVM_GET_NR_MMU_PAGES", E.ENOTTY, "x86 has no such ioctl any more"),
    Case("vm", "KVM_SET_PMU_EVENT_FILTER", 0, "no event", struct(k.kvm_pmu_event_filter, action=1)),
    Case("vm", "KVM_SET_PMU_EVENT_FILTER", E.EINVAL, "no such action", struct(k.kvm_pmu_event_filter, action=2)),
    Case("vm", "KVM_SET_PMU_EVENT_FILTER", E.EINVAL, "no such flag", struct(k.kvm_pmu_event_filter, flags=2)),
    Case("vm", "KVM_SET_PMU_EVENT_FILTER", E.E2BIG, "301 events", struct(k.kvm_pmu_event_filter, nevents=301)),
    Case("vcpu", "KVM_GET_ONE_REG", E.EINVAL, "x86 has it from Linux 6.18 on", 0, V10),
    Case("vcpu", "KVM_SET_ONE_REG", E.EINVAL, "x86 has it from Linux 6.18 on", 0, V10),
    Case("vcpu", "KVM_GET_REG_LIST", E.EINVAL, "x86 has it from Linux 6.18 on", 0, V10),
    Case("vcpu", "KVM_GET_ONE_REG", E.EINVAL, "not a register of x86", struct(k.kvm_one_reg, id=1), UPSTREAM),
    Case("vcpu", "KVM_SET_ONE_REG", E.EINVAL, "not a register of x86", struct(k.kvm_one_reg, id=1), UPSTREAM),
    Case("vcpu", "KVM_GET_REG_LIST", 0, "none of KVM's own", struct(k.kvm_reg_list), UPSTREAM),
    Case("device", "KVM_GET_SUPPORTED_HV_CPUID", E.EINVAL, "no Hyper-V"),
)

_TDX_VM, _TDX_VCPU = "test_tdx_vm.py", "test_tdx_vcpu.py"


@dataclass(frozen=True)
class Proof:
    """Outcomes of a request (or of a TDX sub-command) that a test elsewhere brings about."""

    fd: str
    request: str
    outcomes: tuple[int, ...]
    test: str
    """A file under tests/linux (its name is enough), two colons, the function."""
    on: frozenset[str]


PROVEN = (
    Proof("device", "KVM_CREATE_VM", (E.EINVAL,), "test_kernel.py::test_vm_types", ALL),
    Proof("vm", "(any)", (E.EIO,), "test_kernel.py::test_a_child_process_cannot_use_the_vm", VMS),
    Proof("vm", "(any)", (E.EIO,), f"{_TDX_VM}::test_finalize_error_kills_the_vm", _UP),
    Proof("vm", "(unknown)", (E.ENOTTY,), "test_kernel.py::test_unknown_requests", UPSTREAM),
    Proof("vcpu", "(unknown)", (E.EINVAL,), "test_kernel.py::test_unknown_requests", _UP),
    Proof("vm", "KVM_CREATE_VCPU", (E.EIO,), f"{_TDX_VCPU}::test_a_vcpu_needs_an_initialised_td", _UP),
    Proof("vm", "KVM_CREATE_VCPU", (E.EINVAL,), f"{_TDX_VCPU}::test_a_vcpu_needs_the_split_irqchip", _UP),
    Proof("vm", "KVM_SET_USER_MEMORY_REGION2", (E.EINVAL,), "test_memslots.py::test_refused_regions", UPSTREAM),
    Proof("vm", "KVM_SET_USER_MEMORY_REGION2", (0, E.EEXIST), "test_memslots.py::test_slots_live", _UP),
    Proof("vm", "KVM_SET_USER_MEMORY_REGION2", (E.EBADF, E.EINVAL), "test_memslots.py::test_bindings", _UP),
    Proof("vcpu", "KVM_INTERRUPT", (E.EEXIST,), f"{_TDX_VCPU}::test_what_stays_allowed", _UP),
    Proof("vcpu", "KVM_PRE_FAULT_MEMORY", (0, E.EOPNOTSUPP, E.ENOENT), "test_memslots.py::test_pre_fault", _UP),
    Proof("vcpu", "KVM_RUN", (E.EINTR, E.EINVAL), f"{_TDX_VCPU}::test_immediate_exit_and_sync_regs", _UP),
    Proof("vcpu", "KVM_RUN", (E.EFAULT,), f"{_TDX_VCPU}::test_memory_fault_exits", _UP),
    Proof("vcpu", "KVM_RUN", (E.EIO,), f"{_TDX_VCPU}::test_what_kills_the_vm", _UP),
    *(
        Proof(fd, request, outcomes, f"test_refusals_by_state.py::{test}", frozenset({"VM upstream"}))
        for fd, request, outcomes, test in (
            ("vm", "KVM_CREATE_IRQCHIP", (E.EINVAL,), "test_irqchips_come_before_vcpus"),
            ("vm", "KVM_ENABLE_CAP", (E.ENXIO,), "test_apic_bus_cycles_need_an_irqchip_and_a_number"),
            ("vm", "KVM_ENABLE_CAP", (E.EINVAL,), "test_max_vcpu_id_is_set_once_and_bounds_the_ids"),
            ("vm", "KVM_IRQ_LINE", (E.ENXIO,), "test_user_space_apic"),
            ("vcpu", "KVM_GET_LAPIC", (E.EINVAL,), "test_user_space_apic"),
            ("vcpu", "KVM_SET_LAPIC", (E.EINVAL,), "test_user_space_apic"),
            ("vcpu", "KVM_SET_VAPIC_ADDR", (E.EINVAL,), "test_user_space_apic"),
            ("vcpu", "KVM_INTERRUPT", (E.ENXIO,), "test_interrupts_with_the_pic_in_the_kernel"),
            ("vm", "KVM_CREATE_PIT2", (0, E.EEXIST), "test_interrupts_with_the_pic_in_the_kernel"),
            ("vm", "KVM_GET_IRQCHIP", (E.EINVAL,), "test_interrupts_with_the_pic_in_the_kernel"),
            ("vm", "KVM_SET_IRQCHIP", (E.EINVAL,), "test_interrupts_with_the_pic_in_the_kernel"),
            ("vm", "KVM_IRQFD", (0, E.EBUSY), "test_an_eventfd_is_one_irqfd_and_one_listener"),
            ("vm", "KVM_IOEVENTFD", (0, E.EEXIST), "test_an_eventfd_is_one_irqfd_and_one_listener"),
            ("vcpu", "KVM_SET_CPUID2", (E.EINVAL,), "test_cpuid_is_fixed_by_the_first_run"),
        )
    ),
    *(
        Proof(fd, request, outcomes, f"test_dirty_log_and_sregs2.py::{test}", frozenset({"VM upstream"}))
        for fd, request, outcomes, test in (
            ("vm", "KVM_GET_DIRTY_LOG", (0,), "test_reading_clears_unless_protection_is_manual"),
            ("vm", "KVM_CLEAR_DIRTY_LOG", (0,), "test_manual_protection"),
            ("vm", "KVM_CLEAR_DIRTY_LOG", (E.EINVAL,), "test_ranges_that_are_refused"),
            ("vcpu", "KVM_SET_SREGS2", (0,), "test_sregs2_is_sregs_without_pending_interrupts"),
            ("vcpu", "KVM_SET_CPUID", (0,), "test_cpuid_of_old_has_no_sub_leaves"),
        )
    ),
    *(
        Proof(fd, request, outcomes, test, frozenset({"VM upstream"}))
        for fd, request, outcomes, test in (
            ("vm", "KVM_GET_CLOCK", (0,), "test_pvclock.py::test_flags"),
            ("vm", "KVM_SET_CLOCK", (0, E.EINVAL), "test_pvclock.py::test_flags"),
            ("vcpu", "KVM_KVMCLOCK_CTRL", (0, E.EINVAL), "test_pvclock.py::test_a_guest_is_told_that_it_was_stopped"),
            ("vcpu", "KVM_GET_MSRS", (0,), "test_msrs.py::test_values"),
            (
                "vcpu",
                "KVM_SET_MSRS",
                (0, E.E2BIG),
                "test_msrs.py::test_it_stops_at_the_first_that_is_refused",
            ),
            ("vm", "KVM_GET_STATS_FD", (0,), "test_binary_stats.py::test_an_open_descriptor_keeps_the_vm"),
            ("vcpu", "KVM_GET_STATS_FD", (0,), "test_binary_stats.py::test_an_open_descriptor_keeps_the_vm"),
            ("vcpu", "KVM_GET_NESTED_STATE", (0,), "test_nested.py::test_there_is_a_header_that_says_no_vmxon"),
            (
                "vcpu",
                "KVM_GET_NESTED_STATE",
                (E.E2BIG,),
                "test_nested.py::test_too_little_room_is_e2big_and_tells_the_size",
            ),
            ("vcpu", "KVM_SET_NESTED_STATE", (0,), "test_nested.py::test_there_is_a_header_that_says_no_vmxon"),
            ("vcpu", "KVM_SET_NESTED_STATE", (E.EINVAL,), "test_nested.py::test_no_other_state_can_be_set"),
            ("vcpu", "KVM_X86_SET_MCE", (0,), "test_msrs.py::test_the_guest_gets_a_machine_check"),
        )
    ),
    Proof(
        "vm",
        "KVM_TDX_INIT_VM",
        (E.EBUSY,),
        "test_refusals_by_state.py::test_v10_a_td_with_vcpus_cannot_be_initialised",
        _OLD,
    ),
    Proof("vm", "KVM_GET_STATS_FD", (0,), "test_binary_stats.py::test_a_tds_statistics", _UP),
    Proof("vcpu", "KVM_GET_STATS_FD", (0,), "test_binary_stats.py::test_a_tds_statistics", _UP),
    Proof("vm", "KVM_TDX_CAPABILITIES", (0,), f"{_TDX_VM}::test_capabilities_are_what_kvm_and_module_share", _UP),
    Proof(
        "vm", "KVM_TDX_CAPABILITIES", (E.E2BIG,), f"{_TDX_VM}::test_too_little_room_is_e2big_and_writes_nothing", _UP
    ),
    Proof(
        "vm",
        "KVM_TDX_CAPABILITIES",
        (E.EINVAL, E.EFAULT),
        f"{_TDX_VM}::test_capabilities_flags_win_over_a_bad_pointer",
        _UP,
    ),
    Proof(
        "vm",
        "KVM_TDX_CAPABILITIES",
        (0, E.E2BIG),
        f"{_TDX_VM}::test_v10_gives_the_modules_masks_and_configs_at_36",
        _OLD,
    ),
    Proof(
        "vm",
        "KVM_TDX_INIT_VM",
        (E.EINVAL, E.EFAULT, E.E2BIG),
        f"{_TDX_VM}::test_init_vm_order_of_checks",
        _UP,
    ),
    Proof("vm", "KVM_TDX_INIT_VM", (E.EINVAL,), f"{_TDX_VM}::test_init_vm_refuses_before_any_seamcall", _UP),
    Proof("vm", "KVM_TDX_INIT_VM", (E.ENOSPC,), f"{_TDX_VM}::test_no_hkid_is_enospc", _UP),
    Proof(
        "vm",
        "KVM_TDX_INIT_VM",
        (E.EAGAIN, E.EIO, E.EINVAL),
        f"{_TDX_VM}::test_a_failed_init_vm_gives_everything_back_and_may_be_repeated",
        _UP,
    ),
    Proof("vm", "KVM_TDX_INIT_VM", (E.EINVAL,), f"{_TDX_VM}::test_v10_init_vm_refusals", _OLD),
    Proof(
        "vm", "KVM_TDX_INIT_VM", (E.EIO,), f"{_TDX_VM}::test_v10_reports_any_module_error_as_eio_with_the_status", _OLD
    ),
    Proof("vcpu", "KVM_TDX_INIT_VCPU", (E.EINVAL,), f"{_TDX_VCPU}::test_init_vcpu_refusals", _UP),
    Proof("vcpu", "KVM_TDX_INIT_VCPU", (E.EIO,), f"{_TDX_VCPU}::test_a_seamcall_error_in_init_vcpu_kills_the_vm", _UP),
    Proof("vcpu", "KVM_TDX_INIT_MEM_REGION", (E.EINVAL, E.EFAULT), f"{_TDX_VCPU}::test_region_order_of_checks", _UP),
    Proof(
        "vcpu",
        "KVM_TDX_INIT_MEM_REGION",
        (E.EINVAL, E.EEXIST, E.EFAULT),
        f"{_TDX_VCPU}::test_page_refusals_write_back_how_far_it_came",
        _UP,
    ),
    Proof("vcpu", "KVM_TDX_INIT_MEM_REGION", (E.EIO,), f"{_TDX_VCPU}::test_seamcall_errors_while_adding", _UP),
    Proof(
        "vm",
        "KVM_TDX_INIT_MEM_REGION",
        (0, E.EINVAL),
        f"{_TDX_VCPU}::test_v10_adds_memory_on_the_vm_from_any_slot",
        _OLD,
    ),
    Proof("vcpu", "KVM_TDX_GET_CPUID", (0, E.E2BIG), f"{_TDX_VCPU}::test_get_cpuid_tells_how_much_room_it_needs", _UP),
    Proof("vm", "KVM_TDX_FINALIZE_VM", (E.EINVAL,), f"{_TDX_VM}::test_finalize_before_init", _UP),
    Proof("vm", "KVM_TDX_FINALIZE_VM", (E.EBUSY,), f"{_TDX_VM}::test_finalize_busy_can_be_repeated", _UP),
    Proof("vm", "KVM_TDX_FINALIZE_VM", (E.EIO,), f"{_TDX_VM}::test_finalize_error_kills_the_vm", _UP),
    *(
        Proof(fd, request, outcomes, f"test_every_errno.py::{test}", on)
        for fd, request, outcomes, test, on in (
            ("device", "KVM_CREATE_VM", (E.EMFILE,), "test_too_many_files_wins_over_a_bad_type", UPSTREAM),
            ("device", "KVM_CREATE_VM", (E.ENOMEM,), "test_no_page_for_a_vm", frozenset({KINDS[0]})),
            ("vm", "KVM_CREATE_VCPU", (E.EMFILE,), "test_too_many_files_for_a_vcpu_and_a_guest_memfd", _UP),
            ("vm", "KVM_CREATE_GUEST_MEMFD", (E.EMFILE,), "test_too_many_files_for_a_vcpu_and_a_guest_memfd", _UP),
            ("vm", "KVM_CREATE_VCPU", (E.EIO, E.EINVAL), "test_the_tds_state_wins_over_its_irqchip", _UP),
            ("vm", "KVM_CREATE_VCPU", (E.ENOMEM,), "test_no_page_for_a_vcpus_descriptor", _UP),
            ("vcpu", "(any)", (E.EIO,), "test_a_dead_vms_vcpu_answers_nothing", _UP),
            (
                "vm",
                "KVM_SET_USER_MEMORY_REGION2",
                (E.EEXIST, E.EBADF),
                "test_an_overlap_wins_over_a_bad_guest_memfd",
                _UP,
            ),
            ("vcpu", "KVM_RUN", (E.EINTR, E.EAGAIN), "test_a_vcpu_that_waits_to_be_started", frozenset({KINDS[0]})),
            ("vcpu", "KVM_RUN", (E.ENOMEM,), "test_no_page_for_a_fault", _UP),
            ("vcpu", "KVM_PRE_FAULT_MEMORY", (E.EINTR,), "test_a_signal_ends_pre_faulting", _UP),
            ("vcpu", "KVM_TDX_INIT_MEM_REGION", (E.EINTR,), "test_a_signal_between_two_pages", _UP),
            ("vcpu", "KVM_TDX_INIT_MEM_REGION", (E.EFAULT,), "test_a_region_that_cannot_be_written_back", _UP),
            ("vcpu", "KVM_TDX_INIT_MEM_REGION", (E.ENOMEM,), "test_no_page_for_initial_memory", _UP),
            ("vcpu", "KVM_TDX_GET_CPUID", (E.EFAULT, E.EIO), "test_get_cpuid_that_cannot_be_read_or_written", _UP),
            ("vcpu", "KVM_TDX_GET_CPUID", (E.EINVAL,), "test_finalized_once", _UP),
            ("vm", "KVM_TDX_FINALIZE_VM", (E.EINVAL,), "test_finalized_once", _UP),
            ("vm", "KVM_TDX_INIT_VM", (E.EINVAL,), "test_finalized_once", _UP),
            ("vm", "KVM_TDX_INIT_VM", (E.ENOMEM,), "test_no_page_for_a_td", _UP),
            ("vcpu", "KVM_TDX_INIT_VCPU", (E.ENOMEM,), "test_no_page_for_a_vcpu", _UP),
            ("vcpu", "KVM_TDX_INIT_VCPU", (E.EFAULT, E.EINVAL), "test_v10_vcpu_commands", _OLD),
            ("vm", "KVM_TDX_FINALIZE_VM", (E.EINVAL,), "test_v10_finalized_once", _OLD),
            ("vm", "KVM_TDX_INIT_VM", (0,), "test_a_whole_life", TDS),
            ("vcpu", "KVM_TDX_INIT_VCPU", (0,), "test_a_whole_life", TDS),
            ("vcpu", "KVM_TDX_INIT_MEM_REGION", (0,), "test_a_whole_life", _UP),
            ("vm", "KVM_TDX_INIT_MEM_REGION", (0,), "test_a_whole_life", _OLD),
            ("vm", "KVM_TDX_FINALIZE_VM", (0,), "test_a_whole_life", TDS),
            ("vcpu", "KVM_RUN", (0,), "test_a_whole_life", TDS),
        )
    ),
    Proof(
        "vcpu",
        "KVM_SET_VCPU_EVENTS",
        (0, E.EINVAL),
        "test_vcpu_events.py::test_a_td_shows_nothing_and_takes_nmis",
        _UP,
    ),
    Proof("vm", "KVM_TDX_TERMINATE_VM", (0, E.EINVAL), f"{_TDX_VM}::test_terminate_releases_the_key_at_once", _UP),
)


def page() -> str:
    """docs/conformance.md."""
    rows: dict[tuple[str, str], dict[str, set[int]]] = {}
    proofs: dict[tuple[str, str], list[str]] = {}
    for case in CASES:
        row = rows.setdefault((case.fd, case.request), {kind: set() for kind in KINDS})
        for kind in case.on:
            row[kind].add(case.outcome)
        listed = proofs.setdefault((case.fd, case.request), [])
        listed.append("conformance") if "conformance" not in listed else None
    for proof in PROVEN:
        row = rows.setdefault((proof.fd, proof.request), {kind: set() for kind in KINDS})
        for kind in proof.on:
            row[kind].update(proof.outcomes)
        test = proof.test.partition("::")[2]
        listed = proofs.setdefault((proof.fd, proof.request), [])
        listed.append(test) if test not in listed else None
    lines = [
        "# Conformance",
        "",
        "Made by `python -m tests.linux.conformance` from the tables that the tests run; do not edit.",
        "",
        "Each cell names the outcomes that a test brings about: 0 is success, the others are errno. `conformance` is",
        "`tests/linux/test_conformance.py`, which makes each call of its table on each kind of VM; other names are",
        "test functions under `tests/linux`. An empty cell: nothing is claimed. Requests of the TDX sub-commands are",
        "KVM_MEMORY_ENCRYPT_OP.",
    ]
    titles = {"device": "/dev/kvm", "vm": "VM", "vcpu": "vCPU"}
    for fd, title in titles.items():
        lines += ["", f"## {title}", "", f"| ioctl | {' | '.join(KINDS)} | proof |", "|---" * (len(KINDS) + 2) + "|"]
        for where, request in sorted(rows):
            if where != fd:
                continue
            row = rows[where, request]
            cells = [" ".join(name_of(outcome) for outcome in sorted(row[kind], key=name_of)) for kind in KINDS]
            lines.append(f"| {request} | {' | '.join(cells)} | {', '.join(proofs[where, request])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE_PATH.write_text(page())
