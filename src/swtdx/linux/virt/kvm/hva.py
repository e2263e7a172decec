# SPDX-License-Identifier: GPL-2.0-or-later
"""From a slot's user addresses to what the processor can reach (hva_to_pfn, virt/kvm/pfncache.c).

The machine pins user memory with `PhysicalMemory.map_user`, which answers an HPA window; EPT leaves point there. It is
done VMA by VMA at the first fault, because a slot may be made before its memory is mapped, or of several mappings, and
because touching what is not mapped must be EFAULT: /proc/PID/maps says what is there and whether it can be written.

What is known of a mapping is kept until `HvaMapping.invalidate` says that it changes (`mmu_notifier`). A front end that
watches munmap(2) and its like notifies the kernel; a program without one deletes the slot first.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.mm import HUGE_PAGE_SIZE
from swtdx.linux.uaccess import Mm, current_mm, own_mm

if TYPE_CHECKING:
    from swtdx.cpu.memory import PhysicalMemory

_CHUNK = 1 << 30
_START = attrgetter("start")


class UserWindows:
    """Windows that slots share.

    A window costs the processor the more, the more there are. Slots too small for a large page lose nothing when their
    window begins elsewhere: they share one for each mapping, or for each GiB of a longer one.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._shared: dict[tuple[Mm, int, int], list[int]] = {}  # mm, user start, user end: HPA, users
        self._lock = threading.Lock()

    def pin(self, mm: Mm, start: int, end: int) -> int:
        """Return the HPA of a window of its own on [start, end) of one mapping. Raises OSError(EFAULT), MemoryError."""
        return self._memory.map_user(mm.reach(start, end), end - start)

    def unpin(self, hpa: int, length: int) -> None:
        """Give back what `pin` gave."""
        self._memory.unmap_user(hpa, length)

    def share(self, mm: Mm, start: int, end: int) -> int:
        """As `pin`, one more user of it."""
        with self._lock:
            window = self._shared.get((mm, start, end))
            if window is None:
                window = self._shared[mm, start, end] = [self.pin(mm, start, end), 0]
            window[1] += 1
            return window[0]

    def unshare(self, mm: Mm, start: int, end: int) -> None:
        """Give back what `share` gave; the last user unpins."""
        with self._lock:
            window = self._shared[mm, start, end]
            window[1] -= 1
            if not window[1]:
                del self._shared[mm, start, end]
                self.unpin(window[0], end - start)


@dataclass(frozen=True)
class _Window:
    """What a slot sees of a window: [start, end) at ``hpa``. ``shared``: the whole window, if it is a shared one."""

    start: int
    end: int
    hpa: int
    writable: bool
    shared: tuple[int, int] | None


class HvaMapping:
    """The user memory of one slot: [address, address + length) in bytes."""

    def __init__(self, windows: UserWindows, address: int, length: int) -> None:
        self._pool = windows
        self._mm = current_mm()
        self.address = address
        self.length = length
        self._windows: list[_Window] = []  # ascending

    def hpa(self, address: int, write: bool) -> tuple[int, int, int, bool]:
        """Return (HPA of ``address``, user start, user end of the window, writable). Raises OSError(EFAULT)."""
        position = bisect_right(self._windows, address, key=_START)
        if position and address < self._windows[position - 1].end:
            window = self._windows[position - 1]
        else:
            window = self._map(address, position)
        start, end, hpa, writable = window.start, window.end, window.hpa, window.writable
        if write and not writable:
            raise err(errno.EFAULT, f"user memory at {address:#x} is mapped read-only")
        return hpa + address - start, start, end, writable

    def _map(self, address: int, position: int) -> _Window:
        vma = self._mm.find_vma(address)
        if vma is None or not vma[2]:
            raise err(errno.EFAULT, f"no readable user memory at {address:#x}")
        start, end = max(vma[0], self.address), min(vma[1], self.address + self.length)
        if position:  # the VMA may have grown over what is mapped already
            start = max(start, self._windows[position - 1].end)
        if position < len(self._windows):
            end = min(end, self._windows[position].start)
        if self.length < HUGE_PAGE_SIZE and self._mm is own_mm():  # of another process only the slot's part is reached
            chunk = address & -_CHUNK
            shared = max(vma[0], chunk), min(vma[1], chunk + _CHUNK)
            start, end = max(start, shared[0]), min(end, shared[1])
            hpa = self._pool.share(self._mm, *shared) + start - shared[0]
            window = _Window(start, end, hpa, vma[3], shared)
        else:
            window = _Window(start, end, self._pool.pin(self._mm, start, end), vma[3], None)
        self._windows.insert(position, window)
        return window

    def touched(self, start: int, end: int) -> list[_Window]:
        """Return what is pinned of [start, end), whole windows."""
        return [window for window in self._windows if window.start < end and start < window.end]

    def invalidate(self, start: int, end: int) -> None:
        """The mappings in [start, end) change. Nothing may point at the windows there any more."""
        gone = self.touched(start, end)
        self._windows = [window for window in self._windows if window not in gone]
        self._unpin(gone)

    def release(self) -> None:
        """Unpin. Nothing may point at the window any more."""
        windows, self._windows = self._windows, []
        self._unpin(windows)

    def _unpin(self, windows: list[_Window]) -> None:
        for window in windows:
            if window.shared is not None:
                self._pool.unshare(self._mm, *window.shared)
            else:
                self._pool.unpin(window.hpa, window.end - window.start)
                self._mm.leave(window.start, window.end)
