# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-call line: descriptors, unknown requests, capabilities, dead VMs, foreign processes, and nonsense."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.linux.err import reason_of
from swtdx.linux.kernel import EmulatedKernel
from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from tests.linux.conftest import Bench, boot, boot_v10, refused

REQUESTS = sorted({int(request) for request in k.REQUESTS.values()})


# --- Descriptors ------------------------------------------------------------------------------------------------------


def test_there_is_only_dev_kvm(bench: Bench) -> None:
    with refused(errno.ENOENT):
        bench.kernel.open("/dev/null")


def test_numbers_are_real_and_never_clash(bench: Bench) -> None:
    device = bench.device()
    other = os.open("/dev/null", os.O_RDONLY)
    vm = bench.vm(0)
    assert len({device, other, vm}) == 3
    bench.kernel.close(vm)
    with pytest.raises(OSError):
        os.fstat(vm)
    os.close(other)


def test_a_dup_keeps_the_vm_alive(bench: Bench) -> None:
    vm = bench.vm(0)
    copy = os.dup(vm)
    assert bench.ioctl(copy, k.KVM_CHECK_EXTENSION, k.Cap.USER_MEMORY) == 1
    bench.kernel.close(vm)
    assert len(bench.kernel.vms) == 1
    bench.kernel.close(copy)
    assert not bench.kernel.vms


def test_a_vm_lives_while_its_vcpu_is_open_or_mapped(bench: Bench) -> None:
    """kvm_get_kvm for every vCPU; and a mapping keeps the file that it is of (vm_area_struct.vm_file)."""
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    mapping = bench.kernel.mmap(vcpu, 0x3000)
    bench.kernel.close(vm)
    assert bench.ioctl(vcpu, k.KVM_GET_TSC_KHZ) > 0  # the vCPU is as good as ever
    bench.kernel.close(vcpu)
    assert bench.kernel.vms
    assert k.kvm_run.from_buffer_copy(mapping).exit_reason == 0
    mapping.close()
    assert not bench.kernel.vms


def test_a_forgotten_mapping_keeps_nothing(bench: Bench) -> None:
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    mappings = [bench.kernel.mmap(vcpu, 0x1000), bench.kernel.mmap(vcpu, 0x1000, 0x1000)]
    bench.kernel.close(vm)
    bench.kernel.close(vcpu)
    del mappings[0]
    assert bench.kernel.vms
    mappings.clear()
    assert not bench.kernel.vms


def test_what_is_mapped_is_what_the_descriptor_names(bench: Bench) -> None:
    """A duplicate is of the vCPU, also when the number that it was made with belongs to something else by now."""
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    duplicate = os.dup(vcpu)
    bench.ioctl(duplicate, k.KVM_GET_TSC_KHZ)  # the kernel hears of it
    bench.kernel.close(vcpu)
    other = os.memfd_create("other")
    assert other == vcpu
    os.truncate(other, 0x3000)
    mapping = bench.kernel.mmap(duplicate, 0x3000)
    mapping[0] = 7
    assert os.pread(other, 1, 0) == b"\0"
    assert bench.kernel.mmap(duplicate, 0x1000)[0] == 7
    os.close(other)


def test_switching_off_ends_what_is_mapped(bench: Bench) -> None:
    vcpu = bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)
    mapping = bench.kernel.mmap(vcpu, 0x3000)
    bench.kernel.shutdown()
    assert not bench.kernel.vms
    mapping.close()


_NUMBERS = (0, -1, 1, -(1 << 31), 1 << 31, 1 << 32, -(1 << 63), 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 100, -(1 << 100))


