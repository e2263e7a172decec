# SPDX-License-Identifier: GPL-2.0-or-later
"""Which firmware is taken, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtdx.image.firmware import FirmwareError, descriptor_search_folders, find_firmware
from swtdx.image.tdvf import TdvfError
from testing.tdvf_image import image_with


def write_descriptor(folder: Path, name: str, image: Path, device: str = "memory", **changes: object) -> Path:
    mapping: dict[str, object] = {"device": device, "filename": str(image)}
    if device == "flash":
        mapping = {"device": device, "executable": {"filename": str(image), "format": "raw"}}
    description: dict[str, object] = {
        "description": "a test's",
        "mapping": mapping,
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["intel-tdx", "verbose-dynamic"],
    }
    folder.mkdir(exist_ok=True)
    descriptor = folder / name
    descriptor.write_text(json.dumps({**description, **changes}))
    return descriptor


@pytest.fixture
def tdvf(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.inteltdx.fd"
    path.write_bytes(image_with())
    return path


def test_a_named_file_wins(tdvf: Path) -> None:
    firmware = find_firmware(tdvf)
    assert (firmware.path, firmware.why, firmware.image) == (tdvf, "it was named", image_with())


@pytest.mark.parametrize("device", ["memory", "flash"])
def test_a_descriptor_comes_before_the_usual_paths(tmp_path: Path, tdvf: Path, device: str) -> None:
    other = tmp_path / "usual.fd"
    other.write_bytes(image_with(content=b"\xcc"))
    descriptor = write_descriptor(tmp_path / "d", "50-tdx.json", tdvf, device)
    firmware = find_firmware(usual_paths=[other], descriptor_folders=[tmp_path / "d"])
    assert firmware.path == tdvf
    assert str(descriptor) in firmware.why
    assert "intel-tdx" in firmware.why


def test_descriptors_that_are_not_for_us_are_passed_over(tmp_path: Path, tdvf: Path) -> None:
    folder = tmp_path / "d"
    write_descriptor(folder, "10-other.json", tmp_path / "none.fd", features=["secure-boot"])
    write_descriptor(folder, "20-arm.json", tmp_path / "none.fd", targets=[{"architecture": "aarch64"}])
    write_descriptor(folder, "30-gone.json", tmp_path / "none.fd")
    (folder / "40-broken.json").write_text("{")
    (folder / "41-odd.json").write_text('[{"features": 3}]')
    (folder / "42-odd.json").write_text('{"features": ["intel-tdx"], "targets": 7, "mapping": []}')
    write_descriptor(folder, "50-right.json", tdvf)
    assert find_firmware(usual_paths=[], descriptor_folders=[folder]).path == tdvf


def test_an_earlier_folder_hides_a_descriptor_of_the_same_name(tmp_path: Path, tdvf: Path) -> None:
    other = tmp_path / "other.fd"
    other.write_bytes(image_with(content=b"\xcc"))
    write_descriptor(tmp_path / "system", "50-tdx.json", other)
    write_descriptor(tmp_path / "user", "50-tdx.json", tdvf)
    folders = [tmp_path / "user", tmp_path / "system"]
    assert find_firmware(usual_paths=[], descriptor_folders=folders).path == tdvf
    (tmp_path / "user" / "50-tdx.json").write_text("")
    with pytest.raises(FirmwareError):
        find_firmware(usual_paths=[], descriptor_folders=folders)


def test_the_usual_paths_are_the_last_resort_and_need_not_all_be_tdvfs(tmp_path: Path, tdvf: Path) -> None:
    plain = tmp_path / "OVMF.fd"
    plain.write_bytes(bytes(0x10000))
    firmware = find_firmware(usual_paths=[tmp_path / "absent.fd", plain, tdvf], descriptor_folders=[])
    assert firmware.path == tdvf
    assert "usual paths" in firmware.why


def test_nothing_found_says_what_to_install_and_what_was_passed_over(tmp_path: Path) -> None:
    plain = tmp_path / "OVMF.fd"
    plain.write_bytes(bytes(0x10000))
    with pytest.raises(FirmwareError) as caught:
        find_firmware(usual_paths=[plain], descriptor_folders=[])
    for word in ("ovmf", "--firmware", str(plain)):
        assert word in str(caught.value)


def test_what_is_wrong_with_a_named_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FirmwareError, match=r"absent\.fd cannot be read: No such file"):
        find_firmware(tmp_path / "absent.fd")
    with pytest.raises(FirmwareError, match="cannot be read: Is a directory"):
        find_firmware(tmp_path)
    big = tmp_path / "big.fd"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FirmwareError, match="1073741824 bytes long"):
        find_firmware(big)
    plain = tmp_path / "plain.fd"
    plain.write_bytes(bytes(0x10000))
    with pytest.raises(TdvfError, match="GUID table"):
        find_firmware(plain)
    assert find_firmware(plain, tdx=False).path == plain


def test_descriptor_folders_follow_the_environment() -> None:
    folders = descriptor_search_folders({"HOME": "/h"})
    assert folders == (Path("/h/.config/qemu/firmware"), Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
    assert descriptor_search_folders({"XDG_CONFIG_HOME": "/x"})[0] == Path("/x/qemu/firmware")
