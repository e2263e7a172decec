# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what a TDVF consists of, from the specifications: firmware volumes, variable stores; and a kernel to boot.

`edk2_like` gives an image that carries what edk2's IntelTdx build carries, as far as predictions look at it: names of
files, texts in SEC, variables.  It cannot run.  `efi_kernel` gives a bzImage that can: an EFI executable that exits
boot services and halts.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Mapping, Sequence
from uuid import UUID

from testing.tdvf_image import BASE, BFV, CFV, HOB, TEMP, image_with

FFS2 = UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")
NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

DXE_VOLUME = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
TD_TCG2_DXE = UUID("f062221e-c607-44c2-b0b4-c3886331d351")
TDX_DXE = UUID("e750224e-7bce-40af-b5bb-47e3611eb5c2")
SECURE_BOOT_CONFIG_DXE = UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21")
DXE_CORE = UUID("d6a2cb7f-6a18-4e2f-b43b-9920a733700a")
MENU = UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
UI_APP = UUID("462caa21-7614-4503-836e-8ab6f4662331")
SEC = UUID("69d96630-eb64-4b33-8491-13a5cf023dcf")

Variables = Mapping[tuple[str, UUID], bytes]


def section(kind: int, contents: bytes) -> bytes:
    return (4 + len(contents)).to_bytes(3, "little") + bytes([kind]) + contents


def sections(*each: bytes) -> bytes:
    joined = b""
    for one in each:
        joined += bytes(-len(joined) % 4) + one
    return joined


def compressed(contents: bytes) -> bytes:
    """A GUID-defined section whose contents are LZMA-compressed sections."""
    packed = lzma.compress(contents, format=lzma.FORMAT_ALONE)
    return section(0x02, LZMA.bytes_le + struct.pack("<HH", 24, 1) + packed)


def file(name: UUID, body: bytes, kind: int = 0x07) -> bytes:
    size = 24 + len(body)
    return name.bytes_le + struct.pack("<HBB", 0, kind, 0) + size.to_bytes(3, "little") + b"\xf8" + body


def driver(name: UUID, title: str, code: bytes = b"code") -> bytes:
    return file(name, sections(section(0x10, code), section(0x15, (title + "\0").encode("utf-16-le"))))


def signature_list(kind: UUID, *signatures: bytes) -> bytes:
    """EFI_SIGNATURE_LIST of signatures of one length; their owner is zero."""
    each = 16 + len(signatures[0])
    body = b"".join(bytes(16) + signature for signature in signatures)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), 0, each) + body


def certificate_table(signature: bytes) -> bytes:
    """WIN_CERTIFICATE of PKCS#7, padded."""
    entry = struct.pack("<IHH", 8 + len(signature), 0x200, 2) + signature
    return entry + bytes(-len(entry) % 8)


def with_variable(image: bytes, name: str, vendor: UUID, data: bytes) -> bytes:
    """A real image in whose store the variable has other contents: the old record is deleted, a new one appended."""
    store = image.find(AUTHENTICATED.bytes_le)
    at = store + 28
    changed = bytearray(image)
    while changed[at : at + 2] == b"\xaa\x55":
        name_size, data_size = struct.unpack_from("<II", changed, at + 36)
        if changed[at + 44 : at + 60 + name_size] == vendor.bytes_le + (name + "\0").encode("utf-16-le"):
            changed[at + 2] = 0x3C
        at += 60 + name_size + data_size
        at += -at % 4
    record = variable(name, vendor, data)
    changed[at : at + len(record)] = record
    return bytes(changed)


def volume(contents: bytes, size: int = 0, system: UUID = FFS2, name: UUID | None = None) -> bytes:
    """A volume with its header; with a name, an extended header is put before the contents."""
    extension = 0
    if name is not None:
        extension = 72
        contents = name.bytes_le + struct.pack("<I", 20) + bytes(4) + contents
    size = size or 72 + len(contents)
    header = struct.pack("<16s16sQ4sIHHHBB", b"", system.bytes_le, size, b"_FVH", 0, 72, 0, extension, 0, 2)
    header += struct.pack("<4I", 1, size, 0, 0)
    checksum = -sum(struct.unpack("<36H", header)) & 0xFFFF
    return (header[:50] + struct.pack("<H", checksum) + header[52:] + contents).ljust(size, b"\xff")


def files_volume(files: Sequence[bytes], size: int = 0, name: UUID | None = None) -> bytes:
    joined = b""
    for each in files:
        joined += b"\xff" * (-len(joined) % 8) + each
    return volume(joined, size, name=name)


def variable(name: str, vendor: UUID, data: bytes, state: int = 0x3F) -> bytes:
    text = (name + "\0").encode("utf-16-le")
    header = struct.pack("<HBBIQ16sIII", 0x55AA, state, 0, 7, 0, b"", 0, len(text), len(data)) + vendor.bytes_le
    record = header + text + data
    return record + b"\xff" * (-len(record) % 4)


def variable_store(records: bytes, size: int = 0x4000) -> bytes:
    """A volume of variables of ``size`` bytes."""
    room = size - 72
    store = AUTHENTICATED.bytes_le + struct.pack("<IBBHI", room, 0x5A, 0xFE, 0, 0) + records
    return volume(store.ljust(room, b"\xff"), size, NV_DATA)


def stored(variables: Variables) -> bytes:
    return b"".join(variable(name, vendor, data) for (name, vendor), data in variables.items())


