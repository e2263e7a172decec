# SPDX-License-Identifier: GPL-2.0-or-later
"""Outputs of commands: never onto something that is read, written or in use, and no failed write is silent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.cli.output import Outputs
from swtdx.quoting.machine_folder import report_key
from testing.uefi_image import efi_kernel
from tests.cli.conftest import Command
from tests.cli.test_run import PROMPT
from tests.vmm.fake_kernel import FakeKernel, port_out, typed

Scripted = Callable[[FakeKernel], FakeKernel]
OUTPUTS = ("--log", "--debugcon", "--json", "--trace", "--html")


@pytest.fixture
def bzimage(tmp_path: Path) -> Path:
    """A kernel in a file."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(efi_kernel())
    return path


def _direct(path: Path) -> Path:
    return path


def _symbolic(path: Path) -> Path:
    link = path.with_name("symbolic")
    link.symlink_to(path)
    return link


def _hard(path: Path) -> Path:
    link = path.with_name("hard")
    link.hardlink_to(path)
    return link


def _relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


def _dotted(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / path.name


@pytest.fixture
def descriptor() -> Callable[[Path], Path]:
    """A path by way of a descriptor that is open on the file."""

    def of(path: Path) -> Path:
        return Path(f"/dev/fd/{os.open(path, os.O_RDWR)}")

    return of


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("way", [_direct, _symbolic, _hard, _relative, _dotted])
@pytest.mark.parametrize("disk", ["", ",ro"])
def test_no_output_goes_onto_a_disk(
    option: str, way: Callable[[Path], Path], disk: str, command: Command, firmware: Path, scripted: Scripted,
    tmp_path: Path,
) -> None:  # fmt: skip
    scripted(FakeKernel(plays={0: PROMPT}))
    image = tmp_path / "disk.img"
    image.write_bytes(b"precious" * 512)
    result = command("run", "--firmware", firmware, "--disk", f"{image}{disk}", option, way(image))
    assert result.status == 2
    assert f"swtdx: {option} " in result.err
    assert "--disk" in result.err
    assert image.read_bytes() == b"precious" * 512


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("read", ["--firmware", "--kernel", "--initrd"])
def test_no_output_goes_onto_an_input(
    option: str, read: str, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path,
    bzimage: Path,
) -> None:  # fmt: skip
    scripted(FakeKernel(plays={0: PROMPT}))
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd")
    files = {"--firmware": firmware, "--kernel": bzimage, "--initrd": initrd}
    before = files[read].read_bytes()
    result = command(
        "run", "--firmware", firmware, "--kernel", bzimage, "--initrd", initrd, option, _hard(files[read])
    )  # fmt: skip
    assert result.status == 2
    assert f"swtdx: {option} " in result.err
    assert files[read].read_bytes() == before


@pytest.mark.parametrize("option", [*OUTPUTS, "--lies-to"])
@pytest.mark.parametrize("read", ["--lies-from", "--symbols", "a test key"])
def test_no_output_goes_onto_what_the_machine_is_given(
    option: str, read: str, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    """Lies, names of addresses, and the machine's test keys, which other verifiers may know already."""
    scripted(FakeKernel(plays={0: PROMPT}))
    pki = tmp_path / "pki"
    report_key(pki)
    lies, symbols = tmp_path / "lies", tmp_path / "System.map"
    lies.write_text("RDMSR 0x1b: R11=0\n")
    symbols.write_text("ffffffff81000000 T _text\n")
    files = {"--lies-from": lies, "--symbols": symbols, "a test key": pki / "report.key"}
    before = files[read].read_bytes()
    given = {"--lies-from": ["--lies-from", lies], "--symbols": ["--lint", "--symbols", symbols], "a test key": []}
    result = command(
        "run", "--firmware", firmware, "--pki", pki, *given[read], option, _hard(files[read])
    )  # fmt: skip
    assert (result.status, files[read].read_bytes()) == (2, before)
    assert f"swtdx: {option} " in result.err
    assert "which is read" in result.err


@pytest.mark.parametrize("option", ["--trace", "--json", "--html"])
@pytest.mark.parametrize("named", ["./program", "./program {file}", "./program if=virtio,file={file},ro"])
def test_no_output_of_exec_goes_onto_what_the_command_names(
    option: str, named: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "disk.img").write_text("precious")
    target = tmp_path / ("disk.img" if "file" in named else "program")
    before = target.read_bytes()
    result = command("exec", option, _hard(target), "--", *named.format(file="disk.img").split())
    assert result.status == 125  # exec's own, as of env(1)
    assert "which COMMAND names" in result.err
    assert target.read_bytes() == before


def test_an_output_through_a_descriptor_of_the_disk(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path, descriptor: Callable[[Path], Path]
) -> None:
    scripted(FakeKernel(plays={0: PROMPT}))
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    result = command("run", "--firmware", firmware, "--disk", image, "--log", descriptor(image))
    assert (result.status, image.stat().st_size) == (2, 4096)


@pytest.mark.parametrize("one", OUTPUTS)
@pytest.mark.parametrize("other", OUTPUTS)
@pytest.mark.parametrize("exists", [False, True])
def test_two_outputs_are_two_files(
    one: str, other: str, exists: bool, command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    if one == other:
        pytest.skip("given twice, an option's last value counts")
    scripted(FakeKernel(plays={0: PROMPT}))
    path = tmp_path / "out"
    if exists:
        path.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(path)
    result = command("run", "--firmware", firmware, one, path, other, link)
    assert result.status == 2
    assert "is the same file as that of" in result.err
    assert path.exists() == exists
    assert not exists or path.read_text() == "precious"


def test_null_a_pipe_and_a_terminal_may_be_shared(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    scripted(FakeKernel(plays={0: PROMPT}))
    read_end, write_end = os.pipe()
    null = [each for option in OUTPUTS for each in (option, "/dev/null")]
    assert command("run", "--firmware", firmware, *null).status == 0
    assert Path("/dev/null").is_char_device()
    scripted(FakeKernel(plays={0: [port_out(0x402, b"D"), *PROMPT]}))
    pipe = f"/dev/fd/{write_end}"
    assert command("run", "--firmware", firmware, "--log", pipe, "--debugcon", pipe, "--json", pipe).status == 0
    got = os.read(read_end, 1 << 20)
    assert b"Shell>" in got
    assert b'"outcome": "shell-prompt"' in got
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("lock", ["flock", "OFD"])
def test_a_file_that_another_process_has_locked_is_in_use(lock: str, tmp_path: Path) -> None:
    """As swtdx and QEMU lock disk images."""
    path = tmp_path / "disk.img"
    path.write_text("precious")
    script = (
        "import fcntl, os, struct, sys; f = open(sys.argv[1], 'r+b')\n"
        "if sys.argv[2] == 'flock': fcntl.flock(f, fcntl.LOCK_SH)\n"
        "else: fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack('@hhqqi4x', fcntl.F_RDLCK, 0, 100, 1, 0))\n"
        "print(); sys.stdout.flush(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with Outputs() as outputs, pytest.raises(Exception, match="in use"):
            outputs.open("--log", path)
        other.communicate()
    assert path.read_text() == "precious"


def test_outputs_are_refused_before_anything_is_built_or_emptied(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    kernel = scripted(FakeKernel(plays={0: PROMPT}))
    log, record = tmp_path / "log", tmp_path / "record"
    log.write_text("precious")
    result = command(
        "run", "--firmware", firmware, "--log", log, "--json", record, "--trace", tmp_path / "absent" / "trace"
    )
    assert result.status == 2
    assert "there is no folder" in result.err
    assert log.read_text() == "precious"
    assert not record.exists()
    assert kernel.calls == []


def test_a_launch_that_fails_leaves_no_empty_files(
    command: Command, firmware: Path, scripted: Scripted, tmp_path: Path
) -> None:
    scripted(FakeKernel()).refuse["KVM_TDX_FINALIZE_VM"] = 5
    result = command(
        "run", "--firmware", firmware, "--log", tmp_path / "log", "--json", tmp_path / "j", "--html", tmp_path / "h"
    )
    assert result.status == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == [firmware.name]


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_full_disk_is_reported_once_and_the_run_goes_on(
    option: str, command: Command, firmware: Path, scripted: Scripted
) -> None:
    plays = [*(port_out(0x402, b"D") for _ in range(3)), *typed("one\ntwo\n"), *PROMPT]
    scripted(FakeKernel(plays={0: plays}))
    result = command("run", "--firmware", firmware, option, "/dev/full")
    assert result.status == 2
    assert "UEFI shell prompt" in result.err
    assert result.err.count("No space left on device") == 1
    assert f"swtdx: {option} /dev/full cannot be written" in result.err
    assert "Traceback" not in result.err
    assert "one\ntwo\n" in result.out


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_file_size_limit_is_a_full_disk(option: str, firmware: Path, tmp_path: Path) -> None:
    """setrlimit(2): the write fails with EFBIG if SIGXFSZ is ignored."""
    root = Path(__file__).parents[2]
    report_key(Path(os.environ["SWTDX_PKI"]))  # the limit counts for the machine's key, too, where there is none yet
    script = (
        f"import resource, sys; sys.path.insert(0, {str(root)!r})\n"
        "import swtdx.cli.machine_parts, struct\n"
        "from tests.vmm.fake_kernel import FakeKernel, port_out, typed\n"
        "plays = [*(port_out(0x402, b'D') for _ in range(20)), *typed('0123456789\\n' * 4), "
        "port_out(0x604, struct.pack('<H', 0x2000), 2)]\n"
        "swtdx.cli.machine_parts.kernel_named = lambda *a, **k: FakeKernel(plays={0: plays})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        "from swtdx.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--firmware", str(firmware), option, str(tmp_path / "out")],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # of 16 bytes it would be the last of the module

    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("File too large") == 1
    assert "powered off" in done.stderr


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record"
    path.write_text("old")
    path.chmod(0o640)
    real = os.write
    with Outputs() as outputs:
        output = outputs.open("--json", path)

        def full(descriptor: int, data: bytes) -> int:
            if descriptor > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            output.replace(b"new")
        assert outputs.failed
    assert path.read_text() == "old"
    with Outputs() as outputs:
        outputs.open("--json", path).replace(b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["record"]


def test_a_file_that_could_not_be_written_at_all_is_not_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Outputs() as outputs:
        output = outputs.open("--record", tmp_path / "record")
        outputs.begin()
        monkeypatch.setattr("swtdx.cli.output.write_all", full)
        output.replace(b"new")
    assert outputs.failed
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_without_a_reader_is_waited_for_and_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []

    def reader() -> None:
        while "waiting" not in capfd.readouterr().err:
            time.sleep(0.01)
        read.append(pipe.read_bytes())

    thread = threading.Thread(target=reader)
    thread.start()
    with Outputs() as outputs:
        outputs.open("--record", pipe).replace(b"all of it")
    thread.join()
    assert read == [b"all of it"]


def test_a_pipe_that_is_read_is_not_talked_about(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        while not Path(f"/proc/{reader.pid}/comm").read_text().startswith("cat"):
            time.sleep(0.01)
        with Outputs() as outputs:
            output = outputs.open("--record", pipe)
            assert os.get_blocking(output.descriptor)
            output.replace(b"all of it")
        assert reader.communicate()[0] == b"all of it"
    said = capfd.readouterr().err
    assert said in ("", f"swtdx: --record {pipe} is a pipe that no program reads: waiting for one\n")  # cat was slow


def test_a_record_through_a_symbolic_link_replaces_the_file_not_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    with Outputs() as outputs:
        outputs.open("--json", link).replace(b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_all_names_of_a_hard_linked_record_show_it(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_text("a much longer old record")
    other = _hard(one)
    with Outputs() as outputs:
        outputs.open("--json", one).replace(b"new")
    assert (one.read_text(), other.read_text()) == ("new", "new")


def test_a_pipe_that_is_full_and_non_blocking_loses_nothing(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    fcntl.fcntl(write_end, 1031, 4096)  # F_SETPIPE_SZ
    data = bytes(range(256)) * 4096
    with subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.buffer.read()))"], stdin=read_end,
                          stdout=subprocess.PIPE) as reader:  # fmt: skip
        os.close(read_end)
        with Outputs() as outputs:
            output = outputs.open("--log", Path(f"/dev/fd/{write_end}"))
            output.write(data)
            assert output.problem is None
        os.close(write_end)
        assert reader.communicate()[0] == f"{len(data)}\n".encode()


@pytest.mark.parametrize("command_line", [["report", "html", "{in}", "-o", "{out}"]])
def test_a_page_is_not_written_over_its_trace(command_line: list[str], command: Command, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps({"kind": "trace", "version": 1, "swtdx": "0", "command": []}) + "\n")
    before = trace.read_bytes()
    names = {"in": trace, "out": _hard(trace)}
    result = command(*(each.format(**names) for each in command_line))
    assert result.status == 1
    assert "is the same file as" in result.err
    assert trace.read_bytes() == before


def test_a_picture_is_not_written_over_its_image(command: Command, firmware: Path) -> None:
    before = firmware.read_bytes()
    result = command("inspect", firmware, "--svg", _hard(firmware))
    assert result.status == 1
    assert firmware.read_bytes() == before


def test_a_command_that_refuses_its_input_leaves_no_output(command: Command, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    assert command("report", "html", tmp_path / "junk", "-o", tmp_path / "page").status == 2
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("arguments", [["inspect", "{}", "--svg", "/dev/full"]])
def test_a_result_on_a_full_disk_is_a_failure(arguments: list[str], command: Command, firmware: Path) -> None:
    result = command(*(each.format(firmware) for each in arguments))
    assert result.status == 1
    assert result.err.count("No space left on device") == 1
