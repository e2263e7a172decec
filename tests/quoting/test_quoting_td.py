# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD that was built, measured and run asks for a quote, through KVM and the VMM, and a verifier says yes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.attest.quote import parse_quote
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QuoteVersion, QuotingEnclave
from swtdx.quoting.pki import Pki, open_pki
from swtdx.quoting.qgs import QgsServer, QuoteService
from swtdx.quoting.quote_sources import EnclaveQuotes, LocalQuotes
from swtdx.quoting.quoting_td import QuotingTd
from swtdx.uapi.client import Kvm
from swtdx.vmm.get_quote import QuoteRefused, QuoteUnavailable
from swtdx.vmm.qgs_socket import QuoteSocket, parse_address

KEY = bytes(range(32))


def machine(**platform: object) -> MachineKernel:
    return boot(platform=Platform(logical_processors=1, report_key=KEY, **platform))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def td(pki: Pki) -> Iterator[QuotingTd]:
    kernel = machine()
    with Kvm(kernel) as device, QuotingTd(device, EnclaveQuotes(QuotingEnclave(pki, kernel.everifyreport2))) as made:
        yield made
    kernel.shutdown()


def test_its_quote_verifies_and_shows_the_td(td: QuotingTd, pki: Pki) -> None:
    collateral = json.dumps(make_collateral(pki).as_json())
    for reportdata in (b"", b"nonce", bytes(range(64))):
        quote = parse_quote(td.quote(reportdata))
        assert quote.body.reportdata == reportdata.ljust(64, b"\0")
        assert verify_quote(quote, collateral, int(time.time()), pki.root).tcb_status == "UpToDate"
        with pytest.raises(VerificationError):
            verify_quote(quote, collateral, int(time.time()))
    kernel = td.td.vm.kernel
    assert isinstance(kernel, MachineKernel)
    seen = kernel.inspect_td(td.td.vm.fd)
    assert quote.body.mrtd.hex() == seen["mrtd"] != "00" * 48
    assert [value.hex() for value in quote.body.rtmrs] == seen["rtmr"]
    assert quote.body.attributes == 1 << 28


def test_too_much_reportdata_is_a_value_error(td: QuotingTd) -> None:
    with pytest.raises(ValueError, match="64 bytes, not 65"):
        td.quote(bytes(65))


def test_an_updated_module_is_quoted_in_version_5_and_advises_a_relaunch(pki: Pki) -> None:
    kernel = machine(module_updated=True)
    source = EnclaveQuotes(QuotingEnclave(pki, kernel.everifyreport2))
    with Kvm(kernel) as device, QuotingTd(device, source) as td:
        quote = parse_quote(td.quote())
    assert (quote.header.version, quote.body_type) == (5, 3)
    collateral = json.dumps(make_collateral(pki, "TDRelaunchAdvised").as_json())
    assert verify_quote(quote, collateral, int(time.time()), pki.root).tcb_status == "TDRelaunchAdvised"


def test_a_service_on_the_same_machine_quotes_it_and_one_on_another_does_not(pki: Pki, tmp_path: Path) -> None:
    kernel = machine()
    for name, key in (("same", KEY), ("other", bytes(32))):
        enclave = QuotingEnclave(pki, MacCheck(key), QuoteVersion.V5_TDX_1_5)
        with QgsServer(QuoteService(enclave)) as server, Kvm(kernel) as device:
            address = server.listen(parse_address(f"{tmp_path}/{name}"))
            with QuotingTd(device, QuoteSocket(address)) as td:
                if key == KEY:
                    assert parse_quote(td.quote(b"by socket")).body.reportdata.startswith(b"by socket")
                else:
                    with pytest.raises(QuoteRefused, match="0x8000000000000000"):
                        td.quote()


def test_without_a_service_the_guest_reads_so(tmp_path: Path) -> None:
    with (
        Kvm(machine()) as device,
        QuotingTd(device, QuoteSocket(parse_address(f"{tmp_path}/none"))) as td,
        pytest.raises(QuoteUnavailable),
    ):
        td.quote()


def test_keys_of_a_folder_are_loaded_with_the_first_quote(tmp_path: Path) -> None:
    kernel = machine()
    folder = tmp_path / "pki"
    with Kvm(kernel) as device, QuotingTd(device, LocalQuotes(folder, kernel.everifyreport2)) as td:
        assert not folder.exists()
        assert td.quote()
    collateral = json.dumps(make_collateral(open_pki(folder)).as_json())
    with Kvm(kernel) as device, QuotingTd(device, LocalQuotes(folder, kernel.everifyreport2)) as td:
        quote = parse_quote(td.quote())
    assert verify_quote(quote, collateral, int(time.time()), open_pki(folder).root).tcb_status == "UpToDate"
    (tmp_path / "file").write_text("")
    broken = LocalQuotes(tmp_path / "file", kernel.everifyreport2)
    with Kvm(kernel) as device, QuotingTd(device, broken) as td, pytest.raises(QuoteUnavailable):
        td.quote()


def test_module_1_0_cannot_show_an_update() -> None:
    with pytest.raises(ValueError, match=r"TDX module 1\.0"):
        machine(module_updated=True, module_version="1.0")


def test_a_report_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="report_key has 32 bytes"):
        Platform(report_key=b"short")
    assert "report_key" not in repr(Platform(report_key=KEY))
