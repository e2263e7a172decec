# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU, unmodified, under ``swtdx exec``: ordinary VMs with Debian 12's, Trust Domains with that of Debian sid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guest.newc import FILE, newc
from swtdx.attest.quote import parse_quote
from swtdx.attest.verify import verify_quote
from swtdx.cpu import _engine
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QuotingEnclave
from swtdx.quoting.machine_folder import default_folder, report_key
from swtdx.quoting.pki import open_pki
from swtdx.quoting.qgs import QgsServer, QuoteService
from swtdx.vmm.qgs_socket import parse_address
from testing.places import REPOSITORY
from tests.exec.conftest import Run

SECONDS = 280


def until(command: list[str], text: str, *talk: tuple[str, str], **more: object) -> str:
    """Run a command until its output has ``text``, then end it. Return the output.

    ``talk``: what to wait for before that, and what to type then.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more
    ) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        output, read, end = b"", 0, time.monotonic() + SECONDS * (1 + len(talk))
        for expected, typed in [*talk, (text, "")]:
            while (found := output.find(expected.encode(), read)) < 0 and time.monotonic() < end:
                ended = process.poll() is not None
                output += process.stdout.read() or b""
                if ended:
                    break
                time.sleep(0.1)
            read = max(read, found + len(expected))
            if typed and found >= 0:
                assert process.stdin is not None
                process.stdin.write(typed.encode() + b"\n")
                process.stdin.flush()
        process.terminate()
        process.wait(60)
    shown = output.decode("utf-8", "replace")
    assert text in shown, shown[-3000:]
    return shown


def qemu() -> str:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        pytest.skip("QEMU is not installed: apt-get install qemu-system-x86")
    return program


def exec_(*command: str) -> list[str]:
    return [sys.executable, "-m", "swtdx", "exec", "--quiet", "--", *command]


@pytest.mark.parametrize(
    "machine",
    ["pc", "q35", "q35,kernel-irqchip=split", "pc,kernel-irqchip=off"],
    ids=lambda name: name.replace(",", "-"),
)
def test_an_ordinary_vm_runs_seabios(machine: str) -> None:
    until(exec_(qemu(), "-accel", "kvm", "-machine", machine, "-nographic", "-net", "none"), "SeaBIOS")


def test_two_qemus_at_once() -> None:
    command = exec_(qemu(), "-accel", "kvm", "-machine", "pc", "-nographic", "-net", "none")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as other:
        until(command, "No bootable device")
        other.terminate()
        other.wait(60)


@pytest.fixture(scope="module")
def sid() -> Path:
    """The tree of script/sid-tree that $SWTDX_SID names: making it takes root and a network, and each boot minutes."""
    if not os.environ.get("SWTDX_SID"):
        pytest.skip("QEMU 11.1 NOT TRIED: script/sid-tree makes a Debian sid tree; set SWTDX_SID to its folder")
    tree = Path(os.environ["SWTDX_SID"])
    if not (tree / "usr/bin/qemu-system-x86_64").exists():
        pytest.skip(f"no Debian sid tree in {tree}: run script/sid-tree as root")
    return tree


def td_command(firmware: Path, *more: str) -> list[str]:
    machine = "q35,kernel-irqchip=split,confidential-guest-support=tdx0"
    tdx = ["-object", "tdx-guest,id=tdx0", "-machine", machine, "-cpu", "host", "-accel", "kvm"]
    console = ["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot", "-bios", str(firmware)]
    return [str(REPOSITORY / "script/sid-tree"), "run", "qemu-system-x86_64", *tdx, *console, *more]


def test_a_trust_domain_comes_to_the_boot_manager_and_has_the_predicted_mrtd(sid: Path, tmp_path: Path) -> None:
    record, firmware = tmp_path / "record.json", sid / "usr/share/ovmf/OVMF.inteltdx.ms.fd"
    environment = {**os.environ, "SWTDX_EXEC_OPTIONS": f"--quiet --json {record}"}
    until(td_command(firmware, "-m", "512"), "BdsDxe: Press any key", env=environment)
    measure = [sys.executable, "-m", "swtdx", "measure", str(firmware)]
    predicted = subprocess.run(measure, capture_output=True, text=True, check=True).stdout.split()
    (process,) = json.loads(record.read_text())["processes"]
    (td,) = process["tds"]
    assert td["mrtd"] in predicted
    assert any(int(value, 16) for value in td["rtmr"])


@pytest.mark.parametrize("processors", ["1", "2", "4"])
def test_linux_in_a_trust_domain_comes_to_its_prompt(sid: Path, processors: str) -> None:
    linux = os.environ.get("SWTDX_LINUX")
    if not linux:
        pytest.skip("no Linux guest: export SWTDX_LINUX=$(script/linux)")
    (kernel,) = (Path(linux) / "boot").glob("vmlinuz-*")
    guest = ["-kernel", str(kernel), "-initrd", f"{linux}/initrd.img", "-append", "console=ttyS0"]
    shown = until(td_command(sid / "usr/share/ovmf/OVMF.fd", "-m", "1G", "-smp", processors, *guest), "swtdx# ")
    assert "Memory Encryption Features active: Intel TDX" in shown


def test_qemu_asks_a_quote_generation_service_unchanged(sid: Path, tmp_path: Path) -> None:
    """An unmodified QEMU under swtdx exec, pointed at swtdx qgs as at Intel's: its guest reads a quote in configfs."""
    linux = os.environ.get("SWTDX_LINUX")
    if not linux:
        pytest.skip("no Linux guest: export SWTDX_LINUX=$(script/linux)")
    pki = open_pki(default_folder())
    assert pki.folder is not None
    service = QuoteService(QuotingEnclave(pki, MacCheck(report_key(pki.folder))))
    script = b"""#!/bin/sh
r=/sys/kernel/config/tsm/report/r; mkdir $r; head -c 64 /dev/zero > $r/inblob
echo QUOTE $(hexdump -v -e '1/1 "%02x"' $r/outblob) END QUOTE
"""
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(Path(linux, "initrd.img").read_bytes() + newc([("x.sh", FILE, script)]))
    (kernel,) = (Path(linux) / "boot").glob("vmlinuz-*")
    guest = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet swtdx.run=/x.sh"]
    with QgsServer(service) as server:
        server.listen(parse_address(f"{tmp_path}/qgs.socket"))
        place = {"type": "unix", "path": f"{tmp_path}/qgs.socket"}
        tdx = json.dumps({"qom-type": "tdx-guest", "id": "tdx0", "quote-generation-socket": place})
        command = [tdx if word == "tdx-guest,id=tdx0" else word for word in td_command(sid / "usr/share/ovmf/OVMF.fd")]
        shown = until([*command, "-m", "1G", *guest], "END QUOTE")
    quote = parse_quote(bytes.fromhex("".join(shown.partition("QUOTE")[2].partition("END")[0].split())))
    collateral = json.dumps(make_collateral(pki).as_json())
    assert verify_quote(quote, collateral, int(time.time()), pki.root).tcb_status == "UpToDate"


