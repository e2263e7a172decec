# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is restored continues as it would have, as often as it is restored, here and in another process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.clock import Clock
from swtdx.cpu import _engine
from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.snapshot.file import Maker, Saved, SnapshotError, pieces, read
from swtdx.snapshot.taken import Snapshot
from swtdx.snapshot.values import Plain
from swtdx.uapi.abilities import KeepError
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.launch import Machine, TdParameters, launch
from tests.machine.counting_guest import Running, after, go, plan

MAKER = Maker("0.1.0", _engine.state_layout())
SHAPES = {"td": TdParameters(), "vm": None}


def booted(cpus: int = 1) -> MachineKernel:
    return boot(platform=Platform(memory_size=1 << 30, logical_processors=cpus, report_key=bytes(32)))


@pytest.fixture(params=SHAPES, scope="module")
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Counting:
    """A machine with the counting guest, stopped after it has printed a few letters."""

    def __init__(self, shape: str, kernel: MachineKernel | None = None, *, empty: bool = False) -> None:
        self.kernel = kernel or booted()
        self.pages, self.hkids = dict(self.kernel.pages.in_use), self.hkids_free
        self.printed = bytearray()
        self.device = Kvm(self.kernel)
        self.machine = launch(self.device, plan(SHAPES[shape], self.printed.extend, empty=empty))
        if not empty:
            self.go(5)

    @property
    def hkids_free(self) -> int:
        assert self.kernel.tdx is not None
        return self.kernel.tdx.free_hkids

    def go(self, letters: int) -> bytes:
        """Run for some letters: all that were printed."""
        return go(self.machine, self.printed, letters)

    def close(self) -> None:
        self.machine.close()
        self.device.close()
        assert dict(self.kernel.pages.in_use) == self.pages
        assert self.hkids_free == self.hkids


@pytest.fixture
def counting(shape: str) -> Iterator[Counting]:
    made = Counting(shape)
    yield made
    made.close()


def state_of(snapshot: object) -> str:
    """All of the state, as text."""
    assert isinstance(snapshot, Snapshot)

    def as_text(value: object) -> object:
        if isinstance(value, Plain):
            return repr(value.container)
        return value.hex() if isinstance(value, bytes) else "private"

    return json.dumps(snapshot.trees, default=as_text)


def memory_of(machine: Machine, kernel: MachineKernel) -> list[bytes]:
    regions = [*kernel.processor.memory.regions.values()]
    regions += [memory.regions["memory"] for _, memory in machine.slots.memory._ranges]
    return [b"".join(region.read(*extent) for extent in region.contents()) for region in regions]


def test_a_restored_guest_counts_on_from_where_it_was(counting: Counting) -> None:
    snapshot, before = counting.machine.snapshot(), bytes(counting.printed)
    for _ in range(3):
        printed = counting.go(20)
        assert printed == after(before, len(printed))
        counting.machine.restore(snapshot)


def test_nothing_that_happened_since_is_left(counting: Counting) -> None:
    machine, kernel = counting.machine, counting.kernel
    snapshot = machine.snapshot()
    state, memory = state_of(snapshot), memory_of(machine, kernel)
    counting.go(5)
    assert memory_of(machine, kernel) != memory
    machine.restore(snapshot)
    assert memory_of(machine, kernel) == memory
    assert state_of(machine.snapshot()) == state


def test_an_older_snapshot_can_be_given_back_after_a_newer_one(counting: Counting) -> None:
    first, at_first = counting.machine.snapshot(), bytes(counting.printed)
    counting.go(3)
    second, at_second = counting.machine.snapshot(), bytes(counting.printed)
    for snapshot, printed in ((first, at_first), (second, at_second), (first, at_first)):
        counting.machine.restore(snapshot)
        more = counting.go(4)
        assert more == after(printed, len(more))


