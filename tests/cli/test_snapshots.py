# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run --snapshot-at``, ``--snapshot`` and ``--from``: what they do, and each wrong use in one sentence."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import LETTERS, after, code


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The counting guest, as an ordinary VM starts it."""
    file = tmp_path / "bzImage"
    file.write_bytes(bzimage(kernel=bytes(0x200) + code(td=False)))
    return file


def machine(kernel: Path, *more: str | Path) -> list[str | Path]:
    return ["run", "--firmware", "none", "--kernel", kernel, "--vm-type", "default", "--memory", "64M", *more]


def letters(text: str) -> bytes:
    return bytes(byte for byte in text.encode() if byte in LETTERS)


@pytest.fixture
def kept(kernel: Path, tmp_path: Path, command: Command) -> Path:
    file = tmp_path / "kept"
    result = command(*machine(kernel, "--snapshot-at", "FGH", "--snapshot", file))
    assert result.status == 0, result.err
    assert f"snapshot: {file}" in result.err
    assert "the console showed 'FGH': the machine is kept" in result.err
    assert letters(result.out) == b"BCDEFGH"
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    return file


def test_a_run_continues_from_a_file_as_often_as_wanted(kept: Path, kernel: Path, command: Command) -> None:
    kernel.unlink()  # it is in the file
    for _ in range(2):
        result = command("run", "--from", kept, "--until", "NOP")
        assert result.status == 0, result.err
        assert f"the VM continues from {kept}" in result.err
        assert letters(result.out) == after(b"H", 8)


def test_a_run_that_ends_otherwise_goes_beyond_its_snapshot_and_another_is_made_of_the_second(
    kernel: Path, tmp_path: Path, command: Command
) -> None:
    first, second, record = tmp_path / "first", tmp_path / "second", tmp_path / "json"
    result = command(*machine(kernel, "--snapshot-at", "BC", "--snapshot", first, "--until", "JK"))
    assert letters(result.out) == b"BCDEFGHIJK"
    result = command("run", "--from", first, "--snapshot-at", "EF", "--snapshot", second, "--json", record)
    assert (letters(result.out), result.status) == (b"DEF", 0), result.err
    assert json.loads(record.read_text())["memory"] == 64 << 20
    last = command("run", "--from", second, "--until", "GH")
    assert letters(last.out) == b"GH", last.err


def test_the_run_that_continues_is_traced_and_logged_as_any(kept: Path, tmp_path: Path, command: Command) -> None:
    trace, log = tmp_path / "trace", tmp_path / "log"
    result = command("run", "--from", kept, "--until", "KL", "--trace", trace, "--log", log)
    assert result.status == 0, result.err
    assert letters(log.read_text()) == b"IJKL"
    assert '"KVM_RUN"' in trace.read_text()


def test_a_text_that_does_not_come_leaves_no_file(kernel: Path, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "never"
    result = command(*machine(kernel, "--snapshot-at", "never", "--snapshot", file, "--until", "DE"))
    assert result.status == 0
    assert "swtdx: no snapshot was made: the console never showed 'never'\n" in result.err
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--snapshot-at", "x"], "--snapshot-at TEXT and --snapshot FILE belong together"),
        (["--snapshot", "{tmp}/x"], "--snapshot-at TEXT and --snapshot FILE belong together"),
        (["--snapshot-at", "", "--snapshot", "{tmp}/x"], "--snapshot-at needs a text to wait for"),
        (["--snapshot-at", "x", "--snapshot", "{tmp}/x", "--gdb", ":0"], "--gdb cannot be used together"),
        (["--snapshot-at", "x", "--snapshot", "{tmp}/x", "--kvm", "host"], "the host's kernel keeps no machines"),
        (["--from", "{tmp}/missing"], "missing cannot be read: No such file"),
        (["--from", "{tmp}"], "cannot be read: Is a directory"),
        (["--from", "/dev/null"], "/dev/null is not a snapshot of swtdx"),
        (["--from", "{tmp}/text"], "text is not a snapshot of swtdx"),
        (["--from", "{tmp}/text", "--memory", "1G"], "--memory and --from contradict each other"),
        (["--from", "{tmp}/text", "--kernel", "x"], "--kernel and --from contradict each other"),
        (["--from", "{tmp}/text", "--rng"], "--rng and --from contradict each other"),
        (["--from", "{tmp}/text", "--debug-td"], "--debug-td and --from contradict each other"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "text").write_text("a file of another kind\n")
    result = command("run", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("swtdx: ")
    assert result.err.count("\n") == 1
    assert sentence in result.err
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_damaged_or_of_another_version_is_refused_in_one_sentence(
    kept: Path, tmp_path: Path, command: Command
) -> None:
    contents = kept.read_bytes()
    cases = {
        "is cut short": contents[:-1],
        "is damaged": contents[:-1] + bytes([contents[-1] ^ 1]),
        "was made by swtdx 9.9, and this is": re.sub(rb"\nversion .*\n", b"\nversion 9.9\n", contents, count=1),
    }
    for words, data in cases.items():
        file = tmp_path / "bad"
        file.write_bytes(data)
        result = command("run", "--from", file)
        assert result.status == 2
        assert words in result.err
        assert result.err.count("\n") == 1


@pytest.mark.parametrize(("at", "until"), [("BCD", "BCD"), ("BCD", "CD"), ("CD", "BCD")])
def test_a_run_that_ends_where_it_is_to_be_kept_is_kept(
    at: str, until: str, kernel: Path, tmp_path: Path, command: Command
) -> None:
    file = tmp_path / "kept"
    result = command(*machine(kernel, "--snapshot-at", at, "--snapshot", file, "--until", until))
    assert result.status == 0, result.err
    result = command("run", "--from", file, "--until", "FGH")
    assert result.status == 0, result.err
    assert letters(result.out) in (b"EFGH", b"FGH")


def test_a_disk_that_can_be_written_is_refused_and_one_that_cannot_is_given_again(
    kernel: Path, tmp_path: Path, command: Command
) -> None:
    disk, file = tmp_path / "disk.img", tmp_path / "kept"
    disk.write_bytes(bytes(1 << 20))
    keep: list[str | Path] = ["--snapshot-at", "CD", "--snapshot", file]
    result = command(*machine(kernel, "--disk", disk, *keep))
    assert result.status == 2
    assert "--snapshot does not keep what is written to a disk: --disk" in result.err
    assert not file.exists()
    assert command(*machine(kernel, "--disk", f"{disk},ro", *keep)).status == 0
    result = command("run", "--from", file)
    assert "give the disks that the machine in it has: --disk disk.img,ro" in result.err
    result = command("run", "--from", file, "--disk", disk)
    assert result.status == 2
    assert "has it read-only" in result.err
    result = command("run", "--from", file, "--disk", f"{disk},ro", "--until", "EF")
    assert result.status == 0, result.err
    assert letters(result.out) == b"EF"
    disk.write_bytes(bytes(1 << 20))  # the same at another time
    copy = tmp_path / "copy.img"
    copy.write_bytes(bytes(1 << 20))
    for same in (disk, copy):
        assert command("run", "--from", file, "--disk", f"{same},ro", "--until", "EF").status == 0
    disk.write_bytes(bytes((1 << 20) - 1) + b"x")
    result = command("run", "--from", file, "--disk", f"{disk},ro", "--until", "EF")
    assert result.status == 2
    assert "has other contents than disk.img had when the machine in" in result.err
    assert result.err.count("\n") == 1


def test_what_is_to_fail_counts_from_the_snapshot_on(kept: Path, command: Command) -> None:
    result = command(
        *("run", "--from", kept, "--until", "NOP"),
        *("--inject", "KVM_CREATE_VM: EMFILE", "--inject", "KVM_RUN: EFAULT @3"),
    )
    assert result.status == 1
    assert "KVM_RUN: EFAULT" in result.err
    assert "injected KVM_CREATE_VM: EMFILE: never called\n" in result.err
    assert "injected KVM_RUN: EFAULT @3: 1 of 3 calls failed\n" in result.err


def test_a_seamcall_fails_after_the_snapshot(tmp_path: Path, command: Command) -> None:
    kernel, file = tmp_path / "bzImage", tmp_path / "kept"
    kernel.write_bytes(bzimage(kernel=bytes(0x200) + code(td=True)))
    made = ["run", "--firmware", "none", "--kernel", kernel, "--memory", "64M"]
    assert command(*made, "--snapshot-at", "FGH", "--snapshot", file).status == 0
    result = command(
        *("run", "--from", file, "--until", "NOP"),
        *("--inject", "TDH.SYS.INIT: SYS_BUSY", "--inject", "TDH.MNG.INIT: TD_FATAL"),
        *("--inject", "TDH.VP.ENTER: TD_FATAL @5"),
    )
    assert result.status == 1
    assert "KVM could not go on with vCPU 0: internal error 4 (0xe000060400000000, 0x0)" in result.err
    assert "injected TDH.SYS.INIT: SYS_BUSY: never called\n" in result.err
    assert "injected TDH.MNG.INIT: TD_FATAL: never called\n" in result.err
    assert "injected TDH.VP.ENTER: TD_FATAL @5: 1 of 5 calls failed\n" in result.err