def test_a_reboot_of_the_guest_rebuilds_its_trust_domain(sid: Path) -> None:
    linux = os.environ.get("SWTDX_LINUX")
    if not linux:
        pytest.skip("no Linux guest: export SWTDX_LINUX=$(script/linux)")
    (kernel,) = (Path(linux) / "boot").glob("vmlinuz-*")
    guest = ["-kernel", str(kernel), "-initrd", f"{linux}/initrd.img", "-append", "console=ttyS0"]
    command = td_command(sid / "usr/share/ovmf/OVMF.fd", "-m", "512", *guest)
    command.remove("-no-reboot")
    shown = until(command, "reboot: Power down", ("swtdx# ", "reboot -f"), ("swtdx# ", "poweroff -f"))
    assert shown.count("Memory Encryption Features active: Intel TDX") == 2


def test_the_short_form_prints_its_command() -> None:
    line = [sys.executable, "-m", "swtdx", "qemu", "--print", "--qemu", qemu(), "--firmware", "x.fd", "-m", "1G"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"swtdx exec -- {qemu()} -accel kvm -cpu host -object tdx-guest,id=tdx0 -machine "
        "q35,kernel-irqchip=split,confidential-guest-support=tdx0 -vga none -bios x.fd -m 1G\n"
    )


@pytest.mark.parametrize(
    ("given", "added", "told"),
    [
        ("-nographic", True, False),
        ("-display gtk", True, False),
        ("-device virtio-gpu-pci", True, False),
        ("-device secondary-vga", True, False),
        ("-nodefaults", False, False),
        ("-vga none", False, False),
        ("--vga none", False, False),
        ("-device bochs-display", True, False),
        ("-vga std", False, True),
        ("-nodefaults -vga virtio", False, True),
        ("-device VGA", False, True),
        ("-device virtio-vga,max_outputs=1", False, True),
        ('-device {"driver":"qxl-vga","id":"v"}', False, True),
        ("-device driver=virtio-vga-gl", False, True),
    ],
)
def test_the_short_form_has_no_vga(given: str, added: bool, told: bool) -> None:
    """A TD's firmware accepts the memory at 0xa0000, which a VGA device takes out of QEMU's slots: on hardware, too."""
    line = [sys.executable, "-m", "swtdx", "qemu", "--print", "--qemu", qemu(), "--firmware", "x.fd", *given.split()]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert (" -vga none -bios" in done.stdout) is added
    assert ("use -vga none" in done.stderr) is told


