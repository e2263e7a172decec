# SPDX-License-Identifier: GPL-2.0-or-later
"""An event's data in words.  Names and layouts: TCG PC Client Platform Firmware Profile, and UEFI.

Data come from a guest: they are cut short, and only printable characters leave here, so that a log cannot play with a
terminal.  Data that do not have their type's layout are shown as text if they are text (ASCII, UTF-8 or UTF-16), else
as hexadecimal; an event is never refused for its data.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from swtdx.attest.certificates import parse_certificate
from swtdx.attest.event_digest import EV_AAEL, EV_DSTACK_RUNTIME, EV_IMA, TAG_AAEL, shim_configuration
from swtdx.attest.printable import LONGEST, printable
from swtdx.image.guid import guid_bytes, guid_text

EV_NO_ACTION = 0x3
_TEXT_LIMIT = 4096

TYPE_NAMES = {
    0x00: "EV_PREBOOT_CERT", 0x01: "EV_POST_CODE", 0x03: "EV_NO_ACTION", 0x04: "EV_SEPARATOR", 0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG", 0x07: "EV_S_CRTM_CONTENTS", 0x08: "EV_S_CRTM_VERSION", 0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS", 0x0B: "EV_TABLE_OF_DEVICES", 0x0C: "EV_COMPACT_HASH", 0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA", 0x0F: "EV_NONHOST_CODE", 0x10: "EV_NONHOST_CONFIG", 0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS", 0x13: "EV_POST_CODE2", EV_DSTACK_RUNTIME: "DSTACK_RUNTIME_EVENT",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG", 0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION", 0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER", 0x80000006: "EV_EFI_GPT_EVENT", 0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB", 0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2", 0x8000000D: "EV_EFI_GPT_EVENT2", 0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY", 0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG", 0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY", EV_IMA: "IMA", EV_AAEL: "AAEL",
}  # fmt: skip
_FW_CFG = b"QEMU FW CFG\0"
_TAGS = {TAG_AAEL: "AAEL"}
_TABLE_NAMES = {
    "eb9d2d30-2d88-11d3-9a16-0090273fc14d": "ACPI 1.0", "8868e871-e4f1-11d3-bc22-0080c73c8881": "ACPI",
    "eb9d2d31-2d88-11d3-9a16-0090273fc14d": "SMBIOS", "f2fd1544-9794-4a2c-992e-e5bbcf20e394": "SMBIOS 3",
    "7739f24c-93d7-11d4-9a3a-0090273fc14d": "HOB list", "eb9d2d2f-2d88-11d3-9a16-0090273fc14d": "MP table",
}  # fmt: skip
"""Configuration tables (UEFI, 4.6; PI, volume 2)."""
_CERTIFICATE = guid_bytes("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")  # EFI_CERT_X509_GUID
_SIGNATURE_LISTS = {"PK", "KEK", "db", "dbx", "dbt", "dbr", "MokListRT", "MokListXRT"}


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
    >>> words(0xD, ".linux".encode("utf-16-le") + bytes(2)), words(1, b"ACPI DATA")
    ('.linux', 'ACPI DATA')
    """
    if not data or event_type == EV_IMA:  # the line itself is the name of an event of IMA
        return ""
    layout = _LAYOUTS.get(event_type)
    text = layout(data) if layout else None
    return printable(text if text is not None else _text_or_hex(data))


def text_of(data: bytes) -> str | None:
    """The text that ``data`` are, up to a NUL, in ASCII, UTF-8 or UTF-16; None if they are not text.

    >>> text_of(b"grub_cmd ls\\0x"), text_of("loader.conf".encode("utf-16-le")), text_of(bytes([1, 2, 3]))
    ('grub_cmd ls', 'loader.conf', None)
    """
    data = data[:_TEXT_LIMIT]
    wide = data[: len(data) & ~1]
    if len(wide) >= 4 and wide[1::2].count(0) * 2 > len(wide[1::2]) and wide[0] and not wide[1]:
        text = wide.decode("utf-16-le", "replace").rstrip("\0")
        return text if _is_text(text) else None
    head, _, rest = data.partition(b"\0")
    # What follows the NUL is padding, or the stray byte of a length that counts too much.
    if len(head) < 2 or (rest.strip(b"\0") and len(rest) > 8):
        return None
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return None
    return text if _is_text(text) else None


