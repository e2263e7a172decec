# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run``: find the firmware, build the machine, stream its console, say how it ended.

The console goes to stdout and nothing else does; all that swtdx itself says goes to stderr, as plain lines unless
that is a terminal.  Keys are read only when both stdin and stdout are terminals.  Otherwise
the run cannot be ended by hand, so it ends: at ``--until``, at the UEFI shell's prompt, or when time is up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx.cli import debugger, garbage, run_record
from swtdx.cli.interruption import Interruption
from swtdx.cli.kernel_log import kernel_log
from swtdx.cli.lint import STATUS_LEAK, Lint
from swtdx.cli.machine_keys import key_files, machine_keys
from swtdx.cli.machine_parts import devices, kernel_for, open_device
from swtdx.cli.output import Output, OutputError, Outputs
from swtdx.cli.parameters import InputError
from swtdx.cli.recording import Recording
from swtdx.cli.run_options import OnPanic, Options
from swtdx.cli.standard_streams import GuestConsole
from swtdx.cli.voice import Voice
from swtdx.image.firmware import NO_FIRMWARE, FirmwareError, find_firmware
from swtdx.image.tdvf import TdvfError
from swtdx.uapi.abilities import KeepError, powers_off
from swtdx.uapi.client import Kvm
from swtdx.vmm.board.pvpanic import PanicEvent
from swtdx.vmm.console import BOOT_MENU_OFFERED, HELP, SHELL_PROMPT, GuestOutput, Keyboard, TextStream, TextWatch
from swtdx.vmm.execution import Execution
from swtdx.vmm.halts import HaltCounter
from swtdx.vmm.launch import LaunchError, Machine, Plan, check_plan, direct_boot, launch
from swtdx.vmm.outcome import STATUS_BAD_INPUT, End, Outcome
from swtdx.vmm.panic_watch import Activity, PanicWatch
from swtdx.vmm.run import Run, StuckVcpu

if TYPE_CHECKING:
    from swtdx.cli.recorded_run import Repeatable
    from swtdx.image.linux_image import LinuxBoot
    from swtdx.lying.teller import Teller
    from swtdx.snapshot.file import Saved
    from swtdx.uapi.dialect import Dialect
    from swtdx.uapi.kernel import Kernel
    from swtdx.vmm.disk_image import DiskImage
    from swtdx.vmm.gdb.server import GdbServer

UNATTENDED_SECONDS = 300.0  # with neither a terminal nor --until nor --timeout
_FLUSH_SECONDS = 0.05
_LAST_WORDS_SECONDS = 1.0  # for what a kernel prints after it has reported its panic
_TOLD_SECONDS = 0.5
_CONSOLE = "ttyS0"


def run(options: Options) -> int:
    """Carry it out; returns the exit status. Raises InputError, FirmwareError, TdvfError, LaunchError, KvmError."""
    voice = Voice(options.quiet)
    saved = None
    if options.restored is not None:
        from swtdx.cli import saved_machine

        saved = saved_machine.load(options.restored)
        options, plan = saved_machine.planned(options.restored, saved, options)
    options, counted = _repeatable(options)
    debugger.check(options.gdb, options.gdb_wait, options.td, options.kvm)
    lint = Lint.of(options)
    keys = machine_keys(options, voice.say)
    if saved is None:
        plan = _plan(options)
        if counted is not None and counted.has_debug_port:
            plan = replace(plan, debug=lambda data: None)
        voice.say(f"firmware {plan.firmware.described}")
    check_plan(plan)
    if plan.linux is not None and saved is None and options.replayed is None:
        _check_secure_boot(options, plan, plan.linux, voice)
    if options.kernel is not None and not _has_console(options):
        voice.say(f"note: without console={_CONSOLE} in --append the kernel prints nothing here")
    with ExitStack() as files:
        interruption = files.enter_context(Interruption())
        outputs = files.enter_context(Outputs())
        disks = [files.enter_context(disk) for disk in _disks(options)]
        if options.snapshot is not None:
            from swtdx.cli.saved_machine import check_disks_are_kept

            check_disks_are_kept(options.disks)
        kept = _open_outputs(outputs, options, plan, disks)
        gdb = files.enter_context(debugger.listening(options.gdb, voice.say))
        recording = files.enter_context(
            Recording(kept.get("--trace"), options.trace_format, kept.get("--html"), sys.argv)
        )
        files.enter_context(kernel_log(voice.say))
        lies = _teller(options, kept.get("--lies-to"))
        trace = recording.sink if recording.wanted else None
        report_key = keys.report_key if counted is None else counted.report_key
        if counted is not None and lies is not None:
            counted.clock.followers.append(lies)
        kernel = kernel_for(options, report_key, trace, None if lint is None else lint.findings, lies, counted)
        plan = replace(plan, quotes=keys.source(kernel))
        files.enter_context(_explained(kernel, options.dialect))
        device = files.enter_context(open_device(options, kernel))
        # These are emptied by this, so only when all that was typed has proved usable.
        outputs.begin()
        recording.begin()
        garbage.go_on()
        session = _Session(options, voice, plan, disks, kept, recording, gdb, interruption, lint, lies, saved, counted)
        status = session.run(device)
    if (outputs.failed or session.console.lost) and (status == 0 or options.debug_exit is not None):
        return STATUS_BAD_INPUT
    return status


