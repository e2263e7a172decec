# SPDX-License-Identifier: GPL-2.0-or-later
"""Framing: ``$data#checksum``, with ``}`` before an escaped byte, ``+`` and ``-`` as acknowledgements, 0x03 for Ctrl-C.

A client may send anything: a packet that is too long or has a wrong checksum is refused with ``-`` and
forgotten, bytes between packets are dropped.  No more than one packet's worth of bytes is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

PACKET_SIZE = 0x4000
"""Bytes between ``$`` and ``#``, as announced by PacketSize."""
INTERRUPT = 0x03
_START, _END, _ESCAPE, _REPEAT = ord("$"), ord("#"), ord("}"), ord("*")
_ACKNOWLEDGE, _REFUSE = ord("+"), ord("-")
_SPECIAL = frozenset((_START, _END, _ESCAPE, _REPEAT))


class Interrupt:
    """The client pressed Ctrl-C."""


class Again:
    """The client wants the last packet once more."""


class Broken:
    """A packet came that cannot be used."""


@dataclass(frozen=True)
class Packet:
    """A whole packet, unescaped."""

    data: bytes


@dataclass
class PacketReader:
    """Bytes in, events out; keeps what is incomplete."""

    _data: bytearray = field(default_factory=bytearray)
    _tail: bytearray = field(default_factory=bytearray)
    _inside: bool = False
    _too_long: bool = False

    def feed(self, received: bytes) -> Iterator[Packet | Interrupt | Again | Broken]:
        """What ``received`` completes, in order."""
        for byte in received:
            if byte == _START:  # also inside: what came before was cut off
                if self._tail:
                    yield Broken()
                self._data.clear()
                self._tail.clear()
                self._inside, self._too_long = True, False
            elif self._tail or (self._inside and byte == _END):
                self._tail.append(byte)
                if len(self._tail) == 3:
                    yield self._complete()
            elif self._inside:
                if len(self._data) < PACKET_SIZE:
                    self._data.append(byte)
                else:
                    self._too_long = True
            elif byte == INTERRUPT:
                yield Interrupt()
            elif byte == _REFUSE:
                yield Again()

    def _complete(self) -> Packet | Broken:
        raw, tail, too_long = bytes(self._data), bytes(self._tail), self._too_long
        self._data.clear()
        self._tail.clear()
        self._inside = False
        try:
            checksum = int(tail[1:], 16)
        except ValueError:
            return Broken()
        if too_long or sum(raw) & 0xFF != checksum or raw.endswith(b"}"):
            return Broken()
        return Packet(_unescaped(raw))


def _unescaped(raw: bytes) -> bytes:
    if _ESCAPE not in raw:
        return raw
    result = bytearray()
    escaped = False
    for byte in raw:
        if escaped:
            result.append(byte ^ 0x20)
            escaped = False
        elif byte == _ESCAPE:
            escaped = True
        else:
            result.append(byte)
    return bytes(result)


def framed(data: bytes) -> bytes:
    """The packet with ``data`` in it."""
    body = bytearray()
    for byte in data:
        if byte in _SPECIAL:
            body += bytes((_ESCAPE, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)
