# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are not considerate, under both front ends: what Linux does with them; files stay their owners'.

They close descriptors that they do not know, make children by system calls of their own, drop their rights and their
root directory. The same programs run on the machine's own KVM where there is one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

Build = Callable[..., Path]

GOES_ON = """\
the same VM: exit 2
another one: exit 2
the same one again: exit 2
one that is made afterwards: exit 2
files that are as they were: 100
"""
CHILDREN = """\
clone: 7
clone3: 7
clone of libc: 7
fork: 7
the parent: exit 2
"""
HANDLER = """\
spinning: EINTR, exit 10
handled: 1
"""
ELSEWHERE = """\
the same VM: exit 2
MMIO: exit 6
another vCPU: 1
"""
KEEPS_ONE = """\
/dev/kvm: 12
VM: 1
vCPU: exit 2
VM by a system call: 1
/dev/kvm once more: 12
and no more: -9
"""
FEW = """\
with three: exit 2
the limit is mine: 1
a fourth: -24
a third again: 1
a vCPU too many: -24
a VM too many: -24
"""
ENDS_FIRST = """\
the same VM: exit 2
another one: exit 2
"""
REOPENS = """\
by /proc/self/fd: 12
by /dev/fd: 12
its VM: 1
and no more: -9
"""
CASES = {
    "ends-first": ENDS_FIRST,
    "reopens": REOPENS,
    "keeps-one": KEEPS_ONE,
    "closes-all": GOES_ON,
    "closes-ranges": "in order: 1\nclosed: 0\n" + GOES_ON,
    "replaces-all": GOES_ON,
    "few": FEW,
    "clones": CHILDREN,
    "clones-later": CHILDREN,
    "clones-itself": "the child: 7\nthe parent: 7\n",
    "raw-handler": HANDLER,
    "raw-handler-by-libc": HANDLER,
    "storm": "children: 20\nguests that ran: 3\n",
    "namespaces": "in a user namespace: exit 2\n",
    "streams": "numbers: 0 1 2\nthen: exit 2\n",
    "chroot": ELSEWHERE,
    "user": ELSEWHERE,
}
_ROOT = {"chroot", "user"}
_FRONT_ENDS = {"preload": (), "notify": ("-static",)}


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[[str], list[str]]:
    """What a case takes: it is skipped where it cannot be."""

    def given(case: str) -> list[str]:
        if case in _ROOT and os.geteuid() != 0:
            skip("root directory and user can be changed by root only")
        if case == "namespaces" and subprocess.run(["unshare", "-Um", "true"], check=False).returncode:
            skip("user namespaces are not allowed here")
        (tmp_path / "root").mkdir()
        return [case, str(tmp_path / "root")] if case == "chroot" else [case]

    return given


@pytest.mark.parametrize("front_end", _FRONT_ENDS)
@pytest.mark.parametrize("case", CASES)
def test_it_sees_what_linux_shows(
    compiled: Build, swtdx_exec: Run, arguments: Callable[[str], list[str]], case: str, front_end: str
) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    program = compiled("adversary", *_FRONT_ENDS[front_end])
    done = swtdx_exec(program, *arguments(case), options=["--quiet", "--front-end", front_end])
    assert (done.stdout, done.returncode, done.stderr) == (CASES[case], 0, "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize("case", CASES)
def test_the_expectations_are_what_the_machines_own_kvm_does(
    compiled: Build, arguments: Callable[[str], list[str]], case: str
) -> None:
    command = [str(compiled("adversary")), *arguments(case)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == CASES[case]


@pytest.mark.parametrize("case", ["closes-all", "replaces-all", "closes-ranges"])
def test_a_trace_is_not_written_into_the_programs_files(
    compiled: Build, swtdx_exec: Run, tmp_path: Path, case: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    done = swtdx_exec(compiled("adversary"), case, options=["--quiet", "--trace", str(trace)])
    assert done.stdout.endswith(GOES_ON)
    assert done.stderr == ""
    text = trace.read_text()
    assert text.count("KVM_CREATE_VM") >= 3
    assert text.endswith("\n")


@pytest.mark.parametrize("case", ["system", "popen"])
def test_what_libc_executes_after_the_environment_was_cleared_is_served(
    compiled: Build, swtdx_exec: Run, case: str
) -> None:
    done = swtdx_exec(compiled("adversary"), "environment")
    assert f"{case}: 9\n" in done.stdout, "9: by the emulated kernel"


def test_a_child_made_by_an_instruction_after_dev_kvm_was_opened_is_told(compiled: Build, swtdx_exec: Run) -> None:
    """What the other threads were doing is not known: a sentence and an error, no hang and no other device."""
    done = swtdx_exec(compiled("adversary"), "clones-itself-later")
    assert done.stdout == "open: Input/output error\nthe child: 1\nthe parent: 7\n"
    assert "was made by a system call of the program's own" in done.stderr
    assert done.stderr.count("\n") == 1
