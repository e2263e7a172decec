# SPDX-License-Identifier: GPL-2.0-or-later
"""The collateral service: each client's way to it, each status, TLS, the proxy, and clients that mean no good."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import dcap_qvl
import pytest
from cryptography import x509

from swtdx.quoting import pccs
from swtdx.quoting.collateral import SCENARIOS
from swtdx.quoting.pccs import CollateralService, PccsServer, PccsUnusable, parse_schedule
from swtdx.quoting.pki import Pki
from swtdx.quoting.tls import https_ca
from testing.tdreport import UPDATED_SVN
from tests.quoting.test_collateral import ACCEPTED, REFUSED

FMSPC = b"swtdx\0".hex().upper()


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[PccsServer]:
    with PccsServer(CollateralService(pki)) as running:
        yield running


@pytest.fixture(autouse=True)
def up_to_date(server: PccsServer) -> None:
    server.service.status = "UpToDate"


def fetched(url: str, quote: bytes) -> Any:
    async def fetch() -> Any:
        return await dcap_qvl.get_collateral(url, quote)

    return asyncio.run(fetch())


def get(server: PccsServer, target: str, method: str = "GET") -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


@pytest.mark.parametrize("status", SCENARIOS)
def test_dcap_qvl_fetches_and_comes_to_the_status(
    status: str, server: PccsServer, quote_of: Callable[..., bytes], pki: Pki
) -> None:
    server.service.status = status
    quote, now = quote_of(svn2=UPDATED_SVN), int(time.time())
    if status == "OtherPlatform":
        return  # the client compares the FMSPC by itself
    material = fetched(server.url, quote)
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(quote, material, now)
    if status in ACCEPTED:
        assert dcap_qvl.verify_with_root_ca(quote, material, pki.root, now).status == ACCEPTED[status]
    else:
        with pytest.raises(ValueError, match=REFUSED[status]):
            dcap_qvl.verify_with_root_ca(quote, material, pki.root, now)


def test_dcap_qvl_with_a_processor_ca(quote_of: Callable[..., bytes]) -> None:
    from swtdx.quoting.enclave import MacCheck, QuotingEnclave
    from testing.tdreport import TdReportFields

    pki = Pki.new("processor", ca_type="processor")
    quote = QuotingEnclave(pki, MacCheck(b"k" * 32)).quote(TdReportFields().pack())
    with PccsServer(CollateralService(pki)) as server:
        material = fetched(f"{server.url}/sgx/certification/v4/", quote)
    assert dcap_qvl.verify_with_root_ca(quote, material, pki.root, int(time.time())).status == "UpToDate"


def test_paths_bodies_and_headers(server: PccsServer, pki: Pki) -> None:
    """As PCS and PCCS have them; the root CA's CRL as hexadecimal text, for dcap-qvl."""
    for ca in ("platform", "processor"):
        status, body, headers = get(server, f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")
        assert (status, headers["Content-Type"]) == (200, "application/pkix-crl")
        x509.load_der_x509_crl(body)
        chain = headers["SGX-PCK-CRL-Issuer-Chain"]
        assert not set(chain) & set(" +\n/=")
        assert len(x509.load_pem_x509_certificates(unquote(chain).encode())) == 2
    assert get(server, "/sgx/certification/v4/pckcrl?ca=platform")[1].startswith(b"-----BEGIN X509 CRL-----")
    root_crl = bytes.fromhex(get(server, "/sgx/certification/v4/rootcacrl")[1].decode())
    assert get(server, "/swtdx-test/root-ca.crl")[1] == get(server, "/IntelSGXRootCA.der")[1] == root_crl
    point = pki.certificates[next(iter(pki.certificates))].extensions.get_extension_for_class(
        x509.CRLDistributionPoints
    )
    names = point.value[0].full_name
    assert names is not None
    assert get(server, f"/sgx/certification/v4/crl?uri={names[0].value}")[1] == root_crl
    for fmspc in (FMSPC, FMSPC.lower()):
        status, body, headers = get(server, f"/tdx/certification/v4/tcb?fmspc={fmspc}&update=early")
        assert list(json.loads(body)) == ["tcbInfo", "signature"]
        assert headers["TCB-Info-Issuer-Chain"] == headers["SGX-TCB-Info-Issuer-Chain"]
    status, body, headers = get(server, "/tdx/certification/v4/qe/identity?update=standard")
    assert list(json.loads(body)) == ["enclaveIdentity", "signature"]
    assert len(x509.load_pem_x509_certificates(unquote(headers["SGX-Enclave-Identity-Issuer-Chain"]).encode())) == 2
    status, body, headers = get(server, "/sgx/certification/v4/pckcert?qeid=00&cpusvn=00&pcesvn=00&pceid=0000")
    assert x509.load_pem_x509_certificate(body) == list(pki.certificates.values())[3]
    assert (headers["SGX-FMSPC"], headers["SGX-PCK-Certificate-CA-Type"]) == (FMSPC, "platform")
    assert headers["SGX-TCBm"] == "03" + "00" * 15 + "0D00"
    assert get(server, "/swtdx-test/root-ca.pem")[0] == get(server, "/")[0] == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/nowhere", 404),
        ("/../../etc/passwd", 404),
        ("/sgx/certification/v4/pckcrl", 400),
        ("/sgx/certification/v4/pckcrl?ca=root", 400),
        ("/sgx/certification/v4/pckcrl?ca=platform&encoding=x", 400),
        ("/sgx/certification/v4/crl", 404),
        ("/sgx/certification/v4/crl?uri=http://example.com/a", 404),
        ("/tdx/certification/v4/tcb", 400),
        ("/tdx/certification/v4/tcb?fmspc=00", 400),
        ("/tdx/certification/v4/tcb?fmspc=zzzzzzzzzzzz", 400),
        ("/tdx/certification/v4/tcb?fmspc=00806F050000", 404),
        ("/tdx/certification/v4/tcb?fmspc=737774647800&update=x", 400),
        ("/tdx/certification/v4/qe/identity?update=x", 400),
        ("/?" + "&".join("a=b" for _ in range(40)), 400),
        ("http://example.com/", 403),
    ],
)
def test_wrong_requests_get_a_status_and_a_sentence(target: str, status: int, server: PccsServer) -> None:
    found, body, _ = get(server, target)
    assert found == status
    assert body


