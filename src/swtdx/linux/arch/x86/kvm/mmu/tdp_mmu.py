# SPDX-License-Identifier: GPL-2.0-or-later
"""Two-dimensional paging: from a guest's EPT violation to a mapping (arch/x86/kvm/mmu/mmu.c, tdp_mmu.c).

A normal VM has one root. A TD has two: the shared bit of the faulting address picks the direct root (shared EPT) or the
mirror root (Secure EPT). Slots, attributes and exits know frames without that bit. A KVM_X86_SW_PROTECTED_VM has one
root too; the attribute of the frame alone says whether its guest_memfd or user memory stands there.

A change of slots, attributes or the pages behind them is first made visible, or made with mmu_lock held, and then the
range is zapped. A fault holds mmu_lock from its first look to its entry, so that it either sees the change or is zapped
with it. upstream: a fault looks without the lock, and counts invalidations to notice a change meanwhile
(mmu_invalidate_retry). `kvm_main` has the order of the locks.

Order of a fault (kvm_mmu_faultin_pfn): does the access agree with the frame's attribute, is there a slot, has the slot
what backs it; then the page, then the table. Refusals leave KVM_RUN with EFAULT and KVM_EXIT_MEMORY_FAULT.

In the v10 dialect there is no attribute that user space sets: the shared bit of the access alone decides, every slot of
a TD can hold both, and `drop_private` (MapGPA) removes the side that the guest gave up.
"""

from __future__ import annotations

import errno
import threading
from enum import IntEnum
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.mmu.direct import DirectRoot
from swtdx.linux.arch.x86.kvm.mmu.mirror import MirrorRoot
from swtdx.linux.arch.x86.kvm.mmu.spte import (
    EPT_EXECUTABLE,
    EPT_IPAT,
    EPT_LARGE,
    EPT_MT_WB,
    EPT_READABLE,
    EPT_RWX,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PG_LEVEL_512G,
    TDX_MMIO_VALUE,
    eptp,
    pages_per_level,
)
from swtdx.linux.err import reason_of
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.virt.kvm.binary_stats import PAGES_2M, PAGES_4K, PF_EMULATE, PF_FIXED, PF_TAKEN
from swtdx.linux.virt.kvm.guest_memfd import kvm_gmem_get_index
from swtdx.uapi.kvm import KVM_MEM_READONLY, KVM_MEMORY_ATTRIBUTE_PRIVATE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.linux.virt.kvm.memslots import Memslot

_LEAF = EPT_RWX | EPT_MT_WB | EPT_IPAT
_LEAF_READ_ONLY = EPT_READABLE | EPT_EXECUTABLE | EPT_MT_WB | EPT_IPAT
_READONLY = int(KVM_MEM_READONLY)
_2M_FRAMES = 512


class RetPf(IntEnum):
    """What became of a fault (RET_PF_*)."""

    RETRY = 1  # nothing was done, or another vCPU did it: let the guest try again
    FIXED = 2
    EMULATE = 3  # there is no memory: the access is MMIO