def edk2_like(
    variables: Variables | None = None, *, beside: Sequence[bytes] = (), sec: bytes = b"TdxTable\0 QEMU FW CFG\0",
    tcg: UUID = TD_TCG2_DXE, cfv: bytes | None = None, tdx: UUID = TDX_DXE, menu: UUID = MENU, secure: bool = True,
) -> bytes:  # fmt: skip
    """An image whose compressed volume has the measurement driver and the boot menu, and ``beside`` them."""
    inner = files_volume(
        [
            *(driver(DXE_CORE, "DxeCore"), driver(tdx, "TdxDxe"), driver(tcg, "TdTcg2Dxe"), driver(menu, "Menu")),
            *([driver(SECURE_BOOT_CONFIG_DXE, "SecureBootConfigDxe")] if secure else []),
            *beside,
        ],
        name=DXE_VOLUME,
    )
    outer = [file(UUID(int=1), compressed(section(0x17, inner)), 0x0B), driver(SEC, "SecMain", sec)]
    image = bytearray(image_with(rows=(BFV, CFV, TEMP, HOB)))
    code = files_volume(outer)
    start = BFV[2] - BASE
    image[start : start + len(code)] = code
    store = variable_store(stored(variables or {})) if cfv is None else cfv
    image[: len(store)] = store
    return bytes(image)


# Exit boot services, then halt: a function of (image handle, system table) in the Microsoft calling convention.
_PROGRAM = bytes.fromhex(
    "48 89 cb"  # mov rbx, rcx                     the image's handle
    "48 8b 7a 60"  # mov rdi, [rdx+0x60]              boot services
    "48 81 ec 08 80 00 00"  # sub rsp, 0x8008
    "48 c7 44 24 40 00 7e 00 00"  # mov qword [rsp+0x40], 0x7e00   room for the map
    "48 8d 4c 24 40"  # lea rcx, [rsp+0x40]
    "48 8d 94 24 00 01 00 00"  # lea rdx, [rsp+0x100]
    "4c 8d 44 24 48"  # lea r8, [rsp+0x48]              the map's key
    "4c 8d 4c 24 50"  # lea r9, [rsp+0x50]
    "48 8d 44 24 58"  # lea rax, [rsp+0x58]
    "48 89 44 24 20"  # mov [rsp+0x20], rax
    "ff 57 38"  # call [rdi+0x38]                  GetMemoryMap
    "48 89 d9"  # mov rcx, rbx
    "48 8b 54 24 48"  # mov rdx, [rsp+0x48]
    "ff 97 e8 00 00 00"  # call [rdi+0xe8]                  ExitBootServices
    "f4 eb fd"  # hlt; jmp to it
)
_SETUP, _RAW = 0x400, 0x400


def efi_kernel(behind: bytes = b"", signature: bytes = b"", program: bytes = _PROGRAM) -> bytes:
    """A bzImage that is an EFI executable; ``behind`` follows its code, ``signature`` is what PE calls certificates."""
    text = (program + behind).ljust(_RAW, b"\0")
    image = bytearray(_SETUP)
    image[0:2] = b"MZ"
    image[0x3C:0x40] = struct.pack("<I", 0x40)
    directories = [(0, 0)] * 4 + [(_SETUP + len(text), len(signature))] + [(0, 0)]
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, len(text), 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QII", 0, 0x1000, 0x200) + bytes(16)
    optional += struct.pack("<IIIHHQQQQII", 0x1000 + -(-len(text) // 0x1000) * 0x1000, _SETUP, 0xC0FFEE, 10, 0,
                            0, 0, 0, 0, 0, len(directories))  # fmt: skip
    optional += b"".join(struct.pack("<II", *each) for each in directories)
    header = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x20E) + optional
    header += struct.pack("<8sIIIIIIHHI", b".text", len(text), 0x1000, len(text), _SETUP, 0, 0, 0, 0, 0xE000_0020)
    image[0x40 : 0x40 + len(header)] = header
    assert 0x40 + len(header) <= 0x1F1
    image[0x1F1] = _SETUP // 512 - 1
    image[0x1F4:0x1F8] = struct.pack("<I", len(text) // 16)
    image[0x1FE:0x200] = b"U\xaa"
    image[0x202:0x208] = b"HdrS" + struct.pack("<H", 0x20F)
    image[0x211] = 1
    image[0x236:0x23C] = struct.pack("<HI", 1, 2047)
    return bytes(image) + text + signature


def executable(sections: Sequence[tuple[str, bytes]], signature: bytes = b"") -> bytes:
    """A PE32+ executable for x86-64 with these sections, the size in memory that of the contents (no bzImage)."""
    headers = 0x1000
    table, body, at = b"", b"", headers
    for number, (name, contents) in enumerate(sections):
        padded = contents + bytes(-len(contents) % 512)
        table += struct.pack("<8sIIIIIIHHI", name.encode(), len(contents), 0x100000 * (number + 1), len(padded), at,
                             0, 0, 0, 0, 0x4000_0040)  # fmt: skip
        body, at = body + padded, at + len(padded)
    directories = [(0, 0)] * 4 + [(at, len(signature))] + [(0, 0)]
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 0, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QII", 0, 0x1000, 0x200) + bytes(16)
    optional += struct.pack("<IIIHHQQQQII", 0x100000 * (len(sections) + 1), headers, 0, 10, 0,
                            0, 0, 0, 0, 0, len(directories))  # fmt: skip
    optional += b"".join(struct.pack("<II", *each) for each in directories)
    image = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    image += (
        b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22E) + optional + table
    )
    assert len(image) <= headers
    return image.ljust(headers, b"\0") + body + signature


def unified_image(*sections: tuple[str, bytes], version: str = "258.3-1", protocol: bytes = b"") -> bytes:
    """A UKI: a stub of a release of systemd, which knows the ``protocol`` with this GUID, and sections behind it."""
    magic = f"#### LoaderInfo: systemd-stub {version} ####".encode()
    return executable([(".text", b"code " + protocol), (".sdmagic", magic), *sections])
