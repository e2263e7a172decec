# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a machine: a thread for each vCPU around KVM_RUN, and what a VMM does about each exit.

Port I/O comes hundreds of thousands of times in a boot, most of it one timer, so its path is short: plain numbers out
of the shared page (laid out by ``struct kvm_run``; offsets below are taken from that structure), a dictionary for the
port, the answer written straight back.  All other exits go through one method each.

To end a run from any thread `Run.finish` notes the outcome, sets ``immediate_exit`` and signals the vCPU threads, as
QEMU does: a KVM_RUN in progress ends with EINTR, and one about to begin ends at once.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swtdx.uapi import kvm
from swtdx.uapi.abilities import KeepError, last_refusal
from swtdx.uapi.client import KvmError, Vcpu
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.kvm import Exit, SystemEvent, kvm_run
from swtdx.vmm.board.acpi_pm import PowerEvent
from swtdx.vmm.board.debug_exit import exit_status
from swtdx.vmm.board.ioapic import Msi
from swtdx.vmm.execution import Execution
from swtdx.vmm.launch import Machine
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.tdvmcall import TdvmcallService, decode_fatal_error
from swtdx.x86 import PAGE_SIZE

KICK_SIGNAL = signal.SIGUSR1
_KICK_SECONDS = 0.02
_PATIENCE_SECONDS = 20.0
EHWPOISON = 133  # asm-generic/errno.h; Python 3.11 has no name for it

# Where the run loop looks in the shared page, counted in units of the size of what it reads there.
_EXIT_REASON_32 = kvm_run.exit_reason.offset // 4
_UNION = kvm_run.exit.offset
_IO_DIRECTION_8 = _UNION
_IO_SIZE_8 = _UNION + 1
_IO_PORT_16 = (_UNION + 2) // 2
_IO_COUNT_32 = (_UNION + 4) // 4
_IO_OFFSET_64 = (_UNION + 8) // 8
_EXIT_IO = int(Exit.IO)
_DEBUG_VECTORS = (1, 3)  # #DB and #BP
_COUNTED_REASONS = 64

# A fault on the same page that conversion does not cure, so many times in a row, will not be cured.
_MEMORY_FAULT_PATIENCE = 8

_POWER_ENDS = {
    PowerEvent.POWER_OFF: Outcome(End.POWER_OFF, "the guest powered off"),
    PowerEvent.RESET: Outcome(End.RESET, "the guest asked for a reset, which ends the run"),
}


def _kicked(number: int, frame: object) -> None:
    """The signal has done its work when it arrives: KVM_RUN ends with EINTR."""


def take_kick_signal() -> None:
    """On the main thread, once: so that runs can be started, and ended, on other threads of this process."""
    signal.signal(KICK_SIGNAL, _kicked)


class StuckVcpu(Exception):
    """A vCPU does not come back from KVM_RUN, whatever is tried; its machine cannot be closed any more."""


