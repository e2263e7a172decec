# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing all of something to a descriptor, and a failure to standard error. This module imports next to nothing."""

from __future__ import annotations

import os
import sys


def complain(text: str) -> None:
    """Report a failure on stderr, also in a quiet run."""
    print(f"swtdx: {text}", file=sys.stderr, flush=True)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data``, also to a descriptor that is non-blocking. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            import select

            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
