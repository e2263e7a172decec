# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that gets past the preloaded library does not run on the machine's own /dev/kvm unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

Build = Callable[..., Path]
UNAVAILABLE = 11
"""SIGSEGV: a kernel without the system calls of 32-bit programs."""


@pytest.fixture(autouse=True)
def device() -> None:
    if not real_kvm():
        skip("no /dev/kvm of the machine's own that a program could reach")


@pytest.mark.parametrize("way", ["raw", "io_uring", "dlmopen", "deepbind", "daemon", "int80", "node"])
def test_it_is_ended_with_a_sentence(compiled: Build, swtdx_exec: Run, tmp_path: Path, way: str) -> None:
    """``node``: another node of the same device, of which nothing tells."""
    plugin = compiled("past", "-ldl", "-shared", "-fPIC") if way == "deepbind" else tmp_path / "node"
    done = swtdx_exec(compiled("past", "-ldl"), way, plugin)
    if done.returncode in (77, UNAVAILABLE):
        pytest.skip(f"{way} is not available here")
    assert "still here" not in done.stdout
    assert "has opened the machine's own /dev/kvm, past the preloaded library, and was killed" in done.stderr
    assert "--front-end notify" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == (0 if way == "daemon" else 137)


def test_a_static_program_that_is_executed_past_the_library_is_ended(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("past", "-ldl"), "execve", compiled("past", "-static"))
    assert done.returncode == 137
    assert "was killed" in done.stderr


def test_one_that_goes_on_by_the_c_library_is_served(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("past", "-ldl"), "adopted")
    assert (done.returncode, done.stdout, done.stderr) == (0, "12 1\n", "")


def test_the_machines_own_device_may_be_allowed(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("past", "-ldl"), "raw", options=["--allow-host-kvm"])
    assert done.returncode == 0
    assert "still here" in done.stdout
    assert "killed" not in done.stderr


def test_the_second_front_end_serves_it(compiled: Build, swtdx_exec: Run) -> None:
    done = swtdx_exec(compiled("past", "-ldl"), "raw", options=["--front-end", "notify", "--quiet"])
    assert done.returncode == 0, done.stderr
    assert "with the machine's" in done.stdout, "the emulated machine's"


@pytest.mark.parametrize("flags", [(), ("-static",)], ids=["dynamic", "static"])
def test_the_second_front_end_refuses_the_calls_of_32_bit_programs(
    compiled: Build, swtdx_exec: Run, flags: tuple[str, ...]
) -> None:
    """Their structures are other ones. What they open is the machine's own device, so they must not use it."""
    program = compiled("past", *(flags or ("-ldl",)))
    done = swtdx_exec(program, "int80", options=["--front-end", "notify"])
    if done.returncode == UNAVAILABLE:
        pytest.skip("this kernel has no 32-bit system calls")
    assert done.stdout == "still here, without a VM\n"
    assert done.stderr.startswith("swtdx: process ")
    assert "32-bit" in done.stderr
    assert "--allow-host-kvm" in done.stderr
    assert done.stderr.count("\n") == 1
