# SPDX-License-Identifier: GPL-2.0-or-later
"""The good inputs that `parsers` damages: made from the specifications, and real ones where they are at hand."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from functools import cache
from uuid import UUID

from swtdx.attest.authenticode import authenticode_digest
from testing import loader_image, uefi_image
from testing.fuzzing.mutation import Seed
from testing.places import firmware_image, reference_directory
from testing.tdvf_image import BFV, DESCRIPTOR_AT, HOB, SIZE, TEMP, image_with

X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")


def vector(name: str) -> bytes:
    """A reference vector; empty where there is none."""
    path = reference_directory() / "vectors" / name
    return path.read_bytes() if path.is_file() else b""


def _given(*seeds: Seed) -> tuple[Seed, ...]:
    return tuple(seed for seed in seeds if seed.data)


@cache
def images() -> tuple[Seed, ...]:
    """TDVF images; the structure is the descriptor near the end and the table of GUIDs behind it."""
    made = image_with()
    return (Seed("made", made, ((DESCRIPTOR_AT, DESCRIPTOR_AT + 0xA0), (SIZE - 0x80, SIZE))),)


@cache
def firmware() -> tuple[Seed, ...]:
    """The installed firmware, whose decompression takes its time; without one, an image made here."""
    real = firmware_image()
    if not real.is_file():
        return images()
    image = real.read_bytes()
    at = image.rfind(b"TDVF")
    return (Seed("OVMF.fd", image, ((at - 16, at + 0x100), (len(image) - 0x100, len(image)), (0, 0x100))),)


@cache
def bootable_images() -> tuple[Seed, ...]:
    """Images as edk2 builds them: variables, volumes, compressed volumes."""
    plain = uefi_image.edk2_like({("KEK", uefi_image.GLOBAL): b"key"})
    table = (DESCRIPTOR_AT, DESCRIPTOR_AT + 0xA0)
    return (Seed("made", plain, ((0, 0x100), (0x4000, 0x4400), table)),)


@cache
def variables() -> tuple[Seed, ...]:
    """CFVs."""
    names = {("PK", uefi_image.GLOBAL): b"key", ("db", uefi_image.IMAGE_SECURITY): b"x" * 100}
    return (Seed("made", uefi_image.variable_store(uefi_image.stored(names)), ((0, 0x200),)),)


@cache
def kernels() -> tuple[Seed, ...]:
    """bzImages that are PE executables."""
    digest = authenticode_digest(uefi_image.efi_kernel(), "sha256")
    signature = uefi_image.certificate_table(b"\x30\x82\0\x40" + digest + b"s" * 32)
    image = uefi_image.efi_kernel(signature=signature)
    return (Seed("made", image, ((0x3C, 0x130), (0x1F0, 0x268), (len(image) - len(signature), len(image)))),)


@cache
def loaders() -> tuple[Seed, ...]:
    """What firmware starts from a disk: a UKI, shim, GRUB."""
    protocol = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")
    profiles = ((".profile", b"ID=a"), (".cmdline", b"quiet"), (".profile", b"ID=b"))
    sections = ((".linux", uefi_image.efi_kernel(protocol)), (".cmdline", b"ro"), (".osrel", b"ID=x"), *profiles)
    unified = uefi_image.unified_image(*sections, version="258", protocol=protocol)
    headers = (0, 0x400)
    return (
        Seed("UKI", unified, (headers,)),
        Seed("shim", loader_image.shim(), (headers, (0x1200, 0x1800))),
        Seed("GRUB", loader_image.grub(config="echo a"), (headers, (0x1200, 0x1800))),
    )


@cache
def scripts() -> tuple[Seed, ...]:
    """Configurations of GRUB."""
    whole = (
        b"if [ -s $prefix/grubenv ]; then load_env; fi\nfunction f { echo $1 \"$@\"; return 1; }\nf a 'b c'\n"
        b"for i in 1 2; do if [ $i = 2 -a ! -f /x ]; then break; fi; done\nwhile ! true; do set a=${b}c; done\n"
        b"search --file --set=root /vmlinuz\nset default='x>0'\nsubmenu S --id x {\n  menuentry \"E $a\" --class c {\n"
        b'    linux /vmlinuz ro "q\\" r"\n    initrd /vmlinuz\n  }\n}\n'
    )
    stub = (
        b"search.fs_uuid 12 root\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\nsource /EFI/debian/grub.cfg\n"
    )
    return (Seed("whole", whole), Seed("stub", stub))


@cache
def disks() -> tuple[Seed, ...]:
    """The first sectors of a disk with a GPT."""
    disk = loader_image.partitioned(UUID(int=1), UUID(int=2))
    return (Seed("made", disk, ((0x200, 0x260), (0x400, 0x500))),)


@cache
def stores() -> tuple[Seed, ...]:
    """Variables as JSON, beside those of CFVs."""
    listed = [{"name": "Boot0000", "guid": str(uefi_image.GLOBAL), "attr": 7, "data": "0100"}]
    return (Seed("JSON", json.dumps({"version": 2, "variables": listed}).encode(), json=True), *variables())


@cache
def shims() -> tuple[Seed, ...]:
    """td-shim with sections for a kernel and its command line, and a TD HOB behind it."""
    rows = (BFV, TEMP, HOB, (0, 0, 0x100_0000, 0x4000, 5, 0), (0, 0, 0x200_0000, 0x1000, 6, 0))
    image = bytearray(image_with(rows=rows))
    image[BFV[0] : BFV[0] + 15] = b"td_payload_info"
    return (Seed("made", bytes(image), ((DESCRIPTOR_AT, DESCRIPTOR_AT + 0xC0), (SIZE - 0x80, SIZE))),)


@cache
def hobs() -> tuple[Seed, ...]:
    """A TD HOB."""
    resource = struct.pack("<HHI", 3, 48, 0) + bytes(40)
    return (Seed("made", struct.pack("<HHI", 1, 56, 0) + bytes(48) + resource * 2 + struct.pack("<HHI", 0xFFFF, 8, 0)),)


@cache
def database() -> bytes:
    """A ``db`` of one certificate that is none."""
    return uefi_image.signature_list(X509, b"\x30\x82\0\x10" + bytes(16))


@cache
def logs() -> tuple[Seed, ...]:
    """Event logs: TCG's, and dstack's JSON."""

    def event(register: int, kind: int, data: bytes) -> bytes:
        head = struct.pack("<IIIH", register, kind, 1, 0xC) + hashlib.sha384(data).digest()
        return head + struct.pack("<I", len(data)) + data

    specification = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HHB", 0xC, 48, 0)
    log = struct.pack("<II20sI", 1, 3, b"", len(specification)) + specification
    name = "SecureBoot".encode("utf-16-le")
    log += event(1, 0x8000_0001, uefi_image.GLOBAL.bytes_le + struct.pack("<QQ", 10, 1) + name + b"\1")
    log += event(2, 0x8000_0003, bytes(24) + struct.pack("<Q", 8) + b"\x04\x04\x08\0k\0\0\0")
    log += event(1, 0x8000_000A, b"\x03Fv\0" + bytes(16)) + event(3, 6, struct.pack("<II", 7, 4) + b"tag\0")
    log += event(2, 4, bytes(4)) + event(2, 0x8000_0006, b"EFI PART" + bytes(100))
    mine = [{"imr": 3, "event_type": 0x0800_0001, "digest": "00" * 48, "event": "x", "event_payload": "6162"}]
    return _given(
        Seed("made", log + b"\xff" * 64, ((0, len(log)),)),
        Seed("JSON", json.dumps(mine).encode(), json=True),
        Seed("JSON in JSON", json.dumps({"event_log": json.dumps(mine)}).encode()),
        Seed("runtime events", b'{"event": "a", "payload": "YWI="}\n{"event": "b", "payload": "", "version": 2}\n'),
        Seed("AAEL", b"INIT sha384/" + b"00" * 48 + b"\nexample.com load image\n"),
        Seed("trustee", json.dumps({"ccel": log.hex(), "aael": "INIT sha384/" + "00" * 48}).encode()),
        Seed("base64", base64.b64encode(log)),
        Seed("COS", vector("ccel/go-tdx-guest_cos113_ccel_data.dat")[:0x4800]),
        Seed("dstack", vector("dstack_quote-report.json"), json=True),
    )


@cache
def ima_logs() -> tuple[Seed, ...]:
    """Lines of Linux's IMA log."""
    lines = [
        f"10 {'ab' * 20} ima-ng sha256:{'cd' * 32} /bin/sh",
        f"2 {'ab' * 48} ima-sig sha384:{'cd' * 48} /bin/a b 0302046e",
        f"3 {'00' * 48} ima-buf sha256:{'00' * 32} key 3082",
    ]
    data = struct.pack("<I", 40) + b"sha256:\0" + bytes(32) + struct.pack("<I", 8) + b"/bin/sh\0"
    record = struct.pack("<I", 10) + bytes([1]) * 20 + struct.pack("<I", 6) + b"ima-ng" + struct.pack("<I", len(data))
    binary = (record + data) * 2
    return _given(
        Seed("made", "\n".join(lines).encode()), Seed("one line", lines[1].encode()),
        Seed("binary", binary, ((0, len(binary)),)),
    )  # fmt: skip


