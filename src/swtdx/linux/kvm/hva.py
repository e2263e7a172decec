# SPDX-License-Identifier: GPL-2.0-or-later
"""From a slot's user addresses to what the processor can reach (hva_to_pfn, virt/kvm/pfncache.c).

The machine pins user memory with `PhysicalMemory.map_user`, which answers an HPA window; EPT leaves point there. It is
done VMA by VMA at the first fault, because a slot may be made before its memory is mapped, or of several mappings, and
because touching what is not mapped must be EFAULT: /proc/PID/maps says what is there and whether it can be written.

Left out: MMU notifiers. Whoever unmaps or replaces the memory under a live slot takes it away from a running processor;
delete the slot first.
"""

import errno
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import current_mm

if TYPE_CHECKING:
    from swtdx.cpu.memory import PhysicalMemory


class HvaMapping:
    """The user memory of one slot: [address, address + length) in bytes."""

    def __init__(self, memory: "PhysicalMemory", address: int, length: int) -> None:
        self._memory = memory
        self._mm = current_mm()
        self.address = address
        self.length = length
        self._windows: list[tuple[int, int, int, bool]] = []  # user start, user end, HPA, writable

    def hpa(self, address: int, write: bool) -> tuple[int, int, int, bool]:
        """(HPA of ``address``, user start, user end of the window, writable). Raises OSError(EFAULT)."""
        window = next((w for w in self._windows if w[0] <= address < w[1]), None) or self._map(address)
        start, end, hpa, writable = window
        if write and not writable:
            raise err(errno.EFAULT, f"user memory at {address:#x} is mapped read-only")
        return hpa + address - start, start, end, writable

    def _map(self, address: int) -> tuple[int, int, int, bool]:
        vma = self._mm.find_vma(address)
        if vma is None or not vma[2]:
            raise err(errno.EFAULT, f"no readable user memory at {address:#x}")
        start, end = max(vma[0], self.address), min(vma[1], self.address + self.length)
        for other_start, other_end, _, _ in self._windows:  # the VMA may have grown over what is mapped already
            if other_end <= address:
                start = max(start, other_end)
            elif other_start > address:
                end = min(end, other_start)
        window = (start, end, self._memory.map_user(self._mm.reach(start, end), end - start), vma[3])
        self._windows.append(window)
        return window

    def release(self) -> None:
        """Unpin. Nothing may point at the window any more."""
        windows, self._windows = self._windows, []
        for start, end, hpa, _ in windows:
            self._memory.unmap_user(hpa, end - start)
