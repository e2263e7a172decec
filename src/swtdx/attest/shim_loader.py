# SPDX-License-Identifier: GPL-2.0-or-later
"""What shim extends before it starts the next loader (rhboot/shim, mok.c, sbat.c, verify.c, pe.c).

It mirrors its variables, and measures them by their contents (EV_IPL, PCR 14, RTMR2): MokList with the vendor's
certificate behind it, MokListX with the vendor's revocations, MokSBState and MokPolicy where they are set,
MokListTrusted; SbatLevel as a variable (PCR 7, RTMR0).  Under Secure Boot the certificate by which the next image is
allowed follows (RTMR0), then the image itself (RTMR1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from swtdx.attest.boot_prediction import EV_EFI_VARIABLE_AUTHORITY, EV_IPL, KernelRefusedError, extension, variable
from swtdx.attest.event_log import Event
from swtdx.attest.secure_boot import allowing_signature
from swtdx.attest.uki import pe_sections
from swtdx.attest.variable_store import IMAGE_SECURITY, VariableStore

SHIM_LOCK = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_ORIGINAL_SBAT_LEVEL = b"sbat,1,2021030218\n"
_TRUSTED = b"\x01"
_TABLE = struct.Struct("<4I")  # sizes of the vendor's certificate and revocations, then their offsets


@dataclass(frozen=True)
class Shim:
    """What was built into a shim: the vendor's certificate or list of such, revocations, and its SBAT level."""

    vendor: bytes
    revoked: bytes
    sbat_level: bytes

    @property
    def vendor_list(self) -> bytes:
        """The vendor's certificate as an EFI_SIGNATURE_LIST of shim's; a list is taken as it is."""
        if self.vendor[:1] != b"\x30":
            return self.vendor
        size = 16 + len(self.vendor)
        return _X509.bytes_le + struct.pack("<III", 28 + size, 0, size) + SHIM_LOCK.bytes_le + self.vendor


def parse_shim(image: bytes) -> Shim | None:
    """Read an EFI executable; None if it is not shim.

    >>> parse_shim(b"MZ") is None
    True
    """
    sections = {each.name: each.contents for each in pe_sections(image)}
    vendor, sbat = sections.get(".vendor_cert", b""), sections.get(".sbatlevel", b"")
    if len(vendor) < _TABLE.size or b"UEFI SHIM" not in sections.get(".data.ident", b""):
        return None
    size, revoked_size, start, revoked_start = _TABLE.unpack_from(vendor)
    level = _ORIGINAL_SBAT_LEVEL
    if len(sbat) >= 12:  # a version of the format, then offsets from behind it: the level set by itself, the latest
        at = 4 + int.from_bytes(sbat[4:8], "little")
        level = sbat[at:].split(b"\0")[0]
    return Shim(vendor[start : start + size], vendor[revoked_start : revoked_start + revoked_size], level)


def shim_extensions(shim: Shim, variables: VariableStore) -> Iterator[Event]:
    """From its start until it looks for the next loader."""
    yield from _logged("MokList", (variables.get("MokList", SHIM_LOCK) or b"") + shim.vendor_list)
    yield from _logged("MokListX", (variables.get("MokListX", SHIM_LOCK) or b"") + shim.revoked)
    insecure = variables.get("MokSBState", SHIM_LOCK) or b""
    if insecure:
        yield variable(EV_EFI_VARIABLE_AUTHORITY, "MokSBState", SHIM_LOCK, insecure)
    yield from _logged("MokSBState", insecure)
    level = variables.get("SbatLevel", SHIM_LOCK) or b""
    own = shim.sbat_level if variables.secure_boot else _ORIGINAL_SBAT_LEVEL
    if not variables.secure_boot or _date(level) < _date(own):
        level = own
    yield variable(EV_EFI_VARIABLE_AUTHORITY, "SbatLevel", SHIM_LOCK, level)
    yield from _logged("MokListTrusted", variables.get("MokListTrusted", SHIM_LOCK) or _TRUSTED)
    yield from _logged("MokPolicy", variables.get("MokPolicy", SHIM_LOCK) or b"")


def shim_authority(shim: Shim, image: bytes, name: str, variables: VariableStore) -> Iterator[Event]:
    """The certificate by which shim allows an image under Secure Boot: of db, of MokList, or the vendor's.

    Raises `KernelRefusedError` for an image that no certificate allows.
    """
    if not variables.secure_boot:
        return
    db, dbx = (variables.get(each, IMAGE_SECURITY) or b"" for each in ("db", "dbx"))
    for title, vendor, signatures in (
        ("db", IMAGE_SECURITY, db),
        ("MokListRT", SHIM_LOCK, (variables.get("MokList", SHIM_LOCK) or b"") + shim.vendor_list),
    ):
        entry = allowing_signature(image, signatures, dbx) if signatures else None
        if entry is not None:
            yield variable(EV_EFI_VARIABLE_AUTHORITY, title, vendor, entry)
            return
    raise KernelRefusedError(
        f"shim does not start {name} under Secure Boot: it is not signed by a key of db, of MokList or of shim's vendor"
    )


def _logged(name: str, contents: bytes) -> Iterator[Event]:
    """A variable of shim's, unless it is empty."""
    if contents:
        yield extension(2, EV_IPL, contents, name.encode() + b"\0")


def _date(level: bytes) -> bytes:
    """The date in the first line of an SBAT level."""
    fields = level.split(b"\n")[0].split(b",")
    return fields[2] if len(fields) > 2 else b""
