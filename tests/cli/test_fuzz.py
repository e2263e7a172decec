# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx fuzz guest``: a fault is found and replays by the command, and each wrong use is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtdx.lying.lie import kinds
from tests.cli.conftest import Command
from tests.fuzzing.planted import BEGUN, LENGTH, PRESENT, image
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import code as counting


def snapshot_of(kernel: bytes, folder: Path, command: Command, *more: str) -> Path:
    file, made = folder / "bzImage", folder / "snapshot"
    file.write_bytes(kernel)
    result = command(
        "run", "--firmware", "none", "--kernel", file, "--memory", "64M", "--snapshot", made, "--snapshot-at", *more
    )
    assert result.status == 0, result.err
    return made


@pytest.fixture
def snapshot(tmp_path: Path, command: Command) -> Path:
    return snapshot_of(image(), tmp_path, command, BEGUN)


@pytest.mark.slow
def test_a_crash_is_found_and_replays(snapshot: Path, tmp_path: Path, command: Command) -> None:
    folder, page = tmp_path / "campaign", tmp_path / "page.html"
    crashes = tmp_path / "crash.lies"
    fuzz = ("fuzz", "guest", "--from", snapshot, "--calls", "30")
    result = command(*fuzz, "--corpus", folder, "--timeout", "8", "--json", "--html", page)
    assert result.status in (0, 3), result.err
    record = json.loads(result.out)
    assert record["runs"] > 3
    assert record["blocks"] > 3
    assert record["sites"] >= 1
    assert "<svg" in page.read_text()
    assert (folder / "swtdx-fuzz.json").is_file()
    crashes.write_text(f"# by hand\nInstruction.IO {PRESENT:#x}: R11=0x1\nInstruction.IO {LENGTH:#x}: R11=0x40\n")
    result = command(*fuzz, "--replay", crashes, "--json")
    assert result.status == 3
    assert json.loads(result.out)["kind"] == "triple fault"
    again = command("run", "--from", snapshot, "--lies-from", crashes)
    assert again.status == 3
    assert "triple fault" in again.err
    other = tmp_path / "other"
    other.mkdir()
    result = command("fuzz", "guest", "--from", crashes, "--corpus", folder)
    assert result.status == 2


def test_wrong_uses_are_one_sentence_each(snapshot: Path, tmp_path: Path, command: Command) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(snapshot.read_bytes()[:-100])
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("not a campaign")
    other = tmp_path / "other"
    other.mkdir()
    (other / "swtdx-fuzz.json").write_text('{"format": 1, "snapshot": "another"}')
    of = ("--from", snapshot)
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--from", cut), "is cut short"),
        (("--from", tmp_path / "nothing"), "cannot be read: No such file or directory"),
        ((*of, "--corpus", full), "is not the folder of a campaign"),
        ((*of, "--corpus", cut), "is not a folder"),
        ((*of, "--corpus", other), "belongs to another snapshot"),
        ((*of, "--workers", "0"), "--workers 0: at least one is needed"),
        ((*of, "--code", "0x20-0x10"), "--code 0x20-0x10: write START-END"),
        ((*of, "--check", "nothing"), "--check nothing: write MODULE:FUNCTION"),
        ((*of, "--check", "no_such_module_at_all:f"), "--check no_such_module_at_all:f: No module named"),
        ((*of, "--lies", "calls,weather"), f"there is no such kind; the kinds are {', '.join(kinds())}"),
        ((*of, "--lies", ","), "there is no such kind"),
        ((*of, "--lies", "ve"), "--lies ve: the TD has the attribute SEPT_VE_DISABLE"),
        ((), "either --from SNAPSHOT, or --kernel FILE with --snapshot-at TEXT"),
        ((*of, "--kernel", cut, "--snapshot-at", "!"), "either --from SNAPSHOT, or --kernel FILE"),
        ((*of, "--snapshot-at", "!"), "go with --kernel"),
        (("--kernel", cut), "--kernel needs --snapshot-at TEXT"),
        (("--kernel", tmp_path / "nothing", "--snapshot-at", "!"), "cannot be read: No such file or directory"),
        (("--kernel", cut, "--snapshot-at", "!", "--quiet"), f"{cut}"),
        ((*of, "--run-seconds", "0"), "--run-seconds 0: a run needs time"),
        ((*of, "--replay", tmp_path / "nothing"), "cannot be read: No such file or directory"),
        ((*of, "--html", tmp_path / "no" / "page"), f"there is no folder {tmp_path / 'no'}"),
        ((*of, "--html", tmp_path), "is a folder"),
        ((*of, "--html", snapshot), "which is read"),
        (("--kernel", cut, "--snapshot-at", "!", "--html", cut), "which is read"),
    ]
    for arguments, sentence in cases:
        if "--corpus" not in arguments:
            arguments = (*arguments, "--corpus", tmp_path / "new")
        result = command("fuzz", "guest", *arguments)
        assert result.status == 2, (arguments, result.err)
        assert sentence in result.err, result.err
        assert result.err.startswith("swtdx: "), result.err
        assert result.err.count("\n") == 1 + ("the guest is started" in result.err), result.err
        assert not (tmp_path / "new").exists(), arguments
    nothing_new = ("--code", "0x10-0x20", "--timeout", "1", "--calls", "5", "--corpus", tmp_path / "new")
    result = command("fuzz", "guest", *of, *nothing_new)
    assert result.status == 2
    assert "no coverage is possible" in result.err


@pytest.mark.slow
def test_one_command_starts_the_guest_and_goes_on_with_it(tmp_path: Path, command: Command) -> None:
    kernel, folder = tmp_path / "bzImage", tmp_path / "campaign"
    kernel.write_bytes(image("time"))
    fuzz = ("fuzz", "guest", "--kernel", kernel, "--memory", "64M", "--snapshot-at", BEGUN, "--corpus", folder)
    more = ("--calls", "20", "--lies", "time")
    result = command(*fuzz, *more, "--timeout", "4")
    assert result.status in (0, 3), result.err
    made = (folder / "guest.snapshot").stat().st_mtime_ns
    fatal = tmp_path / "fatal.lies"
    fatal.write_text("Clock: SKIP=0x7fffffffffffffff @5\n")
    result = command(*fuzz, *more, "--replay", fatal, "--json")
    assert result.status == 3, result.err
    assert json.loads(result.out)["kind"] == "triple fault"
    assert (folder / "guest.snapshot").stat().st_mtime_ns == made
    again = command("run", "--from", folder / "guest.snapshot", "--lies-from", fatal)
    assert again.status == 3
    assert "triple fault" in again.err
    kernel.write_bytes(image("acpi"))
    result = command(*fuzz, *more, "--timeout", "4")
    assert result.status == 2
    assert "is of a guest that was started otherwise" in result.err


def test_a_page_that_cannot_be_written_is_told_by_the_status(snapshot: Path, tmp_path: Path, command: Command) -> None:
    result = command(
        "fuzz", "guest", "--from", snapshot, "--corpus", tmp_path / "new", "--timeout", "1", "--html", "/dev/full"
    )
    assert result.status == 2
    assert "--html /dev/full cannot be written: No space left on device" in result.err


def test_an_ordinary_vm_has_no_host_to_distrust(tmp_path: Path, command: Command) -> None:
    made = snapshot_of(
        bzimage(kernel=bytes(0x200) + counting(td=False)), tmp_path, command, "B", "--vm-type", "default"
    )
    result = command("fuzz", "guest", "--from", made, "--corpus", tmp_path / "new")
    assert result.status == 2
    assert "is an ordinary VM" in result.err
