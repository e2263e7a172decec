# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy file: what it accepts and refuses of synthetic evidence, and the claims of the result."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest

from swtdx.attest.appraisal import Appraisal, appraise, claims
from swtdx.attest.event_log import Event, parse_event_log
from swtdx.attest.policy_file import PolicyError, parse_policy, policy_text
from swtdx.attest.quote import Quote, QuoteBody, QuoteHeader, QuoteSignature
from swtdx.attest.replay import replay
from swtdx.attest.tcb_facts import TcbFacts
from swtdx.attest.verify import Verified

ZERO, ONES = bytes(48), b"\1" * 48
SEPT_VE_DISABLE = 1 << 28
BODY = QuoteBody(
    bytes([3, 0, 5]).ljust(16, b"\0"), ZERO, ZERO, 0, SEPT_VE_DISABLE, 0xE7, ONES, ZERO, ZERO, ZERO,
    (ZERO, ONES, ZERO, ZERO), bytes(range(64)), None, None,
)  # fmt: skip
HEADER = QuoteHeader(4, 2, 0x81, bytes(4), bytes(16), bytes(20))
QUOTE = Quote(HEADER, 2, BODY, QuoteSignature(bytes(64), bytes(64), None, 5, b""), b"", 0)
AT = 1_700_000_000
DAY = 86400
VERIFIED = Verified("UpToDate", ("INTEL-SA-00837",), "00", AT)
FACTS = TcbFacts(AT - 100 * DAY, 16)


def judged(policy: str, quote: Quote = QUOTE, events: list[Event] | None = None) -> Appraisal:
    return appraise(parse_policy(policy.encode()), quote, VERIFIED, FACTS, events)


@pytest.mark.parametrize(
    ("policy", "unmet"),
    [
        ("", ""),
        (f"[td]\nmrtd = '{ONES.hex()}'\nrtmr1 = ['{ZERO.hex()}', '0x{ONES.hex()}']", ""),
        (f"[td]\nmrtd = '{ZERO.hex()}'", "MRTD: 0000"),
        (f"[td]\nrtmr1 = '{ZERO.hex()}'", "RTMR1: 0000"),
        ("[td]\nattributes = '0x10000000'", ""),
        ("[td]\nattributes = '0x10000001'", "ATTRIBUTES: "),
        ("[td]\nxfam = { value = '0xe7', mask = '0xff' }", ""),
        ("[td]\nxfam = [{ value = '0x3', mask = '0x3' }, '0x1']", ""),
        ("[td]\nxfam = { value = '0x100', mask = '0x100' }", "XFAM: "),
        (f"[td]\nreportdata = {{ value = '{'00' * 64}', mask = 'ff{'00' * 63}' }}", ""),
        (f"[td]\nreportdata = {{ value = '{'00' * 64}', mask = 'ffff{'00' * 62}' }}", "REPORTDATA: "),
        (f"[td]\nrtmr1 = {{ value = '{ZERO.hex()}', mask = '01{'00' * 47}' }}", "RTMR1: "),
        (f"[td]\nmrservicetd = {{ value = '{ZERO.hex()}', mask = '{ONES.hex()}' }}", "MRSERVICETD: "),
        ("[td]\nseam_attributes = '0x0'", ""),
        ("[tcb]\nminimum_tee_tcb_svn = '03000500000000000000000000000000'", ""),
        ("[tcb]\nminimum_tee_tcb_svn = '04000000000000000000000000000000'", "TEE_TCB_SVN: "),
        ("[tcb]\nmaximum_age_days = 100", ""),
        ("[tcb]\nmaximum_age_days = 99", "TCB age: the platform's TCB level is of 2023-08-06, 100 days old"),
        ("[tcb]\nminimum_evaluation_number = 16", ""),
        ("[tcb]\nminimum_evaluation_number = 17", "TCB evaluation: number 16"),
        ("[tcb]\nrefused_advisories = ['INTEL-SA-00837']", "TCB advisory: INTEL-SA-00837 is refused"),
        ("[tcb]\nrefused_advisories = ['INTEL-SA-1']", ""),
        ("[tcb]\naccepted_advisories = []", "TCB advisory: INTEL-SA-00837 is not among"),
        ("[tcb]\naccepted_advisories = ['INTEL-SA-00837']", ""),
        ("[tcb]\nstatuses = ['OutOfDate']", "TCB status: UpToDate"),
        ("[events]\ncommand_line = 'x'", "events: the policy has rules"),
    ],
)
def test_what_a_policy_accepts(policy: str, unmet: str) -> None:
    found = [each.text for each in judged(policy).unmet]
    assert len(found) == (1 if unmet else 0), found
    assert not found or found[0].startswith(unmet)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"attributes": SEPT_VE_DISABLE | 1}, "debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 29}, "migratable"),
        ({"attributes": 0}, "sept-ve"),
        ({"mrservicetd": ONES}, "service-td"),
    ],
)
def test_what_must_be_allowed(change: dict[str, Any], allowed: str) -> None:
    quote = QUOTE._replace(body=BODY._replace(**change))
    assert len(judged("", quote).unmet) == 1
    assert judged(f"[td]\nallow = ['{allowed}']", quote).accepted


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("[td", "not TOML"),
        ("[td]\nmrdt = 1", "did you mean mrtd"),
        ("[other]", "other is not known"),
        ("td = 1", "td is not a table"),
        ("[td]\nmrtd = 'zz'", "not hexadecimal"),
        ("[td]\nmrtd = '00'", "1 bytes, it must have 48"),
        ("[td]\nxfam = 'x'", "not a 64-bit mask"),
        ("[td]\nxfam = { mask = '0x1' }", "a mask without a value"),
        ("[td]\nxfam = { value = '0x1', masks = '0x1' }", "did you mean mask"),
        ("[td]\nallow = ['all']", "'all' is not known"),
        ("[tcb]\nstatuses = ['Revoked']", "not one of"),
        ("[tcb]\nmaximum_age_days = -1", "not a whole number"),
        ("[tcb]\nmaximum_age_days = true", "not a whole number"),
        ("[events]\ncommand_line = 1", "not text"),
        ("[[events.rule]]\ntext = 'x'", "selects all events"),
        ("[[events.rule]]\nregister = 4", "not a number from 0 to 3"),
        ("[[events.rule]]\ntype = 'EV_NOTHING'", "not the name of an event's type"),
        ("[events]\nrule = 1", "not a list"),
    ],
)
def test_a_policy_that_cannot_be_used(policy: str, text: str) -> None:
    with pytest.raises(PolicyError, match=text):
        parse_policy(policy.encode())


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def event(number: int, rtmr: int, event_type: int, measured: bytes, data: bytes | None = None) -> Event:
    return Event(number, 0, rtmr, event_type, sha384(measured), measured if data is None else data)


