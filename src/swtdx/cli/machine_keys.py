# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` and ``swtdx exec`` take from the folder of test keys: the machine's report key, and quotes.

The keys themselves are loaded with the guest's first request for a quote, so that other runs do not wait for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.cli.parameters import InputError
from swtdx.quoting.machine_folder import FolderError, default_folder, report_key
from swtdx.quoting.quote_sources import LocalQuotes
from swtdx.uapi.abilities import verifying_reports
from swtdx.uapi.kernel import Kernel
from swtdx.vmm.get_quote import QuoteSource

if TYPE_CHECKING:
    from swtdx.cli.run_options import Options
    from swtdx.vmm.qgs_socket import QuoteSocket


@dataclass(frozen=True)
class MachineKeys:
    """What a machine is known by, and who quotes for it. ``folder`` None: there are no keys."""

    folder: Path | None = None
    report_key: bytes | None = None
    socket: QuoteSocket | None = None

    def source(self, kernel: Kernel) -> QuoteSource | None:
        """Return what answers a guest on ``kernel``; None: nothing does."""
        if self.socket is not None:
            return self.socket
        machine = verifying_reports(kernel)
        return None if self.folder is None or machine is None else LocalQuotes(self.folder, machine.everifyreport2)


def key_files(options: Options) -> list[Path]:
    """Return the files of the folder of test keys, which no output may overwrite."""
    try:
        return sorted((options.pki or default_folder()).iterdir())
    except OSError:  # there is none, or it cannot be read: `machine_keys` reports that
        return []


def machine_keys(options: Options, say: Callable[[str], object]) -> MachineKeys:
    """Return the keys for a run. A default folder that cannot be used costs the quotes only. Raises InputError."""
    socket = None
    if options.quote_socket is not None:
        from swtdx.vmm.qgs_socket import AddressError, QuoteSocket, parse_address

        try:
            socket = QuoteSocket(parse_address(options.quote_socket))
        except AddressError as error:
            raise InputError(f"--quote-generation-socket: {error}") from None
    if options.td is None or not options.quotes or options.kvm == "host":
        return MachineKeys(socket=socket)
    folder = options.pki or default_folder()
    try:
        return MachineKeys(folder, report_key(folder), socket)
    except FolderError as error:
        if options.pki is not None or os.environ.get("SWTDX_PKI"):
            raise InputError(f"--pki {folder}: {error}") from None
        say(f"the guest gets no quotes: {error}")
        return MachineKeys(socket=socket)
