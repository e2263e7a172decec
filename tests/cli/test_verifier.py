# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands inspect, measure and diff as a person calls them: what they print and how they exit."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import swtdx.image.firmware
from swtdx.attest.build_calls import predicted_build
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.attest.measure import measure_direct, measure_image
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.image.mrtd import Order
from testing.tdvf_image import BFV, CFV, HOB, TEMP, image_with
from testing.uefi_image import edk2_like, efi_kernel
from tests.cli.conftest import Command
from tests.image.test_linux_image import bzimage


@pytest.fixture
def code_half(tmp_path: Path) -> Path:
    """A firmware without metadata."""
    path = tmp_path / "code.fd"
    path.write_bytes(image_with(entry_guid=bytes(16)))
    return path


@pytest.fixture
def measured_hob(tmp_path: Path) -> Path:
    """A firmware whose MRTD depends on the machine."""
    path = tmp_path / "hob.fd"
    path.write_bytes(image_with(rows=(BFV, CFV, TEMP, (*HOB[:5], 1))))
    return path


def test_measure_prints_the_digest_and_nothing_else(command: Command, firmware: Path) -> None:
    expected = {order: measure_image(firmware.read_bytes(), order=order).mrtd for order in Order}
    page, region = expected[Order.PER_PAGE], expected[Order.PER_REGION]
    for options, digest in (([], page), (["--order", "page"], page), (["--order", "region"], region)):
        result = command("measure", firmware, *options)
        assert (result.status, result.out, result.err) == (0, digest.hex() + "\n", "")
    result = command("measure", firmware, "--output-format", "base64")
    assert base64.b64decode(result.out) == page
    kept = json.loads(command("measure", firmware, "--json").out)
    assert kept["mrtd"] == page.hex()


def test_measure_with_a_kernel_predicts_the_rtmrs(command: Command, tmp_path: Path) -> None:
    image, kernel, initrd = (tmp_path / name for name in ("edk2.fd", "vmlinuz", "initrd"))
    image.write_bytes(edk2_like())
    kernel.write_bytes(efi_kernel())
    initrd.write_bytes(b"an initrd")
    linux = LinuxBoot(parse(efi_kernel(), "vmlinuz"), b"an initrd", "quiet")
    rtmrs = predict_direct_boot(image.read_bytes(), linux, 64 << 20, 2).rtmrs
    options = ["--kernel", kernel, "--initrd", initrd, "--append", "quiet", "--memory", "64M", "--cpus", "2"]
    result = command("measure", image, *options)
    mrtd = measure_image(image.read_bytes()).mrtd.hex()
    expected = [f"MRTD {mrtd}", *(f"RTMR{number} {rtmrs[number].hex()}" for number in range(3))]
    assert (result.status, result.out.splitlines()) == (0, expected)
    assert "does not measure" in result.err
    assert command("measure", image, *options, "--quiet").err == ""
    kept = json.loads(command("measure", image, *options, "--json").out)
    assert kept["mrtd"] == mrtd
    assert kept["direct_boot"]["rtmrs"] == [value.hex() for value in rtmrs]
    assert replayed(kept["direct_boot"]["events"]) == kept["direct_boot"]["rtmrs"]


