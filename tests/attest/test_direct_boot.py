# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMRs of a direct kernel boot: what is predicted of images made here, and what real firmware makes of it."""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from swtdx.attest.authenticode import PeError, authenticode_digest
from swtdx.attest.board_log import predict_from_log
from swtdx.attest.boot_agreement import agreement
from swtdx.attest.boot_prediction import BootPrediction, PredictionError
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.event_log import Event
from swtdx.attest.firmware_volume import MAXIMUM_DECOMPRESSED, files
from swtdx.attest.replay import replay
from swtdx.attest.variable_store import SECURE_BOOT_ENABLE, VariableStoreError, parse_variables
from swtdx.image.linux_image import LinuxBoot, parse
from testing import uefi_image
from testing.places import firmware_image
from testing.rtmr_launch import seen_rtmrs
from testing.uefi_image import DXE_VOLUME, GLOBAL, IMAGE_SECURITY, MENU, UI_APP, driver, edk2_like, efi_kernel

MEMORY = 64 << 20
CC_MEASUREMENT_PROTOCOL = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")  # UEFI 2.10, 38.2.2, as it lies in memory
ZERO = bytes(48)


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def extended(*digests: bytes) -> bytes:
    """An RTMR after these extensions (TDX module base specification, TDG.MR.RTMR.EXTEND)."""
    value = ZERO
    for digest in digests:
        value = sha384(value + digest)
    return value


def linux(kernel: bytes, initrd: bytes = b"", command_line: str = "") -> LinuxBoot:
    return LinuxBoot(parse(kernel, "vmlinuz"), initrd, command_line)


def predicted(image: bytes, kernel: LinuxBoot, **machine: int) -> BootPrediction:
    given: dict[str, Any] = {"memory_size": MEMORY, **machine}
    return predict_direct_boot(image, kernel, **given)


def test_rtmr1_is_the_kernel_the_call_and_the_end_of_boot_services() -> None:
    kernel = efi_kernel()
    prediction = predicted(edk2_like(), linux(kernel))
    assert prediction.rtmrs[1] == extended(
        authenticode_digest(kernel),
        sha384(b"Calling EFI Application from Boot Option"),
        sha384(bytes(4)),
        sha384(b"Exit Boot Services Invocation"),
        sha384(b"Exit Boot Services Returned with Success"),
    )
    assert prediction.rtmrs[3] == ZERO


def test_rtmr2_is_load_options_and_initrd_of_a_kernel_that_measures() -> None:
    kernel, initrd = efi_kernel(CC_MEASUREMENT_PROTOCOL), b"070701 an initrd"
    image = edk2_like()
    with_both = predicted(image, linux(kernel, initrd, "console=ttyS0"))
    options = "initrd=initrd console=ttyS0\0".encode("utf-16-le")
    assert with_both.rtmrs[2] == extended(sha384(options), sha384(initrd))
    assert predicted(image, linux(kernel, b"", "x")).rtmrs[2] == extended(sha384("x\0".encode("utf-16-le")))
    assert predicted(image, linux(kernel)).rtmrs[2] == ZERO
    without = predicted(image, linux(kernel, initrd, "noinitrd"))
    assert without.rtmrs[2] == extended(sha384("initrd=initrd noinitrd\0".encode("utf-16-le")))
    silent = predicted(image, linux(efi_kernel(), initrd, "console=ttyS0"))
    assert silent.rtmrs[2] == ZERO
    assert not silent.kernel_measures
    assert "RTMR2 stays zero" in silent.notes[0]


def test_rtmr0_holds_hob_variables_and_tables_in_the_order_of_the_boot() -> None:
    variables = {("KEK", GLOBAL): b"exchange", ("db", IMAGE_SECURITY): b"allowed", ("dbx", IMAGE_SECURITY): b"refused"}
    image = edk2_like(variables)
    prediction = predicted(image, linux(efi_kernel()))
    told = [event.digest for event in prediction.events if event.rtmr == 0]
    assert prediction.rtmrs[0] == extended(*told)

    def policy(name: str, vendor: bytes, data: bytes) -> bytes:
        return sha384(vendor + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data)

    assert told[1] == sha384(image[:0x4000])  # the CFV
    assert told[2:4] == [sha384(bytes(2))] * 2  # BootMenu and etc/boot-menu-wait
    assert told[4:10] == [
        policy("SecureBoot", GLOBAL.bytes_le, b"\0"),
        policy("PK", GLOBAL.bytes_le, b""),
        policy("KEK", GLOBAL.bytes_le, b"exchange"),
        policy("db", IMAGE_SECURITY.bytes_le, b"allowed"),
        policy("dbx", IMAGE_SECURITY.bytes_le, b"refused"),
        sha384(bytes(4)),
    ]
    path = b"\x04\x07\x14\0" + DXE_VOLUME.bytes_le + b"\x04\x06\x14\0" + MENU.bytes_le + b"\x7f\xff\x04\0"
    option = struct.pack("<IH", 0x109, len(path)) + "Menu\0".encode("utf-16-le") + path
    assert told[-2:] == [sha384(bytes(2)), sha384(option)]


