# SPDX-License-Identifier: GPL-2.0-or-later
"""Secure Boot in a predicted boot: the key that allows the kernel, or the refusal."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from swtdx.attest.authenticode import authenticode_digest
from swtdx.attest.boot_prediction import PredictionError
from swtdx.attest.direct_boot import kernel_refusal, predict_direct_boot
from swtdx.attest.secure_boot import allowing_signature
from swtdx.attest.variable_store import GLOBAL, IMAGE_SECURITY
from swtdx.image.linux_image import LinuxBoot, parse
from testing.rtmr_launch import seen_rtmrs
from testing.uefi_image import certificate_table, edk2_like, efi_kernel, signature_list, with_variable

X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
Key = tuple[rsa.RSAPrivateKey, x509.Certificate]


def made_key(name: str, issuer: Key | None = None) -> Key:
    private = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    today = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(
        issuer[1].subject if issuer else subject, subject, private.public_key(), 1, today,
        today + datetime.timedelta(3650),
    )  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    return private, builder.sign(issuer[0] if issuer else private, hashes.SHA256())


def der(key: Key) -> bytes:
    return key[1].public_bytes(serialization.Encoding.DER)


def signed(kernel: bytes, *keys: Key) -> bytes:
    """A kernel with a PKCS#7 signature that holds its digest: not Authenticode's, but with all that is looked at."""
    digest = authenticode_digest(kernel, "sha256")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(digest).add_signer(keys[0][1], keys[0][0], hashes.SHA256())
    for _, certificate in keys[1:]:
        builder = builder.add_certificate(certificate)
    signature = builder.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    return efi_kernel(signature=certificate_table(signature))


@pytest.fixture(scope="module")
def root() -> Key:
    return made_key("root")


@pytest.fixture(scope="module")
def leaf(root: Key) -> Key:
    return made_key("leaf", root)


def test_the_first_certificate_of_db_that_vouches_is_the_key(root: Key, leaf: Key) -> None:
    kernel, stranger = efi_kernel(), made_key("stranger")
    db = signature_list(SHA256, bytes(32)) + b"".join(signature_list(X509, der(key)) for key in (stranger, root, leaf))
    by_leaf = signed(kernel, leaf)
    assert allowing_signature(by_leaf, db, b"") == bytes(16) + der(root)
    assert allowing_signature(by_leaf, signature_list(X509, der(leaf)), b"") == bytes(16) + der(leaf)
    assert allowing_signature(by_leaf, signature_list(X509, der(stranger)), b"") is None
    assert allowing_signature(kernel, db, b"") is None
    other = efi_kernel(b"another", signature=by_leaf[len(kernel) :])
    assert allowing_signature(other, db, b"") is None, "a signature of something else"
    forbidden = signature_list(SHA256, authenticode_digest(kernel, "sha256"))
    assert allowing_signature(by_leaf, db, forbidden) is None


def test_the_key_is_measured_before_the_kernel_or_the_kernel_refused(leaf: Key) -> None:
    db = signature_list(X509, der(leaf))
    image = edk2_like({("PK", GLOBAL): b"key", ("db", IMAGE_SECURITY): db})
    kernel = LinuxBoot(parse(signed(efi_kernel(), leaf), "vmlinuz"))
    events = predict_direct_boot(image, kernel, 64 << 20).events
    at = next(number for number, event in enumerate(events) if event.event_type == 0x8000_0003)
    authority = events[at - 1]
    assert (authority.rtmr, authority.event_type) == (0, 0x8000_00E0)
    assert authority.data.endswith("db".encode("utf-16-le") + bytes(16) + der(leaf))
    assert authority.data_measured
    with pytest.raises(PredictionError, match="not signed by a key of its db"):
        predict_direct_boot(image, LinuxBoot(parse(efi_kernel(), "vmlinuz")), 64 << 20)


def test_a_launch_knows_beforehand_which_kernel_will_not_start(leaf: Key) -> None:
    """Without a forbidding key, or where it is not known, there is nothing to report."""
    db = signature_list(X509, der(leaf))
    image = edk2_like({("PK", GLOBAL): b"key", ("db", IMAGE_SECURITY): db})
    stranger, known = (LinuxBoot(parse(each, "vmlinuz")) for each in (efi_kernel(), signed(efi_kernel(), leaf)))
    assert "firmware.fd enforces Secure Boot, and vmlinuz is not" in str(kernel_refusal(image, stranger, "firmware.fd"))
    assert kernel_refusal(image, known, "firmware.fd") is None
    for other in (edk2_like(), edk2_like(cfv=b"\xff" * 0x4000), bytes(4096)):
        assert kernel_refusal(other, stranger, "firmware.fd") is None


def test_real_firmware_measures_that_key(
    leaf: Key,
    root: Key,
    measuring_firmware_as_built: bytes,
    tmp_path: Path,
    skip_loudly: Callable[[str], NoReturn],
) -> None:
    if shutil.which("osslsigncode") is None:
        skip_loudly("no osslsigncode; not shown: what firmware measures of a kernel signed for Secure Boot")
    image = with_variable(measuring_firmware_as_built, "db", IMAGE_SECURITY, signature_list(X509, der(root)))
    (tmp_path / "kernel").write_bytes(efi_kernel())
    (tmp_path / "key.pem").write_bytes(
        leaf[0].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (tmp_path / "certificate.pem").write_bytes(leaf[1].public_bytes(serialization.Encoding.PEM))
    command = "osslsigncode sign -certs certificate.pem -key key.pem -h sha256 -in kernel -out signed"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    kernel = LinuxBoot(parse((tmp_path / "signed").read_bytes(), "signed"), b"initrd", "quiet")
    prediction = predict_direct_boot(image, kernel, 256 << 20)
    seen, _ = seen_rtmrs(image, kernel, 256 << 20, 1, len(prediction.events))
    assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]
