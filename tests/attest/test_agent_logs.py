# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs of agents and of IMA in all their forms, and what a log adds to its events without a hash over it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from swtdx.attest.event_digest import Vouched
from swtdx.attest.event_log import EventLogError, parse_event_log
from swtdx.attest.evidence_kind import kind_of
from swtdx.attest.ima_log import parse_ima_log
from swtdx.attest.replay import replay
from testing.evidence import binary_log, dstack_event, sha384


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


CCEL = binary_log((2, 4, bytes(4), bytes(4)))
V1 = struct.pack("<I", 0x08000001) + b":app-id:\xde\xad"
V2 = b'{"name":"app-id","payload":"dead","type":134217729}'
V2_BEFORE = b'{"event":"app-id","event_type":134217729,"payload":"dead","version":2}'
INIT = "INIT sha384/" + "00" * 48


@pytest.mark.parametrize(
    ("members", "preimage"),
    [
        ({"hash_input": V1.hex()}, V1),
        ({"version": 2, "hash_input": V2.hex()}, V2),
        ({"version": 2, "hash_input": V2_BEFORE.hex()}, V2_BEFORE),
        ({"version": 2, "event_payload": "", "preimage": V2.hex()}, V2),
        ({"version": 2, "event_payload": "", "preimage": V2.hex(), "digest": sha384(V2).hex()}, V2),
        ({"event_payload": "", "preimage": V1.hex()}, V1),
        ({"version": 2, "digest": sha384(V2_BEFORE).hex()}, V2_BEFORE),
    ],
)
def test_dstacks_preimages(members: dict[str, Any], preimage: bytes) -> None:
    (seen,) = parse_event_log(json.dumps([dstack_event(**members)]).encode())
    assert (seen.digest, seen.data, seen.vouched) == (sha384(preimage), b"\xde\xad", Vouched.ALL)


def test_a_preimage_of_another_event_is_not_taken_for_this_one() -> None:
    forged = dstack_event(event="other", event_payload="", preimage=V1.hex())
    with pytest.raises(EventLogError, match="preimage"):
        parse_event_log(json.dumps([forged]).encode())


def test_dstacks_file_of_runtime_events() -> None:
    lines = [{"event": "app-id", "payload": "3q0="}, {"event": "app-id", "payload": "3q0=", "version": 2}]
    for text in ("\n".join(map(json.dumps, lines)) + "\n", json.dumps(lines), json.dumps({"runtime_events": lines})):
        events = parse_event_log(text.encode())
        assert [(each.rtmr, each.digest) for each in events] == [(3, sha384(V1)), (3, sha384(V2))]
    (single,) = parse_event_log(json.dumps(lines[0]).encode())
    assert single.digest == sha384(V1)


def test_events_a_line() -> None:
    events = parse_event_log((json.dumps(dstack_event()) + "\n" + json.dumps(dstack_event(event="b")) + "\n").encode())
    assert [each.number for each in events] == [0, 1]


@pytest.mark.parametrize("event_type", [0x80000007, 0x04, 0x0D, 0x80000008])
def test_a_name_that_a_json_log_adds_is_not_vouched_for(event_type: int) -> None:
    """dstack hashes the name of its own events only; beside firmware's event any name could stand."""
    data = bytes(4) if event_type == 4 else b"data"
    record = {"imr": 0, "event_type": event_type, "digest": sha384(data).hex(), "event_payload": data.hex()}
    named, plain = parse_event_log(json.dumps([{**record, "event": "compose-hash"}, {**record, "event": ""}]).encode())
    assert (named.vouched, named.data_measured) == (Vouched.CONTENTS, None)
    assert plain.vouched is Vouched.ALL


def test_the_attestation_agents_text() -> None:
    """guest-components, attestation-agent's eventlog: each line extends the register, INIT too."""
    text = f"{INIT}\nexample.com load image\n".encode()
    events = parse_event_log(text)
    register = bytes(48)
    for line in (INIT, "example.com load image"):
        register = sha384(register + sha384(line.encode()))
    assert replay(events)[3] == register
    assert [each.vouched for each in events] == [Vouched.ALL] * 2
    evidence = {"cc_eventlog": in_base64(CCEL), "aa_eventlog": text.decode(), "quote": "AAAA"}
    both = parse_event_log(json.dumps(evidence).encode())
    assert [(each.number, each.rtmr) for each in both] == [(0, 1), (1, 3), (2, 3)]
    assert replay(both)[3] == register


@pytest.mark.parametrize(
    "text", ["INIT sha256/" + "00" * 32, "INIT sha384/" + "11" * 48, "INIT sha384", "INIT sha384/00\n\xff"]
)
def test_an_agents_text_that_is_not_for_an_rtmr(text: str) -> None:
    with pytest.raises(EventLogError):
        parse_event_log(text.encode("latin-1"))