def test_memory_and_processors_change_rtmr0_alone() -> None:
    image, kernel = edk2_like(), linux(efi_kernel(CC_MEASUREMENT_PROTOCOL), b"initrd", "quiet")
    base = predicted(image, kernel)
    for machine in ({"memory_size": 2 * MEMORY}, {"cpus": 2}):
        other = predicted(image, kernel, **machine)
        assert other.rtmrs[0] != base.rtmrs[0]
        assert other.rtmrs[1:] == base.rtmrs[1:]


def test_firmware_without_a_measurement_driver_leaves_all_zero_and_says_so() -> None:
    image = edk2_like(tcg=MENU, sec=b"")
    prediction = predicted(image, linux(efi_kernel()))
    assert (prediction.rtmrs, prediction.events) == ((ZERO,) * 4, ())
    assert "they stay zero" in prediction.notes[0]


def test_debian_12s_firmware_has_no_measurement_driver(skip_loudly: Callable[[str], NoReturn]) -> None:
    if not firmware_image().is_file():
        skip_loudly("no firmware: install the package ovmf; not shown: that its RTMRs are predicted as zero")
    prediction = predict_direct_boot(firmware_image().read_bytes(), linux(efi_kernel()), 256 << 20)
    assert prediction.rtmrs == (ZERO,) * 4
    assert not prediction.firmware_measures


@pytest.mark.parametrize(
    ("image", "kernel", "reason"),
    [
        (edk2_like({("PK", GLOBAL): b"key"}), efi_kernel(), "enforces Secure Boot"),
        (edk2_like({("BootOrder", GLOBAL): bytes(2)}), efi_kernel(), "boot options that are not Boot0000"),
        (edk2_like(cfv=b"\xff" * 0x4000), efi_kernel(), "no volume of variables"),
        (edk2_like(tcg=MENU), efi_kernel(), "another make"),
        (edk2_like(tcg=MENU, sec=b"").replace(b"_FVH", b"FVH_"), efi_kernel(), "another make"),
        (edk2_like(), b"\0\0" + efi_kernel()[2:], "no EFI stub"),
    ],
    ids=["secure-boot", "boot-order", "no-variables", "no-driver", "no-edk2", "no-stub"],
)
def test_what_is_not_modelled_is_refused(image: bytes, kernel: bytes, reason: str) -> None:
    with pytest.raises(PredictionError, match=reason):
        predicted(image, linux(kernel))


@pytest.mark.parametrize(
    "image",
    [edk2_like(menu=uuid.UUID(int=5)), edk2_like(sec=b"TdxTable"), edk2_like(sec=b"")],
    ids=["another-menu", "older-edk2", "no-measurement-in-sec"],
)
def test_another_build_of_edk2_extends_rtmr1_and_rtmr2_all_the_same(image: bytes) -> None:
    """The kernel, the call, a separator, the end of boot services: none of it depends on the build."""
    whole = predicted(edk2_like(), linux(efi_kernel(), command_line="quiet"))
    part = predicted(image, linux(efi_kernel(), command_line="quiet"))
    assert (part.registers, whole.registers) == ((1, 2), (0, 1, 2))
    assert part.rtmrs[1:3] == whole.rtmrs[1:3]
    assert part.as_json()["rtmrs"][0] is None
    assert any("EV_EFI_VARIABLE_BOOT" in each for each in part.notes)
    seen = [(event.rtmr or 0, event.digest) for event in whole.events]
    assert str(agreement(part, seen)).startswith("RTMR1-2 as predicted")
    assert agreement(part, [(1, ZERO)]).contradicted


def test_the_generic_build_has_uiapp_and_no_fw_cfg() -> None:
    """As the logs of Debian's OVMF.fd of 2025.02 and 2026.08 have it."""
    image = edk2_like(menu=UI_APP, sec=b"TdxTable", secure=False)
    found = predicted(image, linux(efi_kernel()))
    assert found.registers == (0, 1, 2)
    words = [event.words for event in found.events if event.rtmr == 0]
    assert words[2].startswith("SecureBoot (8be4df61-93ca-11d2-aa0d-00e098032b8c): empty")
    assert words[-2:] == ["BootOrder: 0000", "Boot0000: Menu"]
    assert not any("fw_cfg" in each for each in words)
    assert found.rtmrs[1] == predicted(edk2_like(), linux(efi_kernel())).rtmrs[1]


