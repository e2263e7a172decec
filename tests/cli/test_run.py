# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run`` over a scripted kernel: what ends a run, what is said, and what is kept."""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import swtdx
import swtdx.attest.direct_boot
from swtdx.image.mrtd import Order, predict_mrtd
from swtdx.image.tdvf import parse
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import Exit, kvm_run
from testing.uefi_image import efi_kernel
from tests.cli.conftest import Command
from tests.vmm.fake_kernel import FakeKernel, Play, port_in, port_out, typed

Scripted = Callable[[FakeKernel], FakeKernel]
POWER_OFF = port_out(0x604, struct.pack("<H", 0x2000), 2)
PROMPT = typed("\x1b[2JUEFI Interactive Shell v2.2\r\n\x1b[33mShell> ")


def shut_down(run: kvm_run, page: mmap.mmap) -> None:
    run.exit_reason = Exit.SHUTDOWN


def test_piped_it_ends_at_the_shells_prompt_and_says_so(command: Command, firmware: Path, scripted: Scripted) -> None:
    kernel = scripted(FakeKernel(plays={0: PROMPT}))
    result = command("run", "--firmware", firmware)
    assert result.status == 0
    assert "UEFI Interactive Shell" in result.out
    assert result.out.endswith("Shell>\n")
    assert f"firmware {firmware} (--firmware)" in result.err
    assert "UEFI shell prompt" in result.err
    assert predict_mrtd(parse(firmware.read_bytes(), "")).hex() in result.err
    assert "known only to the guest" in result.err
    assert not kernel.names


OFFERED = typed("BdsDxe: No bootable option was found.\r\nBdsDxe: Press any key to enter the Boot Manager Menu.\r\n")