LINE = "console=ttyS0 root=/dev/vda1"
COMPOSE = b"\xab" * 32
RUNTIME = json.dumps([{"imr": 3, "event_type": 0x08000001, "event": "compose-hash", "event_payload": COMPOSE.hex()}])
AAEL = struct.pack("<II", 0x4141454C, 18) + b"example.com load x"
EVENTS = [
    event(0, 1, 0x80000003, b"a kernel", b""),
    event(1, 2, 0x0D, LINE.encode(), b"kernel_cmdline: " + LINE.encode()),
    event(2, 2, 0x0D, b"(hd0)/vmlinuz's contents", b"(hd0)/vmlinuz"),
    *parse_event_log(RUNTIME.encode()),
    event(4, 3, 0x06, AAEL),
]


def logged(policy: str, events: list[Event] | None = None) -> list[str]:
    """What a quote with this log breaks."""
    events = EVENTS if events is None else events
    quote = QUOTE._replace(body=BODY._replace(rtmrs=replay(events)))
    return [each.text for each in judged(policy, quote, events).unmet]


@pytest.mark.parametrize(
    "policy",
    [
        f"[events]\ncommand_line = ['other', '{LINE}']",
        f"[events]\ncompose_hash = '{COMPOSE.hex()}'",
        "[events]\naael = ['example.com load x']",
        f"[[events.rule]]\nregister = 2\ntype = 'EV_IPL'\ntext = '{LINE}'",
        f"[[events.rule]]\nregister = 1\ndigest = '{sha384(b'a kernel').hex()}'",
        "[[events.rule]]\nname = 'compose-hash'",
        "[[events.rule]]\ntype = 'EV_IPL'\nforbidden = true\ntext = 'init=/bin/sh'",
    ],
)
def test_rules_for_events_that_are_met(policy: str) -> None:
    assert logged(policy) == []


