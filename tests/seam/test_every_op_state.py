# SPDX-License-Identifier: GPL-2.0-or-later
"""Every (leaf function, OP_STATE) pair of the published table, in the states that SEAMCALLs lead to.

The eight states of export and import are those of a migration, which this module does not reproduce: no sequence of
SEAMCALLs leads there. `test_op_states` puts a TD into them by hand and finds the table's answer all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.lifecycle import OpState
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tables import load
from testing.seam.fake_host import Host
from tests.seam.test_op_states import CHECKED

TABLE = load("op_states")["seamcall_allowed"]
NAMES = {name.replace(".", "_"): name for _, name, _ in load("leaves")["seamcall"]}
REACHABLE = (OpState.UNINITIALIZED, OpState.INITIALIZED, OpState.RUNNABLE)
OF_A_VCPU = {"VP_ENTER", "VP_ADDCX", "VP_FLUSH", "VP_INIT", "VP_RD", "VP_WR", "EXPORT_STATE_VP", "IMPORT_STATE_VP"}
VCPU_IN_RDX = {"VP_ADDCX"}
TD_IN_RCX = {
    "MNG_RD", "MNG_WR", "MNG_INIT", "MR_FINALIZE", "MEM_TRACK", "SERVTD_BIND", "SERVTD_PREBIND", "EXPORT_ABORT",
    "EXPORT_PAUSE", "EXPORT_TRACK", "EXPORT_STATE_IMMUTABLE", "EXPORT_STATE_TD", "IMPORT_ABORT", "IMPORT_END",
    "IMPORT_COMMIT", "IMPORT_TRACK", "IMPORT_STATE_IMMUTABLE", "IMPORT_STATE_TD",
}  # fmt: skip
PAIRS = [
    (leaf, state)
    for leaf in TABLE
    for state in REACHABLE
    if state is not OpState.UNINITIALIZED or leaf.removeprefix("TDH_") not in OF_A_VCPU
]
UNREACHABLE = {
    "the state is one of a migration": len(TABLE) * (len(OpState) - len(REACHABLE)),
    "a TD that is not initialised has no virtual CPU to name": len(OF_A_VCPU),
}
UNREACHABLE_STATES = len(OpState) - len(REACHABLE)
NOT_CONSULTED = {"TDH_VP_FLUSH"}
"""VP.FLUSH looks at the key only."""


@pytest.fixture
def td_in(host: Host) -> Any:
    def make(state: Any) -> Any:
        if state is OpState.UNINITIALIZED:
            return host.uninitialized(), 0
        if state is OpState.INITIALIZED:
            tdr = host.build()
            return tdr, host.vcpu(tdr, x2apic_id=0)
        return host.runnable()[:2]

    return make


@pytest.mark.parametrize(("leaf", "state"), PAIRS)
def test_pair(host: Host, td_in: Any, leaf: str, state: Any) -> None:
    short = leaf.removeprefix("TDH_")
    tdr, tdvpr = td_in(state)
    assert host.module.tds[tdr].op_state is state
    operands = {"rcx": 8, "rdx": tdr}  # RCX: no GPA and no page, so that what passes stops after OP_STATE
    if short in OF_A_VCPU:
        operands = {"rcx": tdvpr | (1 << 53 if short == "VP_ENTER" else 0), "rdx": 1}
        if short in VCPU_IN_RDX:
            operands = {"rcx": 8, "rdx": tdvpr}
    elif short in TD_IN_RCX:
        operands = {"rcx": tdr, "rdx": 1}
    elif short == "MNG_ADDCX":
        operands = {"rcx": host.page(), "rdx": tdr}
    before = host.snapshot()
    status, _ = host.call(NAMES[leaf], **operands)
    allowed = state.name in TABLE[leaf] or leaf in NOT_CONSULTED
    assert (status != StatusCode.OP_STATE_INCORRECT) == allowed
    assert status != StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX
    assert status != StatusCode.PAGE_METADATA_INCORRECT | Operand.RDX
    if not allowed:
        assert host.snapshot() == before


def test_all_pairs_are_accounted_for(report: Callable[..., None]) -> None:
    total = len(TABLE) * len(OpState)
    assert len(PAIRS) + sum(UNREACHABLE.values()) == total
    report(
        f"(leaf, OP_STATE): {len(PAIRS)} of {total} pairs driven by SEAMCALLs; not reachable:",
        *(f"  {count}: {reason}" for reason, count in UNREACHABLE.items()),
        f"  (of these {len(CHECKED) * UNREACHABLE_STATES} with an OP_STATE that was set by hand, in test_op_states)",
    )
