# SPDX-License-Identifier: GPL-2.0-or-later
"""What a quote costs: in the quoting enclave, through GetQuote as a guest sees it, and its collateral over HTTP."""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.quoting.enclave import MacCheck, QuotingEnclave
from swtdx.quoting.pccs import CollateralService, PccsServer
from swtdx.quoting.pki import FMSPC, Pki
from swtdx.quoting.qgs import QgsServer, QuoteService
from swtdx.quoting.quote_sources import EnclaveQuotes
from swtdx.quoting.quoting_td import QuotingTd
from swtdx.uapi.client import Kvm
from swtdx.vmm.qgs_socket import QuoteSocket, parse_address
from testing.tdreport import TdReportFields

TURNS = 50
KEY = bytes(32)
_TARGET = f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}"


class Subject:
    """Each method returns the seconds that one of its kind took, the mean of `TURNS`."""

    def __init__(
        self, enclave: QuotingEnclave, td: QuotingTd, by_socket: QuotingTd, client: http.client.HTTPConnection
    ):
        self._enclave, self._td, self._by_socket, self._client = enclave, td, by_socket, client
        self._report = TdReportFields(key=KEY).pack()

    def quote(self) -> float:
        return _each(lambda: self._enclave.quote(self._report))

    def get_quote(self) -> float:
        return _each(lambda: self._td.quote(b"bench"))

    def get_quote_by_socket(self) -> float:
        return _each(lambda: self._by_socket.quote(b"bench"))

    def collateral(self) -> float:
        return _each(self._fetch)

    def _fetch(self) -> None:
        self._client.request("GET", _TARGET)
        self._client.getresponse().read()


def _each(once: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(TURNS):
        once()
    return (time.perf_counter() - begin) / TURNS


@contextmanager
def bench() -> Iterator[Subject]:
    """A machine, a service on its socket, and a collateral service, for as long as they are measured."""
    kernel = boot(platform=Platform(logical_processors=1, report_key=KEY))
    pki = Pki.new("bench")
    enclave = QuotingEnclave(pki, MacCheck(KEY))
    with ExitStack() as undo:
        undo.callback(kernel.shutdown)
        device = undo.enter_context(Kvm(kernel))
        td = undo.enter_context(QuotingTd(device, EnclaveQuotes(enclave)))
        folder = undo.enter_context(tempfile.TemporaryDirectory())
        qgs = undo.enter_context(QgsServer(QuoteService(enclave)))
        source = QuoteSocket(qgs.listen(parse_address(f"{folder}/qgs.socket")))
        by_socket = undo.enter_context(QuotingTd(device, source))
        pccs = undo.enter_context(PccsServer(CollateralService(pki)))
        client = http.client.HTTPConnection("127.0.0.1", pccs.port)
        undo.callback(client.close)
        yield Subject(enclave, td, by_socket, client)
