# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables as a firmware installs them and an operating system walks them; the AML as ACPICA reads it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from swtdx.image import acpi_tables, aml
from swtdx.image.acpi_tables import LOADER_FILE, RSDP_FILE, TABLES_FILE
from swtdx.image.memory_map import MIB, MemoryMap
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.memory import GuestMemory

LAYOUT = MemoryMap(512 * MIB, 2 * MIB)
TABLES_AT, RSDP_AT = 0x1FB7_0000, 0xE_0000


def installed(files: dict[str, bytes]) -> dict[str, bytearray]:
    """Carry the table loader's script out, as QEMU's bios-linker-loader.c describes it to firmware."""
    addresses: dict[str, int] = {}
    blobs: dict[str, bytearray] = {}
    script = files[LOADER_FILE]
    assert len(script) % 128 == 0

    def text(data: bytes) -> str:
        return data.rstrip(b"\0").decode()

    for at in range(0, len(script), 128):
        entry = script[at : at + 128]
        command = int.from_bytes(entry[:4], "little")
        name = text(entry[4:60])
        if command == 1:  # ALLOCATE: file, alignment, zone
            alignment, zone = struct.unpack_from("<IB", entry, 60)
            addresses[name] = {1: TABLES_AT, 2: RSDP_AT}[zone]
            assert addresses[name] % alignment == 0
            blobs[name] = bytearray(files[name])
        elif command == 2:  # ADD_POINTER: destination, source, offset, size
            source = text(entry[60:116])
            offset, size = struct.unpack_from("<IB", entry, 116)
            value = int.from_bytes(blobs[name][offset : offset + size], "little") + addresses[source]
            blobs[name][offset : offset + size] = value.to_bytes(size, "little")
        elif command == 3:  # ADD_CHECKSUM: file, offset, start, length
            offset, start, length = struct.unpack_from("<III", entry, 60)
            blobs[name][offset] = 0
            blobs[name][offset] = -sum(blobs[name][start : start + length]) & 0xFF
        else:
            raise AssertionError(f"command {command}")
    return blobs


def walked(tables: bytes, rsdp: bytes) -> dict[str, bytes]:
    """Follow RSDP, XSDT and FADT as an operating system does."""
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) % 256 == sum(rsdp[:36]) % 256 == 0

    def table(address: int) -> bytes:
        start = address - TABLES_AT
        length = int.from_bytes(tables[start + 4 : start + 8], "little")
        return tables[start : start + length]

    xsdt = table(int.from_bytes(rsdp[24:32], "little"))
    found = {"XSDT": xsdt}
    for at in range(36, len(xsdt), 8):
        one = table(int.from_bytes(xsdt[at : at + 8], "little"))
        found[one[:4].decode()] = one
    fadt = found["FACP"]
    found["FACS"] = table(int.from_bytes(fadt[36:40], "little"))
    found["DSDT"] = table(int.from_bytes(fadt[40:44], "little"))
    assert int.from_bytes(fadt[140:148], "little") == int.from_bytes(fadt[40:44], "little")
    return found


@pytest.mark.parametrize("cpus", [1, 4, 64])
@pytest.mark.parametrize("level", [False, True])
def test_installed_by_the_loader_script_all_is_found_and_sums_to_zero(cpus: int, level: bool) -> None:
    acpi = acpi_tables.build(LAYOUT, cpus, level_interrupts=level)
    blobs = installed(acpi.files())
    found = walked(bytes(blobs[TABLES_FILE]), bytes(blobs[RSDP_FILE]))
    assert set(found) == {"XSDT", "FACP", "FACS", "DSDT", "APIC", "MCFG"}
    for signature, table in found.items():
        assert table[:4].decode() == signature
        if signature != "FACS":
            assert sum(table) % 256 == 0


def test_placed_without_firmware_the_tables_are_the_same() -> None:
    acpi = acpi_tables.build(LAYOUT, 2, level_interrupts=True)
    blobs = installed(acpi.files())
    assert acpi.place(TABLES_AT, RSDP_AT) == (bytes(blobs[TABLES_FILE]), bytes(blobs[RSDP_FILE]))


def named_files(board: Board) -> dict[str, bytes]:
    """All files of fw_cfg, read by ports 0x510 and 0x511."""

    def item(key: int, length: int) -> bytes:
        board.ports.write(0x510, 2, key)
        return bytes(board.ports.read(0x511, 1) for _ in range(length))

    (count,) = struct.unpack(">I", item(0x19, 4))
    entries = struct.iter_unpack(">IHH56s", item(0x19, 4 + 64 * count)[4:])
    return {name.rstrip(b"\0").decode(): item(key, size) for size, key, _, name in entries}


