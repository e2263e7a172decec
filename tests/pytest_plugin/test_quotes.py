# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixtures for quotes and collateral, as the tests of another project use them."""

from __future__ import annotations

from pathlib import Path

import pytest

CHECK = """
import asyncio
import time

import dcap_qvl
import pytest

from swtdx.attest.quote import parse_quote


def status(quote, pki, pccs):
    async def fetch():
        return await dcap_qvl.get_collateral(pccs.url, quote)

    return dcap_qvl.verify_with_root_ca(quote, asyncio.run(fetch()), pki.root, int(time.time())).status


def test_a_chosen_reportdata(tdx_quote, tdx_pki, tdx_pccs):
    for data in (b"one", b"two"):
        quote = tdx_quote(data)
        assert parse_quote(quote).body.reportdata == data.ljust(64, bytes(1))
        assert status(quote, tdx_pki, tdx_pccs) == "UpToDate"
    assert parse_quote(tdx_quote(version="5-1.5")).body_type == 3


def test_a_status_by_the_fixture(tdx_quote, tdx_pki, tdx_pccs):
    tdx_pccs.service.status = "OutOfDate"
    assert status(tdx_quote(), tdx_pki, tdx_pccs) == "OutOfDate"


@pytest.mark.tdx(module_updated=True)
def test_an_updated_module(tdx_quote, tdx_pki, tdx_pccs):
    tdx_pccs.service.status = "TDRelaunchAdvised"
    assert status(tdx_quote(), tdx_pki, tdx_pccs) == "TDRelaunchAdvised"


def test_intels_root_refuses(tdx_quote, tdx_pki, tdx_pccs):
    quote = tdx_quote()

    async def fetch():
        return await dcap_qvl.get_collateral_and_verify(quote, tdx_pccs.url)

    with pytest.raises(ValueError):
        asyncio.run(fetch())
"""


def test_quotes_keys_and_collateral(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CHECK)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=4)


def test_keys_can_be_kept_and_a_folder_that_is_none_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pathlib import Path

        def test_the_root_is_in_the_folder(tdx_pki):
            assert Path("keys/root-ca.der").read_bytes() == tdx_pki.root
        """
    )
    for _ in range(2):
        pytester.runpytest_subprocess("--tdx-pki=keys").assert_outcomes(passed=1)
    (pytester.path / "other").mkdir()
    Path(pytester.path / "other" / "letter.txt").write_text("dear")
    result = pytester.runpytest_subprocess("--tdx-pki=other")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*holds something else (letter.txt)*"])
