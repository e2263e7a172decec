# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes, TDREPORTs and event logs of real machines; and what becomes of them when they are damaged."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

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

VALID_AT = 1750377600
EXPIRED_AT = VALID_AT + 366 * 86400


@pytest.fixture(scope="session")
def vectors(shared_reference: Path) -> Path:
    return shared_reference / "vectors"


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


def test_the_published_report_lacks_its_first_48_bytes_and_is_right_with_them(vectors: Path) -> None:
    data = (vectors / "reports/go-tdx-guest_tdreport.dat").read_bytes()
    with pytest.raises(ReportError, match="offset 0"):
        parse_report(data)
    report = parse_report(bytes([0x81]) + bytes(47) + data[:976])
    assert report.tee_info_hash_matches
    assert report.valid == 0x1FF


@pytest.mark.parametrize(
    ("name", "version", "body_type", "mrtd"),
    [
        ("dcap-qvl_tdx_quote", 4, 2, "91eb2b44d141d4ec"),
        ("go-tdx-guest_cos113_quote.dat", 4, 2, "dae67181d3d65e07"),
        ("go-tdx-guest_spr_e4_v4.dat", 4, 2, "6363b8043668a3ad"),
        ("go-tdx-guest_v5_sample.dat", 5, 3, "7348651a34b2d2d3"),
    ],
)
def test_published_quotes_parse_as_the_verifier_parses_them(
    vectors: Path, name: str, version: int, body_type: int, mrtd: str
) -> None:
    import dcap_qvl  # type: ignore[import-untyped]

    data = (vectors / "quotes" / name).read_bytes()
    quote = parse_quote(data)
    assert (quote.header.version, quote.body_type) == (version, body_type)
    assert quote.body.mrtd.hex().startswith(mrtd)
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


def test_an_sgx_quote_is_refused_as_such(vectors: Path) -> None:
    with pytest.raises(QuoteError, match="SGX"):
        parse_quote((vectors / "quotes/dcap-qvl_sgx_quote").read_bytes())


@pytest.fixture
def genuine(vectors: Path) -> tuple[Quote, str]:
    quote = parse_quote((vectors / "quotes/dcap-qvl_tdx_quote").read_bytes())
    return quote, (vectors / "collateral/dcap-qvl_tdx_quote_collateral.json").read_text()


def test_a_genuine_quote_verifies_in_its_time_and_not_after(genuine: tuple[Quote, str]) -> None:
    quote, collateral = genuine
    verified = verify_quote(quote, collateral, VALID_AT)
    assert verified.tcb_status == "UpToDate"
    assert violations(Policy(mrtd=quote.body.mrtd), quote.body, verified.tcb_status) == []
    assert violations(Policy(mrtd=bytes(48), xfam=0), quote.body, "OutOfDate")[2].startswith("TCB status")
    with pytest.raises(VerificationError, match=r"(?i)expired"):
        verify_quote(quote, collateral, EXPIRED_AT)
    changed = bytearray(quote.raw)
    changed[300] ^= 1
    with pytest.raises(VerificationError):
        verify_quote(parse_quote(bytes(changed)), collateral, VALID_AT)
    for bad in ("", "[]", "{}", collateral.replace('"pck_crl":', '"x":')):
        with pytest.raises(CollateralError):
            verify_quote(quote, bad, VALID_AT)


def test_a_ccel_leads_to_the_quote_of_its_guest(vectors: Path) -> None:
    data = (vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat").read_bytes()
    table = (vectors / "ccel/go-tdx-guest_cos113_ccel_table.dat").read_bytes()
    quote = parse_quote((vectors / "quotes/go-tdx-guest_cos113_quote.dat").read_bytes())
    events = parse_event_log(data, table)
    assert len(events) == 43
    assert replay(events)[:3] == quote.body.rtmrs[:3]
    assert not leads_to(replay(events[:-1]), quote.body.rtmrs)
    with pytest.raises(EventLogError):
        parse_table(table[:9] + b"\0" + table[10:])
    with pytest.raises(EventLogError, match="offset 0x"):
        parse_event_log(data[:0x4600])


def test_dstacks_log_leads_to_all_four_registers(vectors: Path) -> None:
    data = (vectors / "dstack_quote-report.json").read_bytes()
    quote = parse_quote(json.loads(data)["quote"].encode())
    assert replay(parse_event_log(data)) == quote.body.rtmrs


def test_what_a_log_says_is_what_was_measured_where_the_digest_tells(vectors: Path) -> None:
    for name, told in (("ccel/go-tdx-guest_cos113_ccel_data.dat", 28), ("dstack_quote-report.json", 18)):
        verdicts = [event.data_measured for event in parse_event_log((vectors / name).read_bytes())]
        assert verdicts.count(True) == told  # of boot variables (3 and 2) the digest does not cover the name
        assert False not in verdicts
    data = (vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat").read_bytes()
    forged = parse_event_log(data.replace(b"init=/usr/lib/systemd/systemd", b"init=/usr/lib/systemd/syst3md"))
    assert replay(forged) == replay(parse_event_log(data))
    assert [event.number for event in forged if event.data_measured is False] == [32, 33, 34, 35, 36, 38, 40]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), cut=st.floats(0, 1))
def test_damage_ends_in_the_documented_error(
    vectors: Path, damage: list[tuple[float, int]], cut: float, made_report: bytes
) -> None:
    log = (vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat").read_bytes()[:0x4800]
    quote = (vectors / "quotes/go-tdx-guest_v5_sample.dat").read_bytes()
    dstack = (vectors / "dstack_quote-report.json").read_bytes()

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, value in damage:
            changed[int(where * (len(data) - 1))] = value
        return bytes(changed if cut > 0.5 else changed[: int(2 * cut * len(data))])

    for parse, data, error in (
        (parse_event_log, log, EventLogError),
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
