# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes, TDREPORTs and event logs; and what becomes of them when they are damaged.

All are made here from their formats and test keys. tests/published has those of real machines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import sys
import time
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.attest.event_log import EventLogError, parse_event_log, parse_table
from swtdx.attest.policy import Policy, violations
from swtdx.attest.quote import Quote, QuoteError, parse_quote
from swtdx.attest.replay import leads_to, replay
from swtdx.attest.report import ReportError, TdReport, parse_report
from swtdx.attest.verify import CollateralError, VerificationError, verify_quote
from swtdx.seam.report import _MAC_STRUCT, _TCB_INFO, _TD_INFO
from testing.evidence import (
    binary_log,
    ccel_table,
    collateral,
    dstack_digest,
    dstack_event,
    pki,
    quote_of,
    report_with,
    sha384,
)
from testing.tdreport import TdReportFields

BOOT_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le + struct.pack("<QQ", 9, 4)
BOOT_VARIABLE += "BootOrder".encode("utf-16-le") + b"\1\0\2\0"
LOG = binary_log(
    (1, 4, bytes(4), bytes(4)),  # a separator
    (1, 0x80000002, b"\1\0\2\0", BOOT_VARIABLE),  # of a boot variable the contents are measured, not the name
    (2, 0x80000007, b"Calling EFI Application from Boot Option", b"Calling EFI Application from Boot Option"),
    (3, 0x0D, b"init=/bin/sh", b"kernel_cmdline: init=/bin/sh"),
)
QUOTE = quote_of(report_with(LOG))


def digest(number: int) -> bytes:
    return bytes([number]) * 48


@pytest.fixture(scope="session")
def made_report() -> bytes:
    """A TDREPORT laid out by the module's own tables, with a value of its own in each field."""
    tcb = _TCB_INFO.pack(0x301FF, bytes(range(16)), digest(1), digest(2), 0, bytes(range(16, 32)))
    info = _TD_INFO.pack(0x10000000, 0x602E7, *(digest(number) for number in range(3, 12)))
    head = _MAC_STRUCT.pack(
        0x81, 0, 0, 0, bytes(16), hashlib.sha384(tcb).digest(), hashlib.sha384(info).digest(), b"d" * 64
    )
    return head + b"m" * 32 + tcb + bytes(17) + info


def test_a_report_parses_to_the_fields_it_was_made_of(made_report: bytes) -> None:
    report = parse_report(made_report)
    assert report.consistent
    assert (report.valid, report.attributes, report.xfam) == (0x301FF, 0x10000000, 0x602E7)
    assert (report.mrseam, report.mrsignerseam, report.mrtd, report.mrconfigid) == tuple(map(digest, (1, 2, 3, 4)))
    assert report.rtmrs == tuple(map(digest, (7, 8, 9, 10)))
    assert (report.servtd_hash, report.reportdata, report.mac) == (digest(11), b"d" * 64, b"m" * 32)
    assert parse_report(made_report.hex().encode()) == parse_report(base64.b64encode(made_report)) == report


@pytest.mark.parametrize(("offset", "field"), [(300, "tee_tcb_info_hash_matches"), (600, "tee_info_hash_matches")])
def test_a_changed_report_is_noticed(made_report: bytes, offset: int, field: str) -> None:
    changed = parse_report(made_report[:offset] + b"\xee" + made_report[offset + 1 :])
    assert not getattr(changed, field)
    assert not changed.consistent


def test_a_report_without_its_first_48_bytes_is_named(made_report: bytes) -> None:
    with pytest.raises(ReportError, match="offset 0"):
        parse_report(made_report[48:] + bytes(48))


def parses_as_the_verifier_parses_it(data: bytes, version: int, body_type: int) -> None:
    """Each field of a quote is what dcap-qvl reads, in each form in which a quote comes."""
    import dcap_qvl

    quote = parse_quote(data)
    assert (quote.header.version, quote.body_type) == (version, body_type)
    assert parse_quote(data.hex().encode()) == parse_quote(base64.b64encode(data)) == quote
    other = dcap_qvl.parse_quote(data).report
    body = quote.body
    assert (body.mrtd, body.mrconfigid, body.mrowner) == tuple(
        map(bytes, (other.mr_td, other.mr_config_id, other.mr_owner))
    )
    assert body.rtmrs == tuple(map(bytes, (other.rt_mr0, other.rt_mr1, other.rt_mr2, other.rt_mr3)))
    assert body.reportdata == bytes(other.report_data)
    assert body.xfam.to_bytes(8, "little") == bytes(other.xfam)
    json.dumps(quote.as_json())


@pytest.mark.parametrize(("asked", "version", "body_type"), [("4", 4, 2), ("5-1.0", 5, 2), ("5-1.5", 5, 3)])
def test_quotes_parse_as_the_verifier_parses_them(asked: str, version: int, body_type: int) -> None:
    parses_as_the_verifier_parses_it(quote_of(TdReportFields().pack(), asked), version, body_type)


