# SPDX-License-Identifier: GPL-2.0-or-later
"""What an event's data say, in words.  Names and layouts: TCG PC Client Platform Firmware Profile, and UEFI.

Data come from a guest: they are cut short, and only printable characters leave here, so that a log cannot play with a
terminal.  Data that do not have their type's layout are shown as hexadecimal; an event is never refused for its data.
"""

from __future__ import annotations

import re
import uuid

EV_NO_ACTION = 0x3
EV_DSTACK_RUNTIME = 0x08000001
_LONGEST = 160

TYPE_NAMES = {
    0x00: "EV_PREBOOT_CERT", 0x01: "EV_POST_CODE", 0x03: "EV_NO_ACTION", 0x04: "EV_SEPARATOR", 0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG", 0x07: "EV_S_CRTM_CONTENTS", 0x08: "EV_S_CRTM_VERSION", 0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS", 0x0B: "EV_TABLE_OF_DEVICES", 0x0C: "EV_COMPACT_HASH", 0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA", 0x0F: "EV_NONHOST_CODE", 0x10: "EV_NONHOST_CONFIG", 0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS", EV_DSTACK_RUNTIME: "DSTACK_RUNTIME_EVENT",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG", 0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION", 0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER", 0x80000006: "EV_EFI_GPT_EVENT", 0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB", 0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2", 0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY", 0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
}  # fmt: skip
_VARIABLES = {0x80000001, 0x80000002, 0x8000000C, 0x800000E0}
_IMAGES = {0x80000003, 0x80000004, 0x80000005}
_BLOBS2 = {0x8000000A, 0x8000000B}
_FW_CFG = b"QEMU FW CFG\0"
_TEXTS = {0x05, 0x08, 0x0A, 0x0D, 0x80000007, EV_DSTACK_RUNTIME}


def type_name(event_type: int) -> str:
    """``EV_SEPARATOR`` for 4; a number in hexadecimal for a type without a name.

    >>> type_name(4), type_name(0x1234)
    ('EV_SEPARATOR', '0x1234')
    """
    return TYPE_NAMES.get(event_type, f"{event_type:#x}")


def words(event_type: int, data: bytes) -> str:
    """One line about an event's data.

    >>> words(0x80000007, b"Exit Boot Services Invocation")
    'Exit Boot Services Invocation'
    >>> words(4, bytes(4))
    'separator'
    >>> words(0xA, b"QEMU FW CFG\\0BootMenu" + bytes(48))
    'fw_cfg BootMenu'
    """
    return printable(_told(event_type, data))


def printable(text: str) -> str:
    """Text of a guest's, cut short, with a dot for each character that does not print.

    >>> printable("a\\x1b[2J")
    'a.[2J'
    """
    text = "".join(character if character.isprintable() else "." for character in text[: _LONGEST + 1])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _told(event_type: int, data: bytes) -> str:
    if event_type == 0x04:
        return "separator" if data in (bytes(4), b"\xff" * 4) else f"separator after an error: {_hex(data)}"
    if event_type in _VARIABLES and len(data) >= 32:
        return _variable(data)
    if event_type in _IMAGES and len(data) >= 32:
        address, length = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        return f"image of {length:#x} bytes at {address:#x}{_path(data[32 : 32 + 4096])}"
    if event_type in _BLOBS2 and data and len(data) >= 1 + data[0]:
        name = data[1 : 1 + data[0]].decode("ascii", "replace").rstrip("\0")
        rest = data[1 + data[0] :]
        if event_type == 0x8000000A and len(rest) == 16:
            base, length = (int.from_bytes(rest[at : at + 8], "little") for at in (0, 8))
            return f"{name}: {length:#x} bytes at {base:#x}"
        return name
    if event_type == 0x80000006 and data[:8] == b"EFI PART" and len(data) >= 100:
        return f"partition table of disk {uuid.UUID(bytes_le=data[56:72])}"
    if event_type == 0x0A and data[: len(_FW_CFG)] == _FW_CFG:
        return f"fw_cfg {data[len(_FW_CFG) :].rstrip(bytes(1)).decode('ascii', 'replace')}"
    if event_type in _TEXTS and _is_text(data):
        return data.rstrip(b"\0").decode("ascii")
    if event_type == 0x06 and len(data) >= 8:
        length = int.from_bytes(data[4:8], "little")
        return f"tag {int.from_bytes(data[:4], 'little'):#x}: {_text_or_hex(data[8 : 8 + min(length, _LONGEST)])}"
    return _hex(data)


def _variable(data: bytes) -> str:
    names, size = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24))
    if 32 + 2 * names + size > len(data):
        return _hex(data)
    name = data[32 : 32 + 2 * min(names, _LONGEST)].decode("utf-16-le", "replace")
    value = data[32 + 2 * names : 32 + 2 * names + min(size, _LONGEST)]
    if re.fullmatch(r"Boot[0-9A-F]{4}", name) and len(value) >= 8:  # EFI_LOAD_OPTION: attributes, length, title
        return f"{name}: {value[6:].decode('utf-16-le', 'replace').split(chr(0))[0]}"
    value = value[:16]
    return f"{name} ({uuid.UUID(bytes_le=data[:16])}), {size} bytes: {_hex(value)}{'...' if size > 16 else ''}"


def _path(device_path: bytes) -> str:
    """The file path among the nodes of a device path, if there is one (node type 4, subtype 4)."""
    while len(device_path) >= 4:
        length = int.from_bytes(device_path[2:4], "little")
        if length < 4 or length > len(device_path):
            break
        if device_path[:2] == b"\x04\x04":
            return " from " + device_path[4:length].decode("utf-16-le", "replace").rstrip("\0")
        device_path = device_path[length:]
    return ""


def _is_text(data: bytes) -> bool:
    stripped = data.rstrip(b"\0")
    return bool(stripped) and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in stripped)


def _text_or_hex(data: bytes) -> str:
    return data.rstrip(b"\0").decode("ascii") if _is_text(data) else _hex(data)


def _hex(data: bytes) -> str:
    return data[:_LONGEST].hex()
