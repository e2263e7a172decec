# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's serial console on a terminal, or on a pipe.

Output is streamed as it comes and watched for a text.  Firmware draws with escape sequences, so the watch looks at what
remains when those are taken out.  Input is read only from a terminal: piped, nothing here ever waits for anybody.

On a terminal it is in raw mode while the guest runs, and Ctrl-A begins a command, as in QEMU's multiplexed console:

====================  =======================================
Ctrl-A X              end the run
Ctrl-A H, Ctrl-A ?    this list
Ctrl-A C              how the run is going
Ctrl-A A, Ctrl-A Ctrl-A  send a Ctrl-A to the guest
====================  =======================================
"""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Protocol

SHELL_PROMPT = "Shell>"
BOOT_MENU_OFFERED = "Press any key to enter the Boot Manager Menu."
"""What EDK II says after "No bootable option or device was found", before it waits for a key (BdsDxe)."""

_ESCAPE = 0x1B
_CTRL_A = 0x01
HELP = "Ctrl-A X: end the run   Ctrl-A H: help   Ctrl-A C: how the run is going   Ctrl-A A: send Ctrl-A"


class TextStream:
    """What remains of a stream of bytes when the terminal control sequences (ECMA-48) are taken out."""

    def __init__(self) -> None:
        self._state = self._in_text

    def text(self, data: bytes) -> bytes:
        """Take more of the stream, which may begin and end within a sequence; returns its text."""
        return bytes(byte for byte in data if self._state(byte))

    def _in_text(self, byte: int) -> bool:
        if byte == _ESCAPE:
            self._state = self._after_escape
            return False
        return True

    def _after_escape(self, byte: int) -> bool:
        # "[" opens a control sequence; intermediates (0x20-0x2f) are followed by the final byte of a short one.
        if byte == ord("["):
            self._state = self._in_control_sequence
        elif not 0x20 <= byte <= 0x2F:
            self._state = self._in_text
        return False

    def _in_control_sequence(self, byte: int) -> bool:
        if 0x40 <= byte <= 0x7E:
            self._state = self._in_text
        return False


class TextWatch:
    """Finds a text in a stream of bytes that also holds terminal control sequences (ECMA-48)."""

    def __init__(self, text: str) -> None:
        self._wanted = text.encode()
        if not self._wanted:
            raise ValueError("the text to wait for is empty")
        self._tail = b""
        self._stream = TextStream()
        self.found = False

    def feed(self, data: bytes) -> bool:
        """Take more of the stream; returns whether the text has appeared in it by now."""
        seen = self._tail + self._stream.text(data)
        self.found = self.found or self._wanted in seen
        self._tail = seen[max(0, len(seen) - len(self._wanted) + 1) :]
        return self.found


class Writable(Protocol):
    """What takes bytes: a binary file that is written without a buffer, or with one that `flush` empties."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> object: ...


RECORD_SIZE = 4 << 20
"""Bytes of the guest's output of which the record keeps at least the last ones."""


class GuestOutput:
    """Where the guest's serial bytes go: ``stream`` (unbuffered by line at least), a record, and the watch.

    `put` is called by vCPU threads under the board's lock and must be quick; `flush` by the main thread now and then,
    so that a prompt without a newline is seen.  ``on_found`` is called once; ``on_lost`` when the stream has lost its
    reader.  ``log`` gets the same bytes and reports its own failures; ``on_shown`` gets them, too, about a line at a
    time.
    """

    def __init__(
        self,
        stream: Writable | None,
        watch: TextWatch | None = None,
        on_found: Callable[[], object] = lambda: None,
        on_lost: Callable[[], object] = lambda: None,
        log: Writable | None = None,
        on_shown: Callable[[bytes], object] = lambda data: None,
    ) -> None:
        self._stream = stream
        self._on_shown = on_shown
        self._log = log
        self._watches: list[tuple[TextWatch, Callable[[], object]]] = []
        if watch is not None:
            self._watches.append((watch, on_found))
        self._on_lost = on_lost
        self._pending = bytearray()
        self._lock = threading.Lock()
        self.record = bytearray()
        self.ends_in_newline = True

    def watch(self, watch: TextWatch, on_found: Callable[[], object]) -> None:
        """Look for one more text."""
        self._watches.append((watch, on_found))

    def put(self, data: bytes) -> None:
        """The guest printed ``data``."""
        self.record += data
        if len(self.record) > 2 * RECORD_SIZE:  # in large steps: a byte costs the same however much was printed
            del self.record[:-RECORD_SIZE]
        with self._lock:
            self._pending += data
        if b"\n" in data:
            self.flush()
        for pair in [pair for pair in self._watches if pair[0].feed(data)]:
            self._watches.remove(pair)
            pair[1]()

    def flush(self) -> None:
        """Write out what waits."""
        with self._lock:
            if not self._pending:
                return
            data = bytes(self._pending)
            self._pending.clear()
            self.ends_in_newline = data.endswith(b"\n")
            self._on_shown(data)
            if self._log is not None:
                self._log.write(data)
            if self._stream is None:
                return
            try:
                self._stream.write(data)
                self._stream.flush()
            except (OSError, ValueError):  # a closed pipe; ValueError: the file object itself is closed
                self._stream = None
                self._on_lost()


