# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machines of the module, in one place: the module itself, a KeyID, a TD and a virtual CPU.

A TD carries two states. LIFECYCLE_STATE lives in the TDR and follows its key: HKID_ASSIGNED -> KEYS_CONFIGURED ->
BLOCKED -> TEARDOWN. OP_STATE lives in the TDCS, which exists only while the key does, and follows what is done with
the TD: UNINITIALIZED -> INITIALIZED -> RUNNABLE (and the migration states). Every leaf that works on a TD's control
structure first asks whether the OP_STATE lets it; the answer is a table (``tables/op_states.json``).

Sources: TDX module 1.5.06, tables of the leaf functions' allowed states.
"""

from __future__ import annotations

from enum import IntEnum

from swtdx.seam.tables import load


class SysState(IntEnum):
    """State of the module as a whole; the SEAMCALL entry asks it before any leaf runs."""

    SYSINIT_PENDING = 0
    SYSINIT_DONE = 1
    SYSCONFIG_DONE = 2
    SYS_READY = 3
    SHUTDOWN = 4


class HkidState(IntEnum):
    """State of a private KeyID in the key ownership table (KOT)."""

    FREE = 0
    ASSIGNED = 1
    FLUSHED = 2
    RESERVED = 3


class LifecycleState(IntEnum):
    """LIFECYCLE_STATE of a TD, in its TDR."""

    HKID_ASSIGNED = 0
    KEYS_CONFIGURED = 1
    BLOCKED = 2
    TEARDOWN = 3


class OpState(IntEnum):
    """OP_STATE of a TD, in its TDCS."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    RUNNABLE = 2
    LIVE_EXPORT = 3
    PAUSED_EXPORT = 4
    POST_EXPORT = 5
    MEMORY_IMPORT = 6
    STATE_IMPORT = 7
    POST_IMPORT = 8
    LIVE_IMPORT = 9
    FAILED_IMPORT = 10


class VcpuState(IntEnum):
    """VCPU_STATE, in the TDVPS."""

    UNINITIALIZED = 0
    READY = 2
    ACTIVE = 4
    DISABLED = 8
    IMPORT = 0x10


class LastTdExit(IntEnum):
    """How a virtual CPU last left its guest: decides what VP.ENTER takes from the host's registers."""

    ASYNC_FAULT = 0
    ASYNC_TRAP = 1
    TDVMCALL = 2


_TABLE = load("op_states")
_NUMBERS = {name.replace(".", "_"): number for number, name, _ in load("leaves")["seamcall"]}

LEAVES_ALLOWED: dict[OpState, frozenset[int]] = {
    state: frozenset(_NUMBERS[leaf] for leaf, states in _TABLE["seamcall_allowed"].items() if state.name in states)
    for state in OpState
}
"""For each OP_STATE the numbers of the leaf functions it lets pass."""


def _having(flag: str) -> frozenset[OpState]:
    return frozenset(state for state in OpState if flag in _TABLE["state_flags"][state.name])


TLB_TRACKING_REQUIRED = _having("tlb_tracking_required")
"""OP_STATEs in which a mapping must be blocked and tracked before it is removed."""
IMPORT_IN_PROGRESS = _having("import_in_progress")

NO_LEAVES: frozenset[int] = frozenset()
"""What a TD allows whose key is gone or that is dead."""
