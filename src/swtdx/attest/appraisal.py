# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence appraised by a policy file, and the result as claims of an EAT.

The claims are an EAR (EAT Attestation Result, IETF RATS): a status and a trustworthiness vector, whose numbers are
those of AR4SI: 2 affirming, 32 a warning, 96 a contradiction, 97 not genuine, 0 no claim.  They are not signed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from swtdx.attest.event_digest import EV_AAEL, EV_DSTACK_RUNTIME, EV_EVENT_TAG, Vouched
from swtdx.attest.event_log import Event
from swtdx.attest.event_words import type_name
from swtdx.attest.policy import Broken, broken_rules
from swtdx.attest.policy_file import AppraisalPolicy, EventRule, Masked
from swtdx.attest.quote import Quote
from swtdx.attest.replay import covered, replay
from swtdx.attest.tcb_facts import TcbFacts
from swtdx.attest.verify import Verified, moment

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


@dataclass(frozen=True)
class Unmet:
    """A rule that the evidence breaks, in one sentence."""

    category: Category
    text: str
    claim: int = CONTRAINDICATED
    """What it makes of the category."""


@dataclass(frozen=True)
class Appraisal:
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
        unmet += (Unmet(Category.EXECUTABLES, text) for text in _events(policy, quote, events))
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


def _events(policy: AppraisalPolicy, quote: Quote, events: Sequence[Event] | None) -> Iterator[str]:
    """What the event log does not show. Only what digests vouch for counts, and only in registers that are equal."""
    if events is None:
        yield "events: the policy has rules for an event log, and there is none"
        return
    replayed = replay(events)
    equal = {number for number in covered(replayed) if replayed[number] == quote.body.rtmrs[number]}
    different = sorted(set(covered(replayed)) - equal)
    if different:
        yield f"events: the log does not lead to {', '.join(f'RTMR{number}' for number in different)} of the quote"
        return
    extended = [each for each in events if each.extends and each.rtmr in equal]
    if policy.command_lines and not any(_is_command_line(each, policy.command_lines) for each in extended):
        yield "command_line: no event of RTMR1 or RTMR2 measures one of those accepted"
    if policy.compose_hashes:
        yield from _compose_hash(extended, policy.compose_hashes)
    if policy.aael:
        yield from _agents(extended, policy.aael)
    for number, rule in enumerate(policy.rules):
        yield from (f"events.rule[{number}]: {text}" for text in _rule(extended, rule))


def _is_command_line(event: Event, accepted: Sequence[str]) -> bool:
    """Whether an event measures a command line: GRUB its text, Linux's stub and systemd's in UTF-16, NUL or not."""
    if event.rtmr not in (1, 2):
        return False
    for text in accepted:
        wide = text.encode("utf-16-le")
        for measured in (text.encode(), text.encode() + b"\0", wide, wide + bytes(2)):
            if hashlib.sha384(measured).digest() == event.digest:
                return True
    return False


def _compose_hash(events: Sequence[Event], accepted: Sequence[bytes]) -> Iterator[str]:
    named = [each for each in events if (each.event_type, each.name) == (EV_DSTACK_RUNTIME, "compose-hash")]
    if not named:
        yield "compose_hash: the log has no event compose-hash in a register that it decides"
    for each in named:
        if each.vouched is not Vouched.ALL or each.data not in accepted:
            yield f"compose_hash: event {each.number} has {each.data.hex()}, which is not among those accepted"


def _agents(events: Sequence[Event], accepted: Sequence[str]) -> Iterator[str]:
    """Every event of the attestation agent must be accepted, and there must be one."""
    found = [each for each in events if each.event_type in (EV_AAEL, EV_EVENT_TAG) and each.rtmr == 3]
    own = [each for each in found if not each.data.startswith(b"INIT ")]
    if not own:
        yield "aael: the log has no event of the attestation agent"
    for each in own:
        text = each.data[8:] if each.event_type == EV_EVENT_TAG else each.data
        if each.vouched is not Vouched.ALL or text.decode("utf-8", "replace") not in accepted:
            yield f"aael: event {each.number} ({each.words}) is not among those accepted"


def _rule(events: Sequence[Event], rule: EventRule) -> Iterator[str]:
    chosen = [each for each in events if _selected(each, rule)]
    wanted = bool(rule.text or rule.payload or rule.digest)
    fitting = [each for each in chosen if not wanted or _fits(each, rule)]
    if rule.forbidden:
        for each in fitting:
            yield f"event {each.number} of {type_name(each.event_type)} ({each.words}) is forbidden"
    elif not fitting:
        yield "no event is as the rule asks" if chosen else "the log has no such event"


def _selected(event: Event, rule: EventRule) -> bool:
    return (
        rule.register in (None, event.rtmr)
        and rule.event_type in (None, event.event_type)
        and rule.name in (None, event.name)
    )


def _fits(event: Event, rule: EventRule) -> bool:
    """Whether an event has what a rule asks; its data count only as far as its digest vouches for them."""
    if event.digest in rule.digest:
        return True
    if event.vouched is not Vouched.ALL:
        texts = {hashlib.sha384(each.encode()).digest() for each in rule.text}
        return event.digest in texts or event.digest in {hashlib.sha384(each).digest() for each in rule.payload}
    return event.data in rule.payload or event.words in rule.text or event.data in {t.encode() for t in rule.text}
