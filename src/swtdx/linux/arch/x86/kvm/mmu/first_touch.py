# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's first touch of a 4 KiB page in one step: the exit, the fault and the entry, without leaving the processor.

A guest that boots accepts each of its pages, and each time TDG.MEM.PAGE.ACCEPT finds no page: the TD exits with an EPT
violation, KVM maps a page with TDH.MEM.PAGE.AUG and enters again, and the guest repeats the TDCALL. Nothing of that
depends on anything but KVM's tables. `FirstTouch` is what KVM does then, for the case that nothing is unusual; the
processor calls it in place of the exit (`Processor.first_touches`). It counts what the long way counts. Where anything
is unusual it changes nothing and answers no, and the long way is taken, which alone raises errors and exits.

The pages after it are taken by the processor (`PageRun`), which repeats what the step did for the first one.

A trace has for each page what it has on the long way: every exit and every SEAMCALL (`swtdx.seam.traced_module`). Where
SEAMCALLs are made to fail, or a run is recorded, there is no such step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.cpu._engine import PageRun
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import EXITS, PAGES_4K, PF_FIXED, PF_TAKEN
from swtdx.linux.virt.kvm.guest_memfd import PREPARED
from swtdx.uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from array import array

    from swtdx.linux.arch.x86.kvm.mmu.mirror import MirrorRoot
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd

_PRIVATE = int(KVM_MEMORY_ATTRIBUTE_PRIVATE)
_IMMEDIATE_EXIT = run_struct.IMMEDIATE_EXIT


class FirstTouch:
    """Of one vCPU. Called by the module with its own lock held, which mmu_lock precedes: so that is only tried.

    A guest accepts page after page. What is found for the first of 2 MiB (slot, guest_memfd, table of the mirror) is
    kept for the others, as long as neither slots nor attributes change.
    """

    __slots__ = (
        "_attributes",
        "_gmem",
        "_kvm",
        "_leaves",
        "_mirror",
        "_range",
        "_rest",
        "_shift",
        "_slots",
        "_usual",
        "_vcpu",
    )

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu, self._kvm = vcpu, vcpu.kvm
        self._slots = self._attributes = -1
        self._gmem: GuestMemfd
        self._mirror: MirrorRoot
        self._leaves: array[int]
        self._shift = 0
        self.forget()

    def __call__(self, gpa: int, aug: Callable[[int], bool]) -> int:
        """Map the page at ``gpa`` by ``aug``, which adds an HPA unless the module refuses it. Its HPA; 0: not done."""
        vcpu, kvm = self._vcpu, self._kvm
        mmu = kvm.mmu
        if (
            vcpu.run[_IMMEDIATE_EXIT]
            or any(getattr(owner, name) != value for owner, name, value in self._usual)
            or (vcpu.watches_signals and vcpu.signal_pending())
            or not mmu.lock.acquire(blocking=False)
        ):
            return 0
        try:
            gfn = gpa >> 12
            if (
                gfn >> 9 != self._range
                or kvm.memslots.generation != self._slots
                or kvm.attributes.generation != self._attributes
            ) and not self._find(gfn):
                return 0
            gmem, leaves = self._gmem, self._leaves
            index, number = gfn - self._shift, gfn & 511
            try:
                page = gmem.kvm_gmem_get_folio(index)
            except OSError:  # ENOMEM: the long way reports it
                return 0
            if leaves[number] or not aug(page):
                return 0
            leaves[number] = page
            self._mirror.mapped += 1
            entries = gmem.pages.get(index >> 9)
            if entries is not None:  # of a huge page all are prepared
                entries[index & 511] |= PREPARED
            values = vcpu.stat.values
            values[EXITS] += 1
            values[PF_TAKEN] += 1
            values[PF_FIXED] += 1
            kvm.stat.values[PAGES_4K] += 1
            return page
        finally:
            mmu.lock.release()

    def forget(self) -> None:
        """Look everything up again: the machine was restored."""
        vcpu = self._vcpu
        self._range = -1
        self._rest: PageRun | None = None
        # What `vcpu_run` and `tdx_vcpu_run` look at between an exit and the next entry: here, and in the pages after.
        self._usual: tuple[tuple[object, str, object], ...] = (
            (vcpu, "nmi_queued", 0),
            (vcpu, "nmi_pending", 0),
            (vcpu, "interrupted", False),
            (vcpu.kvm, "dead", False),
            (vcpu.kvm.cpus, "waiters", 0),
            (vcpu.kvm.tdx, "wait_for_sept_zap", False),
            (vcpu.tdx.pi_desc, "requests", 0),
        )

    def rest(self) -> PageRun | None:
        """Return what the processor may do for the other pages of the 2 MiB, if it can be said beforehand."""
        gmem, first = self._gmem, (self._range << 9) - self._shift
        # A signal that is blocked and let in by the vCPU's mask has to be asked for.
        if self._range < 0 or first & 511 or self._vcpu.sigset is not None:
            return None
        if self._rest is None and first >> 9 in gmem.pages:
            self._rest = self._made(gmem.pages[first >> 9])
        return self._rest

    def _made(self, books: array[int]) -> PageRun:
        """Put into one table what `__call__` looks at, and what it changes."""
        vcpu, kvm = self._vcpu, self._kvm
        pages = kvm.pages
        return PageRun(
            kvm.processor.memory,
            self._range,
            leaves=self._leaves,
            books=books,
            prepared=PREPARED,
            source=pages,
            given_back=pages.given_back,
            use=pages.number_of("guest_memfd"),
            mutex=kvm.mmu.lock,
            locked=pages.lock.locked,
            same=(
                *self._usual,
                (vcpu, "sigset", None),
                (kvm.memslots, "generation", self._slots),
                (kvm.attributes, "generation", self._attributes),
            ),
            zero=((vcpu.run, _IMMEDIATE_EXIT),),
            settle=self._settle,
        )

    def _settle(self, pages: int) -> None:
        """Count what the processor has done."""
        kvm, values = self._kvm, self._vcpu.stat.values
        with kvm.mmu.lock:
            self._mirror.mapped += pages
            kvm.stat.values[PAGES_4K] += pages
        for counter in (EXITS, PF_TAKEN, PF_FIXED):
            values[counter] += pages

    def _find(self, gfn: int) -> bool:
        """Find what stands behind ``gfn``; False if that is not private memory with a table. Under mmu_lock."""
        kvm = self._kvm
        self._rest = None
        mirror = kvm.mmu.mirror
        slots, attributes = kvm.memslots.generation, kvm.attributes.generation
        if mirror is None or gfn & kvm.mmu.direct_bits:
            return False
        if kvm.has_attributes and not kvm.attributes.load(gfn) & _PRIVATE:
            return False
        slot, table = kvm.memslots.gfn_to_memslot(gfn), mirror.table_of(gfn)
        if slot is None or slot.gmem is None or table is None:
            return False
        self._gmem, self._shift = slot.gmem, slot.base_gfn - slot.gmem_pgoff
        self._mirror, self._leaves = mirror, table.leaves
        base, end = gfn & -512, gfn & -512 | 511
        alike = slot.base_gfn <= base and end < slot.end_gfn
        if alike and kvm.has_attributes:
            alike = kvm.attributes.range_has(base, end + 1, _PRIVATE)
        self._range, self._slots, self._attributes = gfn >> 9 if alike else -1, slots, attributes
        return True
