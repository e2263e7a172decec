# SPDX-License-Identifier: GPL-2.0-or-later
"""Report data in shared memory that is the host program's own: read through the window, gone once it is unmapped."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import pytest

from swtdx.x86 import Gpr
from testing.seam.fake_host import GuestStep, Host

GPA = 0x8000_0000
SHARED = 1 << 47
SHARED_EPTP = 0x203C
MASK = (1 << 64) - 1


@pytest.fixture
def window(host: Host) -> Any:
    """(pages of this process, HPA of the window on them)."""
    pages = mmap.mmap(-1, 0x4000)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    return pages, host.memory.map_user(address, 0x4000)


def shared_tables(host: Host, hpa: int) -> Any:
    """A host's EPT that maps the first page of the shared half to ``hpa``; its root."""
    tables = [host.page() for _ in range(4)]
    for level, table in enumerate(tables):
        target = tables[level + 1] | 7 if level < 3 else hpa | 0x37
        index = SHARED >> (12 + 9 * (3 - level)) & 511
        host.memory.write(table + 8 * index, target.to_bytes(8, "little"))
    return tables[0]


def reporting(host: Host, call: Callable[..., GuestStep], hpa: int) -> Any:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=SHARED_EPTP, r8=shared_tables(host, hpa), r9=0x000F_FFFF_FFFF_F000)
    target = host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA))
    return tdvpr, context, target


def test_report_data_is_read_through_the_window(host: Host, call: Callable[..., GuestStep], window: Any) -> None:
    pages, hpa = window
    pages[0x1040:0x1080] = b"report data of the guest".ljust(64, b"!")
    tdvpr, context, target = reporting(host, call, hpa + 0x1000)
    host.guest(tdvpr, context, call(4, rcx=GPA, rdx=SHARED | 0x40, r8=0))
    assert context.gpr[Gpr.RAX] == 0
    assert host.memory.raw[target + 128 : target + 192].tobytes().rstrip(b"!") == b"report data of the guest"


def test_a_window_that_is_gone_is_an_ept_violation(host: Host, call: Callable[..., GuestStep], window: Any) -> None:
    _, hpa = window
    tdvpr, context, _ = reporting(host, call, hpa)
    host.memory.unmap_user(hpa, 0x4000)
    context.queue(call(4, rcx=GPA, rdx=SHARED, r8=0))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (48, SHARED)


def test_windows_are_read_and_written_or_not_there(host: Host, window: Any) -> None:
    pages, hpa = window
    assert host.memory.write_window(hpa + 0x2FFE, b"abcd")
    assert pages[0x2FFE:0x3002] == b"abcd"
    assert host.memory.read_window(hpa + 0x2FFE, 4) == b"abcd"
    assert host.memory.read_window(hpa + 0x3FFE, 4) is None
    assert not host.memory.write_window(hpa - 1, b"x")
    nowhere = host.memory.map_user(1 << 12, 0x1000)  # an address this process does not have
    assert host.memory.read_window(nowhere, 8) is None
    assert not host.memory.write_window(nowhere, b"x")
