# SPDX-License-Identifier: GPL-2.0-or-later
"""How programs kick their vCPU threads, under both front ends: as with Linux's KVM.

The expectations are Linux's (kvm_arch_vcpu_ioctl_run, signal(7)); the same program runs on the machine's own KVM where
there is one. One thing differs and is said in docs/howto/exec.md: what the library is preloaded into does not see EINTR
when it was stopped and continued.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

Build = Callable[..., Path]

_STOP = """\
stopped: 1
the guest too: 1
continued: 1
the guest too: 1
KVM_RUNs that were EINTR: {}
"""
CASES = {
    "itimer": "EINTR with a handler that has run: 60\n",
    "thread-timer": "ended: 40\neach with its signal: 1\nvalue: 77\n",
    "restart": """\
KVM_RUN: EINTR, exit 10
read: Interrupted system call
handled: 1
KVM_RUN: EINTR, exit 10
read: a byte
handled: 1
""",
    "immediate-handler": "rounds: 100\nlate: 0\nstill set: at once: 1\n",
    "immediate-thread": """\
set while it runs: EINTR, exit 10
by the signal: 1
the next one: EINTR, exit 99
IN: exit 2
completes it: EINTR, exit 2
rip 1002, al 5a
OUT: exit 2
""",
    "mask-shuts-out": """\
another length: -22
shut out: EINTR, exit 10
by the other one: 1
handled: 1 1
without: EINTR, exit 10
handled: 1 2
""",
    "replaced": """\
another handler: EINTR, exit 10
handled: 0 1
ignored, then handled: EINTR, exit 10
not by the first: 1
handled: 1 1
""",
    "descriptor": """\
spinning: EINTR, exit 10
by the alarm: 1
read: 128
signal 12 of this process: 1, code 0
handled: 0
sigwaitinfo: 12
""",
    "queue": "queued: EINTR, exit 10\nvalues: 1 2 3 4 5, on its stack: 1\n" * 2,
    "stopped": "".join(map(_STOP.format, (1, 2, 3))) + "its end: 15\n",
    "defaults": "".join(f"{number}: 1\n" for number in range(6)),
    "others": "EINTR: 1, the other one: 0, handled: 1\nEINTR: 1, handled: 2\n",
    "takers": "threads that take SIGUSR2: 1\n",
}
_PRELOADED = {"stopped": _STOP.format(0) * 3 + "its end: 15\n"}
_FRONT_ENDS = {"preload": (), "notify": ("-static",)}


@pytest.mark.parametrize("front_end", _FRONT_ENDS)
@pytest.mark.parametrize("case", CASES)
def test_it_sees_what_linux_shows(compiled: Build, swtdx_exec: Run, case: str, front_end: str) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    expected = (_PRELOADED if front_end == "preload" else {}).get(case, CASES[case])
    program = compiled("kicks", *_FRONT_ENDS[front_end])
    done = swtdx_exec(program, case, options=["--quiet", "--front-end", front_end])
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize("case", CASES)
def test_the_expectations_are_what_the_machines_own_kvm_does(compiled: Build, case: str) -> None:
    program = compiled("kicks")
    for _ in range(3):  # another load of the machine may come between two steps of a case
        done = subprocess.run([program, case], check=False, capture_output=True, text=True, timeout=60)
        if done.stdout == CASES[case]:
            return
    assert done.stdout == CASES[case]
