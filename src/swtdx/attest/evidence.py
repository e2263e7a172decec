# SPDX-License-Identifier: GPL-2.0-or-later
"""Any two pieces of evidence compared: quotes, TDREPORTs, event logs, launches, and predictions.

Each is taken for what it knows: MRTD, RTMRs, the events that extended them, other fields.  What both know is compared.
Events are compared register by register, as registers do not show the order of events between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from swtdx.attest.build_calls import Build
from swtdx.attest.event_log import SHA384_SIZE, Event, EventLogError, parse_event_log
from swtdx.attest.event_reasons import usual_reason
from swtdx.attest.event_words import type_name
from swtdx.attest.hcl_report import is_hcl_report, parse_hcl_report
from swtdx.attest.quote import QuoteError, parse_quote
from swtdx.attest.replay import covered, replay
from swtdx.attest.report import ReportError, TdReport, parse_report
from swtdx.attest.text_form import JsonError, json_of, text_bytes

_FIELDS = (
    *("mrconfigid", "mrowner", "mrownerconfig", "mrseam", "mrsignerseam", "seam_attributes", "attributes", "xfam"),
    *("tee_tcb_svn", "tee_tcb_svn2", "mrservicetd", "reportdata"),
)
_REGISTERS = range(4)
_ONLY_DIGEST = -1
"""The type of an event of which a launch has recorded nothing else."""


class EvidenceError(ValueError):
    """The data are not evidence; the text is one sentence."""


@dataclass(frozen=True)
class Evidence:
    """What one side knows."""

    name: str
    kind: str
    mrtd: bytes | None = None
    rtmrs: tuple[bytes | None, ...] = (None,) * 4
    """None: not known."""
    events: tuple[Event, ...] | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def chain(self, register: int) -> list[Event] | None:
        """The events that extended a register; None where they are not known."""
        if self.events is None:
            return None
        return [each for each in self.events if each.extends and each.rtmr == register]


@dataclass(frozen=True)
class Difference:
    """One thing that differs, in words and in JSON."""

    what: str
    text: str
    values: tuple[Any, Any]
    first_event: int | None = None
    """Of RTMRs whose events are known: how many events of the register are equal."""
    reason: str | None = None
    """Why the first event that differs usually does."""

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "what": self.what, "text": self.text, "values": list(self.values), "equal_events": self.first_event,
            "usual_reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class EvidenceComparison:
    """What was compared, and what differs."""

    sides: tuple[Evidence, Evidence]
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing that both know differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "equal": self.equal,
            "names": [each.name for each in self.sides],
            "kinds": [each.kind for each in self.sides],
            "compared": list(self.compared),
            "differences": [each.as_json() for each in self.differences],
        }


def evidence_of(data: bytes, name: str) -> Evidence:
    """Read a quote, a TDREPORT, an event log, an agent's answer, or what ``swtdx measure --json`` has printed.

    Raises `EvidenceError`, whose text says what was tried.
    """
    predicted = _prediction(data, name)
    if predicted is not None:
        return predicted
    events: tuple[Event, ...] | None
    try:
        events = tuple(parse_event_log(data))
    except EventLogError as error:
        events, no_log = None, str(error)
    try:
        body = parse_quote(data).body
    except QuoteError as error:
        if events is not None:
            return of_events(events, name)
        no_quote = str(error)
    else:
        fields = {each: getattr(body, each) for each in _FIELDS if getattr(body, each) is not None}
        kind = "quote" if events is None else "quote and event log"
        return Evidence(name, kind, body.mrtd, body.rtmrs, events, fields)
    try:
        return of_report(parse_hcl_report(data).report if is_hcl_report(data) else parse_report(data), name)
    except ReportError:
        raise EvidenceError(f"{name} cannot be compared as evidence: {no_quote}; as an event log: {no_log}") from None


def of_report(report: TdReport, name: str) -> Evidence:
    """What a TDREPORT knows."""
    fields = {each: getattr(report, each) for each in _FIELDS if hasattr(report, each)}
    return Evidence(name, "TDREPORT", report.mrtd, report.rtmrs, None, fields)


def of_events(events: Sequence[Event], name: str, kind: str = "event log", mrtd: bytes | None = None) -> Evidence:
    """What an event log knows: the registers that it decides."""
    replayed = replay(events)
    decided = covered(replayed)
    registers = tuple(replayed[number] if number in decided else None for number in _REGISTERS)
    return Evidence(name, kind, mrtd, registers, tuple(events))


def of_build(build: Build) -> Evidence:
    """What a launch or an image knows. A prediction knows nothing of RTMR3, which is the guest's own."""
    events: tuple[Event, ...] | None = build.predicted or None
    if events is None and build.events is not None:
        events = tuple(
            Event(number, number, register, _ONLY_DIGEST, digest, b"")
            for number, (register, digest) in enumerate(build.events)
        )
    registers = tuple(build.rtmr) if build.rtmr is not None else (None,) * 4
    if not build.launched:
        registers = (*registers[:3], None)
    return Evidence(build.name, "launch" if build.launched else "prediction", build.mrtd, registers, events)


