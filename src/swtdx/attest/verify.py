# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a quote is genuine: signatures, certificates, revocation and TCB, judged by ``dcap-qvl``, offline.

The trust anchor is Intel's root certificate, which ``dcap-qvl`` contains; what swtdx makes does not chain to it.
Collateral is what Intel's provisioning certification service publishes for a platform; the caller brings it, as one
JSON object, and states for which time it shall count.

``dcap-qvl`` also refuses some genuine quotes by a policy of its own, as its last step: TDs that can be debugged or
migrated, or have a service TD.  Whether such a TD is acceptable is for `swtdx.attest.policy` to say.  A quote that
fails in that step alone has passed all others, so it is genuine, and `swtdx.attest.tcb_levels` computes its TCB status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from swtdx.attest.certificates import (
    Certificate,
    RevocationList,
    certificates_of_pem,
    parse_certificate,
    parse_revocation_list,
)
from swtdx.attest.evidence_kind import misplaced
from swtdx.attest.pck import Pck, pck_of
from swtdx.attest.printable import printable
from swtdx.attest.quote import Quote
from swtdx.attest.text_form import JsonError, binary_of, json_of, member_of

INTEL_ROOT = "Intel's root"
COLLATERAL_MEMBERS = (
    "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info", "tcb_info_signature",
    "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature",
)  # fmt: skip
"""Strings; the three ..._crl and ..._signature kinds in hexadecimal, chains in PEM, the two documents as JSON text."""
INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""Of the certificate "Intel SGX Root CA" in DER, for messages; what is trusted is dcap-qvl's own copy."""
TEST_ORGANIZATION = "swtdx test, not Intel Corporation"
"""In the subject of each certificate that `swtdx.quoting` makes."""
_LATEST_TIME = 1 << 40
_COMMAND = "swtdx quote verify QUOTE --collateral FILE"
_POLICY_OF_THE_LIBRARY = frozenset(
    {
        *{"Debug mode is enabled", "SEPT_VE_DISABLE is not enabled", "TD migration is enabled"},
        *{"Invalid MR service TD", "Reserved bits in TD attributes are set"},
        *{"TD profiling is enabled", "SERVTD_EXT is enabled"},
    }
)
"""The whole text of the errors of dcap-qvl's last step, which judges the TD's attributes; `Policy` judges them here."""


class VerificationError(Exception):
    """The quote is not genuine, or not at the given time; the text is the verifier's reason, with values."""


class CollateralError(ValueError):
    """The collateral is not usable; the text says why."""


class Verified(NamedTuple):
    """The platform of a genuine quote."""

    tcb_status: str
    """As Intel names it: UpToDate, SWHardeningNeeded, ConfigurationNeeded, OutOfDate, ..."""
    advisory_ids: tuple[str, ...]
    ppid: str
    at: int
    """Seconds since 1970 for which the judgement holds."""
    missing: tuple[str, ...] = ()
    """What the platform lacks for the highest TCB level, one sentence each."""
    root: str = INTEL_ROOT
    """Under which root: Intel's, a test root of swtdx's, or another."""

    def as_json(self) -> dict[str, Any]:
        return {
            "tcb_status": self.tcb_status,
            "advisory_ids": list(self.advisory_ids),
            "ppid": self.ppid,
            "at": self.at,
            "missing": list(self.missing),
            "root": self.root,
        }


