# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module as loaded into the SEAM range: its global state and the SEAMCALL gate.

Leaf functions exclude each other by one lock, which is released while a guest runs. A host therefore gets OPERAND_BUSY
only for what a running virtual CPU holds: its TD and itself. `contention` produces the other cases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from swtdx.seam import dispatch, tdh
from swtdx.seam.contention import Contention
from swtdx.seam.hardware import Args, Memory, Platform, Processor
from swtdx.seam.identity import Identity
from swtdx.seam.keys import KeyOwnershipTable
from swtdx.seam.lifecycle import SYS_STATE, Event, SysState
from swtdx.seam.operands import HostAddresses
from swtdx.seam.pamt import PageType, Pamt
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import Td
from swtdx.seam.td_params import Rules
from swtdx.seam.tdg.tdcall import tdcalls_of
from swtdx.seam.tdh.mem_removal import removed
from swtdx.seam.vcpu import Vcpu
from swtdx.seam.version import ModuleVersion, module_version
from swtdx.x86 import PAGE_SIZE

assert tdh.LOADED

CONTROL_PAGES = (PageType.TDCX, PageType.TDVPR, PageType.TDVPX, PageType.EPT)
"""What holds a TD's state and not its memory; the TDR is under the module's own key."""


class TdxModule:
    """The emulated TDX module of one processor; `seamcall` is its only entry.

    ``identity`` gives the test values that reports carry; each machine has its own report key.
    """

    def __init__(self, processor: Processor, identity: Identity | None = None) -> None:
        self.version: ModuleVersion = module_version(processor.platform.module_version)
        self.leaves = dispatch.leaves_of(self.version)
        self.tdcalls = tdcalls_of(self.version)
        self.processor: Processor = processor
        self.memory: Memory = processor.memory
        self.platform: Platform = processor.platform
        self.identity: Identity = identity or Identity.of(self.version)
        self.lock = threading.Lock()
        self.restore(SYS_STATE.initial)
        self._presented: Callable[[int, int], tuple[int, bool]] | None = (
            self.version.present if self.version.has_own_statuses else None
        )
        self.initialized_lps: set[int] = set()
        self.shut_down_lps: set[int] = set()
        """Logical processors that TDH.SYS.LP.SHUTDOWN of module 1.0 has taken out: SEAMCALL fails there."""
        self.packages_configured: set[int] = set()
        self.global_hkid = 0
        self.tsc_adjust = 0
        """IA32_TSC_ADJUST at SYS.INIT."""
        self.host = HostAddresses(processor.platform)
        self.kot = KeyOwnershipTable(processor.platform)
        self.pamt = Pamt(processor.memory, self.host.hkid_shift)
        self.td_rules = Rules(processor, self.version)
        self.tds: dict[int, Td] = {}
        """By HPA of the TDR. A TDR is in here exactly as long as its page is PT_TDR."""
        self.vcpus: dict[int, Vcpu] = {}
        """By HPA of the TDVPR, likewise."""
        self.interrupted_write_back: dict[int, list[int]] = {}
        """By package: the KeyIDs of a TDH.PHYMEM.CACHE.WB that an interrupt stopped."""
        self.contention = Contention(self.pamt, self.tds, self.vcpus)
        self.memory.on_broken = self._integrity_broken

    def seamcall(self, fn: int, args: Args, lp: int) -> int:
        """Serve one SEAMCALL on logical processor ``lp``: ``fn`` is RAX, ``args`` registers in and out; returns RAX."""
        with self.lock:
            # Look first: one lookup covers reserved bits, version, SYS_STATE and leaf number of a call that passes.
            found = self._open.get(fn)
            if found is None:
                if lp in self.shut_down_lps:
                    return dispatch.VMFAIL_INVALID
                refused = dispatch.refuse(fn, self._state, self.version)
                if refused is not None:
                    return dispatch.refused(refused, fn, args, self.leaves)
                found = self.leaves[fn]
            handler, defaults = found
            try:
                status = handler(self, args, lp)
            except Status as failure:
                status = dispatch.failed(failure, args, defaults)
            if self._presented is not None:
                status, shows = self._presented(status, fn)
                if not shows:
                    args.rcx = args.rdx = 0
            return status

    def remove_pages(self, tdr: int, gpa: int, indices: Sequence[int], pages: Sequence[int]) -> bool:
        """Do in one step what the host would ask for page by page (`mem_removal`). False: nothing is done."""
        with self.lock:
            td = self.tds.get(tdr) if self._open else None
            return td is not None and removed(self, td, gpa, indices, pages)

    @property
    def state(self) -> SysState:
        """SYS_STATE."""
        return self._state

    def advance(self, event: Event) -> None:
        """Move SYS_STATE; raises IllegalTransition."""
        self.restore(SYS_STATE.after(self._state, event))

    def restore(self, state: SysState) -> None:
        """Set SYS_STATE to one that the module had, without a transition."""
        self._state = state
        # An empty table sends every call through the dispatcher's checks: only SYS_READY may skip them.
        self._open = self.leaves if state is SysState.SYS_READY else {}

    def kept(self) -> bool:
        """Return whether calls may skip the dispatcher's checks."""
        return self._open is self.leaves

    def go_on(self, kept: bool) -> None:
        """Follow the state that was given back."""
        self._open = self.leaves if kept else {}

    def package_of(self, lp: int) -> int:
        """Return the package of a logical processor; they are numbered package by package."""
        return lp * self.platform.packages // self.platform.logical_processors

    # --- integrity ----------------------------------------------------------------------------------------------------

    def _integrity_broken(self, hpa: int) -> None:
        """Handle a host write to a private page: the next access to the page takes a machine check.

        A page of guest memory matters when the guest reads it. A page with which the module and the processor run a TD
        (TDR, TDCX, TDVPR, Secure EPT) is fatal to the TD at any access. A page of the module's own metadata is fatal to
        the module: a machine check in SEAM mode disables the logical processor for SEAM, here all of them.
        """
        if hpa in self.tds:
            self.tds[hpa].die()
        elif self.pamt.lies_in(hpa):
            self._open = {}
            self.shut_down_lps.update(range(self.platform.logical_processors))
        elif (block := self.pamt.blocks.get(hpa >> 30)) is not None:
            index, _ = self.pamt.search(block, hpa)
            td = self.tds.get(self.pamt.owner_at(index))
            if td is not None and self.pamt.type_at(index) in CONTROL_PAGES:
                td.die()

    # --- operands -----------------------------------------------------------------------------------------------------

    def td(self, hpa: int, operand: Operand) -> Td:
        """Return TDR(operand) shared: the TD whose root page this is."""
        td = self.tds.get(hpa)
        if td is None:
            self.pamt.page(hpa, operand, PageType.TDR)
            raise AssertionError("a PT_TDR page without a TD")
        return td

    def td_exclusive(self, hpa: int, operand: Operand) -> Td:
        """Return TDR(operand) exclusive; raises OPERAND_BUSY while a virtual CPU of the TD runs."""
        td = self.td(hpa, operand)
        if self.pamt.locked(td.pamt_index):
            raise Status(StatusCode.OPERAND_BUSY, operand)
        return td

    def vcpu(self, hpa: int, operand: Operand) -> Vcpu:
        """Return TDVPR(operand) shared: the virtual CPU whose root page this is."""
        vcpu = self.vcpus.get(hpa)
        if vcpu is None:
            self.pamt.page(hpa, operand, PageType.TDVPR)
            raise Status(StatusCode.OPERAND_BUSY, Operand.TDR)  # its TD is held exclusively (`contention`)
        return vcpu

    def vcpu_exclusive(self, hpa: int, operand: Operand) -> Vcpu:
        """Return TDVPR(operand) exclusive; raises OPERAND_BUSY while the virtual CPU runs."""
        vcpu = self.vcpu(hpa, operand)
        if self.pamt.locked(vcpu.pamt_index):
            raise Status(StatusCode.OPERAND_BUSY, operand)
        return vcpu

    # --- pages --------------------------------------------------------------------------------------------------------

    def read_host(self, pa: int, length: int) -> bytes:
        """Read a host buffer with the KeyID in ``pa``; all ones where there is no memory, as on the bus."""
        try:
            return self.memory.read(pa, length)
        except ValueError:
            return b"\xff" * length

    def write_host(self, pa: int, data: bytes) -> None:
        """Write a host buffer with the KeyID in ``pa``; lost where there is no memory."""
        if self.host.split(pa)[0] + len(data) <= self.memory.size:
            self.memory.write(pa, data)

    def take_page(self, hpa: int, hkid: int, content: bytes) -> None:
        """Write a whole control-structure page under the TD's (or the module's) key."""
        self.memory.set_key(hpa, hkid)
        self.memory.raw[hpa : hpa + PAGE_SIZE] = content
