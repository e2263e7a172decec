# SPDX-License-Identifier: GPL-2.0-or-later
"""What an event log must show for a policy: command lines, a compose hash, an agent's events, rules of the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from swtdx.attest.event import Event
from swtdx.attest.event_digest import EV_AAEL, EV_DSTACK_RUNTIME, EV_EVENT_TAG, Vouched
from swtdx.attest.event_words import type_name
from swtdx.attest.policy_file import AppraisalPolicy, EventRule
from swtdx.attest.quote import Quote
from swtdx.attest.replay import covered, replay


def unmet_by_events(policy: AppraisalPolicy, quote: Quote, events: Sequence[Event] | None) -> Iterator[str]:
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
