# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees on a first day: lines that fit, help in parts, a note where nothing would be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.cli.run_record import _fitted
from swtdx.cli.trace import Line
from swtdx.image.linux_image import LinuxImageError, parse
from swtdx.trace.event import Ioctl
from testing.uefi_image import efi_kernel, unified_image
from tests.cli.conftest import Command
from tests.vmm.fake_kernel import FakeKernel

DIGEST = "0123456789ab" * 8


def test_registers_and_notes_fit_a_terminal() -> None:
    note = "this firmware passes RBP in TDVMCALLs. Linux 6.16 and later create TDs with NO_RBP_MOD, where it fails"
    for width in (60, 80, 100):
        assert _fitted(DIGEST, width) == [DIGEST[:48], DIGEST[48:]]
        lines = _fitted(note, width)
        assert " ".join(lines) == note
        assert all(len(line) <= width - 9 for line in lines)
    assert _fitted(DIGEST, 120) == [DIGEST]
    assert _fitted(note, None) == [note]


@pytest.mark.parametrize("panel", ["Guest", "Devices", "End of the run", "Output", "Trust Domain", "Debugging"])
def test_the_help_of_run_comes_in_parts(command: Command, monkeypatch: pytest.MonkeyPatch, panel: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = command("run", "--help").out
    assert f"─ {panel} ─" in text
    assert "Ctrl-A X ends the run." in " ".join(text.split())
    assert "<str>" not in text
    assert "<path>" not in text


@pytest.mark.parametrize(
    ("append", "noted"),
    [
        ([], True),
        (["--append", "quiet"], True),
        (["--append", "console=ttyS0"], False),
        (["--append", "x console=hvc0"], False),
    ],
)
def test_a_kernel_without_a_console_is_noted_before_the_run(
    command: Command, firmware: Path, tmp_path: Path, append: list[str], noted: bool
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(efi_kernel())
    done = command("run", "--firmware", firmware, "--kernel", kernel, *append, "--disk", tmp_path / "absent")
    assert done.status == 2
    assert ("without console=ttyS0" in done.err) == noted


def test_a_unified_kernel_image_brings_its_command_line(command: Command, firmware: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "linux.efi"
    kernel.write_bytes(unified_image((".linux", efi_kernel()), (".cmdline", b"quiet"), version="258", protocol=b""))
    done = command("run", "--firmware", firmware, "--kernel", kernel, "--disk", tmp_path / "absent")
    assert "without console=" not in done.err


def test_an_elf_kernel_is_answered_with_the_right_file() -> None:
    with pytest.raises(LinuxImageError, match=r"is an ELF file .* arch/x86/boot/bzImage"):
        parse(b"\x7fELF" + bytes(4096), "vmlinux")


def test_a_trace_names_the_errno_of_calls_that_failed() -> None:
    line = Line()
    for errno in ("", "E2BIG", "E2BIG"):
        line.add(Ioctl("KVM_TDX_CAPABILITIES", 0, 10, 1, {}, errno=errno))
    assert (line.failed, line.errors) == (2, {"E2BIG": 2})


def test_a_debug_port_that_stays_silent_is_told(
    command: Command, firmware: Path, tmp_path: Path, scripted: object
) -> None:
    assert callable(scripted)
    scripted(FakeKernel())
    done = command("run", "--firmware", firmware, "--debugcon", tmp_path / "debug.log", "--timeout", "0.1")
    assert "the firmware wrote nothing to --debugcon" in done.err