def verify_quote(quote: Quote, collateral: bytes | str, at: int, root_ca: bytes | None = None) -> Verified:
    """Judge a quote with ``collateral`` (JSON) for the time ``at`` (seconds since 1970).

    ``root_ca`` is a root certificate (DER) to trust in place of Intel's, for quotes of test keys.  Raises
    `CollateralError` if the collateral cannot be used, `VerificationError` if the quote does not verify.

    >>> verify_quote(None, "{}", 0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    swtdx.attest.verify.CollateralError: the collateral lacks pck_crl_issuer_chain, ...
    """
    from swtdx.attest.qvl import library

    checked = _checked(collateral)
    if not 0 <= at < _LATEST_TIME:
        raise VerificationError(f"{at} is not a time in seconds since 1970")
    try:
        material = library().QuoteCollateralV3.from_json(json.dumps(checked))
    except (ValueError, TypeError) as error:
        raise CollateralError(f"the collateral is not usable: {_in_one_line(error)}") from None
    pck = pck_of(quote)
    try:
        if root_ca is None:
            report = library().verify(quote.raw, material, at)
        else:
            report = library().verify_with_root_ca(quote.raw, material, root_ca, at)
    except (ValueError, RuntimeError) as error:
        text = _in_one_line(error)
        if text in _POLICY_OF_THE_LIBRARY and pck is not None:
            return _judged_here(quote, pck, checked, at)._replace(root=root_name(root_ca))
        raise VerificationError(f"the quote does not verify: {text}{_values(text, quote, pck, checked, at)}") from None
    missing: tuple[str, ...] = ()
    if report.status != "UpToDate" and pck is not None:
        from swtdx.attest.tcb_levels import TcbError, tcb_result  # only here: most quotes are up to date

        try:
            missing = tcb_result(quote, pck, checked["tcb_info"], checked["qe_identity"]).missing
        except TcbError as error:
            missing = (str(error),)
    ppid = bytes(report.ppid).hex()
    return Verified(report.status, tuple(report.advisory_ids), ppid, at, missing, root_name(root_ca))


def root_certificate(content: bytes) -> bytes:
    """Return the certificate in a file, DER or PEM, in DER. Raises ValueError if it is not exactly one of a CA.

    >>> root_certificate(b"no certificate")
    Traceback (most recent call last):
    ValueError: not a certificate in PEM or DER
    """
    try:
        found = certificates_of_pem(content) if b"-----BEGIN" in content else [parse_certificate(content)]
    except ValueError:
        raise ValueError("not a certificate in PEM or DER") from None
    if len(found) != 1:
        raise ValueError(f"{len(found)} certificates, where one root is wanted")
    if not found[0].is_ca:
        raise ValueError("not the certificate of a CA")
    return found[0].der


def root_name(root_ca: bytes | None) -> str:
    """Return what to call a root certificate (DER); None is Intel's."""
    if root_ca is None:
        return INTEL_ROOT
    try:
        certificate = parse_certificate(root_ca)
    except ValueError:
        return "another root"
    if certificate.sha256 == INTEL_ROOT_SHA256:
        return INTEL_ROOT
    return _named_by_digest(certificate, "another root")


def _named_by_digest(certificate: Certificate, other: str) -> str:
    name = "a swtdx test root" if _is_test(certificate) else other
    return f"{name}, SHA-256 {certificate.sha256[:16]}..."


def _is_test(certificate: Certificate) -> bool:
    return TEST_ORGANIZATION in certificate.subject.organizations


def of_test_root(quote: Quote) -> bool:
    """Whether the certificates in a quote say that they are of a swtdx test root. Nothing is verified."""
    chain = _chain(quote.signature.certification_data)
    return bool(chain) and _is_test(chain[-1])


def _chain(pem: bytes) -> list[Certificate]:
    """The certificates in a text; none if it cannot be read."""
    try:
        return certificates_of_pem(pem.rstrip(b"\0"))
    except ValueError:
        return []


def _judged_here(quote: Quote, pck: Pck, collateral: dict[str, str], at: int) -> Verified:
    from swtdx.attest.tcb_levels import TcbError, tcb_result

    try:
        result = tcb_result(quote, pck, collateral["tcb_info"], collateral["qe_identity"])
    except TcbError as error:
        raise VerificationError(f"the quote does not verify: {error}") from None
    if result.status == "Revoked":
        why = "; ".join(result.missing)
        raise VerificationError(f"the quote does not verify: TCB status is invalid: Revoked; {why}")
    return Verified(result.status, result.advisory_ids, pck.ppid.hex(), at, result.missing)


def _values(text: str, quote: Quote, pck: Pck | None, collateral: dict[str, str], at: int) -> str:
    """The values behind a reason of dcap-qvl's, as ``; ...``; nothing where there is none to add."""
    lower = text.lower()
    for name, title in (("tcb_info", "TCBInfo"), ("qe_identity", "QE Identity")):
        if title.lower() in lower and ("expired" in lower or "future" in lower):
            return _dates(name, collateral, at)
    if "tcb" in lower or "fmspc" in lower or "isvsvn" in lower or "module" in lower:
        if pck is None:
            return ""
        from swtdx.attest.tcb_levels import TcbError, tcb_result

        try:
            missing = tcb_result(quote, pck, collateral["tcb_info"], collateral["qe_identity"]).missing
            return f"; {'; '.join(missing)}" if missing else ""
        except TcbError as error:
            return f"; {error}"
    if "certrevoked" in lower:
        return _revoked(quote, collateral)
    if "crlexpired" in lower:
        return _expired_crls(collateral, at)
    if any(word in lower for word in ("chain", "issuer", "publickey", "certificate")):
        return _chains(quote, collateral)
    return ""


