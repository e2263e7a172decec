# SPDX-License-Identifier: GPL-2.0-or-later
"""SMBIOS tables as edk2 measures them: structures of DMTF DSP0134 by hand, blanked as SmbiosMeasurementDxe does."""

from __future__ import annotations

import hashlib
import struct
from uuid import UUID

import pytest

from swtdx.attest.boot_prediction import BootPrediction
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.machine_files import MachineFiles
from swtdx.image.linux_image import LinuxBoot, parse
from testing.uefi_image import driver, edk2_like, efi_kernel

PLATFORM = UUID("4110465d-5ff3-4f4b-b580-24ed0d06747a")
MEASUREMENT = UUID("d27fed59-abb4-4fed-bead-2a878c7e4a7e")
END = struct.pack("<BBH", 127, 4, 0xFEFF) + bytes(2)
HANDOFF_TABLES = 0x80000009


def texts(*each: str) -> bytes:
    """UTF-16 texts as GCC lays arrays out: each at a multiple of 16 bytes."""
    literals = b"".join(each.encode("utf-16-le") + bytes(2) for each in ("unknown", "02/02/2022"))
    made = b"literals" + bytes(6) + literals  # as the driver has them, aligned to two bytes
    made += bytes(-(len(made) + 2) % 16) + b"@\0"
    for text in each:
        data = text.encode("utf-16-le") + bytes(2)
        made += data + bytes(-len(data) % 16)
    return made


