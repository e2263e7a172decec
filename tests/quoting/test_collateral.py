# SPDX-License-Identifier: GPL-2.0-or-later
"""Collateral: each status that may be asked for is what dcap-qvl and our own verifier come to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import dcap_qvl
import pytest
from cryptography import x509

from swtdx.attest.policy import TCB_STATUSES
from swtdx.attest.quote import parse_quote
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.quoting.collateral import SCENARIOS, CollateralKeeper, make_collateral
from swtdx.quoting.pki import Pki
from testing.tdreport import SVN_1_0, UPDATED_SVN

ACCEPTED = {name: name for name in TCB_STATUSES if name != "Revoked"} | {
    "ModuleOutOfDate": "OutOfDate",
    "QEOutOfDate": "OutOfDate",
}
"""What may be asked for -> the status that a verifier reports."""
REFUSED = {
    "Revoked": "TCB status is invalid: Revoked",
    "ModuleRevoked": "TCB status is invalid: Revoked",
    "QERevoked": "TCB status is invalid: Revoked",
    "NoLevel": "No matching TCB level found",
    "OtherPlatform": "Fmspc mismatch",
    "Expired": "CrlExpired",
    "TCBInfoExpired": "TCBInfo expired",
    "QEIdentityExpired": "QE Identity expired",
    "CRLExpired": "CrlExpired",
    "NotYetValid": "issue date is in the future",
    "PCKRevoked": "CertRevoked",
    "CARevoked": "CertRevoked",
    "TCBSigningRevoked": "CertRevoked",
}
"""-> dcap-qvl's words."""


def test_every_status_of_a_policy_can_be_asked_for() -> None:
    assert set(SCENARIOS) == set(ACCEPTED) | set(REFUSED)
    assert set(TCB_STATUSES) <= set(SCENARIOS)


@pytest.mark.parametrize("status", ACCEPTED)
def test_a_status_is_what_verifiers_come_to(status: str, quote_of: Callable[..., bytes], pki: Pki) -> None:
    raw = quote_of(svn2=UPDATED_SVN)
    made, now = json.dumps(make_collateral(pki, status).as_json()), int(time.time())
    verified = verify_quote(parse_quote(raw), made, now, pki.root)
    assert verified.tcb_status == ACCEPTED[status]
    material = dcap_qvl.QuoteCollateralV3.from_json(made)
    assert dcap_qvl.verify_with_root_ca(raw, material, pki.root, now).status == ACCEPTED[status]
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(raw, material, now)


@pytest.mark.parametrize("status", REFUSED)
@pytest.mark.parametrize("fields", [{}, {"svn2": UPDATED_SVN}], ids=["v4", "v5"])
def test_what_is_refused(status: str, fields: dict[str, bytes], quote_of: Callable[..., bytes], pki: Pki) -> None:
    made, now = json.dumps(make_collateral(pki, status).as_json()), int(time.time())
    with pytest.raises(VerificationError, match=REFUSED[status]):
        verify_quote(parse_quote(quote_of(**fields)), made, now, pki.root)


@pytest.mark.parametrize("status", ["UpToDate", "OutOfDate", "SWHardeningNeeded", "ModuleOutOfDate"])
def test_a_module_of_tdx_1_0_is_judged_too(status: str, quote_of: Callable[..., bytes], pki: Pki) -> None:
    """Its TEE_TCB_SVN has no major version: the TCB level is compared, and no module identity is looked for."""
    raw = quote_of(valid=0x1FF, svn=SVN_1_0, svn2=bytes(16))
    made = json.dumps(make_collateral(pki, status).as_json())
    wanted = "UpToDate" if status == "ModuleOutOfDate" else status
    assert verify_quote(parse_quote(raw), made, int(time.time()), pki.root).tcb_status == wanted


def test_documents_have_the_one_form_that_all_verifiers_accept(pki: Pki) -> None:
    made = make_collateral(pki, "OutOfDate")
    for text in (made.tcb_info, made.qe_identity):
        assert json.dumps(json.loads(text), separators=(",", ":")) == text
        assert not any(text[at - 1].isspace() for at in range(1, len(text)) if text[at] in ':{"')
    info = json.loads(made.tcb_info)
    assert list(info) == [
        "id", "version", "issueDate", "nextUpdate", "fmspc", "pceId", "tcbType", "tcbEvaluationDataNumber", "tdxModule",
        "tdxModuleIdentities", "tcbLevels",
    ]  # fmt: skip
    assert list(json.loads(made.qe_identity)) == [
        "id", "version", "issueDate", "nextUpdate", "tcbEvaluationDataNumber", "miscselect", "miscselectMask",
        "attributes", "attributesMask", "mrsigner", "isvprodid", "tcbLevels",
    ]  # fmt: skip
    assert (info["id"], info["version"], info["fmspc"]) == ("TDX", 3, b"swtdx\0".hex().upper())
    for level in info["tcbLevels"]:
        assert [len(level["tcb"][name]) for name in ("sgxtcbcomponents", "tdxtcbcomponents")] == [16, 16]
    datetime.strptime(info["issueDate"], "%Y-%m-%dT%H:%M:%SZ")


def test_crls_have_what_intels_verifier_wants(pki: Pki) -> None:
    made = make_collateral(pki)
    for der in (made.root_ca_crl, *made.pck_crls.values()):
        crl = x509.load_der_x509_crl(der)
        names = [each.oid.dotted_string for each in crl.extensions]
        assert sorted(names) == ["2.5.29.20", "2.5.29.35"]
        assert crl.next_update_utc is not None
        assert len(crl) == 0


def test_collateral_can_be_made_for_another_time(quote_of: Callable[..., bytes], pki: Pki) -> None:
    then = datetime(2031, 5, 1)
    made = json.dumps(make_collateral(pki, at=then).as_json())
    quote, seconds = parse_quote(quote_of()), 1935360000  # 2031-05-01
    assert verify_quote(quote, made, seconds, pki.root).tcb_status == "UpToDate"
    for other in (seconds - 2 * 3600, seconds + 40 * 86400):
        with pytest.raises(VerificationError):
            verify_quote(quote, made, other, pki.root)


def test_an_unknown_status_is_a_value_error(pki: Pki) -> None:
    with pytest.raises(ValueError, match="must be one of UpToDate"):
        make_collateral(pki, "Fine")


def test_documents_are_made_again_when_they_are_old(pki: Pki) -> None:
    times = [datetime(2030, 1, 1)]
    keeper = CollateralKeeper(pki, lambda: times[0])
    first = keeper.get("UpToDate")
    times[0] += timedelta(minutes=50)
    assert keeper.get("UpToDate") is first
    times[0] += timedelta(minutes=20)
    assert keeper.get("UpToDate") is not first
