# SPDX-License-Identifier: GPL-2.0-or-later
"""A Trust Domain: the module's decrypted view of its TDR (root) and TDCS (control structure).

The pages that the host donates for them belong to the TD's key and hold nothing here; only the Secure EPT root (the
fourth TDCX page) has to be real, because the processor walks it. LIFECYCLE_STATE, the KeyID and the count of child
pages outlive the key, as they do in the real TDR, which is written with the module's global key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from swtdx.seam.lifecycle import (
    LEAVES_ALLOWED,
    LIFECYCLE_STATE,
    NO_LEAVES,
    OP_STATE,
    TLB_TRACKING_REQUIRED,
    Event,
    LifecycleState,
    OpState,
)
from swtdx.seam.sept import SecureEpt
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load

if TYPE_CHECKING:
    from swtdx.seam.cpuid import VirtualCpuid
    from swtdx.seam.msr import MsrPolicy
    from swtdx.seam.td_params import TdParams
    from swtdx.seam.vcpu import Vcpu
    from swtdx.seam.version import ModuleVersion

_NUMBERS = {name: number for number, name, _ in load("leaves")["seamcall"]}
WITHOUT_OP_STATE_LOCK = frozenset(
    _NUMBERS[f"TDH.{name}"]
    for name in (
        *("MNG.INIT", "MEM.PAGE.ADD", "MR.EXTEND", "MR.FINALIZE", "EXPORT.PAUSE"),
        *(f"IMPORT.{step}" for step in ("ABORT", "COMMIT", "END", "STATE.IMMUTABLE", "STATE.TD", "TRACK")),
    )
)
"""Leaf functions that hold the TDR exclusively and need no lock for the OP_STATE."""
OP_STATE_LOCKED_EXCLUSIVELY = frozenset(
    _NUMBERS[f"TDH.{name}"]
    for name in ("EXPORT.ABORT", "EXPORT.STATE.IMMUTABLE", "EXPORT.STATE.TD", "EXPORT.TRACK", "MIG.STREAM.CREATE")
)
"""Leaf functions that may change the OP_STATE while others hold the TDR, too."""
HASH_SIZE = 48
NUM_RTMRS = 4
MIGRATION_FORM = 1 << 63
"""BEPOCH flag: the field holds a migration epoch."""

ATTRIBUTE_DEBUG = 1 << 0
ATTRIBUTE_SEPT_VE_DISABLE = 1 << 28
ATTRIBUTE_MIGRATABLE = 1 << 29
ATTRIBUTE_PKS = 1 << 30
ATTRIBUTE_LASS = 1 << 27
ATTRIBUTE_PERFMON = 1 << 63
CONFIG_GPAW_52 = 1 << 0
CONFIG_FLEXIBLE_PENDING_VE = 1 << 1
CONFIG_NO_RBP_MOD = 1 << 2
CONFIG_MAXPA_VIRT, CONFIG_MAXGPA_VIRT = 1 << 3, 1 << 4
CTLS_PENDING_VE_DISABLE = 1 << 0
CTLS_ENUM_TOPOLOGY = 1 << 1
CTLS_VIRT_CPUID2 = 1 << 2


class Td:
    """One TD, from TDH.MNG.CREATE until its TDR is reclaimed."""

    __slots__ = ("__dict__", "__weakref__", "allowed", "epoch", "gpa_limit")  # PageRun reads them

    def __init__(self, hpa: int, hkid: int, pamt_index: int, version: ModuleVersion, uuid: bytes) -> None:
        self.version = version
        """That of the module which made it."""
        # TDR
        self.hpa = hpa
        self.hkid = hkid
        self.pamt_index = pamt_index
        """Index of the TDR page's metadata entry, for its lock."""
        self.uuid = uuid
        self.child_count = 0
        self.tdcx: list[int] = []
        self.packages_configured = 0
        self._lifecycle = LIFECYCLE_STATE.initial
        self.fatal = False
        """FATAL: set by `die`, for good."""
        # TDCS
        self._op_state = OP_STATE.initial
        self.allowed: frozenset[int] = NO_LEAVES
        """Numbers of the leaf functions that pass `check_state` now."""
        self.tlb_tracking = False
        self.vcpus: list[Vcpu] = []
        """Virtual CPUs that TDH.VP.INIT has made, by VCPU_INDEX."""
        self.num_vcpus = 0
        """NUM_VCPUS; may exceed len(vcpus): a VP.INIT that fails late has counted already."""
        self.x2apic_ids: list[int] = []
        """X2APIC_IDS, by VCPU_INDEX: also of a TDH.VP.INIT that fails late; 0 of a virtual CPU without an id."""
        self.num_associated = 0
        self.epoch = 1
        self.refcount = [0, 0]
        self.attributes = 0
        self.xfam = 0
        self.max_vcpus = 0
        self.num_l2_vms = 0
        self.config_flags = 0
        self.td_ctls = 0
        self.notify_enables = 0
        self.vm_ctls = [0, 0, 0, 0]
        self.hp_lock_timeout = 0
        self.topology_enum_configured = True
        self.virt_maxpa = 0
        self.tsc_frequency = 0
        self.tsc_multiplier = 0
        self.tsc_offset = 0
        self.arch_capabilities = 0
        self.private_limit = 0
        """First GPA that is not private."""
        self.gpa_limit = 0
        """First GPA that a walk of the Secure EPT refuses: the same, or 0 while another holds the tree exclusively."""
        self._locks: dict[Operand, bool] = {}
        """Locks of this TD that another logical processor holds (`contention`); whether only shared."""
        self.shared_bit = 0
        self.illegal_gpa_bits = 0
        """GPA bits that no guest page table may use: an access with one is a reserved-bit page fault."""
        self.debug = False
        self.passes_rbp = False
        """The guest has selected RBP in a TDVMCALL. Not state of the real module; `swtdx run` reports it."""
        self.sept: SecureEpt
        self.cpuid: VirtualCpuid
        self.msrs: MsrPolicy
        self.params: TdParams
        # measurement
        self.mrtd_context = hashlib.sha384()
        self.mrtd = bytes(HASH_SIZE)
        self.mrconfigid = bytes(HASH_SIZE)
        self.mrowner = bytes(HASH_SIZE)
        self.mrownerconfig = bytes(HASH_SIZE)
        self.rtmr = [bytes(HASH_SIZE)] * NUM_RTMRS
        self.rtmr_events: list[tuple[int, bytes]] = []
        """What RTMRs were extended with, in order (register, data): for `MachineKernel.inspect_td`."""
        self.tee_info_hashed = False
        """The module holds the hash of TDINFO, which TDG.MR.REPORT need not compute again."""
        self.servtd_hash = bytes(HASH_SIZE)

    # --- states -------------------------------------------------------------------------------------------------------

    @property
    def lifecycle(self) -> LifecycleState:
        """LIFECYCLE_STATE."""
        return self._lifecycle

    @property
    def op_state(self) -> OpState:
        """OP_STATE."""
        return self._op_state

    def advance(self, event: Event) -> None:
        """Move LIFECYCLE_STATE or OP_STATE, whichever the event belongs to; raises IllegalTransition."""
        if event in LIFECYCLE_STATE.transitions:
            self.restore(lifecycle=LIFECYCLE_STATE.after(self._lifecycle, event))
        else:
            self.restore(op_state=OP_STATE.after(self._op_state, event))

    def restore(self, *, lifecycle: LifecycleState | None = None, op_state: OpState | None = None) -> None:
        """Set states that a TD had, without a transition."""
        if lifecycle is not None:
            self._lifecycle = lifecycle
        if op_state is not None:
            self._op_state = op_state
            self.tlb_tracking = op_state in TLB_TRACKING_REQUIRED or self.version.always_tracks
        self.admit()

    def die(self) -> None:
        """Mark the TD FATAL after an unrecoverable error; its key and pages can only be reclaimed."""
        self.fatal = True
        self.admit()

    def admit(self) -> None:
        """Recompute which leaf functions pass; also to be called when a TDCX page has been added."""
        alive = not self.fatal and self._lifecycle is LifecycleState.KEYS_CONFIGURED and self._has_tdcs()
        self.allowed = LEAVES_ALLOWED[self._op_state] if alive and not self._locks else NO_LEAVES

    @property
    def is_being_built(self) -> bool:
        """Whether its measurement is not final yet."""
        alive = not self.fatal and self._lifecycle in (LifecycleState.HKID_ASSIGNED, LifecycleState.KEYS_CONFIGURED)
        return alive and self._op_state in (OpState.UNINITIALIZED, OpState.INITIALIZED)

    def go_on(self, kept: None) -> None:
        """Follow the state that was given back."""
        self.admit()

    def check_state(self, leaf: int) -> None:
        """Check STATE(leaf): raises the Status of the first check that refuses this leaf function."""
        if leaf in self.allowed:
            return
        self._check_keys()
        if not self._has_tdcs() and self.version.tdcs_before_op_state:
            raise Status(StatusCode.TDCS_NOT_ALLOCATED)
        # After the TDCS is known to exist, because the lock is a part of it.
        if leaf not in WITHOUT_OP_STATE_LOCK:
            self.check_lock(Operand.OP_STATE, shared=leaf not in OP_STATE_LOCKED_EXCLUSIVELY)
        if leaf not in LEAVES_ALLOWED[self._op_state]:
            raise self.version.wrong_op_state(leaf, self._op_state)
        if not self._has_tdcs():
            raise Status(StatusCode.TDCS_NOT_ALLOCATED)

    def _check_keys(self) -> None:
        if self.fatal:
            raise Status(StatusCode.TD_FATAL)
        if self._lifecycle is not LifecycleState.KEYS_CONFIGURED:
            raise Status(StatusCode.TD_KEYS_NOT_CONFIGURED)

    def check_other(self, states: frozenset[OpState] | None = None) -> None:
        """Check the state of a TD with which a leaf function deals beside its own; ``states``: None for any.

        Raises TD_FATAL, TD_KEYS_NOT_CONFIGURED, TDCS_NOT_ALLOCATED, OPERAND_BUSY|OP_STATE, OP_STATE_INCORRECT.
        """
        self._check_keys()
        if not self._has_tdcs():
            raise Status(StatusCode.TDCS_NOT_ALLOCATED)
        self.check_lock(Operand.OP_STATE, shared=True)
        if states is not None and self._op_state not in states:
            raise Status(StatusCode.OP_STATE_INCORRECT)

    def _has_tdcs(self) -> bool:
        return len(self.tdcx) >= self.version.min_tdcx

    # --- locks --------------------------------------------------------------------------------------------------------

    def hold(self, lock: Operand, *, shared: bool) -> None:
        """Take a lock of this TD for another logical processor. The checks on fast paths look at locks only then."""
        self._locks[lock] = shared
        self._contended()

    def let_go(self, lock: Operand) -> None:
        """Release the other logical processor's lock."""
        del self._locks[lock]
        self._contended()

    def _contended(self) -> None:
        self.gpa_limit = 0 if self._locks.get(Operand.SEPT_TREE) is False else self.private_limit
        self.admit()

    def check_lock(self, lock: Operand, *, shared: bool = False) -> None:
        """Try a lock: raises OPERAND_BUSY when another holds it, unless both are content to share it."""
        if lock in self._locks and not (shared and self._locks[lock]):
            raise Status(StatusCode.OPERAND_BUSY, lock)

    def cannot_walk(self, gpa: int) -> Status:
        """Return why a GPA at or above `gpa_limit` is refused: it is not private, or the Secure EPT is locked."""
        if gpa >= self.private_limit:
            return Status(StatusCode.OPERAND_INVALID, Operand.RCX)
        return Status(StatusCode.OPERAND_BUSY, Operand.SEPT_TREE)

    # --- what follows from the configuration --------------------------------------------------------------------------

    @property
    def gpaw(self) -> int:
        """Guest-physical address width: 48 or 52."""
        return 52 if self.config_flags & CONFIG_GPAW_52 else 48

    @property
    def pending_ve_disable(self) -> bool:
        """Whether a guest access to a pending page exits to the host instead of raising #VE."""
        return bool(self.td_ctls & CTLS_PENDING_VE_DISABLE)

    @property
    def vcpu_pages(self) -> int:
        """Pages a TDVPS needs: TDVPR and TDCX."""
        return 6 + 3 * self.num_l2_vms

    # --- TLB tracking -------------------------------------------------------------------------------------------------

    def enter_epoch(self) -> int:
        """Count a virtual CPU that enters; returns the epoch it runs in."""
        self.refcount[self.epoch & 1] += 1
        return self.epoch

    def leave_epoch(self, epoch: int) -> None:
        """Count a virtual CPU that entered in ``epoch`` as exited."""
        self.refcount[epoch & 1] -= 1

    def tracked(self, bepoch: int) -> bool:
        """Return whether no processor can still hold a translation that was blocked at ``bepoch``."""
        if bepoch & MIGRATION_FORM:
            return False
        # Blocked two epochs ago: TDH.MEM.TRACK has waited. One ago: all that ran then must have exited.
        return bepoch < self.epoch - 1 or (bepoch == self.epoch - 1 and self.refcount[bepoch & 1] == 0)
