# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that cannot be preloaded, served from another process: they see what a preloaded program sees.

What each program prints is what Linux prints for it (`test_the_programs_print_this_on_a_real_kernel` where there is a
/dev/kvm). The static builds choose the front end by themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from swtdx.exec.notify import available
from swtdx.exec.notify.address_space import ProgramMm, copy_out
from swtdx.linux.uaccess import copy_from_user, copy_to_user
from swtdx.vmm import bare_guest
from tests.conftest import skip
from tests.exec.conftest import PROGRAMS, Run, real_kvm
from tests.exec.test_programs import CASES as ALIKE

KINDS = """\
bss: 17 99 42
data: 17 99 42
the rest of data: 1
stack: 17 99 42
heap: 17 99 42
anonymous: 17 99 42
shared: 17 99 42
advised: 17 99 42
memfd: 17 99 42
seen in the file: 42
memfd without its descriptor: 17 99 42
private copy of a file: 17 99 42
what was in the file: 7
the file has nothing of it: 0
"""
PATCHWORK = """\
from the file's page: exit 5, 23
from the read-only page: exit 5, 5
refused to the read-only page: 1
refused to the hole: 1
filled: exit 5, 9
"""
LATE = """\
mapped after the slot: exit 5, 3
another one: exit 5, 4
the old one is as it was: 3
the old one again: 3
"""
SPARSE = """\
soon: 1
its last byte: 7
exit 5, 8
small: 1
"""
DISCARDED = """\
before: 5
discarded: 0
to the guest: 0
written again: 6
"""
KILLED = """\
killed: 10
the parent's VM: exit 2
"""
INHERITED = """\
/dev/kvm: 12
VM: -5
a VM of its own: 1
after an exec that failed: exit 2
/dev/kvm: 12
VM: -5
a VM of its own: 1
"""
CLOSED = """\
rounds: 100
and then: 1
"""
OWN = [
    ("memory", "kinds", KINDS),
    ("memory", "patchwork", PATCHWORK),
    ("memory", "late", LATE),
    ("memory", "threads", "lost writes: 0\n"),
    ("memory", "sparse", SPARSE),
    ("memory", "discarded", DISCARDED),
    ("tree", "ten", "programs that ran a guest: 10\n"),
    ("tree", "killed", KILLED),
    ("tree", "inherited", INHERITED),
    ("tree", "threads", "exits: 1600\n"),
    ("tree", "closed", CLOSED),
]


def _cases(cases: list[tuple[str, str, str]]) -> list[object]:
    return [pytest.param(*case, id="-".join(case[:2])) for case in cases]


@pytest.fixture(autouse=True)
def _needs_notification() -> None:
    if cannot := available():
        skip(cannot)


