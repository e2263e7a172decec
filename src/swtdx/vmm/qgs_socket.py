# SPDX-License-Identifier: GPL-2.0-or-later
"""A quote generation service behind a socket, as QEMU's ``quote-generation-socket``: one connection per request."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from swtdx.vmm.get_quote import QuoteRefused, QuoteUnavailable
from swtdx.vmm.qgs_message import FRAME, MAXIMUM_MESSAGE, MessageError, framed, parse_quote_response, quote_request

TIMEOUT_SECONDS = 30.0
MAXIMUM_UNIX_PATH = 107
"""Bytes of sun_path, without the NUL."""
_VSOCK = re.compile(r"vsock:(\d{1,10}):(\d{1,10})", re.ASCII)
_INET = re.compile(r"(?:tcp:)?(\[[0-9a-fA-F:.]+\]|[\w.-]*):(\d{1,5})", re.ASCII)
_HOST = re.compile(r"[\w.:%-]*", re.ASCII)


class AddressError(ValueError):
    """Not the address of a socket; the text says why."""


@dataclass(frozen=True)
class SocketAddress:
    """Where a service listens."""

    family: int
    address: Any
    """As the socket module takes it."""

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.address}"
        if self.family == socket.AF_VSOCK:
            return f"vsock:{self.address[0]}:{self.address[1]}"
        host = f"[{self.address[0]}]" if self.family == socket.AF_INET6 else self.address[0]
        return f"tcp:{host}:{self.address[1]}"


def parse_address(text: str) -> SocketAddress:
    """Return the address in ``unix:PATH``, a path, ``vsock:CID:PORT``, ``HOST:PORT``, or QEMU's JSON.

    Raises AddressError.

    >>> str(parse_address("/run/tdx-qgs/qgs.socket")), str(parse_address(":4050"))
    ('unix:/run/tdx-qgs/qgs.socket', 'tcp:127.0.0.1:4050')
    >>> str(parse_address('{"type": "vsock", "cid": "2", "port": "4050"}'))
    'vsock:2:4050'
    """
    if text.startswith("{"):
        return _of_json(text)
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    if (found := _VSOCK.fullmatch(text)) is not None:
        return _vsock(found[1], found[2])
    if "/" in text:
        return _unix(text)
    if (found := _INET.fullmatch(text)) is not None:
        return _inet(found[1].strip("[]"), found[2])
    raise AddressError(f"{text!r} is not an address: write unix:PATH, vsock:CID:PORT or HOST:PORT")


def _of_json(text: str) -> SocketAddress:
    try:
        content = json.loads(text)
        kind = content["type"]
        if kind == "unix":
            return _unix(str(content["path"]))
        if kind == "vsock":
            return _vsock(str(content["cid"]), str(content["port"]))
        if kind == "inet":
            return _inet(str(content["host"]), str(content["port"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, AddressError):
            raise
        raise AddressError(
            f"{text!r} is not a SocketAddress of QEMU's: it has type, and path, or cid and port"
        ) from None
    raise AddressError(f"{text!r}: the type is unix, vsock or inet")


def _unix(path: str) -> SocketAddress:
    size = len(path.encode("utf-8", "surrogateescape"))
    if not path or "\0" in path:
        raise AddressError("a unix socket needs a path")
    if size > MAXIMUM_UNIX_PATH:
        raise AddressError(
            f"the path of a unix socket has at most {MAXIMUM_UNIX_PATH} bytes, this one has {size}: {path}"
        )
    return SocketAddress(socket.AF_UNIX, path)


def _vsock(cid: str, port: str) -> SocketAddress:
    numbers = [int(text) if text.isascii() and text.isdigit() else -1 for text in (cid, port)]
    if not all(0 <= number < 1 << 32 for number in numbers):
        raise AddressError(f"vsock:{cid}:{port}: CID and port are numbers of 32 bits")
    return SocketAddress(socket.AF_VSOCK, (numbers[0], numbers[1]))


def _inet(host: str, port: str) -> SocketAddress:
    number = int(port) if port.isascii() and port.isdigit() else -1
    if not 0 <= number < 1 << 16:
        raise AddressError(f"{port} is not a TCP port")
    if not _HOST.fullmatch(host):
        raise AddressError(f"{host!r} is not the name or the address of a host")
    return SocketAddress(socket.AF_INET6 if ":" in host else socket.AF_INET, (host or "127.0.0.1", number))


class QuoteSocket:
    """A `QuoteSource` that asks the service at ``address`` each time."""

    patience = 0.2

    def __init__(self, address: SocketAddress, timeout: float = TIMEOUT_SECONDS) -> None:
        self.address = address
        self._timeout = timeout
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def quote(self, report: bytes) -> bytes:
        """Return the quote of what the guest sent. Raises `QuoteUnavailable`, `QuoteRefused`."""
        deadline = time.monotonic() + self._timeout
        connection = self._connected()
        try:
            connection.sendall(framed(quote_request(report)))
            (length,) = FRAME.unpack(self._take(connection, FRAME.size, deadline))
            if not 0 < length <= MAXIMUM_MESSAGE:
                raise QuoteRefused(f"the service at {self.address} announces a message of {length} bytes")
            return parse_quote_response(self._take(connection, length, deadline))
        except MessageError as error:
            raise QuoteRefused(f"the service at {self.address}: {error}") from None
        except OSError as error:
            raise QuoteRefused(f"the service at {self.address} was lost: {error.strerror or error}") from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _connected(self) -> socket.socket:
        try:
            connection = socket.socket(self.address.family, socket.SOCK_STREAM)
        except OSError as error:
            raise QuoteUnavailable(f"no socket for {self.address}: {error.strerror or error}") from None
        with self._lock:
            if self._closed:
                connection.close()
                raise QuoteUnavailable("the machine is being taken down")
            self._open.add(connection)
        connection.settimeout(self._timeout)
        try:
            connection.connect(self.address.address)
        except OSError as error:
            with self._lock:
                self._open.discard(connection)
            connection.close()
            raise QuoteUnavailable(f"no service at {self.address}: {error.strerror or error}") from None
        return connection

    def _take(self, connection: socket.socket, length: int, deadline: float) -> bytes:
        taken = bytearray()
        while len(taken) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QuoteRefused(f"the service at {self.address} has not answered after {self._timeout:g} s")
            connection.settimeout(left)
            try:
                piece = connection.recv(min(length - len(taken), 1 << 16))
            except TimeoutError:
                continue
            if not piece:
                raise QuoteRefused(f"the service at {self.address} closed the connection without an answer")
            taken += piece
        return bytes(taken)

    def close(self) -> None:
        """Give up what is under way."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