def test_a_newer_generic_build_has_two_options() -> None:
    """EFI_LOAD_OPTION of the second: active and an application, not hidden; its title is edk2's own."""
    image = edk2_like(beside=[driver(UI_APP, "UiApp")], secure=False)
    found = predicted(image, linux(efi_kernel()))
    order, menu, setup = (event for event in found.events if event.event_type == 0x80000002)
    assert order.data.endswith(bytes([0, 0, 1, 0]))
    assert (menu.words, setup.words) == ("Boot0000: Menu", "Boot0001: EFI Firmware Setup")
    contents = setup.data[32 + 2 * len("Boot0001") :]
    assert contents[:4] == bytes.fromhex("01010000")
    assert UI_APP.bytes_le in contents


def test_secure_boot_can_be_switched_off_with_a_platform_key() -> None:
    key = {("PK", GLOBAL): b"key"}
    for stored, expected in ((b"\1", True), (b"\0", False)):
        image = edk2_like({**key, ("SecureBootEnable", SECURE_BOOT_ENABLE): stored})
        assert parse_variables(image[:0x4000]).secure_boot is expected


def test_deleted_and_replaced_variables() -> None:
    old, new = uefi_image.variable("a", GLOBAL, b"old", 0x3E), uefi_image.variable("a", GLOBAL, b"new")
    gone, halfway = uefi_image.variable("b", GLOBAL, b"gone", 0x3C), uefi_image.variable("c", GLOBAL, b"kept", 0x3E)
    found = parse_variables(uefi_image.variable_store(old + gone + halfway + new))
    assert found.variables == {("a", GLOBAL): b"new", ("c", GLOBAL): b"kept"}
    overlong = old[:40] + struct.pack("<I", 0x10000) + old[44:]  # the size of its contents
    with pytest.raises(VariableStoreError, match="truncated"):
        parse_variables(uefi_image.variable_store(overlong))


def test_a_volume_in_a_compressed_file_is_found() -> None:
    inner = uefi_image.files_volume([driver(MENU, "Menu", b"program")], name=DXE_VOLUME)
    packed = uefi_image.compressed(uefi_image.compressed(uefi_image.section(0x17, inner)))
    twice = uefi_image.files_volume([uefi_image.file(UI_APP, packed, 0x0B)])
    found = {each.name: each for each in files(b"\0" * 8 + twice)}
    assert set(found) == {MENU, UI_APP}
    assert (found[MENU].volume, found[MENU].title, found[MENU].executable) == (DXE_VOLUME, "Menu", b"program")


def test_no_more_is_decompressed_than_allowed() -> None:
    bomb = uefi_image.compressed(uefi_image.section(0x10, bytes(8 << 20)))
    image = uefi_image.files_volume([uefi_image.file(MENU, bomb) for _ in range(2 * (MAXIMUM_DECOMPRESSED >> 23))])
    assert sum(len(each.executable) for each in files(image)) <= MAXIMUM_DECOMPRESSED


def test_signatures_and_checksum_do_not_count_and_all_else_does() -> None:
    plain, signed = efi_kernel(), efi_kernel(signature=b"s" * 64)
    assert authenticode_digest(plain) == authenticode_digest(signed) != sha384(plain)
    checksum, entry = 0x40 + 24 + 64, 0x40 + 24 + 112 + 8 * 4
    counted = signed[:checksum] + signed[checksum + 4 : entry] + signed[entry + 8 : -64]
    assert authenticode_digest(signed) == sha384(counted)
    for at in (0x80, 0x3F0, 0x410):
        changed = plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :]
        assert authenticode_digest(changed) != authenticode_digest(plain)


@pytest.mark.parametrize("length", [0, 0x40, 0x100, 0x3FF, 0x700])
def test_a_truncated_executable_is_refused(length: int) -> None:
    with pytest.raises(PeError):
        authenticode_digest(efi_kernel()[:length])


# --- on the machine of an event log -----------------------------------------------------------------------------------


def logged(prediction: BootPrediction) -> list[Event]:
    """The log of such a boot: with the data that a prediction does not know, as far as they are looked at."""
    events = [Event(0, 0, None, 3, b"", b"StartupLocality")]
    for event in prediction.events:
        cfv = event.event_type == 0x8000_000A
        events.append(replace(event, name="", data=b"\x02Fv" + struct.pack("<QQ", 0, 0x4000) if cfv else event.data))
    return [*events, Event(0, 0, 3, 0x0800_0001, bytes(48), b"the guest's own")]


