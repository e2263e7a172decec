# SPDX-License-Identifier: GPL-2.0-or-later
"""The collateral service: the paths of Intel's PCS and PCCS, version 4, over HTTP or HTTPS, on this machine.

What verifiers ask for is answered from `swtdx.quoting.collateral`, by the TCB status that is set at that moment.  With
``as_intel`` the service is also an HTTP proxy that answers for Intel's host names, for clients whose addresses are
compiled in: they need ``HTTPS_PROXY`` and trust in the service's certificate, and reach no other host through it.

The HTTP server is the standard library's: threads with keep-alive, TLS on the accepted connection.  A client may be
slow or hostile: there are at most `MAXIMUM_CONNECTIONS`, each with a time limit for every read.
"""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography.hazmat.primitives.serialization import Encoding

from swtdx.attest.printable import printable
from swtdx.quoting.certificates import Role
from swtdx.quoting.collateral import SCENARIOS, Collateral, CollateralKeeper
from swtdx.quoting.pki import CPUSVN, FMSPC, PCESVN, ROOT_CRL_PATH, Pki
from swtdx.quoting.tls import LOCAL_NAMES, server_context

if TYPE_CHECKING:
    from io import BufferedIOBase

INTEL_HOSTS = ("api.trustedservices.intel.com", "certificates.trustedservices.intel.com")
INTEL_ROOT_CRL_PATH = "/IntelSGXRootCA.der"
MAXIMUM_CONNECTIONS = 64
TIMEOUT_SECONDS = 20.0
_JSON, _DER, _PEM, _TEXT = "application/json", "application/pkix-crl", "application/x-pem-file", "text/plain"


class PccsUnusable(Exception):
    """The service cannot listen there; the text is one sentence for a person."""


