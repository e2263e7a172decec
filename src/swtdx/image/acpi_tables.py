# SPDX-License-Identifier: GPL-2.0-or-later
"""The board described to an operating system: FADT, FACS, DSDT, MADT, MCFG, XSDT and RSDP (ACPI 6.5, chapter 5).

Tables point at each other by address, and only the firmware knows where it puts them.  So they travel as one blob with
offsets in place of addresses, and the `table loader` script says which of them to turn into addresses and which
checksums to make (QEMU, docs/specs; edk2, OvmfPkg/AcpiPlatformDxe).  Without firmware, `place` does the same here.

What the tables say is what this board is: interrupts go to the I/O APIC in user space, which for a TD never hears an
end of interrupt (the TDX module does not let KVM intercept it), so no line is described as level-triggered there; SMM
does not exist and ACPI mode is always on; there is no keyboard controller to probe for.  A TD's firmware adds its
wake-up mailbox for processors to the MADT; where a TD has no firmware, `build` is told where the mailbox is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from swtdx.image import aml
from swtdx.image.io_map import FIRMWARE_PMBASE, PM1_CNT, PM1_STS, PM_TIMER, PVPANIC_PORT, RESET_PORT, SLEEP_TYPE_S5
from swtdx.image.memory_map import (
    ECAM_BASE,
    ECAM_SIZE,
    IOAPIC_BASE,
    LOCAL_APIC_BASE,
    PCI_HIGH_END,
    MemoryMap,
)

TABLES_FILE = "etc/acpi/tables"
RSDP_FILE = "etc/acpi/rsdp"
LOADER_FILE = "etc/table-loader"

_OEM_ID, _OEM_TABLE_ID, _CREATOR_ID = b"SWTDX ", b"SWTDXQ35", b"SWTD"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9
SCI_LINE = 9
_GPE0 = 0x20  # offset of the general-purpose event block in the PM block
_GPE0_LENGTH = 16
_RESET_VALUE = 0x06  # hard reset of port 0xcf9

# FADT feature flags (5.2.9).
_WBINVD, _C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _RESET_SUPPORTED = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 10
_BOOT_LEGACY_DEVICES, _BOOT_NO_VGA = 1 << 0, 1 << 2

_FADT_LENGTH, _FADT_REVISION, _FADT_MINOR = 276, 6, 3
_FADT_FACS, _FADT_DSDT, _FADT_X_FACS, _FADT_X_DSDT = 36, 40, 132, 140
_RSDP_XSDT, _RSDP_LENGTH = 24, 36


@dataclass
class AcpiTables:
    """``tables`` with the offsets of what they point to, ``rsdp``, and where both hold pointers and checksums.

    ``pointers``: (into ``rsdp`` or the tables, offset, size in bytes), each holding an offset in ``tables``.
    ``checksums``: (of ``rsdp`` or the tables, offset of the sum, start and length of what it covers).
    """

    tables: bytearray = field(default_factory=bytearray)
    rsdp: bytearray = field(default_factory=bytearray)
    pointers: list[tuple[str, int, int]] = field(default_factory=list)
    checksums: list[tuple[str, int, int, int]] = field(default_factory=list)

    def add(self, table: bytes, pointers: Iterable[tuple[int, int]] = (), *, checksum: bool = True) -> int:
        """Append a table, 64-byte aligned; ``pointers`` are (offset in it, size). Returns its offset."""
        self.tables.extend(bytes(-len(self.tables) % 64))
        offset = len(self.tables)
        self.tables.extend(table)
        self.pointers.extend((TABLES_FILE, offset + at, size) for at, size in pointers)
        if checksum:
            self.checksums.append((TABLES_FILE, offset + _CHECKSUM_AT, offset, len(table)))
        return offset

    def files(self) -> dict[str, bytes]:
        """The three fw_cfg files from which firmware installs the tables."""
        return {TABLES_FILE: bytes(self.tables), RSDP_FILE: bytes(self.rsdp), LOADER_FILE: _loader_script(self)}

    def place(self, tables_at: int, rsdp_at: int) -> tuple[bytes, bytes]:
        """The same work done here, for guests without such firmware: (tables, RSDP) for these addresses."""
        blobs = {TABLES_FILE: bytearray(self.tables), RSDP_FILE: bytearray(self.rsdp)}
        for blob, at, size in self.pointers:
            value = int.from_bytes(blobs[blob][at : at + size], "little") + tables_at
            blobs[blob][at : at + size] = value.to_bytes(size, "little")
        for blob, at, start, length in self.checksums:
            blobs[blob][at] = -sum(blobs[blob][start : start + length]) & 0xFF
        return bytes(blobs[TABLES_FILE]), bytes(blobs[RSDP_FILE])


def build(
    layout: MemoryMap,
    cpus: int,
    *,
    level_interrupts: bool,
    ecam_base: int = ECAM_BASE,
    wakeup: tuple[int, int] | None = None,
) -> AcpiTables:
    """The tables of a board with ``cpus`` vCPUs. ``level_interrupts``: whether ends of interrupt reach the I/O APIC.

    ``ecam_base`` is what the firmware has programmed into PCIEXBAR; ``wakeup``, if the tables describe it, the
    mailbox through which further processors are started, and the address to which they return when put off line.
    """
    result = AcpiTables()
    facs = result.add(struct.pack("<4sIIIIIQB", b"FACS", 64, 0, 0, 0, 0, 0, 2).ljust(64, b"\0"), checksum=False)
    dsdt = result.add(_table(b"DSDT", 2, _dsdt(layout, cpus, level_interrupts, ecam_base)))
    fadt = result.add(_fadt(facs, dsdt), [(_FADT_FACS, 4), (_FADT_DSDT, 4), (_FADT_X_DSDT, 8)])
    madt = result.add(_table(b"APIC", 5, _madt(cpus, level_interrupts, wakeup)))
    mcfg = result.add(_table(b"MCFG", 1, bytes(8) + struct.pack("<QHBB4x", ecam_base, 0, 0, (ECAM_SIZE >> 20) - 1)))
    listed = [fadt, madt, mcfg]
    xsdt = result.add(
        _table(b"XSDT", 1, b"".join(struct.pack("<Q", offset) for offset in listed)),
        [(_HEADER.size + 8 * number, 8) for number in range(len(listed))],
    )
    result.rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, 0, _RSDP_LENGTH, xsdt, 0))
    result.pointers.append((RSDP_FILE, _RSDP_XSDT, 8))
    result.checksums += [(RSDP_FILE, 8, 0, 20), (RSDP_FILE, 32, 0, _RSDP_LENGTH)]
    return result


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(signature, length, revision, 0, _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1) + body


def _fadt(facs: int, dsdt: int) -> bytes:
    """Fixed hardware: the ICH9's PM registers at 0x600 (5.2.9, table 5.9)."""
    base = FIRMWARE_PMBASE
    table = bytearray(_table(b"FACP", _FADT_REVISION, bytes(_FADT_LENGTH - _HEADER.size)))
    put = struct.pack_into
    put("<II", table, _FADT_FACS, facs, dsdt)
    put("<H", table, 46, SCI_LINE)
    put("<I", table, 56, base + PM1_STS)
    put("<I", table, 64, base + PM1_CNT)
    put("<I", table, 76, base + PM_TIMER)
    put("<I", table, 80, base + _GPE0)
    put("<BBBBB", table, 88, 4, 2, 0, 4, _GPE0_LENGTH)  # lengths of PM1_EVT, PM1_CNT, PM2, PM_TMR, GPE0
    put("<HH", table, 96, 0xFFF, 0xFFF)  # latencies: no C2, no C3
    put("<B", table, 108, 0x32)  # the century is in the RTC here
    put("<H", table, 109, _BOOT_LEGACY_DEVICES | _BOOT_NO_VGA)
    put("<I", table, 112, _WBINVD | _C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _RESET_SUPPORTED)
    table[116:128] = _port(RESET_PORT, 1)
    put("<B", table, 128, _RESET_VALUE)
    put("<B", table, 131, _FADT_MINOR)
    put("<Q", table, _FADT_X_DSDT, dsdt)
    table[148:160] = _port(base + PM1_STS, 4)
    table[172:184] = _port(base + PM1_CNT, 2)
    table[208:220] = _port(base + PM_TIMER, 4)
    table[220:232] = _port(base + _GPE0, _GPE0_LENGTH)
    return bytes(table)


