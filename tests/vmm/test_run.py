# SPDX-License-Identifier: GPL-2.0-or-later
"""The run loop: each exit, played by the scripted kernel."""

from __future__ import annotations

import errno
import mmap
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import swtdx.vmm.run
from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm
from swtdx.uapi.kvm import Exit, SystemEvent, kvm_run
from swtdx.uapi.reason import Reason
from swtdx.vmm.launch import Plan, launch
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run, StuckVcpu
from tests.vmm.fake_kernel import FakeKernel, Play, port_in, port_out, typed

Planner = Callable[..., Plan]
POWER_OFF = port_out(0x604, struct.pack("<H", 0x2000), 2)


@contextmanager
def running(plan: Plan, *plays: Play, kernel: FakeKernel | None = None) -> Iterator[tuple[Run, FakeKernel]]:
    kernel = kernel or FakeKernel(plays={0: list(plays)})
    with Kvm(kernel) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        try:
            assert run.wait(20) is not None
            yield run, kernel
        finally:
            run.stop()


def outcome_of(plan: Plan, *plays: Play) -> Outcome:
    with running(plan, *plays) as (run, _):
        assert run.outcome is not None
        return run.outcome


def test_the_console_comes_through_and_exits_are_counted(plan: Planner) -> None:
    printed = bytearray()
    with running(plan(serial=printed.extend), *typed("hello\n"), POWER_OFF) as (run, _):
        assert run.outcome is not None
        assert run.outcome.end is End.POWER_OFF
        assert run.exits == {"IO": 7}
        assert run.port_exits == {0x3F8: 6, 0x604: 1}
    assert printed == b"hello\n"


def reads(port: int, size: int, seen: list[int], count: int = 1) -> list[Play]:
    """An IN, and a look at what was answered."""

    def look(run: kvm_run, page: mmap.mmap) -> None:
        seen.append(int.from_bytes(page[0x1000 : 0x1000 + size * count], "little"))
        port_out(0x80, b"\0")(run, page)

    return [port_in(port, size, count), look]


def test_a_read_answers_in_the_shared_page_at_its_size(plan: Planner) -> None:
    seen: list[int] = []
    plays = [
        *reads(0x402, 1, seen), *reads(0x71, 1, seen), *reads(0x1234, 4, seen), *reads(0x1234, 2, seen),
        port_out(0xCF8, struct.pack("<I", 0x8000_0000), 4), *reads(0xCFC, 4, seen), *reads(0xCFE, 2, seen),
    ]  # fmt: skip
    with running(plan(debug=lambda data: None), *plays, POWER_OFF):
        pass
    assert seen[0] == 0xE9
    assert seen[2:] == [0xFFFF_FFFF, 0xFFFF, 0x29C0_8086, 0x29C0]


def test_string_io_goes_item_by_item(plan: Planner) -> None:
    seen: list[int] = []
    printed = bytearray()
    plays = [
        port_out(0x510, b"\0\0", 2), *reads(0x511, 1, seen, count=4), port_out(0x3F8, b"string"), POWER_OFF,
    ]  # fmt: skip
    with running(plan(serial=printed.extend), *plays):
        pass
    assert seen[0].to_bytes(4, "little") == b"QEMU"
    assert printed == b"string"


