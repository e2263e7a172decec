# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw images: what is taken, and what is refused with one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swtdx.vmm.disk_image import DiskError, DiskSpec, open_disk, parse_disk


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a.img", DiskSpec(Path("a.img"))),
        ("a.img,ro", DiskSpec(Path("a.img"), read_only=True)),
        ("a.img,format=raw", DiskSpec(Path("a.img"), raw=True)),
        ("a.img,format=raw,ro", DiskSpec(Path("a.img"), read_only=True, raw=True)),
        ("a,,b.img,ro", DiskSpec(Path("a,b.img"), read_only=True)),
        ("/dir/ro", DiskSpec(Path("/dir/ro"))),
        ("a.img,serial=b,,c", DiskSpec(Path("a.img"), serial="b,c")),
    ],
)
def test_what_is_asked_for(text: str, spec: DiskSpec) -> None:
    assert parse_disk(text) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no file"),
        (",ro", "names no file"),
        ("a.img,rw", "'rw' is neither"),
        ("a.img,", "'' is neither"),
        ("a.img,format=qcow2", "only format there is is raw"),
    ],
)
def test_what_nobody_understands(text: str, words: str) -> None:
    with pytest.raises(DiskError, match=words):
        parse_disk(text)


def refused(path: Path, words: str, *, read_only: bool = False) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskError, match=words) as caught:
        open_disk(DiskSpec(path, read_only))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.img", "No such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")


def test_a_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "neither a file nor a block device")
    refused(tmp_path / "fifo", "neither a file nor a block device", read_only=True)


def test_a_character_device() -> None:
    refused(Path("/dev/zero"), "neither a file nor a block device", read_only=True)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    refused(tmp_path / "empty.img", "is empty")


@pytest.mark.parametrize("size", [1, 511, 513, 1024 * 1024 - 1])
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.img"
    path.write_bytes(bytes(size))
    refused(path, f"truncated: {size} bytes is not a multiple of 512")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file: only an unprivileged user sees this refused")
def test_a_read_only_file_needs_ro(tmp_path: Path) -> None:
    path = tmp_path / "ro.img"
    path.write_bytes(bytes(512))
    path.chmod(0o444)
    refused(path, "is read-only: write --disk .*,ro")
    open_disk(DiskSpec(path, read_only=True)).close()
    path.chmod(0)
    refused(path, "Permission denied", read_only=True)


def test_a_file_that_the_system_will_not_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system, which root feels too."""
    path = tmp_path / "ro.img"
    path.write_bytes(bytes(512))
    really_open = os.open

    def read_only_file_system(name: Path, flags: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(30, "Read-only file system")
        return really_open(name, flags)

    monkeypatch.setattr(os, "open", read_only_file_system)
    refused(path, "is read-only: write --disk .*,ro")
    open_disk(DiskSpec(path, read_only=True)).close()


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"KDMV", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (bytes(0x40) + b"\x7f\x10\xda\xbe", "VDI"),
    ],
)
def test_another_programs_container_is_named(tmp_path: Path, start: bytes, name: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(start.ljust(1000, b"\0"))  # and not of whole sectors, which is not what is wrong with it
    refused(path, f"format {name}: qemu-img convert -O raw")
    path.write_bytes(start.ljust(1024, b"\0"))
    with open_disk(DiskSpec(path, raw=True)) as disk:
        assert disk.size == 1024


def test_a_writer_has_the_image_alone_and_readers_share_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    with open_disk(DiskSpec(path)):
        refused(path, "in use by another machine")
        refused(path, "in use by another machine", read_only=True)
    with open_disk(DiskSpec(path, read_only=True)), open_disk(DiskSpec(path, read_only=True)):
        refused(path, "in use by another machine")
    open_disk(DiskSpec(path)).close()


def test_reads_and_writes_by_pieces(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4)
    first, second = bytearray(5), bytearray(300)
    with open_disk(DiskSpec(path)) as disk:
        disk.read_into([memoryview(first), memoryview(second)], 510)
        assert first + second == (bytes(range(256)) * 4)[510:815]
        disk.write_from([memoryview(b"one"), memoryview(b""), memoryview(b"two")], 1000)
        disk.flush()
    assert path.read_bytes()[1000:1006] == b"onetwo"


def test_what_arrives_piecemeal_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may transfer less than was asked for, at any place."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 2)
    whole_read, whole_write = os.preadv, os.pwritev

    def some(buffers: list[memoryview]) -> list[memoryview]:
        return [buffers[0][:7]]

    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole_read(fd, some(buffers), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: whole_write(fd, some(buffers), offset))
    first, second = bytearray(20), bytearray(31)
    with open_disk(DiskSpec(path)) as disk:
        disk.read_into([memoryview(first), memoryview(second)], 100)
        assert first + second == bytes(range(100, 151))
        disk.write_from([memoryview(b"a" * 10), memoryview(b"b" * 10)], 0)
    assert path.read_bytes()[:21] == b"a" * 10 + b"b" * 10 + b"\x14"
