# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of many producers: what their digests vouch for, and their words. All logs here are made from the formats."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from typing import Any

import pytest

from swtdx.attest.event_digest import Vouched
from swtdx.attest.event_log import Event, EventLogError, parse_event_log
from swtdx.attest.ima_log import parse_ima_log
from swtdx.attest.replay import leads_to, remarks, replay
from testing.evidence import binary_log, dstack_digest, dstack_event, sha384

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le


def event(event_type: int, data: bytes, measured: bytes, rtmr: int = 2) -> Event:
    return Event(0, 0, rtmr, event_type, sha384(measured), data)


def variable(name: str, contents: bytes, owner: bytes = GLOBAL) -> bytes:
    return owner + struct.pack("<QQ", len(name), len(contents)) + name.encode("utf-16-le") + contents


def tagged(tag: int, contents: bytes) -> bytes:
    return struct.pack("<II", tag, len(contents)) + contents


def shim(name: bytes, contents: bytes) -> bytes:
    return name.ljust(16, b"\0") + struct.pack("<I", len(contents)) + contents


def wide(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le")


AAEL = 0x4141454C


@pytest.mark.parametrize(
    ("event_type", "data", "measured", "vouched", "data_measured", "words"),
    [
        (0x04, bytes(4), bytes(4), Vouched.ALL, True, "separator"),
        (0x04, bytes(4), b"else", Vouched.CONTRADICTED, False, "separator"),
        (0x04, b"reason", (1).to_bytes(4, "little"), Vouched.CONTENTS, None, "separator after an error: reason"),
        (0x01, b"ACPI DATA", b"tables", Vouched.NOTHING, None, "ACPI DATA"),
        (0x01, struct.pack("<QQ", 0x1000, 0x20), b"code", Vouched.NOTHING, None, "0x20 bytes at 0x1000"),
        (0x13, b"\5SEC\0\0" + struct.pack("<QQ", 1, 2), b"code", Vouched.NOTHING, None, "SEC: 0x2 bytes at 0x1"),
        (0x08, wide("2025.02-8"), wide("2025.02-8"), Vouched.ALL, True, "2025.02-8"),
        (0x08, wide("2025.02-8"), b"else", Vouched.CONTRADICTED, False, "2025.02-8"),
        (0x80000002, variable("BootOrder", b"\1\0\2\0"), b"\1\0\2\0", Vouched.CONTENTS, None, "BootOrder: 0001, 0002"),
        (0x80000002, variable("BootNextX", b"\1\0"), b"\1\0", Vouched.CONTENTS, None, None),
        (
            0x80000002,
            variable("BootOrder", b"\1\0"),
            variable("BootOrder", b"\1\0"),
            Vouched.ALL,
            True,
            "BootOrder: 0001",
        ),
        (0x80000002, variable("BootOrder", b"\1\0"), b"\2\0", Vouched.CONTRADICTED, False, "BootOrder: 0001"),
        (0x8000000C, variable("Boot", b"ab"), variable("Boot", b"ab"), Vouched.ALL, True, None),
        (0x8000000C, variable("Boot", b"ab"), b"ab", Vouched.CONTRADICTED, False, None),
        (0x80000001, variable("SecureBoot", b"\1"), variable("SecureBoot", b"\1"), Vouched.ALL, True, None),
        (0x0D, b"grub_cmd: ls /", b"ls /", Vouched.LABELLED, True, "grub_cmd: ls /"),
        (0x0D, b"grub_cmd set timeout=1\0t", b"set timeout=1\0", Vouched.LABELLED, True, "grub_cmd set timeout=1"),
        (0x0D, b"kernel_cmdline: root=/dev/vda\0", b"root=/dev/vda", Vouched.LABELLED, True, None),
        (0x0D, b"kernel_cmdline: init=/bin/sh", b"root=/dev/vda", Vouched.CONTRADICTED, False, None),
        (0x0D, b"(hd0,gpt2)/vmlinuz", b"a kernel", Vouched.NOTHING, None, "(hd0,gpt2)/vmlinuz"),
        (0x0D, b"MokList\0", b"a list", Vouched.NOTHING, None, "MokList"),
        (0x0D, wide(".linux"), b".linux\0", Vouched.ALL, True, ".linux"),
        (0x0D, wide(".linux"), b"a kernel", Vouched.NOTHING, None, ".linux"),
        (0x0D, wide("root=/dev/vda ro"), wide("root=/dev/vda ro"), Vouched.ALL, True, "root=/dev/vda ro"),
        (0x06, tagged(0xF5BC582A, wide("loader.conf")), b"timeout 3", Vouched.NOTHING, None, "loader.conf"),
        (0x06, tagged(0x8F3B22EC, b"Linux initrd\0"), b"cpio", Vouched.NOTHING, None, "Linux initrd"),
        (0x06, tagged(AAEL, b"coco op x"), tagged(AAEL, b"coco op x"), Vouched.ALL, True, "AAEL: coco op x"),
        (0x06, tagged(AAEL, b"coco op x"), b"coco op x", Vouched.ALL, True, "AAEL: coco op x"),
        (0x06, tagged(AAEL, b"coco op x"), b"coco op y", Vouched.CONTRADICTED, False, "AAEL: coco op x"),
        (0x0A, shim(b"td_payload_info", b"root=/"), b"root=/", Vouched.LABELLED, True, "td_payload_info: root=/"),
        (0x0A, b"QEMU FW CFG\0BootMenu", b"\0", Vouched.NOTHING, None, "fw_cfg BootMenu"),
        (0x12, b"BOOT ATTEMPTS OMITTED", b"BOOT ATTEMPTS OMITTED", Vouched.ALL, True, "BOOT ATTEMPTS OMITTED"),
        (
            0x80000008,
            struct.pack("<QQ", 0xFFC00000, 0x1000),
            b"code",
            Vouched.NOTHING,
            None,
            "0x1000 bytes at 0xffc00000",
        ),
        (0x80000010, b"HCRTM", b"code", Vouched.NOTHING, None, "HCRTM"),
        (0x8000000B, b"\x08TdxTable" + bytes(24), b"hob", Vouched.NOTHING, None, "TdxTable"),
    ],
)
def test_what_a_digest_vouches_for(
    event_type: int, data: bytes, measured: bytes, vouched: Vouched, data_measured: bool | None, words: str | None
) -> None:
    seen = event(event_type, data, measured)
    assert (seen.vouched, seen.data_measured) == (vouched, data_measured)
    assert words is None or seen.words == words
    assert seen.as_json()["vouched"] == vouched.value


def test_data_that_were_removed_are_no_accusation() -> None:
    seen = event(0x04, b"", bytes(4))
    assert seen.vouched is Vouched.ABSENT
    assert seen.words == "payload not in the log"


def test_a_variable_that_holds_keys_is_described_by_their_number() -> None:
    certificates = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    hashes = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
    contents = certificates + struct.pack("<III", 28 + 20, 0, 20) + bytes(20)
    contents += hashes + struct.pack("<III", 28 + 96, 0, 48) + bytes(96)
    seen = event(0x80000001, variable("db", contents), b"")
    assert seen.words.endswith("1 certificate, 2 hashes")


V1 = dstack_digest("app-id", b"\xde\xad")
PREIMAGE = b'{"name":"app-id","payload":"dead","type":134217729}'


@pytest.mark.parametrize(
    ("members", "digest", "vouched"),
    [
        ({"digest": V1.hex()}, V1, Vouched.ALL),
        ({}, V1, Vouched.ALL),
        ({"digest": None}, V1, Vouched.ALL),
        ({"version": 2}, sha384(PREIMAGE), Vouched.ALL),
        ({"version": 2, "digest": sha384(PREIMAGE).hex(), "preimage": PREIMAGE.hex()}, sha384(PREIMAGE), Vouched.ALL),
        ({"digest": "00" * 48}, bytes(48), Vouched.CONTRADICTED),
        ({"digest": V1.hex(), "event_payload": ""}, V1, Vouched.ABSENT),
        ({"version": 2, "digest": V1.hex()}, V1, Vouched.CONTRADICTED),
    ],
)
def test_events_of_dstack(members: dict[str, Any], digest: bytes, vouched: Vouched) -> None:
    (seen,) = parse_event_log(json.dumps([dstack_event(**members)]).encode())
    assert (seen.digest, seen.vouched) == (digest, vouched)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"event_type": 4}, "no digest"),
        ({"event": ""}, "no digest"),
        ({"version": 9}, "version 9"),
        ({"version": 2, "preimage": "7b7d"}, "preimage"),
        ({"digest": "00"}, "1 bytes"),
        ({"digest": 5}, "not text or hexadecimal"),
        ({"imr": True}, "imr"),
        ({"event": "\ud800"}, "not text or hexadecimal"),
    ],
)
def test_events_of_dstack_that_cannot_be_read(members: dict[str, Any], text: str) -> None:
    with pytest.raises(EventLogError, match=text):
        parse_event_log(json.dumps([dstack_event(**members)]).encode())


