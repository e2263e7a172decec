# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/run linux``'s guest, an unmodified distribution kernel, as a Trust Domain and as an ordinary VM.

$SWTDX_LINUX names the folder that ``script/linux`` prints (boot/vmlinuz-*, initrd.img); script/test sets it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from guest.newc import FILE, newc
from swtdx.attest.event_log import parse_event_log
from swtdx.attest.quote import parse_quote
from swtdx.attest.replay import replay
from swtdx.attest.report import TdReport, parse_report
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.cli.machine_parts import kernel_named
from swtdx.image.firmware import Firmware, find_firmware
from swtdx.image.linux_image import load
from swtdx.image.smbios import SmbiosFields, parse_smbios
from swtdx.machine import MachineKernel
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import QuotingEnclave
from swtdx.quoting.pki import Pki
from swtdx.quoting.quote_sources import EnclaveQuotes
from swtdx.seam.report import verify
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.get_quote import QuoteSource
from swtdx.vmm.launch import Plan, TdParameters, launch
from swtdx.vmm.outcome import End
from swtdx.vmm.run import Run

PATIENCE_SECONDS = 180.0
MEMORY = 512 << 20
PROMPT = "swtdx# "
CONFIGFS = "r=/sys/kernel/config/tsm/report/r; mkdir $r && printf %064d 1 > $r/inblob"
MITIGATED = {
    "spec_store_bypass:Mitigation: Speculative Store Bypass disabled via prctl",
    "spectre_v1:Mitigation: usercopy/swapgs barriers and __user pointer sanitization",
    "spectre_v2:Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; PBRSB-eIBRS: SW sequence; BHI: BHI_DIS_S",
}
"""What a TD of module 1.5.06 is affected by on any processor that the module accepts."""
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;=]*[A-Za-z]")


@pytest.fixture(scope="module")
def linux_guest() -> Path:
    named = os.environ.get("SWTDX_LINUX")
    if not named or not (Path(named) / "initrd.img").is_file():
        pytest.skip("NOT SHOWN: LINUX AS A GUEST: $SWTDX_LINUX does not name what script/linux makes")
    return Path(named)


