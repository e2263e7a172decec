# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx replay-run --gdb``: breakpoints, steps and ways back, none of which the guest can see; and a real gdb."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_replay_run import ALPHABET, kernel_of
from tests.fuzzing.planted import LENGTH, PRESENT, image
from tests.fuzzing.planted import code as planted_code
from tests.machine.counting_guest import code
from tests.vmm.gdb_guest import Client

pytestmark = pytest.mark.slow

ENTRY = 0x100_0200  # where tests.image.test_linux_image.bzimage wants to be, behind its header
AGAIN = ENTRY + 2  # xor ebx, ebx
COUNTER = ENTRY + 0x1000
LOOP = 0x4000  # times, for each letter
KINDS = {"vm": ("--vm-type", "default"), "td": ("--debug-td",)}
GDB = shutil.which("gdb")
SWTDX = Path(sys.executable).with_name("swtdx")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def record(kind: str, tmp_path: Path, command: Command) -> Path:
    file = tmp_path / "record"
    result = command(
        *("run", "--firmware", "none", "--kernel", kernel_of(tmp_path, kind), "--memory", "64M", *KINDS[kind]),
        *("--until", ALPHABET * 2, "--record", file),
    )
    assert result.status == 0, result.err
    file.with_suffix(".out").write_text(result.out)
    return file


@contextmanager
def replaying(record: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and what a debugger connects to."""
    process = subprocess.Popen(
        [SWTDX, "replay-run", record, "--gdb", ":0", "--gdb-wait"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"target remote (\S+?)(,|$)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("it never listened")
    finally:
        process.kill()
        process.communicate()


def out_of(kind: str) -> int:
    """The address of the loop's last instruction, jmp again; the next is a jump over what is between code and data."""
    return ENTRY + code(td=kind == "td").index(b"\xe9") - 2


def test_a_debugger_stops_a_replay_steps_and_goes_back_and_it_ends_as_recorded(kind: str, record: Path) -> None:
    with replaying(record) as (process, where):
        client = Client(where)
        client.socket.settimeout(200)
        features = client.ask(b"qSupported")
        assert b"ReverseStep+" in features
        assert b"ReverseContinue+" in features
        assert client.ask(b"bs").startswith(b"T05thread:01;replaylog:begin;"), "it is at the beginning"
        place = out_of(kind)
        assert client.ask(b"Z0,%x,1" % place) == b"OK"
        before = client.memory(place)
        seen = []
        for _ in range(3):
            assert client.ask(b"c") == b"T05thread:01;swbreak:;"
            registers = client.registers()
            seen.append((registers["rip"], registers["rbx"], client.memory(place)))
            client.ask(b"s")
        assert seen == [(place, LOOP * times, before) for times in (1, 2, 3)]
        assert client.registers()["rip"] == AGAIN, "a step behind the jump"
        assert client.ask(b"bs") == b"T05thread:01;"
        assert client.registers()["rip"] == place
        assert client.ask(b"bc") == b"T05thread:01;swbreak:;"
        assert (client.registers()["rip"], client.registers()["rbx"]) == (place, LOOP * 2)
        assert client.ask(b"bc") == b"T05thread:01;swbreak:;"
        assert client.registers()["rbx"] == LOOP
        first = client.registers()
        assert client.ask(b"bc").startswith(b"T05thread:01;replaylog:begin;")
        assert client.ask(b"c") == b"T05thread:01;swbreak:;"
        assert client.registers() == first
        assert client.ask(b"z0,%x,1" % place) == b"OK"
        assert client.ask(b"M%x,1:cc" % place).startswith(b"E"), "what is replayed is not changed"
        assert client.set_register("rax", 1).startswith(b"E")
        assert client.ask(b"c") == b"T05thread:01;replaylog:end;"
        last = client.registers()["rip"]
        assert client.ask(b"bs") == b"T05thread:01;"
        assert client.ask(b"s") == b"T05thread:01;"
        assert client.registers()["rip"] == last
        client.ask(b"D")
        client.close()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "the recorded run ended here" in err
    # What was printed before it went back is not printed again.
    assert out == record.with_suffix(".out").read_text()


def test_the_lies_and_failed_calls_of_a_replay_go_back_with_it(tmp_path: Path, command: Command) -> None:
    """The guest reads a port in a loop; its host lies by chance, and the module is busy now and then."""
    kernel, file = tmp_path / "bzImage", tmp_path / "record"
    kernel.write_bytes(image())
    result = command(
        *("run", "--firmware", "none", "--kernel", kernel, "--memory", "64M", "--debug-td"),
        *("--lie", f"IO {PRESENT:#x}: random 60% seed 5", "--inject", "TDH.VP.ENTER: OPERAND_BUSY every 3"),
        *("--lie", f"IO {LENGTH:#x}: R11=0x200 @8", "--record", file),
    )
    assert result.status == 3, result.err
    place = ENTRY + planted_code().index(bytes.fromhex("4180fbff"))  # cmp r11b, 0xff
    with replaying(file) as (_, where):
        client = Client(where)
        client.socket.settimeout(200)
        client.ask(b"qSupported")
        assert client.ask(b"Z0,%x,1" % place) == b"OK"
        seen: dict[str, list[int]] = {}
        for name, packet, times in (("forth", b"c", 6), ("back", b"bc", 3), ("again", b"c", 3)):
            for _ in range(times):
                if name == "again":
                    client.ask(b"s")  # off the breakpoint, as gdb does
                assert client.ask(packet) == b"T05thread:01;swbreak:;"
                seen.setdefault(name, []).append(client.registers()["r11"])
        client.close()
    forth = seen["forth"]
    assert len(set(forth)) > 3, "some are lies"
    assert seen["back"] == forth[4:1:-1], "with the host's answer, which comes after the exit"
    assert seen["again"] == forth[3:]


@pytest.mark.skipif(GDB is None, reason="gdb is not installed: no real debugger has been at a replay")
@pytest.mark.parametrize("kind", ["vm"])
def test_a_real_gdb_goes_forth_and_back(kind: str, record: Path) -> None:
    place = out_of(kind)
    script = record.with_name("script.gdb")
    with replaying(record) as (process, where):
        script.write_text(f"""
            set pagination off
            set confirm off
            set architecture i386:x86-64
            target remote {where}
            break *{place:#x}
            continue
            continue
            print $rbx
            x/1i $rip
            stepi
            print $rip
            reverse-stepi
            print $rip
            reverse-continue
            print $rbx
            delete
            hbreak *{AGAIN:#x}
            reverse-continue
            print $rbx
            delete
            reverse-continue
            hbreak *{AGAIN:#x}
            continue
            delete
            watch *(long *) {COUNTER:#x}
            continue
            continue
            reverse-continue
            print *(long *) {COUNTER:#x}
            delete
            continue
            reverse-stepi
            detach
        """)
        assert GDB is not None
        done = subprocess.run(
            [GDB, "-nx", "-batch", "-x", script], capture_output=True, text=True, timeout=250, check=False
        )
        status = process.wait(200)
    said = done.stdout + done.stderr
    assert status == 0, said
    assert f"$1 = {LOOP * 2}\n" in said, said
    assert "jmp" in said
    assert f"$2 = (void (*)()) {AGAIN:#x}\n" in said
    assert f"$3 = (void (*)()) {place:#x}\n" in said
    assert f"$4 = {LOOP}\n" in said
    assert f"$5 = {LOOP - 1}\n" in said, "the loop begins for the last time before the letter"
    assert said.count("No more reverse-execution history") == 2, "at the beginning and at the end"
    assert "Old value = 2\nNew value = 1\n" in said, said
    assert "$6 = 1\n" in said
