# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run --gdb``: what is refused and how, and a real gdb on the guest of `tests.vmm.gdb_guest`."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swtdx.cpu.platform import host_features
from tests.cli.conftest import Command
from tests.vmm.gdb_guest import COUNTER, STOP, VECTOR, build

KINDS = {"VM": ("--vm-type", "default"), "debug TD": ("--debug-td",)}
GDB = shutil.which("gdb")
needs_gdb = pytest.mark.skipif(GDB is None, reason="gdb is not installed: no real debugger has been at the stub")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gdb", ":0"], ["production TD", "TD_NON_DEBUG", "--debug-td", "--vm-type default"]),
        (["--gdb", ":0", "--attributes", "0x10000000"], ["production TD"]),
        (["--gdb", ":0", "--debug-td", "--kvm", "host"], ["no ioctl for TDH.MEM.RD"]),
        (["--gdb-wait"], ["--gdb-wait needs --gdb ADDRESS"]),
        (["--gdb", "1234", "--debug-td"], ["'1234' is not a valid address", ":1234"]),
        (["--gdb", ":99999", "--debug-td"], ["is not a valid address"]),
        (
            ["--gdb", "/no/such/folder/socket", "--debug-td"],
            ["cannot listen on /no/such/folder/socket", "No such file"],
        ),
    ],
)
def test_what_cannot_be_debugged_is_refused_in_one_sentence(
    command: Command, firmware: Path, arguments: list[str], words: list[str]
) -> None:
    result = command("run", "--firmware", firmware, "--quiet", *arguments)
    assert result.status == 2
    assert result.err.startswith("swtdx: --gdb")
    assert len(result.err.splitlines()) == 1
    for word in words:
        assert word in result.err