@pytest.mark.parametrize(
    ("policy", "unmet"),
    [
        ("[events]\ncommand_line = 'init=/bin/sh'", "command_line: no event"),
        (f"[events]\ncompose_hash = '{'00' * 32}'", "compose_hash: event 0 has abab"),
        ("[events]\naael = ['other']", "aael: event 4"),
        ("[[events.rule]]\nregister = 2\ntext = '(hd0)/vmlinuz'", "events.rule[0]: no event is as"),  # not vouched for
        ("[[events.rule]]\nregister = 0", "events.rule[0]: the log has no such event"),
        (f"[[events.rule]]\ntype = 13\nforbidden = true\ntext = '{LINE}'", "events.rule[0]: event 1 of EV_IPL"),
    ],
)
def test_rules_for_events_that_are_broken(policy: str, unmet: str) -> None:
    (text,) = logged(policy)
    assert text.startswith(unmet)


@pytest.mark.parametrize(
    "encoded", [LINE.encode() + b"\0", LINE.encode("utf-16-le"), (LINE + "\0").encode("utf-16-le")]
)
def test_a_command_line_as_each_loader_measures_it(encoded: bytes) -> None:
    assert logged(f"[events]\ncommand_line = '{LINE}'", [event(0, 2, 0x06, encoded, b"tag")]) == []


def test_a_log_that_does_not_lead_to_the_quote_shows_nothing() -> None:
    (unmet,) = judged(f"[events]\ncommand_line = '{LINE}'", QUOTE, EVENTS).unmet
    assert "does not lead to RTMR1, RTMR2, RTMR3" in unmet.text


def test_a_relabelled_event_does_not_meet_a_rule() -> None:
    """The digest is of another text than the log has."""
    lie = event(0, 2, 0x0D, b"init=/bin/sh", b"kernel_cmdline: " + LINE.encode())
    assert logged(f"[events]\ncommand_line = '{LINE}'", [lie])
    assert logged(f"[[events.rule]]\nregister = 2\ntext = '{LINE}'", [lie])


def test_the_claims_are_those_of_an_ear() -> None:
    """draft-ietf-rats-ear: profile, verifier, a submodule with a status and a vector in AR4SI's numbers."""
    policy = f"[td]\nmrtd = '{ONES.hex()}'\n[tcb]\nmaximum_age_days = 1"
    ear = claims(QUOTE, policy.encode(), AT, judged(policy), VERIFIED)
    assert (ear["eat_profile"], ear["iat"]) == ("tag:github.com,2023:veraison/ear", AT)
    assert 8 <= len(ear["eat_nonce"]) <= 88
    tdx = ear["submods"]["tdx"]
    assert tdx["ear.status"] == "warning"
    assert tdx["ear.trustworthiness-vector"] == {
        "configuration": 2, "executables": 2, "hardware": 32, "sourced-data": 0,
    }  # fmt: skip
    assert tdx["ear.appraisal-policy-id"] == f"sha-256:{hashlib.sha256(policy.encode()).hexdigest()}"
    refused = claims(QUOTE, b"", AT, None, None, "why")["submods"]["tdx"]
    assert (refused["ear.status"], refused["ear.trustworthiness-vector"]) == ("contraindicated", {"hardware": 97})
    json.dumps(ear)


@pytest.mark.parametrize(
    ("rules", "hardware"),
    [
        ("", 2),
        ("maximum_age_days = 99", 32),
        ("statuses = ['OutOfDate']\nminimum_evaluation_number = 17", 32),
        ("minimum_tee_tcb_svn = '04000000000000000000000000000000'", 96),
        ("minimum_tee_tcb_svn = '04000000000000000000000000000000'\nmaximum_age_days = 99", 96),
    ],
)
def test_hardware_that_is_old_is_a_warning_and_other_hardware_a_contradiction(rules: str, hardware: int) -> None:
    """AR4SI: 32 is a warning, 96 a contraindication; the worst of a category counts."""
    assert judged(f"[tcb]\n{rules}").vector()["hardware"] == hardware


def test_a_policy_that_was_written_accepts_what_it_was_written_from() -> None:
    assert judged(policy_text(ONES, {0: ZERO, 1: ONES}, ["an image\nmrtd = 1"])).accepted
    assert not judged(policy_text(ZERO)).accepted