class Refused(Exception):
    """A request gets an HTTP status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Answer:
    """Body, its type, and headers of an answer."""

    def __init__(self, body: bytes, content_type: str, **headers: str) -> None:
        self.body = body
        self.content_type = content_type
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


Schedule = tuple[tuple[float, str], ...]


def parse_schedule(text: str) -> Schedule:
    """Return (seconds, status) from lines ``SECONDS STATUS``; ``#`` begins a comment. Raises ValueError.

    >>> parse_schedule("0 UpToDate  # at first\\n\\n2.5 OutOfDate")
    ((0.0, 'UpToDate'), (2.5, 'OutOfDate'))
    """
    found: list[tuple[float, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            seconds, status = float(words[0]), words[1]
            if len(words) != 2 or not 0 <= seconds < 1e9:
                raise ValueError
        except (ValueError, IndexError):
            raise ValueError(f"line {number}: write SECONDS STATUS, as in 10 OutOfDate") from None
        if status not in SCENARIOS:
            raise ValueError(f"line {number}: {status!r} must be one of {', '.join(SCENARIOS)}")
        if found and seconds <= found[-1][0]:
            raise ValueError(f"line {number}: {words[0]} s is not after the line before")
        found.append((seconds, status))
    if not found:
        raise ValueError("there is no line SECONDS STATUS")
    return tuple(found)


class CollateralService:
    """The answers, by path and query. ``status`` may be changed at any time."""

    def __init__(self, pki: Pki, status: str = "UpToDate", schedule: Schedule = ()) -> None:
        self.pki = pki
        self._keeper = CollateralKeeper(pki)
        self._status = status
        self._schedule = schedule
        self._started = time.monotonic()
        self._keeper.get(self.status)  # a status that does not exist fails here

    @property
    def status(self) -> str:
        """The TCB status that the documents lead to now."""
        elapsed = time.monotonic() - self._started
        return next((status for start, status in reversed(self._schedule) if elapsed >= start), self._status)

    @status.setter
    def status(self, status: str) -> None:
        self._keeper.get(status)
        self._status, self._schedule = status, ()

    def get(self, target: str) -> Answer:
        """Return the answer to GET of a path with its query. Raises `Refused`."""
        split = urlsplit(target)
        query = dict(parse_qsl(split.query, keep_blank_values=True, max_num_fields=16))
        handler = _PATHS.get(split.path.rstrip("/") or "/")
        if handler is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {split.path}")
        return handler(self, self._keeper.get(self.status), query)

    def _pck_crl(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        ca = query.get("ca", "")
        if ca not in collateral.pck_crls:
            raise Refused(HTTPStatus.BAD_REQUEST, "ca must be platform or processor")
        return self._crl(collateral.pck_crls[ca], query, SGX_PCK_CRL_Issuer_Chain=_header(collateral.ca_chain(ca)))

    def _crl(self, crl: bytes, query: dict[str, str], **headers: str) -> Answer:
        encoding = query.get("encoding", "pem").lower()
        if encoding == "der":
            return Answer(crl, _DER, **headers)
        if encoding != "pem":
            raise Refused(HTTPStatus.BAD_REQUEST, "encoding must be pem or der")
        from cryptography import x509

        return Answer(x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM), _PEM, **headers)

    def _root_ca_crl(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        """PCCS's form: hexadecimal text."""
        return Answer(collateral.root_ca_crl.hex().encode(), _TEXT)

    def _root_crl_file(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        return Answer(collateral.root_ca_crl, _DER)

    def _crl_by_uri(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        uri = urlsplit(query.get("uri", ""))
        if uri.path in (ROOT_CRL_PATH, INTEL_ROOT_CRL_PATH):
            return Answer(collateral.root_ca_crl, _DER)
        if uri.path == "/sgx/certification/v4/pckcrl":
            return self._pck_crl(collateral, {**dict(parse_qsl(uri.query)), "encoding": "der"})
        raise Refused(HTTPStatus.NOT_FOUND, "uri is not the address of a CRL of this PKI")

    def _tcb(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        fmspc = query.get("fmspc", "")
        if len(fmspc) != 12 or not all(digit in "0123456789abcdefABCDEF" for digit in fmspc):
            raise Refused(HTTPStatus.BAD_REQUEST, "fmspc must be 12 hexadecimal digits")
        _check_update(query)
        if fmspc.upper() != FMSPC.hex().upper():
            raise Refused(
                HTTPStatus.NOT_FOUND, f"there is no platform with FMSPC {fmspc}: the test PKI has {FMSPC.hex()}"
            )
        chain = _header(collateral.tcb_signing_chain)
        return Answer(
            collateral.tcb_info_response.encode(), _JSON, TCB_Info_Issuer_Chain=chain, SGX_TCB_Info_Issuer_Chain=chain
        )

    def _qe_identity(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        _check_update(query)
        chain = _header(collateral.tcb_signing_chain)
        return Answer(collateral.qe_identity_response.encode(), _JSON, SGX_Enclave_Identity_Issuer_Chain=chain)

    def _pck_certificate(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        chain = self.pki.chain(self.pki.ca_role(), Role.ROOT)
        return Answer(
            self.pki.chain(Role.PCK),
            _PEM,
            SGX_PCK_Certificate_Issuer_Chain=_header(chain),
            SGX_TCBm=(CPUSVN + PCESVN.to_bytes(2, "little")).hex().upper(),
            SGX_FMSPC=FMSPC.hex().upper(),
            SGX_PCK_Certificate_CA_Type=self.pki.ca_type,
        )

    def _root_certificate(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        return Answer(self.pki.chain(Role.ROOT), _PEM)

    def _front(self, collateral: Collateral, query: dict[str, str]) -> Answer:
        text = f"swtdx test collateral service, TCB status {self.status}\n" + "".join(f"{path}\n" for path in _PATHS)
        return Answer(text.encode(), _TEXT)


_Handler = Callable[[CollateralService, Collateral, dict[str, str]], Answer]
_PATHS: dict[str, _Handler] = {
    "/": CollateralService._front,
    "/sgx/certification/v4/pckcrl": CollateralService._pck_crl,
    "/sgx/certification/v4/rootcacrl": CollateralService._root_ca_crl,
    "/sgx/certification/v4/crl": CollateralService._crl_by_uri,
    "/sgx/certification/v4/pckcert": CollateralService._pck_certificate,
    "/tdx/certification/v4/tcb": CollateralService._tcb,
    "/tdx/certification/v4/qe/identity": CollateralService._qe_identity,
    ROOT_CRL_PATH: CollateralService._root_crl_file,
    INTEL_ROOT_CRL_PATH: CollateralService._root_crl_file,
    "/swtdx-test/root-ca.pem": CollateralService._root_certificate,
}


def _check_update(query: dict[str, str]) -> None:
    if query.get("update", "standard") not in ("standard", "early"):
        raise Refused(HTTPStatus.BAD_REQUEST, "update must be standard or early")


def _header(pem: bytes) -> str:
    """A chain as PCS puts it into a header: everything but letters, digits and -._~ percent-encoded."""
    return quote(pem, safe="")


class _Connection(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "swtdx-test-pccs"
    sys_version = ""
    timeout = TIMEOUT_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one segment
    server: _Server

    def do_GET(self) -> None:
        """Answer a request, of a proxy's client too."""
        try:
            self._answer(self.server.service.get(self._target()))
        except Refused as refusal:
            self._refuse(refusal)
        except ValueError as error:  # of urllib: an address or a query that is none
            self._refuse(Refused(HTTPStatus.BAD_REQUEST, f"the request cannot be taken apart: {error}"))

    do_HEAD = do_GET

    def _target(self) -> str:
        split = urlsplit(self.path) if "://" in self.path[:16] else None
        if split is None:
            return self.path
        if not self.server.as_intel or split.hostname not in (*INTEL_HOSTS, *LOCAL_NAMES):
            raise Refused(HTTPStatus.FORBIDDEN, f"this is no way to {split.hostname}")
        return split.path + (f"?{split.query}" if split.query else "")

    def do_CONNECT(self) -> None:
        """Be the host that is asked for, if it is one of Intel's."""
        host, _, port = self.path.rpartition(":")
        if not self.server.as_intel or host.lower() not in INTEL_HOSTS or port != "443":
            self._refuse(Refused(HTTPStatus.FORBIDDEN, f"this is no way to {self.path[:80]}"))
            return
        if isinstance(self.connection, ssl.SSLSocket) or self.server.tls is None:
            self._refuse(Refused(HTTPStatus.BAD_REQUEST, "a proxy of a proxy"))
            return
        self.send_response(HTTPStatus.OK, "Connection established")
        self.end_headers()
        self.wfile.flush()
        inner = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.connection = self.request = inner
        self.server.replace(inner)
        self.rfile = cast("BufferedIOBase", inner.makefile("rb"))
        self.wfile = inner.makefile("wb")
        self.close_connection = False

    def _answer(self, answer: Answer, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _refuse(self, refusal: Refused) -> None:
        self.close_connection = self.command != "GET"
        self._answer(Answer(f"{refusal}\n".encode(), _TEXT), refusal.status)

    def log_message(self, format: str, *args: Any) -> None:
        """Report a request."""
        self.server.say(printable(" ".join((format % args).split())))


class _Server(http.server.ThreadingHTTPServer):
    """The listener: each connection has a thread, and TLS where it is wanted."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        service: CollateralService,
        tls: ssl.SSLContext | None,
        as_intel: bool,
        say: Callable[[str], object],
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.service = service
        self.tls = tls
        self.as_intel = as_intel
        self.say = say
        self._slots = threading.BoundedSemaphore(MAXIMUM_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: dict[int, Any] = {}
        super().__init__(address, _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection if there is room, else drop it."""
        if not self._slots.acquire(blocking=False):
            request.close()
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the process may have no more threads
            request.close()
            self._slots.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end; the handshake of TLS is here, so that a slow one stops no other."""
        connection = request
        with self._lock:
            self._open[threading.get_ident()] = connection
        try:
            request.settimeout(TIMEOUT_SECONDS)
            if self.tls is not None and not self.as_intel:
                connection = self.tls.wrap_socket(request, server_side=True)
                self.replace(connection)
            self.finish_request(connection, client_address)
        except (OSError, ValueError):  # the client is gone, too slow, or speaks no TLS
            pass
        finally:
            with self._lock:
                connection = self._open.pop(threading.get_ident())
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._slots.release()

    def replace(self, connection: Any) -> None:
        """This thread's connection has become another."""
        with self._lock:
            self._open[threading.get_ident()] = connection

    def drop_all(self) -> None:
        """End all connections."""
        with self._lock:
            for connection in self._open.values():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class PccsServer:
    """The service on a port, until it is closed: a context manager. ``port`` 0: any free one.

    ``https``: with a certificate of the test HTTPS CA. ``as_intel``: plain HTTP, and a proxy for Intel's host names.
    Raises `PccsUnusable`.
    """

    def __init__(
        self,
        service: CollateralService,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        https: bool = False,
        as_intel: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.service = service
        tls = (
            server_context(service.pki, (*LOCAL_NAMES, *INTEL_HOSTS) if as_intel else LOCAL_NAMES)
            if https or as_intel
            else None
        )
        try:
            self._server = _Server((host, port), service, tls, as_intel, say)
        except OSError as error:
            raise PccsUnusable(f"port {port} of {host}: {error.strerror or error}") from None
        self.port: int = self._server.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if https and not as_intel else 'http'}://{shown}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="pccs")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_all()
        self._thread.join(2.0)