def test_a_port_in_use_and_a_path_that_exists_are_refused(command: Command, firmware: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command("run", "--firmware", firmware, "--quiet", "--debug-td", "--gdb", f":{port}")
    assert result.status == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.err
    path = tmp_path / "mine"
    path.write_text("keep me")
    result = command("run", "--firmware", firmware, "--quiet", "--debug-td", "--gdb", path)
    assert result.status == 2
    assert path.read_text() == "keep me"


@contextmanager
def running(kind: str, where: str, folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and what its debugger is told to connect to."""
    built = build(td=kind != "VM")
    image, elf = folder / "guest.fd", folder / "guest.elf"
    image.write_bytes(built.image)
    elf.write_bytes(built.elf)
    arguments = ["run", "--firmware", str(image), "--memory", "64M", "--timeout", "60", "--gdb", where, *KINDS[kind]]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("swtdx"), *arguments, *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            found = re.search(r"target remote (\S+?)(,|$)", line)
            if found:
                yield process, found[1]
                break
        else:
            raise AssertionError(f"it never listened: {said}")
    finally:
        process.kill()
        process.communicate()


def gdb(folder: Path, *commands: str) -> str:
    """Batch mode, each command's output behind the last one's."""
    assert GDB is not None
    script = folder / "script.gdb"
    script.write_text("\n".join(("set pagination off", "set confirm off", *commands)))
    done = subprocess.run(
        [GDB, "-nx", "-batch", "-x", script, folder / "guest.elf"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "warning" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@needs_gdb
@pytest.mark.parametrize("kind", KINDS)
def test_gdb_breaks_steps_watches_and_changes(kind: str, tmp_path: Path) -> None:
    at = build(td=kind != "VM").symbols
    with running(kind, str(tmp_path / "socket"), tmp_path, "--gdb-wait") as (process, where):
        said = gdb(
            tmp_path,
            f"target remote {where}",
            "hbreak loop",
            "continue",
            "delete",
            "break work",
            "continue",
            "x/2i $rip",
            "info registers cr0 efer fs_base eflags",
            "stepi",
            "delete",
            f"watch *(long*){COUNTER:#x}",
            "continue",
            f"print *(long*){COUNTER:#x}",
            "continue",
            "info threads",
            "delete",
            "monitor info",
            "print $xmm0.uint128",
            f"set var *(long*){STOP:#x} = 1",
            "continue",
        )
        status = process.wait(30)
    assert status == 0, said
    assert f"Breakpoint 2, {at['work']:#018x} in work ()" in said
    assert re.search(r"=> 0x[0-9a-f]+ <work>:\s+mov +0x800000,%rax", said)
    assert re.search(r"cr0 +0x[0-9a-f]+ +\[ PE .*PG \]", said)
    assert re.search(r"efer +0xd?[0-9a-f]*01 +\[ SCE LME LMA|efer +0x500 +\[ LME LMA", said)
    assert "in count ()" in said, "one step behind work"
    assert "Hardware watchpoint 3" in said
    assert "Old value = 0\nNew value = 1\n" in said
    assert "in counted ()" in said
    assert "$1 = 1\n" in said
    assert "Old value = 1\nNew value = 2\n" in said
    assert re.search(r'Thread 1 +\(vCPU 0\)|Thread 1 "vCPU 0"|Thread 1', said)
    assert kind in said
    assert "exited normally" in said
    assert not (tmp_path / "socket").exists()


@needs_gdb
@pytest.mark.skipif("avx2" not in host_features(), reason="this processor has no AVX2: no YMM registers")
@pytest.mark.parametrize("kind", KINDS)
def test_gdb_joins_the_halves_of_ymm_registers(kind: str, tmp_path: Path) -> None:
    """`$ymm0` is gdb's own, of xmm0 and of what org.gnu.gdb.i386.avx describes (gdb manual, G.5.5)."""
    with running(kind, str(tmp_path / "socket"), tmp_path, "--gdb-wait") as (_, where):
        said = gdb(
            tmp_path,
            f"target remote {where}",
            "hbreak loop",
            "continue",
            "set var $rip = (long)&vectors",
            "delete",
            "hbreak loaded",
            "continue",
            "print $ymm0.v8_int32",
            "set var $ymm1.v8_int32 = {10, 20, 30, 40, 50, 60, 70, 80}",
            "set var $ymm2.v4_int64[3] = 0x100000002",
            "print $ymm2.v8_int32",
            "hbreak stored",
            "continue",
            f"print *(int*){VECTOR:#x}@8",
            "print $mxcsr",
            "print $xcr0",
            "kill",
        )
    assert "$1 = {1, 2, 3, 4, 5, 6, 7, 8}\n" in said, said
    assert "$2 = {0, 0, 0, 0, 0, 0, 2, 1}\n" in said
    assert "$3 = {10, 20, 30, 40, 50, 60, 72, 81}\n" in said
    assert re.search(r"\$4 = \[ IM DM ZM OM UM PM \]", said)
    assert re.search(r"\$5 = \[ X87 SSE AVX \]", said)


@needs_gdb
def test_gdb_finds_a_running_machine_standing_and_leaves_it_running(tmp_path: Path) -> None:
    with running("VM", ":0", tmp_path) as (process, where):
        assert where.startswith("127.0.0.1:")
        look = (f"target remote {where}", f"print *(long*){COUNTER:#x}", "detach")
        first, second = (int(re.search(r"\$1 = (\d+)", gdb(tmp_path, *look))[1]) for _ in range(2))  # type: ignore[index]
        assert second > first > 0
        assert "killed" in gdb(tmp_path, f"target remote {where}", "kill")
        assert process.wait(30) == 0


@needs_gdb
def test_gdb_stops_a_guest_by_an_interrupt(tmp_path: Path) -> None:
    with running("debug TD", ":0", tmp_path, "--gdb-wait") as (_, where):
        said = gdb(
            tmp_path,
            f"target remote {where}",
            "python import threading; threading.Timer(1.5, lambda: gdb.post_event("
            "lambda: gdb.execute('interrupt'))).start()",
            "continue",
            "print $rip >= (long)&loop && $rip < (long)&loop + 0x200",
            "detach",
        )
    assert "SIGINT" in said
    assert "$1 = 1\n" in said
