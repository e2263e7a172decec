# SPDX-License-Identifier: GPL-2.0-or-later
"""The quoting enclave: what it signs, in which version, and what it refuses.

Layouts and refusals are those of Intel's TDQE (``quoting_enclave_tdqe.cpp``) and of the quote headers of its DCAP
library; the verdicts are those of an independent verifier.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.attest.pck import pck_of
from swtdx.attest.quote import parse_quote
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QeError, QuoteVersion, QuotingEnclave, QuotingError
from swtdx.quoting.pki import Pki
from testing.tdreport import SVN, SVN_1_0, UPDATED_SVN, TdReportFields, digest, resealed

KEY = b"k" * 32
FORMS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "TDX 1.0": ("default", {"valid": 0x1FF, "svn": SVN_1_0, "svn2": bytes(16)}, 4, 2),
    "TDX 1.5": ("default", {}, 4, 2),
    "an updated module": ("default", {"svn2": UPDATED_SVN}, 5, 3),
    "version 1": ("default", {"version": 1}, 5, 3),
    "version 3": ("default", {"version": 3}, 5, 4),
    "4 asked for": ("4", {"svn2": UPDATED_SVN}, 4, 2),
    "5 with the body of 1.0": ("5-1.0", {}, 5, 2),
    "5 with the body of 1.5": ("5-1.5", {}, 5, 3),
    "5 of a report of 1.0": ("5-1.5", {"valid": 0x1FF, "svn": SVN_1_0, "svn2": bytes(16)}, 5, 3),
}
"""Name -> asked for, report, version and body type of the quote."""


@pytest.fixture(scope="module")
def collateral(pki: Pki) -> str:
    return json.dumps(make_collateral(pki).as_json())


@pytest.mark.parametrize("form", FORMS)
def test_a_quote_verifies_under_its_root_and_not_under_intels(
    form: str, quote_of: Callable[..., bytes], pki: Pki, collateral: str
) -> None:
    asked, fields, version, body_type = FORMS[form]
    raw = quote_of(asked, **fields)
    quote, now = parse_quote(raw), int(time.time())
    assert (quote.header.version, quote.body_type, quote.trailing_bytes) == (version, body_type, 0)
    verified = verify_quote(quote, collateral, now, pki.root)
    assert (verified.tcb_status, verified.root.partition(",")[0]) == ("UpToDate", "a swtdx test root")
    material = dcap_qvl.QuoteCollateralV3.from_json(collateral)
    assert dcap_qvl.verify_with_root_ca(raw, material, pki.root, now).status == "UpToDate"
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(raw, material, now)
    with pytest.raises(VerificationError, match="does not verify"):
        verify_quote(quote, collateral, now)
    with pytest.raises(VerificationError, match="does not verify"):
        verify_quote(quote, collateral, now, Pki.new("another").root)


def test_every_field_of_the_report_arrives(quote_of: Callable[..., bytes]) -> None:
    reportdata = bytes(range(64))
    body = parse_quote(quote_of(reportdata=reportdata, svn2=UPDATED_SVN)).body
    assert body.reportdata == reportdata
    assert (body.tee_tcb_svn, body.tee_tcb_svn2) == (SVN, UPDATED_SVN)
    assert (body.mrseam, body.mrsignerseam, body.seam_attributes) == (digest("seam"), bytes(48), 0)
    assert (body.attributes, body.xfam) == (1 << 28, 3)
    assert (body.mrtd, body.mrconfigid) == (digest("mrtd"), digest("config id"))
    assert (body.mrowner, body.mrownerconfig) == (digest("owner"), digest("owner config"))
    assert body.rtmrs == tuple(digest(f"rtmr{index}") for index in range(4))
    assert body.mrservicetd == bytes(48)


def test_what_only_later_reports_have(pki: Pki) -> None:
    enclave = QuotingEnclave(pki, MacCheck(KEY))

    def body(**fields: Any) -> Any:
        return parse_quote(enclave.quote(TdReportFields(**fields).pack())).body

    assert body(version=1, servtd=digest("service TD")).mrservicetd == digest("service TD")
    ex = body(version=3, servtd=digest("service TD"))
    assert ex.identities is not None
    assert (ex.identities.vmid, ex.identities.td_id, ex.reportdata[:11]) == (7, b"T" * 32, b"report data")
    assert ex.mrservicetd == digest("service TD")
    assert body(version=3, identity_valid=0x200).identities.td_id == bytes(32)
    assert body(version=3, identity_valid=0x100).identities.vmid == 0


def test_signature_data_are_as_intels(quote_of: Callable[..., bytes], pki: Pki) -> None:
    quote = parse_quote(quote_of())
    assert quote.header.qe_vendor_id.hex().upper() == "939A7233F79C4CA9940A0DB3957F0607"
    assert quote.header.user_data[16:] == bytes(4)
    qe = quote.signature.qe_report
    assert qe is not None
    assert qe.authentication_data == bytes(range(32))
    assert qe.reportdata == hashlib.sha256(quote.signature.attestation_key + bytes(range(32))).digest() + bytes(32)
    assert (qe.isvprodid, qe.attributes.hex()) == (2, "1500000000000000e700000000000000")
    chain = quote.signature.certification_data
    assert chain == pki.pck_chain + b"\0"
    assert chain.count(b"-----BEGIN CERTIFICATE-----") == 3


def test_the_platform_in_a_quote_says_swtdx(quote_of: Callable[..., bytes]) -> None:
    pck = pck_of(parse_quote(quote_of()))
    assert pck is not None
    assert (bytes.fromhex(pck.fmspc), pck.ca, pck.cpusvn) == (b"swtdx\0", "platform", bytes([3, *bytes(15)]))


def refusal(enclave: QuotingEnclave, report: bytes) -> QeError:
    with pytest.raises(QuotingError) as caught:
        enclave.quote(report)
    assert str(caught.value)
    return caught.value.code


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 1024 * 8 - 1))
def test_a_report_with_one_bit_changed_is_refused(bit: int, enclave: QuotingEnclave) -> None:
    """But for the 17 bytes behind TEE_TCB_INFO, which neither hash nor MAC covers."""
    report = bytearray(TdReportFields().pack())
    report[bit // 8] ^= 1 << bit % 8
    if not 495 <= bit // 8 < 512:
        refusal(enclave, bytes(report))


@pytest.mark.parametrize("field", [(16, 1), (128, 64), (224, 32), (32, 48), (80, 48)])
def test_a_forged_report_is_an_invalid_report(field: tuple[int, int], enclave: QuotingEnclave) -> None:
    report = bytearray(TdReportFields().pack())
    report[field[0] + field[1] - 1] ^= 1
    assert refusal(enclave, bytes(report)) is QeError.INVALID_REPORT


@pytest.mark.parametrize("offset", [264, 280, 328, 376, 384, 494, 512, 528, 720, 911])
def test_a_changed_part_is_an_invalid_hash(offset: int, enclave: QuotingEnclave) -> None:
    report = bytearray(TdReportFields().pack())
    report[offset] ^= 1
    assert refusal(enclave, bytes(report)) is QeError.INVALID_HASH


def test_a_report_of_another_machine_is_refused(enclave: QuotingEnclave) -> None:
    assert refusal(enclave, TdReportFields(key=b"x" * 32).pack()) is QeError.INVALID_REPORT


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (0, 0x80), (1, 2), (2, 2), (2, 4), (3, 1), (4, 1), (15, 1), (192, 1), (223, 1), (258, 2), (256, 0),
     (259, 1), (912, 1), (1023, 1)],
)  # fmt: skip
def test_a_form_that_tdqe_does_not_know_is_refused_even_with_a_right_mac(
    offset: int, value: int, enclave: QuotingEnclave
) -> None:
    report = bytearray(TdReportFields().pack())
    report[offset] = value
    assert refusal(enclave, resealed(bytes(report), KEY)) is QeError.REPORT_FORMAT_NOT_SUPPORTED


@pytest.mark.parametrize("offset", [912 + 48 + 32, 1015])
def test_reserved_bytes_of_version_3(offset: int, enclave: QuotingEnclave) -> None:
    report = bytearray(TdReportFields(version=3).pack())
    report[offset] = 1
    assert refusal(enclave, resealed(bytes(report), KEY)) is QeError.REPORT_FORMAT_NOT_SUPPORTED


def test_version_3_without_an_identity_is_refused(enclave: QuotingEnclave) -> None:
    report = TdReportFields(version=3, identity_valid=1).pack()
    assert refusal(enclave, report) is QeError.REPORT_FORMAT_NOT_SUPPORTED


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 4096])
def test_another_size_is_an_invalid_parameter(size: int, enclave: QuotingEnclave) -> None:
    assert refusal(enclave, TdReportFields().pack().ljust(size, b"\0")[:size]) is QeError.INVALID_PARAMETER


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_either_ca_certifies_a_platform(ca: str) -> None:
    pki = Pki.new("processor", ca_type=ca)
    raw = QuotingEnclave(pki, MacCheck(KEY)).quote(TdReportFields().pack())
    collateral = json.dumps(make_collateral(pki).as_json())
    assert verify_quote(parse_quote(raw), collateral, int(time.time()), pki.root).tcb_status == "UpToDate"
    pck = pck_of(parse_quote(raw))
    assert pck is not None
    assert pck.ca == ca


def test_versions_can_be_named() -> None:
    assert [version.value for version in QuoteVersion] == ["default", "4", "5-1.0", "5-1.5"]
