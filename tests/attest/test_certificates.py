# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of certificates and CRLs is what ``cryptography`` reads of them, and damaged ones are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from swtdx.attest.certificates import certificates_of_pem, parse_certificate, parse_revocation_list
from swtdx.attest.quote import parse_quote
from swtdx.attest.verify import root_certificate
from testing.evidence import collateral, quote_of
from testing.tdreport import TdReportFields

KEY = ec.derive_private_key(7, ec.SECP256R1())
BEGIN = datetime(2049, 12, 31, tzinfo=UTC)


def name_of(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def made(subject: x509.Name, serial: int = 5, ca: bool | None = True, *more: x509.ExtensionType) -> x509.Certificate:
    """A certificate; ``ca`` None: without basic constraints."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(name_of((NameOID.COMMON_NAME, "issuer")))
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(BEGIN)
        .not_valid_after(BEGIN + timedelta(days=2))
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, 3 if ca else None), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "attributes",
    [
        [(NameOID.COMMON_NAME, "a b"), (NameOID.ORGANIZATION_NAME, "o"), (NameOID.ORGANIZATION_NAME, "p")],
        [(NameOID.ORGANIZATION_NAME, "Gr\u00fc\u00dfe \U0001f511"), (NameOID.COUNTRY_NAME, "DE")],
        [(NameOID.COMMON_NAME, "x" * 64), (NameOID.EMAIL_ADDRESS, "a@b.example")],
        [],
    ],
)
def test_names_are_as_cryptography_reads_them(attributes: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    theirs = made(name_of(*attributes)).subject
    ours = parse_certificate(der_of(made(name_of(*attributes)))).subject
    assert [value for _, value in ours.attributes] == [each.value for each in theirs]
    assert ours.organizations == [each.value for each in theirs.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    common = theirs.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert ours.common_name == (common[0].value if common else None)


@pytest.mark.parametrize("serial", [1, 127, 128, 1 << 158])
@pytest.mark.parametrize("ca", [True, False, None])
def test_serial_numbers_and_authorities(serial: int, ca: bool | None) -> None:
    other = x509.SubjectAlternativeName([x509.DNSName("host.example")])
    theirs = made(name_of(), serial, ca, other)
    ours = parse_certificate(der_of(theirs))
    assert (ours.serial_number, ours.is_ca) == (serial, ca is True)
    assert ours.sha256 == theirs.fingerprint(hashes.SHA256()).hex()
    assert ours.issuer.common_name == "issuer"


@pytest.mark.parametrize("count", [0, 1, 300])
def test_revocation_lists(count: int) -> None:
    """Dates before and after 2050, which have two forms (RFC 5280, 5.1.2.4)."""
    since = {1 << number % 150: BEGIN + timedelta(hours=9 * number) for number in range(count)}
    builder = x509.CertificateRevocationListBuilder().issuer_name(name_of((NameOID.COMMON_NAME, "issuer")))
    builder = builder.last_update(BEGIN).next_update(BEGIN + timedelta(days=2))
    builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    for serial, date in since.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    ours = parse_revocation_list(builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER))
    assert ours.revoked == since
    assert ours.next_update == BEGIN + timedelta(days=2)
    assert ours.issuer == parse_certificate(der_of(made(name_of()))).issuer


def test_chains_with_text_around_them() -> None:
    chain = parse_quote(quote_of(TdReportFields().pack())).signature.certification_data.rstrip(b"\0")
    theirs = [der_of(each) for each in x509.load_pem_x509_certificates(chain)]
    for text in (chain, b"Subject: one\n" + chain, chain.replace(b"\n", b"\r\n"), chain.rstrip()):
        assert [each.der for each in certificates_of_pem(text)] == theirs
    for text in (b"", b"text", chain[:-40], chain.replace(b"M", b"*", 1)):
        with pytest.raises(ValueError, match=r"."):
            certificates_of_pem(text)


@pytest.mark.parametrize("kind", ["certificate", "CRL"])
def test_what_is_damaged_is_refused_or_read_but_never_anything_else(kind: str) -> None:
    content = json.loads(collateral())
    sound = der_of(made(name_of((NameOID.COMMON_NAME, "a")))) if kind == "certificate" else None
    sound = sound or bytes.fromhex(content["pck_crl"])
    parse = parse_certificate if kind == "certificate" else parse_revocation_list
    parse(sound)
    for length in range(len(sound)):
        with pytest.raises(ValueError, match=r"."):
            parse(sound[:length])
    with pytest.raises(ValueError, match=r"."):
        parse(sound + b"\0")
    random = Random(kind)
    refused = 0
    for _ in range(3000):
        changed = bytearray(sound)
        changed[random.randrange(len(sound))] = random.randrange(256)
        try:
            parse(bytes(changed))
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a certificate in PEM or DER"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate in PEM or DER"),
        (der_of(made(name_of(), 5, False)), "not the certificate of a CA"),
        (der_of(made(name_of(), 5, None)), "not the certificate of a CA"),
        (made(name_of()).public_bytes(Encoding.PEM) * 2, "2 certificates, where one root is wanted"),
        (der_of(made(name_of())) * 2, "not a certificate in PEM or DER"),
    ],
)
def test_roots_that_are_none(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        root_certificate(content)


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_root_in_either_form(encoding: Encoding) -> None:
    root = made(name_of((NameOID.COMMON_NAME, "root")))
    assert root_certificate(root.public_bytes(encoding)) == der_of(root)