class Keyboard:
    """Raw terminal input for the guest, as a context manager. ``descriptor`` must be a terminal.

    ``type_`` gets what the person typed, ``leave`` is called on Ctrl-A X, ``say`` with a text that answers Ctrl-A H and
    Ctrl-A C (``status`` supplies the latter).
    """

    def __init__(
        self,
        descriptor: int,
        type_: Callable[[bytes], object],
        leave: Callable[[], object],
        say: Callable[[str], object],
        status: Callable[[], str],
    ) -> None:
        self._descriptor = descriptor
        self._type = type_
        self._leave = leave
        self._say = say
        self._status = status
        self._prefix = False
        self._saved: list[Any] | None = None
        self._stopping = False
        self._wake_read, self._wake_write = -1, -1
        self._thread: threading.Thread | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Keyboard:
        self._saved = termios.tcgetattr(self._descriptor)
        self._make_raw()
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {
                number: signal.signal(number, handler)
                for number, handler in ((signal.SIGTSTP, self._suspended), (signal.SIGCONT, self._continued))
            }
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._read, name="keyboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        os.write(self._wake_write, b"x")
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.restore()

    def restore(self) -> None:
        """Give the terminal back as it was."""
        if self._saved is not None and self._is_foreground():
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._saved)

    def _make_raw(self) -> None:
        with suppress(termios.error):
            tty.setraw(self._descriptor, termios.TCSANOW)
            attributes = termios.tcgetattr(self._descriptor)
            attributes[1] |= termios.OPOST  # our own lines still end in \n
            termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)

    def _is_foreground(self) -> bool:
        """Whether the terminal is ours to change: a process in the background is stopped for trying."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # not the controlling terminal
            return True

    def _suspended(self, number: int, frame: FrameType | None) -> None:
        """SIGTSTP: stop as any program does, but not in raw mode; this returns when the process is continued."""
        self._stopping = True
        self.restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._stopping = False  # raw only now: until here a second SIGTSTP stops us without this handler
        self._continued(number, frame)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """SIGCONT: another program may have changed the terminal meanwhile."""
        if not self._stopping and self._is_foreground():
            self._make_raw()

    def take(self, data: bytes) -> None:
        """Interpret typed bytes (separate from reading them, so that tests can type)."""
        plain = bytearray()
        for byte in data:
            if self._prefix:
                self._prefix = False
                self._command(byte, plain)
            elif byte == _CTRL_A:
                self._prefix = True
            else:
                plain.append(byte)
        if plain:
            self._type(bytes(plain))

    def _command(self, byte: int, plain: bytearray) -> None:
        key = chr(byte).lower()
        if key == "x":
            self._leave()
        elif key in "h?":
            self._say(HELP)
        elif key == "c":
            self._say(self._status())
        elif key == "a" or byte == _CTRL_A:
            plain.append(_CTRL_A)
        # anything else is swallowed, as QEMU does

    def _read(self) -> None:
        poll = select.poll()  # descriptors may be numbered beyond what select() takes
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            if self._wake_read in dict(poll.poll()):
                return
            try:
                data = os.read(self._descriptor, 256)
            except OSError:
                data = b""
            if not data:  # the terminal is gone
                self._leave()
                return
            self.take(data)
