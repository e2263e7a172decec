# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD, predicted: SHA-384 over the stream of 128-byte blocks that the TDX module makes of the calls that build a TD.

``TDH.MEM.PAGE.ADD`` contributes one block: the ASCII text ``MEM.PAGE.ADD``, the page's GPA at byte 16, else zero.
``TDH.MR.EXTEND`` contributes one block with ``MR.EXTEND`` and the GPA of a 256-byte chunk, and then the chunk itself as
two blocks.  Both feed the same hash, so the order of the calls counts (TDX module base specification, "MRTD: build-time
measurement register"): KVM today adds and extends page by page, older trees added a whole region and then extended it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from enum import Enum

from swtdx.image.tdvf import Section, SectionType, Tdvf
from swtdx.units import PAGE_SIZE

Contents = bytes | memoryview  # of pages

_BLOCK_SIZE = 128
_CHUNK_SIZE = 256
_CHUNKS = PAGE_SIZE // _CHUNK_SIZE
_GPA_AT = 16
_WINDOW_SIZE = 1 << 16
_WINDOW_PAGES = _WINDOW_SIZE // PAGE_SIZE


class Order(Enum):
    """In which order a measured region's calls come."""

    PER_PAGE = "page by page"  # add a page, extend it, add the next
    PER_REGION = "region by region"  # add all pages, then extend all


class _Stream:
    """Composes the blocks of up to 64 KiB of aligned guest memory at a time, so that the hash is fed in large pieces.

    Within such a window only bits 63:16 of the GPAs and the contents change from one to the next.  So the blocks are
    written once into buffers, in which these are replaced, and a window is one join over fixed views of the buffers.
    One thread needs only one such set of buffers (`_per_thread`): whatever was composed before does not show.
    """

    def __init__(self) -> None:
        add, extend = (name.ljust(_BLOCK_SIZE, b"\0") for name in (b"MEM.PAGE.ADD", b"MR.EXTEND"))
        self._adds = bytearray(add * _WINDOW_PAGES)
        self._extends = bytearray(extend * (_WINDOW_PAGES * _CHUNKS))
        # The low 16 bits of the GPAs, which stay: their low byte is zero for pages and chunks alike.
        self._adds[_GPA_AT + 1 :: _BLOCK_SIZE] = bytes(page * _CHUNKS for page in range(_WINDOW_PAGES))
        self._extends[_GPA_AT + 1 :: _BLOCK_SIZE] = bytes(range(_WINDOW_PAGES * _CHUNKS))
        self._window = bytes(6)  # bits 63:16 of the GPAs that the blocks have now
        self._contents = bytearray(_WINDOW_SIZE)
        adds, extends, contents = memoryview(self._adds), memoryview(self._extends), memoryview(self._contents)
        self._extend_pieces: list[memoryview] = []
        self._both_pieces: list[memoryview] = []
        for page in range(_WINDOW_PAGES):
            pieces = []
            for chunk in range(page * _CHUNKS, (page + 1) * _CHUNKS):
                pieces.append(extends[chunk * _BLOCK_SIZE : (chunk + 1) * _BLOCK_SIZE])
                pieces.append(contents[chunk * _CHUNK_SIZE : (chunk + 1) * _CHUNK_SIZE])
            self._extend_pieces += pieces
            self._both_pieces += [adds[page * _BLOCK_SIZE : (page + 1) * _BLOCK_SIZE], *pieces]

    def adds(self, gpa: int, length: int) -> Iterable[bytes]:
        """PAGE.ADD of each page."""
        for start, end in _windows(gpa, length):
            self._move_to(start)
            first, last = _pages(start, end)
            yield bytes(self._adds[first * _BLOCK_SIZE : last * _BLOCK_SIZE])

    def extends(self, gpa: int, contents: Contents, length: int) -> Iterable[bytes]:
        """MR.EXTEND of each chunk of each page."""
        return self._with_contents(self._extend_pieces, gpa, contents, length)

    def adds_and_extends(self, gpa: int, contents: Contents, length: int) -> Iterable[bytes]:
        """For each page PAGE.ADD and then MR.EXTEND of its chunks."""
        return self._with_contents(self._both_pieces, gpa, contents, length)

    def _with_contents(self, pieces: list[memoryview], gpa: int, contents: Contents, length: int) -> Iterable[bytes]:
        source, to_page = memoryview(contents), len(pieces) // _WINDOW_PAGES
        for start, end in _windows(gpa, length):
            self._move_to(start)
            first, last = _pages(start, end)
            here = source[start - gpa : end - gpa]
            filled = first * PAGE_SIZE + len(here)
            self._contents[first * PAGE_SIZE : filled] = here
            if missing := last * PAGE_SIZE - filled:
                self._contents[filled : last * PAGE_SIZE] = bytes(missing)
            whole = end - start == _WINDOW_SIZE
            yield b"".join(pieces if whole else pieces[first * to_page : last * to_page])

    def _move_to(self, gpa: int) -> None:
        window = gpa.to_bytes(8, "little")[2:]
        for at, (old, new) in enumerate(zip(self._window, window, strict=True), _GPA_AT + 2):
            if old != new:
                self._adds[at::_BLOCK_SIZE] = bytes((new,)) * _WINDOW_PAGES
                self._extends[at::_BLOCK_SIZE] = bytes((new,)) * (_WINDOW_PAGES * _CHUNKS)
        self._window = window


def _windows(gpa: int, length: int) -> Iterable[tuple[int, int]]:
    """A range of guest memory, cut at multiples of the window's size."""
    end = gpa + length
    while gpa < end:
        stop = min(end, (gpa // _WINDOW_SIZE + 1) * _WINDOW_SIZE)
        yield gpa, stop
        gpa = stop


def _pages(start: int, end: int) -> tuple[int, int]:
    """Numbers within the window of the first page of a range and of the first after it."""
    first = start % _WINDOW_SIZE // PAGE_SIZE
    return first, first + (end - start) // PAGE_SIZE


class _PerThread(threading.local):
    """Python calls this once in each thread that reads it."""

    def __init__(self) -> None:
        self.stream = _Stream()


_per_thread = _PerThread()


class MrtdPredictor:
    """Accumulates the measurement of the regions that a VMM adds, in the order in which it adds them."""

    def __init__(self, order: Order = Order.PER_PAGE) -> None:
        self.order = order
        self._hash = hashlib.sha384()

    def add_region(self, gpa: int, contents: Contents, measured: bool, length: int | None = None) -> None:
        """What one ``KVM_TDX_INIT_MEM_REGION`` does: ``contents`` go to ``gpa``, with zeroes up to ``length`` behind.

        Without ``length`` the contents are all there is.  Raises `ValueError` for a region that is not whole pages.
        """
        length = len(contents) if length is None else length
        if gpa % PAGE_SIZE or length % PAGE_SIZE:
            raise ValueError("a region consists of whole pages")
        if len(contents) > length:
            raise ValueError("a region cannot have more contents than room")
        stream = _per_thread.stream
        if measured and self.order is Order.PER_PAGE:
            self._feed(stream.adds_and_extends(gpa, contents, length))
            return
        self._feed(stream.adds(gpa, length))
        if measured:
            self._feed(stream.extends(gpa, contents, length))

    def digest(self) -> bytes:
        """The 48 bytes of MRTD if ``TDH.MR.FINALIZE`` came now."""
        return self._hash.digest()

    def _feed(self, pieces: Iterable[bytes]) -> None:
        update = self._hash.update
        for piece in pieces:
            update(piece)


def predict_mrtd(tdvf: Tdvf, order: Order = Order.PER_PAGE, hob: Callable[[Section], Contents] | None = None) -> bytes:
    """MRTD of a TD that is built from nothing but ``tdvf`` (48 bytes).

    The TD HOB section's contents are the VMM's and depend on the machine; firmware leaves them unmeasured for that
    reason.  Where they are measured, ``hob`` must give them; without it `ValueError` is raised for such an image.
    """
    predictor = MrtdPredictor(order)
    for section in tdvf.sections:
        if not section.added:
            continue
        contents: Contents = tdvf.raw_contents(section)
        if section.type is SectionType.TD_HOB and section.measured:
            if hob is None:
                raise ValueError(f"{section} is measured, so MRTD depends on the machine and not on the firmware alone")
            contents = hob(section)
        predictor.add_region(section.address, contents, section.measured, section.memory_size)
    return predictor.digest()
