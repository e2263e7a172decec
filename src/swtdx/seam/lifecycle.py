# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machines of the module: the module itself, a KeyID, a TD (which has two) and a virtual CPU.

Each machine is a table: for each event, which state it leads to from which state. `Machine.after` applies a table, and
nothing else computes a state; a pair that is not in the table raises IllegalTransition and changes nothing. The objects
that hold a state change it in their method ``advance`` only. The Secure-EPT entries have the same kind of table in
`sept`. The diagrams in the documentation are drawn from these tables.

An event is a leaf function, named as it is called, or something that happens to a guest. A leaf function checks the
state first and answers with a status; the table is what that check promises. Some leaf functions move a state only the
last time they are called, for example once per package (KEY.CONFIG).

A TD carries two states. LIFECYCLE_STATE lives in the TDR and follows the TD's key. OP_STATE lives in the TDCS, which
exists only while the key does, and follows what is done with the TD. Every leaf that works on a TD's control structure
first asks whether the OP_STATE lets it; the answer is a table (``tables/op_states.json``).

Sources: TDX module 1.5.06, tables of the leaf functions' allowed states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Generic, TypeVar

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


class Event(StrEnum):
    """What moves a state machine."""

    SYS_INIT = "TDH.SYS.INIT"
    SYS_CONFIG = "TDH.SYS.CONFIG"
    SYS_KEY_CONFIG = "TDH.SYS.KEY.CONFIG"
    SYS_SHUTDOWN = "TDH.SYS.SHUTDOWN"
    SYS_LP_SHUTDOWN = "TDH.SYS.LP.SHUTDOWN"
    MNG_CREATE = "TDH.MNG.CREATE"
    MNG_KEY_CONFIG = "TDH.MNG.KEY.CONFIG"
    MNG_INIT = "TDH.MNG.INIT"
    MNG_VPFLUSHDONE = "TDH.MNG.VPFLUSHDONE"
    MNG_KEY_FREEID = "TDH.MNG.KEY.FREEID"
    MR_FINALIZE = "TDH.MR.FINALIZE"
    VP_INIT = "TDH.VP.INIT"
    VP_ENTER = "TDH.VP.ENTER"
    TD_EXIT = "TD exit"
    TRIPLE_FAULT = "triple fault"


class IllegalTransition(RuntimeError):
    """A state machine has no transition for this event in this state: a check of the caller is missing."""


S = TypeVar("S", bound=IntEnum)


@dataclass(frozen=True)
class Machine(Generic[S]):
    """One state machine. States that no event leads to belong to features that are not reproduced."""

    name: str
    initial: S
    transitions: Mapping[Event, Mapping[S, S]]

    def after(self, state: S, event: Event) -> S:
        """Return the state that ``event`` leads to; raises IllegalTransition."""
        try:
            return self.transitions[event][state]
        except KeyError:
            raise IllegalTransition(f"{self.name}: {event} in {state.name}") from None


SYS_STATE = Machine(
    "SYS_STATE",
    SysState.SYSINIT_PENDING,
    {
        Event.SYS_INIT: {SysState.SYSINIT_PENDING: SysState.SYSINIT_DONE},
        Event.SYS_CONFIG: {SysState.SYSINIT_DONE: SysState.SYSCONFIG_DONE},
        Event.SYS_KEY_CONFIG: {SysState.SYSCONFIG_DONE: SysState.SYS_READY},
        Event.SYS_SHUTDOWN: {SysState.SYS_READY: SysState.SHUTDOWN},
        # Module 1.0 only, which takes the call in any state; since 1.5 it does nothing.
        Event.SYS_LP_SHUTDOWN: dict.fromkeys(SysState, SysState.SHUTDOWN),
    },
)
HKID_STATE = Machine(
    "HKID_STATE",
    HkidState.FREE,
    {
        Event.SYS_CONFIG: {
            HkidState.FREE: HkidState.RESERVED,
            # A call that failed over a TDMR has reserved its KeyID already, and the next one may name the same.
            HkidState.RESERVED: HkidState.RESERVED,
        },
        Event.MNG_CREATE: {HkidState.FREE: HkidState.ASSIGNED},
        Event.MNG_VPFLUSHDONE: {HkidState.ASSIGNED: HkidState.FLUSHED},
        Event.MNG_KEY_FREEID: {HkidState.FLUSHED: HkidState.FREE},
    },
)
LIFECYCLE_STATE = Machine(
    "LIFECYCLE_STATE",
    LifecycleState.HKID_ASSIGNED,
    {
        Event.MNG_KEY_CONFIG: {LifecycleState.HKID_ASSIGNED: LifecycleState.KEYS_CONFIGURED},
        Event.MNG_VPFLUSHDONE: {
            LifecycleState.HKID_ASSIGNED: LifecycleState.BLOCKED,
            LifecycleState.KEYS_CONFIGURED: LifecycleState.BLOCKED,
        },
        Event.MNG_KEY_FREEID: {LifecycleState.BLOCKED: LifecycleState.TEARDOWN},
    },
)
OP_STATE = Machine(
    "OP_STATE",
    OpState.UNINITIALIZED,
    {
        Event.MNG_INIT: {OpState.UNINITIALIZED: OpState.INITIALIZED},
        Event.MR_FINALIZE: {OpState.INITIALIZED: OpState.RUNNABLE},
    },
)
VCPU_STATE = Machine(
    "VCPU_STATE",
    VcpuState.UNINITIALIZED,
    {
        Event.VP_INIT: {VcpuState.UNINITIALIZED: VcpuState.READY},
        Event.VP_ENTER: {VcpuState.READY: VcpuState.ACTIVE},
        Event.TD_EXIT: {VcpuState.ACTIVE: VcpuState.READY},
        Event.TRIPLE_FAULT: {VcpuState.ACTIVE: VcpuState.DISABLED},
    },
)

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
