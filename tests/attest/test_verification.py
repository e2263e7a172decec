# SPDX-License-Identifier: GPL-2.0-or-later
"""Genuine or not, and why: the verifier's own policy is told from its checks, and reasons have values.

The quotes are made by test keys, their collateral too. tests/published has genuine ones.
"""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from swtdx.attest.pck import pck_of
from swtdx.attest.policy import TCB_STATUSES, Policy, violations
from swtdx.attest.quote import Quote, parse_quote
from swtdx.attest.tcb_levels import tcb_result
from swtdx.attest.verify import CollateralError, VerificationError, Verified, verify_quote
from testing.evidence import collateral, pki, quote_of
from testing.tdreport import SEPT_VE_DISABLE, UPDATED_SVN, TdReportFields

DEBUG = SEPT_VE_DISABLE | 1
REPORTDATA_AT = 48 + 520


@pytest.fixture(scope="module")
def debug() -> Quote:
    """The quote of a TD that can be debugged: dcap-qvl refuses it by a policy of its own."""
    return parse_quote(quote_of(TdReportFields(attributes=DEBUG).pack()))


@pytest.fixture(scope="module")
def plain() -> Quote:
    return parse_quote(quote_of(TdReportFields().pack()))


def verified(quote: Quote, status: str = "UpToDate", at: int | None = None) -> Verified:
    return verify_quote(quote, collateral(status), int(time.time()) if at is None else at, pki().root)


def changed_document(name: str, **members: Any) -> str:
    """Collateral with members of one document replaced; its signature is then wrong."""
    content = json.loads(collateral())
    content[name] = json.dumps({**json.loads(content[name]), **members})
    return json.dumps(content)


def test_a_quote_of_a_debug_td_verifies_and_breaks_the_policy(debug: Quote) -> None:
    found = verified(debug)
    assert found.tcb_status == "UpToDate"
    assert any("DEBUG" in each for each in violations(Policy(), debug.body, found.tcb_status))
    assert violations(Policy(allow_debug=True), debug.body, found.tcb_status) == []


@pytest.mark.parametrize("offset", [100, REPORTDATA_AT, 640, 800, 1100])
def test_no_check_is_lost_for_a_debug_td(debug: Quote, offset: int) -> None:
    changed = bytearray(debug.raw)
    changed[offset] ^= 1
    with pytest.raises(VerificationError) as caught:
        verified(parse_quote(bytes(changed)))
    assert "Debug" not in str(caught.value)


def test_expired_collateral_is_refused_for_a_debug_td_too(debug: Quote) -> None:
    later = int(time.time()) + 366 * 86400
    with pytest.raises(VerificationError, match=datetime.fromtimestamp(later, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")):
        verified(debug, at=later)


def test_a_level_that_is_missed_is_named_with_its_values(plain: Quote) -> None:
    pck = pck_of(plain)
    assert pck is not None
    with pytest.raises(VerificationError, match=rf"{pck.fmspc}: SGX component 1 .*is \d+, the lowest level wants \d+"):
        verified(plain, "NoLevel")


def test_another_platforms_collateral_is_named(plain: Quote) -> None:
    pck = pck_of(plain)
    assert pck is not None
    with pytest.raises(VerificationError, match=rf"for FMSPC [0-9A-F]{{12}}, the platform has {pck.fmspc}"):
        verified(plain, "OtherPlatform")


@pytest.mark.parametrize("status", [status for status in TCB_STATUSES if status != "Revoked"])
def test_our_status_is_that_of_the_library(status: str) -> None:
    """Ours counts where the library's own policy refuses a debug TD."""
    quote = parse_quote(quote_of(TdReportFields(svn2=UPDATED_SVN).pack()))
    pck, content = pck_of(quote), json.loads(collateral(status))
    assert pck is not None
    ours = tcb_result(quote, pck, content["tcb_info"], content["qe_identity"])
    assert ours.status == verified(quote, status).tcb_status == status


def test_test_keys_never_verify_under_intels_root(plain: Quote) -> None:
    with pytest.raises(VerificationError, match=r"\(a swtdx test root, SHA-256"):
        verify_quote(plain, collateral(), int(time.time()))


def test_collateral_as_responses_of_the_pcs(plain: Quote) -> None:
    ours = json.loads(collateral())
    ours["tcb_info"] = {"tcbInfo": json.loads(ours["tcb_info"]), "signature": ours.pop("tcb_info_signature")}
    ours["enclaveIdentity"] = json.loads(ours.pop("qe_identity"))
    ours["pckCrl"] = list(bytes.fromhex(ours.pop("pck_crl")))
    text = json.dumps({"collateral": ours})
    assert verify_quote(plain, text, int(time.time()), pki().root).tcb_status == "UpToDate"


def test_documents_that_were_changed_are_refused(plain: Quote) -> None:
    for name in ("tcb_info", "qe_identity"):
        with pytest.raises(VerificationError):
            verify_quote(plain, changed_document(name, tcbEvaluationDataNumber=99), int(time.time()), pki().root)


def test_the_platform_is_shown(plain: Quote) -> None:
    pck = pck_of(plain)
    assert pck is not None
    shown = pck.as_json()
    assert (shown["fmspc"], shown["ca"]) == (b"swtdx\0".hex().upper(), "platform")
    assert "ppid" not in shown


@pytest.mark.parametrize("form", ["PEM", "base64"])
def test_crls_as_the_pcs_sends_them(plain: Quote, form: str) -> None:
    """Without ``encoding=der`` the PCS sends PEM; tools keep DER in base64."""
    ours = json.loads(collateral())
    for name in ("pck_crl", "root_ca_crl"):
        text = base64.b64encode(bytes.fromhex(ours[name])).decode()
        ours[name] = f"-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n" if form == "PEM" else text
    assert verify_quote(plain, json.dumps(ours), int(time.time()), pki().root).tcb_status == "UpToDate"


def test_a_quote_given_as_collateral_is_named(plain: Quote) -> None:
    with pytest.raises(CollateralError, match="quote of a TD"):
        verify_quote(plain, plain.raw, int(time.time()))
