# SPDX-License-Identifier: GPL-2.0-or-later
"""One PKI and one quoting enclave for all tests of this folder: keys are the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.quoting.enclave import MacCheck, QuoteVersion, QuotingEnclave
from swtdx.quoting.pki import Pki
from testing.tdreport import TdReportFields

KEY = b"k" * 32


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki.new("the tests of swtdx")


@pytest.fixture(scope="session")
def enclave(pki: Pki) -> QuotingEnclave:
    return QuotingEnclave(pki, MacCheck(KEY))


@pytest.fixture(scope="session")
def quote_of(pki: Pki) -> Callable[..., bytes]:
    """``quote_of(asked, field=value...)``: the quote of a TDREPORT of these fields."""

    def make(asked: str = "default", **fields: Any) -> bytes:
        quoting = QuotingEnclave(pki, MacCheck(KEY), QuoteVersion(asked))
        return quoting.quote(TdReportFields(**fields).pack())

    return make