def test_numbers_beyond_every_type_get_an_errno(bench: Bench) -> None:
    """A caller in C cannot pass them; one in Python can, and gets an OSError as any caller."""
    kernel = bench.kernel
    vm = bench.td()
    kinds = [bench.device(), vm, bench.vcpu(vm), bench.memfd(vm), bench.ioctl(vm, k.KVM_GET_STATS_FD), *_NUMBERS[1:]]
    calls = [
        *((kernel.ioctl, (fd, request, arg)) for fd in kinds for request in (0xAE80, -1, 1 << 70) for arg in _NUMBERS),
        *((kernel.ioctl, (fd, request, 0)) for fd in kinds for request in _NUMBERS),
        *((kernel.mmap, (fd, length, offset)) for fd in kinds for length in _NUMBERS for offset in _NUMBERS),
        *((kernel.fallocate, (fd, 3, offset, length)) for fd in kinds for offset in _NUMBERS for length in _NUMBERS),
        *((kernel.fallocate, (fd, mode, 0, 4096)) for fd in kinds for mode in _NUMBERS),
        *((kernel.eventfd, (value, flags)) for value in _NUMBERS for flags in _NUMBERS[1:]),
        *((kernel.close, (fd,)) for fd in _NUMBERS if fd < 0 or fd > 1 << 20),
    ]
    outcomes = set()
    for function, arguments in calls:
        try:
            function(*arguments)  # type: ignore[operator]
        except OSError as error:
            outcomes.add(error.errno)
    assert None not in outcomes
    assert errno.EIO not in outcomes
    assert errno.EBADF in outcomes


def test_closed_and_foreign_descriptors(bench: Bench) -> None:
    fd = bench.device()
    bench.kernel.close(fd)
    with refused(errno.EBADF):
        bench.ioctl(fd, k.KVM_GET_API_VERSION)
    with refused(errno.EBADF):
        bench.kernel.close(fd)
    with open("/dev/null") as null, refused(errno.ENOTTY):
        bench.ioctl(null.fileno(), k.KVM_GET_API_VERSION)


def test_the_run_page_is_shared_with_the_descriptor(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    ours, theirs = bench.kernel.mmap(vcpu, 0x3000), mmap.mmap(vcpu, 0x1000)
    ours[1] = 1
    assert theirs[1] == 1
    with refused(errno.EINVAL):
        bench.kernel.mmap(vcpu, 0x4000)
    with refused(errno.ENODEV):
        bench.kernel.mmap(vm, 0x1000)


def test_a_child_process_cannot_use_the_vm(bench: Bench) -> None:
    vm = bench.vm(0)
    child = os.fork()
    if not child:
        try:
            bench.ioctl(vm, k.KVM_CHECK_EXTENSION, 0)
            os._exit(1)
        except OSError as error:
            os._exit(0 if error.errno == errno.EIO else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def in_a_child(function: Callable[[], None]) -> int:
    """The exit status of a process made by fork() that calls ``function``: 0, or 1 if it raises."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:  # noqa: BLE001 - nothing of this may get back into the test's own stack
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_every_call_of_a_child_on_its_parents_vm_is_eio(bench: Bench) -> None:
    """kvm_vm_ioctl, kvm_vcpu_ioctl: current->mm is asked before anything else, also before KVM_RUN's argument."""
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)

    def child() -> None:
        for fd, request in ((vm, k.KVM_GET_CLOCK), (vm, 0xDEAD), (vcpu, k.KVM_RUN), (vcpu, 0xDEAD), (vcpu, k.KVM_NMI)):
            with refused(errno.EIO):
                bench.ioctl(fd, request, 1)

    assert in_a_child(child) == 0


def test_what_a_child_closes_its_parent_has_still(bench: Bench) -> None:
    """Also the thread that waits for irqfds, whose epoll instance both processes share."""
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    event = bench.kernel.eventfd()
    bench.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=event, gsi=1))
    seen = threading.Event()
    bench.vm_object().irq_routing.set_irq = lambda *_: seen.set()

    def child() -> None:
        for fd in (vcpu, vm):
            bench.kernel.close(fd)
        assert bench.kernel.vms

    assert in_a_child(child) == 0
    os.eventfd_write(event, 1)
    assert seen.wait(10)
    assert bench.ioctl(vcpu, k.KVM_GET_TSC_KHZ) > 0
    for fd in (vcpu, vm, event):
        bench.kernel.close(fd)
    assert not bench.kernel.vms


def test_an_internal_error_is_eio_and_kills_the_vm(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    vm = bench.vm(0)
    bench.vm_object().memslots = None
    with refused(errno.EIO) as caught:
        bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, k.kvm_userspace_memory_region(memory_size=4096))
    assert "internal error" in reason_of(caught.value).text
    assert "internal error" in caplog.text
    with refused(errno.EIO):
        bench.ioctl(vm, k.KVM_CHECK_EXTENSION, 0)


