# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard streams that are closed, full or without a reader: no traceback, no silence, and a status that tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SWTDX = f"{sys.executable} -c 'from swtdx.cli import main; main()'"
FAKE = f"""
import struct, sys; sys.path.insert(0, {str(ROOT)!r})
import swtdx.cli.machine_parts
from tests.vmm.fake_kernel import FakeKernel, port_in, port_out, typed
plays = [*typed("one\\ntwo\\n" * 4), port_out(0x604, struct.pack("<H", 0x2000), 2)]
swtdx.cli.machine_parts.kernel_named = lambda *a, **k: FakeKernel(plays={{0: plays}})
from swtdx.cli import main; main()
"""


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell; stdin is /dev/null unless the line says otherwise."""
    done = subprocess.run(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def run(firmware: Path, tmp_path: Path) -> str:
    """A command line of ``swtdx run`` over a scripted kernel whose guest prints eight lines and powers off."""
    script = tmp_path / "scripted.py"
    script.write_text(FAKE)
    return f"{sys.executable} {script} run --firmware {firmware}"


def test_a_closed_stdin_is_no_terminal(run: str) -> None:
    done = shell(f"{run} <&-")
    assert done.returncode == 0
    assert "powered off" in done.stderr
    assert done.stdout.count("two\n") == 4


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("quiet", ["", "-q"])
def test_a_run_with_closed_streams_runs(run: str, closed: str, quiet: str, tmp_path: Path) -> None:
    """And nothing that is printed goes into a file that got the number of a stream."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    done = shell(f"{run} {quiet} --disk {disk} --log {tmp_path}/log --json {tmp_path}/json {closed}")
    assert done.returncode == 0
    assert disk.read_bytes() == bytes(4096)
    assert (tmp_path / "log").read_text() == "one\ntwo\n" * 4
    assert (tmp_path / "json").read_text().startswith("{")
    if closed in (">&-", "<&- >&-"):
        assert done.stderr.count("standard output is closed") == 1


def test_a_full_stdout_is_reported_once_and_the_run_goes_on(run: str, tmp_path: Path) -> None:
    done = shell(f"{run} --log {tmp_path}/log >/dev/full")
    assert done.returncode == 2
    assert "the guest powered off" in done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert (tmp_path / "log").read_text() == "one\ntwo\n" * 4


def test_a_full_stderr_does_not_end_a_run(run: str) -> None:
    done = shell(f"{run} 2>/dev/full")
    assert done.returncode == 0
    assert done.stdout.count("two\n") == 4


def test_a_reader_that_leaves_ends_the_run(run: str) -> None:
    done = shell(f"set -o pipefail; {run} --timeout 20 | head -n 1")
    assert done.returncode in (0, 130)  # 0: the guest was quicker
    assert done.stdout == "one\n"


RESULTS = [
    "--help",
    "--version",
    "run --help",
    "seamcall list",
    "seamcall show TDH.MNG.INIT --json",
    "explain OPERAND_BUSY",
    "explain OPERAND_BUSY --json",
    "inspect {}",
    "measure {}",
    "completion bash",
]


@pytest.mark.parametrize("arguments", RESULTS)
@pytest.mark.parametrize(("where", "words"), [(">/dev/full", "No space left on device"), (">&-", "is closed")])
def test_a_result_that_cannot_be_printed_is_a_failure(arguments: str, where: str, words: str, firmware: Path) -> None:
    done = shell(f"{SWTDX} {arguments.format(firmware)} {where}")
    assert done.returncode != 0
    assert done.stderr.count("standard output") == 1
    assert words in done.stderr


@pytest.mark.parametrize("arguments", RESULTS)
def test_a_result_to_head_ends_quietly(arguments: str, firmware: Path) -> None:
    done = shell(f"{SWTDX} {arguments.format(firmware)} | head -n 0")
    assert done.stderr in ("", f"swtdx: firmware {firmware} (--firmware)\n")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_result_needs_only_stdout(closed: str, firmware: Path) -> None:
    done = shell(f"{SWTDX} measure {firmware} {closed}")
    assert done.returncode == 0
    assert len(done.stdout.strip()) == 96


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_a_terminal_without_unicode_gets_escapes(locale: str, tmp_path: Path, firmware: Path) -> None:
    name = tmp_path / "\N{SNOWMAN}.fd"
    name.write_bytes(firmware.read_bytes())
    done = shell(f"LC_ALL={locale} PYTHONIOENCODING=ascii {SWTDX} inspect '{name}'")
    assert done.returncode == 0
    assert r"\u2603.fd" in done.stdout


def test_a_full_disk_under_a_redirected_stdout(run: str, tmp_path: Path) -> None:
    """A file size limit, as a quota or a full disk: EFBIG in the middle of a line."""
    done = shell(f"ulimit -f 0; {run} > {tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.count("File too large") == 1


def test_output_onto_a_redirected_stream_is_refused(run: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(bytes(4096))
    for line in (
        f"{run} --log {path} >> {path}",
        f"{run} --json {path} 2>> {path}",
        f"{run} --log /dev/stdout >> {path}",
        f"{run} --disk {path} >> {path}",
        f"{run} --disk {path} 2>> {path}",
        f"{run} --trace {path} < {path}",
        f"{run} --disk {path} --log /dev/fd/7 7<>{path}",
        f"{run} --disk {path} --log /proc/self/fd/7 7<>{path}",
    ):
        assert shell(line).returncode == 2, line
        assert path.read_bytes()[:4096] == bytes(4096)
