# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd: memory that belongs to a guest and that no user mapping reaches (virt/kvm/guest_memfd.c).

Pages are kernel pages, allocated at first use. A page is "prepared" once it was mapped into or populated for a guest;
populating it a second time is EEXIST. Slots bind ranges of the file; punching a hole or closing the file takes the
pages out of the guests' page tables before they are freed. The file holds a reference to its VM.

As in Linux 6.16 the file cannot be mapped, read or written. In the v10 dialect the kernel makes one without descriptor
for every slot of a TD (`kvm.memory_region`), which stands for that series' inaccessible memfd.
"""

import errno
import threading
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.files import File
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.uapi.kernel import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from swtdx.linux.kvm.kvm_main import Kvm
    from swtdx.linux.kvm.memslots import Memslot


class GuestMemfd(File):
    """``length`` in bytes; indices in pages."""

    name = "anon_inode:[kvm-gmem]"

    def __init__(self, kvm: "Kvm", length: int) -> None:
        super().__init__()
        self.kvm = kvm
        self.length = length
        self.pages: dict[int, int] = {}  # index -> HPA
        self.prepared: set[int] = set()
        self.bindings: list[Memslot] = []
        self._invalidate_lock = threading.Lock()
        kvm.get()

    def ioctl(self, request: int, arg: int) -> int:
        raise err(errno.ENOTTY, "a guest_memfd takes no ioctl")

    # Pages

    def get_page(self, index: int) -> int:
        """HPA of the page at ``index``, allocated if need be. Raises OSError(ENOMEM)."""
        page = self.pages.get(index)
        if page is None:
            page = self.pages[index] = self.kvm.pages.alloc_page("guest_memfd")
        return page

    # Slots

    def bind(self, slot: "Memslot", pgoff: int) -> None:
        """kvm_gmem_bind. Raises OSError(EINVAL)."""
        if (pgoff + slot.npages) << PAGE_SHIFT > self.length:
            raise err(errno.EINVAL, "the slot reaches beyond the end of the guest_memfd")
        for other in self.bindings:
            if other.gmem_pgoff < pgoff + slot.npages and pgoff < other.gmem_pgoff + other.npages:
                raise err(errno.EINVAL, f"that range of the guest_memfd is bound to slot {other.slot_id}")
        slot.gmem, slot.gmem_pgoff = self, pgoff
        self.bindings.append(slot)

    def unbind(self, slot: "Memslot") -> None:
        """kvm_gmem_unbind."""
        self.bindings.remove(slot)
        slot.gmem = None

    # The file

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Punch a hole or allocate. Raises OSError(EOPNOTSUPP, EINVAL, ENOMEM)."""
        if offset < 0 or length <= 0:
            raise err(errno.EINVAL, "negative offset or empty range")
        if not mode & FALLOC_FL_KEEP_SIZE or mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            raise err(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        if offset % PAGE_SIZE or length % PAGE_SIZE:
            raise err(errno.EINVAL, "offset and length must be multiples of 4 KiB")
        start, end = offset >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT
        if mode & FALLOC_FL_PUNCH_HOLE:
            self.punch_hole(start, end)
            return
        for index in range(start, min(end, self.length >> PAGE_SHIFT)):
            self.get_page(index)

    def punch_hole(self, start: int, end: int) -> None:
        """Zap the pages [start, end) wherever they are mapped, and free them."""
        with self._invalidate_lock, self.kvm.slots_lock:
            for slot in self.bindings:
                low, high = max(start, slot.gmem_pgoff), min(end, slot.gmem_pgoff + slot.npages)
                if low < high:
                    shift = slot.base_gfn - slot.gmem_pgoff
                    self.kvm.mmu.zap_private(low + shift, high + shift)
            if end - start < len(self.pages):
                indices = [index for index in range(start, end) if index in self.pages]
            else:
                indices = [index for index in self.pages if start <= index < end]
            for index in indices:
                self.prepared.discard(index)
                self.kvm.pages.free_page(self.pages.pop(index))

    def release(self) -> None:
        self.punch_hole(0, self.length >> PAGE_SHIFT)
        for slot in list(self.bindings):
            self.unbind(slot)
        self.kvm.put()
