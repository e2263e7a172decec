# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes, TDREPORTs, event logs and collateral of real machines and of other people's tools.

Why here: Intel's keys signed the genuine quotes, and real firmware, kernels and agents wrote the logs. The evidence of
tests/attest is made from the formats as this project understands them; only these files show that it understands them
as the machines do. They identify machines, so they are not part of the repository.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from swtdx.attest.event_log import parse_event_log
from swtdx.attest.pck import pck_of
from swtdx.attest.policy import Policy, violations
from swtdx.attest.quote import QuoteError, parse_quote
from swtdx.attest.replay import leads_to, replay
from swtdx.attest.report import ReportError, parse_report
from swtdx.attest.tcb_levels import tcb_result
from swtdx.attest.verify import INTEL_ROOT_SHA256, VerificationError, verify_quote
from tests.attest.test_attestation_formats import parses_as_the_verifier_parses_it
from tests.cli.conftest import Command

VALID_AT = 1750377600
EXPIRED_AT = VALID_AT + 366 * 86400
DEBUG_AT = 1688173200


def test_a_published_report_lacks_its_first_48_bytes_and_is_right_with_them(vectors: Path) -> None:
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
def test_quotes_parse_as_the_verifier_parses_them(
    vectors: Path, name: str, version: int, body_type: int, mrtd: str
) -> None:
    data = (vectors / "quotes" / name).read_bytes()
    parses_as_the_verifier_parses_it(data, version, body_type)
    assert parse_quote(data).body.mrtd.hex().startswith(mrtd)


def test_a_genuine_quote_verifies_in_its_time_and_not_after(vectors: Path) -> None:
    quote = parse_quote((vectors / "quotes/dcap-qvl_tdx_quote").read_bytes())
    collateral = (vectors / "collateral/dcap-qvl_tdx_quote_collateral.json").read_text()
    verified = verify_quote(quote, collateral, VALID_AT)
    assert verified.tcb_status == "UpToDate"
    assert violations(Policy(mrtd=quote.body.mrtd), quote.body, verified.tcb_status) == []
    with pytest.raises(VerificationError, match=r"(?i)expired"):
        verify_quote(quote, collateral, EXPIRED_AT)
    with pytest.raises(QuoteError, match="SGX"):
        parse_quote((vectors / "quotes/dcap-qvl_sgx_quote").read_bytes())


def test_a_genuine_quote_of_a_debug_td_verifies_and_breaks_the_policy(cases: Path) -> None:
    quote = parse_quote((cases / "05_debug_quote.dat").read_bytes())
    verified = verify_quote(quote, (cases / "05_collateral.json").read_text(), DEBUG_AT)
    assert verified.tcb_status == "UpToDate"
    assert any("DEBUG" in each for each in violations(Policy(), quote.body, verified.tcb_status))
    pck = pck_of(quote)
    assert pck is not None
    shown = pck.as_json()
    assert (shown["fmspc"], shown["ca"], shown["pcesvn"]) == ("50806F000000", "platform", 11)