def test_mmio_reaches_the_io_apic(plan: Planner) -> None:
    seen: list[bytes] = []

    def write(address: int, value: int) -> Play:
        def play(run: kvm_run, page: mmap.mmap) -> None:
            run.exit_reason, run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = Exit.MMIO, address, 4, 1
            run.mmio.data[:4] = list(value.to_bytes(4, "little"))

        return play

    def read(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason, run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = Exit.MMIO, 0xFEC0_0010, 4, 0

    def look(run: kvm_run, page: mmap.mmap) -> None:
        seen.append(bytes(run.mmio.data[:4]))
        POWER_OFF(run, page)

    with running(plan(), write(0xFEC0_0000, 1), read, look):
        pass
    assert seen == [struct.pack("<I", 0x0017_0020)]


def map_gpa(gpa: int, pages: int, private: bool) -> Play:
    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason, run.hypercall.nr = Exit.HYPERCALL, kvm.KVM_HC_MAP_GPA_RANGE
        run.hypercall.args[0], run.hypercall.args[1] = gpa, pages
        run.hypercall.args[2] = kvm.KVM_MAP_GPA_RANGE_ENCRYPTED if private else kvm.KVM_MAP_GPA_RANGE_DECRYPTED
        run.hypercall.ret = 77

    return play


def test_map_gpa_converts_and_gives_the_unused_half_back(plan: Planner) -> None:
    results: list[int] = []

    def look(run: kvm_run, page: mmap.mmap) -> None:
        results.append(run.hypercall.ret)
        port_out(0x80, b"\0")(run, page)

    asked = [
        map_gpa(0x10_0000, 16, False), look, map_gpa(0x10_0000, 16, True), look,
        map_gpa(0xB000_0000, 1, False), look,  # registers: shared as they are
        map_gpa(0xB000_0000, 1, True), look,  # and cannot be private
        map_gpa((64 << 20) - 4096, 2, False), look, POWER_OFF,
    ]  # fmt: skip
    with running(plan(), *asked) as (_, kernel):
        assert kernel.attributes[2:] == [(0x10_0000, 0x1_0000, 0), (0x10_0000, 0x1_0000, 8)]
        assert [hole[1:] for hole in kernel.holes] == [(0x10_0000, 0x1_0000)]
    assert [result == 0 for result in results] == [True, True, True, False, False]


def test_conversion_to_private_discards_the_shared_page(plan: Planner) -> None:
    with Kvm(FakeKernel()) as device, launch(device, plan()) as machine:
        machine.slots.memory.write(0x10_0000, b"secret")
        assert machine.slots.convert(0x10_0000, 4096, private=True)
        assert machine.slots.memory.read(0x10_0000, 6) == bytes(6)


def memory_fault(gpa: int, private: bool) -> Play:
    def play(run: kvm_run, page: mmap.mmap) -> int:
        run.exit_reason = Exit.MEMORY_FAULT
        run.memory_fault.flags = kvm.KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0
        run.memory_fault.gpa, run.memory_fault.size = gpa, 4096
        return errno.EFAULT

    return play


def test_a_memory_fault_is_cured_by_conversion(plan: Planner) -> None:
    with running(plan(), memory_fault(0x20_0000, False), POWER_OFF) as (run, kernel):
        assert run.outcome is not None
        assert run.outcome.end is End.POWER_OFF
        assert kernel.attributes[-1] == (0x20_0000, 4096, 0)
        assert run.exits == {"MEMORY_FAULT": 1, "IO": 1}


def test_a_memory_fault_outside_memory_is_the_guests_crash(plan: Planner) -> None:
    outcome = outcome_of(plan(), memory_fault(0x8000_0000, True))
    assert outcome.end is End.CRASH
    assert "0x80000000 as private memory" in outcome.text


def test_a_memory_fault_that_no_conversion_cures_ends_the_run(plan: Planner) -> None:
    assert outcome_of(plan(), *[memory_fault(0x20_0000, False)] * 50).end is End.CRASH


def test_fatal_error_is_decoded(plan: Planner) -> None:
    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason = Exit.SYSTEM_EVENT
        run.system_event.type, run.system_event.ndata = SystemEvent.TDX_FATAL, 16
        message = struct.unpack("<8Q", b"stack smashed in kernel\0".ljust(64, b"\0"))
        for register, value in zip((14, 15, 3, 7, 6, 8, 9, 2), message, strict=True):
            run.system_event.data[register] = value
        run.system_event.data[12] = 0x42

    outcome = outcome_of(plan(), play)
    assert outcome.end is End.FATAL_ERROR
    assert outcome.text == 'the guest reported the fatal error 0x42: "stack smashed in kernel"'
    assert outcome.details["message"] == "stack smashed in kernel"


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        (Exit.SHUTDOWN, End.CRASH),
        (Exit.INTERNAL_ERROR, End.INTERNAL_ERROR),
        (Exit.FAIL_ENTRY, End.INTERNAL_ERROR),
        (Exit.EXCEPTION, End.CRASH),
        (Exit.HLT, End.INTERNAL_ERROR),
        (99, End.INTERNAL_ERROR),
    ],
)
def test_exits_that_end_the_run(reason: int, end: End, plan: Planner) -> None:
    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason = reason

    assert outcome_of(plan(), play).end is end