def _dates(name: str, collateral: dict[str, str], at: int) -> str:
    try:
        content = json_of(collateral[name].encode())
        return f"; it is of {content['issueDate']} and valid until {content['nextUpdate']}, asked for {moment(at)}"
    except (JsonError, KeyError, TypeError):
        return ""


def _crls(collateral: dict[str, str]) -> Iterator[tuple[str, RevocationList]]:
    """Yield the CRLs of the collateral that can be read, by what they are called."""
    for name, title in (("root_ca_crl", "the root CA's CRL"), ("pck_crl", "the PCK CRL")):
        try:
            yield title, parse_revocation_list(bytes.fromhex(collateral[name]))
        except ValueError:
            continue


def _expired_crls(collateral: dict[str, str], at: int) -> str:
    """Which CRL has expired."""
    asked = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)
    old = [
        f"{title} is valid until {_written(crl.next_update)}"
        for title, crl in _crls(collateral)
        if crl.next_update is not None and crl.next_update < asked
    ]
    return f"; {', '.join(old)}, asked for {moment(at)}" if old else ""


def _revoked(quote: Quote, collateral: dict[str, str]) -> str:
    """Which certificate a CRL has revoked, and when."""
    chains = {
        "of the quote": quote.signature.certification_data,
        "of the TCB info": collateral["tcb_info_issuer_chain"].encode(),
        "of the QE identity": collateral["qe_identity_issuer_chain"].encode(),
        "of the PCK CRL": collateral["pck_crl_issuer_chain"].encode(),
    }
    found = [
        f"{title} revokes {_name(each)} {whose} (serial {each.serial_number:x}) "
        f"since {_written(crl.revoked[each.serial_number])}"
        for title, crl in _crls(collateral)
        for whose, pem in chains.items()
        for each in _chain(pem)
        if each.issuer == crl.issuer and each.serial_number in crl.revoked
    ]
    return f"; {', '.join(found)}" if found else ""


def _name(certificate: Certificate) -> str:
    name = certificate.subject.common_name
    return "a certificate without a name" if name is None else printable(name)


def _chains(quote: Quote, collateral: dict[str, str]) -> str:
    """Whose certificates the quote and the collateral bring: the subject of the last one of each chain."""
    chains = {
        "the quote": quote.signature.certification_data,
        "the PCK CRL": collateral["pck_crl_issuer_chain"].encode(),
        "the TCB info": collateral["tcb_info_issuer_chain"].encode(),
        "the QE identity": collateral["qe_identity_issuer_chain"].encode(),
    }
    found = [f"{name}: {_subject(chain[-1])}" for name, pem in chains.items() if (chain := _chain(pem))]
    return f"; the chains end in {', '.join(found)}" if found else ""


def _subject(last: Certificate) -> str:
    whose = "Intel's" if last.sha256 == INTEL_ROOT_SHA256 else _named_by_digest(last, "not Intel's")
    return f"{_name(last)} ({whose})"


def _written(date: datetime) -> str:
    return f"{date:%Y-%m-%dT%H:%M:%SZ}"


def moment(seconds: int) -> str:
    """Seconds since 1970 as a date.

    >>> moment(1750377600)
    '2025-06-20T00:00:00Z'
    """
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat() + "Z"


def seconds(date: str) -> int:
    """Return seconds since 1970 of a date (ISO 8601), in UTC if it names no zone. Raises ValueError.

    >>> seconds("2024-03-13T00:00:00Z"), seconds("2024-03-13"), seconds("2024-03-13T01:00:00+01:00")
    (1710288000, 1710288000, 1710288000)
    """
    parsed = datetime.fromisoformat(date)
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


