# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMRs of unified kernel images: systemd-stub's measurements after its sources, on images made here, and launches."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from swtdx.attest.authenticode import authenticode_digest
from swtdx.attest.board_log import predict_from_log
from swtdx.attest.boot_prediction import BootPrediction, PredictionError
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.uki import UkiError, parse_uki, start
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.image.tdvf import TdvfError
from testing.rtmr_launch import seen_rtmrs
from testing.uefi_image import edk2_like, efi_kernel, executable, unified_image

MEMORY = 64 << 20
CC_MEASUREMENT_PROTOCOL = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")  # UEFI 2.10, 38.2.2, as it lies in memory
EFI_APPLICATION, BLOB2 = 0x80000003, 0x8000000A
KERNEL = efi_kernel(CC_MEASUREMENT_PROTOCOL)
END = [b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"]


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le") + bytes(2)


def uki(*sections: tuple[str, bytes], version: str = "258.3-1", measures: bool = True) -> bytes:
    protocol = CC_MEASUREMENT_PROTOCOL if measures else b""
    return unified_image(*sections, version=version, protocol=protocol)


def predicted(image: bytes, *, firmware: bytes | None = None, initrd: bytes = b"", options: str = "") -> BootPrediction:
    boot = LinuxBoot(parse(image, "linux.efi"), initrd, options)
    return predict_direct_boot(firmware or edk2_like(), boot, MEMORY)


def of(prediction: BootPrediction, rtmr: int) -> list[bytes]:
    return [event.digest for event in prediction.events if event.rtmr == rtmr]


def named(*sections: tuple[str, bytes]) -> list[bytes]:
    """Digests of systemd-stub's measure_sections(): of the name with its NUL, then of the contents."""
    return [sha384(each) for name, contents in sections for each in (name.encode() + b"\0", contents)]


def archive(name: str, contents: bytes) -> bytes:
    """systemd-stub's pack_cpio_literal(): a folder .extra of mode 0555, a file of mode 0444, the trailer."""

    def header(*fields: int) -> bytes:
        return b"070701" + b"".join(b"%08x" % each for each in fields)

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    path = f".extra/{name}".encode()
    made = padded(header(1, 0o40555, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, 0) + b".extra\0")
    made += padded(header(2, 0o100444, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(path) + 1, 0) + path + b"\0")
    made += padded(contents)
    return made + padded(b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B00000000TRAILER!!!\0")


def test_sections_are_measured_in_the_order_of_the_stub_and_not_of_the_file() -> None:
    sections = {
        ".linux": KERNEL, ".osrel": b"ID=x\n", ".cmdline": b"console=ttyS0", ".initrd": b"an initrd!",
        ".uname": b"6.12", ".splash": b"BM", ".pcrpkey": b"-----BEGIN PUBLIC KEY-----", ".sbat": b"sbat,1",
    }  # fmt: skip
    image = uki(*reversed(sections.items()), (".pcrsig", b"{}"))
    order = (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".uname", ".sbat", ".pcrpkey")
    found = of(predicted(image), 2)
    assert found[:16] == named(*((name, sections[name]) for name in order))
    joined = b"".join(
        each + bytes(-len(each) % 4)
        for each in (
            sections[".initrd"],
            archive("tpm2-pcr-signature.json", b"{}"),
            archive("tpm2-pcr-public-key.pem", sections[".pcrpkey"]),
            archive("os-release", sections[".osrel"]),
        )
    )
    assert found[16:] == [sha384(utf16("console=ttyS0")), sha384(joined)]


def test_only_the_image_is_measured_into_rtmr1_and_until_257_its_kernel_too() -> None:
    sections = ((".cmdline", b"console=ttyS0"), (".linux", KERNEL))
    for version, kernels in (("258", 1), ("257.13-1~deb13u1", 2)):
        image = uki(*sections, version=version)
        found = [event.digest for event in predicted(image).events if event.event_type == EFI_APPLICATION]
        assert found == [authenticode_digest(image), authenticode_digest(KERNEL)][:kernels]
        assert of(predicted(image), 1)[-2:] == [sha384(each) for each in END]


def test_a_single_initrd_is_not_padded() -> None:
    image = uki((".cmdline", b"console=ttyS0"), (".linux", KERNEL), (".initrd", b"odd"))
    assert of(predicted(image), 2)[-1] == sha384(b"odd")


def test_load_options_replace_the_command_line_and_are_measured_by_both_stubs() -> None:
    image = uki((".linux", KERNEL), (".cmdline", b"console=ttyS0 built in\n\0rest"))
    assert of(predicted(image), 2)[-1] == sha384(utf16("console=ttyS0 built in"))
    found = of(predicted(image, options=" console=hvc0\tro "), 2)
    assert found[-2:] == [sha384(utf16("console=hvc0 ro"))] * 2


def test_an_initrd_of_the_vmm_comes_before_that_of_the_image_since_258() -> None:
    sections = ((".cmdline", b"console=ttyS0"), (".linux", KERNEL), (".initrd", b"inner"), (".ucode", b"microcode"))
    found = of(predicted(uki(*sections), initrd=b"outer"), 2)
    assert found[-1] == sha384(b"microcode\0\0\0" + b"outer\0\0\0" + b"inner\0\0\0")
    with pytest.raises(PredictionError, match="systemd 257, which does not start beside another initrd"):
        predicted(uki(*sections, version="257"), initrd=b"outer")


def test_sections_that_a_stub_is_too_old_to_know_are_not_measured() -> None:
    image = uki((".linux", KERNEL), (".ucode", b"u"), (".hwids", b"h"), (".cmdline", b"x"), version="255.4")
    assert of(predicted(image), 2)[:4] == named((".linux", KERNEL), (".cmdline", b"x"))
    assert len(of(predicted(image), 2)) == 4 + 1


def test_a_stub_that_does_not_know_the_protocol_leaves_the_kernels_own_events() -> None:
    image = uki((".linux", KERNEL), (".cmdline", b"quiet"), version="252.39", measures=False)
    prediction = predicted(image)
    assert of(prediction, 2) == [sha384(utf16("quiet"))]
    assert "does not measure into RTMRs" in prediction.notes[0]
    silent = predicted(uki((".linux", efi_kernel()), (".cmdline", b"quiet"), version="252", measures=False))
    assert (of(silent, 2), silent.kernel_measures) == ([], False)


def test_the_console_that_the_stub_adds_since_262_is_named_and_the_rest_predicted() -> None:
    image = uki((".linux", KERNEL), (".cmdline", b"quiet noconsole=1"), version="262.1-1")
    prediction = predicted(image)
    assert prediction.registers == (0, 1)
    assert "appends console=" in prediction.unpredicted[0]
    assert prediction.as_json()["rtmrs"][2] is None
    assert predicted(image, options="ro console=ttyS0").registers == (0, 1, 2)


def test_what_the_machines_identifiers_choose_is_named() -> None:
    image = uki((".linux", KERNEL), (".cmdline", b"x"), (".dtbauto", b"tree"), (".hwids", b"ids"))
    assert predicted(image).registers == (0, 1)
    assert ".dtbauto" in predicted(image).unpredicted[0]


def test_sections_of_the_first_profile_replace_those_before_it() -> None:
    sections = (
        *((".linux", KERNEL), (".cmdline", b"base")),
        *((".profile", b"ID=a"), (".cmdline", b"first")),
        *((".profile", b"ID=b"), (".cmdline", b"second")),
    )
    found = of(predicted(uki(*sections)), 2)
    assert found[:6] == named((".linux", KERNEL), (".cmdline", b"first"), (".profile", b"ID=a"))
    with pytest.raises(PredictionError, match="no profile @7"):
        predicted(uki(*sections), options="@7")


PROFILES = (
    *((".linux", KERNEL), (".cmdline", b"console=x base")),
    *((".profile", b"ID=a"), (".profile", b"ID=b"), (".cmdline", b"console=x second")),
)


def test_the_number_of_a_profile_is_measured_first_and_the_sections_are_its_own() -> None:
    """As launches of UKIs with the stubs of systemd 262.1 and 257.13 have shown."""
    own = named((".linux", KERNEL), (".cmdline", b"console=x second"), (".profile", b"ID=b"))
    found = of(predicted(uki(*PROFILES, version="262.1-1"), options="@1"), 2)
    initrd = sha384(archive("profile", b"ID=b"))
    assert found == [sha384(utf16("1")), *own, sha384(utf16("console=x second")), initrd]
    found = of(predicted(uki(*PROFILES, version="262.1-1"), options="@1 console=y"), 2)
    assert found == [sha384(utf16("1")), *own, *[sha384(utf16("console=y"))] * 2, initrd]
    assert of(predicted(uki(*PROFILES, version="257.13-1"), options="@1"), 2)[:-2] == own
    first = of(predicted(uki(*PROFILES, version="262.1-1"), options="@0"), 2)
    assert first[:2] == named((".linux", KERNEL))


@pytest.mark.parametrize("version", ["258", "261.2"])
def test_a_profile_of_a_stub_that_was_not_compared_is_named(version: str) -> None:
    prediction = predicted(uki(*PROFILES, version=version), options="@1")
    assert prediction.registers == (0, 1)
    assert "the number of the profile" in prediction.unpredicted[0]


def test_under_secure_boot_only_the_images_command_line_counts_in_a_td() -> None:
    found = parse_uki(uki((".linux", KERNEL), (".cmdline", b"built in")))
    assert found is not None
    assert start(found, "init=/bin/sh", secure_boot=True).command_line == "built in"
    assert start(found, "init=/bin/sh").command_line == "init=/bin/sh"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (uki((".linux", b"no kernel"), (".cmdline", b"x"), version="257"), "the kernel in linux.efi is not a PE"),
        (uki((".linux", KERNEL))[:0x1400], "ends|truncated"),
    ],
)
def test_a_damaged_image_is_refused(image: bytes, reason: str) -> None:
    with pytest.raises((PredictionError, TdvfError), match=reason):
        predicted(image)