def test_kvm_run_that_fails_ends_the_run_with_its_errno(plan: Planner) -> None:
    outcome = outcome_of(plan(), lambda run, page: errno.EIO)
    assert outcome.end is End.INTERNAL_ERROR
    assert "EIO" in outcome.text


def test_a_vm_that_the_guest_has_killed_is_a_crash(plan: Planner) -> None:
    """An emulated kernel says whose fault it was: TDX kills a TD that touches memory before accepting it."""
    kernel = FakeKernel(plays={0: [lambda run, page: errno.EIO]})
    kernel.last_refusal = Reason("the guest touched private memory", by_guest=True)  # type: ignore[attr-defined]
    with running(plan(), kernel=kernel) as (run, _):
        assert run.outcome is not None
        assert (run.outcome.end, run.outcome.status) == (End.CRASH, 3)
        assert "touched private memory" in run.outcome.text


def test_an_interrupt_that_reaches_no_apic_is_lost(plan: Planner) -> None:
    """KVM_SIGNAL_MSI answers EPERM (the bare -1 of kvm_set_msi) where no local APIC is addressed."""

    def mmio(address: int, value: int) -> Play:
        def play(run: kvm_run, page: mmap.mmap) -> None:
            run.exit_reason = Exit.MMIO
            run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = address, 4, 1
            run.mmio.data[:4] = list(value.to_bytes(4, "little"))

        return play

    program = []
    for select, value in ((0x19, 0xEE << 24), (0x18, 0x24)):  # pin 4: APIC 0xEE, vector 0x24, unmasked
        program += [mmio(0xFEC00000, select), mmio(0xFEC00010, value)]
    interrupt = [port_out(0x3FC, b"\x08"), port_out(0x3F9, b"\x02")]  # OUT2, transmitter empty: COM1 is pin 4
    kernel = FakeKernel(plays={0: [*program, *interrupt, POWER_OFF]})
    kernel.refuse["KVM_SIGNAL_MSI"] = errno.EPERM
    with running(plan(), kernel=kernel) as (run, _):
        assert ("vm", "KVM_SIGNAL_MSI") in kernel.calls
        assert run.outcome is not None
        assert run.outcome.end is End.POWER_OFF


def test_a_signal_does_not_end_the_run(plan: Planner) -> None:
    with running(plan(), lambda run, page: errno.EINTR, POWER_OFF) as (run, _):
        assert run.exits == {"INTR": 1, "IO": 1}


@pytest.mark.parametrize(
    ("play", "end"),
    [
        (port_out(0xCF9, b"\x06"), End.RESET),
        (port_out(0x64, b"\xfe"), End.RESET),
        (POWER_OFF, End.POWER_OFF),
    ],
)
def test_the_guest_powers_off_or_resets(play: Play, end: End, plan: Planner) -> None:
    assert outcome_of(plan(), play).end is end


def test_all_vcpus_come_home_when_one_ends_the_run(plan: Planner) -> None:
    kernel = FakeKernel(plays={0: [POWER_OFF]})
    with running(plan(cpus=4), kernel=kernel) as (run, _):
        assert run.outcome is not None
        assert run.outcome.end is End.POWER_OFF


def test_a_mistake_of_ours_is_told_and_not_swallowed(plan: Planner) -> None:
    def broken(data: bytes) -> None:
        raise ZeroDivisionError("oops")

    kernel = FakeKernel(plays={0: typed("x")})
    with Kvm(kernel) as device, launch(device, plan(serial=broken)) as machine:
        run = Run(machine)
        run.start()
        outcome = run.wait(20)
        with pytest.raises(ZeroDivisionError):
            run.stop()
    assert outcome is not None
    assert outcome.end is End.INTERNAL_ERROR


def tdx_exit(nr: int, *words: int) -> Play:
    def play(run: kvm_run, page: mmap.mmap) -> None:
        run.exit_reason, run.tdx.nr = Exit.TDX, nr
        run.tdx.unknown.ret = kvm.TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED
        for position, word in enumerate(words):
            run.tdx.unknown.data[position] = word

    return play


