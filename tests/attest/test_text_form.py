# SPDX-License-Identifier: GPL-2.0-or-later
"""The forms in which evidence is held: each is made here, and must give the bytes that it was made of."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable

import pytest

from swtdx.attest.evidence_kind import kind_of
from swtdx.attest.quote import QuoteError, parse_quote, unframed
from swtdx.attest.report import ReportError, parse_report
from swtdx.attest.text_form import binary_of

DATA = bytes([4, 0]) + random.Random(4).randbytes(300) + bytes(40) + b"|  text  |"


def lines(text: str, width: int) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


def printed(row: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)


def dump(separator: str, group: int, text: str) -> str:
    rows = []
    for at in range(0, len(DATA), 16):
        row = DATA[at : at + 16]
        groups = " ".join(row[start : start + group].hex() for start in range(0, len(row), group))
        rows.append(f"{at:08x}{separator}{groups}{text.format(printed(row))}")
    return "\n".join(rows)


FORMS: dict[str, Callable[[], str]] = {
    "hexadecimal": DATA.hex,
    "0x": lambda: "0x" + DATA.hex(),
    "line breaks": lambda: lines(DATA.hex(), 64),
    "words": lambda: " ".join(DATA[at : at + 2].hex() for at in range(0, len(DATA), 2)),
    "colons": lambda: DATA.hex(":"),
    "C array": lambda: "unsigned char q[] = {\n" + ", ".join(f"0x{byte:02x}" for byte in DATA) + "\n};",
    "xxd": lambda: dump(": ", 2, "  {}"),
    "od": lambda: dump(" ", 1, "  >{}<"),
    "base64": lambda: base64.b64encode(DATA).decode(),
    "base64url": lambda: base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "base64 in lines": lambda: lines(base64.b64encode(DATA).decode(), 76),
    "quoted": lambda: f'"{base64.b64encode(DATA).decode()}"',
    "armour": lambda: f"-----BEGIN QUOTE-----\n{lines(base64.b64encode(DATA).decode(), 64)}\n-----END QUOTE-----\n",
    "array": lambda: json.dumps(list(DATA)),
    "member": lambda: json.dumps({"quote": DATA.hex()}),
    "member that is an array": lambda: json.dumps({"quote": list(DATA)}),
    "member of a member": lambda: json.dumps({"evidence": {"quote": base64.b64encode(DATA).decode()}}),
    "member of a string of JSON": lambda: json.dumps({"evidence": json.dumps({"quote": DATA.hex()})}),
    "hexdump": lambda: words_of_16_bits("{:07x}"),
    "od -x": lambda: words_of_16_bits("{:07o}"),
    "slice of Go": lambda: str(list(DATA)).replace(",", ""),
    "literal of Python": lambda: repr(DATA),
    "data URL": lambda: "data:application/octet-stream;base64," + base64.b64encode(DATA).decode(),
    "armour with headers": lambda: armoured("Version: 1\nComment: none\n\n"),
    "text before armour": lambda: "the quote:\n" + armoured(""),
    "base64 of hexadecimal": lambda: base64.b64encode(DATA.hex().encode()).decode(),
    "numbers separated by commas": lambda: ",".join(str(byte) for byte in DATA),
    "hexadecimal separated by commas": lambda: ", ".join(f"{byte:02x}" for byte in DATA),
    "literal of Go": lambda: "[]byte{" + ", ".join(f"0x{byte:02x}" for byte in DATA) + "}",
    "literal of Rust": lambda: f"let quote = vec!{list(DATA)};",
    "escaped in a URL": lambda: base64.b64encode(DATA).decode().replace("+", "%2B").replace("=", "%3D"),
    "HTTP response": lambda: "HTTP/1.1 200 OK\nContent-Type: application/json\n\n" + json.dumps({"quote": DATA.hex()}),
    "Buffer of Node": lambda: json.dumps({"quote": {"type": "Buffer", "data": list(DATA)}}),
    "Uint8Array": lambda: json.dumps({"quote": {str(at): byte for at, byte in enumerate(DATA)}}),
}


def armoured(headers: str) -> str:
    return f"-----BEGIN QUOTE-----\n{headers}{lines(base64.b64encode(DATA).decode(), 64)}\n-----END QUOTE-----\n"


def words_of_16_bits(offset: str) -> str:
    """As hexdump and od -x print them: numbers of the machine, which is little-endian."""
    rows = []
    for at in range(0, len(DATA), 16):
        row = DATA[at : at + 16]
        words = (int.from_bytes(row[start : start + 2], "little") for start in range(0, len(row), 2))
        rows.append(" ".join([offset.format(at), *(f"{word:04x}" for word in words)]))
    return "\n".join([*rows, offset.format(len(DATA))])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_in_utf_16(form: str, encoding: str) -> None:
    text = FORMS[form]().encode(encoding)
    text = b"\xfe\xff" + text if encoding == "utf-16-be" else text
    assert binary_of(text, ("quote", "evidence.quote")) == DATA


WANTED = b"\x04\0\x02\0" + bytes(700)
OTHER = b"\x04\0\x02\0" + bytes([1]) * 700


@pytest.mark.parametrize(
    "content",
    [
        {"deep": {"er": [{"an_unknown_name": WANTED.hex(), "nonce": "00" * 400}]}},
        {"twice": WANTED.hex(), "same": base64.b64encode(WANTED).decode()},
        {"text": json.dumps({"inner": list(WANTED)})},
        [{"kind": "tdx", "evidence": WANTED.hex()}],
    ],
)
def test_a_member_without_a_known_name_is_found_by_what_it_is(content: object) -> None:
    assert binary_of(json.dumps(content).encode(), ("quote",), lambda data: data[:4] == WANTED[:4]) == WANTED


def test_members_that_differ_are_not_chosen_from() -> None:
    text = json.dumps({"one": WANTED.hex(), "other": OTHER.hex()}).encode()
    with pytest.raises(ValueError, match="several members would do, and differ: one, other"):
        binary_of(text, ("quote",), lambda data: data[:4] == WANTED[:4])


def test_two_armoured_blocks_are_not_chosen_from() -> None:
    with pytest.raises(ValueError, match="2 armoured blocks"):
        binary_of((armoured("") * 2).encode())


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_bytes(form: str, bom: bytes) -> None:
    text = FORMS[form]()
    assert binary_of(bom + text.encode(), ("quote", "evidence.quote")) == DATA
    assert binary_of(bom + text.replace("\n", "\r\n").encode(), ("quote", "evidence.quote")) == DATA


def test_a_dump_with_repeated_lines() -> None:
    text = "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n*\n00000040  01\n00000041\n"
    assert binary_of(text.encode()) == bytes(64) + b"\1"


@pytest.mark.parametrize("text", ["[1, 256]", "[true]", '{"other": 1}', "{", "not hexadecimal!", "[" * 100_000])
def test_text_that_is_none_of_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"this is|nested|Expecting"):
        binary_of(text.encode(), ("quote",))


@pytest.mark.parametrize(
    "text",
    [
        *("QUOTE={}", "export QUOTE='{}'", 'quote = "{}"\n', "quote: {}\n", "quote: !!binary |\n  {}\n"),
        *("td.quote := {};", "quote: >-\n  {}"),
    ],
)  # fmt: skip
def test_a_value_behind_its_name(text: str) -> None:
    data = bytes(range(256)) * 3
    assert binary_of(text.format(data.hex()).encode()) == data
    assert binary_of(text.format(base64.b64encode(data).decode()).encode()) == data


def test_a_long_text_of_blanks_takes_no_time() -> None:
    for text in (b"a=" + b" " * 200_000 + b"!", b"[ " * 100_000, b"quote: " + b"x! \n" * 100_000):
        with pytest.raises(ValueError, match=r"neither|nested|Expecting"):
            binary_of(text)


def test_a_quote_in_the_buffer_of_getquote_and_in_the_answer_of_a_quoting_service() -> None:
    """GHCI 3.3, and qgs_msg_lib.h: u16 major, minor, u32 type, size, error; sizes of ID and quote."""
    buffer = struct.pack("<QQII", 1, 0, 1024, len(WANTED)) + WANTED + bytes(500)
    answer = struct.pack("<HHIIIII", 1, 1, 1, 24 + len(WANTED), 0, 0, len(WANTED)) + WANTED
    for carried in (buffer, answer, struct.pack(">I", len(answer)) + answer):
        assert unframed(carried) == WANTED
    for other in (answer[:-1], struct.pack("<QQII", 1, 1 << 63, 0, 0) + WANTED, b""):
        assert unframed(other) == other


def spec_id() -> bytes:
    return bytes(4) + (3).to_bytes(4, "little") + bytes(24) + b"Spec ID Event03\0" + bytes(40)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bytes([0x81]) + bytes(1023), "TDREPORT"),
        (bytes.fromhex("0300020000000000") + bytes(600), "SGX quote"),
        (spec_id(), "event log"),
        (b"070701" + b"0" * 100 + bytes(100), "cpio archive"),
        (b"DSDT" + struct.pack("<I", 40) + bytes(32), "ACPI table"),
        (bytes(512) + b"EFI PART" + bytes(512), "image of a disk"),
        (b"CCEL" + bytes(60), "ACPI table CCEL"),
        (b"HCLA" + bytes(1300), "HCL report"),
        (bytes(40) + b"_FVH" + bytes(100), "firmware image"),
        (b"\x02\0\0\0" + bytes(0x30) + b"\x01\0\0\0" + bytes(1184), "SEV-SNP"),
        (b"\xffTCG\x80\x18" + bytes(100), "TPM"),
        (bytes(0x202) + b"HdrS" + bytes(100), "Linux kernel"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
    ],
)
def test_the_wrong_kind_of_file_is_named(data: bytes, name: str) -> None:
    kind = kind_of(data)
    assert kind is not None
    assert name in kind.name
    with pytest.raises(QuoteError, match=name):
        parse_quote(data)
    if name not in ("TDREPORT", "HCL report"):
        with pytest.raises(ReportError, match=name):
            parse_report(data)


def test_a_quote_without_its_first_four_bytes_is_named() -> None:
    with pytest.raises(QuoteError, match="first 4 bytes are missing"):
        parse_quote((0x81).to_bytes(4, "little") + bytes(1000))