class Run:
    """One run of a machine.

    `start` it, `wait` for its outcome, `stop` it in any case. ``exits`` counts by reason, ``port_exits`` by port.
    ``execution``: who may run when, where a debugger decides that.
    """

    def __init__(self, machine: Machine, execution: Execution | None = None) -> None:
        self.machine = machine
        self.execution = execution
        if execution is not None:
            execution.kick = self._kick
        self.outcome: Outcome | None = None
        self.started_at = 0.0
        self.ended_at = 0.0
        self._done = threading.Event()
        self._finish_lock = threading.Lock()
        self._conversion_lock = threading.Lock()
        self._threads: dict[int, int] = {}
        self._started: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._old_handler: object = None
        self._exit_counts = [[0] * _COUNTED_REASONS for _ in machine.vcpus]
        self._port_counts: list[defaultdict[int, int]] = [defaultdict(int) for _ in machine.vcpus]
        calls = machine.capabilities.user_tdvmcalls if machine.capabilities else (0, 0)
        plan = machine.plan
        self._tdvmcalls = TdvmcallService(
            machine.slots.memory, calls, self._signal_msi, plan.quotes, plan.say, machine.event_notification
        )

    @property
    def exits(self) -> dict[str, int]:
        """How often KVM_RUN returned, by the name of the reason; descending."""
        totals: Counter[str] = Counter()
        for counts in self._exit_counts:
            for reason, count in enumerate(counts):
                if count:
                    totals[_reason_name(reason)] += count
        return dict(totals.most_common())

    @property
    def port_exits(self) -> dict[int, int]:
        """Port I/O exits by port; descending."""
        total: Counter[int] = Counter()
        for counts in self._port_counts:
            total.update(counts)
        return dict(total.most_common())

    @property
    def seconds(self) -> float:
        """How long the guest has been running, or ran."""
        return (self.ended_at or time.monotonic()) - self.started_at if self.started_at else 0.0

    def start(self) -> None:
        """Start all vCPUs. On the main thread, since it takes over the signal with which vCPUs are kicked."""
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(KICK_SIGNAL, _kicked)
        self.started_at = time.monotonic()
        for vcpu in self.machine.vcpus:
            thread = threading.Thread(target=self._vcpu_thread, args=(vcpu,), name=f"vcpu_{vcpu.id}")
            thread.start()
            self._started.append(thread)

    def wait(self, seconds: float | None = None) -> Outcome | None:
        """The outcome, or None when ``seconds`` are over first."""
        self._done.wait(seconds)
        return self.outcome

    def finish(self, outcome: Outcome) -> None:
        """End the run, from any thread; the first outcome counts."""
        with self._finish_lock:
            if self.outcome is None:
                self.outcome = outcome
                self.ended_at = time.monotonic()
        self._done.set()
        if self.execution is not None:
            self.execution.finish()
        self.machine.board.stop()
        self._kick()

    @contextmanager
    def paused(self) -> Iterator[bool]:
        """No vCPU runs, and no answer to the guest is under way; False: the run is over.

        For a run with an ``execution`` that nothing else controls. Raises KeepError if a quote does not come.
        """
        execution = self.execution
        assert execution is not None
        execution.stop()
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while self._tdvmcalls.busy and not self._done.is_set():
                if time.monotonic() > deadline:
                    raise KeepError("the guest waits for a quote, which does not come")
                time.sleep(_KICK_SECONDS)
            yield not self._done.is_set()
        finally:
            execution.resume(range(execution.count))

    def stop(self) -> None:
        """Bring all vCPU threads home. Raises what ended a thread, if that was an internal error.

        Raises `StuckVcpu` if the kernel does not let go of one: then nothing is left but to end the process.
        """
        if self.outcome is None:
            self.finish(Outcome(End.INTERRUPTED, "the run was stopped"))
        self._tdvmcalls.close()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while running := [thread for thread in self._started if thread.is_alive()]:
            if time.monotonic() > deadline:
                stuck = [str(number) for number in sorted(self._threads)]
                raise StuckVcpu(f"the kernel does not let go of vCPU {', '.join(stuck)}, although it was told to")
            self._kick()
            running[0].join(_KICK_SECONDS)
        if self._old_handler is not None:
            signal.signal(KICK_SIGNAL, self._old_handler)  # type: ignore[arg-type]
            self._old_handler = None
        for error in self._errors:
            raise error

    def _kick(self) -> None:
        for vcpu in self.machine.vcpus:
            vcpu.kvm_run.immediate_exit = 1
        if signal.getsignal(KICK_SIGNAL) is _kicked:
            for thread in list(self._threads.values()):
                signal.pthread_kill(thread, KICK_SIGNAL)

    def _vcpu_thread(self, vcpu: Vcpu) -> None:
        try:
            self._run_vcpu(vcpu)
        except BaseException as error:  # noqa: BLE001 - `stop` raises it
            self._errors.append(error)
            self.finish(Outcome(End.INTERNAL_ERROR, f"internal error: {error!r}"))

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        self._threads[vcpu.id] = threading.get_ident()
        page = memoryview(vcpu.mapping)
        try:
            if self.execution is not None:
                self.execution.gate(vcpu.id)
            self._loop(vcpu, page)
        finally:
            del self._threads[vcpu.id]
            page.release()

    def _loop(self, vcpu: Vcpu, page: memoryview) -> None:
        """Enter the guest until the run is over."""
        ioctl, fd, run_request = vcpu.kernel.ioctl, vcpu.fd, kvm.KVM_RUN
        octets, words = page.cast("B"), page.cast("H")
        longs, quads = page.cast("I"), page.cast("Q")
        by_size = {1: octets, 2: words, 4: longs}
        masks = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}
        board = self.machine.board
        lock, reads, writes = board.lock, board.ports.reads, board.ports.writes
        counts, ports = self._exit_counts[vcpu.id], self._port_counts[vcpu.id]
        faults = 0
        with octets, words, longs, quads:
            while self.outcome is None:
                try:
                    ioctl(fd, run_request, 0)
                except OSError as error:
                    faults = self._run_failed(vcpu, error, counts, faults)
                    continue
                faults = 0
                reason = longs[_EXIT_REASON_32]
                if reason != _EXIT_IO or longs[_IO_COUNT_32] != 1:
                    counts[reason if reason < _COUNTED_REASONS else 0] += 1
                    self._handle(vcpu, reason)
                    continue
                counts[_EXIT_IO] += 1
                port = words[_IO_PORT_16]
                ports[port] += 1
                size = octets[_IO_SIZE_8]
                data = by_size[size]
                index = quads[_IO_OFFSET_64] // size
                if octets[_IO_DIRECTION_8]:
                    writer = writes.get(port)
                    if writer is not None:
                        with lock:
                            writer(port, size, data[index])
                        if board.power_event is not None:
                            self._power(board.power_event)
                else:
                    reader = reads.get(port)
                    if reader is None:
                        data[index] = masks[size]
                    else:
                        with lock:
                            data[index] = reader(port, size) & masks[size]

    def _run_failed(self, vcpu: Vcpu, error: OSError, counts: list[int], faults: int) -> int:
        """KVM_RUN returned an errno. Returns how many memory faults there have been in a row."""
        if error.errno in (errno.EINTR, errno.EAGAIN):
            counts[Exit.INTR] += 1
            if not self._done.is_set():
                vcpu.kvm_run.immediate_exit = 0
                if self.execution is not None:
                    self.execution.gate(vcpu.id)
                if self._done.is_set():  # finish() came between the lines
                    vcpu.kvm_run.immediate_exit = 1
            return faults
        if error.errno in (errno.EFAULT, EHWPOISON) and vcpu.kvm_run.exit_reason == Exit.MEMORY_FAULT:
            counts[Exit.MEMORY_FAULT] += 1
            fault = vcpu.kvm_run.memory_fault
            private = bool(fault.flags & kvm.KVM_MEMORY_EXIT_FLAG_PRIVATE)
            nature = "private" if private else "shared"
            if faults < _MEMORY_FAULT_PATIENCE and self._convert(fault.gpa, fault.size, private):
                return faults + 1
            self._lost(
                vcpu,
                Outcome(
                    End.CRASH,
                    f"vCPU {vcpu.id} accessed {fault.gpa:#x} as {nature} memory, which the guest does not have there",
                    {"gpa": fault.gpa, "nature": nature},
                ),
            )
            return faults
        reason = last_refusal(vcpu.kernel)
        said = f" ({reason})" if reason else ""
        failure = KvmError(error.errno or errno.EIO, "KVM_RUN")
        details: dict[str, object] = {"errno": errno_name(failure.errno or 0), "reason": reason.text}
        end = End.CRASH if reason.by_guest else End.INTERNAL_ERROR
        outcome = Outcome(end, f"the kernel stopped vCPU {vcpu.id}: {failure}{said}", details, reason=reason)
        self._lost(vcpu, outcome) if reason.by_guest else self.finish(outcome)
        return faults

    def _handle(self, vcpu: Vcpu, reason: int) -> None:
        handler = _HANDLERS.get(reason)
        if handler is None:
            name = _reason_name(reason)
            self.finish(Outcome(End.INTERNAL_ERROR, f"vCPU {vcpu.id} left the guest for {name}, which is not expected"))
            return
        handler(self, vcpu)

    def _io(self, vcpu: Vcpu) -> None:
        """String I/O: several items of one port, one after the other."""
        io, board = vcpu.kvm_run.io, self.machine.board
        port, size, start = io.port, io.size, io.data_offset
        self._port_counts[vcpu.id][port] += 1
        with board.lock:
            for offset in range(start, start + io.count * size, size):
                if io.direction == kvm.KVM_EXIT_IO_OUT:
                    board.ports.write(port, size, int.from_bytes(vcpu.mapping[offset : offset + size], "little"))
                else:
                    vcpu.mapping[offset : offset + size] = board.ports.read(port, size).to_bytes(size, "little")
        if board.power_event is not None:
            self._power(board.power_event)

    def _mmio(self, vcpu: Vcpu) -> None:
        mmio, board = vcpu.kvm_run.mmio, self.machine.board
        size = mmio.len
        with board.lock:
            if mmio.is_write:
                board.mmio.write(mmio.phys_addr, size, int.from_bytes(bytes(mmio.data[:size]), "little"))
            else:
                mmio.data[:size] = list(board.mmio.read(mmio.phys_addr, size).to_bytes(size, "little"))

    def _hypercall(self, vcpu: Vcpu) -> None:
        """MapGPA, the only hypercall that the VMM has asked for (KVM_CAP_EXIT_HYPERCALL)."""
        call = vcpu.kvm_run.hypercall
        if call.nr != kvm.KVM_HC_MAP_GPA_RANGE:
            call.ret = (1 << 64) - 1000  # -KVM_ENOSYS
            return
        private = bool(call.args[2] & kvm.KVM_MAP_GPA_RANGE_ENCRYPTED)
        converted = self._convert(call.args[0], call.args[1] * PAGE_SIZE, private)
        call.ret = 0 if converted else (1 << 64) - errno.EINVAL

    def _tdx(self, vcpu: Vcpu) -> None:
        self._tdvmcalls.answer(vcpu.kvm_run, vcpu.id)

    def _signal_msi(self, message: Msi) -> None:
        with self.machine.board.lock:
            self.machine.board.signal_msi(message)

    def _end_of_interrupt(self, vcpu: Vcpu) -> None:
        with self.machine.board.lock:
            self.machine.board.ioapic.end_of_interrupt(vcpu.kvm_run.eoi.vector)

    def _nothing_to_do(self, vcpu: Vcpu) -> None:
        """KVM came back only to tell that it could."""

    def _system_event(self, vcpu: Vcpu) -> None:
        event = vcpu.kvm_run.system_event
        if event.type == SystemEvent.TDX_FATAL:
            registers = list(event.data)
            fatal = decode_fatal_error(registers, self.machine.slots.memory)
            details = {"code": fatal.code, "message": fatal.message, "gpa": fatal.gpa}
            self._lost(vcpu, Outcome(End.FATAL_ERROR, str(fatal), details))
        elif event.type == SystemEvent.SHUTDOWN:
            self._power(PowerEvent.POWER_OFF)
        elif event.type == SystemEvent.RESET:
            self._power(PowerEvent.RESET)
        else:
            self._lost(
                vcpu, Outcome(End.CRASH, f"the guest crashed (KVM system event {event.type})", {"event": event.type})
            )

    def _lost(self, vcpu: Vcpu, outcome: Outcome) -> None:
        """The guest cannot go on, and the run ends; a debugger may look at it before."""
        if self.execution is not None:
            self.execution.crash(vcpu.id)
        self.finish(outcome)

    def _shutdown(self, vcpu: Vcpu) -> None:
        self._lost(vcpu, Outcome(End.CRASH, f"vCPU {vcpu.id} shut down: a triple fault"))

    def _internal_error(self, vcpu: Vcpu) -> None:
        internal = vcpu.kvm_run.internal
        data = [int(value) for value in internal.data[: min(internal.ndata, len(internal.data))]]
        shown = ", ".join(f"{value:#x}" for value in data)
        failure = vcpu.kvm_run.emulation_failure
        if (
            internal.suberror == kvm.KVM_INTERNAL_ERROR_EMULATION
            and internal.ndata
            and failure.flags & kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        ):
            instruction = bytes(failure.insn_bytes[: min(failure.insn_size, len(failure.insn_bytes))]).hex(" ")
            shown = f"it cannot emulate the instruction at the start of {instruction}"
        text = f"KVM could not go on with vCPU {vcpu.id}: internal error {internal.suberror} ({shown})"
        self._lost(vcpu, Outcome(End.INTERNAL_ERROR, text, {"suberror": internal.suberror, "data": data}))

    def _fail_entry(self, vcpu: Vcpu) -> None:
        reason = vcpu.kvm_run.fail_entry.hardware_entry_failure_reason
        text = f"vCPU {vcpu.id} could not enter the guest: hardware reason {reason:#x}"
        self.finish(Outcome(End.INTERNAL_ERROR, text, {"hardware_entry_failure_reason": reason}))

    def _debug(self, vcpu: Vcpu) -> None:
        if self.execution is not None:
            self.execution.hit(vcpu.id, vcpu.kvm_run.debug.arch.exception)

    def _exception(self, vcpu: Vcpu) -> None:
        """An exception that KVM does not know what to do with: of a debug TD, #DB or #BP for the debugger."""
        exception = vcpu.kvm_run.ex.exception
        if self.execution is not None and exception in _DEBUG_VECTORS:
            self.execution.hit(vcpu.id, exception)
            return
        text = f"vCPU {vcpu.id} had exception {exception}, which has no handler"
        self._lost(vcpu, Outcome(End.CRASH, text, {"exception": exception}))

    def _power(self, event: PowerEvent) -> None:
        if event is PowerEvent.DEBUG_EXIT:
            value = self.machine.board.debug_exit_value
            text = f"the guest wrote {value:#x} to the debug exit port"
            self.finish(Outcome(End.DEBUG_EXIT, text, {"value": value}, exit_status(value)))
            return
        self.finish(_POWER_ENDS[event])

    def _convert(self, gpa: int, length: int, private: bool) -> bool:
        with self._conversion_lock:
            try:
                return self.machine.slots.convert(gpa, length, private)
            except OSError:
                return False  # the guest hears that it failed, as it would from any VMM


_HANDLERS: dict[int, Callable[[Run, Vcpu], None]] = {
    Exit.IO: Run._io,
    Exit.MMIO: Run._mmio,
    Exit.HYPERCALL: Run._hypercall,
    Exit.TDX: Run._tdx,
    Exit.IOAPIC_EOI: Run._end_of_interrupt,
    Exit.IRQ_WINDOW_OPEN: Run._nothing_to_do,
    Exit.SET_TPR: Run._nothing_to_do,
    Exit.INTR: Run._nothing_to_do,
    Exit.SYSTEM_EVENT: Run._system_event,
    Exit.SHUTDOWN: Run._shutdown,
    Exit.INTERNAL_ERROR: Run._internal_error,
    Exit.FAIL_ENTRY: Run._fail_entry,
    Exit.EXCEPTION: Run._exception,
    Exit.DEBUG: Run._debug,
}


def _reason_name(reason: int) -> str:
    try:
        return Exit(reason).name
    except ValueError:
        return str(reason)
