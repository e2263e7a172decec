# SPDX-License-Identifier: GPL-2.0-or-later
"""A leaf function that fails has changed nothing: any leaf, any registers, against TDs in every stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.seam.dispatch import LEAVES, SEAMCALL_NUMBERS
from swtdx.seam.status import ERROR, StatusCode
from testing.seam.fake_host import Host

GPA = 0x8000_0000
# VP.INIT counts NUM_VCPUS before it finds an id that is not unique: the real module does, too.
LATE = StatusCode.X2APIC_ID_NOT_UNIQUE
NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}
# ENTER would need a guest, SYS.SHUTDOWN would end the world; SYS.CONFIG reserves the HKID before it looks at the TDMRs,
# and SYS.INFO clears its first buffer before it looks at the second (all have their own tests).
SKIPPED = {"TDH.VP.ENTER", "TDH.SYS.CONFIG", "TDH.SYS.INFO", "TDH.SYS.SHUTDOWN"}
RAX = sorted(fn for fn in LEAVES if NAMES[fn & 0xFFFF] not in SKIPPED)


@pytest.fixture(scope="module")
def world(new_host: Callable[..., Host]) -> Any:
    """TDs in several stages, and the addresses worth trying."""
    host = new_host().bring_up()
    created, half, built = host.create(), host.uninitialized(pages=3), host.build(attributes=1)
    runnable, tdvpr, _ = host.runnable()
    bare = host.page()
    host.ok("TDH.VP.CREATE", rcx=bare, rdx=built)
    hpa = host.add(built, GPA, b"x" * 4096)
    pending = host.augment(runnable, GPA)
    blocked = host.augment(runnable, GPA + 4096)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA + 4096, rdx=runnable)
    interesting = [
        created, half, built, runnable, tdvpr, bare, hpa, pending, blocked, host.page(), host.module.tds[built].tdcx[0],
        GPA, GPA | 1, GPA | 2, GPA | 3, GPA + 4096, GPA + 8192, 0, 1, 33, 63, 1 << 47, 1 << 52, (1 << 64) - 1,
        0x1110000300000000, 0x9110000300000011, 0x2010, 0x2016, 0x0800000200000000,
    ]  # fmt: skip
    return host, interesting


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_failure_changes_nothing(world: Any, data: Any) -> None:
    host, interesting = world
    fn = data.draw(st.sampled_from(RAX))
    value = st.sampled_from(interesting) | st.integers(0, (1 << 64) - 1)
    registers = {name: data.draw(value) for name in ("rcx", "rdx", "r8", "r9")}
    before = host.snapshot()
    status, args = host.call(fn, **registers, rbx=1, rsi=2, rdi=3, r12=4, r15=5)
    assert (args.rbx, args.rsi, args.rdi, args.r15) == (1, 2, 3, 5)
    assert args.r12 == 4 or (args.r12 == 0 and fn == SEAMCALL_NUMBERS["TDH.SERVTD.BIND"])  # where a UUID would be
    if status & ERROR and status & ~0xFFFFFFFF != LATE:
        assert host.snapshot() == before
