# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS for the collateral service: a test CA of its own, and a server certificate of it.

The CA is not the root of the quotes: a client that trusts it for HTTPS trusts no quote by that.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swtdx.quoting.certificates import ORGANIZATION, serial_number, signed_certificate
from swtdx.quoting.pki import BEGIN, Pki

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_CA_NAME = "swtdx test HTTPS CA"


def https_ca(pki: Pki) -> bytes:
    """Return the CA certificate that clients of the collateral service trust, in PEM."""
    return _ca(pki).public_bytes(Encoding.PEM)


def server_context(pki: Pki, names: Sequence[str] = LOCAL_NAMES) -> ssl.SSLContext:
    """Return what a server with these names and addresses wraps its connections with."""
    key = pki.key("HTTPS server")
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    certificate = _signed(
        _builder(pki, "swtdx test collateral service", key, "HTTPS server")
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternatives, critical=False),
        pki,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, path = tempfile.mkstemp()  # the ssl module takes no certificate from memory
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(private + certificate.public_bytes(Encoding.PEM) + https_ca(pki))
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name), organization])


def _ca(pki: Pki) -> x509.Certificate:
    key = pki.key("HTTPS CA")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return _signed(
        _builder(pki, _CA_NAME, key, "HTTPS CA")
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True),
        pki,
    )


def _builder(pki: Pki, name: str, key: ec.EllipticCurvePrivateKey, label: str) -> x509.CertificateBuilder:
    authority = pki.key("HTTPS CA").public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(_CA_NAME))
        .public_key(key.public_key())
        .serial_number(serial_number(pki.seed, label))
        .not_valid_before(BEGIN)
        .not_valid_after(pki.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, pki: Pki) -> x509.Certificate:
    return signed_certificate(builder, pki.key("HTTPS CA"))