class Console:
    """The shell on the guest's serial console."""

    def __init__(self, kernel: MachineKernel, run: Run, printed: bytearray) -> None:
        self.kernel = kernel
        self.run = run
        self._printed = printed

    def wait(self, start: int = 0) -> str:
        """What was printed from ``start`` on, once the prompt stands at its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = _CONTROL_SEQUENCE.sub("", self._printed[start:].decode("latin-1")).replace("\r", "")
            if seen.endswith(PROMPT):
                return seen.removesuffix(PROMPT)
            if self.run.wait(0.02) is not None or time.monotonic() > deadline:
                pytest.fail(f"no prompt ({self.run.outcome}): {seen[-800:]!r}")

    def command(self, line: str) -> str:
        """What a command prints."""
        start = len(self._printed)
        self.run.machine.board.type(line.encode() + b"\n")
        shown = self.wait(start)
        return shown.partition("\n")[2]  # without the echo

    def bytes_of(self, line: str) -> bytes:
        """What a command writes."""
        self.command("h() { hexdump -v -e '1/1 \"%02x\"'; echo; }")  # a line beyond 80 columns is echoed as two
        shown = "".join(self.command(f"{line} | h").split())
        assert re.fullmatch("(?:[0-9a-f]{2})*", shown), shown
        return bytes.fromhex(shown)


@contextmanager
def linux(folder: Path, *, td: TdParameters | None, cpus: int = 1, dialect: Dialect = Dialect.UPSTREAM,
          append: str = "console=ttyS0", firmware: Firmware | None = None,
          smbios: SmbiosFields | None = None,
          quotes: Callable[[MachineKernel], QuoteSource] | None = None) -> Iterator[Console]:  # fmt: skip
    image = sorted(folder.glob("boot/vmlinuz-*"))[-1]
    kernel = kernel_named("emulated", dialect, cpus=cpus, memory=MEMORY)
    assert isinstance(kernel, MachineKernel)
    printed = bytearray()
    plan = Plan(
        firmware=firmware or find_firmware(None, tdx=True),
        memory_size=MEMORY,
        cpus=cpus,
        td=td,
        serial=printed.extend,
        linux=load(image, folder / "initrd.img", append, MEMORY),
        smbios=smbios,
        quotes=None if quotes is None else quotes(kernel),
    )
    with Kvm(kernel, dialect) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        try:
            console = Console(kernel, run, printed)
            console.wait()
            console.command("dmesg -n 1")  # "hrtimer: interrupt took" of a loaded machine would stand in an answer
            yield console
        finally:
            run.stop()


OWNER = bytes(range(48))
"""MROWNER of the TD that several tests share."""


@dataclass
class Booted:
    """A TD at its first prompt, for tests that each begin there."""

    first: Console
    snapshot: object
    pki: Pki

    @contextmanager
    def console(self) -> Iterator[Console]:
        """Continue from the prompt."""
        machine = self.first.run.machine
        machine.restore(self.snapshot)
        console = Console(self.first.kernel, Run(machine), self.first._printed)
        console.run.start()
        try:
            yield console
        finally:
            console.run.stop()


@pytest.fixture(scope="module")
def booted(linux_guest: Path) -> Iterator[Booted]:
    """One boot for all tests that ask an ordinary TD something. `tests/conftest.py` keeps them in one process."""
    pki = Pki.new("a Linux guest")
    with linux(linux_guest, td=TdParameters(mrowner=OWNER), quotes=lambda kernel: quotes(kernel, pki)) as first:
        first.run.stop()
        yield Booted(first, first.run.machine.snapshot(), pki)


def quotes(kernel: MachineKernel, pki: Pki) -> QuoteSource:
    return EnclaveQuotes(QuotingEnclave(pki, kernel.everifyreport2))


def check_quote(console: Console, pki: Pki, report: TdReport) -> None:
    """An unmodified guest writes 64 bytes to inblob and reads a quote from outblob."""
    assert "tdx_guest" in console.command(f"{CONFIGFS}; cat $r/provider")
    quote = parse_quote(console.bytes_of("cat $r/outblob"))
    assert "1\n" in console.command("cat $r/generation")
    assert quote.trailing_bytes == 0
    assert quote.body.reportdata == b"%064d" % 1
    assert (quote.body.mrtd, quote.body.rtmrs, quote.body.mrowner) == (report.mrtd, report.rtmrs, report.mrowner)
    collateral = json.dumps(make_collateral(pki).as_json())
    assert verify_quote(quote, collateral, int(time.time()), pki.root).tcb_status == "UpToDate"
    with pytest.raises(VerificationError):
        verify_quote(quote, collateral, int(time.time()))


def test_linux_knows_that_it_is_a_trust_domain_and_its_report_is_verified(booted: Booted) -> None:
    with booted.console() as console:
        assert "tdx: Guest detected" in console.command("dmesg | grep -i tdx")
        assert "Intel TDX" in console.command("dmesg | grep -i 'memory encryption'")
        assert int(console.command("ls /sys/firmware/acpi/tables | grep -c -E 'FACP|APIC|DSDT|MCFG'")) == 4
        vulnerabilities = console.command("cd /sys/devices/system/cpu/vulnerabilities; grep . * | cat; cd /")
        assert {line for line in vulnerabilities.splitlines() if not line.endswith(":Not affected")} == MITIGATED
        tdreport = console.bytes_of("printf 0123456789abcdef | tdreport")
        parsed = parse_report(tdreport)
        td = next(iter(console.kernel.module.tds.values()))
        assert parsed.reportdata == b"0123456789abcdef".ljust(64, b"\0")
        assert parsed.mrtd.hex() == td.mrtd.hex()
        assert parsed.mrowner == OWNER
        assert parsed.consistent
        assert verify(console.kernel.module.identity, tdreport[:256])
        assert [value.hex() for value in parsed.rtmrs] == [value.hex() for value in td.rtmr]
        check_quote(console, booted.pki, parsed)


@pytest.mark.parametrize(
    ("typed", "end"), [("exit", End.POWER_OFF), ("poweroff", End.POWER_OFF), ("reboot", End.RESET)]
)
def test_what_the_guest_says_of_its_end_is_true(booted: Booted, typed: str, end: End) -> None:
    """A shell of busybox runs its own poweroff whatever /bin has, and that asks the first process for it."""
    with booted.console() as console:
        console.run.machine.board.type(f"{typed}\n".encode())
        outcome = console.run.wait(PATIENCE_SECONDS)
        assert outcome is not None
        assert outcome.end is end


def test_linux_continues_from_a_snapshot_with_the_same_report_and_time(booted: Booted) -> None:
    with booted.console() as first:
        before = first.bytes_of("printf snapshot | tdreport")
        uptime = float(first.command("cut -d' ' -f1 /proc/uptime"))
        first.run.stop()
        again = Booted(first, first.run.machine.snapshot(), booted.pki)
    for _ in range(2):
        with again.console() as console:
            later = float(console.command("cut -d' ' -f1 /proc/uptime"))
            assert console.bytes_of("printf snapshot | tdreport") == before
            assert "tsc" in console.command("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
            assert "snapshot" not in console.command("cat /tmp/written 2>&1; echo snapshot > /tmp/written")
        assert uptime <= later < uptime + 30  # what passed in between is not the guest's time


def test_swtdx_run_gives_its_guest_quotes_of_the_run(linux_guest: Path, tmp_path: Path) -> None:
    """configfs' outblob is a quote that ``swtdx quote verify`` accepts, and its RTMRs are the run's."""
    script = f"""{CONFIGFS}