def _port(port: int, length: int) -> bytes:
    """A generic address structure in I/O space (5.2.3.2); byte or wider access as the length allows."""
    access = {1: 1, 2: 2, 4: 3}.get(length, 1)
    return struct.pack("<BBBBQ", 1, 8 * length, 0, access, port)


def _madt(cpus: int, level_interrupts: bool, wakeup: tuple[int, int] | None) -> bytes:
    """Local APICs, the I/O APIC, and what differs from the ISA's interrupts (5.2.12)."""
    body = struct.pack("<II", LOCAL_APIC_BASE, 1)  # there are 8259s too
    for number in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, number, number, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_BASE, 0)
    body += _override(0, 2, 0)
    body += _override(SCI_LINE, SCI_LINE, 0x0D if level_interrupts else 0x05)  # active high; level or edge
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI at LINT1 of all
    if wakeup is not None:
        body += struct.pack("<BBHIQQ", 16, 24, 1, 0, *wakeup)  # multiprocessor wake-up, version 1 (ACPI 6.6, 5.2.12.19)
    return body


def _override(line: int, gsi: int, flags: int) -> bytes:
    return struct.pack("<BBBBIH", 2, 10, 0, line, gsi, flags)


def _dsdt(layout: MemoryMap, cpus: int, level_interrupts: bool, ecam_base: int) -> bytes:
    return b"".join(
        [
            aml.scope(
                "\\_SB",
                *(_processor(number) for number in range(cpus)),
                _pci_root(layout, level_interrupts, ecam_base),
                aml.device(
                    "MBRD",
                    aml.name("_HID", aml.eisa_id("PNP0C02")),
                    aml.name("_UID", aml.integer(0)),
                    aml.name("_CRS", aml.resources(aml.memory32(ecam_base, ECAM_SIZE), aml.io(FIRMWARE_PMBASE, 0x80))),
                ),
                aml.device(
                    "FWCF",
                    aml.name("_HID", aml.string("QEMU0002")),
                    aml.name("_STA", aml.integer(0x0B)),
                    aml.name("_CRS", aml.resources(aml.io(0x510, 0x0C))),
                ),
            ),
            aml.name("\\_S5", aml.package(*[aml.integer(SLEEP_TYPE_S5)] * 4)),
        ]
    )