@pytest.mark.parametrize("made", [bytes.hex, in_base64, lambda data: str(list(data))])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_ccel_as_text(made: Any, encoding: str) -> None:
    text = json.dumps({"ccel": made(CCEL)}) if made(CCEL)[0] == "[" else made(CCEL)
    assert [each.rtmr for each in parse_event_log(text.encode(encoding))] == [1]


def test_a_json_log_in_base64() -> None:
    assert parse_event_log(base64.b64encode(json.dumps([dstack_event()]).encode()))[0].digest == sha384(V1)


def test_a_log_deep_in_an_answer_is_found() -> None:
    answer = {"response": {"attestation": [{"tdx": {"log": [dstack_event()]}}]}}
    assert parse_event_log(json.dumps(answer).encode())[0].digest == sha384(V1)


def test_the_log_of_a_tpm_is_named() -> None:
    with pytest.raises(EventLogError, match="log of a TPM"):
        parse_event_log(binary_log((7, 4, bytes(4), bytes(4))))


def template(algorithm: str, digest: bytes, *fields: bytes) -> bytes:
    """Template data of Linux's IMA: each field with its length in front."""
    pieces = (algorithm.encode() + b":\0" + digest, *fields)
    return b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)


NG = template("sha256", bytes(32), b"/bin/sh\0")
NGV2 = template("ima:sha256", bytes(32), b"/bin/sh\0")
SIGV2 = template("verity:sha256", bytes(32), b"/bin/sh\0", b"\x03\x02")


@pytest.mark.parametrize(
    ("name", "fields", "data"),
    [
        ("ima-ng", f"sha256:{'00' * 32} /bin/sh", NG),
        ("ima-ngv2", f"ima:sha256:{'00' * 32} /bin/sh", NGV2),
        ("ima-sigv2", f"verity:sha256:{'00' * 32} /bin/sh 0302", SIGV2),
    ],
)
@pytest.mark.parametrize("size", [20, 32, 48])
def test_imas_templates_as_text_and_in_binary(name: str, fields: str, data: bytes, size: int) -> None:
    stated = sha384(data) if size == 48 else bytes([1]) * size
    line = f"10 {stated.hex()} {name} {fields}\n"
    record = struct.pack("<I", 10) + stated + struct.pack("<I", len(name)) + name.encode()
    record += struct.pack("<I", len(data)) + data
    for log in (line.encode() * 2, record * 2):
        first, second = parse_ima_log(log, 3, 5)
        assert (first.number, second.number, first.rtmr, first.digest) == (5, 6, 3, sha384(data))
        assert first.vouched is Vouched.ALL
        assert first.name == f"{name} {fields}"


def test_a_violation_in_a_binary_log_extends_with_ones() -> None:
    record = struct.pack("<I", 10) + bytes(20) + struct.pack("<I", 6) + b"ima-ng" + struct.pack("<I", len(NG)) + NG
    assert parse_ima_log(record)[0].digest == b"\xff" * 48
    with pytest.raises(EventLogError, match="damaged at offset"):
        parse_ima_log(record[:-1])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bytes.fromhex("8444a1013822a0"), "AWS Nitro"),
        (b"eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2ln", "JSON Web Token"),
        (b"10 " + b"00" * 20 + b" ima-ng sha256:00 /x", "IMA log"),
        (struct.pack("<I", 10) + bytes(20) + struct.pack("<I", 6) + b"ima-ng" + bytes(40), "IMA log"),
        (INIT.encode(), "attestation agent"),
        (json.dumps([dstack_event()]).encode(), "an event log"),
        (b'{"tcb_info": "{}"}', "collateral"),
        (b'{"mrtd_order": null}', "record of a launch"),
    ],
)
def test_more_kinds_of_files_are_named(data: bytes, name: str) -> None:
    kind = kind_of(data)
    assert kind is not None
    assert name in kind.name


@pytest.mark.parametrize(
    ("event_type", "data", "words"),
    [
        (0x03, b"StartupLocality\0\x03", "startup locality 3"),
        (0x03, b"SP800-155 Event3" + bytes(40), "SP800-155 Event3, 40 bytes"),
        (0x11, b"GCE NonHostInfo\0\x03" + bytes(15), "GCE confidential technology: TDX"),
        (0x800000E1, b"SPDM Device Sec\0" + bytes(8), "SPDM Device Sec, 8 bytes"),
    ],
)
def test_words_of_more_events(event_type: int, data: bytes, words: str) -> None:
    (seen,) = parse_event_log(binary_log((1, event_type, data, data)))
    assert seen.words == words
