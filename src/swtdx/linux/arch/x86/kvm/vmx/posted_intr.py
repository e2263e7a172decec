# SPDX-License-Identifier: GPL-2.0-or-later
"""The posted-interrupt descriptor (arch/x86/kvm/vmx/posted_intr.c; Intel SDM vol. 3, "Posted-Interrupt Processing").

64 bytes of physical memory: 256 request bits (PIR), then ON (bit 256). The processor moves PIR into IRR at VM entry and
when notified, if ON is set. A TD's interrupts cannot arrive in any other way.

The real kernel sets bits with locked instructions. Python has none, so it keeps to what needs none: the processor looks
at PIR only after it has cleared ON. While ON is clear and the word of PIR is zero, storing the bit and then ON is safe
(should the processor just be taking the words of an earlier request, it takes this bit along, or leaves it for the ON
that follows). Otherwise the request is noted, and the vCPU's own thread writes it when it is outside the guest.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.linux.mm import PageAllocator

POSTED_INTR_VECTOR = 0xF2
_ON = 1  # bit 0 of qword 4
_MASK64 = (1 << 64) - 1


class PostedInterruptDescriptor:
    """``hpa``: where the descriptor is, a page of its own."""

    __slots__ = ("__dict__", "__weakref__", "requests")  # PageRun reads them

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        self.hpa = pages.alloc_zeroed_page("pi_desc")
        self._qwords = pages.memory.qwords
        self._lock = threading.Lock()
        self.requests = 0
        """Vectors that are not in PIR yet, a 256-bit mask."""

    def post(self, vector: int) -> bool:
        """Request ``vector``, from any thread. True: a notification will do; False: the vCPU's thread must `sync`."""
        word = (self.hpa >> 3) + (vector >> 6)
        on = (self.hpa >> 3) + 4
        with self._lock:
            if not self.requests and not self._qwords[on] & _ON and not self._qwords[word]:
                self._qwords[word] = 1 << (vector & 63)
                self._qwords[on] = _ON
                return True
            self.requests |= 1 << vector
            return False

    def sync(self) -> None:
        """Write the noted requests into PIR; only the vCPU's thread, only outside the guest."""
        base = self.hpa >> 3
        with self._lock:
            requests, self.requests = self.requests, 0
            for word in range(4):
                bits = requests >> 64 * word & _MASK64
                if bits:
                    self._qwords[base + word] |= bits
            if requests:
                self._qwords[base + 4] = _ON

    def take(self) -> int:
        """vmx_sync_pir_to_irr: what is requested, as a 256-bit mask, and forget it. Only outside the guest."""
        base = self.hpa >> 3
        with self._lock:
            requests, self.requests = self.requests, 0
            for word in range(4):
                requests |= self._qwords[base + word] << 64 * word
                self._qwords[base + word] = 0
            self._qwords[base + 4] = 0
        return requests

    def pending(self) -> bool:
        """pi_has_pending_interrupt: something is requested that the processor has not taken yet."""
        base = self.hpa >> 3
        return bool(self.requests) or any(self._qwords[base : base + 4])

    def free(self) -> None:
        """Give the page back."""
        self._pages.free_page(self.hpa)
