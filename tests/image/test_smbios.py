# SPDX-License-Identifier: GPL-2.0-or-later
"""SMBIOS tables: as DSP0134 lays them out, as dmidecode reads them, and what can be asked for."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from swtdx.image.memory_map import MemoryMap
from swtdx.image.smbios import ANCHOR_FILE, TABLES_FILE, SmbiosError, parse_smbios

EVERYTHING = [
    "type=0,vendor=Them,version=v1,date=01/02/2026,release=3.4",
    "type=1,product=one,,two,uuid=00112233-4455-6677-8899-aabbccddeeff,serial=S",
    "type=2,product=Board",
    "type=3,asset=tag",
    "type=4,max-speed=2000",
    "type=11,value=io.systemd.credential:a=b,value=second",
    "type=17,part=P,speed=3200",
]
LENGTHS = {0: 24, 1: 27, 2: 15, 3: 22, 4: 48, 11: 5, 16: 23, 17: 40, 19: 31, 32: 11, 127: 4}
"""Of the formatted area: DSP0134 3.0, chapter 7, each type's newest fields up to 3.0."""


def files(*texts: str, memory: int = 6 << 30, cpus: int = 3) -> dict[str, bytes]:
    return parse_smbios(texts).files(MemoryMap(memory, 2 << 20), cpus)


def structures(tables: bytes) -> Iterator[tuple[int, int, bytes, list[bytes]]]:
    """Type, handle, formatted area and strings of each (DSP0134, 6.1)."""
    at = 0
    while at < len(tables):
        kind, length, handle = struct.unpack_from("<BBH", tables, at)
        end = tables.index(b"\0\0", at + length) + 2
        yield kind, handle, tables[at : at + length], tables[at + length : end - 2].split(b"\0")
        at = end


def test_lengths_handles_and_the_order_are_the_specifications() -> None:
    found = list(structures(files(*EVERYTHING)[TABLES_FILE]))
    assert [kind for kind, *_ in found] == [0, 1, 2, 3, 4, 11, 16, 17, 19, 19, 32, 127]
    assert [len(formatted) for _, _, formatted, _ in found] == [LENGTHS[kind] for kind, *_ in found]
    handles = [handle for _, handle, *_ in found]
    assert len(set(handles)) == len(handles)


def test_what_was_not_asked_for_is_only_what_every_machine_has() -> None:
    """DSP0134, 6.2: required are 0 (which firmware adds), 1, 3, 4, 7 (caches: none), 9 (slots), 16, 17, 19 and 32."""
    assert [kind for kind, *_ in structures(files("type=1")[TABLES_FILE])] == [1, 3, 4, 16, 17, 19, 19, 32, 127]


def test_the_anchor_tells_version_and_size() -> None:
    """DSP0134, 5.2.2. What firmware fills in, the address, is zero."""
    found = files("type=1")
    anchor = found[ANCHOR_FILE]
    assert anchor[:5] == b"_SM3_"
    assert sum(anchor) & 0xFF == 0
    assert (anchor[6], len(anchor), anchor[7:11]) == (24, 24, b"\3\0\0\1")
    assert struct.unpack_from("<IQ", anchor, 12) == (len(found[TABLES_FILE]), 0)


@pytest.mark.parametrize(
    ("memory", "short", "extended"), [(512 << 20, 512, 0), (0x7FFF << 20, 0x7FFF, 0x7FFF), (1 << 40, 0x7FFF, 1 << 20)]
)
def test_the_size_of_a_large_memory_is_told_in_the_field_for_it(memory: int, short: int, extended: int) -> None:
    """DSP0134, 7.18.4 and 7.18.5: from 32 GiB - 1 MiB on."""
    device = next(each for kind, _, each, _ in structures(files("type=1", memory=memory)[TABLES_FILE]) if kind == 17)
    assert struct.unpack_from("<H", device, 0xC)[0] == short
    assert struct.unpack_from("<I", device, 0x1C)[0] == extended


def test_dmidecode_reads_them(tmp_path: Path, skip_loudly: Callable[[str], NoReturn]) -> None:
    if shutil.which("dmidecode") is None:
        skip_loudly("no dmidecode; not shown: another implementation reads the SMBIOS tables")
    found = files(*EVERYTHING)
    anchor = bytearray(found[ANCHOR_FILE])
    struct.pack_into("<Q", anchor, 16, 32)  # the tables follow it in the dump
    anchor[5] = 0
    anchor[5] = -sum(anchor) & 0xFF
    dump = tmp_path / "dump"
    dump.write_bytes(bytes(anchor).ljust(32, b"\0") + found[TABLES_FILE])
    done = subprocess.run(["dmidecode", "--from-dump", dump], capture_output=True, text=True, check=True, timeout=30)
    for line in (
        "Vendor: Them", "BIOS Revision: 3.4", "Product Name: one,two", "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "Serial Number: S", "Product Name: Board", "Asset Tag: tag", "Max Speed: 2000 MHz", "Core Count: 3",
        "String 1: io.systemd.credential:a=b", "String 2: second", "Size: 6 GB", "Part Number: P", "Speed: 3200 MT/s",
        "Maximum Capacity: 6 GB", "Range Size: 2 GB", "Range Size: 4 GB", "Status: No errors detected",
    ):  # fmt: skip
        assert f"\t{line}\n" in done.stdout
    assert not {"OUT OF SPEC", "TRUNCATED", "BAD INDEX", "Wrong", "Invalid"} & set(done.stdout.replace("<", "").split())
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with a type"),
        ("product=x", "does not begin with a type"),
        ("type=", "0, 1, 2, 3, 4, 11, 17"),
        ("type=16", "0, 1, 2, 3, 4, 11, 17"),
        ("type=\u00b2", "0, 1, 2, 3, 4, 11, 17"),
        (
            "type=1,colour=red",
            "no 'colour'; it has manufacturer, product, version, serial, uuid, sku, family",
        ),
        ("type=1,product", "no 'product'"),
        ("type=1,product=", "product cannot be ''"),
        ("type=1,product=\udcff", "product cannot be"),
        ("type=1,uuid=1", "uuid cannot be '1'"),
        ("type=0,release=1", "release cannot be '1'"),
        ("type=0,release=256.0", "release cannot be"),
        ("type=4,max-speed=65536", "max-speed cannot be '65536'"),
        ("type=4,cores=2", "no 'cores'"),
        ("type=11", "1 to 255"),
        ("type=11" + ",value=x" * 256, "1 to 255"),
    ],
)
def test_what_cannot_be_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(SmbiosError) as caught:
        parse_smbios([text])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