@pytest.mark.parametrize("base", [0xE000_0000, 0xB000_0000, 0xC000_0000])
def test_mcfg_says_where_the_firmware_has_put_configuration_space(base: int) -> None:
    board = Board(
        LAYOUT, GuestMemory(), 1, serial=bytearray().extend, signal_msi=lambda msi: None, route_msis=lambda routes: None
    )
    for register, value in ((0x64, 0), (0x60, base | 1)):
        board.ports.write(0xCF8, 4, 0x8000_0000 | register)
        board.ports.write(0xCFC, 4, value)
    blobs = installed(named_files(board))
    found = walked(bytes(blobs[TABLES_FILE]), bytes(blobs[RSDP_FILE]))
    assert struct.unpack_from("<QHBB", found["MCFG"], 44) == (base, 0, 0, 255)
    assert struct.pack("<II", base, 256 << 20) in found["DSDT"]  # the motherboard resource
    windows = [
        struct.unpack_from("<II", found["DSDT"], at + 10)
        for at in range(len(found["DSDT"]))
        if found["DSDT"].startswith(b"\x87\x17\0", at)
    ]
    assert windows[0][0] == 0x8000_0000
    assert windows[-1][1] == 0xFEBF_FFFF
    assert all(last < base or first >= base + (256 << 20) for first, last in windows)


def test_ecam_where_it_cannot_be_described_changes_no_table() -> None:
    board = Board(
        LAYOUT, GuestMemory(), 1, serial=bytearray().extend, signal_msi=lambda msi: None, route_msis=lambda routes: None
    )
    before = named_files(board)
    for register, value in ((0x60, 0x1000_0001), (0x64, 0xF), (0x60, 0xB000_0005), (0x64, 0), (0x60, 0)):
        board.ports.write(0xCF8, 4, 0x8000_0000 | register)
        board.ports.write(0xCFC, 4, value)
    assert named_files(board) == before


def test_madt_lists_every_cpu_and_a_td_has_no_level_triggered_line() -> None:
    for level in (False, True):
        tables, rsdp = acpi_tables.build(LAYOUT, 3, level_interrupts=level).place(TABLES_AT, RSDP_AT)
        madt = walked(tables, rsdp)["APIC"]
        entries = []
        at = 44
        while at < len(madt):
            entries.append(madt[at : at + madt[at + 1]])
            at += madt[at + 1]
        assert [entry[3] for entry in entries if entry[0] == 0] == [0, 1, 2]
        flags = {entry[3]: struct.unpack_from("<H", entry, 8)[0] for entry in entries if entry[0] == 2}
        assert set(flags) == {0, 9}
        # MPS INTI flags, ACPI 6.5 table 5.26: bits 3:2 are 01 for edge and 11 for level.
        assert flags[9] >> 2 & 3 == (3 if level else 1)


def test_fadt_names_the_registers_of_the_board() -> None:
    tables, rsdp = acpi_tables.build(LAYOUT, 1, level_interrupts=True).place(TABLES_AT, RSDP_AT)
    fadt = walked(tables, rsdp)["FACP"]
    # Offsets of ACPI 6.5 table 5.9; the port numbers are those of QEMU's q35.
    assert struct.unpack_from("<I", fadt, 56)[0] == 0x600  # PM1a_EVT_BLK
    assert struct.unpack_from("<I", fadt, 64)[0] == 0x604  # PM1a_CNT_BLK
    assert struct.unpack_from("<I", fadt, 76)[0] == 0x608  # PM_TMR_BLK
    assert fadt[116] == 1  # reset register in I/O space
    assert struct.unpack_from("<Q", fadt, 120)[0] == 0xCF9


def test_integers_take_the_shortest_form() -> None:
    # ACPI 6.5, 20.2.3: ZeroOp, OneOp, BytePrefix, WordPrefix, DWordPrefix, QWordPrefix.
    assert [aml.integer(value).hex() for value in (0, 1, 2, 0x100, 0x10000, 1 << 32)] == [
        "00", "01", "0a02", "0b0001", "0c00000100", "0e0000000001000000",
    ]  # fmt: skip


def test_package_length_counts_itself_at_every_boundary() -> None:
    for size in (1, 60, 61, 62, 63, 64, 4000, 4092, 4093, 4094, 4095, 70000):
        term = aml.scope("\\", bytes(size))
        lead = term[1]
        following = lead >> 6
        length = lead & 0x3F if not following else lead & 0xF | int.from_bytes(term[2 : 2 + following], "little") << 4
        assert length == len(term) - 1


@pytest.mark.parametrize("level", [False, True])
def test_acpica_reads_the_dsdt_and_writes_the_same(level: bool, tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("NOT CHECKED AGAINST ACPICA: there is no iasl here (Debian package acpica-tools)")
    tables, rsdp = acpi_tables.build(LAYOUT, 4, level_interrupts=level).place(TABLES_AT, RSDP_AT)
    for name, table in walked(tables, rsdp).items():
        if name == "FACS":
            continue
        (tmp_path / f"{name}.aml").write_bytes(table)
        shown = subprocess.run([iasl, "-d", f"{name}.aml"], cwd=tmp_path, capture_output=True, text=True, check=True)
        source = (tmp_path / f"{name}.dsl").read_text()
        for said in (shown.stdout + shown.stderr, source):
            assert "Invalid" not in said
            assert "Error" not in said.replace("0 Errors", "")
    compiled = subprocess.run(
        [iasl, "-oa", "-p", "again", "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "0 Errors, 0 Warnings" in compiled.stdout
    again, ours = (tmp_path / "again.aml").read_bytes(), (tmp_path / "DSDT.aml").read_bytes()
    assert again[36:] == ours[36:]  # the header's creator is the compiler's
