# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between a VMM and a quote generation service (QGS), version 1.1 of Intel's protocol.

On a stream, four bytes before each message give its length, big-endian; all other numbers are little-endian.  A message
begins with a header of 16 bytes: major and minor version, type, size of the whole message, error code.  Layouts after
``qgs_msg_lib.h`` of Intel's DCAP library.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAJOR, MINOR = 1, 1
MAXIMUM_MESSAGE = 1 << 20
"""Bytes; far above any request or answer."""
FRAME = struct.Struct(">I")
HEADER = struct.Struct("<HHIII")
_TWO_SIZES = struct.Struct("<II")
_COLLATERAL_SIZES = struct.Struct("<HH7I")
_PLATFORM_INFO = struct.Struct("<HHII")
COLLATERAL_VERSION = (3, 0)


class MessageType(IntEnum):
    """What a message is."""

    GET_QUOTE_REQ = 0
    GET_QUOTE_RESP = 1
    GET_COLLATERAL_REQ = 2
    GET_COLLATERAL_RESP = 3
    GET_PLATFORM_INFO_REQ = 4
    GET_PLATFORM_INFO_RESP = 5


class QgsError(IntEnum):
    """Error codes of an answer."""

    SUCCESS = 0
    UNEXPECTED = 0x12001
    OUT_OF_MEMORY = 0x12002
    INVALID_PARAMETER = 0x12003
    INVALID_VERSION = 0x12004
    INVALID_TYPE = 0x12005
    INVALID_SIZE = 0x12006
    INVALID_CODE = 0x12007


class MessageError(ValueError):
    """Bytes that are not a message of the protocol; the text says why."""


@dataclass(frozen=True)
class Request:
    """A request, taken apart. ``first`` and ``second`` are its two variable parts.

    GET_QUOTE_REQ: report and list of identities; GET_COLLATERAL_REQ: FMSPC and the name of the CA.
    """

    type: MessageType
    first: bytes = b""
    second: bytes = b""


def framed(message: bytes) -> bytes:
    """A message as it goes over a stream."""
    return FRAME.pack(len(message)) + message


def _message(kind: MessageType, body: bytes, error: int = 0) -> bytes:
    return HEADER.pack(MAJOR, MINOR, kind, HEADER.size + len(body), error) + body


def quote_request(report: bytes) -> bytes:
    """GET_QUOTE_REQ.

    >>> quote_request(b"r").hex()
    '01000100000000001900000000000000010000000000000072'
    """
    return _message(MessageType.GET_QUOTE_REQ, _TWO_SIZES.pack(len(report), 0) + report)


def collateral_request(fmspc: bytes, ca: str) -> bytes:
    """GET_COLLATERAL_REQ."""
    name = ca.encode()
    return _message(MessageType.GET_COLLATERAL_REQ, _TWO_SIZES.pack(len(fmspc), len(name)) + fmspc + name)


def platform_info_request() -> bytes:
    """GET_PLATFORM_INFO_REQ."""
    return _message(MessageType.GET_PLATFORM_INFO_REQ, b"")


def quote_response(quote: bytes, error: QgsError = QgsError.SUCCESS) -> bytes:
    """GET_QUOTE_RESP: a quote, or an error without one."""
    return _message(MessageType.GET_QUOTE_RESP, _TWO_SIZES.pack(0, len(quote)) + quote, error)


def collateral_response(parts: tuple[bytes, ...], error: QgsError = QgsError.SUCCESS) -> bytes:
    """GET_COLLATERAL_RESP: seven parts, from the PCK CRL's issuer chain to the QE identity."""
    sizes = [len(part) for part in parts] or [0] * 7
    body = _COLLATERAL_SIZES.pack(*COLLATERAL_VERSION, *sizes) + b"".join(parts)
    return _message(MessageType.GET_COLLATERAL_RESP, body, error)


def platform_info_response(tdqe_isvsvn: int, pce_isvsvn: int, platform_id: bytes, cpusvn: bytes) -> bytes:
    """GET_PLATFORM_INFO_RESP."""
    body = _PLATFORM_INFO.pack(tdqe_isvsvn, pce_isvsvn, len(platform_id), len(cpusvn)) + platform_id + cpusvn
    return _message(MessageType.GET_PLATFORM_INFO_RESP, body)


def parse_request(message: bytes) -> Request:
    """Take a request apart, as Intel's parser does: it looks at the major version only, and wants exact sizes.

    Raises `MessageError`.
    """
    if len(message) < HEADER.size:
        raise MessageError(f"{len(message)} bytes are less than a header")
    major, _, kind, size, _ = HEADER.unpack_from(message)
    if major != MAJOR:
        raise MessageError(f"version {major} of the protocol, not {MAJOR}")
    if size != len(message):
        raise MessageError(f"the header says {size} bytes, the message has {len(message)}")
    if kind == MessageType.GET_PLATFORM_INFO_REQ:
        if size != HEADER.size:
            raise MessageError("GET_PLATFORM_INFO_REQ is a header alone")
        return Request(MessageType.GET_PLATFORM_INFO_REQ)
    if kind not in (MessageType.GET_QUOTE_REQ, MessageType.GET_COLLATERAL_REQ):
        raise MessageError(f"type {kind} is not a request")
    if size < HEADER.size + _TWO_SIZES.size:
        raise MessageError(f"{MessageType(kind).name} ends in its header")
    first, second = _TWO_SIZES.unpack_from(message, HEADER.size)
    start = HEADER.size + _TWO_SIZES.size
    if first + second != size - start:
        raise MessageError(f"parts of {first} and {second} bytes in a message of {size}")
    return Request(MessageType(kind), message[start : start + first], message[start + first :])


def parse_quote_response(message: bytes) -> bytes:
    """The quote of a GET_QUOTE_RESP. Raises `MessageError` for whatever QEMU refuses, too."""
    start = HEADER.size + _TWO_SIZES.size
    if len(message) < start:
        raise MessageError(f"{len(message)} bytes are less than GET_QUOTE_RESP has")
    major, minor, kind, size, error = HEADER.unpack_from(message)
    id_size, quote_size = _TWO_SIZES.unpack_from(message, HEADER.size)
    if (major, minor) != (MAJOR, MINOR):
        raise MessageError(f"version {major}.{minor} of the protocol, not {MAJOR}.{MINOR}")
    if kind != MessageType.GET_QUOTE_RESP:
        raise MessageError(f"type {kind} is not GET_QUOTE_RESP")
    if size > len(message):
        raise MessageError(f"the header says {size} bytes, the message has {len(message)}")
    if error:
        raise MessageError(f"the service answered with the error {error:#x}")
    if id_size:
        raise MessageError(f"an identity of {id_size} bytes was selected, though none was offered")
    if quote_size != len(message) - start:
        raise MessageError(f"a quote of {quote_size} bytes in a message of {len(message)}")
    return message[start:]