def anchor(tables: bytes, version: int = 3) -> bytes:
    if version == 2:
        fields = (b"_SM_", 0, 31, 2, 8, 0, 0, bytes(5), b"_DMI_", 0, len(tables), 0, 0, 0)
        return struct.pack("<4s4BHB5s5sBHIHB", *fields)
    return struct.pack("<5s6BxIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, len(tables), 0)


def structure(kind: int, handle: int, body: bytes, *strings: bytes) -> bytes:
    ending = b"".join(each + b"\0" for each in strings) + b"\0" if strings else bytes(2)
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + ending


def predicted(
    tables: bytes, strings: bytes | None = None, version: int = 3, drivers: tuple[UUID, ...] = (PLATFORM, MEASUREMENT)
) -> BootPrediction:
    code = texts("09/26/2026", "2026.08-2", "A distribution") if strings is None else strings
    image = edk2_like(beside=[driver(each, "Smbios", code) for each in drivers])
    files = {"etc/smbios/smbios-tables": tables, "etc/smbios/smbios-anchor": anchor(tables, version)}
    return predict_direct_boot(
        image, LinuxBoot(parse(efi_kernel(), "vmlinuz")), 64 << 20, machine=MachineFiles(smbios=files)
    )


def digests(prediction: BootPrediction) -> list[bytes]:
    return [event.digest for event in prediction.events if event.event_type == HANDOFF_TABLES]


def type_0(handle: int, *strings: bytes) -> bytes:
    body = bytes.fromhex("0102 00e8 03 00 0800000000000000 001c 00 00 ff ff 0000")
    return structure(0, handle, body, *strings)


OWN_0 = (b"A distribution", b"2026.08-2", b"09/26/2026")


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_of_one_machine_is_blank_and_the_rest_is_measured(version: int) -> None:
    system = bytes([1, 2, 0, 3]) + bytes(range(16)) + bytes([6, 0, 0])
    blank = bytes([1, 2, 0, 0]) + bytes(16) + bytes([0, 0, 0])
    tables = structure(1, 0x100, system, b"maker", b"board", b"serial 7") + structure(127, 0x7F00, b"")
    expected = structure(1, 0x100, blank, b"maker", b"board", b"        ") + type_0(0, *OWN_0) + END
    assert digests(predicted(tables, version=version)) == [sha384(expected)]


@pytest.mark.parametrize("kind", [11, 15, 18, 31, 33, 128, 221])
def test_structures_of_which_nothing_is_measured_but_their_header(kind: int) -> None:
    tables = structure(kind, 0xE00, b"\2\1", b"io.systemd.credential:a=b", b"x") + END
    size = len(structure(kind, 0xE00, b"\2\1", b"io.systemd.credential:a=b", b"x"))
    blank = struct.pack("<BBH", kind, 6, 0xE00) + bytes(size - 4)
    assert digests(predicted(tables)) == [sha384(blank + type_0(0, *OWN_0) + END)]


def test_a_processor_is_measured_without_cores_speed_and_numbers() -> None:
    body = bytearray(range(1, 0x30 - 4 + 1))
    for offset in (0x04, 0x07, 0x10, 0x20, 0x21, 0x22):  # texts: socket, manufacturer, version, and three that go
        body[offset - 4] = 0
    blank = bytearray(body)
    for offset, size in ((0x11, 1), (0x16, 2), (0x23, 3), (0x2A, 6)):
        blank[offset - 4 : offset - 4 + size] = bytes(size)
    tables = structure(4, 0x400, bytes(body)) + END
    assert digests(predicted(tables)) == [sha384(structure(4, 0x400, bytes(blank)) + type_0(0, *OWN_0) + END)]
    short = structure(4, 0x400, bytes(body[:20])) + END  # of an older release: the fields behind its end are not there
    changed = bytearray(body[:20])
    changed[0x11 - 4], changed[0x16 - 4 : 0x18 - 4] = 0, bytes(2)
    assert digests(predicted(short)) == [sha384(structure(4, 0x400, bytes(changed)) + type_0(0, *OWN_0) + END)]


def test_a_type_0_of_the_machine_replaces_that_of_the_firmware() -> None:
    given = structure(0, 0, bytes(20), b"vendor")
    assert digests(predicted(given + END)) == [sha384(given + END)]
    taken = structure(32, 0, bytes(7))  # handle 0 is not free
    assert digests(predicted(taken + END)) == [sha384(taken + type_0(1, *OWN_0) + END)]


def test_texts_that_a_build_leaves_out_are_replaced_by_the_driver() -> None:
    tables = structure(32, 0x2000, bytes(7)) + END
    expected = structure(32, 0x2000, bytes(7)) + type_0(0, b"EDK II", b"unknown", b"02/02/2022") + END
    assert digests(predicted(tables, texts("EDK II"))) == [sha384(expected)]


@pytest.mark.parametrize("strings", [texts("a vendor", "a version"), texts("one", "two", "three"), b"no texts"])
def test_texts_of_a_firmware_that_are_not_known_are_named(strings: bytes) -> None:
    prediction = predicted(structure(32, 0x2000, bytes(7)) + END, strings)
    assert prediction.registers == (1, 2)
    assert "SMBIOS: type 0" in prediction.unpredicted[0]


@pytest.mark.parametrize(
    "tables",
    [
        structure(1, 5, b"")[:-1],
        b"\1\2\3",
        b"\1\1\0\0\0\0",
        structure(1, 5, b"") * 2 + END,
        structure(1, 0xFF00, b"") + END,
    ],
)
def test_tables_that_are_damaged_are_named(tables: bytes) -> None:
    prediction = predicted(tables)
    assert prediction.registers == (1, 2)
    assert "EV_EFI_HANDOFF_TABLES (SMBIOS:" in prediction.unpredicted[0]


@pytest.mark.parametrize("drivers", [(PLATFORM,), (MEASUREMENT,), ()])
def test_firmware_that_does_not_measure_them(drivers: tuple[UUID, ...]) -> None:
    assert digests(predicted(structure(32, 0x2000, bytes(7)) + END, drivers=drivers)) == []


def test_a_machine_without_tables_or_with_an_anchor_of_others() -> None:
    tables = structure(32, 0x2000, bytes(7)) + END
    image = edk2_like(beside=[driver(each, "Smbios", texts("EDK II")) for each in (PLATFORM, MEASUREMENT)])
    for files in ({}, {"etc/smbios/smbios-tables": tables, "etc/smbios/smbios-anchor": anchor(tables + b"x")}):
        machine = MachineFiles(smbios=files)
        assert digests(predict_direct_boot(image, LinuxBoot(parse(efi_kernel(), "k")), 64 << 20, machine=machine)) == []
