# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the debug server that need no machine: framing, breakpoints, addresses, the x87 tag word."""

from __future__ import annotations

import random

import pytest

from swtdx.vmm.gdb.breakpoints import Breakpoints, Kind, NoRoom, Planted
from swtdx.vmm.gdb.packet import PACKET_SIZE, Again, Broken, Interrupt, Packet, PacketReader, framed
from swtdx.vmm.gdb.registers import full_tag_word
from swtdx.vmm.gdb.save_area import SaveArea, compacted_offsets
from swtdx.vmm.gdb.server import Address, AddressError, parse_address
from swtdx.vmm.gdb.td_target import vmcs
from swtdx.x86 import XFeature


def read(data: bytes, piece: int = 1 << 20) -> list[object]:
    reader = PacketReader()
    return [
        event.data if isinstance(event, Packet) else type(event)
        for start in range(0, len(data), piece)
        for event in reader.feed(data[start : start + piece])
    ]


def test_packets_of_the_manual() -> None:
    assert framed(b"OK") == b"$OK#9a"
    assert framed(b"") == b"$#00"
    assert framed(b"#$}*") == b"$}\x03}\x04}]}\x0a#62"
    assert read(b"$g#67") == [b"g"]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_what_is_framed_is_read_again_however_it_arrives(piece: int) -> None:
    chance = random.Random(piece)
    packets = [chance.randbytes(chance.randrange(300)) for _ in range(20)]
    assert read(b"".join(map(framed, packets)), piece) == packets


def test_bytes_between_packets() -> None:
    assert read(b"+++\x03xyz-$g#67\x03") == [Interrupt, Again, b"g", Interrupt]
    assert read(b"$X\x03#5b") == [b"X\x03"], "0x03 in a packet is data"


@pytest.mark.parametrize("data", [b"$g#66", b"$g#zz", b"$g}#e4", b"$g#-1", b"$" + b"a" * (PACKET_SIZE + 1) + b"#00"])
def test_broken_packets_are_told_and_forgotten(data: bytes) -> None:
    assert read(data + b"$g#67") == [Broken, b"g"]


def test_a_packet_that_begins_anew_drops_what_there_was() -> None:
    assert read(b"$abc$g#67") == [b"g"]
    assert read(b"$abc#$g#67") == [Broken, b"g"]
    assert read(b"$abc#9$g#67") == [Broken, b"g"]


def test_no_more_than_a_packet_is_kept() -> None:
    reader = PacketReader()
    for _ in range(100):
        assert not list(reader.feed(b"$" + b"x" * 5000))
        assert not list(reader.feed(b"y" * PACKET_SIZE))
        assert len(reader._data) <= PACKET_SIZE


def test_dr7_as_the_sdm_has_it() -> None:
    """Volume 3, figure 18-1: L/G bits 7:0, then R/W and LEN, four bits for each register from bit 16."""
    breakpoints = Breakpoints()
    breakpoints.add_hardware(Kind.EXECUTE, 0x1000, 4)
    breakpoints.add_hardware(Kind.WRITE, 0x2000, 1)
    breakpoints.add_hardware(Kind.WRITE, 0x3000, 8)
    breakpoints.add_hardware(Kind.ACCESS, 0x4004, 4)
    registers = breakpoints.debug_registers()
    assert registers[:4] == [0x1000, 0x2000, 0x3000, 0x4004]
    assert registers[7] == 0xF910_06AA
    with pytest.raises(NoRoom):
        breakpoints.add_hardware(Kind.WRITE, 0x5000, 1)
    breakpoints.remove_hardware(Kind.WRITE, 0x2000, 1)
    assert breakpoints.debug_registers()[:4] == [0x1000, 0x3000, 0x4004, 0]
    met = breakpoints.met(0b10)
    assert met is not None
    assert met.address == 0x3000
    assert breakpoints.met(0b1000) is None


def test_planted_breakpoints_are_hidden_and_survive_writes() -> None:
    breakpoints = Breakpoints()
    breakpoints.software[0xFFFF_0001] = Planted(0x1001, 0x55)
    assert breakpoints.hide(0x1000, b"\x90\xcc\xcc") == b"\x90\x55\xcc"
    assert breakpoints.keep(0x1000, b"abc") == b"a\xccc"
    assert breakpoints.hide(0x1000, b"a\xccc") == b"abc"
    assert breakpoints.hide(0x1002, b"\xcc") == b"\xcc"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":1234", Address("127.0.0.1", 1234)),
        ("tcp::1234", Address("127.0.0.1", 1234)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("[::1]:1234", Address("::1", 1234)),
        ("/tmp/socket", Address(path="/tmp/socket")),
        ("unix:socket", Address(path="socket")),
        ("./socket", Address(path="./socket")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "1234", ":", "host:", ":65536", ":-1", ":\u0661", "unix:", "localhost"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_the_full_tag_word() -> None:
    """SDM volume 1, 8.1.7: 00 valid, 01 zero, 10 special, 11 empty; by register, not by place on the stack."""
    one, infinity, zero = 0x3FFF << 64 | 1 << 63, 0x7FFF << 64 | 1 << 63, 0
    assert full_tag_word(0, 0, (0,) * 8) == 0xFFFF
    assert full_tag_word(0b1110_0000, 5 << 11, (one, infinity, zero, 0, 0, 0, 0, 0)) == 0b01_10_00_11_11_11_11_11


def test_components_lie_without_gaps_in_the_compacted_form() -> None:
    """SDM volume 1, 13.4.3: in the order of their numbers behind byte 576, those that XCOMP_BV has."""
    avx, pkru = XFeature.AVX, XFeature.PKRU
    assert compacted_offsets(1 << 63 | 3) == {}
    assert compacted_offsets(1 << 63 | 7) == {avx: 576}
    assert compacted_offsets(1 << 63 | 0x207) == {avx: 576, pkru: 832}
    assert compacted_offsets(1 << 63 | 0x203) == {pkru: 576}
    assert compacted_offsets(1 << 63 | 0x2E7) == {avx: 576, pkru: 832 + 64 + 512 + 1024}


def test_a_component_that_is_not_in_use_has_its_initial_value() -> None:
    """XSAVEOPT, XSAVEC and XSAVES leave what they do not write as it was (SDM volume 1, 13.8)."""
    image = bytearray(b"\xee" * 832)
    image[512:576] = (3).to_bytes(8, "little") + bytes(56)
    area = SaveArea(image, {XFeature.AVX: 576})
    assert area.registers()["ymm15h"] == 0
    assert list(area.set_register("ymm1h", 5)) == [74, 75]
    assert image[512] == 7
    assert area.registers()["ymm1h"] == 5


def test_field_ids_of_the_vmcs() -> None:
    """ABI specification, VMCS fields: identifiers of guest CS selector, EFER, exception bitmap and RIP."""
    assert [vmcs(code) for code in (0x802, 0x2806, 0x4004, 0x681E)] == [
        0x0024000100000802,
        0x0024000300002806,
        0x0024000200004004,
        0x002400030000681E,
    ]