@pytest.mark.parametrize("arguments", [[], ["--until", "never"]])
def test_unattended_it_ends_where_the_firmware_waits_for_a_key(
    arguments: list[str], command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    """With --until there is no limit of time."""
    scripted(FakeKernel(plays={0: OFFERED}))
    result = command("run", "--firmware", firmware, *arguments, "--json", tmp_path / "run.json")
    assert result.status == 3
    assert "the firmware found nothing to boot" in result.err
    assert json.loads((tmp_path / "run.json").read_text())["outcome"] == "no-boot-option"


def test_until(command: Command, firmware: Path, scripted: Scripted) -> None:
    scripted(FakeKernel(plays={0: [*PROMPT, *typed("\r\nLinux version"), POWER_OFF]}))
    result = command("run", "--firmware", firmware, "--until", "Linux version")
    assert result.status == 0
    assert "'Linux version'" in result.err


@pytest.mark.parametrize(
    ("plays", "arguments", "status", "words"),
    [
        ([POWER_OFF], [], 0, "powered off"),
        ([port_out(0xCF9, b"\x06")], [], 0, "reset"),
        ([shut_down], [], 3, "triple fault"),
        ([lambda run, page: 5], [], 1, "EIO"),
        ([], ["--timeout", "0.2"], 4, "time was up after 0.2 s"),
    ],
)
def test_exit_statuses(
    plays: list[Play],
    arguments: list[str],
    status: int,
    words: str,
    command: Command,
    firmware: Path,
    scripted: Scripted,
) -> None:
    scripted(FakeKernel(plays={0: plays}))
    result = command("run", "--firmware", firmware, *arguments)
    assert result.status == status
    assert words in result.err


def test_quiet_leaves_the_console_alone_and_still_tells_failures(
    command: Command, firmware: Path, scripted: Scripted
) -> None:
    scripted(FakeKernel(plays={0: PROMPT}))
    result = command("run", "--quiet", "--firmware", firmware)
    assert (result.status, result.err) == (0, "")
    scripted(FakeKernel(plays={0: [shut_down]}))
    result = command("run", "--quiet", "--firmware", firmware)
    assert (result.status, result.err) == (3, "swtdx: vCPU 0 shut down: a triple fault\n")


@pytest.mark.parametrize("dialect", Dialect)
def test_the_record_keeps_it_all(
    dialect: Dialect, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    scripted(FakeKernel(dialect, plays={0: [*typed("hi\n"), *PROMPT]}))
    path = tmp_path / "run.json"
    assert command("run", "--firmware", firmware, "--dialect", dialect.value, "--json", path).status == 0
    kept = json.loads(path.read_text())
    predicted = {order.name.lower(): predict_mrtd(parse(firmware.read_bytes(), ""), order).hex() for order in Order}
    assert kept["mrtd"] == predicted["per_page"]
    assert kept["mrtd_predicted"] == predicted
    assert kept["rtmr"] is None
    assert (kept["outcome"], kept["status"]) == ("shell-prompt", 0)
    assert (kept["dialect"], kept["vm_type"], kept["kernel"]) == (dialect.value, "tdx", "fake")
    assert kept["exits"]["IO"] == kept["port_exits"]["0x3f8"]
    assert kept["console"].startswith("hi\n")
    assert set(kept["seconds"]) == {"build", "run", "total"}
    assert kept["firmware"]["path"] == str(firmware)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_kernel_with_a_window_into_the_td_shows_its_registers(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    class Open(FakeKernel):
        def inspect_td(self, vm_fd: int) -> dict[str, object]:
            assert self.names[vm_fd] == "vm"
            registers = [f"{number}" * 96 for number in range(4)]
            window = {"mrtd": "ab" * 48, "rtmr": registers, "rtmr_events": []}
            return window | {"passes_rbp": True, "module_version": "1.0"}

    scripted(Open(plays={0: PROMPT}))
    result = command("run", "--firmware", firmware, "--json", tmp_path / "r.json")
    kept = json.loads((tmp_path / "r.json").read_text())
    assert (kept["mrtd"], kept["mrtd_source"]) == ("ab" * 48, "TDX module")
    assert kept["rtmr"][3] == "3" * 96
    assert kept["module_version"] == "1.0"
    assert "3" * 96 in result.err
    assert "does NOT match the prediction" in result.err
    assert "passes RBP in TDVMCALLs" in result.err


@pytest.mark.parametrize("refused", [True, False])
def test_a_crash_names_the_rule_that_refuses_rbp(
    refused: bool, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    class PassesRbp(FakeKernel):
        def inspect_td(self, vm_fd: int) -> dict[str, object]:
            window = {"mrtd": "ab" * 48, "rtmr": ["0" * 96] * 4, "rtmr_events": []}
            return window | {"passes_rbp": True, "module_version": "1.5.06"}

    scripted(PassesRbp(plays={0: [shut_down]}))
    arguments = ["--no-rbp-mod"] if refused else []
    page = tmp_path / "run.html"
    result = command("run", "--firmware", firmware, *arguments, "--html", page)
    assert result.status == 3
    for text in (result.err, page.read_text()):
        assert ("CONFIG_FLAGS.NO_RBP_MOD is 1; else" in text) is refused


def test_an_ordinary_vm_has_no_measurements(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    scripted(FakeKernel(tdx=False, plays={0: PROMPT}))
    result = command("run", "--vm-type", "default", "--firmware", firmware, "--json", tmp_path / "r.json")
    assert result.status == 0
    assert "MRTD" not in result.err
    assert "mrtd" not in json.loads((tmp_path / "r.json").read_text())


def test_the_debug_port_goes_to_its_file(command: Command, firmware: Path, scripted: Scripted, tmp_path: Path) -> None:
    scripted(FakeKernel(plays={0: [port_out(0x402, b"S"), port_out(0x402, b"EC"), *PROMPT]}))
    assert command("run", "--firmware", firmware, "--debugcon", tmp_path / "log").status == 0
    assert (tmp_path / "log").read_bytes() == b"SEC"


def test_version_and_help(command: Command) -> None:
    assert command("--version").out == f"swtdx {swtdx.__version__}\n"
    assert "run" in command().out
    helped = command("run", "--help")
    assert helped.status == 0
    for word in ("--until", "Examples", "Exit status", "Ctrl-A"):
        assert word in helped.out


def test_devices_that_were_asked_for_are_in_their_slots(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    """The guest reads vendor and device of slots 1 to 5 and prints the low byte of the device id."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    plays: list[Play] = []
    for slot in range(1, 6):
        plays += [port_out(0xCF8, struct.pack("<I", 0x8000_0000 | slot << 11), 4), port_in(0xCFE, 1), _print_answer]
    scripted(FakeKernel(plays={0: [*plays, POWER_OFF]}))
    result = command(
        "run", "--firmware", firmware, "--disk", f"{image},ro", "--disk", f"{image},ro", "--virtio-console", "--rng",
        "--json", tmp_path / "run.json",
    )  # fmt: skip
    assert result.status == 0
    assert result.out == "BBCD\N{REPLACEMENT CHARACTER}\n"  # 0xff: slot 5 is empty
    kept = json.loads((tmp_path / "run.json").read_text())
    disk = {"device": "virtio-blk", "image": str(image), "size": 4096, "read_only": True}
    assert kept["devices"] == [disk, disk, {"device": "virtio-console"}, {"device": "virtio-rng"}]


def _print_answer(run: kvm_run, page: mmap.mmap) -> None:
    port_out(0x3F8, page[0x1000:0x1001])(run, page)


@pytest.mark.parametrize(
    ("arguments", "event", "status", "words"),
    [
        ([], 1, 3, "kernel panicked: no root"),
        (["--on-panic", "stop"], 1, 3, "kernel panicked: no root"),
        (["--on-panic", "continue"], 1, 4, "time was up"),
        ([], 2, 4, "time was up"),  # a crash kernel is loaded: it continues
    ],
)
def test_what_the_guest_reports_by_pvpanic(
    arguments: list[str], event: int, status: int, words: str, command: Command, firmware: Path, scripted: Scripted
) -> None:
    plays = [*typed("[    1.0] Kernel panic - not syncing: no root\n"), port_out(0x505, bytes([event]))]
    scripted(FakeKernel(plays={0: plays}))
    result = command("run", "--firmware", firmware, "--timeout", "3", *arguments)
    assert result.status == status
    assert words in result.err


def test_words_about_a_panic_do_not_end_a_run(command: Command, firmware: Path, scripted: Scripted) -> None:
    said = "log of another machine: Kernel panic - not syncing: old news\nKernel panic - not syncing: old news\n"
    plays = [*typed(said), *(lambda run, page: time.sleep(0.1) for _ in range(25)), *typed("STILL HERE\n"), POWER_OFF]
    scripted(FakeKernel(plays={0: plays}))
    result = command("run", "--firmware", firmware)
    assert result.status == 0
    assert "STILL HERE" in result.out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "not signed"),
        (["--timeout", "9"], 2, "not signed"),
        (["--until", "Shell>"], 0, "warning: "),
        (["--disk", "{disk},ro", "--timeout", "0.2"], 4, "warning: "),
    ],
)
def test_a_kernel_that_secure_boot_refuses_is_refused_at_once(
    arguments: list[str], status: int, words: str, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    refusal = "firmware.fd enforces Secure Boot, and vmlinuz is not signed by a key of its db"
    monkeypatch.setattr(swtdx.attest.direct_boot, "kernel_refusal", lambda image, linux, name: refusal)
    kernel = scripted(FakeKernel(plays={0: PROMPT}))
    (tmp_path / "vmlinuz").write_bytes(efi_kernel())
    (tmp_path / "disk").write_bytes(bytes(4096))
    given = [each.format(disk=tmp_path / "disk") for each in arguments]
    result = command("run", "--firmware", firmware, "--kernel", tmp_path / "vmlinuz", *given)
    assert result.status == status
    assert words in result.err
    assert bool(kernel.calls) == (status != 2)
