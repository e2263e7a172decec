# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence of any kind compared with any other: what both know, and where they part. All of it is made here."""

from __future__ import annotations

import json
import struct
from itertools import product

import pytest

from swtdx.attest.evidence import EvidenceError, compare_evidence, evidence_of
from testing.evidence import binary_log, quote_of, report_with
from testing.tdreport import TdReportFields

START = (1, 4, bytes(4), bytes(4))
FIRST, SECOND, OTHER = ((3, 0x0D, text, b"grub_cmd: " + text) for text in (b"ls", b"boot", b"halt"))


def quote_with(log: bytes, mrtd: bytes = bytes(48)) -> bytes:
    """The quote of a TD with the registers of a log."""
    return quote_of(report_with(log, mrtd))


LOG = binary_log(START, FIRST, SECOND)
KINDS = {"quote": quote_with, "TDREPORT": report_with, "event log": lambda log: log}


@pytest.mark.parametrize(("one", "other"), [*product(KINDS, KINDS)])
def test_the_same_td_is_equal_in_every_pair(one: str, other: str) -> None:
    compared = compare_evidence(evidence_of(KINDS[one](LOG), "a"), evidence_of(KINDS[other](LOG), "b"))
    assert compared.equal
    assert [each.kind for each in compared.sides] == [one, other]
    assert {"RTMR0", "RTMR1", "RTMR2"} <= set(compared.compared)
    assert ("MRTD" in compared.compared) == ("event log" not in (one, other))
    json.dumps(compared.as_json())


@pytest.mark.parametrize(("one", "other"), [*product(KINDS, KINDS)])
def test_another_event_differs_in_every_pair(one: str, other: str) -> None:
    changed = binary_log(START, FIRST, OTHER)
    (difference,) = compare_evidence(
        evidence_of(KINDS[one](LOG), "a"), evidence_of(KINDS[other](changed), "b")
    ).differences
    assert difference.what == "RTMR2"
    if one == other == "event log":
        assert difference.first_event == 1
        assert "after 1 equal event come event 2, EV_IPL (grub_cmd: boot)" in difference.text
        assert "grub_cmd: halt" in difference.text


def test_a_log_that_goes_on_is_named_with_what_is_lacking() -> None:
    """The quote was made before the last event."""
    (difference,) = compare_evidence(
        evidence_of(quote_with(binary_log(START, FIRST)), "quote"), evidence_of(LOG, "log")
    ).differences
    assert (
        "quote has it as log after 1 of 2 events of it; what lacks is event 2, EV_IPL (grub_cmd: boot)"
        in difference.text
    )
    (difference,) = compare_evidence(evidence_of(LOG, "a"), evidence_of(binary_log(START, FIRST), "b")).differences
    assert "after 1 equal event B has ended, A has event 2" in difference.text


def test_fields_of_quotes_are_compared() -> None:
    other = quote_of(TdReportFields(attributes=1 << 28 | 1).pack())
    plain = quote_of(TdReportFields().pack())
    compared = compare_evidence(evidence_of(plain, "a"), evidence_of(other, "b"))
    assert [each.what for each in compared.differences] == ["ATTRIBUTES"]
    assert "0x10000000 and 0x10000001" in compared.differences[0].text


def test_an_answer_with_quote_and_log_knows_both() -> None:
    record = {"imr": 0, "event_type": 4, "digest": "00" * 48, "event_payload": ""}
    answer = json.dumps({"quote": quote_with(LOG).hex(), "event_log": [record]}).encode()
    side = evidence_of(answer, "a")
    assert (side.kind, len(side.events or ())) == ("quote and event log", 1)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"{}", b"[]x", struct.pack("<H", 7) + bytes(900)])
def test_what_is_not_evidence(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="cannot be compared as evidence"):
        evidence_of(data, "x")
