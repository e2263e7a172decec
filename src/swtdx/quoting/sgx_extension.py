# SPDX-License-Identifier: GPL-2.0-or-later
"""Intel's SGX extension of a PCK certificate (OID 1.2.840.113741.1.13.1), in ASN.1.

The order of entries is that of real certificates, on which one verifier insists.  The module reads no such extension:
a verifier does (see `swtdx.attest.pck`).
"""

from __future__ import annotations

from typing import Any

from asn1crypto import core

SGX_EXTENSION = "1.2.840.113741.1.13.1"
_TCB_COMPONENTS = 16


class _Entry(core.Sequence):  # type: ignore[misc]
    """One OID and its value."""

    _fields = [("id", core.ObjectIdentifier), ("value", core.Any)]


class _Entries(core.SequenceOf):  # type: ignore[misc]
    """OIDs and their values."""

    _child_spec = _Entry


class _SgxType(core.Enumerated):  # type: ignore[misc]
    _map = {0: "standard", 1: "scalable", 2: "scalable with integrity"}


def _entries(parent: str, values: dict[int, Any]) -> Any:
    return _Entries([{"id": f"{parent}.{number}", "value": value} for number, value in values.items()])


def sgx_extension(
    *, ppid: bytes, cpusvn: bytes, pcesvn: int, pceid: bytes, fmspc: bytes, platform_instance: bytes | None
) -> bytes:
    """Return the extension's value in DER. ``platform_instance`` (16 bytes) is there for a Platform CA only.

    The 16 SVNs of TCB components are the bytes of ``cpusvn``, as in real certificates: some verifiers read the one,
    some the other.
    """
    tcb = f"{SGX_EXTENSION}.2"
    components = {number: core.Integer(svn) for number, svn in enumerate(cpusvn, 1)}
    components |= {_TCB_COMPONENTS + 1: core.Integer(pcesvn), _TCB_COMPONENTS + 2: core.OctetString(cpusvn)}
    values: dict[int, Any] = {
        1: core.OctetString(ppid),
        2: _entries(tcb, components),
        3: core.OctetString(pceid),
        4: core.OctetString(fmspc),
        5: _SgxType("standard" if platform_instance is None else "scalable"),
    }
    if platform_instance is not None:
        configuration = {1: False, 2: False, 3: False}  # dynamic platform, cached keys, SMT
        values[6] = core.OctetString(platform_instance)
        values[7] = _entries(f"{SGX_EXTENSION}.7", {number: core.Boolean(on) for number, on in configuration.items()})
    encoded: bytes = _entries(SGX_EXTENSION, values).dump()
    return encoded