def test_a_log_inside_an_agents_answer() -> None:
    log = [dstack_event()]
    for answer in (
        log,
        {"event_log": log},
        {"event_log": json.dumps(log)},
        {"tcb_info": {"event_log": log}},
        {"tcb_info": json.dumps({"event_log": log})},
    ):
        assert parse_event_log(b"\xef\xbb\xbf" + json.dumps(answer).encode())[0].digest == V1


def test_a_ccel_in_evidence_of_trustee() -> None:
    log = binary_log((2, 4, bytes(4), bytes(4)))
    evidence = json.dumps({"cc_eventlog": base64.b64encode(log).decode(), "quote": "AAAA"}).encode()
    assert [each.rtmr for each in parse_event_log(evidence)] == [1]


def test_rtmr3_counts_where_the_log_extends_it() -> None:
    covered = replay(parse_event_log(json.dumps([dstack_event()]).encode()))
    other = (*covered[:3], sha384(b"another"))
    assert leads_to(covered, covered)
    assert not leads_to(covered, other)
    assert leads_to((*covered[:3], bytes(48)), other)  # a log without such events says nothing of RTMR3


def test_two_separators_in_a_register_are_remarked() -> None:
    events = parse_event_log(binary_log(*[(register, 4, bytes(4), bytes(4)) for register in (1, 1, 2)]))
    (remark,) = remarks(events)
    assert remark.startswith("RTMR0 has 2 separators (events 0, 1)")
    assert "efaf893" in remark


