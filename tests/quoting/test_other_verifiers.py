# SPDX-License-Identifier: GPL-2.0-or-later
"""Verifiers of others, unchanged: they accept our quotes under the test root, and refuse them under Intel's.

``script/verifiers`` fetches them and prints their folder; $SWTDX_VERIFIERS names another one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swtdx.quoting.certificates import Role
from swtdx.quoting.enclave import MacCheck, QuotingEnclave
from swtdx.quoting.pccs import CollateralService, PccsServer
from swtdx.quoting.pki import Pki
from swtdx.quoting.tls import https_ca
from testing.tdreport import UPDATED_SVN, TdReportFields
from tests.quoting.test_collateral import ACCEPTED

NOT_JUDGED_BY_NPM = {
    "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded", "ModuleOutOfDate", "ModuleRevoked", "CRLExpired",
    "Expired", "TCBSigningRevoked", "PCKRevoked", "CARevoked",
}  # fmt: skip
"""It checks no module identity, no dates of CRLs and not all revocations, so it cannot be an oracle for these."""
NPM = """
const { QuoteVerifier, getCollateral, verify } = require('@phala/dcap-qvl');
(async () => {
  const asked = JSON.parse(process.argv[1]), found = [];
  const root = Buffer.from(asked.root, 'hex'), now = asked.now;
  for (const hex of asked.quotes) {
    const quote = Buffer.from(hex, 'hex');
    const outcome = async (judge) => {
      try { return (await judge(await getCollateral(asked.url, quote))).status; }
      catch (error) { return 'refused: ' + error; }
    };
    found.push([
      await outcome((collateral) => new QuoteVerifier(root).verify(quote, collateral, now)),
      await outcome((collateral) => verify(quote, collateral, now)),
    ]);
  }
  console.log(JSON.stringify(found));
})();
"""


@pytest.fixture(scope="module")
def verifiers() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SWTDX_VERIFIERS") or cache / "swtdx" / "verifiers")


def judged_by_npm(folder: Path, url: str, pki: Pki, quotes: list[bytes]) -> list[list[str]]:
    asked = {"url": url, "root": pki.root.hex(), "quotes": [quote.hex() for quote in quotes], "now": int(time.time())}
    done = subprocess.run(
        ["node", "-e", NPM, json.dumps(asked)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def npm(verifiers: Path) -> Path:
    if shutil.which("node") is None:
        pytest.skip("NO NODE.JS HERE: not shown that @phala/dcap-qvl accepts test quotes under the test root alone")
    if not (verifiers / "node_modules/@phala/dcap-qvl").is_dir():
        pytest.skip("NO @phala/dcap-qvl: script/verifiers fetches it; not shown that it accepts test quotes")
    return verifiers


@pytest.mark.slow
def test_npm_accepts_quotes_under_the_test_root_alone(npm: Path, quote_of: Callable[..., bytes], pki: Pki) -> None:
    quotes = [quote_of(), quote_of("5-1.0"), quote_of("5-1.5"), quote_of(svn2=UPDATED_SVN)]
    with PccsServer(CollateralService(pki)) as server:
        found = judged_by_npm(npm, server.url, pki, quotes)
        assert [ours for ours, _ in found] == ["UpToDate"] * len(quotes)
        assert all(intels.startswith("refused: ") for _, intels in found)
        other = judged_by_npm(npm, server.url, Pki.new("another"), quotes[:1])
        assert other[0][0].startswith("refused: ")


@pytest.mark.slow
@pytest.mark.parametrize("status", sorted({*ACCEPTED, "Revoked", "QERevoked", "NoLevel"} - NOT_JUDGED_BY_NPM))
def test_npm_comes_to_the_status(status: str, npm: Path, quote_of: Callable[..., bytes], pki: Pki) -> None:
    with PccsServer(CollateralService(pki, status)) as server:
        ((ours, intels),) = judged_by_npm(npm, server.url, pki, [quote_of()])
    assert intels.startswith("refused: ")
    if status in ACCEPTED:
        assert ours == ACCEPTED[status]
    else:
        assert ours.startswith("refused: ")


@pytest.fixture(scope="module")
def check(verifiers: Path) -> Path:
    if not (verifiers / "check").is_file():
        pytest.skip("NO go-tdx-guest: script/verifiers builds its check; not shown that it accepts test quotes")
    return verifiers / "check"


def checked(check: Path, quote: Path, *more: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    line = [str(check), "-in", str(quote), "-inform", "bin", *more]
    return subprocess.run(line, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_go_tdx_guest_accepts_a_quote_under_the_test_root_alone(
    check: Path, quote_of: Callable[..., bytes], pki: Pki, tmp_path: Path
) -> None:
    quote, root = tmp_path / "quote.bin", tmp_path / "root.pem"
    quote.write_bytes(quote_of())
    root.write_bytes(pki.chain(Role.ROOT))
    ours = checked(check, quote, "-trusted_roots", str(root))
    assert ours.returncode == 0, ours.stderr
    assert checked(check, quote).returncode != 0


@pytest.mark.slow
def test_go_tdx_guest_fetches_collateral_and_crls_as_if_from_intel(check: Path, tmp_path: Path) -> None:
    """It follows the addresses of CRLs in the certificates, which name a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pki = Pki.new("go", port=port)
    quote, root, authority = tmp_path / "quote.bin", tmp_path / "root.pem", tmp_path / "https-ca.pem"
    quote.write_bytes(QuotingEnclave(pki, MacCheck(bytes(32))).quote(TdReportFields(key=bytes(32)).pack()))
    root.write_bytes(pki.chain(Role.ROOT))
    authority.write_bytes(https_ca(pki))
    options = ("-trusted_roots", str(root), "-get_collateral", "true", "-check_crl", "true")
    for status, accepted in (
        ("UpToDate", True),
        ("OutOfDate", False),
        ("TCBInfoExpired", False),
        ("PCKRevoked", False),
        ("CARevoked", False),
    ):
        with PccsServer(CollateralService(pki, status), port=port, as_intel=True) as server:
            environment = {"HTTPS_PROXY": server.url, "SSL_CERT_FILE": str(authority)}
            done = checked(check, quote, *options, **environment)
        assert (done.returncode == 0) is accepted, done.stderr