def _is_text(text: str) -> bool:
    return bool(text) and all(character.isprintable() or character in "\t\r\n" for character in text)


def _text_or_hex(data: bytes) -> str:
    text = text_of(data)
    return _hex(data) if text is None else text


def _hex(data: bytes) -> str:
    return data[:LONGEST].hex()


def _qwords(data: bytes, *offsets: int) -> list[int]:
    return [int.from_bytes(data[at : at + 8], "little") for at in offsets]


def _separator(data: bytes) -> str:
    return "separator" if data in (bytes(4), b"\xff" * 4) else f"separator after an error: {_text_or_hex(data)}"


def _tag(data: bytes) -> str | None:
    if len(data) < 8:
        return None
    tag, length = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    text = text_of(data[8 : 8 + length])
    if text is not None and tag not in _TAGS:
        return text  # "Linux initrd", "loader.conf": the text names the kind as well as the number does
    return f"{_TAGS.get(tag, f'tag {tag:#x}')}: {_hex(data[8 : 8 + min(length, LONGEST)]) if text is None else text}"


def _configuration(data: bytes) -> str | None:
    if data.startswith(_FW_CFG):
        return f"fw_cfg {data[len(_FW_CFG) :].rstrip(bytes(1)).decode('ascii', 'replace')}"
    configuration = shim_configuration(data)
    if configuration is None:
        return None
    name, contents = configuration
    return f"{name}: {_text_or_hex(contents)}"


def _image(data: bytes) -> str | None:
    if len(data) < 32:
        return None
    address, length = _qwords(data, 0, 8)
    return f"image of {length:#x} bytes at {address:#x}{_path(data[32 : 32 + _TEXT_LIMIT])}"


def _blob(data: bytes) -> str | None:
    if len(data) != 16:
        return None
    base, length = _qwords(data, 0, 8)
    return f"{length:#x} bytes at {base:#x}"


def _named(data: bytes) -> tuple[str, bytes] | None:
    """A description with its length in front, as the types ending in 2 have it, and what follows."""
    if len(data) < 1 + data[0]:
        return None
    return data[1 : 1 + data[0]].decode("ascii", "replace").rstrip("\0"), data[1 + data[0] :]


def _blob2(data: bytes) -> str | None:
    named = _named(data)
    if named is None:
        return None
    place = _blob(named[1])
    return f"{named[0]}: {place}" if place else named[0]


def _tables(data: bytes) -> str | None:
    """EFI_HANDOFF_TABLE_POINTERS: a count, then pairs of a GUID and an address."""
    (count,) = _qwords(data, 0)
    if len(data) < 8 or len(data) != 8 + 24 * count:
        return None
    guids = [guid_text(data[8 + 24 * index : 24 + 24 * index]) for index in range(min(count, 3))]
    names = [_TABLE_NAMES.get(guid, guid) for guid in guids]
    return f"{count} table{'s' * (count != 1)}: {', '.join(names)}{', ...' if count > 3 else ''}"


def _tables2(data: bytes) -> str | None:
    named = _named(data)
    return None if named is None else named[0]


def _partitions(data: bytes) -> str | None:
    if data[:8] != b"EFI PART" or len(data) < 100:
        return None
    (count,) = _qwords(data, 92)
    return f"partition table of disk {guid_text(data[56:72])}, {count} partition{'s' * (count != 1)}"


def _variable(data: bytes) -> str | None:
    """UEFI_VARIABLE_DATA: a GUID, the lengths of name (characters) and contents (bytes), both."""
    if len(data) < 32:
        return None
    names, size = _qwords(data, 16, 24)
    if 32 + 2 * names + size > len(data):
        return None
    name = data[32 : 32 + 2 * min(names, LONGEST)].decode("utf-16-le", "replace").rstrip("\0")
    value = data[32 + 2 * names : 32 + 2 * names + size]
    if re.fullmatch(r"(?:Boot|Driver|SysPrep|OsRecovery|PlatformRecovery)[0-9A-F]{4}", name) and len(value) >= 8:
        return f"{name}: {value[6 : 6 + LONGEST * 2].decode('utf-16-le', 'replace').split(chr(0))[0]}"
    if name in ("BootOrder", "DriverOrder", "SysPrepOrder") and size % 2 == 0 and size:
        numbers = [int.from_bytes(value[at : at + 2], "little") for at in range(0, size, 2)]
        return f"{name}: {', '.join(f'{number:04X}' for number in numbers)}"
    owner = f"{name} ({guid_text(data[:16])})"
    said = _value(name, value)
    return f"{owner}: {said}" if said else f"{owner}, {size} bytes: {_hex(value[:16])}{'...' if size > 16 else ''}"