def test_intels_root_is_the_one_that_a_genuine_quote_ends_in(cases: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    quote = parse_quote((cases / "05_debug_quote.dat").read_bytes())
    chain = x509.load_pem_x509_certificates(quote.signature.certification_data.rstrip(b"\0"))
    assert chain[-1].fingerprint(SHA256()).hex() == INTEL_ROOT_SHA256


def test_our_status_is_that_of_the_library_for_quotes_that_others_made(shared_reference: Path) -> None:
    for case in json.loads((shared_reference / "attestation" / "vectors.json").read_text())["cases"]:
        quote, collateral = parse_quote(bytes.fromhex(case["quote_hex"])), case["collateral"]
        content: dict[str, Any] = json.loads(collateral) if isinstance(collateral, str) else collateral
        pck = pck_of(quote)
        assert pck is not None
        ours = tcb_result(quote, pck, content["tcb_info"], content["qe_identity"])
        theirs = verify_quote(quote, json.dumps(content), case["now"], bytes.fromhex(case["root_der_hex"]))
        assert ours.status == theirs.tcb_status == case["status"], case["name"]
        with pytest.raises(VerificationError, match=r"not Intel's, SHA-256"):
            verify_quote(quote, json.dumps(content), case["now"])


def test_real_logs_lead_to_the_quotes_of_their_guests(vectors: Path) -> None:
    data = (vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat").read_bytes()
    table = (vectors / "ccel/go-tdx-guest_cos113_ccel_table.dat").read_bytes()
    quote = parse_quote((vectors / "quotes/go-tdx-guest_cos113_quote.dat").read_bytes())
    events = parse_event_log(data, table)
    assert len(events) == 43
    assert replay(events)[:3] == quote.body.rtmrs[:3]
    assert not leads_to(replay(events[:-1]), quote.body.rtmrs)
    dstack = (vectors / "dstack_quote-report.json").read_bytes()
    assert replay(parse_event_log(dstack)) == parse_quote(json.loads(dstack)["quote"].encode()).body.rtmrs


def test_what_real_logs_say_is_what_was_measured_where_the_digest_tells(vectors: Path) -> None:
    for name, told in (("ccel/go-tdx-guest_cos113_ccel_data.dat", 28), ("dstack_quote-report.json", 18)):
        verdicts = [event.data_measured for event in parse_event_log((vectors / name).read_bytes())]
        assert verdicts.count(True) == told  # of boot variables (3 and 2) the digest does not cover the name
        assert False not in verdicts
    data = (vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat").read_bytes()
    forged = parse_event_log(data.replace(b"init=/usr/lib/systemd/systemd", b"init=/usr/lib/systemd/syst3md"))
    assert replay(forged) == replay(parse_event_log(data))
    assert [event.number for event in forged if event.data_measured is False] == [32, 33, 34, 35, 36, 38, 40]


VERIFY_DEBUG = "quote verify 05_debug_quote.dat --collateral 05_collateral.json --at 2023-07-01T01:00:00Z"
HANDED = {
    "01 forged RTMR3 log": [
        ("replay 01_honest.json --quote 01_quote.bin", 0, "RTMR3"),
        ("replay 01_forged_compose_hash.json --quote 01_quote.bin", 5, "does not lead to RTMR3"),
    ],
    "02 dstack's log format": [
        ("replay 02_digest_stripped.json --quote 01_quote.bin", 0, "compose-hash"),
        ("replay 02_payload_stripped.json --quote 01_quote.bin", 0, "payload not in the log"),
        ("replay 02_dstack_v2.json", 0, "[measured]"),
    ],
    "03 words without a digest": [
        ("replay 03_lie_aael.bin", 5, "NOT what was measured"),
        ("replay 03_lie_boot2.bin", 5, "NOT what was measured"),
        ("replay 03_boot_renamed.bin", 0, "contents only, not the name"),
        ("replay 03_boot_honest.bin", 0, "contents only, not the name"),
    ],
    "04 words of more producers": [
        ("replay 04_uki_utf16.bin", 0, ".linux"),
        ("replay 04_uki_utf16.bin", 0, "loader.conf"),
        ("replay 04_uki_utf16.bin", 0, "kernel_cmdl"),
        ("replay 04_post_code.bin", 0, "ACPI DATA"),
        ("replay 04_tdshim.bin", 0, "td_payload_info: root="),
        ("replay 04_grub_nul.bin", 0, "grub_cmd set timeout=1"),
    ],
    "05 policy and genuineness": [
        (VERIFY_DEBUG, 4, "debugged (DEBUG)"),
        (f"{VERIFY_DEBUG} --allow-debug", 0, "genuine"),
    ],
    "06 reasons with values": [
        ("quote verify 06_no_level_quote.dat --collateral 06_collateral.json --at 1771500000", 2, "90C06F000000"),
        (
            "quote verify 06_no_level_quote.dat --collateral 06_collateral.json --at 1771500000",
            2,
            "SGX component 8",
        ),
    ],
    "07 forms of a quote": [
        ("quote parse 07_armoured.pem", 0, "mrtd"),
        ("quote parse 07_array.json", 0, "mrtd"),
        ("quote parse 07_bom.txt", 0, "mrtd"),
        ("quote parse 07_td_quote.json", 0, "mrtd"),
        ("quote parse 07_first4missing.bin", 2, "first 4 bytes are missing"),
    ],
    "08 Azure's HCL report": [("report parse 08_hcl-report.bin", 0, "runtime_claims_bound: True")],
    "09 IMA and separators": [
        ("replay 09_ccel.bin --ima 09_ima.txt --quote 09_quote.bin", 0, "boot_aggregate"),
        ("replay 09_dup_separator.bin", 0, "2 separators"),
    ],
    "10 another kind of file": [
        ("quote parse 10_tdreport.bin", 2, "this is a TDREPORT: read it with swtdx report parse"),
    ],
}


@pytest.mark.parametrize("kind", HANDED)
def test_evidence_in_the_forms_of_other_tools(cases: Path, command: Command, kind: str) -> None:
    for line, status, said in HANDED[kind]:
        words = [str(cases / word) if (cases / word).exists() else word for word in line.split()]
        result = command(*words)
        assert result.status == status, (line, result.err)
        assert said in result.out + result.err, line


def test_forms_of_a_real_quote_are_one(vectors: Path) -> None:
    data = (vectors / "quotes/dcap-qvl_tdx_quote").read_bytes()
    assert parse_quote(data.hex().encode()) == parse_quote(base64.b64encode(data)) == parse_quote(data)
