# SPDX-License-Identifier: GPL-2.0-or-later
"""A firmware image wrapped in another format is named by every command that reads one, and never measured."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from swtdx.attest.inspection import inspect_image
from swtdx.attest.measure import MeasureError, measure_image
from swtdx.image.tdvf import TdvfError, TdvfRule, parse
from testing.tdvf_image import image_with

IMAGE = image_with()


def qcow2(image: bytes) -> bytes:
    """The header, and the clusters behind it (docs/interop/qcow2.txt): the end of a TDVF is the end of the file."""
    return b"QFI\xfb\0\0\0\3".ljust(1 << 16, b"\0") + image


def tar(image: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("OVMF.fd")
        member.size = len(image)
        archive.addfile(member, io.BytesIO(image))
    return made.getvalue()


def zipped(image: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("OVMF.fd", image)
    return made.getvalue()


@pytest.mark.parametrize(
    ("wrap", "name", "words"),
    [
        (qcow2, "fw.qcow2", "qcow2: qemu-img convert -O raw fw.qcow2 fw.raw"),
        (lambda image: b"KDMV" + bytes(508) + image, "fw.vmdk", "VMDK: qemu-img convert"),
        (lambda image: b"vhdxfile" + bytes(504) + image, "fw.vhdx", "VHDX: qemu-img convert"),
        (lambda image: b"conectix" + bytes(504) + image, "fw.vhd", "VHD: qemu-img convert"),
        (lambda image: bytes(0x40) + b"\x7f\x10\xda\xbe" + bytes(444) + image, "fw.vdi", "VDI: qemu-img convert"),
        (gzip.compress, "OVMF.fd.gz", "gzip: gzip -dc OVMF.fd.gz >OVMF.fd"),
        (lzma.compress, "OVMF.fd.xz", "xz: xz -dc OVMF.fd.xz >OVMF.fd"),
        (bz2.compress, "OVMF.fd.bz2", "bzip2: bzip2 -dc OVMF.fd.bz2 >OVMF.fd"),
        (zipped, "fw.zip", "zip: unzip fw.zip"),
        (tar, "fw.tar", "tar: tar -xf fw.tar"),
        (
            lambda image: b"!<arch>\ndebian-binary   " + image,
            "ovmf.deb",
            "a Debian package: dpkg-deb -x ovmf.deb FOLDER",
        ),
        (lambda image: b"\xed\xab\xee\xdb" + image, "edk2.rpm", "an RPM package: rpm2cpio edk2.rpm"),
        (lambda image: bytes.fromhex("bd86663b760d3040b70eb5519e2fc5a0") + image, "fw.cap", "a UEFI capsule"),
    ],
)
def test_a_wrapped_image_is_named(wrap: Callable[[bytes], bytes], name: str, words: str) -> None:
    wrapped = wrap(IMAGE)
    with pytest.raises(TdvfError) as caught:
        parse(wrapped, name)
    assert caught.value.rule is TdvfRule.CONTAINER
    assert words in str(caught.value)
    with pytest.raises((TdvfError, MeasureError), match="is not a plain firmware image"):
        measure_image(wrapped, name)
    found = inspect_image(wrapped, name)
    assert not found.can_start
    assert words in str(found.broken[0])


def test_an_image_that_is_not_wrapped() -> None:
    assert parse(IMAGE, "x.fd").sections