def _repeatable(options: Options) -> tuple[Options, Repeatable | None]:
    """Return what records the run or repeats one, with the options that follow. Raises InputError."""
    if options.record is None and options.replayed is None:
        return options, None
    from swtdx.cli.recorded_run import recorder, replayer

    if options.replayed is not None:
        counted, options = replayer(options.replayed, options)
        return options, counted
    return replace(options, quotes=False), recorder(options, _terminal_size())


def _terminal_size() -> tuple[int, int] | None:
    """Return columns and lines of the terminal that the guest's console goes to."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns, size.lines


def _has_console(options: Options) -> bool:
    """Whether the kernel has a command line with a console, as far as is known: a UKI brings its own."""
    if "console=" in (options.append or "") or "earlyprintk" in (options.append or ""):
        return True
    assert options.kernel is not None
    from swtdx.attest.uki import parse_uki

    try:
        return not options.append and parse_uki(options.kernel.read_bytes()) is not None
    except OSError:
        return True


def _open_outputs(outputs: Outputs, options: Options, plan: Plan, disks: Sequence[DiskImage]) -> dict[str, Output]:
    """Return every file that the run writes, by its option, still as it was. Raises OutputError."""
    for disk in disks:
        outputs.reads(f"--disk {disk.path}", disk.descriptor)
    for option, read in (
        ("--firmware", plan.firmware.path),
        ("--kernel", options.kernel),
        ("--initrd", options.initrd),
        ("--from", options.restored),
        ("the record", options.replayed),
        ("--lies-from", options.lies_from),
        ("--symbols", options.symbols),
        *(("the test key", path) for path in key_files(options)),
    ):
        if read is not None:
            outputs.reads(f"{option} {read}", read)
    wanted = (
        ("--log", options.log),
        ("--debugcon", options.debugcon),
        ("--json", options.json),
        ("--trace", options.trace),
        ("--html", options.html),
        ("--snapshot", options.snapshot),
        ("--lies-to", options.lies_to),
        ("--record", options.record),
    )
    opened = {option: outputs.open(option, path) for option, path in wanted if path is not None}
    if "--snapshot" in opened:
        opened["--snapshot"].may_come_to_nothing = True
    return opened


def _check_secure_boot(options: Options, plan: Plan, linux: LinuxBoot, voice: Voice) -> None:
    """Refuse a kernel that the firmware will not start, where nothing else can come of the run. Raises InputError."""
    from swtdx.attest.direct_boot import kernel_refusal

    refusal = kernel_refusal(plan.firmware.image, linux, str(plan.firmware.path))
    if refusal is None:
        return
    attended = options.gdb is not None or (sys.stdin.isatty() and sys.stdout.isatty())
    if not (attended or options.until is not None or options.disks):
        raise InputError(f"{refusal} (--until TEXT, a --disk or a terminal run the firmware without it)")
    voice.say(f"warning: {refusal}")


@contextmanager
def _explained(kernel: Kernel, dialect: Dialect | None) -> Iterator[None]:
    """An error that comes of a failed ioctl leaves with its explanation as notes."""
    try:
        yield
    except Exception as error:
        from swtdx.explain.notes import add_notes

        add_notes(error, kernel, dialect)
        raise


def _end_explained(options: Options, outcome: Outcome, kept: dict[str, Any]) -> list[str]:
    """Explain an end that KVM caused, or a crash, in lines for a person; none for other ends."""
    if outcome.end not in (End.CRASH, End.INTERNAL_ERROR) and not outcome.reason.by_guest:
        return []
    from swtdx.explain.notes import outcome_explained, refused_rbp, unread_ve

    lines = outcome_explained(outcome, options.dialect, td=options.td is not None)
    if outcome.end is End.CRASH:
        lines += unread_ve(kept.get("unread_ve", []))
        if options.no_rbp_mod and kept.get("passes_rbp"):
            lines += refused_rbp()
    return lines


def _disks(options: Options) -> Iterator[AbstractContextManager[DiskImage]]:
    """Yield each disk, to be opened before the next is asked for. Raises DiskError."""
    if options.disks:
        from swtdx.vmm.disk_image import open_disk, parse_disk

        for text in options.disks:
            yield open_disk(parse_disk(text))


def _plan(options: Options) -> Plan:
    """Return what to build, before there are devices.

    Raises InputError, SmbiosError, FirmwareError, LinuxImageError.
    """
    tdx = options.td is not None
    smbios = None
    if options.smbios:
        from swtdx.image.smbios import parse_smbios

        smbios = parse_smbios(options.smbios)
    if str(options.firmware) != NO_FIRMWARE:
        firmware = find_firmware(options.firmware, tdx=tdx)
        return Plan(firmware, options.memory, options.cpus, options.td, linux=_linux(options), smbios=smbios)
    if smbios is not None:
        raise InputError("--smbios needs a firmware: omit --firmware none")
    linux = _linux(options)
    if linux is None:
        raise InputError("--firmware none needs a kernel: give --kernel")
    boot, firmware = direct_boot(linux, options.memory, options.cpus, td=tdx)
    return Plan(firmware, options.memory, options.cpus, options.td, direct=boot)


def _linux(options: Options) -> LinuxBoot | None:
    """Return the kernel to start, checked. Raises InputError for an option that goes nowhere, LinuxImageError."""
    if options.kernel is None:
        for name, value in (("--initrd", options.initrd), ("--append", options.append)):
            if value is not None:
                raise InputError(f"{name} needs a kernel: give --kernel")
        return None
    from swtdx.image.linux_image import load

    return load(options.kernel, options.initrd, options.append or "", options.memory)


def _teller(options: Options, output: Output | None) -> Teller | None:
    """Return the policy of lies. Raises InputError where there is none to write."""
    if not options.lies:
        if output is not None:
            raise InputError("--lies-to needs lies: give --lie or --lies-from")
        return None
    from swtdx.lying.teller import Teller

    if output is None:
        return Teller(options.lies)
    return Teller(options.lies, lambda text: output.write(f"{text}\n".encode()))


class _Session:
    """One run with everything that watches it."""

    def __init__(
        self,
        options: Options,
        voice: Voice,
        plan: Plan,
        disks: Sequence[DiskImage],
        outputs: Mapping[str, Output],
        recording: Recording,
        gdb: GdbServer | None,
        interruption: Interruption,
        lint: Lint | None,
        lies: Teller | None,
        saved: Saved | None,
        counted: Repeatable | None = None,
    ) -> None:
        self.options = options
        self.lint = lint
        self.lies = lies
        self._saved = saved
        self._counted = counted
        self._keep_now = self._kept = self._cannot_be_kept = False
        self._execution: Execution | None = None
        self.interruption = interruption
        self._terminal: Keyboard | None = None
        self.outputs = outputs
        self.gdb = gdb
        self.recording = recording
        self.voice = voice
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._run: Run | None = None
        text = options.until
        keeps = options.snapshot_at
        self._found = Outcome(End.UNTIL, f"the console showed {text!r}")
        own_end = options.replayed is not None or self.interactive or plan.linux or plan.direct or gdb
        if text is None and keeps is None and not own_end:
            text = SHELL_PROMPT
            self._found = Outcome(
                End.SHELL_PROMPT, f"reached the UEFI shell prompt ({SHELL_PROMPT}); stdin is not a terminal"
            )
        watch = TextWatch(text) if text is not None else None
        self.console = GuestConsole()
        # Without a terminal a panicked kernel cannot be looked at.
        on_panic = options.on_panic or (OnPanic.CONTINUE if self.interactive or gdb else OnPanic.STOP)
        self._stops_on_panic = on_panic is OnPanic.STOP
        self._halts: HaltCounter | None = None
        self._panic = PanicWatch(self._activity)
        self._silent = True
        self._seen = TextStream()
        self._told_at = 0.0
        self._panic_reported_at: float | None = None
        self.output = GuestOutput(
            self.console, watch, self._text_found, self._reader_lost, outputs.get("--log"), self._shown
        )
        if keeps is not None:
            self.output.watch(TextWatch(keeps), self._stop_to_keep)
        if not self.interactive and gdb is None and options.replayed is None:
            self.output.watch(TextWatch(BOOT_MENU_OFFERED), self._nothing_to_boot)
        self._put = self.output.put if counted is None else counted.serial(self.output.put)
        debug = outputs.get("--debugcon")
        terminal = _terminal_size() if counted is None else counted.terminal
        self.plan = replace(
            plan,
            serial=self._put,
            clock=counted.board_clock if counted is not None else None,
            debug=debug.write if debug is not None else plan.debug,
            debug_exit=options.debug_exit,
            progress=voice.step if saved is None else lambda step: None,
            panicked=self._panic_reported,
            devices=tuple(
                devices(
                    options,
                    disks,
                    self._put,
                    terminal,
                    os.urandom if counted is None else counted.chance,
                )
            ),
            say=self._say_from_device,
        )

    def _say_from_device(self, text: str) -> None:
        self.output.flush()
        self.voice.say(text)

    def run(self, device: Kvm) -> int:
        """Build, run, report."""
        started = time.monotonic()
        try:
            machine = launch(device, self.plan)
        finally:
            self.voice.steps_end()
        with machine:
            if self._saved is not None:
                from swtdx.cli.saved_machine import give_back

                assert self.options.restored is not None
                give_back(self.options.restored, machine, self._saved)
            built = time.monotonic()
            self.voice.say(_announcement(machine, built - started, self.options.restored))
            if self._saved is None and (slow := _accepts_slowly(self.plan, self.options)) is not None:
                print(f"swtdx: {slow}", file=sys.stderr)  # with --quiet too: nothing else is seen for so long
            if self.interactive:
                self.voice.say(HELP)
            execution = None
            if self.options.snapshot_at is not None or self.gdb is not None or self.lies is not None:
                execution = self._execution = self._execution_of(machine)
            run = self._run = Run(machine, execution)
            if self._counted is not None:
                self._counted.attach(machine, run)
            if self.gdb is not None and execution is not None:
                timeline = self._counted.clock if self._counted is not None else None
                debugger.serve(self.gdb, machine, run, execution, timeline)
                stands = ", the machine waits for it" if self.options.gdb_wait else ""
                self.voice.say(f"for a debugger: target remote {self.gdb.where}{stands}")
            outcome = self._attend(run, machine)
            missing = self._keep_at_the_end(machine, outcome)
            if self._counted is not None:
                outcome = self._counted.judged(outcome)
                if (output := self.outputs.get("--record")) is not None:
                    self._counted.write(output, outcome)
            if self.gdb is not None:
                self.gdb.close()
            seconds = {"build": built - started, "run": run.seconds, "total": time.monotonic() - started}
            kept = run_record.record(machine, run, outcome, seconds, bytes(self.output.record))
            if self.lies is not None:
                kept["lies"] = self.lies.told
            if self.lint is not None:
                kept["lint"] = self.lint.as_json()
            if explained_end := _end_explained(self.options, outcome, kept):
                kept["explained"] = explained_end
            self.recording.record = kept
            kernel = powers_off(machine.vm.kernel)
            if kernel is not None:  # this program ends, too: its machine need not take the TD down page by page
                kernel.power_off()
        self._report(kept, outcome)
        if missing is not None:
            print(f"swtdx: {missing}", file=sys.stderr)
            if self._cannot_be_kept:
                return outcome.status or End.INTERNAL_ERROR.status
        return outcome.status or (STATUS_LEAK if self.lint is not None and self.lint.findings.leaks else 0)

    def _execution_of(self, machine: Machine) -> Execution:
        """Return who says when vCPUs run: what the host does at a call is done there, too."""
        stopped = self.gdb is not None and self.options.gdb_wait
        if self.lies is None:
            return Execution(len(machine.vcpus), stopped=stopped)
        from swtdx.fuzzing.hostile import Hostile

        return Hostile(machine, self.lies, stopped=stopped)

    def _attend(self, run: Run, machine: Machine) -> Outcome:
        """Stay with the run until it is over, whatever ends it."""
        options = self.options
        limit = options.timeout
        if limit is None and not self.interactive and options.until is None and options.gdb is None:
            limit = UNATTENDED_SECONDS
        self.interruption.deferred = True
        try:
            with ExitStack() as attended:
                if self._stops_on_panic:
                    self._halts = attended.enter_context(closing(HaltCounter(machine.vm, machine.vcpus)))
                if self.interactive:
                    self._terminal = attended.enter_context(self._keyboard(run, machine))
                run.start()
                try:
                    while run.wait(_FLUSH_SECONDS) is None:
                        self._wait_with_the_guest(run)
                        self.output.flush()
                        if self._keep_now:
                            self._keep(run, machine)
                        if self.interruption.arrived is not None:
                            run.finish(_interrupted(self.interruption.arrived))
                        if self._stops_on_panic:
                            self._end_if_panicked(run)
                        if limit and run.seconds >= limit:
                            run.finish(Outcome(End.TIMEOUT, f"time was up after {limit:g} s", {"limit": limit}))
                except KeyboardInterrupt:
                    run.finish(_INTERRUPTED)
                finally:
                    self._stop(run)
        finally:
            self.interruption.deferred = False
        assert run.outcome is not None
        return run.outcome

    def _wait_with_the_guest(self, run: Run) -> None:
        """On a terminal, say that something happens while the guest shows no text yet: firmware clears the screen."""
        if self._silent and self.interactive and run.seconds - self._told_at >= _TOLD_SECONDS:
            self._told_at = run.seconds
            done = f"{run.seconds:.0f} s, {sum(run.exits.values()):,} exits"
            self.voice.waiting(f"the guest runs, and has printed nothing yet: {done} (Ctrl-A H: keys)")

    def _shown(self, data: bytes) -> None:
        """The guest printed something, which comes to the terminal next."""
        if self._silent:
            self._silent = not any(byte > ord(" ") for byte in self._seen.text(data))
            self.voice.steps_end()
        self._panic.feed(data)

    def _stop(self, run: Run) -> None:
        self.voice.steps_end()
        try:
            run.stop()
        except StuckVcpu as stuck:
            # A thread that never returns would keep the process alive, and its memory is in use.
            self.output.flush()
            if self._terminal is not None:
                self._terminal.restore()
            ended = f"; the run itself had ended: {run.outcome.text}" if run.outcome else ""
            print(f"swtdx: {stuck}{ended}", file=sys.stderr, flush=True)
            os._exit(End.INTERNAL_ERROR.status)
        self.output.flush()

    def _keyboard(self, run: Run, machine: Machine) -> Keyboard:
        def say(text: str) -> None:
            self.output.flush()
            self.voice.interject(text)

        return Keyboard(
            sys.stdin.fileno(),
            machine.board.type if self._counted is None else self._counted.clock.post,
            lambda: run.finish(Outcome(End.LEFT, "you left with Ctrl-A X")),
            say,
            lambda: f"{run.seconds:.1f} s, {sum(run.exits.values()):,} exits",
        )

    def _text_found(self) -> None:
        if self._run is not None:
            self._run.finish(self._found)

    def _nothing_to_boot(self) -> None:
        """The firmware waits for a key, and no terminal is here to press one."""
        if self._run is not None:
            self._run.finish(Outcome(End.NO_BOOT_OPTION, "the firmware found nothing to boot, and waits for a key"))

    def _stop_to_keep(self) -> None:
        """The console shows the text of --snapshot-at: the machine stands still until it is kept."""
        self._keep_now = True
        if self._execution is not None:
            self._execution.hold()

    def _keep(self, run: Run, machine: Machine) -> None:
        """Write the snapshot. Without anything else that ends the run, this does."""
        options = self.options
        with run.paused() as stands:
            if not stands:
                return
            self._keep_now = False
            if (problem := self._write_snapshot(machine)) is not None:
                run.finish(Outcome(End.INTERNAL_ERROR, problem))
            elif options.until is None and not self.interactive:
                run.finish(Outcome(End.UNTIL, f"the console showed {options.snapshot_at!r}: the machine is kept"))

    def _write_snapshot(self, machine: Machine) -> str | None:
        """Write a machine that stands still; returns why that cannot be, a sentence."""
        from swtdx.cli.saved_machine import contents
        from swtdx.snapshot.values import NotKept

        output = self.outputs["--snapshot"]
        try:
            output.replace(contents(self.options, machine), private=True)
        except (KeepError, NotKept, OSError) as error:  # OSError: a disk is not there any more
            self._cannot_be_kept = True
            return f"no snapshot can be made: {error}"
        self._kept = True
        if output.problem is None:
            self.voice.say(f"snapshot: {self.options.snapshot}, {output.path.stat().st_size >> 20} MiB")
        return None

    def _keep_at_the_end(self, machine: Machine, outcome: Outcome) -> str | None:
        """Keep a machine whose run ended at that very moment; returns why there is no snapshot, a sentence."""
        if self.options.snapshot_at is None or self._kept or self._cannot_be_kept:
            return None
        if not self._keep_now:
            return f"no snapshot was made: the console never showed {self.options.snapshot_at!r}"
        if outcome.end is End.UNTIL:
            return self._write_snapshot(machine)
        return "no snapshot was made: the run ended before that"

    def _panic_reported(self, event: PanicEvent) -> None:
        """The guest's kernel says by pvpanic that it has panicked; with a crash kernel it continues."""
        if event & PanicEvent.PANICKED and self._panic_reported_at is None:
            self._panic_reported_at = time.monotonic()

    def _activity(self) -> Activity:
        return Activity(self._halts.total() if self._halts else 0, time.process_time())

    def _end_if_panicked(self, run: Run) -> None:
        reported = self._panic_reported_at
        if (reported is not None and time.monotonic() - reported >= _LAST_WORDS_SECONDS) or self._panic.panicked():
            said = self._panic.reason
        else:
            return
        run.finish(Outcome(End.PANIC, f"the guest's kernel panicked: {said or 'it did not say why'}"))

    def _reader_lost(self) -> None:
        if self._run is not None:
            self._run.finish(Outcome(End.INTERRUPTED, "the console has no reader any more"))

    def _report(self, kept: dict[str, Any], outcome: Outcome) -> None:
        if not self.output.ends_in_newline:
            self.output.put(b"\n")
            self.output.flush()
        if not self.options.quiet:
            run_record.show(self.voice, kept)
            trace = self.outputs.get("--trace")
            if trace is not None and trace.problem is None:
                self.voice.say(f"trace: {self.recording.events:,} events in {self.options.trace}")
            debug = self.outputs.get("--debugcon")
            if debug is not None and debug.problem is None and not debug.written:
                self.voice.say("the firmware wrote nothing to --debugcon: release builds do not")
            if self.options.verbose:
                ports = ", ".join(f"{port} {count:,}" for port, count in list(kept["port_exits"].items())[:12])
                self.voice.say(f"port I/O: {ports or 'none'}")
        elif outcome.status:
            print(f"swtdx: {outcome.text}", file=sys.stderr)
        for line in kept.get("explained", []):
            print(f"  {line}", file=sys.stderr)
        if self.lint is not None:
            self.lint.show()
        record = self.outputs.get("--json")
        if record is not None:
            record.replace(run_record.as_bytes(kept))