def _value(name: str, value: bytes) -> str | None:
    if not value:
        return "empty"
    if name in ("SecureBoot", "SetupMode", "AuditMode", "DeployedMode", "MokSBState") and len(value) == 1:
        return {0: "off", 1: "on"}.get(value[0])
    if name in _SIGNATURE_LISTS:
        listed = _signature_lists(value)
        if listed:
            return listed
    if len(value) > 20 and value[16:18] == b"\x30\x82":  # EFI_SIGNATURE_DATA: an owner and a certificate
        subject = _subject(value[16:])
        if subject:
            return f"certificate {subject}"
    return text_of(value) if len(value) > 3 else None


def _signature_lists(value: bytes) -> str | None:
    """How many certificates and hashes a chain of EFI_SIGNATURE_LISTs has."""
    certificates = hashes = at = 0
    while at < len(value):
        size, header, each = (int.from_bytes(value[at + place : at + place + 4], "little") for place in (16, 20, 24))
        if len(value) - at < 28 or not 28 + header <= size <= len(value) - at or each < 17:
            return None
        entries = (size - 28 - header) // each
        if value[at : at + 16] == _CERTIFICATE:
            certificates += entries
        else:
            hashes += entries
        at += size
    kinds = ((certificates, "certificate", "certificates"), (hashes, "hash", "hashes"))
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in kinds if count)


def _subject(der: bytes) -> str | None:
    """The common name of a certificate's subject."""
    try:
        return parse_certificate(der).subject.common_name
    except ValueError:
        return None


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


def _no_action(data: bytes) -> str | None:
    """A signature of 16 bytes; of StartupLocality the byte after it."""
    name = data[:16].rstrip(b"\0")
    if len(name) < 4 or not name.isascii() or not name.decode().isprintable():
        return None
    if name == b"StartupLocality" and len(data) == 17:
        return f"startup locality {data[16]}"
    return f"{name.decode()}, {len(data) - 16} bytes" if len(data) > 16 else name.decode()


def _host_information(data: bytes) -> str | None:
    """Google's: a signature, and which technology the machine has."""
    if not data.startswith(b"GCE NonHostInfo\0") or len(data) < 17:
        return None
    technology = {0: "none", 1: "SEV", 2: "SEV-ES", 3: "TDX", 4: "SEV-SNP"}.get(data[16], f"{data[16]}")
    return f"GCE confidential technology: {technology}"


def _device(data: bytes) -> str | None:
    """DEVICE_SECURITY_EVENT_DATA: a signature ("SPDM Device Sec"), then what the device has reported."""
    return f"{data[:16].rstrip(bytes(1)).decode()}, {len(data) - 16} bytes" if data.startswith(b"SPDM Device") else None


_LAYOUTS: dict[int, Callable[[bytes], str | None]] = {
    0x01: _blob,
    0x03: _no_action,
    0x04: _separator,
    0x06: _tag,
    0x0A: _configuration,
    0x11: _host_information,
    0x13: _blob2,
    0x80000001: _variable,
    0x80000002: _variable,
    0x80000003: _image,
    0x80000004: _image,
    0x80000005: _image,
    0x80000006: _partitions,
    0x80000008: _blob,
    0x80000009: _tables,
    0x8000000A: _blob2,
    0x8000000B: _tables2,
    0x8000000C: _variable,
    0x8000000D: _partitions,
    0x800000E0: _variable,
    0x800000E1: _device,
    0x800000E2: _device,
    0x800000E3: _variable,
    0x800000E4: _variable,
}
"""Event type -> what reads its layout; None for data that do not have it."""
