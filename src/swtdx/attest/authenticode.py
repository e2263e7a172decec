# SPDX-License-Identifier: GPL-2.0-or-later
"""The digest of an EFI executable as firmware measures it: Authenticode's, in which signatures do not count.

Microsoft, "Windows Authenticode Portable Executable Signature Format": everything but the checksum, the directory entry
that points at the signatures, and the signatures themselves, the sections in the order in which they lie in the file.
The digest is SHA-384 unless asked otherwise, since that is what extends an RTMR.
"""

from __future__ import annotations

import hashlib
import struct

_DOS_SIGNATURE = b"MZ"
_PE_POINTER_AT = 0x3C
_PE_SIGNATURE = b"PE\0\0"
_COFF = struct.Struct("<HHIIIHH")  # machine, sections, ..., optional header's size, characteristics
_SECTION_SIZE = 40
_RAW_SIZE_AT, _RAW_POINTER_AT = 16, 20
_MAGIC_PE32_PLUS = 0x20B
_SIZE_OF_HEADERS_AT = 60  # in the optional header
_CHECKSUM_AT = 64
_DIRECTORY_COUNT_AT = 108
_DIRECTORIES_AT = 112
_SECURITY = 4  # number of the directory that points at the signatures
_CERTIFICATE = struct.Struct("<IHH")  # WIN_CERTIFICATE: length, revision, type
MACHINE_X64 = 0x8664


class PeError(ValueError):
    """Not an executable that 64-bit firmware starts; the text is one sentence that continues "the file ..."."""


def authenticode_digest(image: bytes, algorithm: str = "sha384") -> bytes:
    """Digest of a PE32+ executable for x86-64 without its signatures. Raises `PeError`.

    >>> authenticode_digest(b"MZ")
    Traceback (most recent call last):
    ...
    swtdx.attest.authenticode.PeError: is not a PE executable
    """
    if image[:2] != _DOS_SIGNATURE or len(image) < _PE_POINTER_AT + 4:
        raise PeError("is not a PE executable")
    pe = int.from_bytes(image[_PE_POINTER_AT : _PE_POINTER_AT + 4], "little")
    optional = pe + len(_PE_SIGNATURE) + _COFF.size
    if len(image) < optional + _DIRECTORIES_AT or image[pe : pe + 4] != _PE_SIGNATURE:
        raise PeError("is not a PE executable")
    machine, count, _, _, _, optional_size, _ = _COFF.unpack_from(image, pe + 4)
    if (machine, _number(image, optional, 2)) != (MACHINE_X64, _MAGIC_PE32_PLUS):
        raise PeError("is not a PE executable for x86-64")
    headers = _number(image, optional + _SIZE_OF_HEADERS_AT)
    checksum = optional + _CHECKSUM_AT
    directory_end = checksum + 4
    pieces = [(0, checksum)]
    signatures = 0
    if _number(image, optional + _DIRECTORY_COUNT_AT) > _SECURITY:
        entry = optional + _DIRECTORIES_AT + 8 * _SECURITY
        pieces.append((directory_end, entry))
        directory_end, signatures = entry + 8, _number(image, entry + 4)
    sections_at = optional + optional_size
    if not directory_end <= headers <= len(image) or sections_at + count * _SECTION_SIZE > len(image):
        raise PeError("is a damaged PE executable: its headers do not fit")
    pieces.append((directory_end, headers))
    counted = headers
    for start, size in sorted(_sections(image, sections_at, count)):
        if start + size > len(image):
            raise PeError(f"is a truncated PE executable: a section ends at {start + size:#x}")
        pieces.append((start, start + size))
        counted += size
    if signatures > len(image) - counted:
        raise PeError("is a damaged PE executable: its signatures do not fit")
    pieces.append((counted, len(image) - signatures))
    hashed, view = hashlib.new(algorithm), memoryview(image)
    for start, end in pieces:
        hashed.update(view[start:end])
    return hashed.digest()


def signatures(image: bytes) -> list[tuple[int, bytes]]:
    """(type, contents) of each entry of an executable's certificate table; empty where there is none, or no sense.

    >>> signatures(b"MZ")
    []
    """
    pe = int.from_bytes(image[_PE_POINTER_AT : _PE_POINTER_AT + 4], "little")
    entry = pe + len(_PE_SIGNATURE) + _COFF.size + _DIRECTORIES_AT + 8 * _SECURITY
    at, size = _number(image, entry), _number(image, entry + 4)
    end = at + size
    found = []
    while at + _CERTIFICATE.size <= min(end, len(image)):
        length, _, kind = _CERTIFICATE.unpack_from(image, at)
        if not _CERTIFICATE.size <= length <= end - at:
            break
        found.append((kind, image[at + _CERTIFICATE.size : at + length]))
        at += -(-length // 8) * 8
    return found


def _sections(image: bytes, at: int, count: int) -> list[tuple[int, int]]:
    """(offset in the file, size) of those that have anything in the file."""
    found = []
    for header in range(at, at + count * _SECTION_SIZE, _SECTION_SIZE):
        size, start = _number(image, header + _RAW_SIZE_AT), _number(image, header + _RAW_POINTER_AT)
        if size:
            found.append((start, size))
    return found


def _number(image: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(image[at : at + size], "little")
