# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMR0 and RTMR1 of a TD that starts with td-shim (td-shim specification, 3.5; td-shim/src/event_log.rs).

====================  ========  ==================================================================================
what                  register  measured
====================  ========  ==================================================================================
``td_hob``            RTMR0     the TD HOB up to its end, if the metadata have a section for it
separator             RTMR0, 1  four zeroes; with a kernel before what follows, with a payload of the image after it
``td_payload``        RTMR1     the whole payload section, if its attributes are zero (else it is in MRTD); or the
                                executable that the image brings, if the metadata ask for it
``td_payload_info``   RTMR1     with a kernel: the whole section of its command line, zeroes to its end included
====================  ========  ==================================================================================

RTMR2 and RTMR3 stay zero: such a kernel is entered without EFI, and measures nothing.  The TD HOB is the VMM's, so that
RTMR0 is predicted from a copy of it.  An image that verifies its payload extends its trust anchor as well, which is not
predicted.
"""

from __future__ import annotations

import struct

from swtdx.attest.boot_prediction import (
    EV_EFI_PLATFORM_FIRMWARE_BLOB2,
    EV_PLATFORM_CONFIG_FLAGS,
    BootPrediction,
    PredictionError,
    extension,
    predicted,
    separator,
)
from swtdx.attest.event_log import Event
from swtdx.image.tdvf import Section, SectionType, Tdvf

_PARAMETER_EVENT = b"td_payload_info"
_VERIFIES = b"secure_policy_db"
_END_OF_LIST = 0xFFFF
_HEADER = struct.Struct("<HHI")  # of a HOB: type, length, reserved
_NO_HOB = "EV_PLATFORM_CONFIG_FLAGS (td_hob: the TD HOB is the VMM's; --td-hob FILE gives a copy of it)"
_ANCHOR = "EV_PLATFORM_CONFIG_FLAGS (secure_policy_db, secure_authority: the trust anchor of an image that verifies)"
_OWN_PAYLOAD = "EV_EFI_PLATFORM_FIRMWARE_BLOB2 (td_payload: the executable that the image brings)"
_VERSION = "EV_PLATFORM_CONFIG_FLAGS (td_payload_svn: of the verified payload)"


def is_td_shim(image: bytes) -> bool:
    """Whether the image has td-shim's code, which lies uncompressed in it.

    >>> is_td_shim(bytes(4096))
    False
    """
    return _PARAMETER_EVENT in image


def with_payload(tdvf: Tdvf, kernel: bytes, command_line: str) -> Tdvf:
    """The image with a kernel and its command line in the sections for them, as a VMM fills these.

    Raises `PredictionError` for an image without such sections, or if they do not fit.
    """
    payload, parameters = _section(tdvf, SectionType.PAYLOAD), _section(tdvf, SectionType.PAYLOAD_PARAM)
    if payload is None or parameters is None:
        raise PredictionError(f"{tdvf.name} has no sections for a kernel and its command line: it brings its payload")
    try:
        return tdvf.with_contents({payload.index: kernel, parameters.index: command_line.encode() + b"\0"})
    except ValueError as error:
        raise PredictionError(str(error)) from None


def predict_td_shim(tdvf: Tdvf, hob: bytes | None = None) -> BootPrediction:
    """RTMRs of a TD built from td-shim; ``hob`` is a copy of the TD HOB that the VMM makes.

    Raises `PredictionError` for a payload that cannot be found, or a HOB that is not one.
    """
    image = bytes(tdvf.image)
    unknown: list[tuple[int, str]] = []
    events: list[Event] = []
    if _section(tdvf, SectionType.TD_HOB) is not None:
        if hob is None:
            unknown.append((0, _NO_HOB))
        else:
            events.append(_configuration(0, b"td_hob\0", measured_hob(hob)))
    if _VERIFIES in image:
        unknown += [(0, _ANCHOR), (1, _VERSION)]
    payload = _section(tdvf, SectionType.PAYLOAD)
    ends = [separator(0), separator(1)]
    if payload is None or payload.index not in tdvf.brought:  # the image brings its payload
        if payload is not None and not payload.attributes:
            unknown.append((1, _OWN_PAYLOAD))
        return predicted([*events, *ends], False, unknown, ["what the payload itself extends is not predicted"])
    parameters = _section(tdvf, SectionType.PAYLOAD_PARAM)
    assert parameters is not None, "with_payload fills both"
    events += ends
    if not payload.attributes:
        events.append(extension(1, EV_EFI_PLATFORM_FIRMWARE_BLOB2, _filled(tdvf, payload), name="td_payload"))
    events.append(_configuration(1, b"td_payload_info\0", _filled(tdvf, parameters)))
    remarks = ["a kernel that td-shim starts is entered without EFI and measures nothing: RTMR2 stays zero"]
    return predicted(events, False, unknown, remarks)


def measured_hob(hob: bytes) -> bytes:
    """A HOB list up to its end, of what may be all of its section. Raises `PredictionError`.

    >>> measured_hob(bytes.fromhex("ffff080000000000") + bytes(8)).hex()
    'ffff080000000000'
    """
    at = 0
    while at + _HEADER.size <= len(hob):
        kind, length, reserved = _HEADER.unpack_from(hob, at)
        if length < _HEADER.size or reserved:
            break
        if kind == _END_OF_LIST:
            return hob[: at + _HEADER.size]
        at += -(-length // 8) * 8
    raise PredictionError(f"the TD HOB is not a list of HOBs: it goes wrong at offset {at:#x}")


def _section(tdvf: Tdvf, kind: SectionType) -> Section | None:
    return next((section for section in tdvf.sections if section.type is kind), None)


def _filled(tdvf: Tdvf, section: Section) -> bytes:
    return bytes(tdvf.raw_contents(section)).ljust(section.memory_size, b"\0")


def _configuration(rtmr: int, name: bytes, contents: bytes) -> Event:
    """TD_SHIM_PLATFORM_CONFIG_INFO: sixteen bytes of name, a length, the contents, which are what is measured."""
    data = name.ljust(16, b"\0") + struct.pack("<I", len(contents)) + contents
    return extension(rtmr, EV_PLATFORM_CONFIG_FLAGS, contents, data)
