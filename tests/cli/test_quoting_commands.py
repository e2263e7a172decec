# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands pki, qgs, pccs, collateral, quote make and quote verify --root, as a person calls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from swtdx.attest.quote import parse_quote
from swtdx.cli.verdict import Verdict
from swtdx.quoting.collateral import SCENARIOS
from swtdx.quoting.machine_folder import report_key
from swtdx.quoting.pki import Pki, open_pki
from swtdx.vmm.qgs_socket import QuoteSocket, parse_address
from testing.tdreport import TdReportFields
from tests.cli.conftest import Command, Result


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "pki"


@pytest.fixture
def report(keys: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tdreport.bin"
    path.write_bytes(TdReportFields(key=report_key(keys)).pack())
    return path


def refused(result: Result, status: int, *words: str) -> None:
    """One sentence on stderr, and nothing else."""
    assert result.status == status, result
    assert result.err.count("\n") == 1
    assert result.err.startswith("swtdx: ")
    for word in words:
        assert word in result.err


def test_pki_makes_keys_once_and_shows_them(command: Command, keys: Path) -> None:
    first, again = (json.loads(command("pki", "--pki", keys, "--json").out) for _ in range(2))
    assert first == again
    assert first["root_ca"] == str(keys / "root-ca.pem")
    assert Path(first["root_ca"]).read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    shown = command("pki", "--pki", keys)
    assert shown.status == 0
    assert "protect nothing" in shown.out
    assert first["root_ca_sha256"] in shown.out
    assert command("pki", "--pki", keys, "--quiet").out == ""


def test_pki_of_a_seed_is_the_same_everywhere(command: Command, tmp_path: Path) -> None:
    options = ("--seed", "ci", "--ca", "processor", "--port", "9000", "--valid-until", "2040-01-01", "--json")
    one, other = (json.loads(command("pki", "--pki", tmp_path / name, *options).out) for name in "ab")
    assert one["root_ca_sha256"] == other["root_ca_sha256"]
    assert (one["ca"], one["collateral_service"]) == ("processor", "http://127.0.0.1:9000")
    assert one["valid_until"] == "2040-01-01T00:00:00Z"
    assert command("pki", "--pki", tmp_path / "a", *options).status == 0
    refused(command("pki", "--pki", tmp_path / "a", "--seed", "other"), Verdict.NO_INPUT, "another test PKI already")


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("2019-01-01", "is over"),
        ("0001-01-01", "is over"),
        ("0", "is over"),
        ("99999999999999", "later than any date"),
        ("9" * 5000, "seconds since 1970, or as in"),
        ("soon", "seconds since 1970, or as in"),
    ],
)
def test_keys_without_a_future_are_not_made(time: str, said: str, command: Command, tmp_path: Path) -> None:
    refused(command("pki", "--pki", tmp_path / "pki", "--valid-until", time), Verdict.USAGE, "--valid-until", said)
    assert not (tmp_path / "pki").exists()


def test_a_quote_is_made_verified_and_refused_under_intels_root(
    command: Command, keys: Path, report: Path, tmp_path: Path
) -> None:
    quote, collateral = tmp_path / "quote.bin", tmp_path / "tcb.json"
    assert command("quote", "make", report, "--pki", keys, "--output", quote) == Result(0, "", "")
    assert command("collateral", "--pki", keys, "--output", collateral) == Result(0, "", "")
    verify = ("quote", "verify", quote, "--collateral", collateral)
    for root in ("root-ca.pem", "root-ca.der"):
        result = command(*verify, "--root", keys / root)
        assert (result.status, result.err) == (0, "")
        assert "genuine under a swtdx test root, SHA-256" in result.out
        assert "not Intel's; TCB status UpToDate" in result.out
    shown = json.loads(command(*verify, "--root", keys / "root-ca.pem", "--json").out)
    assert shown["verified"]["root"].startswith("a swtdx test root")
    refused(command(*verify), Verdict.FAILED, "does not verify", "it is a test quote of swtdx's", "--root")
    old = tmp_path / "old.json"
    command("collateral", "--pki", keys, "--tcb-status", "outofdate", "--output", old)
    result = command("quote", "verify", quote, "--collateral", old, "--root", keys / "root-ca.pem")
    assert result.status == Verdict.POLICY
    assert "OutOfDate" in result.err