def _in_one_line(error: Exception) -> str:
    """The verifier's reasons, outermost first; it writes each cause on a line of its own, and may number them.

    >>> _in_one_line(ValueError("Verification failed: no chain\\n\\nCaused by:\\n    0: certs\\n    1: bad"))
    'no chain: certs: bad'
    >>> _in_one_line(ValueError("CrlExpired { time: UnixTime(1850377600), next_update: UnixTime(1775215317) }"))
    'CrlExpired { time: 2028-08-20T09:46:40Z, next_update: 2026-04-03T11:21:57Z }'
    """
    lines = [re.sub(r"^\d+: ", "", line.strip()) for line in str(error).splitlines()]
    lines = [line for line in lines if line and line != "Caused by:"]
    lines = [re.sub(r"UnixTime\((\d{1,11})\)", lambda found: moment(int(found[1])), line) for line in lines]
    return printable(": ".join(lines).removeprefix("Verification failed: ")).rstrip(".")


def _checked(collateral: bytes | str) -> dict[str, str]:
    """Return the members as strings: from dcap-qvl's JSON, or from responses of Intel's PCS put together."""
    try:
        data = collateral.encode() if isinstance(collateral, str) else collateral
        content = json_of(data)
    except JsonError as error:
        raise CollateralError(f"the collateral is not JSON: {error}{misplaced(data, _COMMAND)}") from None
    if not isinstance(content, dict):
        raise CollateralError("the collateral is not a JSON object")
    inner = member_of(content, ("collateral", "quote_collateral", "data.collateral"))
    if isinstance(inner, dict):
        content = inner
    found = {name: value for name in content if (value := _text(content, name)) is not None}
    for ours, theirs in _PCS_MEMBERS.items():
        value = next((found[name] for name in theirs if name in found), None)
        if ours not in found and value is not None:
            found[ours] = value
    for document, envelope in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        _unwrap(found, document, envelope)
    for name in ("root_ca_crl", "pck_crl"):
        if name in found:
            found[name] = _crl(found[name])
    lacking = [name for name in COLLATERAL_MEMBERS if name not in found]
    if lacking:
        raise CollateralError(f"the collateral lacks {', '.join(lacking)}{misplaced(data, _COMMAND)}")
    return {name: found[name] for name in (*COLLATERAL_MEMBERS, *({"pck_certificate_chain"} & found.keys()))}


def collateral_members(collateral: bytes | str) -> dict[str, str]:
    """Return `COLLATERAL_MEMBERS` by name, of collateral in any form that is read. Raises `CollateralError`."""
    return _checked(collateral)


_PCS_MEMBERS = {
    "pck_crl_issuer_chain": ("pckCrlIssuerChain", "SGX-PCK-CRL-Issuer-Chain"),
    "root_ca_crl": ("rootCaCrl", "rootcacrl"),
    "pck_crl": ("pckCrl", "pckcrl"),
    "tcb_info_issuer_chain": ("tcbInfoIssuerChain", "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
    "tcb_info": ("tcbInfo",),
    "tcb_info_signature": ("tcbInfoSignature",),
    "qe_identity_issuer_chain": ("qeIdentityIssuerChain", "SGX-Enclave-Identity-Issuer-Chain"),
    "qe_identity": ("qeIdentity", "enclaveIdentity"),
    "qe_identity_signature": ("qeIdentitySignature",),
}
"""Names under which other tools and the responses of Intel's PCS have the same."""


def _text(content: dict[str, Any], name: str) -> str | None:
    """Return a member as text: an object compact, as the PCS signs it; a list of numbers in hexadecimal, as bytes."""
    value = content[name]
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if isinstance(value, list) and all(type(each) is int and 0 <= each < 256 for each in value):
        return bytes(value).hex()
    if isinstance(value, str):
        if value.startswith("-----BEGIN%20"):
            from urllib.parse import unquote  # only here: the library behind it takes long to load

            return unquote(value)
        return value
    return None


def _crl(text: str) -> str:
    """A CRL in hexadecimal, of one in PEM (as the PCS sends it unless asked for DER), or DER in base64."""
    try:
        return binary_of(text.encode()).hex()
    except ValueError:
        return text


def _unwrap(found: dict[str, str], document: str, envelope: str) -> None:
    """Take document and signature out of a response of the PCS, ``{"tcbInfo": {...}, "signature": "..."}``."""
    try:
        content = json_of(found.get(document, "").encode())
    except JsonError:
        return
    if isinstance(content, dict) and isinstance(content.get(envelope), dict):
        found[document] = json.dumps(content[envelope], separators=(",", ":"), ensure_ascii=False)
        if isinstance(content.get("signature"), str):
            found.setdefault(f"{document}_signature", content["signature"])
