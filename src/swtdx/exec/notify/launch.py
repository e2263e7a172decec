# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting a program below a server.

Three processes: the command that a person typed waits for the exit status and passes signals on; the server, its child,
is the ancestor of all programs, as tracing them may require (Yama); the program is the server's child. The server stays
as long as any program is left, so that a program can leave others in the background. The command does not wait for
them.
"""

from __future__ import annotations

import array
import ctypes
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from swtdx.exec.forwarding import ForwardedSignals, pass_on
from swtdx.exec.notify.seccomp import LOOKING, RULES, Listener, Rule, install
from swtdx.exec.program import NOT_FOUND, NOT_USABLE

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PASSED_ON = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
_COLLECT_MS, _SOON_MS = 1000, 50
_WNOTHREAD = 0x20000000
_ENDED = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)
Serve = Callable[[Listener], "Background"]


class Background:
    """What the server's main thread does while its other threads serve."""

    def descriptors(self) -> int:
        """A descriptor that is readable when `collect` has something to do; -1 for none."""
        return -1

    def collect(self, *, thoroughly: bool) -> None:
        """Let go of what programs have let go of."""

    def settle(self) -> None:
        """Write what is known so far: the command ends, and reads it, while programs are left."""

    def finish(self) -> None:
        """No program is left. Called once."""


def run(path: Path, arguments: list[str], rules: tuple[Rule, ...], serve: Serve) -> int:
    """Execute the program below a server; its exit status (128 and the number of a signal that ended it)."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signals = ForwardedSignals(_PASSED_ON, (signal.SIGINT, signal.SIGQUIT))
    server = os.fork()
    if not server:
        signals.leave()
        os.close(reading)
        status = 1
        try:
            status = _be_server(path, arguments, rules, serve, writing)
        except BaseException:  # noqa: BLE001 - the process ends here
            os.write(2, f"swtdx: the server has failed:\n{traceback.format_exc()}".encode())
        finally:
            os._exit(status)
    os.close(writing)
    try:
        return _wait(server, reading, signals)
    finally:
        os.close(reading)


def _wait(server: int, reading: int, signals: ForwardedSignals) -> int:
    """Of the command: until the server says what became of the program."""
    program, told = 0, b""
    early: list[int] = []  # signals that came before the program was known
    with signals.taken():
        while True:
            early += signals.wait(reading)
            if select.select([reading], [], [], 0)[0]:
                if not (piece := os.read(reading, 64)):
                    break
                told += piece
                words = told.split()
                program = int(words[0]) if words and told.startswith(words[0] + b"\n") else 0
                if len(words) == 2 and told.endswith(b"\n"):
                    return int(words[1])
            if program:
                for number in early:
                    pass_on(program, number)
                early.clear()
    os.waitpid(server, 0)
    return 1


def _be_server(path: Path, arguments: list[str], rules: tuple[Rule, ...], serve: Serve, writing: int) -> int:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair()
    program = os.fork()
    if not program:
        try:
            ours.close()
            _be_program(path, arguments, rules, theirs)
        finally:
            os._exit(NOT_USABLE)
    theirs.close()
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.write(writing, b"%d\n" % program)
    listener = Listener(_receive(ours))
    background = serve(listener)
    return _attend(listener, background, program, writing)


def _attend(listener: Listener, background: Background, program: int, writing: int) -> int:
    """Until no program is left. What is kept of the run is written before the command learns that it is over."""
    pidfd = os.pidfd_open(program)
    poll = select.poll()
    poll.register(listener.fd, 0)
    poll.register(pidfd, select.POLLIN)
    status, registered, alone, patience = -1, -1, True, _COLLECT_MS
    while True:
        if registered < 0 <= background.descriptors():
            registered = background.descriptors()
            poll.register(registered, select.POLLIN)
        events = dict(poll.poll(patience))
        background.collect(thoroughly=not events and patience == _COLLECT_MS)
        patience = _SOON_MS if events else _COLLECT_MS  # a process closes its files before it can be reaped
        if pidfd in events:
            poll.unregister(pidfd)
            _, code = os.waitpid(program, 0)
            status = 128 + os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)
            alone = listener.finished()
            if not alone:
                background.settle()
                _go_to_background()
            else:
                background.collect(thoroughly=True)
                background.finish()
            _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
            os.write(writing, b"%d\n" % status)
            os.close(writing)
        _reap(program if status < 0 else 0)
        if status >= 0 and listener.finished():
            background.collect(thoroughly=True)
            if not alone:
                background.finish()
            return status


def _go_to_background() -> None:
    """The command ends before the programs do: keep nothing open whose end another process waits for."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)


def _reap(program: int = 0) -> None:
    """Programs whose parent has ended are our children now; a zombie among them looks alive to who has killed it.

    ``program``: the one that has its own way, and with which the others wait if it has ended.

    One of them that another thread of ours traces stops for that thread, and a plain wait here would take the news
    away from it, whatever its options (ptrace(2): the tracer is of the parent's thread group). So look first.
    """
    try:
        while (child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WNOTHREAD)) is not None:
            if child.si_pid == program or child.si_code not in _ENDED:
                return  # stopped for its tracer: the others are reaped when we come by again
            os.waitpid(child.si_pid, os.WNOHANG | _WNOTHREAD)
    except ChildProcessError:
        return


def _be_program(path: Path, arguments: list[str], rules: tuple[Rule, ...], theirs: socket.socket) -> None:
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these
        signal.signal(number, signal.SIG_DFL)
    listener = install(rules)
    theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    os.close(listener)
    theirs.close()
    try:
        os.execv(path, arguments)
    except OSError as error:
        os.write(2, f"swtdx: exec: {path}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_USABLE)


def _receive(ours: socket.socket) -> int:
    """The listener. Raises OSError if the program has not come so far."""
    numbers = array.array("i")
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize))
    ours.close()
    for _, _, data in ancillary:
        numbers.frombytes(data[: numbers.itemsize])
    if not numbers:
        raise OSError("the program could not be put under seccomp")
    os.set_inheritable(numbers[0], False)
    return numbers[0]


def rules_for(*, looking: bool) -> tuple[Rule, ...]:
    """What is stopped; ``looking``: questions about files, too."""
    return LOOKING + RULES if looking else RULES