def test_a_log_gives_the_machine_and_the_files_the_rest() -> None:
    other = {("db", IMAGE_SECURITY): b"another"}
    old, new = efi_kernel(CC_MEASUREMENT_PROTOCOL + b"old"), efi_kernel(CC_MEASUREMENT_PROTOCOL + b"new")
    log = logged(predicted(edk2_like(), linux(old, b"initrd", "quiet"), memory_size=96 << 20, cpus=3))
    for image, kernel in (
        (edk2_like(), linux(old, b"initrd", "quiet")),
        (edk2_like(), linux(new, b"another initrd", "debug")),
        (edk2_like(other), linux(new)),
        (edk2_like(), linux(efi_kernel(), b"initrd", "quiet")),
    ):
        there = predicted(image, kernel, memory_size=96 << 20, cpus=3)
        found = predict_from_log(image, kernel, log)
        assert found.rtmrs == there.rtmrs
        assert [event.digest for event in found.events] == [event.digest for event in there.events]
        assert found.rtmrs[0] != predicted(image, kernel).rtmrs[0]


def test_a_log_of_a_kernel_that_did_not_measure_serves_one_that_does() -> None:
    log = logged(predicted(edk2_like(), linux(efi_kernel(), b"initrd", "quiet")))
    measuring = linux(efi_kernel(CC_MEASUREMENT_PROTOCOL), b"initrd", "quiet")
    assert predict_from_log(edk2_like(), measuring, log).rtmrs == predicted(edk2_like(), measuring).rtmrs


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda log: [event for event in log if event.event_type != 0x8000_0003], "starts 0 EFI applications"),
        (lambda log: [*log, *(event for event in log if event.event_type == 0x8000_0003)], "starts 2 EFI"),
        (lambda log: [replace(event, data=b"") for event in log], "has no data"),
        (lambda log: [replace(event, data=event.data.replace(b"\0\x40", b"\0\x80")) for event in log], "another build"),
    ],
)
def test_a_log_that_does_not_serve(damage: Callable[[list[Event]], list[Event]], reason: str) -> None:
    kernel = linux(efi_kernel())
    log = logged(predicted(edk2_like(), kernel))
    with pytest.raises(PredictionError, match=reason):
        predict_from_log(edk2_like(), kernel, damage(log))


# --- against the firmware itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "cpus"), [(256 << 20, 1), (320 << 20, 2)])
def test_predicted_is_what_a_launch_extends(measuring_firmware: bytes, memory: int, cpus: int) -> None:
    kernel = linux(efi_kernel(), b"an initrd", "console=ttyS0")
    prediction = predict_direct_boot(measuring_firmware, kernel, memory, cpus)
    seen, log = seen_rtmrs(measuring_firmware, kernel, memory, cpus, len(prediction.events))
    assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]
    assert replay(log) == prediction.rtmrs
    for told, expected in zip(log, prediction.events, strict=True):
        assert told.event_type == expected.event_type
        assert not expected.data or told.data == expected.data
    other = linux(efi_kernel(b"another"), b"", "quiet")
    again = predict_direct_boot(measuring_firmware, other, memory, cpus)
    assert predict_from_log(measuring_firmware, other, log).rtmrs == again.rtmrs


def test_predicted_is_what_linux_extends(measuring_firmware: bytes, skip_loudly: Callable[[str], NoReturn]) -> None:
    images = sorted(Path(os.environ.get("SWTDX_LINUX") or "/nonexistent").glob("boot/vmlinuz-*"))
    if not images:
        skip_loudly(
            "no Linux 6.9 or later in $SWTDX_LINUX (boot/vmlinuz-*); not shown: RTMR2 as its EFI stub extends it"
        )
    kernel = linux(images[-1].read_bytes(), b"an initrd that Linux will not like", "console=ttyS0 x=\u00e4")
    prediction = predict_direct_boot(measuring_firmware, kernel, 512 << 20)
    assert prediction.kernel_measures
    seen, _ = seen_rtmrs(measuring_firmware, kernel, 512 << 20, 1, len(prediction.events))
    assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]


@pytest.mark.slow
def test_generic_builds_extend_what_is_predicted(skip_loudly: Callable[[str], NoReturn]) -> None:
    """$SWTDX_GENERIC_OVMF: OVMF.fd of Debian 13 (2025.02) and sid (2026.08), as Debian ships them, with colons."""
    images = [Path(each) for each in os.environ.get("SWTDX_GENERIC_OVMF", "").split(":") if each]
    if not images:
        skip_loudly("no $SWTDX_GENERIC_OVMF; not shown: predicted RTMRs of edk2's generic build are those of a launch")
    kernel = linux(efi_kernel(), b"an initrd", "console=ttyS0")
    for image in images:
        prediction = predict_direct_boot(image.read_bytes(), kernel, 256 << 20)
        seen, _ = seen_rtmrs(image.read_bytes(), kernel, 256 << 20, 1, len(prediction.events))
        assert prediction.registers == (0, 1, 2)
        assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]
