# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages are booked, and come back."""

from __future__ import annotations

import errno

import pytest

from swtdx.cpu.memory import PhysicalMemory
from swtdx.linux.mm import LOW_MEMORY, PageAllocator


def test_every_page_is_booked_under_its_use() -> None:
    pages = PageAllocator(PhysicalMemory(4 << 20))
    first, second = pages.alloc_page("tdr"), pages.alloc_page("tdcs")
    assert pages.in_use == {"tdr": 1, "tdcs": 1}
    pages.free_page(first)
    pages.free_page(second)
    assert not pages.in_use


def test_the_first_megabyte_and_contiguous_areas_are_never_handed_out() -> None:
    pages = PageAllocator(PhysicalMemory(4 << 20))
    top = pages.alloc_contig_pages(4)
    assert top == (4 << 20) - 4 * 4096
    with pytest.raises(OSError) as full:
        handed_out = [pages.alloc_page("x") for _ in range(1024)]
    assert full.value.errno == errno.ENOMEM
    del full
    assert pages.in_use["x"] == ((4 << 20) - LOW_MEMORY) // 4096 - 4
    assert "handed_out" not in locals()


def test_the_book_says_what_each_page_is_for() -> None:
    pages = PageAllocator(PhysicalMemory(8 << 20))
    page, huge = pages.alloc_page("tdr"), pages.alloc_huge_page("guest_memfd")
    assert huge is not None
    assert pages.booked() == {page: "tdr"}
    pages.split_huge_page(huge)
    assert pages.booked() == {page: "tdr"} | {huge + (number << 12): "guest_memfd" for number in range(512)}
    pages.free_page(page)
    assert pages.in_use == {"guest_memfd": 512}


def test_freeing_a_free_page_is_a_bug() -> None:
    pages = PageAllocator(PhysicalMemory(4 << 20))
    page = pages.alloc_page("x")
    pages.free_page(page)
    with pytest.raises(KeyError):
        pages.free_page(page)
