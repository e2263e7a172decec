# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical pages of the host: alloc_page and __free_page, with a book kept.

The machine's RAM (`cpu.memory`) begins at HPA 0. The first megabyte is left to the BIOS, contiguous areas (PAMT) are
taken from the top at bring-up, everything between is handed out page by page, most recently freed first. Every page is
booked under the name of its use, so that a test can say: after the last close nothing of the VM is left. The book is a
byte for each page (`PhysicalMemory.uses`): a guest of 64 GiB has 16 million of them.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.x86 import PAGE_SHIFT as PAGE_SHIFT
from swtdx.x86 import PAGE_SIZE as PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.cpu.memory import PhysicalMemory

PAGE_MASK = ~(PAGE_SIZE - 1)
HUGE_PAGE_PAGES = 512
HUGE_PAGE_SIZE = HUGE_PAGE_PAGES * PAGE_SIZE
LOW_MEMORY = 1 << 20  # what the kernel never gives away (memblock reserves it)


class PageAllocator:
    """Free pages of ``memory``; addresses are HPAs without KeyID."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.next_page = LOW_MEMORY
        """From here on no page was given out yet."""
        self.end = memory.size & PAGE_MASK
        self.given_back: list[int] = []
        """Come first, the last first."""
        self._free_huge: list[int] = []
        self._numbers: dict[str, int] = {}
        """Of the uses, in the book, from 1 on."""
        self._used_huge: dict[int, str] = {}
        self.lock = threading.Lock()

    def alloc_page(self, use: str) -> int:
        """Return the HPA of a page, contents undefined, booked under ``use``. Raises OSError(ENOMEM)."""
        with self.lock:
            if self.given_back:
                page = self.given_back.pop()
            elif self.next_page < self.end:
                page = self.next_page
                self.next_page += PAGE_SIZE
                self.memory.fresh[page >> PAGE_SHIFT] = 1
            elif self._free_huge:
                page = self._free_huge.pop()
                self.given_back.extend(range(page + HUGE_PAGE_SIZE - PAGE_SIZE, page, -PAGE_SIZE))
            else:
                raise err(errno.ENOMEM, "the emulated host is out of memory (Platform.memory_size)")
            self.memory.uses[page >> PAGE_SHIFT] = self._numbers.get(use) or self.number_of(use)
            return page

    def number_of(self, use: str) -> int:
        """Return the number of a use, which may be new."""
        return self._numbers.setdefault(use, len(self._numbers) + 1)

    def alloc_zeroed_page(self, use: str) -> int:
        """As `alloc_page`, filled with zeros (__GFP_ZERO)."""
        page = self.alloc_page(use)
        self.memory.clear_page(page)
        return page

    def free_page(self, page: int) -> None:
        """Give a page back. Its contents must no longer be under a private key. A page that is free is a kernel bug."""
        with self.lock:
            number = page >> PAGE_SHIFT
            if not self.memory.uses[number]:
                raise KeyError(page)
            self.memory.uses[number] = self.memory.fresh[number] = 0
            self.given_back.append(page)

    def alloc_huge_page(self, use: str) -> int | None:
        """2 MiB, aligned, contents undefined, booked as 512 pages under ``use``; None where there are none."""
        with self.lock:
            if self._free_huge:
                page = self._free_huge.pop()
            else:
                page = self.next_page + HUGE_PAGE_SIZE - 1 & -HUGE_PAGE_SIZE
                if page + HUGE_PAGE_SIZE > self.end:
                    return None
                self.given_back.extend(range(self.next_page, page, PAGE_SIZE))
                self.next_page = page + HUGE_PAGE_SIZE
            self._used_huge[page] = use
            return page

    def free_huge_page(self, page: int) -> None:
        """Give 2 MiB back that were not split."""
        with self.lock:
            del self._used_huge[page]
            self._free_huge.append(page)

    def split_huge_page(self, page: int) -> None:
        """From now on these are 512 pages, to be freed one by one."""
        with self.lock:
            use = self._used_huge.pop(page)
            first = page >> PAGE_SHIFT
            self.memory.uses[first : first + HUGE_PAGE_PAGES] = bytes([self.number_of(use)]) * HUGE_PAGE_PAGES

    def alloc_contig_pages(self, count: int) -> int:
        """Return a physically contiguous area of ``count`` pages that is never freed. Raises OSError(ENOMEM)."""
        with self.lock:
            base = self.end - count * PAGE_SIZE
            if base < self.next_page:
                raise err(errno.ENOMEM, f"no {count} contiguous pages")
            self.end = base
            return base

    @property
    def in_use(self) -> Counter[str]:
        """Pages in use, counted by what they were allocated for."""
        with self.lock:
            book = self._book()
            counts = {use: book.count(number) for use, number in self._numbers.items()}
            used = Counter({use: count for use, count in counts.items() if count})
            for use in self._used_huge.values():
                used[use] += HUGE_PAGE_PAGES
            return used

    def booked(self) -> dict[int, str]:
        """Return each small page in use, and what for."""
        with self.lock:
            names = {number: use for use, number in self._numbers.items()}
            return {index << PAGE_SHIFT: names[number] for index, number in enumerate(self._book()) if number}

    def _book(self) -> bytes:
        return bytes(self.memory.uses[: self.next_page >> PAGE_SHIFT])
