# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes of our own test keys: what is policy is told from what is not genuine, and each reason has its values."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from swtdx.attest.policy import Policy, violations
from swtdx.attest.quote import Quote, parse_quote
from swtdx.attest.tcb_facts import tcb_facts
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QuotingEnclave
from swtdx.quoting.pki import Pki
from testing.tdreport import TdReportFields

MOMENT = datetime(2026, 1, 1)
AT = int(MOMENT.replace(tzinfo=UTC).timestamp())
SEPT_VE_DISABLE = 1 << 28


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki.new("the tests of swtdx")


@pytest.fixture(scope="module")
def quote_with(pki: Pki) -> Callable[[int], Quote]:
    enclave = QuotingEnclave(pki, MacCheck(b"k" * 32))
    return lambda attributes: parse_quote(enclave.quote(TdReportFields(attributes=attributes).pack()))


@pytest.fixture(scope="module")
def collateral_of(pki: Pki) -> Callable[[str], str]:
    return lambda scenario: json.dumps(make_collateral(pki, scenario, MOMENT).as_json())


@pytest.mark.parametrize("bit", [0, 1, 4, 5, 6, 7, 8, 16, 17, 18, 23, 28, 29, 32, 61])
def test_attributes_are_policy_and_not_a_forgery(
    pki: Pki, quote_with: Callable[[int], Quote], collateral_of: Callable[[str], str], bit: int
) -> None:
    """The verifier's library refuses most of these as if the signature were wrong."""
    quote = quote_with(SEPT_VE_DISABLE ^ 1 << bit)
    assert verify_quote(quote, collateral_of("UpToDate"), AT, pki.root).tcb_status == "UpToDate"
    (violation,) = violations(Policy(), quote.body)
    assert violation.startswith("ATTRIBUTES: ")


@pytest.mark.parametrize("bit", [16, 17, 23, 40])
def test_attributes_without_a_name_are_accepted_if_they_are_given_exactly(
    quote_with: Callable[[int], Quote], bit: int
) -> None:
    quote = quote_with(SEPT_VE_DISABLE | 1 << bit)
    assert violations(Policy(attributes=quote.body.attributes), quote.body) == []
    assert violations(Policy(attributes=SEPT_VE_DISABLE), quote.body)


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("SWHardeningNeeded", "the platform's TCB level (of 2025-12-31T00:00:00Z) is SWHardeningNeeded"),
        ("OutOfDate", "SGX component 1 (Early Microcode Update) is 3, the level wants 4"),
        ("ModuleOutOfDate", "the TDX module's ISVSVN (TDX_01) is 6, which is OutOfDate; UpToDate wants 255"),
        ("QEOutOfDate", "the quoting enclave's ISVSVN is 8, which is OutOfDate; UpToDate wants 9"),
    ],
)
@pytest.mark.parametrize("debug", [0, 1])
def test_a_status_has_its_reason(
    pki: Pki, quote_with: Callable[[int], Quote], collateral_of: Callable[[str], str], scenario: str, reason: str,
    debug: int,
) -> None:  # fmt: skip
    verified = verify_quote(quote_with(SEPT_VE_DISABLE | debug), collateral_of(scenario), AT, pki.root)
    assert verified.missing == (reason,)


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("Revoked", "the platform's TCB level (of 2025-12-31T00:00:00Z) is Revoked"),
        ("ModuleRevoked", "the TDX module's ISVSVN (TDX_01) is 6, which is Revoked"),
        ("QERevoked", "the quoting enclave's ISVSVN is 8, which is Revoked"),
        ("NoLevel", "SGX component 1 (Early Microcode Update) is 3, the lowest level wants 4"),
        ("CRLExpired", "the root CA's CRL is valid until 2025-12-01T23:00:00Z, the PCK CRL is valid until"),
        ("TCBInfoExpired", "valid until 2025-12-01T23:00:00Z, asked for 2026-01-01T00:00:00Z"),
        ("NotYetValid", "it is of 2026-01-02T00:00:00Z"),
        ("PCKRevoked", "the PCK CRL revokes Intel SGX PCK Certificate of the quote (serial "),
        ("CARevoked", "the root CA's CRL revokes Intel SGX PCK Platform CA of the quote (serial "),
        ("TCBSigningRevoked", "the root CA's CRL revokes Intel SGX TCB Signing of the TCB info (serial "),
        ("OtherPlatform", "the TCB info is for FMSPC FF"),
    ],
)
@pytest.mark.parametrize("debug", [0, 1])
def test_a_refusal_has_its_reason(
    pki: Pki, quote_with: Callable[[int], Quote], collateral_of: Callable[[str], str], scenario: str, reason: str,
    debug: int,
) -> None:  # fmt: skip
    with pytest.raises(VerificationError) as refused:
        verify_quote(quote_with(SEPT_VE_DISABLE | debug), collateral_of(scenario), AT, pki.root)
    assert reason in str(refused.value)


def test_facts_of_the_platform(quote_with: Callable[[int], Quote], collateral_of: Callable[[str], str]) -> None:
    facts = tcb_facts(quote_with(SEPT_VE_DISABLE), collateral_of("UpToDate"))
    assert facts.evaluation_number == 17
    assert facts.tcb_date == int(datetime(2025, 12, 31, tzinfo=UTC).timestamp())
