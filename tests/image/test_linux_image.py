# SPDX-License-Identifier: GPL-2.0-or-later
"""bzImages by the kernel's boot protocol (Documentation/arch/x86/boot.rst), and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from swtdx.image.fw_cfg_items import Key, linux_items
from swtdx.image.linux_image import LinuxBoot, LinuxImageError, load, parse

MIB = 1 << 20


def bzimage(*, version: int = 0x20F, sectors: int = 3, kernel: bytes = bytes(0x1000), loadflags: int = 1) -> bytes:
    image = bytearray((1 + sectors) * 512)
    image[0x1F1] = sectors
    struct.pack_into("<I", image, 0x1F4, len(kernel) // 16)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = loadflags
    struct.pack_into("<I", image, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<I", image, 0x230, 0x20_0000)
    struct.pack_into("<H", image, 0x236, 3)
    struct.pack_into("<I", image, 0x238, 2047)
    struct.pack_into("<Q", image, 0x258, 0x100_0000)
    struct.pack_into("<I", image, 0x260, 40 * MIB)
    return bytes(image) + kernel


def test_the_header_is_read_and_the_file_is_cut_in_two() -> None:
    image = bzimage(kernel=b"k" * 0x1000)
    parsed = parse(image, "x")
    assert parsed.setup + parsed.kernel == image
    assert len(parsed.setup) == 4 * 512
    assert (parsed.version, parsed.preferred_address, parsed.init_size) == (0x20F, 0x100_0000, 40 * MIB)
    assert (parsed.command_line_size, parsed.entry_64) == (2047, True)


def test_no_setup_sectors_mean_four() -> None:
    image = bytearray(bzimage(sectors=4))
    image[0x1F1] = 0
    assert len(parse(bytes(image), "x").setup) == 5 * 512


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"MZ", "not a bzImage"),
        (bytes(4096), "not a bzImage"),
        (bzimage(version=0x205), "2.05"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage()[:-1024], "truncated"),
        (bzimage(kernel=b""), "truncated"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_sentence(image: bytes, words: str) -> None:
    with pytest.raises(LinuxImageError, match=words) as refused:
        parse(image, "the file")
    assert "the file" in str(refused.value)


def test_files_and_command_line_are_held_against_the_machine(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(bzimage())
    initrd.write_bytes(bytes(3 * MIB))
    boot = load(kernel, initrd, "console=ttyS0", 256 * MIB)
    assert (len(boot.initrd), boot.command_line) == (3 * MIB, "console=ttyS0")
    for arguments, words in (
        ((kernel, initrd, "x" * 2048, 256 * MIB), "2048 bytes long"),
        ((kernel, initrd, "", 2 * MIB), "more than the guest's memory"),
        ((kernel, initrd, "", 32 * MIB), "give it more memory"),
        ((tmp_path / "absent", None, "", 256 * MIB), "No such file"),
        ((tmp_path, None, "", 256 * MIB), "is a folder"),
        ((kernel, tmp_path / "absent", "", 256 * MIB), "initrd"),
        ((kernel, None, "a\0b", 256 * MIB), "zero byte"),
    ):
        with pytest.raises(LinuxImageError, match=words):
            load(*arguments)


def test_fw_cfg_has_what_qemu_gives_a_confidential_guest() -> None:
    image = bzimage(kernel=b"k" * 0x1000)
    items = linux_items(LinuxBoot(parse(image, "x"), b"initrd", "a=b"))
    # Keys of QEMU's docs/specs/fw_cfg.rst; the halves are not touched, so that together they are the file.
    assert items[0x18] + items[0x11] == image
    assert items[0x17] == len(items[0x18]).to_bytes(4, "little")
    assert items[0x08] == len(items[0x11]).to_bytes(4, "little")
    assert (items[0x12], items[0x0B]) == (b"initrd", (6).to_bytes(4, "little"))
    assert (items[0x15], items[0x14]) == (b"a=b\0", (4).to_bytes(4, "little"))
    assert set(items) <= {int(key) for key in Key}
