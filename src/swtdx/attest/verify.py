# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a quote is genuine: signatures, certificates, revocation and TCB, judged by ``dcap-qvl``, offline.

The trust anchor is Intel's root certificate, which ``dcap-qvl`` carries; what swtdx makes does not chain to it.
Collateral is what Intel's provisioning certification service publishes for a platform, as one JSON object; whoever
verifies brings it, and says for which time it shall count.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from swtdx.attest.event_words import printable
from swtdx.attest.quote import Quote

COLLATERAL_MEMBERS = (
    "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info", "tcb_info_signature",
    "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature",
)  # fmt: skip
"""Strings; the three ..._crl and ..._signature kinds in hexadecimal, chains in PEM, the two documents as JSON text."""
_LATEST_TIME = 1 << 40


class VerificationError(Exception):
    """The quote is not genuine, or not at the time that was asked for; the text is the verifier's reason."""


class CollateralError(ValueError):
    """The collateral is not usable; the text says why."""


@dataclass(frozen=True)
class Verified:
    """What a genuine quote's platform is worth."""

    tcb_status: str
    """As Intel names it: UpToDate, SWHardeningNeeded, ConfigurationNeeded, OutOfDate, ..."""
    advisory_ids: tuple[str, ...]
    ppid: str
    at: int
    """Seconds since 1970 for which the judgement holds."""

    def as_json(self) -> dict[str, Any]:
        return {
            "tcb_status": self.tcb_status,
            "advisory_ids": list(self.advisory_ids),
            "ppid": self.ppid,
            "at": self.at,
        }


def verify_quote(quote: Quote, collateral: bytes | str, at: int) -> Verified:
    """Judge a quote with ``collateral`` (JSON) for the time ``at`` (seconds since 1970).

    Raises `CollateralError` if the collateral is no such JSON, `VerificationError` if the quote does not verify.

    >>> verify_quote(None, "{}", 0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    swtdx.attest.verify.CollateralError: the collateral lacks pck_crl_issuer_chain, ...
    """
    import dcap_qvl  # type: ignore[import-untyped]  # it has stubs, but does not declare them

    checked = _checked(collateral)
    if not 0 <= at < _LATEST_TIME:
        raise VerificationError(f"{at} is no time in seconds since 1970")
    try:
        material = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(checked))
    except (ValueError, TypeError) as error:
        raise CollateralError(f"the collateral is not usable: {_in_one_line(error)}") from None
    try:
        report = dcap_qvl.verify(quote.raw, material, at)
    except (ValueError, RuntimeError) as error:
        raise VerificationError(f"the quote does not verify: {_in_one_line(error)}") from None
    return Verified(report.status, tuple(report.advisory_ids), bytes(report.ppid).hex(), at)


def moment(seconds: int) -> str:
    """Seconds since 1970 as a date.

    >>> moment(1750377600)
    '2025-06-20T00:00:00Z'
    """
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat() + "Z"


def _in_one_line(error: Exception) -> str:
    """The verifier's reasons, outermost first; it writes each cause on a line of its own, and may number them.

    >>> _in_one_line(ValueError("Verification failed: no chain\\n\\nCaused by:\\n    0: certs\\n    1: bad"))
    'no chain: certs: bad'
    >>> _in_one_line(ValueError("CrlExpired { time: UnixTime(1850377600), next_update: UnixTime(1775215317) }"))
    'CrlExpired { time: 2028-08-20T09:46:40Z, next_update: 2026-04-03T11:21:57Z }'
    """
    lines = [re.sub(r"^\d+: ", "", line.strip()) for line in str(error).splitlines()]
    lines = [line for line in lines if line and line != "Caused by:"]
    lines = [re.sub(r"UnixTime\((\d{1,11})\)", lambda found: moment(int(found[1])), line) for line in lines]
    return printable(": ".join(lines).removeprefix("Verification failed: ")).rstrip(".")


def _checked(collateral: bytes | str) -> dict[str, str]:
    try:
        content = json.loads(collateral)
    except (ValueError, RecursionError) as error:
        raise CollateralError(f"the collateral is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CollateralError("the collateral is no JSON object")
    lacking = [name for name in COLLATERAL_MEMBERS if not isinstance(content.get(name), str)]
    if lacking:
        raise CollateralError(f"the collateral lacks {', '.join(lacking)}")
    return {name: value for name, value in content.items() if isinstance(value, str)}