def test_the_reason_is_kept(bench: Bench) -> None:
    with refused(errno.EINVAL):
        bench.vm(7)
    assert "VM type 7" in bench.kernel.last_reason


def test_a_refused_mapping_does_not_repeat_an_earlier_reason(bench: Bench) -> None:
    with refused(errno.EINVAL):
        bench.vm(7)
    assert bench.kernel.last_reason
    with refused(errno.EBADF):
        bench.kernel.mmap(9999, 4096)
    assert not bench.kernel.last_reason


def test_a_limit_of_file_sizes_is_named(bench: Bench) -> None:
    """The memory of a vCPU is a file's only here: Linux has no limit on it."""
    vm = bench.vm(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with refused(errno.ENOMEM):
            bench.vcpu(vm, init=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in bench.kernel.last_reason
    bench.vcpu(vm, init=False)


# --- Unknown requests: EINVAL on /dev/kvm and a vCPU, ENOTTY on a VM --------------------------------------------------


@pytest.mark.parametrize("request_", [0xAEFF, 0xC008AEBB, 0x1234, 0xAE80AE80])
def test_unknown_requests(bench: Bench, request_: int) -> None:
    vm = bench.vm(0)
    with refused(errno.EINVAL):
        bench.ioctl(bench.device(), request_)
    with refused(errno.ENOTTY):
        bench.ioctl(vm, request_)
    with refused(errno.EINVAL):
        bench.ioctl(bench.vcpu(bench.td()), request_)


def test_the_whole_number_counts(bench: Bench) -> None:
    vm = bench.vm(0)
    assert bench.ioctl(vm, 0xAEA3) == bench.kernel.processor.platform.tsc_hz // 1000  # KVM_GET_TSC_KHZ
    with refused(errno.EFAULT):
        bench.ioctl(vm, 0x4068AEA3, 8)  # KVM_ENABLE_CAP


def test_memory_encrypt_op_is_no_system_ioctl(bench: Bench) -> None:
    with refused(errno.EINVAL):
        bench.ioctl(bench.device(), k.KVM_MEMORY_ENCRYPT_OP)


# --- VM types and capabilities ----------------------------------------------------------------------------------------


def test_vm_types() -> None:
    assert boot(Dialect.UPSTREAM).kernel.supported_vm_types == 0x23
    assert boot_v10().kernel.supported_vm_types == 0x3
    plain = boot(Dialect.UPSTREAM, enable_tdx=False)
    assert plain.ioctl(plain.device(), k.KVM_CHECK_EXTENSION, 235) == 3
    with refused(errno.EINVAL):
        plain.vm(5)


def test_without_a_module_there_is_no_tdx() -> None:
    kernel = EmulatedKernel(Processor(Platform(memory_size=1 << 30)))
    assert kernel.tdx is None
    assert "VMFAILINVALID" not in kernel.last_reason


@pytest.mark.parametrize("leaf", ["SYS_INIT", "SYS_LP_INIT", "SYS_CONFIG", "SYS_KEY_CONFIG", "SYS_TDMR_INIT"])
def test_a_module_that_does_not_come_up(leaf: str) -> None:
    bench = boot(Dialect.UPSTREAM)
    bench.module.answers[leaf] = [0xC0000100 << 32]
    kernel = EmulatedKernel(bench.kernel.processor)
    assert kernel.tdx is None
    assert leaf.replace("_", ".") in kernel.last_reason


SAME = {
    "NR_VCPUS": 2, "NR_MEMSLOTS": 32764, "USER_MEMORY2": 1, "MEMORY_FAULT_INFO": 1, "PRE_FAULT_MEMORY": 1,
    "GUEST_MEMFD": 1, "EXIT_HYPERCALL": 0x1000, "SPLIT_IRQCHIP": 1, "X86_APIC_BUS_CYCLES_NS": 1, "X86_BUS_LOCK_EXIT": 3,
    "EXT_EMUL_CPUID": 1, "PCI_SEGMENT": 1, "VAPIC": 1, "IOAPIC_POLARITY_IGNORED": 1, "MMU_SHADOW_CACHE_CONTROL": 1,
    "LAST_CPU": 1, "DEVICE_CTRL": 1, "X86_GUEST_MODE": 1, "VM_GPA_BITS": 0,
    "X86_MSR_FILTER": 1, "IRQCHIP": 1, "IMMEDIATE_EXIT": 1, "SYSTEM_EVENT_DATA": 1, "XSAVE2": 4096, "VM_TYPES": 0x23,
}  # fmt: skip
DIFFERENT = {  # /dev/kvm, TD, normal VM
    "MAX_VCPUS": (1024, 2, 1024),
    "READONLY_MEM": (1, 0, 1),
    "SYNC_REGS": (7, 0, 7),
    "MEMORY_ATTRIBUTES": (8, 8, 0),
    "GUEST_MEMFD_FLAGS": (3, 1, 3),
    "X2APIC_API": (0xF, 0xB, 0xB),  # the broadcasts can be suppressed where the I/O APIC is in user space
    "MULTI_ADDRESS_SPACE": (1, 1, 1),
    "X86_SMM": (0, 0, 0),
}


@pytest.mark.parametrize("name", [*SAME, *DIFFERENT])
def test_capabilities(bench: Bench, name: str) -> None:
    cap = k.Cap[name]
    got = tuple(bench.ioctl(fd, k.KVM_CHECK_EXTENSION, cap) for fd in (bench.device(), bench.vm(), bench.vm(0)))
    assert got == DIFFERENT.get(name, (SAME.get(name),) * 3)


def test_an_unknown_capability_is_0(bench: Bench) -> None:
    assert bench.ioctl(bench.device(), k.KVM_CHECK_EXTENSION, 4711) == 0


# --- Nonsense ---------------------------------------------------------------------------------------------------------

SCRATCH = ctypes.create_string_buffer(1 << 16)
ZEROS = ctypes.create_string_buffer(1 << 16)
addresses = st.one_of(
    st.integers(1 << 47, (1 << 64) - 1), st.integers(0, 300), st.just(ctypes.addressof(ZEROS))
)  # not just any number: one that happens to be an address of this process would be written to
SLOW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(
    which=st.sampled_from(["device", "td", "vcpu", "plain", "plain vcpu"]),
    request_=st.one_of(st.sampled_from(REQUESTS), st.integers(0, (1 << 32) - 1)),
    arg=addresses,
    scratch=st.one_of(st.none(), st.binary(max_size=600)),
)
def test_nonsense_gets_an_errno_and_nothing_else(which: str, request_: int, arg: int, scratch: bytes | None) -> None:
    fds = nonsense_fds()
    if scratch is not None:
        ctypes.memmove(SCRATCH, scratch.ljust(600, b"\0"), 600)
        arg = ctypes.addressof(SCRATCH)
    if request_ == int(k.KVM_RUN):
        return
    kernel = nonsense_bench.kernel
    try:
        outcome = kernel.ioctl(fds[which], request_, arg)
    except OSError as error:
        outcome = error.errno or -1
    assert outcome >= 0
    assert not kernel.last_reason.startswith("internal error"), kernel.last_reason


nonsense_bench: Bench
_fds: dict[str, int] = {}


def nonsense_fds() -> dict[str, int]:
    """Descriptors of every kind, made again when nonsense has killed or exhausted them."""
    global nonsense_bench  # noqa: PLW0603 - what outlives one of hypothesis' examples
    if not _fds or any(kvm.dead for kvm in nonsense_bench.kernel.vms) or len(nonsense_bench.kernel.files.by_fd) > 100:
        for fd in list(nonsense_bench.kernel.files.by_fd) if _fds else ():
            nonsense_bench.kernel.close(fd)
        nonsense_bench = boot(Dialect.UPSTREAM)
        _fds["device"] = nonsense_bench.device()
        _fds["td"] = nonsense_bench.td()
        _fds["vcpu"] = nonsense_bench.vcpu(_fds["td"])
        _fds["plain"] = nonsense_bench.vm(0)
        _fds["plain vcpu"] = nonsense_bench.ioctl(_fds["plain"], k.KVM_CREATE_VCPU, 0)
    return _fds
