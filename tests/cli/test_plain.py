# SPDX-License-Identifier: GPL-2.0-or-later
"""A plain command line is read as typer reads it, and without typer; every other is left to typer."""

from __future__ import annotations

import random
import ssl
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from swtdx.cli.declaration import for_typer
from swtdx.cli.plain import COMMANDS, plain_call
from swtdx.quoting.machine_folder import default_folder, report_key
from testing.evidence import collateral, pki, quote_of
from testing.tdreport import TdReportFields
from testing.tdvf_image import image_with

WORDS = {
    "run": [
        *("--memory", "1G", "-m", "--cpus", "4", "65", "--vm-type", "default", "--kernel", "k", "--from", "f"),
        *("--inject", "a: b @1", "--inject", "c: d", "--lie", "any", "--disk", "d,ro", "--rng", "--lint", "--append="),
        *("--json", "j", "--trace-format", "chrome", "-q", "-v", "-smp", "2", "--no-rbp-mod", "--timeout=5", "extra"),
        *("--debug-td", "--attributes", "--on-panic", "continue", "--gdb", ":1", "--record", "--", "--help", "-2"),
    ],
    "measure": [
        *("x.fd", "--order", "region", "page", "--memory", "1G", "--kernel", "k", "--cpus", "4", "99", "--json", "-q"),
        "-",
    ],
    "replay": ["log", "--ima", "i", "--ima-rtmr", "3", "--quote", "q", "--json", "--quiet", "-q", "extra", "--nothing"],
    "quote parse": ["q", "--json", "-q", "-jq", "--js", "-"],
    "quote verify": [
        *("q", "--collateral", "c", "--mrtd", "aa", "--mrtd", "bb", "--allow-debug", "--at", "5", "--json", "--at=5"),
        *("--tcb-status", "UpToDate", "--mrtd=", "--no-json", "--", "--xfam", "-5"),
    ],
    "report parse": ["r", "--json", "-q", "--version"],
}  # fmt: skip


_MISTAKE: Any = typer.BadParameter.__bases__[0]
"""What typer raises for a command line that it does not accept."""


def as_typer_reads(words: tuple[str, ...], arguments: list[str]) -> dict[str, Any] | None:
    """What typer would call the command with; None if it would not."""
    module, name = COMMANDS[words]
    called: list[dict[str, Any]] = []
    command = for_typer(getattr(import_module(module), name))
    signature = command.__signature__  # type: ignore[attr-defined]

    def record(**named: Any) -> None:
        called.append(named)

    record.__signature__ = signature  # type: ignore[attr-defined]
    record.__annotations__ = command.__annotations__
    app = typer.Typer()
    app.command()(record)
    try:
        app(arguments, standalone_mode=False)
    except _MISTAKE:
        return None
    return called[0] if called else None


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_is_plain_is_read_as_typer_reads_it(words: tuple[str, ...]) -> None:
    choose = random.Random(str(words))
    vocabulary = WORDS[" ".join(words)]
    plain = 0
    for _ in range(150):
        arguments = choose.choices(vocabulary, k=choose.randrange(5))
        if choose.random() < 0.5:  # else most have no file
            arguments.insert(0, vocabulary[0])
        if words == ("quote", "verify") and choose.random() < 0.7:
            arguments += ["--collateral", "c"]
        call = plain_call([*words, *arguments])
        if call is None:
            continue
        plain += 1
        assert call.keywords == as_typer_reads(words, arguments), arguments  # type: ignore[attr-defined]
    assert plain > 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", "--help"], ["measure", "x", "y"], ["measure", "x", "--order", "both"],
        ["measure", "x", "--cpus", "65"],
        ["measure", "x", "--memory"], ["measure", "x", "--memory", "1G", "--memory", "2G"], ["measure", "x", "-qq"],
        ["quote", "verify", "x"], ["quote"], ["quote", "sign"], ["exec"], [],
        ["run", "-smp", "2"], ["run", "--until", ""], ["run", "--cpus", "65"], ["run", "firmware"], ["replay"],
        ["replay", ""],
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_typer(arguments: list[str]) -> None:
    assert plain_call(arguments) is None


def modules_of(*arguments: str | Path) -> set[str]:
    """Which modules a command has loaded when it ends."""
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = {['swtdx', *map(str, arguments)]!r}\n"
        "from swtdx.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        lambda firmware: ["--version"],
        lambda firmware: ["measure", firmware],
        lambda firmware: ["replay", firmware, "--json"],
        lambda firmware: ["quote", "parse", firmware],
        lambda firmware: ["quote", "verify", firmware, "--collateral", firmware],
        lambda firmware: ["report", "parse", firmware],
    ],
)
def test_a_plain_command_loads_neither_typer_nor_the_machine(
    firmware: Path, arguments: Callable[[Path], list[str]]
) -> None:
    loaded = modules_of(*arguments(firmware))
    assert "swtdx" in loaded
    too_much = {"typer", "pydantic", "rich", "swtdx.machine", "swtdx.vmm", "swtdx.linux", "swtdx.seam", "unicorn"}
    too_much |= {"importlib.metadata", "email", "socket", "zipfile", "uuid", "platform", "cryptography"}
    assert not too_much & loaded


