# SPDX-License-Identifier: GPL-2.0-or-later
"""The TD HOB: the hand-off block list in which the VMM tells a TDVF what memory its TD has.

Structures are those of the UEFI Platform Initialization specification, volume 3, chapter 5 ("HOB code definitions"):
one PHIT (hand-off information table), resource descriptors, the end-of-list HOB.  Memory that the VMM has added to the
TD, and that is therefore accepted, is described as system memory; all other RAM is of the type "unaccepted" (7), which
the firmware must accept before use.  The firmware's own window below 4 GiB is not RAM and does not appear.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag

_GENERIC_HEADER = struct.Struct("<HHI")  # type, length, reserved
_HANDOFF = struct.Struct("<II5Q")  # version, boot mode, memory top, bottom, free top, free bottom, end of list
_RESOURCE = struct.Struct("<16sIIQQ")  # owner GUID, resource type, attributes, start, length

HANDOFF_SIZE = _GENERIC_HEADER.size + _HANDOFF.size
RESOURCE_SIZE = _GENERIC_HEADER.size + _RESOURCE.size
END_SIZE = _GENERIC_HEADER.size

HANDOFF_VERSION = 9
BOOT_WITH_FULL_CONFIGURATION = 0
_NO_OWNER = bytes(16)


class HobType(IntEnum):
    """EFI_HOB_TYPE_*, as far as a VMM makes them."""

    HANDOFF = 0x0001
    RESOURCE_DESCRIPTOR = 0x0003
    END_OF_HOB_LIST = 0xFFFF


class ResourceType(IntEnum):
    """EFI_RESOURCE_*, as far as a VMM makes them."""

    SYSTEM_MEMORY = 0
    MEMORY_UNACCEPTED = 7


class ResourceAttribute(IntFlag):
    """EFI_RESOURCE_ATTRIBUTE_*."""

    PRESENT = 1
    INITIALIZED = 2
    TESTED = 4


_RAM_ATTRIBUTES = ResourceAttribute.PRESENT | ResourceAttribute.INITIALIZED | ResourceAttribute.TESTED


class HobError(Exception):
    """The list does not fit into the TD_HOB section."""


def memory_resources(
    ram: Sequence[tuple[int, int]], accepted: Iterable[tuple[int, int]]
) -> list[tuple[ResourceType, int, int]]:
    """Cut ``ram`` (ascending (GPA, length) ranges) at the ``accepted`` ranges that lie in it.

    Returns (type, GPA, length), ascending and without holes within a RAM range.
    """
    pieces = sorted(accepted)
    resources: list[tuple[ResourceType, int, int]] = []
    for start, length in ram:
        position, end = start, start + length
        for address, size in pieces:
            if not start <= address < end:
                continue
            if address > position:
                resources.append((ResourceType.MEMORY_UNACCEPTED, position, address - position))
            resources.append((ResourceType.SYSTEM_MEMORY, address, size))
            position = address + size
        if position < end:
            resources.append((ResourceType.MEMORY_UNACCEPTED, position, end - position))
    return resources


def build(address: int, room: int, ram: Sequence[tuple[int, int]], accepted: Iterable[tuple[int, int]]) -> bytes:
    """The HOB list that goes to GPA ``address``, where ``room`` bytes are. Raises `HobError` if it does not fit."""
    resources = memory_resources(ram, accepted)
    size = HANDOFF_SIZE + len(resources) * RESOURCE_SIZE + END_SIZE
    if size > room:
        raise HobError(f"the TD HOB needs {size} bytes, and its section has {room}")
    parts = [
        _GENERIC_HEADER.pack(HobType.HANDOFF, HANDOFF_SIZE, 0),
        _HANDOFF.pack(HANDOFF_VERSION, BOOT_WITH_FULL_CONFIGURATION, 0, 0, 0, 0, address + size),
    ]
    for kind, start, length in resources:
        parts.append(_GENERIC_HEADER.pack(HobType.RESOURCE_DESCRIPTOR, RESOURCE_SIZE, 0))
        parts.append(_RESOURCE.pack(_NO_OWNER, kind, _RAM_ATTRIBUTES, start, length))
    parts.append(_GENERIC_HEADER.pack(HobType.END_OF_HOB_LIST, END_SIZE, 0))
    return b"".join(parts)