@pytest.mark.parametrize("piped", ["file", "collateral", "policy"])
def test_each_input_of_an_appraisal_may_be_a_pipe(
    piped: str, command: Command, keys: Path, report: Path, tmp_path: Path
) -> None:
    """A pipe can be read once."""
    inputs = {name: tmp_path / name for name in ("file", "collateral", "policy")}
    inputs["policy"].write_text("[tcb]\nmaximum_age_days = 36500\n")
    assert command("quote", "make", report, "--pki", keys, "--output", inputs["file"]).status == 0
    assert command("collateral", "--pki", keys, "--output", inputs["collateral"]).status == 0
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(inputs[piped].read_bytes())  # less than a pipe holds
    inputs[piped] = Path(f"/dev/fd/{reader}")
    options = ("--collateral", inputs["collateral"], "--policy", inputs["policy"], "--root", keys / "root-ca.pem")
    result = command("quote", "verify", inputs["file"], *options)
    os.close(reader)
    assert (result.status, result.err) == (0, "")


def test_quote_make_prints_hexadecimal_or_json(command: Command, keys: Path, report: Path) -> None:
    printed = command("quote", "make", report, "--pki", keys, "--quote-version", "5-1.5")
    quote = parse_quote(bytes.fromhex(printed.out.strip()))
    assert (quote.header.version, quote.body_type) == (5, 3)
    shown = json.loads(command("quote", "make", report, "--pki", keys, "--json").out)
    assert shown["header"]["version"] == 4


def test_quote_make_builds_a_td_where_no_report_is_given(command: Command, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "quote.bin"
    made = command("quote", "make", "--pki", keys, "--reportdata", "6e6f6e6365", "--module-updated", "-o", path)
    assert made == Result(0, "", "")
    body = parse_quote(path.read_bytes()).body
    assert body.reportdata == b"nonce".ljust(64, b"\0")
    assert body.tee_tcb_svn2 is not None
    assert body.tee_tcb_svn2 > body.tee_tcb_svn


def test_quote_make_refuses(command: Command, keys: Path, report: Path, tmp_path: Path) -> None:
    make = ("quote", "make", "--pki", keys)
    forged = tmp_path / "forged.bin"
    forged.write_bytes(bytes([*report.read_bytes()[:600], 1, *report.read_bytes()[601:]]))
    refused(command(*make, forged), Verdict.FAILED, str(forged), "TEE_INFO_HASH")
    short = tmp_path / "short.bin"
    short.write_bytes(report.read_bytes()[:100])
    refused(command(*make, short), Verdict.FAILED, "a TDREPORT has 1024 bytes")
    refused(command(*make, tmp_path / "none"), Verdict.NO_INPUT, "cannot be read")
    refused(command(*make, report, "--reportdata", "00"), Verdict.USAGE, "in the TDREPORT already")
    refused(command(*make, "--reportdata", "xy"), Verdict.USAGE, "not hexadecimal")
    refused(command(*make, "--reportdata", "00" * 65), Verdict.USAGE, "65 bytes")
    refused(command(*make, report, "--output", report), Verdict.USAGE, "same file")
    assert len(report.read_bytes()) == 1024


@pytest.mark.parametrize(
    "arguments",
    [("pki",), ("collateral",), ("qgs", "--timeout", "0"), ("pccs", "--timeout", "0"), ("quote", "make")],
    ids=" ".join,
)
def test_a_folder_that_is_none_of_ours_is_refused(arguments: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    name, *rest = arguments
    command_line = (name, "make", "--pki", foreign) if name == "quote" else (name, "--pki", foreign, *rest)
    refused(command(*command_line), Verdict.NO_INPUT, "holds something else (letter.txt)")
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]
    file = tmp_path / "file"
    file.write_text("")
    command_line = tuple(file if each == foreign else each for each in command_line)
    refused(command(*command_line), Verdict.NO_INPUT, str(file))


def test_expired_keys_are_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    open_pki(folder, replace(Pki.new(), end=datetime(2021, 1, 1)), now=datetime(2020, 6, 1))
    for name in ("pki", "collateral"):
        refused(command(name, "--pki", folder), Verdict.NO_INPUT, "expired at 2021-01-01")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("collateral", "--tcb-status", "Fine"), 1, "must be one of UpToDate"),
        (("collateral", "--at", "tomorrow"), 1, "--at tomorrow"),
        (("collateral", "--at", "9" * 30), 1, "--at 999"),
        (("collateral", "--at", "9999-12-31"), 1, "--at 9999-12-31"),
        (("collateral", "--at", "0001-01-01"), 1, "--at 0001-01-01"),
        (("collateral", "--responses", "x", "--json"), 1, "omit --output"),
        (("collateral", "--output", "/nowhere/x"), 1, "/nowhere"),
        (("pki", "--valid-until", "soon"), 1, "--valid-until soon"),
        (("pki", "--port", "70000"), 1, "--port"),
        (("pki", "--ca", "root"), 1, "--ca"),
        (("pccs", "--host", "0.0.0.0"), 1, "loopback"),
        (("pccs", "--host", "example.com"), 1, "loopback"),
        (("pccs", "--https", "--as-intel"), 1, "--https and --as-intel"),
        (("pccs", "--tcb-status", "x"), 1, "--tcb-status x"),
        (("pccs", "--script", "/nowhere"), 3, "/nowhere cannot be read"),
        (("pccs", "--script", "/dev/null"), 3, "no line SECONDS STATUS"),
        (("pccs", "--port", "0", "--quiet", "--", "/nowhere/command"), 3, "/nowhere/command cannot be run"),
        (("qgs", "nonsense"), 1, "not an address"),
        (("qgs", "unix:" + "x" * 108), 1, "at most 107 bytes"),
        (("qgs", "/nowhere/qgs.socket"), 1, "there is no folder /nowhere"),
        (("qgs", "/dev/null"), 1, "is not a socket"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], status: int, said: str, command: Command, keys: Path
) -> None:
    refused(command(arguments[0], "--pki", keys, *arguments[1:]), status, said)