def compare_evidence(one: Evidence, other: Evidence) -> EvidenceComparison:
    """Compare what both sides know.

    >>> compare_evidence(Evidence("a", "quote", bytes(48)), Evidence("b", "event log")).compared
    ()
    """
    compared, differences = [], []
    if one.mrtd is not None and other.mrtd is not None:
        compared.append("MRTD")
        if one.mrtd != other.mrtd:
            pair = (one.mrtd.hex(), other.mrtd.hex())
            differences.append(Difference("MRTD", f"MRTD differs: {pair[0]} and {pair[1]}", pair))
    for number in _REGISTERS:
        first, second = one.rtmrs[number], other.rtmrs[number]
        if first is None or second is None:
            continue
        compared.append(f"RTMR{number}")
        if first != second:
            differences.append(_register(number, one, other, (first.hex(), second.hex())))
    for name in _FIELDS:
        if name in one.fields and name in other.fields:
            compared.append(name.upper())
            texts = (_text(one.fields[name]), _text(other.fields[name]))
            if texts[0] != texts[1]:
                text = f"{name.upper()} differs: {texts[0]} and {texts[1]}"
                differences.append(Difference(name.upper(), text, texts))
    return EvidenceComparison((one, other), tuple(compared), tuple(differences))


def _register(number: int, one: Evidence, other: Evidence, values: tuple[str, str]) -> Difference:
    what = f"RTMR{number}"
    chains = (one.chain(number), other.chain(number))
    if chains[0] is not None and chains[1] is not None:
        pairs = enumerate(zip_longest(chains[0], chains[1]))
        at = next((at for at, (a, b) in pairs if a is None or b is None or a.digest != b.digest), None)
        if at is not None:
            reason = _reason(at, chains[0], chains[1])
            return Difference(what, f"{what} differs: {_parting(at, chains[0], chains[1])}", values, at, reason)
    text = f"{what} differs: {values[0]} and {values[1]}"
    for known, target in ((one, other), (other, one)):
        reached = _reached(known.chain(number), target.rtmrs[number])
        if reached is not None:
            chain = known.chain(number) or []
            rest = ", ".join(_words(each) for each in chain[reached : reached + 3])
            count = f"{reached} of {len(chain)} events" if reached else "no event"
            text = f"{what} differs: {target.name} has it as {known.name} after {count} of it; what lacks is {rest}"
            return Difference(what, text, values, reached)
    if chains[0] is None and chains[1] is None:
        text += "; which event is the first to differ only an event log can show"
    return Difference(what, text, values)


def _reached(chain: list[Event] | None, value: bytes | None) -> int | None:
    """After how many events of the chain a register has a value; None if it never has."""
    if chain is None:
        return None
    registers = [bytes(SHA384_SIZE)]
    for event in chain:
        registers.append(hashlib.sha384(registers[-1] + event.digest).digest())
    return registers.index(value) if value in registers else None


def _parting(at: int, one: list[Event], other: list[Event]) -> str:
    same = f"after {at} equal event{'' if at == 1 else 's'}"
    if at < len(one) and at < len(other):
        return f"{same} come {_words(one[at])} and {_words(other[at])}"
    more = one if at < len(one) else other
    return f"{same} {'B' if more is one else 'A'} has ended, {'A' if more is one else 'B'} has {_words(more[at])}"


def _reason(at: int, one: list[Event], other: list[Event]) -> str | None:
    """The usual reason of the first event that differs; of two, the first that has one."""
    found = (usual_reason(each[at]) for each in (one, other) if at < len(each))
    return next((reason for reason in found if reason is not None), None)


def _words(event: Event) -> str:
    """An event in words, with as much as its digest vouches for."""
    if event.event_type == _ONLY_DIGEST:
        return f"an extension by {event.digest.hex()[:16]}..."
    vouched = event.vouched
    state = f" [{vouched.value}]" if vouched is not None else ""
    return f"event {event.number}, {type_name(event.event_type)} ({event.words}){state}"


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else f"{value:#x}"


def _prediction(data: bytes, name: str) -> Evidence | None:
    """What ``swtdx measure --json`` has printed; None for other data."""
    if text_bytes(data[:64]).lstrip()[:1] != b"{":
        return None
    try:
        content = json_of(data)
    except JsonError:
        return None
    if not isinstance(content, dict) or not {"mrtd", "pages_measured"} <= content.keys():
        return None
    try:
        mrtd = bytes.fromhex(content["mrtd"])
        boot = content.get("direct_boot")
        if boot is None:
            return Evidence(name, "prediction", mrtd)
        events = tuple(
            Event(at, at, int(each["register"][-1]), int(each["event_type"], 16), bytes.fromhex(each["digest"]),
                  bytes.fromhex(each["data"]))
            for at, each in enumerate(boot["events"])
        )  # fmt: skip
        registers = tuple(None if each is None else bytes.fromhex(each) for each in boot["rtmrs"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise EvidenceError(f"{name} has not the members that swtdx measure --json prints") from None
    if len(registers) != len(_REGISTERS) or not all(each.rtmr in _REGISTERS for each in events):
        raise EvidenceError(f"{name} has not four RTMRs")
    return Evidence(name, "prediction", mrtd, (*registers[:3], None), events)
