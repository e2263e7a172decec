# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory that changes below a live slot: KVM's MMU notifiers, by both front ends.

What the guest reads afterwards is what is there then, and EFAULT where nothing is (hva_to_pfn of KVM). The
program runs on the machine's own KVM, too.
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
CASES = {
    "unmapped": """\
before: 5
a page unmapped: refused
mapped again: 6
all unmapped: refused
all mapped again, shared: 7
replaced: 0
unmapped by a system call: refused
""",
    "advised": """\
before: 5
MADV_DONTNEED: 0
written again: 8
MADV_FREE, written again: 9
MADV_COLD, MADV_PAGEOUT: 9
populated: 9
MADV_DONTNEED_LOCKED: 0
shared: 5
shared, MADV_DONTNEED: 5
shared, MADV_REMOVE: 0
written by the guest: 119, 119
""",
    "protected": """\
before: 5
PROT_NONE: refused
PROT_READ: 5
PROT_READ, a write: refused, 5
PROT_WRITE: 119, 119
one page PROT_NONE: refused
executable: 119
PROT_NONE by a system call: refused
""",
    "moved": """\
before: 5
moved: 1
moved away: refused
moved: 1
moved back: 5
written: 6
shrunk: refused
another page moved there: 11
""",
    "of-file": """\
before: 5
written to the file: 12
a hole punched: 0
filled: 13
truncated: refused
extended again: 0
written by the guest: 119, 119
seen in the file: 119
all of it punched out: 0
empty: refused
a write to nothing: refused, -1
""",
    "forked": """\
before: 5
the child has written: 5
written by the guest: 119, 119
written by the parent: 21
the child: 7
and when it has ended: 21
""",
    "collapsed": """\
small pages: 31
collapsed: 31
written by the guest: 119, 119
split: 119
a page of it unmapped: refused
""",
}
GUARDED = ("", "guarded: refused\nnot any more: 0\n")
"""On a kernel without guard regions (before Linux 6.13) and on one with them."""
_KEPT = """\
guarded: refused
by a system call: -14
before it: 5
behind it: 5
guarded still: refused
not any more: {}
written by the guest: 119, 119
"""
GUARDED_BEFORE = ("", "kind 0\n" + _KEPT.format(0), "kind 0\n" + _KEPT.format(0) + "kind 1\n" + _KEPT.format(5))
"""On a kernel without guard regions, on one that has them in private memory alone, and since Linux 6.15."""
BROUGHT = ("", "brought: 33\n")
"""Where userfaultfd is not allowed, and where it is."""


@pytest.mark.parametrize("front_end", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_the_guest_sees_what_is_there(compiled: Build, swtdx_exec: Run, case: str, front_end: str) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(compiled("changes", *FLAGS[front_end]), case, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (CASES[case], 0, "")


def test_a_guard_region_stops_the_guest(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("changes"), "guarded", options=["--quiet"])
    assert done.stdout in GUARDED
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("front_end", FLAGS)
def test_a_guard_region_that_is_there_before_its_slot_is_kept(compiled: Build, swtdx_exec: Run, front_end: str) -> None:
    """It was lost when the memory was moved: guest and program read zeros there."""
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(compiled("changes", *FLAGS[front_end]), "guarded-before")
    assert done.stdout in GUARDED_BEFORE
    assert done.returncode == 0
    if done.stdout:
        assert "KVM_RUN: EFAULT: " in done.stderr
        assert "a guard region" in done.stderr


@pytest.mark.parametrize("front_end", FLAGS)
def test_a_guest_that_touches_what_is_unmapped_is_told_with_its_address(
    compiled: Build, swtdx_exec: Run, front_end: str
) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(compiled("changes", *FLAGS[front_end]), "unmapped")
    assert "KVM_RUN: EFAULT: access to guest memory at 0x14000: no readable user memory at 0x" in done.stderr


@pytest.mark.skipif(bool(available()), reason="the other front end needs seccomp user notification")
def test_the_other_front_end_refuses_a_guard_region(compiled: Build, swtdx_exec: Run) -> None:
    """The guest would not meet it: as on a kernel that has none, with a sentence."""
    done = swtdx_exec(compiled("changes", "-static"), "guarded")
    assert (done.stdout, done.returncode) == (GUARDED[0], 0)
    assert "MADV_GUARD_INSTALL of a guest's memory fails" in done.stderr


@pytest.mark.skipif(bool(available()), reason="the other front end needs seccomp user notification")
def test_the_other_front_end_says_that_it_does_not_follow_userfaultfd(compiled: Build, swtdx_exec: Run) -> None:
    assert "userfaultfd sees no fault of a guest" in swtdx_exec(compiled("changes", "-static"), "userfaultfd").stderr


def test_a_page_is_brought_by_userfaultfd(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("changes"), "userfaultfd", options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) in [(text, 0, "") for text in BROUGHT]


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize("case", [*CASES, "guarded", "guarded-before", "userfaultfd"])
def test_the_expectations_are_what_the_machines_own_kvm_does(compiled: Build, case: str) -> None:
    done = subprocess.run([compiled("changes"), case], check=False, capture_output=True, text=True, timeout=60)
    others = {"guarded": GUARDED, "guarded-before": GUARDED_BEFORE, "userfaultfd": BROUGHT}
    assert done.stdout in (CASES.get(case), *others.get(case, ()))
