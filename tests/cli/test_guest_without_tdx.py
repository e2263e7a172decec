# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's kernel without TDX support ends at the first #VE; the run reports it, and what is missing."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.cli.conftest import Command

CPUID_OF_A_HYPERVISOR = b"\xb8\x00\x00\x00\x40\x0f\xa2\xf4"  # mov $0x40000000,%eax; cpuid; hlt
READ_APIC_BASE_2 = b"\xb9\x02\x08\x00\x40\x0f\x32\xf4"  # mov $0x40000802,%ecx; rdmsr; hlt
UNDEFINED = b"\x0f\x0b"  # ud2


def kernel(code: bytes) -> bytes:
    """Make a bzImage whose 64-bit entry point is ``code`` (Documentation/arch/x86/boot.rst)."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    body = bytes(0x200) + code.ljust(0xE00, b"\xf4")
    for at, layout, value in (
        (0x1F4, "<I", len(body) // 16), (0x206, "<H", 0x20F), (0x211, "<B", 1), (0x22C, "<I", 0x7FFF_FFFF),
        (0x230, "<I", 0x20_0000), (0x236, "<H", 1), (0x238, "<I", 255), (0x258, "<Q", 0x100_0000),
        (0x260, "<I", 0x10000),
    ):  # fmt: skip
        struct.pack_into(layout, setup, at, value)
    return bytes(setup) + body


@pytest.mark.parametrize(("code", "reason"), [(CPUID_OF_A_HYPERVISOR, "CPUID"), (READ_APIC_BASE_2, "RDMSR")])
def test_a_ve_that_is_not_handled_is_named(code: bytes, reason: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel(code))
    result = command("run", "--firmware", "none", "--kernel", path, "--quiet")
    assert result.status == 3
    assert "triple fault" in result.err
    assert f"#VE ({reason})" in result.err
    assert "CONFIG_INTEL_TDX_GUEST" in result.err


def test_another_crash_is_not_blamed_on_a_ve(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel(UNDEFINED))
    result = command("run", "--firmware", "none", "--kernel", path, "--quiet")
    assert result.status == 3
    assert "#VE" not in result.err
