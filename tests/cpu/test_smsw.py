# SPDX-License-Identifier: GPL-2.0-or-later
"""SMSW: a register of 32 or 64 bits gets CR0, one of 16 bits and memory get the low half (SDM vol. 2, SMSW).

The manual leaves bits 31:16 undefined outside 64-bit mode; processors store CR0 there as they do in 64-bit mode, and
kvm-unit-tests (realmode, smsw) expect it.
"""

from __future__ import annotations

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from testing.long_mode import DATA, LongModeVm, write_cr
from testing.vm import RealModeVm

CD = 1 << 30
OUT_HLT = b"\xe6\x80\xf4"
READ_CR0 = b"\x0f\x20\xc3"  # mov ebx, cr0


@pytest.mark.parametrize(("code", "bits"), [(b"\x0f\x01\xe0", 16), (b"\x66\x0f\x01\xe0", 32)])
def test_in_real_mode(code: bytes, bits: int) -> None:
    with Kvm(open_kernel("emulated")) as kvm, RealModeVm(kvm, READ_CR0 + code + OUT_HLT) as guest:
        regs = guest.vcpu.get_regs()
        regs.rax = 0x12345678
        guest.vcpu.set_regs(regs)
        guest.vcpu.run()
        regs, mask = guest.vcpu.get_regs(), (1 << bits) - 1
        assert regs.rax == regs.rbx & mask | 0x12345678 & ~mask
        assert regs.rbx >> 16, "bits to tell the halves by"


@pytest.mark.parametrize(
    ("code", "bits"), [(b"\x66\x0f\x01\xe0", 16), (b"\x0f\x01\xe0", 64), (b"\x48\x0f\x01\xe0", 64)]
)
def test_in_64_bit_mode(code: bytes, bits: int) -> None:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as guest:
        assert guest.run(write_cr(0, 0x80010031 | CD) + READ_CR0 + b"\x48\xc7\xc0\xff\xff\xff\xff" + code) is None
        regs, mask = guest.vcpu.get_regs(), (1 << bits) - 1
        assert regs.rax == regs.rbx & mask | (1 << 64) - 1 & ~mask


@pytest.mark.parametrize("code", [b"\x0f\x01\x26", b"\x48\x0f\x01\x26"])
def test_memory_gets_16_bits(code: bytes) -> None:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as guest:
        guest.memory[DATA : DATA + 16] = b"\xff" * 16
        assert guest.run(code, rsi=DATA) is None
        assert guest.memory[DATA : DATA + 16] == b"\x31\x00" + b"\xff" * 14
