# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's first touch of a 4 KiB page in one step: the exit, the fault and the entry, without leaving the processor.

A guest that boots accepts each of its pages, and each time TDG.MEM.PAGE.ACCEPT finds no page: the TD exits with an EPT
violation, KVM maps a page with TDH.MEM.PAGE.AUG and enters again, and the guest repeats the TDCALL. Nothing of that
depends on anything but KVM's tables. `FirstTouch` is what KVM does then, for the case that nothing is unusual; the
processor calls it in place of the exit (`Processor.first_touches`). It counts what the long way counts. Where anything
is unusual it changes nothing and answers no, and the long way is taken, which alone raises errors and exits.

A machine that is traced has no such step, so that a trace shows every exit and every SEAMCALL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import EXITS, PAGES_4K, PF_FIXED, PF_TAKEN
from swtdx.uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_PRIVATE = int(KVM_MEMORY_ATTRIBUTE_PRIVATE)
_IMMEDIATE_EXIT = run_struct.IMMEDIATE_EXIT


class FirstTouch:
    """Of one vCPU. Called by the module with its own lock held, which mmu_lock precedes: so that is only tried."""

    __slots__ = ("_vcpu",)

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def __call__(self, gpa: int, aug: Callable[[int], bool]) -> bool:
        """Map the page at ``gpa`` by ``aug``, which adds an HPA unless the module refuses it. True: done."""
        vcpu = self._vcpu
        kvm = vcpu.kvm
        mmu, tdx = kvm.mmu, kvm.tdx
        # What `vcpu_run` and `tdx_vcpu_run` look at between an exit and the next entry.
        if (
            vcpu.run[_IMMEDIATE_EXIT]
            or vcpu.nmi_pending
            or vcpu.interrupted
            or kvm.dead
            or kvm.cpus.waiters
            or tdx is None
            or tdx.wait_for_sept_zap
            or vcpu.tdx.pi_desc.requests
            or (vcpu.watches_signals and vcpu.signal_pending())
            or not mmu.lock.acquire(blocking=False)
        ):
            return False
        try:
            mirror = mmu.mirror
            gfn = gpa >> 12
            if mirror is None or gfn & mmu.direct_bits:
                return False
            if kvm.has_attributes and not kvm.attributes.load(gfn) & _PRIVATE:
                return False
            slot = kvm.memslots.gfn_to_memslot(gfn)
            table = mirror.table_of(gfn)
            if slot is None or slot.gmem is None or table is None:
                return False
            gmem, index = slot.gmem, gfn - slot.base_gfn + slot.gmem_pgoff
            page = gmem.pages.get(index)
            if page is None:
                try:
                    page = gmem.kvm_gmem_get_folio(index)
                except OSError:  # ENOMEM: the long way reports it
                    return False
            leaves, number = table.leaves, gfn & 511
            if number in leaves or not aug(page):
                return False
            leaves[number] = page
            mirror.mapped += 1
            gmem.prepared.add(index)
            values = vcpu.stat.values
            values[EXITS] += 1
            values[PF_TAKEN] += 1
            values[PF_FIXED] += 1
            kvm.stat.values[PAGES_4K] += 1
            return True
        finally:
            mmu.lock.release()
