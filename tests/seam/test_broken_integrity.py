# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host that writes to private pages does to a TD, and to the module: a machine check wherever they are touched.

Guest memory is the guest's affair (`test_real_processor`, `test_tdcall`); here are the pages that hold a TD's state.
"""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.cpu.vmx import ExitReason
from swtdx.seam.status import StatusCode
from testing.seam.fake_host import Host

GPA = 0x8000_0000
VMFAIL_INVALID = 0x8000_FF00_FFFF_0000


def tables(host: Host, td: Any) -> Any:
    """The pages of a Secure EPT below its root on the way to GPA."""
    table, found = td.sept.root, []
    for level in range(td.sept.levels - 1, 0, -1):
        entry = host.memory.qwords[(table >> 3) + (GPA >> 12 + 9 * level & 511)]
        table = entry & 0x000F_FFFF_FFFF_F000
        found.append(table)
    return found


@pytest.mark.parametrize("page", ["TDR", "TDCX", "root", "upper table", "lower table", "TDVPR", "TDCX of the vCPU"])
def test_a_page_that_holds_the_tds_state_costs_its_life(host: Host, page: str) -> None:
    tdr, tdvpr, _ = host.runnable()
    other, *_ = host.runnable()
    host.augment(tdr, GPA)
    td, vcpu = host.module.tds[tdr], host.module.vcpus[tdvpr]
    upper, *_, lower = tables(host, td)
    hpa = {
        "TDR": tdr, "TDCX": td.tdcx[0], "root": td.sept.root, "upper table": upper, "lower table": lower,
        "TDVPR": tdvpr, "TDCX of the vCPU": vcpu.pages[3],
    }[page]  # fmt: skip
    host.memory.write(hpa + 64, b"vandalism")
    assert host.enter(tdvpr)[0] == StatusCode.TD_FATAL
    assert host.call("TDH.MEM.PAGE.AUG", rcx=GPA + 4096, rdx=tdr, r8=host.page())[0] == StatusCode.TD_FATAL
    assert host.call("TDH.MEM.SEPT.RD", rcx=GPA, rdx=tdr)[0] == StatusCode.TD_FATAL
    host.ok("TDH.MEM.TRACK", rcx=other)
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)


def test_what_runs_meanwhile_leaves(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()

    def vandalise(_: Any) -> Any:
        host.memory.write(host.module.tds[tdr].sept.root, b"vandalism")
        return 48

    context.queue(vandalise)
    assert host.enter(tdvpr)[0] == StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE | ExitReason.EPT_VIOLATION


def test_guest_memory_and_pages_that_are_free_again_cost_no_life_by_themselves(host: Host) -> None:
    tdr = host.build()
    hpa = host.add(tdr, GPA)
    host.memory.write(hpa, b"vandalism")
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=tdr)
    host.memory.write(hpa, b"the host's again")
    table = tables(host, host.module.tds[tdr])[-1]
    host.ok("TDH.MEM.SEPT.REMOVE", rcx=GPA | 1, rdx=tdr)
    host.memory.write(table, b"the host's again")
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    former = host.create()
    host.tear_down(former)
    host.memory.write(former, b"the host's again")
    host.ok("TDH.MEM.TRACK", rcx=tdr)


def test_the_modules_metadata_costs_it_its_own(host: Host) -> None:
    """Machine check in SEAM mode: no logical processor can enter any more, and Linux sees VMfailInvalid."""
    host.memory.write(0x10_0000, b"vandalism")  # the PAMT
    for lp in (0, 1):
        assert host.call("TDH.SYS.INFO", lp=lp)[0] == VMFAIL_INVALID
        assert host.call("TDH.MNG.CREATE", rcx=host.page(), rdx=33, lp=lp)[0] == VMFAIL_INVALID
