# SPDX-License-Identifier: GPL-2.0-or-later
"""The quote generation service: what QEMU's ``quote-generation-socket`` and libtdx_attest speak to.

One request per connection: a framed message of protocol 1.1, or a bare TDREPORT of exactly 1024 bytes, which is
answered with the bare quote.  A message that cannot be parsed gets no answer, a report that cannot be quoted gets an
error code, as with Intel's service.  A peer may be slow, send a byte at a time, send too much, or vanish: it holds one
of `MAXIMUM_CONNECTIONS` for at most `TIMEOUT_SECONDS`, and `MAXIMUM_REQUEST` bytes.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from swtdx.attest.report import REPORT_SIZE, TYPE_TDX
from swtdx.quoting.collateral import CollateralKeeper
from swtdx.quoting.enclave import QE_ISVSVN, QuotingEnclave, QuotingError
from swtdx.quoting.pki import CPUSVN, FMSPC, PCESVN
from swtdx.vmm.qgs_message import (
    FRAME,
    HEADER,
    MessageError,
    MessageType,
    QgsError,
    collateral_response,
    framed,
    parse_request,
    platform_info_response,
    quote_response,
)
from swtdx.vmm.qgs_socket import SocketAddress

DEFAULT_PATH = "/run/tdx-qgs/qgs.socket"
VSOCK_PORT = 4050
TIMEOUT_SECONDS = 30.0
MAXIMUM_CONNECTIONS = 32
MAXIMUM_REQUEST = 64 << 10
_BACKLOG = 128
_SLOT_SECONDS = 0.2


class QgsUnusable(Exception):
    """The service cannot listen there; the text is one sentence for a person."""


class QuoteService:
    """The answers of the service. ``say`` gets a sentence about each request."""

    def __init__(
        self, enclave: QuotingEnclave, scenario: str = "UpToDate", say: Callable[[str], object] = lambda text: None
    ) -> None:
        self._enclave = enclave
        self._collateral = CollateralKeeper(enclave.pki)
        self._scenario = scenario
        self.say = say

    def raw(self, report: bytes) -> bytes:
        """Return the answer to a bare TDREPORT: the bare quote, or nothing."""
        try:
            quote = self._enclave.quote(report)
        except QuotingError as error:
            self.say(f"no quote: {error}")
            return b""
        self.say(f"a quote of {len(quote)} bytes, unframed")
        return quote

    def message(self, message: bytes) -> bytes:
        """Return the answer to a message, without its frame; nothing for what cannot be parsed."""
        try:
            request = parse_request(message)
        except MessageError as error:
            self.say(f"not a request: {error}")
            return b""
        if request.type is MessageType.GET_QUOTE_REQ:
            return self._get_quote(request.first)
        if request.type is MessageType.GET_COLLATERAL_REQ:
            return self._get_collateral(request.first, request.second)
        self.say("platform information")
        return platform_info_response(QE_ISVSVN, PCESVN, self._enclave.pki.secret("QE identity", 16), CPUSVN)

    def _get_quote(self, report: bytes) -> bytes:
        try:
            quote = self._enclave.quote(report)
        except QuotingError as error:
            self.say(f"no quote: {error}")
            return quote_response(b"", QgsError.UNEXPECTED)
        self.say(f"a quote of {len(quote)} bytes")
        return quote_response(quote)

    def _get_collateral(self, fmspc: bytes, ca: bytes) -> bytes:
        pki = self._enclave.pki
        if fmspc != FMSPC or ca.rstrip(b"\0") != pki.ca_type.encode():
            self.say(
                f"no collateral: FMSPC {fmspc[:6].hex()}, CA {ca[:16]!r}; the platform has {FMSPC.hex()}, {pki.ca_type}"
            )
            return collateral_response((), QgsError.UNEXPECTED)
        self.say("collateral")
        return collateral_response(self._collateral.get(self._scenario).qgs_parts())


class QgsServer:
    """Listens and answers until it is closed: a context manager."""

    def __init__(self, service: QuoteService, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.service = service
        self._timeout = timeout
        self._slots = threading.BoundedSemaphore(MAXIMUM_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._undo = ExitStack()

    def listen(self, address: SocketAddress) -> SocketAddress:
        """Listen at an address, too; return it with the port that it got. Raises `QgsUnusable`."""
        try:
            listener = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            raise QgsUnusable(f"{address}: {error.strerror or error}") from None
        try:
            if address.family == socket.AF_UNIX:
                self._bind_unix(listener, address.address)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address.address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise QgsUnusable(f"{address}: {error.strerror or error}") from None
        except QgsUnusable:
            listener.close()
            raise
        bound = address
        if address.family in (socket.AF_INET, socket.AF_INET6):
            bound = SocketAddress(address.family, listener.getsockname()[:2])
        with self._lock:
            self._open.add(listener)
        thread = threading.Thread(target=self._accept, args=(listener,), daemon=True, name=f"qgs {bound}")
        self._threads.append(thread)
        thread.start()
        return bound

    def _bind_unix(self, listener: socket.socket, path: str) -> None:
        """Bind to a path. A socket without a listener is replaced; anything else is not."""
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise QgsUnusable(f"{path} exists and is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise QgsUnusable(f"{path} is in use: another service listens there")
        except FileNotFoundError:
            if not Path(path).parent.is_dir():
                raise QgsUnusable(f"there is no folder {Path(path).parent} for the socket") from None
        listener.bind(path)
        made = os.lstat(path)

        def remove() -> None:
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), made):
                    os.unlink(path)

        self._undo.callback(remove)

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            if not self._slots.acquire(timeout=_SLOT_SECONDS):
                continue
            try:
                connection, _ = listener.accept()
            except OSError:
                self._slots.release()
                if self._closed.is_set():
                    return
                time.sleep(0.05)  # no descriptors, or a peer that is gone already
                continue
            with self._lock:
                if self._closed.is_set():
                    connection.close()
                    self._slots.release()
                    return
                self._open.add(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True, name="qgs connection").start()
            except RuntimeError:  # the process may have no more threads
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()
        self._slots.release()

    def _serve(self, connection: socket.socket) -> None:
        try:
            answer = self._answer(connection)
            if answer:
                connection.settimeout(self._timeout)
                connection.sendall(answer)
        except OSError:
            pass  # the peer is gone, or too slow
        finally:
            self._drop(connection)

    def _answer(self, connection: socket.socket) -> bytes:
        """Read one request and return its answer; nothing for what is none."""
        deadline = time.monotonic() + self._timeout
        received = bytearray()
        while len(received) < (wanted := _wanted(received)):
            left = deadline - time.monotonic()
            if left <= 0:
                return b""
            connection.settimeout(left)
            piece = connection.recv(min(wanted - len(received), 1 << 16))
            if not piece:
                return b""
            received += piece
        if _is_raw(received):
            return self.service.raw(bytes(received)) if not _has_more(connection) else b""
        (length,) = FRAME.unpack_from(received)
        if len(received) < FRAME.size + length:
            self.service.say(f"not a request: a frame of {length} bytes")
            return b""
        message = self.service.message(bytes(received[FRAME.size :]))
        return framed(message) if message else b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and drop who is connected."""
        self._closed.set()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2 * _SLOT_SECONDS)
        with self._lock:
            listeners, self._open = self._open, set()
        for each in listeners:
            each.close()
        self._undo.close()


def _is_raw(received: bytearray) -> bool:
    """Whether it begins as a bare TDREPORT: with its type, which begins no length that is accepted."""
    return received[0] == TYPE_TDX


def _has_more(connection: socket.socket) -> bool:
    """Whether bytes follow: then it was not a report alone."""
    connection.settimeout(0)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return False


def _wanted(received: bytearray) -> int:
    """How many bytes a request has that begins so."""
    if len(received) < FRAME.size:
        return FRAME.size
    if _is_raw(received):
        return REPORT_SIZE
    (length,) = FRAME.unpack_from(received)
    if not HEADER.size <= length <= MAXIMUM_REQUEST:
        return FRAME.size  # read no further: it is refused
    return FRAME.size + int(length)
