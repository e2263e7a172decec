# SPDX-License-Identifier: GPL-2.0-or-later
"""Strange things that programs do with KVM's descriptors and processes, by both front ends: what Linux does then.

Numbers that are closed past the library and used again, a thread that executes a program while others are in guests,
vfork(2), forks from many threads, descriptors of other processes' VMs, a vCPU's number that is replaced in KVM_RUN, a
daemon that is killed. The program runs on the machine's own KVM, too.
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
FLAGS = {"preload": (), "notify": ("-static",)}
_ORDINARY = "1 3 0 0 1 100 1 8 25"
"""The same number; write, fsync, ftruncate, lseek; size, S_ISREG; read of another file; ENOTTY."""
CASES = {
    "reuses": f"""\
closed unseen: {_ORDINARY}
closed as a stream: {_ORDINARY}
closed as a range: {_ORDINARY}
closed by another process: {_ORDINARY}
the same VM: exit 2
""",
    "execs": "works: exit 2\n",
    "vforks": "works: exit 2\nchild: 0\nthe same VM: exit 2\n" * 3,
    "storms": "wrong: 0\n",
    "rights": """\
the parent's VM: -5
the parent's vCPU: -5
the parent's device: 12
the child's own: exit 2
the child's VM: -5
the parent's own: exit 2
""",
    "replaced": "replaced: 1\nin its guest: exit 5\nafterwards: -25\nanother vCPU: 1\n",
    "orphans": "gone: 1\ngone: 1\n",
}


@pytest.mark.parametrize("front_end", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_as_on_linux(compiled: Build, swtdx_exec: Run, case: str, front_end: str) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(
        compiled("strange", *FLAGS[front_end]), case, options=["--quiet", "--front-end", front_end], timeout=60
    )
    assert (done.stdout, done.returncode, done.stderr) == (CASES[case], 0, "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize("case", CASES)
def test_the_machines_own_kvm_does_the_same(compiled: Build, case: str) -> None:
    done = subprocess.run([str(compiled("strange")), case], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == CASES[case]
