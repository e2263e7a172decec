# SPDX-License-Identifier: GPL-2.0-or-later
"""Which key of ``db`` lets a kernel start under Secure Boot: firmware measures that key before it measures the kernel.

As edk2 does it (SecurityPkg, DxeImageVerificationLib): each PKCS#7 signature of the executable is tried against each
X.509 certificate of ``db``, in the order of ``db``; the first in whose chain the signer is counts, unless ``dbx`` knows
the executable.  Here a certificate counts if it is among those in the signature, or is an authority that has issued one
of them, and the signature names the executable's digest: what tells which key it is.  Whether the signature itself is
right is left to the firmware, which refuses the kernel otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

from swtdx.attest.authenticode import authenticode_digest, signatures

_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
_LIST = struct.Struct("<16sIII")  # EFI_SIGNATURE_LIST: type, size, header's size, size of a signature
_OWNER_SIZE = 16
_PKCS_SIGNED_DATA = 2  # WIN_CERT_TYPE
_DIGESTS = ("sha256", "sha384", "sha512")  # that a signature may be of


def allowing_signature(kernel: bytes, db: bytes, dbx: bytes) -> bytes | None:
    """The entry of ``db`` (EFI_SIGNATURE_DATA: owner and certificate) by which an executable starts; None: by none.

    Raises `swtdx.attest.authenticode.PeError` for data that are not an executable.

    >>> list(entries(b"", _X509))
    []
    """
    digests = {name: authenticode_digest(kernel, name) for name in _DIGESTS}
    if any(entry[_OWNER_SIZE:] == digests["sha256"] for entry in entries(dbx, _SHA256)):
        return None
    for kind, signature in signatures(kernel):
        if kind == _PKCS_SIGNED_DATA and any(digest in signature for digest in digests.values()):
            for entry in entries(db, _X509):
                if _vouches(entry[_OWNER_SIZE:], signature):
                    return entry
    return None


def entries(variable: bytes, kind: UUID) -> Iterator[bytes]:
    """The signatures of a kind, with their owners, in a variable that is a sequence of signature lists."""
    at = 0
    while at + _LIST.size <= len(variable):
        name, size, header, each = _LIST.unpack_from(variable, at)
        if size < _LIST.size + header or size > len(variable) - at:
            return
        if UUID(bytes_le=name) == kind and each > _OWNER_SIZE:
            for start in range(at + _LIST.size + header, at + size - each + 1, each):
                yield variable[start : start + each]
        at += size


def _vouches(certificate: bytes, signature: bytes) -> bool:
    """Whether a certificate is in a PKCS#7 signature, or has issued one that is."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import pkcs7

    try:
        trusted = x509.load_der_x509_certificate(certificate)
        embedded = pkcs7.load_der_pkcs7_certificates(_without_padding(signature))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    for each in embedded:
        if each == trusted:
            return True
        try:
            each.verify_directly_issued_by(trusted)
            if trusted.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                return True
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
            continue
    return False


def _without_padding(signature: bytes) -> bytes:
    """DER tells its length; the certificate table pads to eight bytes."""
    if len(signature) > 4 and signature[:2] == b"\x30\x82":
        return signature[: 4 + int.from_bytes(signature[2:4], "big")]
    return signature