@pytest.mark.parametrize(("program", "case", "expected"), _cases([*ALIKE, *OWN]))
def test_a_static_program_sees_what_linux_shows(
    compiled: Callable[..., Path], swtdx_exec: Run, program: str, case: str, expected: str
) -> None:
    done = swtdx_exec(compiled(program, "-static"), case, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")


@pytest.mark.parametrize(
    ("program", "case", "expected"),
    _cases([c for c in [*ALIKE, *OWN] if c[1] in ("open", "processes", "kinds", "storm")]),
)
def test_a_dynamic_program_does_when_asked_to(
    compiled: Callable[..., Path], swtdx_exec: Run, program: str, case: str, expected: str
) -> None:
    done = swtdx_exec(compiled(program), case, options=["--quiet", "--front-end", "notify"])
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize(("program", "case", "expected"), _cases(OWN))
def test_the_programs_print_this_on_a_real_kernel(
    compiled: Callable[..., Path], program: str, case: str, expected: str
) -> None:
    done = subprocess.run([compiled(program, "-static"), case], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == expected


@pytest.mark.parametrize("flags", [[], ["-static"]], ids=["dynamic", "static"])
def test_a_musl_program(tmp_path: Path, swtdx_exec: Run, flags: list[str]) -> None:
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        skip("no musl-gcc (Debian: musl-tools)")
    headers = tmp_path / "include"
    headers.mkdir()
    for folder in ("linux", "asm-generic"):
        (headers / folder).symlink_to(f"/usr/include/{folder}")
    (headers / "asm").symlink_to("/usr/include/x86_64-linux-gnu/asm")
    program = tmp_path / "program"
    subprocess.run(
        [compiler, "-O1", "-w", f"-I{headers}", "-o", program, PROGRAMS / "memory.c", *flags], check=True, timeout=60
    )
    done = swtdx_exec(program, "late", options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (LATE, 0, "")


@pytest.mark.parametrize("flags", [["-static"], []], ids=["notify", "preload"])
def test_a_vmm_for_tds(compiled: Callable[..., Path], swtdx_exec: Run, tmp_path: Path, flags: list[str]) -> None:
    """Both front ends: initial memory out of the program's, a measured TD, its exits, its guest_memfd."""
    text = b"hello from a TD"
    code = b"".join(bare_guest.io_out(0x80, byte) for byte in text) + bare_guest.io_out(0xF4, 0)
    parts = (struct.pack("<QQ", gpa, len(contents)) + contents for gpa, contents in bare_guest.regions(code))
    (tmp_path / "regions").write_bytes(b"".join(parts))
    done = swtdx_exec(compiled("td", *flags), tmp_path / "regions", options=["--quiet"])
    expected = (
        f"regions: 4\nthe TD says: {text.decode()}\nexit: 2\nprivate memory punched out: 0\nbeyond what there is: -95\n"
    )
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")


AS_NOBODY = """
import ctypes, os, sys
from pathlib import Path
from swtdx.exec import record, telling
from swtdx.exec.notify import file_calls, fork_calls, kvm_calls, memory_calls, run
from swtdx.exec.machine import boot
from swtdx.exec.settings import Settings
boot(Settings(), None)  # what that imports may be unreadable afterwards
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid has cleared
sys.exit(run(Path(sys.argv[1]), sys.argv[1:], Settings(quiet=True)))
"""


def test_a_child_that_is_killed_while_it_is_copied_to_ends_the_copy() -> None:
    """The parent stands still until then. What /proc/PID/mem answers without an address space is 0, not an error."""
    child = subprocess.Popen(["sleep", "60"])
    memory, contents = os.open(f"/proc/{child.pid}/mem", os.O_RDWR), os.memfd_create("contents")
    try:
        os.write(contents, b"\xff" * 8192)
        child.kill()
        child.wait()
        with pytest.raises(ProcessLookupError):
            copy_out(contents, 0, 8192, memory, 0x10000)
    finally:
        os.close(memory)
        os.close(contents)


@pytest.mark.skipif(os.geteuid() != 0, reason="all tests run without root anyway")
@pytest.mark.parametrize(
    ("program", "case", "expected"),
    _cases([case for case in [*ALIKE, *OWN] if case[1] in ("kinds", "inherited", "spin", "forked")]),
)
def test_root_is_not_needed(compiled: Callable[..., Path], program: str, case: str, expected: str) -> None:
    copy = Path(tempfile.mkdtemp(dir="/tmp")) / program
    try:
        shutil.copy(compiled(program, "-static"), copy)
        copy.parent.chmod(0o755)
        line = [sys.executable, "-c", AS_NOBODY, str(copy), case]
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")
    finally:
        shutil.rmtree(copy.parent)


def test_a_hostile_program_upsets_nobody(compiled: Callable[..., Path]) -> None:
    """The server neither dies nor hangs nor grows, and after each round a guest still runs."""
    rounds = 4
    line = [sys.executable, "-m", "swtdx", "exec", "--quiet", "--", str(compiled("hostile", "-static")), str(rounds)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        for _ in range(rounds):
            # What it lets the kernel write over may be memory of its own.
            assert started.stdout.readline().removeprefix("(killed by 11) ") == "exit 2\n"
            server = _children(started.pid)[0]
            assert _wait_for(lambda: len(os.listdir(f"/proc/{server}/fd")) < 100)  # noqa: B023 - called at once
            assert _wait_for(lambda: len(os.listdir(f"/proc/{server}/task")) < 20)  # noqa: B023 - called at once
            started.stdin.write("\n")
            started.stdin.flush()
        assert started.wait(30) == 0


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[int]]:
    """Mark what this test starts; the function returns the processes with the mark that run ``swtdx exec``."""
    mark = f"SWTDX_STARTED_BY={uuid4()}"
    monkeypatch.setenv(*mark.split("="))

    def servers() -> set[int]:
        found = set()
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                try:
                    line = (process / "cmdline").read_bytes().split(b"\0")
                    environment = (process / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"exec" in line and b"swtdx" in line and mark.encode() in environment:
                    found.add(int(process.name))
        return found

    return servers


def _wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


_TWO_THREADS = """
import ctypes, sys, threading
text, end = ctypes.create_string_buffer(b"hello"), threading.Event()
second = threading.Thread(target=end.wait)
second.start()
print(second.native_id, ctypes.addressof(text), flush=True)
sys.stdin.readline()
end.set()
second.join()
print("ended", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("reader", ["serves another", "serves none", "served the one that ended"])
def test_memory_is_reached_when_the_thread_that_called_last_has_ended(reader: str) -> None:
    """EFAULT to a call of one thread: another thread's had come in between, and that thread had ended since."""
    command = [sys.executable, "-c", _TWO_THREADS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        second, address = map(int, program.stdout.readline().split())
        mm = ProgramMm(program.pid, program.pid, set, lambda: None)
        if reader == "serves another":
            mm.pid = program.pid
        serving = threading.Thread(target=setattr, args=(mm, "pid", second))
        serving.start()
        serving.join()
        if reader == "served the one that ended":
            mm.pid = second
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "ended\n"
        found = [copy_from_user(address, 5, mm)]
        copy_to_user(address, b"HELLO", mm)
        found.append(copy_from_user(address, 5, mm))
        program.kill()
    assert found == [b"hello", b"HELLO"]


_STOPPED_WHILE_REAPING = """
import os, signal, threading
from swtdx.exec.notify import launch, ptrace

child = os.fork()
if not child:
    signal.pause()
ended = os.fork()
if not ended:
    os._exit(0)
while ptrace._state(ended) != "Z":
    pass
traced, looked, seen = threading.Event(), threading.Event(), []

def trace():
    thread = ptrace.Thread(child)
    while ptrace._state(child) != "t":
        pass
    traced.set()
    looked.wait()
    seen.append(thread.wait(patience=5))
    thread.detach()

tracer = threading.Thread(target=trace)
tracer.start()
traced.wait()
launch._reap()
looked.set()
tracer.join()
os.kill(child, signal.SIGKILL)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
while ptrace._state(child):
    launch._reap()
print(seen, ptrace._state(ended))
"""


def test_reaping_leaves_a_stop_to_the_thread_that_traces() -> None:
    """A daemon whose parent had just ended was killed by the SIGTRAP of a step that no thread waited for."""
    command = [sys.executable, "-c", _STOPPED_WHILE_REAPING]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[True] \n", "")


def test_a_daemon_goes_on_when_the_command_has_ended(
    compiled: Callable[..., Path], swtdx_exec: Run, tmp_path: Path, marked: Callable[[], set[int]]
) -> None:
    result = tmp_path / "result"
    done = swtdx_exec(compiled("tree", "-static"), "daemon", result, fresh=True)
    assert (done.stdout, done.returncode) == ("first: 1\n", 0)
    assert _wait_for(result.exists)
    assert _wait_for(lambda: result.read_text() == "works\n")
    assert _wait_for(lambda: not marked()), "the server ends with the last program"


@pytest.mark.parametrize("whom", ["command", "server", "program"])
def test_whichever_process_is_killed_nothing_stays(
    compiled: Callable[..., Path], marked: Callable[[], set[int]], whom: str
) -> None:
    """The command that was typed, the server below it, the program below that."""
    program = compiled("tree", "-static")
    line = [sys.executable, "-m", "swtdx", "exec", "--front-end", "notify", "--", str(program), "endless"]
    started = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == b"running\n"
        assert marked()
        server = _children(started.pid)[0]
        victim = {"command": started.pid, "server": server, "program": _children(server)[0]}[whom]
        os.kill(victim, signal.SIGKILL)
        assert started.wait(20) == {"command": -9, "server": 1, "program": 137}[whom]
        assert _wait_for(lambda: not marked())
        assert _wait_for(lambda: not _running(program))
    finally:
        started.kill()
        started.communicate()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _running(program: Path) -> bool:
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/exe") == str(program):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(("code", "status"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_status_is_the_programs(swtdx_exec: Run, code: str, status: int) -> None:
    assert swtdx_exec("/bin/sh", "-c", code, options=["--front-end", "notify"]).returncode == status


def test_a_signal_to_the_command_reaches_the_program() -> None:
    code = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    line = [sys.executable, "-m", "swtdx", "exec", "--front-end", "notify", "--", "/bin/sh", "-c", code]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 5
        assert started.stdout.read() == "got it\n"
