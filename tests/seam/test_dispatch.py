# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEAMCALL entry: reserved bits, versions, SYS_STATE, unknown leaves, in this order."""

from __future__ import annotations

import pytest

from swtdx.seam.dispatch import BEFORE_READY, LEAVES, SEAMCALL_NUMBERS, refuse
from swtdx.seam.lifecycle import SysState
from swtdx.seam.status import StatusCode
from swtdx.seam.version import module_version
from testing.seam.fake_host import Host

BAD_RAX = 0xC000010000000000
UNKNOWN = 0x1FF
WITH_VERSION_1 = {"TDH.MEM.PAGE.PROMOTE", "TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.REMOVE", "TDH.MNG.RD", "TDH.VP.RD",
                  "TDH.VP.INIT"}  # fmt: skip


@pytest.mark.parametrize("bit", range(24, 64))
def test_reserved_bits_of_rax(cold: Host, bit: int) -> None:
    assert cold.call(33 | 1 << bit)[0] == BAD_RAX


@pytest.mark.parametrize("name", sorted(SEAMCALL_NUMBERS))
def test_version_1_is_refused_where_there_is_none(cold: Host, name: str) -> None:
    status, _ = cold.call(name, version=1)
    assert (status == BAD_RAX) == (name not in WITH_VERSION_1)


@pytest.mark.parametrize("name", sorted(WITH_VERSION_1))
def test_version_2_is_refused_by_the_leaf(host: Host, name: str) -> None:
    assert host.call(name, version=2)[0] == BAD_RAX


@pytest.mark.parametrize("name", sorted(SEAMCALL_NUMBERS))
def test_before_ready_only_the_bring_up_is_accepted(cold: Host, name: str) -> None:
    status, _ = cold.call(name)
    not_ready = status == StatusCode.SYS_NOT_READY
    number = SEAMCALL_NUMBERS[name]
    assert not_ready == (number not in BEFORE_READY and name != "TDH.SYS.LP.SHUTDOWN")


def test_an_unknown_leaf_is_not_ready_before_ready_and_bad_afterwards(cold: Host) -> None:
    assert cold.call(UNKNOWN)[0] == StatusCode.SYS_NOT_READY
    cold.bring_up()
    assert cold.call(UNKNOWN)[0] == BAD_RAX


def test_every_published_leaf_function_is_there(host: Host) -> None:
    assert {fn & 0xFFFF for fn in LEAVES} == set(SEAMCALL_NUMBERS.values())
    for number in set(range(0x80)) - set(SEAMCALL_NUMBERS.values()):
        assert host.call(number)[0] == StatusCode.OPERAND_INVALID  # |RAX


@pytest.mark.parametrize("number", [0, 9, 33, 44, UNKNOWN])
def test_after_shutdown_only_lp_shutdown_is_accepted(number: int) -> None:
    refused = refuse(number, SysState.SHUTDOWN, module_version("1.5.06"))
    assert refused == (None if number == 44 else StatusCode.SYS_SHUTDOWN)


def test_version_1_before_ready_is_refused_before_the_state_is_asked(cold: Host) -> None:
    assert cold.call("TDH.MNG.CREATE", version=1)[0] == BAD_RAX
    assert cold.call("TDH.MNG.RD", version=1)[0] == StatusCode.SYS_NOT_READY


def test_registers_that_are_no_outputs_stay(host: Host) -> None:
    tdr = host.create()
    status, args = host.call("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr, rbx=1, rsi=2, rdi=3, r8=4, r15=5)
    assert status == 0
    assert (args.rdx, args.rbx, args.rsi, args.rdi, args.r8, args.r15) == (tdr, 1, 2, 3, 4, 5)