def test_head_and_other_methods(server: PccsServer) -> None:
    status, body, headers = get(server, "/sgx/certification/v4/rootcacrl", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 500
    assert get(server, "/", "POST")[0] == 501
    assert get(server, "api.trustedservices.intel.com:443", "CONNECT")[0] == 403  # not as Intel


def test_connections_are_kept_alive(server: PccsServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/nowhere")
    assert connection.getresponse().read()
    first = connection.sock
    connection.request("GET", "/sgx/certification/v4/rootcacrl")
    assert connection.getresponse().read()
    assert connection.sock is first is not None
    connection.close()


def test_many_clients_at_once(server: PccsServer) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(get(server, "/sgx/certification/v4/rootcacrl")[0]))
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 30


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\0\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70000,
        b"\x16\x03\x01\x02\0" + bytes(512) + b"\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /%ff%00?fmspc=%ff HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_a_hostile_client_is_answered_or_dropped(sent: bytes, server: PccsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
    assert get(server, "/")[0] == 200


def test_silent_clients_do_not_stop_others(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pccs, "MAXIMUM_CONNECTIONS", 6)
    with PccsServer(CollateralService(pki)) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        assert get(server, "/")[0] == 200
        for each in silent:
            each.close()


def test_clients_for_whom_there_is_no_thread_are_dropped(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are places: none of them keeps its own."""
    monkeypatch.setattr(pccs, "MAXIMUM_CONNECTIONS", 2)

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with PccsServer(CollateralService(pki)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            for _ in range(4):
                with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                    get(server, "/")
        assert get(server, "/")[0] == 200


def test_a_request_is_reported_without_characters_that_play_with_a_terminal(pki: Pki) -> None:
    said: list[str] = []
    with (
        PccsServer(CollateralService(pki), say=said.append) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as client,
    ):
        client.sendall(b"GET /\x1b[31m\x9b2J HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b" 404 " in client.recv(1 << 16)
    (line,) = said
    assert "GET /" in line
    assert line.isprintable()


def test_https_with_a_certificate_of_its_own(pki: Pki) -> None:
    with PccsServer(CollateralService(pki), https=True) as server:
        trusting = ssl.create_default_context(cadata=https_ca(pki).decode())
        slow = socket.create_connection(("127.0.0.1", server.port))  # never greets
        for name in ("127.0.0.1", "localhost"):
            url = f"https://{name}:{server.port}/sgx/certification/v4/rootcacrl"
            with urllib.request.urlopen(url, context=trusting, timeout=20) as response:
                assert response.read()
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, context=ssl.create_default_context(), timeout=20)
        slow.close()


def test_as_intel_it_answers_for_intels_names_and_no_others(pki: Pki) -> None:
    with PccsServer(CollateralService(pki), as_intel=True) as server:
        trusting = ssl.create_default_context(cadata=https_ca(pki).decode())
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"https": server.url, "http": server.url}),
            urllib.request.HTTPSHandler(context=trusting),
        )
        base = "https://api.trustedservices.intel.com"
        with opener.open(f"{base}/tdx/certification/v4/tcb?fmspc={FMSPC}", timeout=20) as response:
            assert "TCB-Info-Issuer-Chain" in response.headers
        with opener.open("https://certificates.trustedservices.intel.com/IntelSGXRootCA.der", timeout=20) as response:
            x509.load_der_x509_crl(response.read())
        with opener.open("http://127.0.0.1:1/swtdx-test/root-ca.crl", timeout=20) as response:
            x509.load_der_x509_crl(response.read())
        for other in ("https://example.com/", "https://api.trustedservices.intel.com.example.com/", f"{base}:80/"):
            with pytest.raises(urllib.error.URLError, match="403"):
                opener.open(other, timeout=20)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open("http://example.com/", timeout=20)
        strict = urllib.request.build_opener(urllib.request.ProxyHandler({"https": server.url}))
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            strict.open(f"{base}/tdx/certification/v4/qe/identity", timeout=20)


def test_a_port_in_use(server: PccsServer, pki: Pki) -> None:
    with pytest.raises(PccsUnusable, match=f"port {server.port} of 127.0.0.1: Address already in use"):
        PccsServer(CollateralService(pki), port=server.port)


def test_a_schedule_changes_the_status(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    service = CollateralService(pki, schedule=((0.0, "SWHardeningNeeded"), (5.0, "OutOfDate"), (9.5, "Revoked")))
    for elapsed, status in ((0, "SWHardeningNeeded"), (4.9, "SWHardeningNeeded"), (5, "OutOfDate"), (100, "Revoked")):
        times[0] = 100.0 + elapsed
        assert service.status == status
        assert f'"tcbStatus":"{status}"'.encode() in service.get(f"/tdx/certification/v4/tcb?fmspc={FMSPC}").body
    service.status = "UpToDate"
    assert service.status == "UpToDate"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line"),
        ("# only\n", "no line"),
        ("UpToDate", "line 1"),
        ("0 Fine", "'Fine' must be one of"),
        ("-1 Revoked", "line 1"),
        ("0 UpToDate\n0 Revoked", "line 2: 0 s is not after"),
        ("nan Revoked", "line 1"),
        ("1 Revoked now", "line 1"),
    ],
)
def test_a_schedule_that_is_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_schedule(text)


def test_curl_understands_it(pki: Pki) -> None:
    with PccsServer(CollateralService(pki)) as server:
        try:
            done = subprocess.run(
                ["curl", "-sS", "--fail", f"{server.url}/sgx/certification/v4/rootcacrl"],
                capture_output=True,
                timeout=20,
                check=False,
            )
        except FileNotFoundError:
            pytest.skip("NO CURL: not shown that it understands the service")
    assert done.returncode == 0, done.stderr
    x509.load_der_x509_crl(bytes.fromhex(done.stdout.decode()))
