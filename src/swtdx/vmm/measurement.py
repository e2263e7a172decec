# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD, predicted: SHA-384 over the stream of 128-byte blocks that the TDX module makes of the calls that build a TD.

``TDH.MEM.PAGE.ADD`` contributes one block: the ASCII text ``MEM.PAGE.ADD``, the page's GPA at byte 16, else zero.
``TDH.MR.EXTEND`` contributes one block with ``MR.EXTEND`` and the GPA of a 256-byte chunk, and then the chunk itself as
two blocks.  Both feed the same hash, so the order of the calls counts (TDX module base specification, "MRTD: build-time
measurement register"): KVM today adds and extends page by page, older trees added a whole region and then extended it.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from swtdx.vmm.tdvf import PAGE_SIZE, Section, SectionType, Tdvf

_BLOCK_SIZE = 128
_CHUNK_SIZE = 256


class Order(Enum):
    """In which order a measured region's calls come."""

    PER_PAGE = "page by page"  # add a page, extend it, add the next
    PER_REGION = "region by region"  # add all pages, then extend all


class MrtdPredictor:
    """Accumulates the measurement of the regions that a VMM adds, in the order in which it adds them."""

    def __init__(self, order: Order = Order.PER_PAGE) -> None:
        self.order = order
        self._hash = hashlib.sha384()

    def add_region(self, gpa: int, contents: bytes, measured: bool) -> None:
        """What one ``KVM_TDX_INIT_MEM_REGION`` does: ``contents`` (whole pages) go to ``gpa``."""
        if gpa % PAGE_SIZE or len(contents) % PAGE_SIZE:
            raise ValueError("a region consists of whole pages")
        pages = range(0, len(contents), PAGE_SIZE)
        if not measured or self.order is Order.PER_REGION:
            for offset in pages:
                self._page_add(gpa + offset)
            if measured:
                for offset in pages:
                    self._extend_page(gpa + offset, contents[offset : offset + PAGE_SIZE])
            return
        for offset in pages:
            self._page_add(gpa + offset)
            self._extend_page(gpa + offset, contents[offset : offset + PAGE_SIZE])

    def digest(self) -> bytes:
        """The 48 bytes of MRTD if ``TDH.MR.FINALIZE`` came now."""
        return self._hash.digest()

    def _page_add(self, gpa: int) -> None:
        self._hash.update(_block(b"MEM.PAGE.ADD", gpa))

    def _extend_page(self, gpa: int, page: bytes) -> None:
        for offset in range(0, PAGE_SIZE, _CHUNK_SIZE):
            self._hash.update(_block(b"MR.EXTEND", gpa + offset))
            self._hash.update(page[offset : offset + _CHUNK_SIZE])


def predict_mrtd(tdvf: Tdvf, order: Order = Order.PER_PAGE) -> bytes:
    """MRTD of a TD that is built from nothing but ``tdvf`` (48 bytes).

    The TD HOB section's contents are the VMM's and depend on the machine; firmware leaves them unmeasured for that
    reason.  Raises `ValueError` for an image that has them measured.
    """
    predictor = MrtdPredictor(order)
    for section in tdvf.sections:
        if not section.added:
            continue
        _require_predictable(section)
        predictor.add_region(section.address, tdvf.contents(section), section.measured)
    return predictor.digest()


def _require_predictable(section: Section) -> None:
    if section.type is SectionType.TD_HOB and section.measured:
        raise ValueError(f"{section} is measured, so MRTD depends on the machine and not on the firmware alone")


def _block(name: bytes, gpa: int) -> bytes:
    return (name.ljust(16, b"\0") + gpa.to_bytes(8, "little")).ljust(_BLOCK_SIZE, b"\0")