def test_collateral_as_responses(command: Command, keys: Path, tmp_path: Path) -> None:
    assert command("collateral", "--pki", keys, "--responses", tmp_path / "pcs").status == 0
    assert {path.name for path in (tmp_path / "pcs").iterdir()} == {
        *{"tcb_info.json", "qe_identity.json", "tcb_signing_chain.pem", "root_ca.crl.der"},
        *{"pck_platform.crl.der", "pck_processor.crl.der", "pck_platform_chain.pem", "pck_processor_chain.pem"},
    }
    assert json.loads((tmp_path / "pcs" / "tcb_info.json").read_text())["tcbInfo"]["id"] == "TDX"


def test_roots_that_are_none(command: Command, keys: Path, report: Path, tmp_path: Path) -> None:
    quote, collateral = tmp_path / "quote.bin", tmp_path / "tcb.json"
    command("quote", "make", report, "--pki", keys, "-o", quote)
    command("collateral", "--pki", keys, "-o", collateral)
    verify = ("quote", "verify", quote, "--collateral", collateral, "--root")
    refused(command(*verify, report), Verdict.NO_INPUT, "not a certificate in PEM or DER")
    refused(command(*verify, tmp_path / "none"), Verdict.NO_INPUT, "cannot be read")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(parse_quote(quote.read_bytes()).signature.certification_data.rstrip(b"\0"))
    refused(command(*verify, chain), Verdict.NO_INPUT, "3 certificates, where one root is wanted")
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(chain.read_bytes().partition(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n")
    refused(command(*verify, leaf), Verdict.NO_INPUT, "not the certificate of a CA")
    command("pki", "--pki", tmp_path / "other")
    result = command(*verify, tmp_path / "other" / "root-ca.pem")
    refused(result, Verdict.FAILED, "does not verify")


def test_every_status_is_in_the_help(command: Command) -> None:
    shown = command("pccs", "--help").out
    assert [name for name in SCENARIOS if name not in shown] == []


class Service:
    """A command that serves, and what it printed once it did."""

    def __init__(self, *arguments: str | Path) -> None:
        line = [sys.executable, "-m", "swtdx", *map(str, arguments), "--json", "--timeout", "120"]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def service() -> Any:
    with ExitStack() as started:

        def start(*arguments: str | Path) -> Service:
            made = Service(*arguments)
            started.callback(made.process.communicate)
            started.callback(made.process.kill)
            return made

        yield start


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_qgs_serves_until_a_signal(
    number: signal.Signals, service: Callable[..., Service], keys: Path, tmp_path: Path
) -> None:
    path = tmp_path / "qgs.socket"
    qgs = service("qgs", "--pki", keys, path, "127.0.0.1:0")
    assert qgs.ready["addresses"][0] == f"unix:{path}"
    report = TdReportFields(key=report_key(keys)).pack()
    for address in qgs.ready["addresses"]:
        assert parse_quote(QuoteSocket(parse_address(address)).quote(report)).body_type == 2
    status, said = qgs.end(number)
    assert status == 0
    assert "a quote of" in said
    assert not path.exists()


@pytest.mark.slow
def test_qgs_where_one_serves_already(
    service: Callable[..., Service], command: Command, keys: Path, tmp_path: Path
) -> None:
    path = tmp_path / "qgs.socket"
    service("qgs", "--pki", keys, path)
    refused(command("qgs", "--pki", keys, path), Verdict.USAGE, "another service listens there")
    assert path.is_socket()


@pytest.mark.slow
def test_pccs_serves_and_a_port_in_use_is_named(service: Callable[..., Service], command: Command, keys: Path) -> None:
    pccs = service("pccs", "--pki", keys, "--port", "0", "--tcb-status", "Revoked")
    url = pccs.ready["url"]
    with urllib.request.urlopen(f"{url}/tdx/certification/v4/tcb?fmspc=737774647800", timeout=30) as response:
        assert b'"tcbStatus":"Revoked"' in response.read()
    port = url.rpartition(":")[2]
    refused(command("pccs", "--pki", keys, "--port", port), Verdict.USAGE, f"port {port}", "in use", "--port")
    assert pccs.end(signal.SIGTERM)[0] == 0


def test_pccs_serves_while_a_command_runs(command: Command, keys: Path, tmp_path: Path) -> None:
    code = "import os, sys, urllib.request as u; u.urlopen(os.environ['PCCS_URL']); sys.exit(7)"
    result = command("pccs", "--pki", keys, "--port", "0", "--quiet", "--", sys.executable, "-c", code)
    assert (result.status, result.err) == (7, "")
    late = command("pccs", "--pki", keys, "--port", "0", "--quiet", "--timeout", "0.1", "--", "sleep", "60")
    refused(late, Verdict.FAILED, "sleep has not ended after 0.1 s")


def test_https_and_the_proxy_leave_their_ca_in_the_folder(command: Command, keys: Path) -> None:
    for option in ("--https", "--as-intel"):
        ended = command("pccs", "--pki", keys, "--port", "0", option, "--timeout", "0", "--json")
        assert ended.status == 0
        assert json.loads(ended.out)["https_ca"] == str(keys / "https-ca.pem")
    assert (keys / "https-ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")


def test_a_ca_that_cannot_be_kept_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    command("pki", "--pki", folder)
    (folder / "https-ca.pem").mkdir()
    refused(command("pccs", "--pki", folder, "--port", "0", "--https", "--timeout", "0"), Verdict.NO_INPUT, "https-ca")


def test_the_ca_in_the_folder_is_that_of_its_keys(command: Command, tmp_path: Path) -> None:
    """New keys leave no CA of the old ones for clients to trust."""
    kept = []
    for seed in "ab":
        command("pki", "--pki", tmp_path / "pki", "--seed", seed)
        command("pccs", "--pki", tmp_path / "pki", "--port", "0", "--https", "--timeout", "0")
        kept.append((tmp_path / "pki" / "https-ca.pem").read_bytes())
        (tmp_path / "pki" / "pki.json").unlink()
    assert kept[0] != kept[1]


def test_run_refuses_contradictions(command: Command, tmp_path: Path) -> None:
    for arguments, said in (
        (("--quotes", "off", "--quote-generation-socket", "/x"), "contradict"),
        (("--quote-generation-socket", "nonsense"), "not an address"),
        (("--quote-generation-socket", "/" + "x" * 200), "at most 107 bytes"),
        (("--kvm", "host", "--quotes", "on"), "quoting enclave of its own"),
        (("--dialect", "v10", "--module-version", "1.0", "--module-updated"), "do not show an update"),
        (("--pki", os.devnull), "/dev/null"),
    ):
        refused(command("run", "--firmware", tmp_path / "none.fd", *arguments), 2, said)
