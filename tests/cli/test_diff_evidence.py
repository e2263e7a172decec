# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx diff`` of an image with a quote or a prediction: which order of calls made an MRTD."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pytest

from swtdx.attest.event import Event
from swtdx.attest.event_reasons import usual_reason
from swtdx.attest.measure import measure_image
from swtdx.image.mrtd import Order
from testing.loader_image import grub, partitioned, shim
from testing.tdvf_image import image_with
from testing.uefi_image import edk2_like, efi_kernel
from tests.attest.test_evidence import LOG, quote_with
from tests.cli.conftest import Command


@pytest.mark.parametrize("order", Order)
def test_the_order_of_calls_that_made_an_mrtd(tmp_path: Path, command: Command, order: Order) -> None:
    image, quote = tmp_path / "x.fd", tmp_path / "quote.bin"
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG, measure_image(image_with(), order=order).mrtd))
    for pair in ((image, quote), (quote, image)):
        done = command("diff", *pair)
        assert done.status == 0
        assert f"its calls {order.value}." in done.out


def test_an_mrtd_that_no_order_of_calls_makes(tmp_path: Path, command: Command) -> None:
    image, quote = tmp_path / "x.fd", tmp_path / "quote.bin"
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG))
    done = command("diff", image, quote)
    assert done.status == 2
    assert "No order of calls makes this MRTD" in done.out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["prediction", "quote"])
def test_text_in_the_encodings_that_shells_write(tmp_path: Path, command: Command, encoding: str, form: str) -> None:
    """PowerShell writes UTF-16 with a byte order mark, and some editors UTF-8 with one."""
    image, quote, text = (tmp_path / name for name in ("x.fd", "quote.bin", "text"))
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG, measure_image(image_with()).mrtd))
    content = command("measure", image, "--json").out if form == "prediction" else quote.read_bytes().hex()
    text.write_bytes(content.encode(encoding))
    for pair in ((text, quote), (image, text)):
        done = command("diff", *pair, "--json")
        assert (done.status, done.err) == (0, "")
        assert "MRTD" in json.loads(done.out)["compared"]


def test_a_prediction_in_json_is_evidence(tmp_path: Path, command: Command) -> None:
    image, quote, predicted = (tmp_path / name for name in ("x.fd", "quote.bin", "predicted.json"))
    image.write_bytes(image_with())
    predicted.write_text(command("measure", image, "--json").out)
    quote.write_bytes(quote_with(LOG, measure_image(image_with()).mrtd))
    done = command("diff", predicted, quote, "--json")
    assert (done.status, json.loads(done.out)["compared"]) == (0, ["MRTD"])


CONFIG = "EFI/debian/grub.cfg"
CC_MEASUREMENT_PROTOCOL = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")  # UEFI 2.10, 38.2.2, as it lies in memory


class DiskOfShim:
    """Files of a boot by shim and GRUB, and the command line that starts from them."""

    def __init__(self, folder: Path, options: str = "ro") -> None:
        self.folder = folder
        (folder / "esp" / CONFIG).parent.mkdir(parents=True)
        kernel = efi_kernel(CC_MEASUREMENT_PROTOCOL)
        contents = {
            "x.fd": edk2_like(), "shim.efi": shim(), "grub.efi": grub(), "disk.img": partitioned(UUID(int=3)),
            "esp/vmlinuz": kernel, f"esp/{CONFIG}": f"linux /vmlinuz {options}\nboot\n".encode(),
        }  # fmt: skip
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        self.image = folder / "x.fd"
        loaders = [each for name in ("shim.efi", "grub.efi") for each in ("--boot", folder / name)]
        self.options = [*loaders, "--grub-root", folder / "esp", "--disk", folder / "disk.img"]

    def log(self, command: Command, path: Path) -> Path:
        """An event log of this boot, from its prediction."""
        done = command("measure", self.image, *self.options, "--json")
        events = json.loads(done.out)["direct_boot"]["events"]
        told = [
            {"imr": int(each["register"][-1]), "event_type": int(each["event_type"], 16), "digest": each["digest"],
             "event_payload": each["data"]}
            for each in events
        ]  # fmt: skip
        path.write_text(json.dumps(told))
        return path