UNUSED = (
    *("swtdx.vmm.gdb", "swtdx.trace.", "swtdx.inject", "swtdx.lint", "swtdx.lying", "swtdx.fuzzing"),
    *("swtdx.cli.saved_machine", "swtdx.cli.recorded_run", "swtdx.explain", "swtdx.linux.arch.x86.kvm.emulate"),
    *("swtdx.cpu.watched_context", "swtdx.seam.traced_module", "swtdx.uapi.traced_kernel", "swtdx.linux.traced_ops"),
    *("swtdx.image.linux_image", "swtdx.image.boot_protocol", "swtdx.image.shim", "swtdx.image.smbios", "swtdx.attest"),
    *("swtdx.vmm.disk_image", "swtdx.vmm.qgs", "swtdx.vmm.kernel_entry", "swtdx.linux.arch.x86.kvm.vmx.tdx_debug"),
    *("typer", "rich", "socket", "tempfile", "importlib.resources", "gzip", "uuid", "platform", "calendar", "random"),
    "concurrent",
)  # fmt: skip
"""What a run needs for an option that it is not given, or to explain a failure."""


def test_a_plain_run_loads_no_more_than_it_uses(tmp_path: Path) -> None:
    firmware = tmp_path / "loop.fd"
    firmware.write_bytes(image_with(content=b"\xeb\xfe"))  # JMP to itself
    report_key(default_folder())  # made by the first run only
    loaded = modules_of("run", "--firmware", firmware, "--timeout", "0.01")
    assert "swtdx.machine" in loaded
    assert not [name for name in sorted(loaded) if name.startswith(UNUSED) and name != "swtdx.trace.format"]


@pytest.mark.parametrize("rest", [[], ["--policy"]], ids=["options", "policy"])
def test_a_quote_is_verified_without_dataclasses(rest: list[str], tmp_path: Path) -> None:
    """With `inspect`, which they import, they take two thirds of what Python itself takes to start."""
    quote, facts, root, policy = (tmp_path / name for name in ("quote.bin", "collateral.json", "root.pem", "td.toml"))
    quote.write_bytes(quote_of(TdReportFields().pack()))
    facts.write_text(collateral())
    root.write_text(ssl.DER_cert_to_PEM_cert(pki().root))
    policy.write_text('[tcb]\nstatuses = ["UpToDate"]\n')
    policy_given = [policy] if rest else []
    loaded = modules_of("quote", "verify", quote, "--collateral", facts, "--root", root, *rest, *policy_given)
    assert "swtdx.attest.verify" in loaded
    assert not {"dataclasses", "inspect", "ast"} & loaded
    assert not {"dataclasses", "inspect", "ast"} & modules_of("quote", "parse", quote)


def test_dcap_qvl_is_used_without_what_its_package_loads() -> None:
    script = (
        "import sys\nfrom swtdx.attest.qvl import library\nfound = library()\n"
        "assert 'importlib.metadata' not in sys.modules, 'loaded'\n"
        "import dcap_qvl\nassert dcap_qvl.verify is found.verify and dcap_qvl.Quote is found.Quote\n"
        "assert dcap_qvl.__version__ and dcap_qvl.get_collateral_and_verify\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_dcap_qvl_that_is_loaded_already_is_used() -> None:
    script = "import dcap_qvl\nfrom swtdx.attest.qvl import library\nassert library().verify is dcap_qvl.verify\n"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_quote_is_judged_without_loading_cryptography(trusted: bool, tmp_path: Path) -> None:
    """Whichever root is trusted, and whether the quote verifies or not."""
    quote, facts, root = (tmp_path / name for name in ("quote.bin", "collateral.json", "root.pem"))
    quote.write_bytes(quote_of(TdReportFields().pack()))
    facts.write_text(collateral())
    root.write_text(ssl.DER_cert_to_PEM_cert(pki().root))
    loaded = modules_of("quote", "verify", quote, "--collateral", facts, *(("--root", root) if trusted else ()))
    assert "swtdx.attest.verify" in loaded
    assert not {name for name in loaded if name.startswith(("cryptography", "asn1crypto"))}


def test_a_policy_without_rules_for_events_loads_nothing_of_event_logs(tmp_path: Path) -> None:
    quote, facts, root, policy = (tmp_path / name for name in ("quote.bin", "collateral.json", "root.pem", "td.toml"))
    quote.write_bytes(quote_of(TdReportFields().pack()))
    facts.write_text(collateral())
    root.write_text(ssl.DER_cert_to_PEM_cert(pki().root))
    policy.write_text('[tcb]\nstatuses = ["UpToDate"]\n')
    loaded = modules_of("quote", "verify", quote, "--collateral", facts, "--root", root, "--policy", policy)
    assert "swtdx.attest.appraisal" in loaded
    assert not {"swtdx.attest.event_log", "swtdx.attest.event_digest", "swtdx.attest.event_words"} & loaded


def test_intels_root_is_named_without_loading_cryptography() -> None:
    script = "import sys\nfrom swtdx.attest.verify import root_name\nroot_name(None)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "cryptography" not in done.stdout.split()
