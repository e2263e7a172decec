# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.VP.VMCALL<GetQuote>: a doorbell. The guest passes a shared buffer; the VMM fills it in, and then its status.

Checks, statuses and limits are those of QEMU (target/i386/kvm/tdx.c, tdx-quote-generator.c).  A guest polls the status
once a second, so an answer that comes quickly is written before the TDVMCALL returns; a slower one comes later, as in
QEMU, while the status says that the request is in flight.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Protocol

from swtdx.uapi import kvm
from swtdx.x86 import PAGE_SIZE

HEADER = struct.Struct("<QQII")
"""Version, status, bytes of data in, bytes of data out."""
VERSION = 1
MAXIMUM_BUFFER = 128 << 10
MAXIMUM_REQUESTS = 16
_STATUS = struct.Struct("<Q")
_STATUS_AT, _OUT_LENGTH_AT = 8, 20

SUCCESS = 0
IN_FLIGHT = 0xFFFF_FFFF_FFFF_FFFF
ERROR = 0x8000_0000_0000_0000
UNAVAILABLE = 0x8000_0000_0000_0001


class QuoteUnavailable(Exception):
    """No quote generation service answers; the guest reads UNAVAILABLE. The text says why."""


class QuoteRefused(Exception):
    """The service gave no quote; the guest reads ERROR. The text says why."""


class QuoteSource(Protocol):
    """Where quotes come from."""

    patience: float
    """Seconds that a TDVMCALL waits for its quote. A guest that finds none looks again a second later."""

    def quote(self, report: bytes) -> bytes:
        """Return the quote of what the guest sent: a TDREPORT. Raises `QuoteUnavailable`, `QuoteRefused`."""
        ...

    def close(self) -> None:
        """Give up what is under way."""
        ...


class SharedMemory(Protocol):
    """Guest memory as the VMM sees it."""

    def contains(self, gpa: int, length: int) -> bool:
        """Whether the whole range is memory of one piece."""
        ...

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes of a range that is memory."""
        ...

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes in a range that is memory."""
        ...


class GetQuote:
    """Answer a guest's requests. ``notify`` is called after each one; ``say`` gets a sentence about each failure."""

    def __init__(
        self,
        memory: SharedMemory,
        source: QuoteSource | None,
        notify: Callable[[], object],
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._memory = memory
        self._source = source
        self._notify = notify
        self._say = say
        self._lock = threading.Lock()
        self._closed = False
        self._threads: set[threading.Thread] = set()

    def request(self, gpa: int, size: int) -> int:
        """Return what the TDVMCALL returns in R10."""
        if not size:
            return kvm.TDVMCALL_STATUS_INVALID_OPERAND
        if gpa % PAGE_SIZE or size % PAGE_SIZE:
            return kvm.TDVMCALL_STATUS_ALIGN_ERROR
        if size > MAXIMUM_BUFFER or not self._memory.contains(gpa, size):
            return kvm.TDVMCALL_STATUS_INVALID_OPERAND
        version, _, length, _ = HEADER.unpack(self._memory.read(gpa, HEADER.size))
        if version != VERSION or length > size - HEADER.size:
            return kvm.TDVMCALL_STATUS_INVALID_OPERAND
        if self._source is None:
            self._finish(gpa, UNAVAILABLE)
            return kvm.TDVMCALL_STATUS_SUCCESS
        data = self._memory.read(gpa + HEADER.size, length)
        with self._lock:
            if self._closed:
                return kvm.TDVMCALL_STATUS_SUCCESS
            if len(self._threads) >= MAXIMUM_REQUESTS:
                return kvm.TDVMCALL_STATUS_RETRY
            thread = threading.Thread(target=self._fetch, args=(gpa, size, data), daemon=True, name="get-quote")
            try:
                thread.start()
            except RuntimeError:  # the process may have no more threads
                return kvm.TDVMCALL_STATUS_RETRY
            self._threads.add(thread)  # the answer needs the lock, so it comes after this
            self._memory.write(gpa + _STATUS_AT, _STATUS.pack(IN_FLIGHT))
        thread.join(self._source.patience)
        return kvm.TDVMCALL_STATUS_SUCCESS

    def _fetch(self, gpa: int, size: int, data: bytes) -> None:
        assert self._source is not None
        quote, status = b"", ERROR
        try:
            quote = self._source.quote(data)
            if len(quote) > size - HEADER.size:
                raise QuoteRefused(f"the quote has {len(quote)} bytes, the guest's buffer {size - HEADER.size}")
            status = SUCCESS
        except QuoteUnavailable as error:
            status = UNAVAILABLE
            self._tell(error)
        except QuoteRefused as error:
            self._tell(error)
        finally:
            self._finish(gpa, status, quote if status == SUCCESS else None)

    def _tell(self, error: Exception) -> None:
        if not self._closed:
            self._say(f"the guest gets no quote: {error}")

    def _finish(self, gpa: int, status: int, quote: bytes | None = None) -> None:
        """Write the answer, its status last. A machine that is being taken down has no memory any more."""
        with self._lock:
            self._threads.discard(threading.current_thread())
            if self._closed:
                return
            if quote is not None:
                self._memory.write(gpa + HEADER.size, quote)
                self._memory.write(gpa + _OUT_LENGTH_AT, len(quote).to_bytes(4, "little"))
            self._memory.write(gpa + _STATUS_AT, _STATUS.pack(status))
        self._notify()

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._threads)

    def close(self) -> None:
        """Write nothing from here on, and let go of the service."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        if self._source is not None:
            self._source.close()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(1.0)