def sgx_quote() -> bytes:
    """Version 3, TEE type 0 and the reserved bytes of an ECDSA quote of SGX."""
    header = struct.pack("<HHIHH16s20s", 3, 2, 0, 1, 1, bytes.fromhex("939a7233f79c4ca9940a0db3957f0607"), bytes(20))
    return header + bytes(384) + struct.pack("<I", 600) + bytes(600)


def test_an_sgx_quote_is_refused_as_such() -> None:
    with pytest.raises(QuoteError, match="SGX"):
        parse_quote(sgx_quote())


def test_a_quote_verifies_in_its_time_and_not_after() -> None:
    quote, now = parse_quote(QUOTE), int(time.time())
    verified = verify_quote(quote, collateral(), now, pki().root)
    assert verified.tcb_status == "UpToDate"
    assert violations(Policy(mrtd=quote.body.mrtd), quote.body, verified.tcb_status) == []
    assert violations(Policy(mrtd=digest(1), xfam=0), quote.body, "OutOfDate")[2].startswith("TCB status")
    with pytest.raises(VerificationError, match=r"(?i)expired"):
        verify_quote(quote, collateral(), now + 366 * 86400, pki().root)
    changed = bytearray(quote.raw)
    changed[300] ^= 1
    with pytest.raises(VerificationError):
        verify_quote(parse_quote(bytes(changed)), collateral(), now, pki().root)
    for bad in ("", "[]", "{}", collateral().replace('"pck_crl":', '"x":')):
        with pytest.raises(CollateralError):
            verify_quote(quote, bad, now, pki().root)


def test_a_ccel_leads_to_the_quote_of_its_guest() -> None:
    quote, table = parse_quote(QUOTE), ccel_table(0x1_0000)
    events = parse_event_log(LOG, table)
    assert replay(events) == quote.body.rtmrs
    assert not leads_to(replay(events[:-1]), quote.body.rtmrs)
    with pytest.raises(EventLogError):
        parse_table(table[:9] + bytes([table[9] ^ 1]) + table[10:])
    with pytest.raises(EventLogError, match="offset 0x"):
        parse_event_log(LOG[:-3])
    with pytest.raises(EventLogError, match="its CCEL table says 16"):
        parse_event_log(LOG, ccel_table(16))


def test_dstacks_log_leads_to_all_four_registers() -> None:
    log = json.dumps([
        {"imr": 0, "event_type": 4, "digest": sha384(bytes(4)).hex(), "event": "", "event_payload": "00000000"},
        dstack_event(), dstack_event(event="compose-hash", event_payload="c0ffee"),
    ]).encode()  # fmt: skip
    rtmr0 = sha384(bytes(48) + sha384(bytes(4)))
    first = sha384(bytes(48) + dstack_digest("app-id", b"\xde\xad"))
    rtmr3 = sha384(first + dstack_digest("compose-hash", b"\xc0\xff\xee"))
    quote = parse_quote(quote_of(report_with(log)))
    assert replay(parse_event_log(log)) == quote.body.rtmrs == (rtmr0, bytes(48), bytes(48), rtmr3)


def test_what_a_log_says_is_what_was_measured_where_the_digest_tells() -> None:
    assert [event.data_measured for event in parse_event_log(LOG)] == [True, None, True, True]
    forged = parse_event_log(LOG.replace(b"init=/bin/sh", b"init=/bin/zh"))
    assert replay(forged) == replay(parse_event_log(LOG))
    assert [event.number for event in forged if event.data_measured is False] == [3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), cut=st.floats(0, 1))
def test_damage_ends_in_the_documented_error(damage: list[tuple[float, int]], cut: float, made_report: bytes) -> None:
    quote = quote_of(TdReportFields().pack(), "5-1.5")
    dstack = json.dumps({"event_log": [dstack_event()] * 3, "quote": quote.hex()}).encode()

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, value in damage:
            changed[int(where * (len(data) - 1))] = value
        return bytes(changed if cut > 0.5 else changed[: int(2 * cut * len(data))])

    for parse, data, error in (
        (parse_event_log, LOG, EventLogError),
        (parse_event_log, dstack, EventLogError),
        (parse_quote, quote, QuoteError),
        (parse_report, made_report, ReportError),
    ):
        try:
            parsed = parse(damaged(data))
        except error:
            continue
        for each in parsed if isinstance(parsed, list) else [parsed]:
            assert isinstance(each, Quote | TdReport) or each.words.isprintable()
            json.dumps(each.as_json())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_end_in_the_documented_error(data: bytes) -> None:
    for parse, error in ((parse_event_log, EventLogError), (parse_quote, QuoteError), (parse_report, ReportError)):
        try:
            parse(data)
        except error:
            continue


def test_reading_a_quote_does_not_load_the_engine() -> None:
    code = "import sys, swtdx.cli.quote; sys.exit(any(m.startswith(('swtdx.cpu', 'swtdx.linux')) for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