@cache
def policies() -> tuple[Seed, ...]:
    """Policy files."""
    digest = "ab" * 48
    text = f"""[td]
mrtd = ["{digest}", "{digest}"]
rtmr2 = {{ value = "{digest}", mask = "{digest}" }}
attributes = {{ value = "0x10000000", mask = "0xff" }}
allow = ["debug"]
[tcb]
statuses = ["UpToDate"]
maximum_age_days = 10
accepted_advisories = []
[events]
command_line = "quiet"
compose_hash = "ab"
aael = ["a b c"]
[[events.rule]]
register = 2
type = "EV_IPL"
text = ["x"]
forbidden = true
"""
    return (Seed("made", text.encode()),)


@cache
def evidence() -> tuple[Seed, ...]:
    """What can be compared: quotes, reports and logs, and text forms of them."""
    quote = made_quote(4)
    words = " ".join(f"{byte:02x}" for byte in quote)
    predicted = {"mrtd": "00" * 48, "pages_measured": 1, "direct_boot": {"rtmrs": ["00" * 48] * 4, "events": []}}
    return _given(
        *(Seed(f"{kind} {each.name}", each.data) for kind, seeds in (("log", logs()), ("report", reports()))
          for each in seeds),
        Seed("quote", quote),
        Seed("hexadecimal", quote.hex().encode()),
        Seed("UTF-16", quote.hex().encode("utf-16")),
        Seed("Go", str(list(quote)).replace(",", "").encode()),
        Seed("Python", repr(quote).encode()),
        Seed("words", f"0000000 {words}\n".encode()),
        Seed("Buffer", json.dumps({"x": {"type": "Buffer", "data": list(quote)}}).encode()),
        Seed("prediction", json.dumps(predicted).encode(), json=True),
    )  # fmt: skip