echo QUOTE $(hexdump -v -e '1/1 "%02x"' $r/outblob) QUOTE"""
    keys, record = tmp_path / "keys", tmp_path / "record.json"
    result = _run_script(
        linux_guest, _panicking_guest(linux_guest, script, tmp_path), "--pki", str(keys), "--json", str(record)
    )
    assert (result.returncode, "powered off" in result.stderr) == (0, True)
    quote = tmp_path / "quote.bin"
    quote.write_bytes(bytes.fromhex("".join(result.stdout.split("QUOTE")[1].split())))
    measured = json.loads(record.read_text())
    policy = ["--mrtd", measured["mrtd"]]
    policy += [word for index in range(4) for word in (f"--rtmr{index}", measured["rtmr"][index])]
    collateral = tmp_path / "tcb.json"
    for command in (
        ["collateral", "--pki", keys, "--output", collateral],
        ["quote", "verify", quote, "--collateral", collateral, "--root", keys / "root-ca.pem", *policy],
    ):
        done = subprocess.run([sys.executable, "-m", "swtdx", *command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert "TCB status UpToDate" in done.stdout


def test_the_event_log_that_linux_shows_leads_to_the_rtmrs(linux_guest: Path, measuring_firmware: bytes) -> None:
    firmware = Firmware(Path("OVMF.inteltdx.fd"), "a test", measuring_firmware)
    pki = Pki.new("an event log")
    with linux(linux_guest, td=TdParameters(), firmware=firmware, quotes=lambda kernel: quotes(kernel, pki)) as console:
        parsed = parse_report(console.bytes_of("tdreport < /dev/null"))
        console.command(CONFIGFS)
        quote = parse_quote(console.bytes_of("cat $r/outblob"))
        table = console.bytes_of("cat /sys/firmware/acpi/tables/CCEL")
        log = console.bytes_of("head -c 40000 /sys/firmware/acpi/tables/data/CCEL")
        events = parse_event_log(log, table)
        assert [index for index in range(4) if parsed.rtmrs[index].strip(b"\0")] == [0, 1, 2]
        assert tuple(replay(events))[:3] == parsed.rtmrs[:3]
        assert tuple(replay(events)) == quote.body.rtmrs


def test_linux_extends_an_rtmr_through_sysfs(booted: Booted, skip_loudly: Callable[[str], NoReturn]) -> None:
    """Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest: what is written to rtmr3 extends it."""
    with booted.console() as console:
        registers = "/sys/class/misc/tdx_guest/measurements"
        if "rtmr3" not in console.command(f"ls {registers}"):
            skip_loudly("$SWTDX_LINUX is older than Linux 6.16; not shown: its guest extends RTMR3 through sysfs")
        td = next(iter(console.kernel.module.tds.values()))
        console.command(f"cd {registers}")
        assert console.bytes_of("cat mrtd:sha384").hex() == td.mrtd.hex()
        before, digest = console.bytes_of("cat rtmr3:sha384"), hashlib.sha384(b"an event").digest()
        for half in (digest[:24], digest[24:]):
            console.command(f"echo {half.hex()} | xxd -r -p >> /tmp/d")
        console.command("cat /tmp/d > rtmr3:sha384")
        assert td.rtmr[3] == hashlib.sha384(before + digest).digest()
        assert console.bytes_of("cat rtmr3:sha384") == td.rtmr[3]


def test_four_processors_come_up_by_the_mailbox_and_smbios_tables_are_those_asked_for(linux_guest: Path) -> None:
    """Two subjects, one boot."""
    asked = parse_smbios(["type=1,product=Product,serial=S7", "type=11,value=io.systemd.credential:a=b"])
    with linux(linux_guest, td=TdParameters(gpa_width=52), cpus=4, smbios=asked) as console:
        assert console.command("nproc").strip() == "4"
        assert "acpi_wakeup_cpu" in console.command("dmesg | grep -i wakeup")
        assert console.command("for n in 1 2 3 4; do (sha256sum /init &); done; sleep 1").count("  /init\n") == 4
        console.command("cd /sys/class/dmi/id")
        seen = console.command("cat sys_vendor product_name product_serial chassis_vendor")
        assert seen.split() == ["swtdx", "Product", "S7", "swtdx"]
        assert b"io.systemd.credential:a=b\0" in console.bytes_of("cat /sys/firmware/dmi/tables/DMI")


def test_the_same_kernel_and_initrd_as_an_ordinary_vm(linux_guest: Path) -> None:
    with linux(linux_guest, td=None) as console:
        assert "tdx" not in console.command("dmesg | grep -i 'guest detected'; true")
        assert "ordinary VM" in console.command(
            "dmesg > /dev/null; grep -qw tdx_guest /proc/cpuinfo || echo ordinary VM"
        )
        assert int(console.command("grep -c -E 'timer|ttyS0' /proc/interrupts")) >= 1


@pytest.mark.parametrize(
    ("append", "status", "words"),
    [
        ("console=ttyS0 quiet rdinit=/absent panic=-1", 0, ["reset"]),
        ("console=ttyS0 quiet swtdx.run=sleep,1000", 4, ["time was up"]),
        ("console=ttyS0 quiet rdinit=/absent", 3, ["kernel panicked", "VFS"]),
    ],
)
def test_how_it_ends_is_said_and_told_apart(append: str, status: int, words: list[str], linux_guest: Path) -> None:
    image = sorted(linux_guest.glob("boot/vmlinuz-*"))[-1]
    limit = ["--timeout", "10"] if status == 4 else ["--timeout", "170"]
    result = subprocess.run(
        [sys.executable, "-c", "from swtdx.cli import main; main()", "run", "--kernel", image, "--memory", "512M",
         "--initrd", linux_guest / "initrd.img", "--append", append, "--vm-type", "default",
         "--firmware", "none", *limit],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    for word in words:
        assert word in result.stderr


def _panicking_guest(
    linux_guest: Path, script: str, tmp_path: Path, *, files: tuple[tuple[str, bytes], ...] = ()
) -> Path:
    """An initrd that runs ``script`` once the modules are loaded."""
    entries = [("x.sh", FILE, f"#!/bin/sh\n{script}\n".encode()), *((name, FILE, data) for name, data in files)]
    path = tmp_path / "initrd"
    path.write_bytes((linux_guest / "initrd.img").read_bytes() + newc(entries))
    return path


def _run_script(
    linux_guest: Path, initrd: Path, *arguments: str, append: str = "", vm_type: str = "tdx"
) -> subprocess.CompletedProcess[str]:
    image = sorted(linux_guest.glob("boot/vmlinuz-*"))[-1]
    return subprocess.run(
        [sys.executable, "-c", "from swtdx.cli import main; main()", "run", "--firmware", "none", "--kernel", image,
         "--initrd", initrd, "--append", f"console=ttyS0 quiet swtdx.run=/x.sh {append}", "--memory", "1G",
         "--vm-type", vm_type, "--timeout", "170", *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("vm_type", ["tdx", "default"])
@pytest.mark.parametrize("first", ["true", "rmmod pvpanic-mmio"])
def test_a_panic_is_reported_by_pvpanic_or_by_its_text_and_a_log_with_a_panic_is_not(
    linux_guest: Path, vm_type: str, first: str, tmp_path: Path
) -> None:
    words = "Kernel panic - not syncing: old news"
    log = (
        f"echo 'log of another machine: {words}' > /dev/console; echo '{words}' > /dev/console\n"
        f"echo '---[ end {words} ]---' > /dev/console; sleep 5; echo STILL HERE"
    )
    script = f"{log if first == 'true' else first}\necho c > /proc/sysrq-trigger"
    record = tmp_path / "record"
    initrd = _panicking_guest(linux_guest, script, tmp_path)
    result = _run_script(linux_guest, initrd, "--json", str(record), vm_type=vm_type)
    assert ("STILL HERE" in result.stdout) == (first == "true")
    assert result.returncode == 3
    assert "the guest's kernel panicked: sysrq triggered crash" in result.stderr
    # The driver reads the port once when it is loaded; the other access is its report.
    assert json.loads(record.read_text())["port_exits"]["0x505"] == (2 if first == "true" else 1)


KEXEC = r"""
static long call(long n, long a, const void *b, long c, const void *d, long e)
{
    long r;
    register const void *r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return r;
}
void _start(void) /* kexec_file_load(kernel, initrd, command line, KEXEC_FILE_ON_CRASH) */
{
    static const char line[] = "console=ttyS0 quiet swtdx.run=/second.sh";
    long kernel = call(2, (long)"/vmlinuz", 0, 0, 0, 0), initrd = call(2, (long)"/second.img", 0, 0, 0, 0);

    call(60, call(320, kernel, (void *)initrd, sizeof(line), line, 2) != 0, 0, 0, 0, 0);
}
"""


def test_a_panicking_kernel_starts_its_crash_kernel(linux_guest: Path, tmp_path: Path) -> None:
    (tmp_path / "kexec.c").write_text(KEXEC)
    options = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-s"]
    subprocess.run(["cc", *options, "-o", tmp_path / "kexec", tmp_path / "kexec.c"], check=True)
    second = b"#!/bin/sh\necho SECOND KERNEL; ls /proc/vmcore\n"
    files = (
        ("kexec", (tmp_path / "kexec").read_bytes()),
        ("vmlinuz", sorted(linux_guest.glob("boot/vmlinuz-*"))[-1].read_bytes()),
        ("second.img", (linux_guest / "initrd.img").read_bytes() + newc([("second.sh", FILE, second)])),
    )
    script = "/kexec && echo c > /proc/sysrq-trigger"
    initrd = _panicking_guest(linux_guest, script, tmp_path, files=files)
    result = _run_script(linux_guest, initrd, append="crashkernel=256M", vm_type="default")
    assert "Kernel panic - not syncing: sysrq triggered crash" in result.stdout
    assert "SECOND KERNEL\n/proc/vmcore" in result.stdout.replace("\r", "")
    assert result.returncode == 0
