# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of ``script/fuzz kvm``, in a process of its own, since it looks at the process's descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import random
import subprocess
import sys

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.uapi.kvm import REQUESTS
from testing import guest
from testing.fuzzing.kvm import Round
from testing.fuzzing.line import Line
from testing.invariants import Violation, check
from testing.places import REPOSITORY
from testing.td import MeasuredTd

CALLS = 4000


def test_random_ioctls_end_in_an_answer_or_an_errno_and_leave_nothing() -> None:
    code = f"""
from testing.fuzzing.kvm import campaign
result = campaign({CALLS}, seed=4)
print("\\n".join(result.lines()))
assert not result.failures
assert result.calls >= {CALLS}
assert result.answers["0"] > result.calls // 4, "hardly a call got past the checks"
assert len(result.answers) > 10, "hardly an errno was met"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_invariants_see_what_breaks_them() -> None:
    kernel = boot(platform=Platform(memory_size=1 << 30))
    with Kvm(kernel) as device, MeasuredTd(device) as td:
        td.seconds(guest.Workload.CPUID, 10)
        check(kernel)
        (module_td,) = kernel.module.tds.values()
        module_td.child_count += 1
        with pytest.raises(Violation, match="counts"):
            check(kernel)
        module_td.child_count -= 1
        (vm,) = kernel.vms
        assert vm.mmu.mirror is not None
        table = next(table for table in vm.mmu.mirror._tables(0, 1 << 36) if any(table.leaves))
        index = next(index for index, hpa in enumerate(table.leaves) if hpa)
        hpa = table.take_leaf(index)
        with pytest.raises(Violation, match="mirror"):
            check(kernel)
        table.leaves[index] = hpa
        check(kernel)


def test_no_slot_reaches_beyond_the_memory_that_is_lent_to_it() -> None:
    """A guest pushes interrupt frames wherever a slot leads: behind the arena that would be Python's own heap."""
    chance = random.Random(4)
    kernel = boot(platform=Platform(memory_size=1 << 30))
    line = Line(kernel)
    try:
        with Kvm(line) as device:
            this = Round(line, chance, device)
            accepted = 0
            for number in range(1500):
                vm = device.create_vm()
                name = ("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2")[number % 2]
                region = this.payload(vm.fd, name)
                with contextlib.suppress(OSError):
                    line.ioctl(vm.fd, REQUESTS[name], ctypes.addressof(region))  # which fails the campaign if it is so
                    accepted += bool(region.memory_size)
                vm.close()
            assert accepted > 100
    finally:
        line.stop()
