# SPDX-License-Identifier: GPL-2.0-or-later
"""The contents of fw_cfg: which items and files firmware can read on this board (QEMU, docs/specs/fw_cfg.rst).

The device that hands them out is `swtdx.vmm.board.fw_cfg`.  A verifier needs the contents alone, because firmware
measures some of them.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from swtdx.image.memory_map import MemoryMap

if TYPE_CHECKING:
    from swtdx.image.linux_image import LinuxBoot


class Key(IntEnum):
    """Selector keys with a fixed meaning, as far as this board has the item."""

    SIGNATURE = 0x00
    ID = 0x01
    RAM_SIZE = 0x03
    NB_CPUS = 0x05
    KERNEL_SIZE = 0x08
    INITRD_SIZE = 0x0B
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIR = 0x19


class Interface(IntFlag):
    """Bits of the item ID."""

    TRADITIONAL = 1
    DMA = 2


def standard_items(layout: MemoryMap, cpus: int) -> dict[int, bytes]:
    """The items with fixed keys that every board has, by key."""
    return {
        Key.SIGNATURE: b"QEMU",
        Key.ID: int(Interface.TRADITIONAL | Interface.DMA).to_bytes(4, "little"),
        Key.RAM_SIZE: layout.memory_size.to_bytes(8, "little"),
        Key.NB_CPUS: cpus.to_bytes(2, "little"),
        Key.BOOT_MENU: bytes(2),
        Key.MAX_CPUS: cpus.to_bytes(2, "little"),
    }


def linux_items(linux: LinuxBoot) -> dict[int, bytes]:
    """Kernel, initrd and command line. Firmware joins setup and kernel, and starts the whole as an EFI executable."""

    def size(contents: bytes) -> bytes:
        return len(contents).to_bytes(4, "little")

    command_line = linux.command_line.encode() + b"\0"
    setup, kernel = linux.kernel.setup, linux.kernel.kernel
    return {
        Key.SETUP_SIZE: size(setup),
        Key.SETUP_DATA: setup,
        Key.KERNEL_SIZE: size(kernel),
        Key.KERNEL_DATA: kernel,
        Key.INITRD_SIZE: size(linux.initrd),
        Key.INITRD_DATA: linux.initrd,
        Key.CMDLINE_SIZE: size(command_line),
        Key.CMDLINE_DATA: command_line,
    }


def standard_files(layout: MemoryMap) -> dict[str, bytes]:
    """The files that firmware on a q35 board looks for, as far as this board has what they describe."""
    return {
        "etc/e820": b"".join(struct.pack("<QQI", *entry) for entry in layout.e820),
        # Sleep states 0-5: bit 7 says enabled, the low bits give SLP_TYP. S0 and S5 are there; S3 and S4 are not.
        "etc/system-states": bytes((0x80, 0x00, 0x00, 0x01, 0x02, 0x80)),
        "etc/boot-menu-wait": bytes(2),
    }
