# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard input, output and error, of which each may be closed, full, or without a reader.

A descriptor that the caller has closed is opened on ``/dev/null``: the next file opened would otherwise get its number,
and what is printed would go into that file.  In place of standard output it is opened for reading, so that a write
fails as it does on a closed descriptor.

A command that cannot print its result must not end with status 0.  A message that cannot be printed must not end the
command: standard error drops it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from swtdx.cli.writing import complain, write_all

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class _Raw(io.FileIO):
    """A descriptor as a raw stream that Python's own buffers and text layers can stand on."""

    def __init__(self, descriptor: int, *, drops: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._drops = drops
        self.problem: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it. Raises OSError, unless what cannot be written is dropped."""
        try:
            write_all(self.fileno(), data)
        except OSError as problem:
            self.problem = problem
            if not self._drops:
                raise
        return len(data)


class StandardStreams:
    """The three streams of this process while a command runs. ``closed`` are the descriptors that were."""

    def __init__(self, closed: frozenset[int], raw: _Raw) -> None:
        self.closed = closed
        self._raw = raw

    @property
    def stdout_problem(self) -> OSError | None:
        """Why something could not be printed on standard output."""
        return self._raw.problem

    def finish(self, status: int, when_lost: int) -> int:
        """Print what is still buffered. The exit status: ``when_lost`` in place of 0 if something is missing."""
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        problem = self._raw.problem
        if problem is None or problem.errno == errno.EPIPE:  # who stops reading has seen enough
            return status
        why = "is closed" if _STDOUT in self.closed else f"cannot be written: {problem.strerror}"
        complain(f"standard output {why}")
        return status or when_lost


class GuestConsole:
    """Standard output as the place of a guest's console; ``lost`` is set when something of it could not be written.

    It raises OSError only when its reader is gone, which ends a run.
    """

    def __init__(self) -> None:
        self.lost = False
        self._is_terminal = os.isatty(_STDOUT)
        self._silent = False

    def write(self, data: bytes) -> int:
        """Show ``data``."""
        if self._silent:
            return len(data)
        try:
            write_all(_STDOUT, data)
        except OSError as problem:
            if problem.errno == errno.EPIPE or (problem.errno == errno.EIO and self._is_terminal):
                raise
            self._silent = True
            if problem.errno == errno.EBADF:  # closed on purpose
                complain("standard output is closed: the console is not shown")
            else:
                self.lost = True
                complain(f"standard output cannot be written: {problem.strerror}; the rest of the console is lost")
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


@contextmanager
def standard_streams() -> Iterator[StandardStreams]:
    """Put streams that cannot fail by surprise in the place of Python's own."""
    closed = frozenset(descriptor for descriptor in (_STDIN, _STDOUT, _STDERR) if _open_if_closed(descriptor))
    before = sys.stdin, sys.stdout, sys.stderr
    raw = _Raw(_STDOUT, drops=False)
    if _STDIN in closed:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - it stays open as long as the process
    sys.stdout = _text(raw, before[1])
    sys.stderr = _text(_Raw(_STDERR, drops=True), before[2], line_buffering=True)
    try:
        yield StandardStreams(closed, raw)
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _open_if_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        # The lowest free number is taken, and those below are open by now.
        with suppress(OSError):
            os.open(os.devnull, os.O_WRONLY if descriptor == _STDERR else os.O_RDONLY)
        return True
    return False


def _text(raw: _Raw, before: TextIO | None, *, line_buffering: bool = False) -> io.TextIOWrapper:
    """Return a text layer in the encoding of the stream before; what that cannot express is escaped."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=line_buffering or raw.isatty())
