# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m swtdx.exec.below SETTINGS PROGRAM ARGV...``: what a preloaded program executes and the library does not
reach runs below a server of its own.

The preloaded library executes this in the program's place (native/preload/spawn.c). The program becomes a child of it;
its end is passed on as it was, a signal included.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from swtdx.exec.program import NOT_USABLE, ProgramError, choose, refusal
from swtdx.exec.settings import Settings


def main(arguments: list[str]) -> int:
    """Run the program. Return its exit status, or 128 and the number of the signal that ended it."""
    from swtdx.exec.notify import available, run

    path = Path(arguments[1])
    command = arguments[2:] or [arguments[1]]
    try:
        settings = Settings.read(arguments[0])
        _, why = choose(path, command[1:])
        cannot = available()
        if not cannot:
            return run(path, command, settings)
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise refusal(path, why, cannot)
        os.execv(path, command)  # it cannot open /dev/kvm
    except (ProgramError, OSError, ValueError) as error:
        sys.stderr.write(f"swtdx: exec: {error}\n")
    return NOT_USABLE


def end_like(status: int) -> None:
    """End this process as the program has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    if 128 < status < 128 + signal.NSIG and status - 128 in signal.valid_signals():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left one
        if status - 128 not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(status - 128, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [status - 128])
        os.kill(os.getpid(), status - 128)
    os._exit(status)


if __name__ == "__main__":
    end_like(main(sys.argv[1:]))
