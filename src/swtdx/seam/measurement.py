# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurement registers of a TD.

MRTD is one SHA-384 over a stream of 128-byte blocks, in the order of the calls that made the TD. TDH.MEM.PAGE.ADD
feeds one block that names the page's GPA (not its content); TDH.MR.EXTEND feeds a block that names the GPA of a
256-byte chunk, then the chunk. Nothing else is measured, and there is no block at the end.

RTMR[i] is extended by the guest: SHA-384 of the old value followed by 48 bytes.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.seam.td import Td

BLOCK_SIZE = 128
CHUNK_SIZE = 256
_PAGE_ADD = b"MEM.PAGE.ADD".ljust(16, b"\0")
MR_EXTEND_BLOCK = b"MR.EXTEND".ljust(16, b"\0")
_ADDED = struct.Struct(f"<16sQ{BLOCK_SIZE - 24}x")
extension = struct.Struct(f"<16sQ{BLOCK_SIZE - 24}x{CHUNK_SIZE}s").pack
"""What TDH.MR.EXTEND feeds: `MR_EXTEND_BLOCK`, the GPA of the 256 bytes, these bytes."""


MAX_EVENTS = 65536
"""RTMR extensions that are remembered for the machine's owner."""


def start(td: Td) -> None:
    """Begin the measurement of a TD."""
    td.mrtd_context = hashlib.sha384()


def page_added(td: Td, gpa: int) -> None:
    """Measure TDH.MEM.PAGE.ADD."""
    td.mrtd_context.update(_ADDED.pack(_PAGE_ADD, gpa))


def finish(td: Td) -> None:
    """Compute the final MRTD."""
    td.mrtd = td.mrtd_context.digest()


def extend_rtmr(td: Td, index: int, data: bytes) -> None:
    """Extend a run-time measurement register by 48 bytes."""
    td.rtmr[index] = hashlib.sha384(td.rtmr[index] + data).digest()
    if len(td.rtmr_events) < MAX_EVENTS:  # a guest in a loop must not fill the host's memory
        td.rtmr_events.append((index, bytes(data)))
