# SPDX-License-Identifier: GPL-2.0-or-later
"""Genuine or not, and why: the verifier's own policy is told from its checks, and reasons have values.

The quotes are published ones (``../shared``); the tests skip without them.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from swtdx.attest.pck import pck_of
from swtdx.attest.policy import Policy, violations
from swtdx.attest.quote import Quote, parse_quote
from swtdx.attest.tcb_levels import tcb_result
from swtdx.attest.verify import INTEL_ROOT_SHA256, CollateralError, VerificationError, verify_quote

DEBUG_AT = 1688173200
REPORTDATA_AT = 48 + 520


@pytest.fixture(scope="session")
def cases(shared_reference: Path) -> Path:
    folder = shared_reference.parent / "cases" / "attestation"
    if not folder.is_dir():
        pytest.skip("NO HANDED CASES of attestation: not shown that other people's evidence is judged right")
    return folder


@pytest.fixture(scope="session")
def debug(cases: Path) -> tuple[Quote, str]:
    quote = parse_quote((cases / "05_debug_quote.dat").read_bytes())
    return quote, (cases / "05_collateral.json").read_text()


def test_a_genuine_quote_of_a_debug_td_verifies_and_breaks_the_policy(debug: tuple[Quote, str]) -> None:
    quote, collateral = debug
    verified = verify_quote(quote, collateral, DEBUG_AT)
    assert verified.tcb_status == "UpToDate"
    assert any("DEBUG" in each for each in violations(Policy(), quote.body, verified.tcb_status))
    assert violations(Policy(allow_debug=True), quote.body, verified.tcb_status) == []


@pytest.mark.parametrize("offset", [100, REPORTDATA_AT, 640, 800, 1100])
def test_no_check_is_lost_for_a_debug_td(debug: tuple[Quote, str], offset: int) -> None:
    quote, collateral = debug
    changed = bytearray(quote.raw)
    changed[offset] ^= 1
    with pytest.raises(VerificationError) as caught:
        verify_quote(parse_quote(bytes(changed)), collateral, DEBUG_AT)
    assert "Debug" not in str(caught.value)


def test_expired_collateral_is_refused_for_a_debug_td_too(debug: tuple[Quote, str]) -> None:
    with pytest.raises(VerificationError, match="2026-08-31T10:46:40Z"):
        verify_quote(debug[0], debug[1], 1788173200)


def test_a_level_that_is_missed_is_named_with_its_values(cases: Path) -> None:
    quote = parse_quote((cases / "06_no_level_quote.dat").read_bytes())
    with pytest.raises(VerificationError, match=r"90C06F000000: SGX component 8 .*is 3, the lowest level wants 5"):
        verify_quote(quote, (cases / "06_collateral.json").read_text(), 1771500000)


def test_another_platforms_collateral_is_named(cases: Path, debug: tuple[Quote, str]) -> None:
    with pytest.raises(VerificationError, match="for FMSPC 90C06F000000, the platform has 50806F000000"):
        verify_quote(debug[0], (cases / "06_collateral.json").read_text(), 1771500000)


@pytest.fixture(scope="session")
def made(shared_reference: Path) -> list[dict[str, Any]]:
    content = json.loads((shared_reference / "attestation" / "vectors.json").read_text())["cases"]
    for case in content:
        if isinstance(case["collateral"], str):
            case["collateral"] = json.loads(case["collateral"])
    return list(content)


def test_our_status_is_that_of_the_library(made: list[dict[str, Any]]) -> None:
    for case in made:
        quote = parse_quote(bytes.fromhex(case["quote_hex"]))
        pck, collateral = pck_of(quote), case["collateral"]
        assert pck is not None
        ours = tcb_result(quote, pck, collateral["tcb_info"], collateral["qe_identity"])
        root = bytes.fromhex(case["root_der_hex"])
        theirs = verify_quote(quote, json.dumps(collateral), case["now"], root)
        assert ours.status == theirs.tcb_status == case["status"], case["name"]


def test_test_keys_never_verify_under_intels_root(made: list[dict[str, Any]]) -> None:
    for case in made:
        quote = parse_quote(bytes.fromhex(case["quote_hex"]))
        with pytest.raises(VerificationError, match=r"not Intel's, SHA-256"):
            verify_quote(quote, json.dumps(case["collateral"]), case["now"])


def test_collateral_as_responses_of_the_pcs(made: list[dict[str, Any]]) -> None:
    case = made[0]
    ours = dict(case["collateral"])
    ours["tcb_info"] = {"tcbInfo": json.loads(ours["tcb_info"]), "signature": ours.pop("tcb_info_signature")}
    ours["enclaveIdentity"] = json.loads(ours.pop("qe_identity"))
    ours["pckCrl"] = list(bytes.fromhex(ours.pop("pck_crl")))
    quote, root = parse_quote(bytes.fromhex(case["quote_hex"])), bytes.fromhex(case["root_der_hex"])
    assert verify_quote(quote, json.dumps({"collateral": ours}), case["now"], root).tcb_status == case["status"]


def test_intels_root_is_the_one_that_a_genuine_quote_ends_in(debug: tuple[Quote, str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    chain = x509.load_pem_x509_certificates(debug[0].signature.certification_data.rstrip(b"\0"))
    assert chain[-1].fingerprint(SHA256()).hex() == INTEL_ROOT_SHA256


def test_the_platform_is_shown(debug: tuple[Quote, str]) -> None:
    pck = pck_of(debug[0])
    assert pck is not None
    shown = pck.as_json()
    assert (shown["fmspc"], shown["ca"], shown["pcesvn"]) == ("50806F000000", "platform", 11)
    assert "ppid" not in shown


@pytest.mark.parametrize("form", ["PEM", "base64"])
def test_crls_as_the_pcs_sends_them(made: list[dict[str, Any]], form: str) -> None:
    """Without ``encoding=der`` the PCS sends PEM; tools keep DER in base64."""
    case = made[0]
    ours = dict(case["collateral"])
    for name in ("pck_crl", "root_ca_crl"):
        text = base64.b64encode(bytes.fromhex(ours[name])).decode()
        ours[name] = f"-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n" if form == "PEM" else text
    quote, root = parse_quote(bytes.fromhex(case["quote_hex"])), bytes.fromhex(case["root_der_hex"])
    assert verify_quote(quote, json.dumps(ours), case["now"], root).tcb_status == case["status"]


def test_a_quote_given_as_collateral_is_named(debug: tuple[Quote, str]) -> None:
    with pytest.raises(CollateralError, match="quote of a TD"):
        verify_quote(debug[0], debug[0].raw, DEBUG_AT)
