# SPDX-License-Identifier: GPL-2.0-or-later
"""What the PCK certificate in a quote says of its platform: FMSPC, CA, security versions, PPID.

Intel's SGX extension of the certificate (OID 1.2.840.113741.1.13.1) is read by ``dcap-qvl``.  Nothing is verified here.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from swtdx.attest.quote import CERTIFICATION_PCK_CHAIN, Quote

_CPUSVN = "1.2.840.113741.1.13.1.2.18"
COMPONENTS = 16


class Pck(NamedTuple):
    """The platform, as its PCK certificate names it."""

    fmspc: str
    """12 hexadecimal digits: family, model, stepping, platform and custom SKU."""
    ca: str
    """``platform`` or ``processor``: the CA whose collateral and CRL the platform needs."""
    pcesvn: int
    cpusvn: bytes
    """16 security versions, one a component."""
    ppid: bytes

    def as_json(self) -> dict[str, Any]:
        """The fields; of the PPID, which identifies a machine, its SHA-256."""
        return {
            "fmspc": self.fmspc,
            "ca": self.ca,
            "pcesvn": self.pcesvn,
            "cpusvn": self.cpusvn.hex(),
            "ppid_sha256": hashlib.sha256(self.ppid).hexdigest(),
        }


def pck_of(quote: Quote) -> Pck | None:
    """Return the platform of a quote; None if it has no PCK certificate that can be read."""
    if quote.signature.certification_type != CERTIFICATION_PCK_CHAIN:
        return None
    from swtdx.attest.qvl import library

    try:
        parsed = library().Quote.parse(quote.raw)
        extension = parsed.pck_extension()
        if extension is None:
            return None
        return Pck(parsed.fmspc(), parsed.ca(), extension.pce_svn, bytes(extension.cpu_svn), bytes(extension.ppid))
    except (ValueError, RuntimeError):
        return None
