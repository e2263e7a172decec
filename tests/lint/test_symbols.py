# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of addresses: System.map, kallsyms, ELF; a kernel that has placed itself at random."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from swtdx.lint.symbols import SymbolError, Symbols, read

MAP = """\
ffffffff81000000 T _text
ffffffff81000100 t io_serial_out
ffffffff82000000 T entry_SYSCALL_64
ffffffffa0001000 t virtio_probe\t[virtio]
0000000000000000 D zero
"""


def test_system_map_and_kallsyms(tmp_path: Path) -> None:
    (tmp_path / "System.map").write_text(MAP)
    names = read(tmp_path / "System.map")
    assert names(0xFFFFFFFF81000100) == "io_serial_out"
    assert names(0xFFFFFFFF81000112) == "io_serial_out+0x12"
    assert names(0xFFFFFFFFA0001001) == "virtio_probe+0x1"
    assert names(0x1000) == ""
    assert names(0xFFFFFFFF8FFFFFFF) == ""  # far behind the last one below it


def test_a_kernel_that_is_moved(tmp_path: Path) -> None:
    names = Symbols([(0xFFFFFFFF82000000, "entry_SYSCALL_64"), (0xFFFFFFFF81000100, "io_serial_out")])
    names.place([0, 0xFFFFFFFF82000000 + 0x12345, 0xFFFFFFFF82000000 + 0x2A000000])
    assert names.offset == 0x2A000000
    assert names(0xFFFFFFFF81000104 + 0x2A000000) == "io_serial_out+0x4"


def test_an_elf_file(tmp_path: Path) -> None:
    (tmp_path / "a.s").write_text(".globl first\n.type first, @function\nfirst: nop\nnop\nsecond: nop\n")
    subprocess.run(["as", "--64", "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
    subprocess.run(["ld", "-e", "first", "-Ttext=0x400000", "-o", tmp_path / "a", tmp_path / "a.o"], check=True)
    names = read(tmp_path / "a")
    assert [names(0x400000), names(0x400001), names(0x400002)] == ["first", "first+0x1", "second"]


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "System.map, or vmlinux"),
        (b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n", "no symbols"),
        (b"0000000000000000 T _text\n", "root only"),
        (b"\x7fELF", "damaged or cut short"),
        (b"\x7fELF\x01" + bytes(60), "not an ELF file for x86-64"),
        (bytes(range(256)) * 64, "no symbols"),
    ],
)
def test_one_sentence_for_what_has_none(contents: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(SymbolError, match=words):
        read(tmp_path / "file")


def test_a_cut_elf_file_never_crashes(tmp_path: Path) -> None:
    (tmp_path / "a.s").write_text("first: nop\n")
    subprocess.run(["as", "--64", "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
    whole = (tmp_path / "a.o").read_bytes()
    for length in range(4, len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        try:
            read(tmp_path / "cut")
        except SymbolError:
            continue