class TdpMmu:
    """A VM's page tables."""

    def __init__(self, kvm: Kvm, levels: int = 4) -> None:
        self.kvm = kvm
        self.lock = threading.RLock()  # mmu_lock
        self.direct = DirectRoot(kvm.pages, levels)
        self.mirror: MirrorRoot | None = None
        self.invalidating: list[tuple[int, int]] = []
        """User addresses whose mappings change just now (mmu_invalidate_in_progress)."""
        self.direct_bits = 0  # gfn bits that are set in the shared half (gfn_direct_bits)

    def init_mirror(self, levels: int, direct_bits: int) -> None:
        """A TD got its address width: both roots are made for it."""
        with self.lock:
            if self.direct.levels != levels:
                self.direct.free()
                self.direct = DirectRoot(self.kvm.pages, levels)
            self.mirror = MirrorRoot(self.kvm, levels)
            self.direct_bits = direct_bits

    @property
    def eptp(self) -> int:
        """EPT pointer of the direct root."""
        return eptp(self.direct.root, self.direct.levels)

    def cover(self, end_gfn: int) -> None:
        """Let the direct root reach all frames below ``end_gfn``; five levels only for a guest that needs them."""
        with self.lock:
            if end_gfn - 1 >> 9 * self.direct.levels:
                self.direct.grow()
                for vcpu in self.kvm.vcpus:
                    self.kvm.ops.load_mmu_pgd(vcpu)
                self.kvm.kvm_flush_remote_tlbs()

    # --- Faults -------------------------------------------------------------------------------------------------------

    def kvm_tdp_page_fault(self, vcpu: Vcpu, gpa: int, write: bool, level: int | None = None) -> RetPf:
        """Map what a fault asks for. ``level``: at which the guest accepts the private page, if that is what it does.

        Raises OSError: EFAULT with a memory-fault exit, ENOMEM, EIO when it killed the VM.
        """
        values = vcpu.stat.values
        values[PF_TAKEN] += 1
        with self.lock:  # slot, attribute and page must still be so when the entry is written
            result = self.kvm_tdp_mmu_page_fault(vcpu, gpa, write, level)
            self.kvm_update_page_stats()
        if result is RetPf.FIXED:
            values[PF_FIXED] += 1
        elif result is RetPf.EMULATE:
            values[PF_EMULATE] += 1
        return result

    def kvm_update_page_stats(self) -> None:
        """Count the pages of both roots."""
        values, leaves, mirror = self.kvm.stat.values, self.direct.leaves, self.mirror
        huge = mirror.huge if mirror is not None else 0
        values[PAGES_4K] = leaves[PG_LEVEL_4K] + (mirror.mapped - _2M_FRAMES * huge if mirror is not None else 0)
        values[PAGES_2M] = leaves[PG_LEVEL_2M] + huge

    def kvm_tdp_mmu_page_fault(self, vcpu: Vcpu, gpa: int, write: bool, level: int | None) -> RetPf:
        kvm = self.kvm
        gfn = gpa >> PAGE_SHIFT
        if self.mirror is None:
            if kvm.has_attributes and kvm.attributes.load(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                return self._sw_protected_fault(vcpu, gfn)
            return self._direct_fault(vcpu, gfn, write)
        private = not gfn & self.direct_bits
        gfn &= ~self.direct_bits
        if kvm.has_attributes and private != bool(kvm.attributes.load(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE):
            raise vcpu.memory_fault(
                gfn, private, f"gfn {gfn:#x} accessed as {'private' if private else 'shared'}, but is not"
            )
        if private:
            return self._private_fault(vcpu, gfn, level)
        return self._direct_fault(vcpu, gfn, write)

    def _private_memory(self, vcpu: Vcpu, gfn: int) -> tuple[Memslot, GuestMemfd, int]:
        """Return the slot at a private frame, its guest_memfd and the page of that. Raises OSError(EFAULT)."""
        slot = self.kvm.memslots.gfn_to_memslot(gfn)
        if slot is None:
            raise vcpu.memory_fault(gfn, True, f"private access to gfn {gfn:#x}, where there is no slot")
        if slot.gmem is None:
            raise vcpu.memory_fault(gfn, True, f"private access to gfn {gfn:#x}, whose slot has no guest_memfd")
        return slot, slot.gmem, kvm_gmem_get_index(slot, gfn)

    def _sw_protected_fault(self, vcpu: Vcpu, gfn: int) -> RetPf:
        """Map a page of the guest_memfd where the EPT would otherwise have user memory."""
        _, gmem, index = self._private_memory(vcpu, gfn)
        page = self.kvm_mmu_faultin_pfn_gmem(vcpu, gmem, index, gfn)
        if self.direct.kvm_tdp_mmu_map(gfn, page | _LEAF, PG_LEVEL_4K):
            self.kvm.kvm_flush_remote_tlbs()
        gmem.kvm_gmem_mark_prepared(index)
        return RetPf.FIXED

    def _private_fault(self, vcpu: Vcpu, gfn: int, level: int | None) -> RetPf:
        slot, gmem, index = self._private_memory(vcpu, gfn)
        mirror = self.mirror
        assert mirror is not None
        huge_pages = self.kvm.kernel.tdx_huge_page
        try:
            if huge_pages and level == PG_LEVEL_2M and self._map_huge(slot, gfn):
                return RetPf.FIXED
            mirror.kvm_tdp_mmu_map(gfn, self.kvm_mmu_faultin_pfn_gmem(vcpu, gmem, index, gfn))
            if huge_pages and level == PG_LEVEL_4K:
                self.split_private(gfn)
        except BlockingIOError:
            return RetPf.RETRY
        except OSError as error:
            # upstream: a busy SEAMCALL is RET_PF_RETRY. Another vCPU holds the Secure EPT's entry for an instant.
            if error.errno == errno.EBUSY:
                return RetPf.RETRY
            raise
        gmem.kvm_gmem_mark_prepared(index)
        return RetPf.FIXED

    @staticmethod
    def kvm_mmu_faultin_pfn_gmem(vcpu: Vcpu, gmem: GuestMemfd, index: int, gfn: int) -> int:
        """Return the guest_memfd's page. Its failure is a memory-fault exit; that of a table's page is plain ENOMEM."""
        try:
            return gmem.kvm_gmem_get_folio(index)
        except OSError as error:
            raise vcpu.memory_fault(gfn, True, "no page for the guest_memfd", errno.ENOMEM) from error

    def _map_huge(self, slot: Memslot, gfn: int) -> bool:
        """Map the 2 MiB that the guest accepts, where slot, attributes and guest_memfd let it be one page."""
        gmem, mirror = slot.gmem, self.mirror
        assert mirror is not None
        base = gfn & -_2M_FRAMES
        index = kvm_gmem_get_index(slot, base)
        if base < slot.base_gfn or base + _2M_FRAMES > slot.end_gfn or index % _2M_FRAMES:
            return False
        private = KVM_MEMORY_ATTRIBUTE_PRIVATE
        if self.kvm.has_attributes and not self.kvm.attributes.range_has(base, base + _2M_FRAMES, private):
            return False
        with self.lock:
            page = gmem.get_huge_page(index) if gmem is not None and mirror.can_be_huge(base) else None
            if page is None:
                return False
            mirror.kvm_tdp_mmu_map(base, page, PG_LEVEL_2M)
        return True

    def split_private(self, gfn: int) -> None:
        """The 2 MiB leaf around ``gfn``, if there is one, becomes 4 KiB leaves. Raises OSError(EBUSY, EIO, ENOMEM)."""
        if self.mirror is not None:
            with self.lock:
                self.mirror.split(gfn)

    def map_private(self, gmem: GuestMemfd, index: int, gfn: int) -> int:
        """Map the guest_memfd's page into the Secure EPT and return it. The caller, which holds slots_lock, adds it.

        Raises OSError: EBUSY, EIO, ENOMEM.
        """
        mirror = self.mirror
        assert mirror is not None
        with self.lock:
            page = gmem.kvm_gmem_get_folio(index)
            mirror.kvm_tdp_mmu_map(gfn, page)
        return page

    def _direct_fault(self, vcpu: Vcpu, gfn: int, write: bool) -> RetPf:
        kvm = self.kvm
        slot = kvm.memslots.gfn_to_memslot(gfn)
        if slot is None:
            if self.mirror is not None:
                with self.lock:
                    self.direct.kvm_tdp_mmu_map(gfn | self.direct_bits, TDX_MMIO_VALUE, self._mmio_level(gfn))
                kvm.kvm_flush_remote_tlbs()  # a cached "exits to KVM" would be consulted again
            return RetPf.EMULATE
        if slot.flags & _READONLY and write:
            return RetPf.EMULATE
        if slot.gmem_only:
            return self._gmem_only_fault(vcpu, slot, gfn)
        address = slot.userspace_addr + (gfn - slot.base_gfn << PAGE_SHIFT)
        if self.invalidating and any(start <= address < end for start, end in self.invalidating):
            return RetPf.RETRY
        try:
            hpa, start, end, writable = slot.hva.hpa(address, write)
        except OSError as error:
            why = f"access to guest memory at {gfn << PAGE_SHIFT:#x}: {reason_of(error).text or error.strerror}"
            raise vcpu.memory_fault(gfn, False, why) from error
        writable &= not slot.flags & _READONLY
        with self.lock:
            level = self.kvm_mmu_hugepage_adjust(slot, gfn, hpa, address - start, end - address)
            if level == PG_LEVEL_2M:
                gfn &= -_2M_FRAMES
                hpa &= -(2 << 20)
            entry = hpa | (_LEAF if writable else _LEAF_READ_ONLY)
            if level > PG_LEVEL_4K:
                entry |= EPT_LARGE
            if slot.dirty_bitmap is not None:
                kvm.mark_page_dirty_in_slot(slot, gfn)
            if self.direct.kvm_tdp_mmu_map(gfn | self.direct_bits, entry, level):
                kvm.kvm_flush_remote_tlbs()
        return RetPf.FIXED

    def _gmem_only_fault(self, vcpu: Vcpu, slot: Memslot, gfn: int) -> RetPf:
        """Map shared memory that comes from a guest_memfd: 4 KiB at a time, as the file's folios are."""
        gmem = slot.gmem
        if gmem is None:
            raise vcpu.memory_fault(gfn, False, f"gfn {gfn:#x}: the guest_memfd of its slot was closed")
        with self.lock:
            try:
                page = gmem.get_shared(slot, kvm_gmem_get_index(slot, gfn))
            except OSError as error:
                raise vcpu.memory_fault(gfn, False, "no page for the guest_memfd", errno.ENOMEM) from error
            if self.direct.kvm_tdp_mmu_map(gfn | self.direct_bits, page | _LEAF, PG_LEVEL_4K):
                self.kvm.kvm_flush_remote_tlbs()
        return RetPf.FIXED

    def _mmio_level(self, gfn: int) -> int:
        """Return the largest level at which an entry for ``gfn`` covers no slot.

        A TD may look at any address. With entries of 4 KiB it would take a table from the host for each 2 MiB.
        """
        level = PG_LEVEL_4K
        while level < min(self.direct.levels, PG_LEVEL_512G):
            pages = pages_per_level(level + 1)
            base = gfn & -pages
            if any(True for _ in self.kvm.memslots.within(base, base + pages)):
                break
            level += 1
        return self.direct.level_for(gfn | self.direct_bits, level)

    def kvm_mmu_hugepage_adjust(self, slot: Memslot, gfn: int, hpa: int, before: int, after: int) -> int:
        """2 MiB where slot, user mapping, window alignment and attributes agree, else 4 KiB. Offsets in bytes."""
        frames = gfn & _2M_FRAMES - 1
        offset = frames << PAGE_SHIFT
        if (
            hpa & (2 << 20) - 1 != offset
            or before < offset
            or after < (2 << 20) - offset
            or slot.dirty_bitmap is not None
        ):
            return PG_LEVEL_4K
        base = gfn - frames
        if base < slot.base_gfn or base + _2M_FRAMES > slot.end_gfn:
            return PG_LEVEL_4K
        if self.kvm.has_attributes and not self.kvm.attributes.range_has(base, base + _2M_FRAMES, 0):
            return PG_LEVEL_4K
        return self.direct.level_for(gfn | self.direct_bits, PG_LEVEL_2M)

    # --- Zapping ------------------------------------------------------------------------------------------------------

    def zap_direct(self, start: int, end: int) -> None:
        """Unmap what is shared in [start, end) (gfns without the shared bit) and flush."""
        with self.lock:
            if self.direct.tdp_mmu_zap_leafs(start | self.direct_bits, end + self.direct_bits):
                self.kvm.kvm_flush_remote_tlbs()
            self.kvm_update_page_stats()

    def zap_private(self, start: int, end: int) -> None:
        """Unmap what is private in [start, end). Pages that leave the Secure EPT lose their contents."""
        if self.mirror is None:
            if self.kvm.has_attributes:
                self.zap_direct(start, end)
        else:
            with self.lock:
                self.mirror.tdp_mmu_zap_leafs(start, end)
                self.kvm_update_page_stats()

    def drop_private(self, start: int, end: int) -> None:
        """v10's conversion to shared: the private pages of [start, end) are zapped and freed."""
        for slot in list(self.kvm.memslots.within(start, end)):
            low, high = max(start, slot.base_gfn), min(end, slot.end_gfn)
            if slot.gmem is not None and low < high:
                shift = slot.gmem_pgoff - slot.base_gfn
                slot.gmem.kvm_gmem_punch_hole(low + shift, high + shift)

    def kvm_mmu_zap_memslot(self, slot: Memslot) -> None:
        """A slot is deleted or moves: nothing of it stays mapped, on either side."""
        self.zap_direct(slot.base_gfn, slot.end_gfn)
        self.zap_private(slot.base_gfn, slot.end_gfn)

    def free_direct(self) -> None:
        """Free the tables of the direct root."""
        self.direct.free()

    def free_mirror(self) -> None:
        """Reclaim the tables of the Secure EPT (phase 3 of a TD's end)."""
        if self.mirror is not None:
            self.mirror.free()
