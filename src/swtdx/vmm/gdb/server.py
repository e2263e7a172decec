# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening, and one client after the other. Whatever a client sends or does, the machine survives it.

An address is ``[HOST]:PORT`` (no host: this machine only, port 0: any that is free), with or without QEMU's ``tcp:``
before it, or the path of a unix socket, with ``unix:`` before it where it has no slash.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from swtdx.vmm.execution import Execution
from swtdx.vmm.gdb.packet import Again, Broken, Interrupt, Packet, PacketReader, framed
from swtdx.vmm.gdb.replayed import ReplayedStub, Timeline
from swtdx.vmm.gdb.stub import Reply, Stub
from swtdx.vmm.gdb.target import Target
from swtdx.vmm.launch import Machine
from swtdx.vmm.run import Run

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_SEND_SECONDS = 10.0
_RECEIVE_BYTES = 4096
_GOODBYE_SECONDS, _GOODBYE_PIECES = 0.2, 16


class AddressError(Exception):
    """An address that cannot be listened on; the text is one sentence for a person."""


@dataclass(frozen=True)
class Address:
    """Where to listen: ``path`` of a unix socket, or host and port."""

    host: str = LOOPBACK
    port: int = 0
    path: str = ""


def parse_address(text: str) -> Address:
    """Raises AddressError."""
    if text.startswith("unix:") or "/" in text:
        path = text.removeprefix("unix:")
        if path:
            return Address(path=path)
    host, colon, port = text.removeprefix("tcp:").rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise AddressError(f"{text!r} is not a valid address: write :1234, HOST:1234 or the path of a unix socket")
    return Address(host.strip("[]") or LOOPBACK, int(port))


class GdbServer:
    """Listens from the moment it is made; `serve` a machine, `close` it in any case (a context manager).

    ``say`` hears when a client comes and goes. Raises AddressError.
    """

    def __init__(self, address: Address, say: Callable[[str], object] = lambda text: None) -> None:
        self._say = say
        self._path = address.path
        try:
            self._listener = _listen(address)
        except (OSError, ValueError, UnicodeError) as error:
            where = address.path or f"{address.host}:{address.port}"
            reason = getattr(error, "strerror", None) or str(error)
            raise AddressError(f"cannot listen on {where} for a debugger: {reason}") from None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = False
        self._thread: threading.Thread | None = None
        self._client: socket.socket | None = None
        self._make_stub: Callable[[], Stub]
        self._execution: Execution

    @property
    def where(self) -> str:
        """What to type behind ``target remote``."""
        if self._path:
            return self._path
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def serve(
        self, machine: Machine, run: Run, execution: Execution, target: Target, timeline: Timeline | None = None
    ) -> None:
        """Accept clients, whose vCPUs ask ``execution``. ``timeline``: of a replay, which can go back."""
        if timeline is None:
            self._make_stub = lambda: Stub(machine, run, execution, target)
        else:
            self._make_stub = lambda: ReplayedStub(machine, run, execution, target, timeline)
        self._execution = execution
        execution.wake = self._wake
        self._thread = threading.Thread(target=self._loop, name="gdb", daemon=True)
        self._thread.start()

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send the client away and stop listening; once is enough."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self._execution.wake = lambda: None
            self._wake()
            self._thread.join()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        if self._path:
            try:
                os.unlink(self._path)
            except OSError:
                log.debug("the socket %s is gone already", self._path)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            return  # it is awake

    def _loop(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closing:
                if self._listener not in [key.fileobj for key, _ in selector.select()]:
                    self._drain()
                    continue
                selector.unregister(self._listener)  # the next client waits its turn
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    client = None
                if client is not None:
                    with client:
                        self._attend(client, selector)
                selector.register(self._listener, selectors.EVENT_READ)

    def _drain(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return

    def _attend(self, client: socket.socket, selector: selectors.BaseSelector) -> None:
        """One client, from its coming to its going."""
        stub = self._make_stub()
        if self._execution.over:
            return
        selector.register(client, selectors.EVENT_READ)
        try:
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(_SEND_SECONDS)
            stub.attach()
            self._say("a debugger has connected, the VM is stopped")
            self._converse(client, stub, selector)
        except OSError as error:
            log.debug("debugger: %s", error)
        except Exception:
            log.exception("internal error while serving a debugger")
        finally:
            selector.unregister(client)
            self._part(stub)
            _say_goodbye(client)

    def _part(self, stub: Stub) -> None:
        if self._execution.over:
            return
        if not stub.gone:
            stub.detach()
        if not self._closing:
            self._say("the debugger is gone, the VM continues")

    def _converse(self, client: socket.socket, stub: Stub, selector: selectors.BaseSelector) -> None:
        session = Conversation(client, stub)
        while not stub.gone and not self._closing:
            ready = {key.fileobj for key, _ in selector.select()}
            if self._wake_read in ready:
                self._drain()
                session.send(stub.event())
            if self._execution.over:
                return
            if client in ready:
                received = client.recv(_RECEIVE_BYTES)
                if not received:
                    return
                session.receive(received)


class Conversation:
    """Packets of one connection."""

    def __init__(self, client: socket.socket, stub: Stub) -> None:
        self._client = client
        self._stub = stub
        self._reader = PacketReader()
        self._last = b""

    def send(self, replies: Reply) -> None:
        for reply in replies:
            self._last = framed(reply)
            self._client.sendall(self._last)

    def receive(self, data: bytes) -> None:
        stub = self._stub
        for event in self._reader.feed(data):
            if stub.gone:
                return
            match event:
                case Packet(content):
                    if not stub.no_acknowledgement:
                        self._client.sendall(b"+")
                    self.send(stub.handle(content))
                case Interrupt():
                    self.send(stub.interrupt())
                case Broken():
                    if not stub.no_acknowledgement:
                        self._client.sendall(b"-")
                case Again():
                    if not stub.no_acknowledgement and self._last:
                        self._client.sendall(self._last)


def _say_goodbye(client: socket.socket) -> None:
    """End the connection so that the client reads our last words: closing with its own unread would reset it."""
    try:
        client.shutdown(socket.SHUT_WR)
        client.settimeout(_GOODBYE_SECONDS)
        for _ in range(_GOODBYE_PIECES):
            if not client.recv(_RECEIVE_BYTES):
                return
    except OSError:
        return  # it is gone already


def _listen(address: Address) -> socket.socket:
    if address.path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(address.path)
            listener.listen(1)
        except (OSError, ValueError):
            listener.close()
            raise
        return listener
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server((address.host, address.port), family=family, backlog=1)