@cache
def tables() -> tuple[Seed, ...]:
    """ACPI tables CCEL."""
    table = bytearray(struct.pack("<4sIBB6s8sI4sIBBHQQ", b"CCEL", 56, 1, 0, b"", b"", 0, b"", 0, 2, 0, 0, 1 << 16, 0))
    table[9] = -sum(table) & 0xFF
    return (Seed("made", bytes(table)),)


@cache
def made_quote(version: int) -> bytes:
    """A quote whose signature is of nothing, as far as its layout goes."""
    body = bytes(range(256)) * 2 + bytes(72 if version == 4 else 136)
    kind = b"" if version == 4 else struct.pack("<HI", 3, len(body))
    inner = struct.pack("<HI", 5, 30) + b"-----BEGIN CERTIFICATE-----\n\0\0"
    certification = bytes(384) + bytes(64) + struct.pack("<H", 32) + bytes(32) + inner
    signature = bytes(128) + struct.pack("<HI", 6, len(certification)) + certification
    header = struct.pack("<HHI4s16s20s", version, 2, 0x81, b"", bytes(16), b"")
    return header + kind + body + struct.pack("<I", len(signature)) + signature


@cache
def quotes() -> tuple[Seed, ...]:
    """Quotes in both versions; those of real machines."""
    names = ("go-tdx-guest_cos113_quote.dat", "go-tdx-guest_v5_sample.dat", "dcap-qvl_tdx_quote", "dcap-qvl_sgx_quote")
    return _given(
        *(Seed(f"v{version}", made_quote(version)) for version in (4, 5)),
        Seed("hexadecimal", made_quote(4).hex().encode()),
        *(Seed(name, vector(f"quotes/{name}"), ((0, 0x40), (0x270, 0x2C0))) for name in names),
    )


@cache
def genuine_quotes() -> tuple[Seed, ...]:
    """Quotes for the verifier, which has to get past the layout."""
    return _given(Seed("genuine", vector("quotes/dcap-qvl_tdx_quote"), ((0x270, 0x700),))) or quotes()


@cache
def collateral() -> tuple[Seed, ...]:
    """Collateral as JSON."""
    members = ("pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info",
               "tcb_info_signature", "qe_identity_issuer_chain", "qe_identity", "qe_identity_signature")  # fmt: skip
    made = json.dumps(dict.fromkeys(members, "00")).encode()
    genuine = vector("collateral/dcap-qvl_tdx_quote_collateral.json")
    return _given(Seed("made", made, json=True), Seed("genuine", genuine, json=True))


_CLAIMS = struct.pack("<IIIII", 34, 1, 4, 1, 14) + b'{"keys": [{}]}'


@cache
def reports() -> tuple[Seed, ...]:
    """TDREPORTs."""
    made = b"\x81" + bytes(range(255)) * 4 + bytes(3)
    published = vector("reports/go-tdx-guest_tdreport.dat")
    return _given(
        Seed("made", made),
        Seed("hexadecimal", made.hex().encode()),
        Seed("Azure", b"HCLA" + struct.pack("<III", 2, 2437, 2) + bytes(16) + made.ljust(1184, b"\0") + _CLAIMS),
        Seed("published", b"\x81" + bytes(47) + published[:976] if published else b""),
    )


@cache
def records() -> tuple[Seed, ...]:
    """What ``swtdx run --json`` keeps, as far as a comparison reads it."""
    digest = "ab" * 48
    section = {"section": 0, "type": "BFV", "gpa": 0xFFFF0000, "pages": 2, "measured": True, "sha384": [digest] * 2}
    bare = {"section": 1, "type": "TD_HOB", "gpa": 0x809000, "pages": 2, "measured": False, "sha384": []}
    made = {
        "vm_type": "tdx", "mrtd": digest, "mrtd_order": "page by page", "added": [section, bare], "rtmr": [digest] * 4,
        "rtmr_events": [[0, digest], [1, digest]], "memory": 1 << 28,
        "firmware": {"path": "absent.fd", "sha256": digest},
    }  # fmt: skip
    return (Seed("made", json.dumps(made).encode(), json=True),)
