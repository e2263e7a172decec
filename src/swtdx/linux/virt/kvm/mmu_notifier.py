# SPDX-License-Identifier: GPL-2.0-or-later
"""MMU notifiers: user memory under live slots changes (kvm_mmu_notifier_ops, virt/kvm/kvm_main.c).

munmap(2), mmap(2) with MAP_FIXED, mremap(2) and mprotect(2) change what a slot's addresses mean. Between start and end
of such a change KVM maps nothing of the range; at the start it forgets what it had mapped there, and waits until no
vCPU uses it. The next fault finds out what is there.

madvise(2) with MADV_DONTNEED and its like change contents alone. Guests see that by themselves, and only code that was
translated from them has to be forgotten. So it is with copy-on-write after fork(2): the parent's addresses stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import Mm

if TYPE_CHECKING:
    from swtdx.linux.kernel import EmulatedKernel
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.linux.virt.kvm.memslots import Memslot


def _vms(kernel: EmulatedKernel, mm: Mm) -> list[Kvm]:
    return [kvm for kvm in list(kernel.vms) if kvm.mm is mm]


def _zap(kvm: Kvm, slot: Memslot, start: int, end: int) -> None:
    """Unmap what the slot shows of [start, end), and of the windows there, which go as a whole."""
    windows = slot.hva.touched(start, end)
    low = max(slot.userspace_addr, min([start, *(window.start for window in windows)]))
    high = min(slot.userspace_addr + (slot.npages << PAGE_SHIFT), max([end, *(window.end for window in windows)]))
    first = slot.base_gfn + (low - slot.userspace_addr >> PAGE_SHIFT)
    kvm.mmu.zap_direct(first, first + (high - low >> PAGE_SHIFT))


def invalidate_range_start(kernel: EmulatedKernel, mm: Mm, start: int, end: int) -> None:
    """Let the caller change the mappings of [start, end), whole pages of ``mm``, when this returns."""
    for kvm in _vms(kernel, mm):
        with kvm.mmu.lock:
            kvm.mmu.invalidating.append((start, end))
            slots = kvm.memslots.behind(start, end)
            for slot in slots:
                _zap(kvm, slot, start, end)
        if slots:
            kvm.kick_all_outside_guest()
            with kvm.mmu.lock:
                for slot in slots:
                    slot.hva.invalidate(start, end)


def invalidate_range_end(kernel: EmulatedKernel, mm: Mm, start: int, end: int) -> None:
    """The change is made: faults may map the range again."""
    for kvm in _vms(kernel, mm):
        # upstream: mmu_lock orders the end of an invalidation against faults that change the tables.
        with kvm.mmu.lock:
            if (start, end) in kvm.mmu.invalidating:  # it is not in a VM that was created meanwhile
                kvm.mmu.invalidating.remove((start, end))


def contents_changed(kernel: EmulatedKernel, mm: Mm, start: int, end: int) -> None:
    """Forget code that was translated from [start, end)."""
    for kvm in _vms(kernel, mm):
        with kvm.mmu.lock:
            for slot in kvm.memslots.behind(start, end):
                for window in slot.hva.touched(start, end):
                    low, high = max(start, window.start), min(end, window.end)
                    kernel.processor.memory.forget_code(window.hpa + low - window.start, high - low)


def whole_pages(start: int, end: int) -> tuple[int, int]:
    """Return the pages that [start, end) touches."""
    return start & -PAGE_SIZE, end + PAGE_SIZE - 1 & -PAGE_SIZE
