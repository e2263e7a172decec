# SPDX-License-Identifier: GPL-2.0-or-later
"""The embedded kernel's log, which on a real machine is dmesg: on stderr, as one line of the command's own each."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:  # an internal error: a report needs all of it
            print(self.format(record), file=sys.stderr)
        else:
            self._say(f"kernel: {record.getMessage()}")


@contextmanager
def kernel_log(say: Callable[[str], object]) -> Iterator[None]:
    """Warnings and errors go to ``say``, as sentences; mistakes of swtdx to stderr, with their traceback."""
    logger, handler = logging.getLogger("swtdx"), _Lines(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