def test_the_short_form_comes_to_the_boot_manager(sid: Path, tmp_path: Path) -> None:
    """It ended at its first access to 0xa0000: QEMU had a VGA device."""
    program = tmp_path / "qemu"
    folders = sorted({str(path.parent) for path in (sid / "usr/lib/x86_64-linux-gnu").glob("**/lib*.so*")})
    loader = f"{sid}/usr/lib64/ld-linux-x86-64.so.2 --library-path {':'.join(folders)}"
    places = f"-L {sid}/usr/share/qemu -L {sid}/usr/share/seabios"
    program.write_text(f'#!/bin/sh\nexec {loader} {sid}/usr/bin/qemu-system-x86_64 {places} "$@"\n')
    program.chmod(0o755)
    firmware = sid / "usr/share/ovmf/OVMF.inteltdx.ms.fd"
    command = [sys.executable, "-m", "swtdx", "qemu", "--qemu", str(program), "--firmware", str(firmware)]
    until([*command, "-m", "1G", "-nographic"], "BdsDxe: Press any key")


def test_the_short_form_leaves_alone_what_is_said() -> None:
    given = ["-cpu", "max", "-bios", "own.fd", "-machine", "q35,accel=kvm,confidential-guest-support=t"]
    line = [sys.executable, "-m", "swtdx", "qemu", "--print", "--qemu", qemu(), *given]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split()[4:] == ["-object", "tdx-guest,id=tdx0", "-vga", "none", *given]


@pytest.mark.parametrize(
    "machine", [("-machine", "q35"), ("-M", "q35,hpet=off"), ("-machine", "q35,kernel-irqchip=split")]
)
def test_a_machine_that_is_named_becomes_a_td_nevertheless(machine: tuple[str, str]) -> None:
    """It was an ordinary VM, without a word: QEMU puts the options of several -machine together."""
    line = [sys.executable, "-m", "swtdx", "qemu", "--print", "--qemu", qemu(), "--firmware", "x.fd"]
    for given, name in (((), "tdx0"), (("-object", "tdx-guest,id=mine"), "mine")):
        done = subprocess.run([*line, *given, *machine], capture_output=True, text=True, check=True)
        assert f" -machine kernel-irqchip=split,confidential-guest-support={name} " in done.stdout
        assert done.stdout.count("tdx-guest") == 1


@pytest.mark.parametrize("option", ["-machine q35", "-chardev null,id=x", "-hda disk", "-h", "-smbios type=1"])
def test_options_of_qemu_with_an_h_are_qemus(option: str) -> None:
    line = [sys.executable, "-m", "swtdx", "qemu", "--print", "--qemu", qemu(), "--firmware", "x.fd", *option.split()]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("swtdx exec -- ")
    assert done.stdout.rstrip("\n").endswith(option)


XSAVE = """
import fcntl, os, struct, sys
fd = os.open("/dev/kvm", os.O_RDWR)
buffer = bytearray(8 + 40 * 256)
struct.pack_into("<I", buffer, 0, 256)
fcntl.ioctl(fd, 0xC008AE05, buffer)
for at in range(struct.unpack_from("<I", buffer)[0]):
    leaf, subleaf, _, size, offset = struct.unpack_from("<5I", buffer, 8 + 40 * at)
    if leaf == 0xD and subleaf > 1:
        print(subleaf, size, offset)
"""


def test_the_components_of_xsave_are_where_the_processor_here_has_them(swtdx_exec: Run) -> None:
    """QEMU asks this processor for size and offset (kvm_cpu_xsave_init), and offers what KVM supports.

    PKRU at offset 0, on a processor without it: Linux in a guest of -cpu host warned of xstate, and its init died.
    """
    shown = swtdx_exec(sys.executable, "-c", XSAVE).stdout
    for component, size, offset in (map(int, line.split()) for line in shown.splitlines()):
        assert _engine.host_cpuid(0xD, component)[:2] == (size, offset)
