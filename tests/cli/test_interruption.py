# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals to ``swtdx run`` on a terminal: it ends, or stops, and the terminal is as it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The guest never ends. The leader of the session runs the command in a foreground process group of its own, as a shell
# does, and prints how it changes its state.
SESSION = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    # A shell that runs the tests in the background ignores SIGINT and SIGQUIT, which a child would inherit.
    for number in (signal.SIGTTOU, signal.SIGINT, signal.SIGQUIT): signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
report = open(int(sys.argv[1]), "w", buffering=1)
print("pid", child, file=report)
while True:
    _, status = os.waitpid(child, os.WUNTRACED | os.WCONTINUED)
    if os.WIFSTOPPED(status): print("stopped", file=report)
    elif os.WIFCONTINUED(status): print("continued", file=report)
    else:
        print("ended", os.waitstatus_to_exitcode(status), file=report)
        break
"""
COMMAND = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import swtdx.cli.machine_parts
from tests.vmm.fake_kernel import FakeKernel, typed
swtdx.cli.machine_parts.kernel_named = lambda *a, **k: FakeKernel(plays={{0: typed("up\\n")}})
from swtdx.cli import main; main()
"""
PATIENCE = 60.0


@dataclass
class Session:
    """A command on a pseudo-terminal."""

    pid: int
    terminal: int
    before: list[object]
    report: Callable[[], str]

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.terminal)[3] & termios.ICANON

    def wait_for_raw(self, wanted: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.is_raw() is not wanted:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def session(firmware: Path, tmp_path: Path) -> Iterator[Session]:
    (tmp_path / "session.py").write_text(SESSION)
    (tmp_path / "command.py").write_text(COMMAND)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    read_end, write_end = os.pipe()
    leader = subprocess.Popen(
        [sys.executable, tmp_path / "session.py", str(write_end), tmp_path / "command.py",
         "run", "--firmware", firmware],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, pass_fds=[write_end],
    )  # fmt: skip
    os.close(write_end)
    with open(read_end, encoding="utf-8") as report:
        pid = int(report.readline().split()[1])
        session = Session(pid, slave, before, lambda: report.readline().strip())
        session.wait_for_raw()
        yield session
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGKILL)
        leader.wait()
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGQUIT", "SIGINT", "SIGXCPU"])
def test_a_signal_ends_the_run_and_the_terminal_is_as_before(name: str, session: Session) -> None:
    os.kill(session.pid, signal.Signals[name])
    assert session.report() == "ended 130"
    assert termios.tcgetattr(session.terminal) == session.before


WHILE_STARTING = """
import os, signal
import swtdx.vmm.run
start = swtdx.vmm.run.Run.start
def interrupted_start(run):
    start(run)
    os.kill(os.getpid(), signal.{name})
swtdx.vmm.run.Run.start = interrupted_start
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run_whose_threads_have_just_started(name: str, firmware: Path, tmp_path: Path) -> None:
    """The exception that a handler raises would leave them behind, and the process with them."""
    script = tmp_path / "command.py"
    script.write_text(
        COMMAND.replace("from swtdx.cli import main", f"{WHILE_STARTING.format(name=name)}\nfrom swtdx.cli import main")
    )
    command: list[str | Path] = [sys.executable, script, "run", "--firmware", firmware]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    assert result.returncode == 130, result.stderr


def test_a_stopped_run_gives_the_terminal_back_and_takes_it_again(session: Session) -> None:
    for _ in range(2):
        os.kill(session.pid, signal.SIGTSTP)
        assert session.report() == "stopped"
        assert termios.tcgetattr(session.terminal) == session.before
        os.kill(session.pid, signal.SIGCONT)
        assert session.report() == "continued"
        session.wait_for_raw()
    os.kill(session.pid, signal.SIGTERM)
    assert session.report() == "ended 130"
    assert termios.tcgetattr(session.terminal) == session.before


def test_a_run_that_something_else_stopped_makes_the_terminal_raw_again(session: Session) -> None:
    """SIGSTOP cannot be handled; a shell sets its own modes meanwhile."""
    os.kill(session.pid, signal.SIGSTOP)
    assert session.report() == "stopped"
    termios.tcsetattr(session.terminal, termios.TCSANOW, session.before)  # type: ignore[arg-type]
    os.kill(session.pid, signal.SIGCONT)
    assert session.report() == "continued"
    session.wait_for_raw()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGQUIT"])
def test_a_signal_while_it_builds_leaves_no_files(name: str, firmware: Path, tmp_path: Path) -> None:
    slow = COMMAND.replace(
        "from swtdx.cli import main; main()",
        "import time\n"
        "import swtdx.cli.session\n"
        "def launch(*a):\n    print('building', flush=True)\n    time.sleep(60)\n"
        "swtdx.cli.session.launch = launch\n"
        "from swtdx.cli import main; main()",
    )
    (tmp_path / "slow.py").write_text(slow)
    with subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", "run", "--firmware", firmware, "--log", tmp_path / "log", "--json",
         tmp_path / "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "building\n"
        run.send_signal(signal.Signals[name])
        _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "json").exists()


def test_an_ignored_sighup_stays_ignored(firmware: Path, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; "$@" & sleep 3; kill -HUP $!; wait $!', "sh", sys.executable,
         tmp_path / "command.py", "run", "--firmware", firmware, "--timeout", "6"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
