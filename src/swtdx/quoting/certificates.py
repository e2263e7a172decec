# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates and CRLs of the form of Intel's, made with test keys and named so.

Verifiers insist on Intel's common names ("Intel SGX Root CA"), on which extensions there are, and on their number.  All
that they leave free says that this is a test: organisation, place, and the addresses of the CRLs on this machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swtdx.attest.verify import TEST_ORGANIZATION
from swtdx.quoting.sgx_extension import SGX_EXTENSION

ORGANIZATION = TEST_ORGANIZATION
LOCALITY = "swtdx test"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_CA_KEY_USAGE = ("key_cert_sign", "crl_sign")
_LEAF_KEY_USAGE = ("digital_signature", "content_commitment")
_ALL_KEY_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class Role(Enum):
    """The common names, on which verifiers insist."""

    ROOT = "Intel SGX Root CA"
    PLATFORM_CA = "Intel SGX PCK Platform CA"
    PROCESSOR_CA = "Intel SGX PCK Processor CA"
    PCK = "Intel SGX PCK Certificate"
    TCB_SIGNING = "Intel SGX TCB Signing"


def subject(role: Role) -> x509.Name:
    """Return the distinguished name: Intel's five attributes, of which only the common name is Intel's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, role.value),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.LOCALITY_NAME, LOCALITY),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def derived_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key that belongs to a label, always the same for the same seed."""
    number = int.from_bytes(hashlib.sha512(b"swtdx test key\0" + seed + b"\0" + label.encode()).digest())
    return ec.derive_private_key(number % (P256_ORDER - 1) + 1, ec.SECP256R1())


def serial_number(seed: bytes, label: str) -> int:
    """Return a positive serial number of 20 bytes for a label."""
    digest = bytearray(hashlib.sha256(b"swtdx test serial\0" + seed + b"\0" + label.encode()).digest()[:20])
    digest[0] = digest[0] & 0x7F | 0x40
    return int.from_bytes(digest)


@dataclass(frozen=True)
class Issuer:
    """Who signs: a certificate's key and name."""

    key: ec.EllipticCurvePrivateKey
    name: x509.Name


@dataclass(frozen=True)
class Validity:
    """From when to when."""

    begin: datetime
    end: datetime


def certificate(
    role: Role,
    key: ec.EllipticCurvePrivateKey,
    issuer: Issuer,
    validity: Validity,
    *,
    serial: int,
    crl_url: str,
    path_length: int | None = None,
    sgx: bytes | None = None,
) -> x509.Certificate:
    """Return a certificate; ``path_length`` not None: of a CA. ``sgx`` is the SGX extension of a PCK certificate."""
    is_ca = path_length is not None
    usages = _CA_KEY_USAGE if is_ca else _LEAF_KEY_USAGE
    key_usage = x509.KeyUsage(**{name: name in usages for name in _ALL_KEY_USAGES})
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(role))
        .issuer_name(issuer.name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(validity.begin)
        .not_valid_after(validity.end)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .add_extension(x509.CRLDistributionPoints([point]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
    )
    if sgx is not None:
        unrecognized = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), sgx)
        builder = builder.add_extension(unrecognized, critical=False)
    return signed_certificate(builder, issuer.key)


def revocation_list(
    issuer: Issuer, number: int, validity: Validity, revoked: dict[int, datetime]
) -> x509.CertificateRevocationList:
    """Return a CRL; ``revoked`` are serial numbers, and since when."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.name)
        .last_update(validity.begin)
        .next_update(validity.end)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for serial, since in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256())


def signed_certificate(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Sign without randomness where the library can, so that a seed gives the same bytes each time."""
    try:
        return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    except (TypeError, UnsupportedAlgorithm):  # before cryptography 45, or on an old OpenSSL
        return builder.sign(key, hashes.SHA256())