def _processor(number: int) -> bytes:
    return aml.device(f"C{number:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(number)))


def _pci_root(layout: MemoryMap, level_interrupts: bool, ecam_base: int) -> bytes:
    """The host bridge: its windows, its interrupt lines, and the ISA devices behind it."""
    hole = layout.low_size if layout.low_size > 0x8000_0000 else 0x8000_0000
    around_ecam = ((hole, ecam_base - 1), (ecam_base + ECAM_SIZE, IOAPIC_BASE - 1))
    windows = [
        aml.bus_numbers(0, 0xFF),
        aml.io(0xCF8, 8),
        aml.io_window(0, 0xCF7),
        aml.io_window(0xD00, 0xFFFF),
        *(aml.memory_window(first, last) for first, last in around_ecam if first < last),
        aml.memory_window(layout.pci_high_start, PCI_HIGH_END - 1),
    ]
    terms = [
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", aml.resources(*windows)),
        aml.device(
            "ISA",
            aml.name("_ADR", aml.integer(0x1F0000)),
            aml.device(
                "COM1",
                aml.name("_HID", aml.eisa_id("PNP0501")),
                aml.name("_UID", aml.integer(1)),
                aml.name("_CRS", aml.resources(aml.io(0x3F8, 8), aml.irq(4))),
            ),
            aml.device(
                "RTC",
                aml.name("_HID", aml.eisa_id("PNP0B00")),
                aml.name("_CRS", aml.resources(aml.io(0x70, 2), aml.irq(8))),
            ),
            aml.device(
                "PEVT",
                aml.name("_HID", aml.string("QEMU0001")),
                aml.name("_STA", aml.integer(0x0F)),
                aml.name("_CRS", aml.resources(aml.io(PVPANIC_PORT, 1))),
            ),
        ),
    ]
    if level_interrupts:
        terms.append(aml.name("_PRT", _interrupt_routing()))
    return aml.device("PCI0", *terms)


def _interrupt_routing() -> bytes:
    """INTx of device d, pin p: as q35 has it, I/O APIC pins 16-23 in turn (PIRQA-H)."""
    entries = [
        aml.package(
            aml.integer(device << 16 | 0xFFFF), aml.integer(pin), aml.integer(0), aml.integer(intx_gsi(device, pin))
        )
        for device in range(1, 32)
        for pin in range(4)
    ]
    return aml.package(*entries)


def intx_gsi(device: int, pin: int) -> int:
    """The I/O APIC pin of a PCI device's INTx line (``pin`` 0: INTA): QEMU's q35 in APIC mode."""
    # Devices below 25 rotate through PIRQE-H; those above, built into the chipset, through PIRQA-D.
    return (20 if device < 25 else 16) + (device + pin) % 4


_COMMAND = struct.Struct("<I56s")
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
_COMMAND_LENGTH = 128


def _loader_script(acpi: AcpiTables) -> bytes:
    """Allocate both blobs, make addresses of offsets, then sum up: 128-byte commands."""
    tables, rsdp = TABLES_FILE.encode(), RSDP_FILE.encode()
    commands = [
        _COMMAND.pack(_ALLOCATE, rsdp) + struct.pack("<IB", 16, _ZONE_FSEG),
        _COMMAND.pack(_ALLOCATE, tables) + struct.pack("<IB", 64, _ZONE_HIGH),
    ]
    for blob, at, size in acpi.pointers:
        commands.append(_COMMAND.pack(_ADD_POINTER, blob.encode()) + struct.pack("<56sIB", tables, at, size))
    for blob, at, start, length in acpi.checksums:
        commands.append(_COMMAND.pack(_ADD_CHECKSUM, blob.encode()) + struct.pack("<III", at, start, length))
    return b"".join(command.ljust(_COMMAND_LENGTH, b"\0") for command in commands)
