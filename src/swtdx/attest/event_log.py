# SPDX-License-Identifier: GPL-2.0-or-later
"""Event logs: what firmware and boot loaders say they extended RTMRs with.

The TCG crypto-agile format (PC Client Platform Firmware Profile, TCG_PCR_EVENT2): the first record, in the old format
with a 20-byte digest, declares the digest algorithms and their sizes ("Spec ID Event03"); then come records of a
register, a type, digests, data.  In a TD's log (CCEL) the register numbers are one more than an RTMR's: 0 is MRTD, 1-4
are RTMR0-3 (UEFI, "Virtual Platform CC Event Log").  The ACPI table CCEL says where in memory the log is and how
large its area; the area's unused rest is 0xFF, or zero.

Agents write logs of their own, in JSON and as text (`swtdx.attest.agent_log`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from swtdx.attest.agent_log import aael_events, agents_events, binary_log, json_content, json_events
from swtdx.attest.event import MAXIMUM_EVENTS, SHA384_SIZE, Event, EventLogError
from swtdx.attest.event_words import EV_NO_ACTION
from swtdx.attest.evidence_kind import is_aael
from swtdx.attest.text_form import binary_of, text_bytes

MAXIMUM_LOG_SIZE = 16 << 20
MAXIMUM_ALGORITHMS = 16
_TPM_REGISTERS = 24
ALGORITHM_SHA384 = 0x000C
SPEC_ID_SIGNATURE = b"Spec ID Event03\0"
CCEL_SIZE = 56
CCEL_TYPE_TDX = 2
_CCEL = struct.Struct("<4sIBB6s8sI4sIBBHQQ")
assert _CCEL.size == CCEL_SIZE

__all__ = ["MAXIMUM_EVENTS", "SHA384_SIZE", "CcelTable", "Event", "EventLogError", "parse_event_log", "parse_table"]


@dataclass(frozen=True)
class CcelTable:
    """The ACPI table that points at the log."""

    revision: int
    cc_type: int
    area_length: int
    area_address: int


def parse_table(table: bytes) -> CcelTable:
    """Read the ACPI table CCEL. Raises `EventLogError`."""
    if len(table) < CCEL_SIZE:
        raise EventLogError(f"a CCEL table has {CCEL_SIZE} bytes, this has {len(table)}", len(table))
    fields = _CCEL.unpack_from(table)
    signature, length, revision, cc_type, area_length, area_address = (fields[i] for i in (0, 1, 2, 9, 12, 13))
    if signature != b"CCEL":
        raise EventLogError("not a CCEL table: it does not begin with CCEL", 0)
    if not CCEL_SIZE <= length <= len(table):
        raise EventLogError(f"the CCEL table says it has {length} bytes at offset 0x4; {len(table)} are there", 4)
    if sum(table[:length]) & 0xFF:
        raise EventLogError("the CCEL table's checksum at offset 0x9 is wrong", 9)
    if cc_type != CCEL_TYPE_TDX:
        raise EventLogError(f"the CCEL table is not of a TD: its type at offset 0x24 is {cc_type}, TDX is 2", 0x24)
    return CcelTable(revision, cc_type, area_length, area_address)


def parse_event_log(data: bytes, table: bytes | None = None) -> list[Event]:
    """The events of a log, in order. ``data`` is a CCEL area or an agent's log, in any form that evidence has.

    ``table`` is the ACPI table, if there is one.
    Raises `EventLogError`, whose text and ``offset`` say where the log goes wrong.

    >>> parse_event_log(b'[{"imr": 3, "event_type": 134217729, "digest": "' + b"00" * 48 + b'"}]')[0].rtmr
    3
    >>> parse_event_log(bytes(8))
    Traceback (most recent call last):
    swtdx.attest.event.EventLogError: the log ends in its first record at offset 0x0: 32 bytes wanted, 8 there
    """
    if table is not None:
        area = parse_table(table).area_length
        if len(data) > area:
            raise EventLogError(f"the log has {len(data)} bytes, its CCEL table says {area}", area)
    if data[:4] == b"CCEL":
        raise EventLogError("this is the ACPI table CCEL, not the log it points at", 0)
    if len(data) > MAXIMUM_LOG_SIZE:
        raise EventLogError(f"a log of more than {MAXIMUM_LOG_SIZE >> 20} MiB is not read", MAXIMUM_LOG_SIZE)
    text = text_bytes(data)
    if is_aael(text):
        return aael_events(text)
    if text.lstrip()[:1] in (b"[", b"{"):
        content = json_content(text)
        binary = binary_log(content)
        if binary is None:
            return json_events(content)
        events = _tcg_events(binary)
        return events + agents_events(content, len(events))
    try:
        raw = binary_of(data)
    except ValueError as error:
        raise EventLogError(f"not an event log at offset 0x0: {error}", 0) from None
    if raw is not data and (is_aael(raw) or raw.lstrip()[:1] in (b"[", b"{")):  # a log of text, in base64
        return parse_event_log(raw)
    return _tcg_events(raw)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, length: int, what: str) -> bytes:
        there = len(self.data) - self.offset
        if there < length:
            text = f"the log ends in {what} at offset {self.offset:#x}: {length} bytes wanted, {there} there"
            raise EventLogError(text, self.offset)
        piece = self.data[self.offset : self.offset + length]
        self.offset += length
        return piece

    def number(self, length: int, what: str) -> int:
        return int.from_bytes(self.take(length, what), "little")


def _tcg_events(data: bytes) -> list[Event]:
    reader = _Reader(data)
    sizes = _specification(reader)
    end = len(data.rstrip(data[-1:])) if data[-1:] in (b"\xff", b"\0") else len(data)
    events: list[Event] = []
    while reader.offset < len(data):
        rest = data[reader.offset : reader.offset + 4]
        # The unused area: all 0xFF (a register that cannot be), or all zero, which no record can be.
        if rest == b"\xff" * 4 or (end <= reader.offset and not any(rest)):
            if end > reader.offset:
                raise EventLogError(f"the log ends at offset {reader.offset:#x}, but more follows", reader.offset)
            break
        if len(events) == MAXIMUM_EVENTS:
            raise EventLogError(f"more than {MAXIMUM_EVENTS} events at offset {reader.offset:#x}", reader.offset)
        events.append(_event(reader, len(events), sizes))
    return events


def _specification(reader: _Reader) -> dict[int, int]:
    """Read the first record: digest algorithm -> digest size."""
    header = reader.take(32, "its first record")
    event_type, size = int.from_bytes(header[4:8], "little"), int.from_bytes(header[28:32], "little")
    if event_type != EV_NO_ACTION:
        raise EventLogError(f"not an event log: the first record's type at offset 0x4 is {event_type:#x}, not 3", 4)
    inner = _Reader(reader.data[: reader.offset + len(reader.take(size, "its first record"))])
    inner.offset = 32
    if inner.take(16, "its first record") != SPEC_ID_SIGNATURE:
        raise EventLogError("not a crypto-agile event log: no 'Spec ID Event03' at offset 0x20", 32)
    inner.take(8, "its first record")
    at = inner.offset
    count = inner.number(4, "its first record")
    if not 0 < count <= MAXIMUM_ALGORITHMS:
        raise EventLogError(f"the log declares {count} digest algorithms at offset {at:#x}", at)
    sizes = {}
    for _ in range(count):
        algorithm = inner.number(2, "its algorithms")
        sizes[algorithm] = inner.number(2, "its algorithms")
    if sizes.get(ALGORITHM_SHA384) != SHA384_SIZE:
        raise EventLogError(f"the log declares no SHA-384 of 48 bytes at offset {at:#x}: not the log of a TD", at)
    return sizes


def _event(reader: _Reader, number: int, sizes: dict[int, int]) -> Event:
    start, what = reader.offset, f"event {number}"
    register, event_type, count = (reader.number(4, what) for _ in range(3))
    if register > 4:
        hint = "; this looks like the log of a TPM, which has 24 registers" if register < _TPM_REGISTERS else ""
        raise EventLogError(f"event {number} at offset {start:#x} is of register {register}; a TD has 0-4{hint}", start)
    if count > len(sizes):
        raise EventLogError(f"event {number} at offset {start:#x} has {count} digests of {len(sizes)} kinds", start)
    digests = {}
    for _ in range(count):
        at = reader.offset
        algorithm = reader.number(2, what)
        if algorithm not in sizes:
            raise EventLogError(f"event {number} has an undeclared digest {algorithm:#x} at offset {at:#x}", at)
        digests[algorithm] = reader.take(sizes[algorithm], what)
    data = reader.take(reader.number(4, what), what)
    event = Event(
        number, start, register - 1 if register else None, event_type, digests.get(ALGORITHM_SHA384, b""), data
    )
    if event.extends and not event.digest:
        raise EventLogError(f"event {number} at offset {start:#x} has no SHA-384 digest", start)
    return event