def answers(
    plan: Plan,
    *calls: Play,
    before: Callable[[Run], object] = lambda run: None,
    after: Callable[[Run], object] = lambda run: None,
) -> list[list[int]]:
    """(ret, data...) that each KVM_EXIT_TDX was answered with."""
    seen: list[list[int]] = []

    def look(run: kvm_run, page: mmap.mmap) -> None:
        seen.append([run.tdx.unknown.ret, *run.tdx.unknown.data])
        port_out(0x80, b"\0")(run, page)

    plays = [play for call in calls for play in (call, look)]
    with Kvm(FakeKernel(plays={0: [*plays, POWER_OFF]})) as device, launch(device, plan) as machine:
        run = Run(machine)
        before(run)
        run.start()
        assert run.wait(20) is not None
        run.stop()
        after(run)
        kernel = device.kernel
        assert isinstance(kernel, FakeKernel)
        seen.append([value for msi in kernel.msis for value in msi])
    return seen


def test_tdvmcall_info_tells_what_the_vmm_serves(plan: Planner) -> None:
    info, _ = answers(plan(), tdx_exit(kvm.TDVMCALL_GET_TD_VM_CALL_INFO, 1, 9, 9, 9, 9))
    assert info == [0, 1, 2, 0, 0, 0]


def test_get_quote_says_that_there_is_no_service_and_notifies(plan: Planner) -> None:
    buffers: list[bytes] = []
    results = answers(
        plan(),
        tdx_exit(kvm.TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT, 0x61),
        tdx_exit(kvm.TDVMCALL_GET_QUOTE, 0x10_0000, 0x2000),
        before=lambda run: run.machine.slots.memory.write(0x10_0000, struct.pack("<QQII", 1, 0, 1024, 5)),
        after=lambda run: buffers.append(run.machine.slots.memory.read(0x10_0000, 24)),
    )
    assert [result[0] for result in results[:2]] == [0, 0]
    assert results[2] == [0xFEE0_0000, 0x61]
    assert struct.unpack("<QQII", buffers[0]) == (1, 0x8000_0000_0000_0001, 1024, 5)  # QEMU leaves out_len alone


class Quoting:
    """A quoting enclave that signs whatever comes."""

    patience = 5.0

    def quote(self, report: bytes) -> bytes:
        return b"quote of " + report[:4]

    def close(self) -> None:
        """Nothing is under way."""


def test_a_quote_is_in_the_buffer_and_the_guest_is_notified_where_it_asked_to_be(plan: Planner) -> None:
    buffers: list[bytes] = []
    results = answers(
        plan(quotes=Quoting()),
        tdx_exit(kvm.TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT, 0x61),
        tdx_exit(kvm.TDVMCALL_GET_QUOTE, 0x10_0000, 0x2000),
        before=lambda run: run.machine.slots.memory.write(0x10_0000, struct.pack("<QQII4s", 1, 0, 1024, 0, b"TD 1")),
        after=lambda run: buffers.append(run.machine.slots.memory.read(0x10_0000, 37)),
    )
    assert [result[0] for result in results[:2]] == [0, 0]
    assert results[2] == [0xFEE0_0000, 0x61]
    assert buffers == [struct.pack("<QQII", 1, 0, 1024, 13) + b"quote of TD 1"]


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (0x10_0010, 0x1000, kvm.TDVMCALL_STATUS_ALIGN_ERROR),
        (0x10_0000, 0x1001, kvm.TDVMCALL_STATUS_ALIGN_ERROR),
        (0x10_0000, 0, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (0x9000_0000, 0x1000, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (0x10_0000, 0x1000, kvm.TDVMCALL_STATUS_INVALID_OPERAND),  # no header there
    ],
)
def test_get_quote_with_a_bad_buffer(gpa: int, size: int, status: int, plan: Planner) -> None:
    assert answers(plan(), tdx_exit(kvm.TDVMCALL_GET_QUOTE, gpa, size))[0][0] == status


def test_an_unknown_tdvmcall_is_not_supported(plan: Planner) -> None:
    assert answers(plan(), tdx_exit(0x10099))[0][0] == kvm.TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED


def test_a_kernel_that_never_lets_go_is_noticed(plan: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swtdx.vmm.run, "_PATIENCE_SECONDS", 0.1)
    released = threading.Event()

    def stuck(run: kvm_run, page: mmap.mmap) -> None:
        released.wait(20)
        POWER_OFF(run, page)

    with Kvm(FakeKernel(plays={0: [stuck]})) as device, launch(device, plan()) as machine:
        run = Run(machine)
        run.start()
        with pytest.raises(StuckVcpu, match="vCPU 0"):
            run.stop()
        released.set()
        run.stop()
