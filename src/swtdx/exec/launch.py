# SPDX-License-Identifier: GPL-2.0-or-later
"""The command and its end: a process with the library preloaded, waited for.

The parent stays, so that a record of the run can be made when it is over; otherwise it is as if it were not there.
Signals sent to it reach the command, and when it is killed the command is, too.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from swtdx.exec.forwarding import ForwardedSignals, pass_on
from swtdx.exec.host_device import HostDeviceWatch
from swtdx.exec.program import NOT_FOUND, NOT_USABLE
from swtdx.exec.settings import LIBRARY

_PR_SET_PDEATHSIG = 1
_PASSED_ON = (
    signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH
)  # fmt: skip
_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""A terminal sends these to all of the foreground: the command has its own."""


def environment(directory: Path | None) -> dict[str, str]:
    """The environment of the command: ours, and the library in front of what is preloaded already."""
    variables = dict(os.environ)
    if directory is not None:
        others = [
            name for name in variables.get("LD_PRELOAD", "").replace(" ", ":").split(":")
            if name and not name.endswith(f"/{LIBRARY}")
        ]  # fmt: skip
        variables["LD_PRELOAD"] = ":".join([str(directory / LIBRARY), *others])
    return variables


def run(path: Path, arguments: list[str], directory: Path | None, *, guarded: bool = True) -> int:
    """Execute the program and wait: its exit status, 128 plus the number of the signal that killed it."""
    parent = os.getpid()
    variables = environment(directory)
    prctl = ctypes.CDLL(None).prctl  # looked up before fork()
    watch = HostDeviceWatch(directory / LIBRARY) if directory is not None and guarded else None
    signals = ForwardedSignals(_PASSED_ON, (*_TERMINAL, signal.SIGCHLD))
    child = os.fork()
    if child == 0:
        signals.leave()
        _become(path, arguments, variables, parent, prctl)
    with signals.taken():
        if watch is not None:
            watch.begin(child)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            for number in signals.wait():
                pass_on(child, number)
    status = ended[1]
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def _become(path: Path, arguments: list[str], variables: dict[str, str], parent: int, prctl: object) -> None:
    """The child. Does not return."""
    status = NOT_USABLE
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # type: ignore[operator]
        if os.getppid() == parent:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec() would keep that
            os.execve(path, arguments, variables)
    except OSError as error:
        os.write(2, f"swtdx: exec: {path}: {error.strerror}\n".encode())
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_USABLE
    finally:
        os._exit(status)
