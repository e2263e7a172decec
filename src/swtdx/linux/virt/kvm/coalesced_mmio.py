# SPDX-License-Identifier: GPL-2.0-or-later
"""Coalesced MMIO and port writes: queued for user space in a ring instead of exiting (virt/kvm/coalesced_mmio.c).

The ring is a page of the VM; every vCPU's mapping shows it as its third page. Here it is the third page of the memory
of the VM's first vCPU, and what mmap(2) gives for the others is made to show that one. The kernel fills at ``last``,
user space takes from ``first``; when the ring is full the write exits as any other, so that nothing is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from dataclasses import dataclass

from swtdx.linux.err import err
from swtdx.linux.files import FileMapping
from swtdx.linux.mm import PAGE_SIZE
from swtdx.uapi.kvm import kvm_coalesced_mmio_zone
from swtdx.uapi.layout import address_of

KVM_COALESCED_MMIO_PAGE_OFFSET = 2
RING_OFFSET = KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_mremap = ctypes.CDLL(None, use_errno=True).mremap
_mremap.restype = ctypes.c_size_t
_mremap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t)
_HEADER = struct.Struct("<II")  # first, last
_ENTRY = struct.Struct("<QII8s")  # phys_addr, len, pio, data
KVM_COALESCED_MMIO_MAX = (PAGE_SIZE - _HEADER.size) // _ENTRY.size


@dataclass(frozen=True)
class Zone:
    """Addresses whose writes are queued; ``size`` in bytes."""

    address: int
    size: int
    pio: int

    def holds(self, address: int, length: int) -> bool:
        """coalesced_mmio_in_range."""
        end = address + length
        return end < 1 << 64 and self.address <= address and end <= self.address + self.size


class CoalescedRing:
    """``page``: the 4096 bytes that user space maps, from the first vCPU on; until then nothing can be queued."""

    def __init__(self) -> None:
        self.page: memoryview | None = None
        self.descriptor = -1
        """Of the first vCPU's memory, where clients are other processes; -1 otherwise, before and after."""
        self._lock = threading.Lock()

    def settle(self, run: memoryview, descriptor: int) -> None:
        """``run`` is the first vCPU's memory; ``descriptor``, of it, is the ring's from now on."""
        self.descriptor = descriptor
        self.page = run[RING_OFFSET : RING_OFFSET + PAGE_SIZE]

    def show_in(self, mapping: FileMapping, offset: int) -> None:
        """Let a mapping of a vCPU's memory from ``offset`` on have the VM's ring as the vCPU's third page."""
        if self.page is None or not offset <= RING_OFFSET < offset + len(mapping):
            return
        address = address_of(mapping) + RING_OFFSET - offset
        flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
        # An old size of 0 maps a shared page once more, and takes no descriptor.
        if _mremap(address_of(self.page), 0, PAGE_SIZE, flags, address) != address:
            raise err(errno.ENOMEM, "the ring cannot be mapped")

    def release(self) -> None:
        """The VM ends."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def put(self, zone: Zone, address: int, length: int, value: int) -> bool:
        """Queue a write; False if there is no room."""
        page = self.page
        if page is None:
            return False
        with self._lock:
            first, last = _HEADER.unpack_from(page, 0)
            if last >= KVM_COALESCED_MMIO_MAX or (last + 1) % KVM_COALESCED_MMIO_MAX == first:
                return False
            data = (value & (1 << 64) - 1).to_bytes(8, "little")
            _ENTRY.pack_into(page, _HEADER.size + last * _ENTRY.size, address, length, zone.pio, data)
            struct.pack_into("<I", page, 4, (last + 1) % KVM_COALESCED_MMIO_MAX)
        return True


def zone_of(request: kvm_coalesced_mmio_zone) -> Zone:
    """Raises OSError(EINVAL) for a zone that is neither memory nor ports."""
    if request.pio > 1:
        raise err(errno.EINVAL, f"pio {request.pio}")
    return Zone(request.addr, request.size, request.pio)
