# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes for a machine in this process: the quoting enclave without a socket between.

Loading keys and the cryptography that goes with them takes a tenth of a second, so it waits for the first quote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.quoting.machine_folder import FolderError
from swtdx.vmm.get_quote import QuoteRefused, QuoteUnavailable

if TYPE_CHECKING:
    from swtdx.quoting.enclave import QuotingEnclave

PATIENCE_SECONDS = 2.0
"""A quote takes a millisecond, the first one the time that loading takes."""


class EnclaveQuotes:
    """A `QuoteSource` that is a quoting enclave."""

    patience = PATIENCE_SECONDS

    def __init__(self, enclave: QuotingEnclave) -> None:
        self._enclave = enclave

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a TDREPORT. Raises `QuoteRefused`."""
        from swtdx.quoting.enclave import QuotingError

        try:
            return self._enclave.quote(report)
        except QuotingError as error:
            raise QuoteRefused(str(error)) from None

    def close(self) -> None:
        """Nothing is under way."""


class LocalQuotes:
    """A `QuoteSource` with the test PKI of a folder. ``everifyreport2`` is the machine's."""

    patience = PATIENCE_SECONDS

    def __init__(self, folder: Path, everifyreport2: Callable[[bytes], bool]) -> None:
        self._folder = folder
        self._everifyreport2 = everifyreport2
        self._lock = threading.Lock()
        self._quotes: EnclaveQuotes | None = None

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a TDREPORT. Raises `QuoteUnavailable`, `QuoteRefused`."""
        from swtdx.quoting.enclave import QuotingEnclave
        from swtdx.quoting.pki import open_pki

        with self._lock:
            if self._quotes is None:
                try:
                    pki = open_pki(self._folder)
                except FolderError as error:
                    raise QuoteUnavailable(str(error)) from None
                self._quotes = EnclaveQuotes(QuotingEnclave(pki, self._everifyreport2))
        return self._quotes.quote(report)

    def close(self) -> None:
        """Nothing is under way."""