def test_time_goes_on_from_the_moment_of_the_snapshot(counting: Counting) -> None:
    processor, board = counting.kernel.processor, counting.machine.board
    snapshot = counting.machine.snapshot()
    assert isinstance(snapshot, Snapshot)
    tsc, kernels, boards = snapshot.times
    counting.go(30)
    counting.machine.restore(snapshot)
    assert 0 <= processor.rdtsc() - tsc < 2 * processor.platform.tsc_hz
    for clock, moment in ((processor.clock, kernels), (board.clock, boards)):
        assert all(0 <= now - then < 2 * 10**9 for now, then in zip(clock.kept(), moment, strict=True))
    before = processor.rdtsc()
    counting.go(1)
    assert processor.rdtsc() > before


def test_the_module_holds_the_same_of_a_restored_td() -> None:
    counting = Counting("td")
    snapshot, vm = counting.machine.snapshot(), counting.machine.vm.fd
    seen = counting.kernel.inspect_td(vm)
    counting.go(3)
    counting.machine.restore(snapshot)
    assert counting.kernel.inspect_td(vm) == seen
    counting.close()


def saved(snapshot: object, path: Path) -> Path:
    assert isinstance(snapshot, Snapshot)
    path.write_bytes(b"".join(pieces(Saved({"what": "a test"}, {"blob": bytes(100)}, snapshot), MAKER)))
    return path


def test_a_machine_goes_on_from_a_file_in_another_machine(shape: str, tmp_path: Path) -> None:
    first = Counting(shape)
    file = saved(first.machine.snapshot(movable=True), tmp_path / "machine")
    before, inspected = bytes(first.printed), shape == "td" and first.kernel.inspect_td(first.machine.vm.fd)
    more = first.go(3)  # the first one continues, too
    assert more == after(before, len(more))
    first.close()
    read_again = read(file, MAKER)
    assert read_again.recipe == {"what": "a test"}
    assert read_again.blobs == {"blob": bytes(100)}
    second = Counting(shape, empty=True)
    for _ in range(2):
        second.machine.restore(read_again.snapshot)
        if inspected:
            assert second.kernel.inspect_td(second.machine.vm.fd) == inspected
        more = second.go(8)
        assert more == after(before, len(more))
    second.close()


@pytest.mark.parametrize(
    ("module", "switches"),
    [("1.0", {"dialect": Dialect.V10}), ("1.5.06", {"dialect": Dialect.V10}), ("1.5.06", {"kernel_release": "next"})],
    ids=["v10 on module 1.0", "v10", "next"],
)
def test_tds_of_other_kernels_and_modules_are_kept(module: str, switches: dict[str, Any], tmp_path: Path) -> None:
    def power_on(printed: bytearray, *, empty: bool) -> Machine:
        platform = Platform(memory_size=1 << 30, logical_processors=1, module_version=module)
        device = Kvm(boot(platform=platform, **switches), switches.get("dialect"))
        return launch(device, plan(TdParameters(), printed.extend, empty=empty))

    printed, continued = bytearray(), bytearray()
    first = power_on(printed, empty=False)
    with Running(first, printed) as running:
        running.prints(4)
    before, file = bytes(printed), saved(first.snapshot(movable=True), tmp_path / "machine")
    second = power_on(continued, empty=True)
    second.restore(read(file, MAKER).snapshot)
    for machine, more in ((first, printed), (second, continued)):
        del more[:]
        with Running(machine, more) as running:
            running.prints(5)
        assert bytes(more) == after(before, len(more))
        machine.close()


def test_virtio_devices_and_several_processors_are_kept(shape: str) -> None:
    kernel, printed = booted(cpus=4), bytearray()
    shaped = plan(SHAPES[shape], printed.extend, cpus=4)
    object.__setattr__(shaped, "devices", (VirtioConsole(printed.extend), VirtioRng()))
    with Kvm(kernel) as device, launch(device, shaped) as machine:
        with Running(machine, printed) as running:
            running.prints(3)
        snapshot, before, start = machine.snapshot(), bytes(printed), len(printed)
        for _ in range(2):
            with Running(machine, printed) as running:
                running.prints(5)
            assert bytes(printed[start:]) == after(before, len(printed) - start)
            machine.restore(snapshot)
            del printed[start:]