_INTERRUPTED = Outcome(End.INTERRUPTED, "the run was interrupted")


def _interrupted(name: str) -> Outcome:
    """The end by a signal; that of a keyboard is not worth its name."""
    return _INTERRUPTED if name == "SIGINT" else Outcome(End.INTERRUPTED, f"the run was interrupted by {name}")


_SLOW_SECONDS = 8


def _accepts_slowly(plan: Plan, options: Options) -> str | None:
    """What explains the long silence of a large TD whose memory is accepted whole before its kernel starts."""
    from swtdx.linux.release import release_for

    if plan.td is None or plan.direct is None or options.kvm == "host":
        return None
    large = options.huge_pages and release_for(options.kernel_release, options.dialect).maps_2m_private
    size = plan.memory_size >> 30
    seconds = size // 8 if large else size * 5 // 2  # some 0.2 ms for 2 MiB, 10 us for 4 KiB
    if seconds < _SLOW_SECONDS:
        return None
    ways = "with --firmware the kernel accepts memory as it needs it; an ordinary VM accepts none"
    if not large:
        ways += "; --kernel-release next does it 2 MiB at a time"
    return (
        "without firmware a TD accepts all its memory before its kernel starts: "
        f"{size} GiB take {seconds} s or more ({ways})"
    )


def _announcement(machine: Machine, seconds: float, restored: Path | None) -> str:
    if restored is not None:
        return f"the {'VM' if machine.plan.td is None else 'TD'} continues from {restored} ({seconds:.2f} s)"
    if machine.plan.td is None:
        return f"the VM is built ({seconds:.2f} s), running"
    return f"the TD is built and measured ({seconds:.2f} s), running"


def bad_input() -> tuple[type[Exception], ...]:
    """Return what is raised for what a person gave; called when something was raised."""
    from swtdx.image.linux_image import LinuxImageError
    from swtdx.image.smbios import SmbiosError
    from swtdx.vmm.disk_image import DiskError

    return InputError, OutputError, FirmwareError, TdvfError, LaunchError, LinuxImageError, DiskError, SmbiosError
