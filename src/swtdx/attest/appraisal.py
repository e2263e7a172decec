# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence appraised by a policy file, and the result as claims of an EAT.

The claims are an EAR (EAT Attestation Result, IETF RATS): a status and a trustworthiness vector, whose numbers are
those of AR4SI: 2 affirming, 32 a warning, 96 a contradiction, 97 not genuine, 0 no claim.  They are not signed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from swtdx.attest.policy import Broken, broken_rules
from swtdx.attest.policy_file import AppraisalPolicy, Masked
from swtdx.attest.quote import Quote
from swtdx.attest.tcb_facts import TcbFacts
from swtdx.attest.verify import Verified, moment

if TYPE_CHECKING:
    from swtdx.attest.event import Event

EAR_PROFILE = "tag:github.com,2023:veraison/ear"
NONE, AFFIRMING, WARNING, CONTRAINDICATED, NOT_GENUINE = 0, 2, 32, 96, 97
_DAY = 86400
_STATUSES = {NONE: "none", AFFIRMING: "affirming", WARNING: "warning", CONTRAINDICATED: "contraindicated"}


class Category(StrEnum):
    """Claims of AR4SI that a rule of a policy decides."""

    CONFIGURATION = "configuration"
    EXECUTABLES = "executables"
    HARDWARE = "hardware"
    SOURCED_DATA = "sourced-data"


_CATEGORIES = {
    **dict.fromkeys(("MRSEAM", "MRSIGNERSEAM", "SEAM_ATTRIBUTES", "TEE_TCB_SVN", "TCB status"), Category.HARDWARE),
    **dict.fromkeys(("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3"), Category.EXECUTABLES),
    "REPORTDATA": Category.SOURCED_DATA,
}
_CLAIMS = {"TCB status": WARNING}
"""Where it is not a contradiction: a genuine platform that is not as new, or as well configured, as is asked for."""
_DECIDED_BY = {
    Category.EXECUTABLES: {
        *("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "command_line", "compose_hash", "aael", "rule"),
    },
    Category.SOURCED_DATA: {"reportdata"},
}
"""Members of a policy without which a category is not claimed; the others always have rules."""


class Unmet(NamedTuple):
    """A rule that the evidence breaks, in one sentence."""

    category: Category
    text: str
    claim: int = CONTRAINDICATED
    """What it makes of the category."""


class Appraisal(NamedTuple):
    """What a policy says of a genuine quote."""

    policy: AppraisalPolicy
    unmet: tuple[Unmet, ...]

    @property
    def accepted(self) -> bool:
        """Whether no rule is broken."""
        return not self.unmet

    def vector(self) -> dict[str, int]:
        """The trustworthiness vector."""
        found = {}
        for category in Category:
            broken = [each.claim for each in self.unmet if each.category is category]
            decided = category not in _DECIDED_BY or bool(_DECIDED_BY[category] & self.policy.named)
            found[str(category)] = max(broken, default=AFFIRMING if decided else NONE)
        return found


def appraise(
    policy: AppraisalPolicy, quote: Quote, verified: Verified, facts: TcbFacts, events: Sequence[Event] | None = None
) -> Appraisal:
    """Appraise a genuine quote, and the event log that came with it."""
    broken = (*broken_rules(policy.policy, quote.body, verified.tcb_status), *_masked(policy.masked, quote))
    unmet = [
        Unmet(_CATEGORIES.get(each.field, Category.CONFIGURATION), str(each), _CLAIMS.get(each.field, CONTRAINDICATED))
        for each in broken
    ]
    unmet += (Unmet(Category.HARDWARE, text, WARNING) for text in _platform(policy, verified, facts))
    if policy.needs_events:
        from swtdx.attest.event_appraisal import unmet_by_events  # only here: many policies have no rule for events

        unmet += (Unmet(Category.EXECUTABLES, text) for text in unmet_by_events(policy, quote, events))
    return Appraisal(policy, tuple(unmet))


def claims(
    quote: Quote,
    policy_text: bytes,
    at: int,
    appraisal: Appraisal | None,
    verified: Verified | None,
    reason: str = "",
    build: str = "swtdx",
) -> dict[str, Any]:
    """Return an EAR; without ``appraisal`` that of a quote that is not genuine, for a ``reason``."""
    if appraisal is None:
        vector, unmet = {"hardware": NOT_GENUINE}, [reason]
        status = _STATUSES[CONTRAINDICATED]
    else:
        vector, unmet = appraisal.vector(), [each.text for each in appraisal.unmet]
        status = _STATUSES[max(vector.values())]
    body = quote.as_json()["body"]
    tdx = {name: body[name] for name in body if name not in ("identities", "debug")}
    submodule: dict[str, Any] = {
        "ear.status": status,
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": f"sha-256:{hashlib.sha256(policy_text).hexdigest()}",
        "swtdx.unmet": unmet,
        "swtdx.tcb": None if verified is None else verified.as_json(),
        "swtdx.tdx": tdx,
    }
    return {
        "eat_profile": EAR_PROFILE,
        "iat": at,
        "ear.verifier-id": {"developer": "swtdx", "build": build},
        "eat_nonce": base64.urlsafe_b64encode(quote.body.reportdata).rstrip(b"=").decode(),
        "submods": {"tdx": submodule},
    }


def _masked(masked: Sequence[Masked], quote: Quote) -> Iterator[Broken]:
    for each in masked:
        value = quote.body.rtmrs[int(each.name[-1])] if each.name.startswith("rtmr") else getattr(quote.body, each.name)
        number = int.from_bytes(value, "big") if isinstance(value, bytes) else value
        if number is not None and any(number & mask == wanted & mask for wanted, mask in each.accepted):
            continue
        size = len(value) if isinstance(value, bytes) else 8
        wanted = " or ".join(
            f"{value:0{2 * size}x} under the mask {mask:0{2 * size}x}" for value, mask in each.accepted
        )
        has = "none" if number is None else f"{number:0{2 * size}x}"
        yield Broken(each.name.upper(), f"{wanted} wanted, the quote has {has}")


def _platform(policy: AppraisalPolicy, verified: Verified, facts: TcbFacts) -> Iterator[str]:
    """What the platform's level and the collateral lack."""
    if policy.maximum_age_days is not None:
        age = (verified.at - facts.tcb_date) // _DAY
        if age > policy.maximum_age_days:
            day = moment(facts.tcb_date)[:10]
            wanted = f"at most {policy.maximum_age_days} wanted"
            yield f"TCB age: the platform's TCB level is of {day}, {age} days old; {wanted}"
    least = policy.minimum_evaluation_number
    if least is not None and facts.evaluation_number < least:
        yield f"TCB evaluation: number {facts.evaluation_number} of the collateral, at least {least} wanted"
    for advisory in verified.advisory_ids:
        if advisory in policy.refused_advisories:
            yield f"TCB advisory: {advisory} is refused"
        elif policy.accepted_advisories is not None and advisory not in policy.accepted_advisories:
            yield f"TCB advisory: {advisory} is not among those accepted"
