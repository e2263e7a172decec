# SPDX-License-Identifier: GPL-2.0-or-later
"""Each reproduced leaf function in each OP_STATE: allowed by the published table, or refused and nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.dispatch import LEAVES, SEAMCALL_NUMBERS
from swtdx.seam.lifecycle import LifecycleState, OpState
from swtdx.seam.status import StatusCode
from swtdx.seam.tables import load
from swtdx.seam.tdh import not_reproduced
from testing.seam.fake_host import Host

NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}
TABLE = load("op_states")["seamcall_allowed"]
# VP.FLUSH does not consult its row, ADDCX not for the first six pages (facts of the module, section OP_STATE).
NOT_CONSULTED = {"TDH.VP.FLUSH", "TDH.MNG.ADDCX"}
CHECKED = sorted(
    NAMES[number]
    for number in {fn & 0xFFFF for fn in LEAVES}
    if NAMES[number].replace(".", "_") in TABLE and NAMES[number] not in NOT_CONSULTED
)
TDR_IN_RCX = {"TDH.MNG.RD", "TDH.MNG.WR", "TDH.MNG.INIT", "TDH.MR.FINALIZE", "TDH.MEM.TRACK"} | {
    f"TDH.{name}" for name, shape in not_reproduced.SHAPES.items() if shape.operand == "rcx" and not shape.vcpu
}
TDVPR_IN_RCX = {"TDH.VP.ENTER", "TDH.VP.INIT", "TDH.VP.RD", "TDH.VP.WR"} | {
    f"TDH.{name}" for name, shape in not_reproduced.SHAPES.items() if shape.vcpu
}
TDVPR_IN_RDX = {"TDH.VP.ADDCX"}


@pytest.fixture(scope="module")
def td(new_host: Callable[..., Host]) -> Any:
    """One TD with a virtual CPU for the whole table; its OP_STATE is set by hand."""
    host = new_host().bring_up()
    tdr = host.build()
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    return host, tdr, tdvpr


@pytest.mark.parametrize("state", list(OpState))
@pytest.mark.parametrize("name", CHECKED)
def test_allowed_states(td: Any, name: str, state: OpState) -> None:
    host, tdr, tdvpr = td
    host.module.tds[tdr].restore(op_state=state)
    operands = {"rcx": 0, "rdx": tdr}
    if name in TDR_IN_RCX:
        operands = {"rcx": tdr, "rdx": 1}  # RDX: an invalid buffer or field
    elif name in TDVPR_IN_RCX:
        operands = {"rcx": tdvpr | (1 << 53 if name == "TDH.VP.ENTER" else 0), "rdx": 1}
    elif name in TDVPR_IN_RDX:
        operands = {"rcx": 1, "rdx": tdvpr}
    elif name == "TDH.VP.CREATE":
        operands = {"rcx": 1, "rdx": tdr}
    if name == "TDH.MR.FINALIZE":
        host.module.tds[tdr].num_vcpus = 0
    before = host.snapshot()
    status, _ = host.call(name, **operands)
    allowed = state.name in TABLE[name.replace(".", "_")]
    assert (status != StatusCode.OP_STATE_INCORRECT) == allowed
    if not allowed:
        assert host.snapshot() == before


@pytest.mark.parametrize("name", CHECKED)
def test_fatal_comes_before_keys_before_pages_before_op_state(host: Host, name: str) -> None:
    tdr = host.build()
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    td = host.module.tds[tdr]
    in_rcx = name in TDR_IN_RCX | TDVPR_IN_RCX
    target = tdvpr if name in TDVPR_IN_RCX | TDVPR_IN_RDX else tdr
    operands = {"rcx": target} if in_rcx else {"rcx": 0, "rdx": target}
    td.restore(op_state=OpState.FAILED_IMPORT if name != "TDH.MNG.INIT" else OpState.RUNNABLE)
    pages, td.tdcx = td.tdcx, td.tdcx[:5]
    td.admit()
    assert host.call(name, **operands)[0] == StatusCode.TDCS_NOT_ALLOCATED
    td.restore(lifecycle=LifecycleState.BLOCKED)
    assert host.call(name, **operands)[0] == StatusCode.TD_KEYS_NOT_CONFIGURED
    td.die()
    assert host.call(name, **operands)[0] == StatusCode.TD_FATAL
    assert pages