def test_what_is_no_uki() -> None:
    assert parse_uki(KERNEL) is None
    assert parse_uki(uki((".cmdline", b"an addon"))) is None
    found = parse_uki(uki((".linux", KERNEL)))
    assert found is not None
    with pytest.raises(UkiError):
        found.profile(1)


def test_of_another_efi_application_only_its_start_is_known() -> None:
    shell = executable([(".text", b"a shell")])
    prediction = predicted(shell)
    assert prediction.registers == ()
    assert "what linux.efi extends" in prediction.notes[0]
    assert authenticode_digest(shell) in of(prediction, 1)


def test_a_log_gives_the_machine_and_the_image_the_rest() -> None:
    for version in ("257", "258"):
        old = predicted(uki((".linux", KERNEL), (".cmdline", b"old"), version="257")).events
        image = uki((".linux", KERNEL), (".cmdline", b"new"), (".osrel", b"ID=x"), version=version)
        boot = LinuxBoot(parse(image, "linux.efi"))
        blob = struct.pack("<QQ", 0, 0x4000)  # base and size of the CFV, which a prediction does not know
        log = [replace(each, name="", data=b"\x02Fv" + blob if each.event_type == BLOB2 else each.data) for each in old]
        assert predict_from_log(edk2_like(), boot, log).rtmrs == predicted(image).rtmrs


@pytest.mark.slow
def test_predicted_is_what_systemd_stub_extends(skip_loudly: Callable[[str], NoReturn]) -> None:
    """$SWTDX_UKI: FIRMWARE:UKI[:UKI]..., a firmware that measures and UKIs of systemd 257 and later."""
    given: list[Any] = [Path(each) for each in os.environ.get("SWTDX_UKI", "").split(":") if each]
    if len(given) < 2:
        skip_loudly("no $SWTDX_UKI; not shown: what is predicted of a UKI is what systemd-stub extends")
    firmware = given[0].read_bytes()
    for path in given[1:]:
        boot = LinuxBoot(parse(path.read_bytes(), str(path)))
        prediction = predict_direct_boot(firmware, boot, 512 << 20)
        seen, _ = seen_rtmrs(firmware, boot, 512 << 20, 1, len(prediction.events))
        assert seen == [[event.rtmr, event.digest.hex()] for event in prediction.events]