def test_measure_none_is_the_mrtd_of_a_kernel_without_firmware(command: Command, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(bzimage())
    initrd.write_bytes(b"an initrd")
    linux = LinuxBoot(parse(bzimage(), "vmlinuz"), b"an initrd", "quiet")
    mrtd = measure_direct(linux, 128 << 20, 2).mrtd
    options = ["--kernel", kernel, "--initrd", initrd, "--append", "quiet", "--memory", "128M", "--cpus", "2"]
    result = command("measure", "none", *options)
    assert (result.status, result.out, result.err) == (0, mrtd.hex() + "\n", "")
    region = command("measure", "none", *options, "--order", "region", "--output-format", "base64")
    assert base64.b64decode(region.out) == measure_direct(linux, 128 << 20, 2, Order.PER_REGION).mrtd
    kept = json.loads(command("measure", "none", *options, "--json").out)
    assert (kept["image"], kept["mrtd"], kept["entered_directly"]["cpus"]) == ("none", mrtd.hex(), 2)
    assert all(section["measured"] for section in kept["sections"])


def test_measure_for_the_machine_of_an_event_log(command: Command, tmp_path: Path) -> None:
    image, kernel, log = (tmp_path / name for name in ("edk2.fd", "vmlinuz", "log.json"))
    image.write_bytes(edk2_like())
    kernel.write_bytes(efi_kernel())
    there = predict_direct_boot(image.read_bytes(), LinuxBoot(parse(efi_kernel(), "vmlinuz")), 96 << 20, 3)
    told = [
        {
            "imr": event.rtmr,
            "event_type": event.event_type,
            "digest": event.digest.hex(),
            "event_payload": (b"\2Fv" + struct.pack("<QQ", 0, 0x4000) if event.name == "CFV" else event.data).hex(),
        }
        for event in there.events
    ]
    log.write_text(json.dumps(told))
    result = command("measure", image, "--kernel", kernel, "--event-log", log)
    assert result.status == 0
    assert [line.split()[1] for line in result.out.splitlines()[1:]] == [value.hex() for value in there.rtmrs[:3]]
    assert command("measure", image, "--kernel", kernel, "--event-log", kernel).status == 5
    assert command("measure", image, "--kernel", kernel, "--event-log", tmp_path / "absent").status == 3


def test_diff_of_a_launch_and_a_predicted_boot_names_the_event(command: Command, tmp_path: Path) -> None:
    image, kernel, record = (tmp_path / name for name in ("edk2.fd", "vmlinuz", "run.json"))
    image.write_bytes(edk2_like())
    kernel.write_bytes(efi_kernel())
    linux = LinuxBoot(parse(efi_kernel(), "vmlinuz"))
    prediction = predict_direct_boot(image.read_bytes(), linux, 64 << 20, 2)
    build = predicted_build(image.read_bytes())
    kept = {
        "vm_type": "tdx",
        "mrtd": build.mrtd.hex(),
        "mrtd_order": "page by page",
        "added": [region.as_json() for region in build.regions],
        "rtmr": [value.hex() for value in prediction.rtmrs],
        "rtmr_events": [[event.rtmr, event.digest.hex()] for event in prediction.events],
        "memory": 64 << 20,
        "cpus": 2,
    }
    record.write_text(json.dumps(kept))
    result = command("diff", record, image, "--kernel", kernel)
    assert (result.status, result.err) == (0, "")
    assert "RTMR0-3 are equal." in result.out
    result = command("diff", record, image, "--kernel", kernel, "--cpus", "3")
    assert result.status == 2
    tables = next(event.number for event in prediction.events if event.name == "etc/acpi/tables")
    assert f"The first event to differ is number {tables - 2}:" in result.out
    assert "etc/table-loader" in result.out
    assert json.loads(command("diff", record, image, "--kernel", kernel, "--cpus", "3", "--json").out)["first_event"]
    assert command("diff", record, record, "--kernel", kernel).status == 1


def replayed(events: list[dict[str, str]]) -> list[str]:
    registers = [bytes(48)] * 4
    for event in events:
        number = int(event["register"].removeprefix("RTMR"))
        registers[number] = hashlib.sha384(registers[number] + bytes.fromhex(event["digest"])).digest()
    return [value.hex() for value in registers]


def test_measure_with_a_measured_hob_wants_to_know_the_memory(command: Command, measured_hob: Path) -> None:
    result = command("measure", measured_hob)
    assert (result.status, result.out) == (1, "")
    assert "--memory" in result.err
    small, large = (command("measure", measured_hob, "--memory", size) for size in ("64M", "96M"))
    assert small.status == large.status == 0
    assert small.out != large.out
    assert command("measure", measured_hob, "--memory", "8M").status == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["measure", "FIRMWARE", "--memory", "64M"], 1, "cannot change"),
        (["measure", "FIRMWARE", "--json", "--output-format", "hex"], 1, "--output-format"),
        (["measure", "FIRMWARE", "--order", "random"], 1, "random"),
        (["measure", "FIRMWARE", "--kernel", "absent"], 3, "No such file"),
        (["measure", "FIRMWARE", "--kernel", "FIRMWARE"], 2, "not a bzImage"),
        (["measure", "FIRMWARE", "--append", "quiet"], 1, "--append cannot change"),
        (["measure", "FIRMWARE", "--cpus", "2"], 1, "--cpus cannot change"),
        (["measure", "FIRMWARE", "--event-log", "x"], 1, "--event-log cannot change"),
        (["measure", "FIRMWARE", "--kernel", "x", "--event-log", "x", "--cpus", "2"], 1, "--cpus cannot change"),
        (["measure", "FIRMWARE", "--kernel", "x", "--event-log", "x", "--memory", "1G"], 1, "--memory cannot change"),
        (["measure", "FIRMWARE", "another"], 1, "not expected here"),
        (["measure", "none"], 1, "there must be a kernel"),
        (["measure", "none", "--kernel", "absent"], 3, "No such file"),
        (["measure", "none", "--kernel", "FIRMWARE"], 2, "not a bzImage"),
        (["measure", "absent.fd"], 3, "No such file"),
        (["measure", "."], 3, "directory"),
        (["measure", "CODE"], 2, "no TDX metadata"),
        (["inspect", "absent.fd"], 3, "No such file"),
        (["inspect", "FIRMWARE", "--memory", "much"], 1, "much"),
        (["inspect", "FIRMWARE", "--svg", "absent-folder/x.svg"], 1, "absent-folder"),
        (["inspect", "FIRMWARE", "--quiet", "--json"], 1, "exclude"),
        (["diff", "FIRMWARE"], 1, "B"),
        (["diff", "FIRMWARE", "absent.fd"], 3, "absent.fd"),
        (["diff", "FIRMWARE", "none"], 1, "give --kernel"),
        (["diff", "none", "FIRMWARE", "--kernel", "FIRMWARE"], 2, "not a bzImage"),
        (["diff", "none", "FIRMWARE", "--kernel", "absent"], 3, "absent"),
        (["diff", "FIRMWARE", "CODE"], 2, "no TDX metadata"),
        (["diff", "FIRMWARE", "RECORD"], 2, "cannot be compared as evidence"),
        (["diff", "FIRMWARE", "FIRMWARE", "--memory", "64M"], 1, "cannot change"),
        (["diff", "FIRMWARE", "FIRMWARE", "--quiet", "--json"], 1, "exclude"),
        (["diff", "FIRMWARE", "FIRMWARE", "--initrd", "x"], 1, "--initrd cannot change"),
        (["diff", "FIRMWARE", "FIRMWARE", "--kernel", "absent"], 3, "No such file"),
    ],
)
def test_one_sentence_and_the_status(
    arguments: list[str], status: int, words: str, command: Command, firmware: Path, code_half: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    record.write_text("{}")
    files = {"FIRMWARE": firmware, "CODE": code_half, "RECORD": record}
    result = command(*(files.get(argument, argument) for argument in arguments))
    assert result.status == status
    (complaint,) = result.err.splitlines()
    assert complaint.startswith("swtdx: ")
    if "--json" in arguments:
        assert json.loads(result.out) == {"error": complaint.removeprefix("swtdx: "), "status": status}
    else:
        assert result.out == ""
    assert words in complaint


def test_inspect_shows_table_and_picture(command: Command, firmware: Path, tmp_path: Path) -> None:
    result = command("inspect", firmware)
    assert result.status == 0
    for word in ("can start as a TD", "BFV", "TD_HOB", "0xffff4000", "contents", "0x100000000 +--"):
        assert word in result.out
    svg = tmp_path / "memory.svg"
    result = command("inspect", firmware, "--svg", svg, "--json")
    assert json.loads(result.out)["can_start"]
    assert ElementTree.parse(svg).getroot().tag.endswith("}svg")


def test_inspect_of_what_cannot_start(command: Command, code_half: Path) -> None:
    result = command("inspect", code_half)
    assert result.status == 2
    assert "no-metadata: " in result.out
    assert json.loads(command("inspect", code_half, "--json").out)["broken"][0]["rule"] == "no-metadata"
    result = command("inspect", code_half, "--quiet")
    assert (result.status, result.out, result.err) == (2, "", "")


def test_without_an_image_the_installed_firmware_is_taken(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(named: Path | None = None, **more: object) -> swtdx.image.firmware.Firmware:
        raise swtdx.image.firmware.FirmwareError("no TDVF was found: install one")

    monkeypatch.setattr("swtdx.image.firmware.find_firmware", none)
    assert command("measure").status == 3
    assert command("inspect").status == 3
    found = swtdx.image.firmware.Firmware(Path("found.fd"), "it is there", image_with())
    monkeypatch.setattr("swtdx.image.firmware.find_firmware", lambda: found)
    result = command("measure")
    assert (result.status, result.err) == (0, "swtdx: found.fd: it is there\n")
    assert command("measure", "--quiet").err == ""


def test_diff_of_images(command: Command, firmware: Path, tmp_path: Path) -> None:
    image = bytearray(firmware.read_bytes())
    image[0x123] ^= 1
    other = tmp_path / "other.fd"
    other.write_bytes(image)
    result = command("diff", firmware, other)
    assert result.status == 0
    assert "in nothing that MRTD measures" in result.out
    image[0x8123] ^= 1
    other.write_bytes(image)
    result = command("diff", firmware, other)
    assert result.status == 2
    for word in ("section 0 BFV, page 4", "byte 0x123", "0xffff8123", "0x90 and 0x91"):
        assert word in result.out
    assert json.loads(command("diff", firmware, other, "--json").out)["divergence"]["gpa"] == 0xFFFF8123
    result = command("diff", firmware, other, "--quiet")
    assert (result.status, result.out, result.err) == (2, "", "")
    assert command("diff", firmware, firmware, "--order", "region").status == 0


def test_diff_of_launches(command: Command, firmware: Path, tmp_path: Path) -> None:
    """A synthetic firmware runs into nothing at once, and its launch is recorded all the same."""
    records = [tmp_path / "one.json", tmp_path / "two.json"]
    for record, dialect in zip(records, ("upstream", "v10"), strict=True):
        command("run", "--quiet", "--firmware", firmware, "--json", record, "--timeout", "0.2", "--dialect", dialect)
    assert command("diff", *records).status == 0
    assert command("diff", records[0], firmware).status == 0
    result = command("diff", records[1], firmware, "--order", "region")
    assert result.status == 2
    assert "after 1 equal call" in result.out
    result = command("diff", *records, "--order", "region")
    assert result.status == 1
    assert "cannot change anything" in result.err
    kept = json.loads(records[1].read_text())
    kept["rtmr"][2] = "77" * 48
    records[1].write_text(json.dumps(kept))
    result = command("diff", *records)
    assert result.status == 2
    assert "RTMR2 differs" in result.out


def test_measuring_loads_neither_engine_nor_kernel(firmware: Path) -> None:
    script = "import sys; sys.argv[0] = 'swtdx'\nimport atexit\nfrom swtdx.cli import main\n"
    script += (
        "atexit.register(lambda: print(sorted(m for m in sys.modules if m.startswith('swtdx.')), file=sys.stderr))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + "\nmain()", "measure", str(firmware)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = done.stderr
    assert "swtdx.attest.measure" in loaded
    for floor in ("swtdx.cpu", "swtdx.seam", "swtdx.linux", "swtdx.uapi", "swtdx.vmm.launch", "swtdx.cli.session"):
        assert floor not in loaded


@pytest.mark.parametrize("name", ["inspect", "measure", "diff"])
def test_help_names_the_exit_statuses(name: str, command: Command) -> None:
    result = command(name, "--help")
    assert result.status == 0
    assert "Exit status" in result.out
    assert name in command("--help").out