def test_a_log_beside_the_boot_chain_that_it_should_be_of(tmp_path: Path, command: Command) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    boot, other = DiskOfShim(tmp_path / "one"), DiskOfShim(tmp_path / "other", "ro debug")
    same = boot.log(command, tmp_path / "same.json")
    for pair in ((same, boot.image), (boot.image, same)):
        done = command("diff", *pair, *boot.options)
        assert done.status == 0
        assert "RTMR0, RTMR1, RTMR2 are equal." in done.out
    done = command("diff", other.log(command, tmp_path / "log.json"), boot.image, *boot.options)
    assert done.status == 2
    assert "EV_IPL" in done.out
    assert "grub.cfg" in done.out
    assert "Usual reason: GRUB's configuration, another menu entry, or a file that it reads." in done.out
    assert "RTMR0, RTMR1 are equal." in done.out
    found = json.loads(command("diff", tmp_path / "log.json", boot.image, *boot.options, "--json").out)
    assert [each["what"] for each in found["differences"]] == ["RTMR2"]
    assert found["differences"][0]["usual_reason"].startswith("GRUB's configuration")


def test_an_event_that_is_not_known_leaves_its_register_out(tmp_path: Path, command: Command) -> None:
    boot = DiskOfShim(tmp_path)
    log = boot.log(command, tmp_path / "log.json")
    without_disk = boot.options[:-2]
    done = command("diff", log, boot.image, *without_disk)
    assert done.status == 0
    assert "RTMR0, RTMR2 are equal." in done.out
    assert "EV_EFI_GPT_EVENT" in done.err
    assert command("diff", log, boot.image, *without_disk, "--quiet").err == ""


def test_two_boot_chains_and_images_of_them(tmp_path: Path, command: Command) -> None:
    """The same chain with two firmwares: predictions both."""
    boot = DiskOfShim(tmp_path)
    other = tmp_path / "other.fd"
    other.write_bytes(edk2_like({("SecureBoot", UUID(int=4)): b"\1"}))
    done = command("diff", boot.image, other, *boot.options)
    assert done.status == 2
    assert "Usual reason: the CFV: other variables in the firmware's image." in done.out


@pytest.mark.parametrize("options", [["--kernel", "k"], ["--boot", "k"]])
def test_a_boot_is_for_an_image(tmp_path: Path, command: Command, options: list[str]) -> None:
    log = DiskOfShim(tmp_path).log(command, tmp_path / "log.json")
    done = command("diff", log, log, *options)
    assert (done.status, "they are for images" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("register", "event_type", "data", "reason"),
    [
        (0, 0x8000000B, b"", "TD HOB|SMBIOS"), (0, 0x8000000A, b"\1f" + bytes(16), "the CFV"),
        (0, 0xA, b"ACPI DATA", "ACPI tables"), (0, 0xA, b"QEMU FW CFG\0BootMenu" + bytes(48), "an option of the VMM"),
        (0, 0x80000002, b"", "boot options"), (1, 0x80000003, b"", "another kernel"),
        (1, 0x80000006, b"", "partition table"), (2, 0xD, ".linux".encode("utf-16-le"), "unified kernel image"),
        (2, 0xD, b"kernel_cmdline: x\0", "command line"), (2, 0xD, b"grub_cmd: ls\0", "GRUB"),
        (2, 0xD, b"MokListX\0", "shim"), (3, 0x8000001, b"x", "agent"), (0, 0x80000009, b"", "SMBIOS"),
        (1, 0x80000007, b"Exit Boot Services Returned with Failure", "twice"), (1, 0x4, bytes(4), ""),
    ],
)  # fmt: skip
def test_the_usual_reason_of_each_kind_of_event(register: int, event_type: int, data: bytes, reason: str) -> None:
    found = usual_reason(Event(0, 0, register, event_type, bytes(48), data))
    assert (found is None) == (not reason)
    assert found is None or re.search(reason, found)