def template(digest: bytes, name: str, algorithm: str = "sha256") -> bytes:
    """The template data of ima-ng: each field with its length, an algorithm ending in a NUL, a path likewise."""
    fields = (f"{algorithm}:\0".encode() + digest, name.encode() + b"\0")
    return b"".join(struct.pack("<I", len(field)) + field for field in fields)


def test_ima_lines_extend_the_register_that_they_name() -> None:
    data = template(bytes(32), "/bin/sh")
    lines = [
        f"3 {sha384(data).hex()} ima-ng sha256:{bytes(32).hex()} /bin/sh",
        f"10 {hashlib.sha1(data).hexdigest()} ima-ng sha256:{bytes(32).hex()} /bin/sh",
        f"10 {bytes(20).hex()} ima-ng sha256:{bytes(32).hex()} /bin/sh",
        f"2 {sha384(b'x').hex()} own-template sha256:{bytes(32).hex()} a file",
    ]
    events = parse_ima_log("\n".join(lines).encode(), 2, 7)
    assert [(each.number, each.rtmr, each.digest) for each in events] == [
        (7, 3, sha384(data)),
        (8, 2, sha384(data)),
        (9, 2, b"\xff" * 48),
        (10, 2, sha384(b"x")),
    ]
    assert [each.vouched for each in events[:2]] == [Vouched.ALL, Vouched.ALL]
    assert events[3].vouched is Vouched.NOTHING


@pytest.mark.parametrize(
    "line", ["x", "10 zz ima-ng sha256:00 a", "0 00 ima-ng sha256:00 a", "10 00ff own x y", "\xff"]
)
def test_ima_lines_that_cannot_be_read(line: str) -> None:
    with pytest.raises(EventLogError):
        parse_ima_log(line.encode("latin-1"))