def test_a_machine_that_runs_is_not_kept(counting: Counting) -> None:
    with Running(counting.machine, counting.printed) as running:
        running.prints(1)
        vcpu = counting.machine.vcpus[0]
        # The vCPU stands where the snapshot finds it: in KVM_RUN, whose mutex the kernel holds.
        mutex = next(iter(counting.kernel.vms)).vcpus[vcpu.id].mutex
        with running.run.paused():
            mutex.acquire()
            try:
                with pytest.raises(KeepError, match=r"vCPU 0 is running: stop the machine first"):
                    counting.kernel.snapshot([], counting.machine.board.clock)
            finally:
                mutex.release()


def test_a_td_that_is_being_built_is_not_kept() -> None:
    with Kvm(booted()) as device, device.create_td() as td:
        td.split_irqchip()
        capabilities = td.tdx_capabilities()
        td.tdx_init(0, 3 | capabilities.xfam_required, capabilities.configure(device.supported_cpuid(), 48))
        kernel = td.kernel
        assert isinstance(kernel, MachineKernel)
        with pytest.raises(KeepError, match="a TD is being built"):
            kernel.snapshot([], Clock())


def test_a_file_of_another_machine_does_not_fit(tmp_path: Path) -> None:
    """A TD's state in an ordinary VM, and the reverse."""
    td, vm = Counting("td"), Counting("vm")
    files = [saved(one.machine.snapshot(movable=True), tmp_path / shape) for one, shape in ((td, "td"), (vm, "vm"))]
    for other, file in ((vm, files[0]), (td, files[1])):
        with pytest.raises(KeepError):
            other.machine.restore(read(file, MAKER).snapshot)
        with pytest.raises(KvmError, match="EIO"):  # a part of it may be in: it does not run
            other.machine.vcpus[0].run()
        other.machine.close()
        other.device.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    counting = Counting("vm")
    file = saved(counting.machine.snapshot(movable=True), tmp_path_factory.mktemp("snapshot") / "machine")
    counting.close()
    return file.read_bytes()


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(kept: bytes, tmp_path: Path) -> None:
    header = kept.index(b"header")
    places = [0, 5, 15, 20, header + 3, header + 40, header + 200, len(kept) // 2, len(kept) - 1]
    for length in places:
        file = tmp_path / "short"
        file.write_bytes(kept[:length])
        with pytest.raises(SnapshotError, match=r"cut short|is not a snapshot of swtdx"):
            read(file, MAKER)


def test_a_file_with_one_other_byte_is_refused_wherever_it_is(kept: bytes, tmp_path: Path) -> None:
    step = len(kept) // 40
    for place in [*range(0, 140, 7), *range(200, len(kept), step), len(kept) - 1]:
        damaged = bytearray(kept)
        damaged[place] ^= 1
        file = tmp_path / "damaged"
        file.write_bytes(damaged)
        with pytest.raises(SnapshotError):
            read(file, MAKER)
    file.write_bytes(kept + b"x")
    with pytest.raises(SnapshotError, match="1 bytes too many"):
        read(file, MAKER)


def test_another_version_is_named(kept: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_bytes(kept.replace(b"\nversion 0.1.0\n", b"\nversion 9.8.7\n", 1))
    with pytest.raises(SnapshotError, match=r"was made by swtdx 9\.8\.7, and this is"):
        read(file, MAKER)
    line = next(line for line in kept.splitlines() if line.startswith(b"layout"))
    file.write_bytes(kept.replace(line, b"layout 0123456789abcdef", 1))
    with pytest.raises(SnapshotError, match="was made by another build of swtdx"):
        read(file, MAKER)


def test_timers_that_were_armed_are_armed_again() -> None:
    kernel = booted()
    expired = threading.Event()
    timer = kernel.timers.timer(expired.set)
    timer.start(kernel.processor.clock.monotonic_ns() + 10**12)
    with kernel.timers.quiet():
        kept = kernel.timers.kept()
    timer.cancel()
    with kernel.timers.quiet():
        kernel.timers.go_on([(kernel.processor.clock.monotonic_ns() + 10**6, timer) for _ in kept])
    assert expired.wait(10)
