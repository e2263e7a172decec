# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD that comes to ring 3 before it has loaded a task register, and faults there: its trouble, not the process's."""

from __future__ import annotations

import struct

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import address_of
from testing import guest
from testing.td import fresh_td, staged

GDT, IDT, RING_3, HANDLER = 0x140, 0x200, 0x100, 0x180  # in the reset page
GP = 13


def reset_page() -> bytes:
    """lgdt; lidt; a stack; iret to ring 3, where cli is #GP."""
    base = guest.RESET_PAGE
    entry = (
        b"\x0f\x01\x15" + struct.pack("<I", base + 0xF0) + b"\x0f\x01\x1d" + struct.pack("<I", base + 0xF8)
        + b"\xbc" + struct.pack("<I", guest.CODE + 0xFF0)
        + b"\x66\xb8\x10\x00\x8e\xd0\x8e\xd8"  # mov ax, 16; mov ss, ax; mov ds, ax
        + b"\x6a\x23\x68" + struct.pack("<I", guest.CODE + 0xF00) + b"\x6a\x02\x6a\x1b"  # SS, ESP, EFLAGS, CS
        + b"\x68" + struct.pack("<I", base + RING_3) + b"\xcf"
    )  # fmt: skip
    flat = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF)
    page = bytearray(guest.PAGE_SIZE)
    page[: len(entry)] = entry
    page[GDT : GDT + 40] = struct.pack("<5Q", *flat)
    page[0xF0:0xF6] = struct.pack("<HI", 39, base + GDT)
    page[0xF8:0xFE] = struct.pack("<HI", 0x7FF, base + IDT)
    page[RING_3], page[HANDLER] = 0xFA, 0xF4
    handler = base + HANDLER
    gate = struct.pack("<HHHH", handler & 0xFFFF, 8, 0x8E00, handler >> 16)
    page[IDT + 8 * GP : IDT + 8 * GP + 8] = gate
    page[0xFF0:0xFF5] = b"\xe9" + struct.pack("<i", -0xFF5)
    return bytes(page)


def test_a_fault_in_ring_3_without_a_task_register_shuts_the_td_down() -> None:
    """The stack for ring 0 is looked for at address 4, where the TD has accepted nothing."""
    kernel = boot(Dialect.UPSTREAM, Platform(memory_size=1 << 30, logical_processors=2))
    vm, vcpu, memfd = fresh_td(Kvm(kernel), 64 * guest.PAGE_SIZE)
    source = staged(reset_page())
    vm.tdx_init_mem_region(address_of(source), guest.RESET_PAGE, 1)
    source = staged(guest.code_page())
    vm.tdx_init_mem_region(address_of(source), guest.CODE, len(source) // guest.PAGE_SIZE)
    vm.tdx_finalize()
    vcpu.run()
    assert vcpu.exit_reason == k.Exit.SHUTDOWN
    vcpu.close()
    vm.close()
    kernel.close(memfd)
    kernel.shutdown()
