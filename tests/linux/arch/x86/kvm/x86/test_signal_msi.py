# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SIGNAL_MSI: who gets a message, and what the call returns.

Expectations are Linux's (kvm_irq_delivery_to_apic_fast, kvm_recalculate_logical_map and __apic_accept_irq of
arch/x86/kvm/lapic.c, kvm_irq_delivery_to_apic of irq_comm.c, with kvm.vector_hashing at its default): a map of all
local APICs answers 0 for an address that none has, and picks one of several for the lowest priority by the vector;
broadcasts, and local APICs whose logical modes differ, do without the map and answer -1, which is EPERM.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError

IRR, ID, LDR, DFR, SPIV = 0x200, 0x20, 0xD0, 0xE0, 0xF0
APIC_BASE, BSP, X2APIC, ENABLED = 0xFEE00000, 1 << 8, 1 << 10, 1 << 11
FLAT, CLUSTER, OTHER = 0xFFFFFFFF, 0x0FFFFFFF, 0x3FFFFFFF
FIXED, LOWEST, SMI, REMRD, NMI, INIT, STARTUP, EXTINT = range(8)
VECTOR = 0x50
NOT_MAPPED = -errno.EPERM


@dataclass(frozen=True)
class Apic:
    """A local APIC. ``ldr``: the logical id in xAPIC mode."""

    ldr: int = 0
    dfr: int = FLAT
    sw_enabled: bool = True
    on: bool = True
    x2apic: bool = False
    id: int | None = None


ON, SW_OFF, OFF = Apic(), Apic(sw_enabled=False), Apic(on=False)
ONE, TWO, FOUR = (Apic(ldr=1 << n) for n in range(3))
X2, X2_SW_OFF = Apic(x2apic=True), Apic(x2apic=True, sw_enabled=False)
C11, C12, C21 = Apic(ldr=0x11, dfr=CLUSTER), Apic(ldr=0x12, dfr=CLUSTER), Apic(ldr=0x21, dfr=CLUSTER)


def message(kvm: Kvm, apics: tuple[Apic, ...], address: int, data: int, flags: int) -> tuple[int, list[int]]:
    """Send a message: what the call returns, and the numbers of those that have the vector in IRR."""
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(kvm.create_vm())
        vm.split_irqchip()
        if flags:
            vm.enable_cap(k.Cap.X2APIC_API, flags)
        vcpus = []
        for number, apic in enumerate(apics):
            vcpu = stack.enter_context(contextlib.closing(vm.create_vcpu(number)))
            vcpu.set_cpuid2(kvm.supported_cpuid())
            base = APIC_BASE | (BSP if number == 0 else 0) | ENABLED
            if not apic.on:
                base &= ~ENABLED
            if apic.x2apic:
                base |= X2APIC
            sregs = vcpu.get_sregs()
            sregs.apic_base = base
            vcpu.set_sregs(sregs)
            vcpus.append(vcpu)
            if not apic.on:
                continue
            lapic = vcpu.get_lapic()
            registers = bytearray(bytes(lapic.regs))
            struct.pack_into("<I", registers, SPIV, 0x1FF if apic.sw_enabled else 0xFF)
            if not apic.x2apic:
                struct.pack_into("<I", registers, LDR, apic.ldr << 24)
                struct.pack_into("<I", registers, DFR, apic.dfr)
                if apic.id is not None:
                    struct.pack_into("<I", registers, ID, apic.id << 24)
            lapic.regs[:] = registers
            vcpu.set_lapic(lapic)
        try:
            result = vm.signal_msi(address, data)
        except KvmError as error:
            result = -(error.errno or 0)
        have = [
            number
            for number, (vcpu, apic) in enumerate(zip(vcpus, apics, strict=True))
            if apic.on and bytes(vcpu.get_lapic().regs)[IRR + VECTOR // 32 * 16 + VECTOR % 32 // 8] & 1 << VECTOR % 8
        ]
        return result, have


def to(destination: int, *, logical: bool = False, hint: bool = False) -> int:
    return APIC_BASE | (destination & 0xFF) << 12 | logical << 2 | hint << 3 | (destination >> 8) << 40


WIDE = k.KVM_X2APIC_API_USE_32BIT_IDS
NO_QUIRK = k.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
CASES: dict[str, tuple[tuple[Apic, ...], int, int, int, tuple[int, list[int]]]] = {
    "no vCPU": ((), to(0), FIXED, 0, (NOT_MAPPED, [])),
    "an id": ((ON, ON), to(1), FIXED, 0, (1, [1])),
    "an id that none has": ((ON, ON), to(5), FIXED, 0, (0, [])),
    "an id of one that is off": ((ON, OFF), to(1), FIXED, 0, (0, [])),
    "an id of one that software has disabled": ((ON, SW_OFF), to(1), FIXED, 0, (0, [])),
    "an id that two have": ((ON, Apic(id=0)), to(0), FIXED, 0, (2, [0, 1])),
    "an id that none has beside two with one": ((ON, Apic(id=0)), to(5), FIXED, 0, (NOT_MAPPED, [])),
    "an id, lowest priority": ((ON, ON), to(1), LOWEST, 0, (1, [1])),
    "all": ((ON, ON, OFF), to(0xFF), FIXED, 0, (2, [0, 1])),
    "all, and one is disabled": ((ON, SW_OFF), to(0xFF), FIXED, 0, (1, [0])),
    "all, and all are disabled": ((SW_OFF, SW_OFF), to(0xFF), FIXED, 0, (0, [])),
    "all, and all are off": ((OFF, OFF), to(0xFF), FIXED, 0, (NOT_MAPPED, [])),
    "all of lowest priority is all": ((ON, ON), to(0xFF), LOWEST, 0, (2, [0, 1])),
    "all, logically, lowest": ((ONE, TWO, FOUR), to(0xFF, logical=True), LOWEST, 0, (1, [VECTOR % 3])),
    "all, logically, lowest, one disabled": (
        (ONE, Apic(ldr=2, sw_enabled=False), FOUR), to(0xFF, logical=True), LOWEST, 0, (1, [(0, 2)[VECTOR % 2]]),
    ),
    "all, lowest, and all are disabled": ((SW_OFF, SW_OFF), to(0xFF, logical=True), LOWEST, 0, (NOT_MAPPED, [])),
    "a bit": ((ONE, TWO), to(2, logical=True), FIXED, 0, (1, [1])),
    "two bits": ((ONE, TWO, FOUR), to(5, logical=True), FIXED, 0, (2, [0, 2])),
    "two bits, lowest": ((ONE, TWO, FOUR), to(5, logical=True), LOWEST, 0, (1, [(0, 2)[VECTOR % 2]])),
    "two bits, by a hint": ((ONE, TWO, FOUR), to(6, logical=True, hint=True), FIXED, 0, (1, [(1, 2)[VECTOR % 2]])),
    "an id, by a hint": ((ONE, TWO), to(1, hint=True), FIXED, 0, (1, [1])),
    "a bit that none has": ((ONE, TWO), to(8, logical=True), FIXED, 0, (0, [])),
    "a bit that none has, lowest": ((ONE, TWO), to(8, logical=True), LOWEST, 0, (0, [])),
    "three bits, lowest, and the chosen one is missing": ((ONE, TWO), to(0x19, logical=True), LOWEST, 0, (0, [])),
    "no bit": ((ONE, TWO), to(0, logical=True), FIXED, 0, (0, [])),
    "a bit, and no one has a logical id": ((ON, ON), to(1, logical=True), FIXED, 0, (0, [])),
    "a bit that two have": ((ONE, ONE), to(1, logical=True), FIXED, 0, (2, [0, 1])),
    "a bit that two have, lowest": ((ONE, ONE), to(1, logical=True), LOWEST, 0, (1, [VECTOR % 2])),
    "a bit of one with two": ((Apic(ldr=3), FOUR), to(2, logical=True), FIXED, 0, (1, [0])),
    "a bit that none has beside one with two": ((Apic(ldr=3), FOUR), to(8, logical=True), FIXED, 0, (NOT_MAPPED, [])),
    "a bit of one that is disabled": ((ONE, Apic(ldr=2, sw_enabled=False)), to(2, logical=True), FIXED, 0, (0, [])),
    "one of a cluster": ((C11, C12, C21), to(0x12, logical=True), FIXED, 0, (1, [1])),
    "two of a cluster": ((C11, C12, C21), to(0x13, logical=True), FIXED, 0, (2, [0, 1])),
    "two of a cluster, lowest": ((C11, C12, C21), to(0x13, logical=True), LOWEST, 0, (1, [VECTOR % 2])),
    "a cluster that is empty": ((C11, C12), to(0x31, logical=True), FIXED, 0, (0, [])),
    "flat and cluster": ((ONE, C12), to(0x12, logical=True), FIXED, 0, (1, [1])),
    "flat and cluster, none": ((ONE, C12), to(0x44, logical=True), FIXED, 0, (NOT_MAPPED, [])),
    "x2APIC, an id": ((X2, X2), to(1), FIXED, 0, (1, [1])),
    "x2APIC, a bit": ((X2, X2), to(2, logical=True), FIXED, 0, (1, [1])),
    "x2APIC, bits, lowest": ((X2, X2, X2), to(6, logical=True), LOWEST, 0, (1, [(1, 2)[VECTOR % 2]])),
    "x2APIC, a bit of one that is disabled": ((X2, X2_SW_OFF), to(2, logical=True), FIXED, 0, (0, [])),
    "x2APIC, all by the quirk": ((X2, X2), to(0xFF), FIXED, 0, (2, [0, 1])),
    "x2APIC, FFH without the quirk": ((X2, X2), to(0xFF), FIXED, WIDE | NO_QUIRK, (0, [])),
    "x2APIC, all by 32 bits": ((X2, X2), to(0xFFFFFFFF), FIXED, WIDE | NO_QUIRK, (2, [0, 1])),
    "x2APIC, all by 32 bits under the quirk": ((X2, X2), to(0xFFFFFFFF), FIXED, WIDE, (0, [])),
    "x2APIC and xAPIC, all": ((X2, ON), to(0xFF), FIXED, 0, (2, [0, 1])),
    "x2APIC and xAPIC, all without the quirk": ((X2, ONE), to(0xFF), FIXED, WIDE | NO_QUIRK, (1, [1])),
    "x2APIC, another cluster": ((X2, X2), to(0x10001, logical=True), FIXED, WIDE, (0, [])),
    "level-triggered, asserted": ((ON,), to(0), FIXED | 0xC0, 0, (1, [0])),
    "NMI": ((ON, SW_OFF), to(1), NMI, 0, (1, [])),
    "NMI for none": ((ON,), to(3), NMI, 0, (0, [])),
    "NMI by a bit of a disabled one": ((ONE, Apic(ldr=2, sw_enabled=False)), to(2, logical=True), NMI, 0, (0, [])),
    "INIT": ((ON, ON), to(1), INIT, 0, (1, [])),
    "STARTUP": ((ON, ON), to(1), STARTUP, 0, (1, [])),
    "ExtINT": ((ON, ON), to(1), EXTINT, 0, (0, [])),
    "remote read": ((ON, ON), to(1), REMRD, 0, (1, [])),
}  # fmt: skip


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


@pytest.mark.parametrize("what", CASES)
def test_each_message(kvm: Kvm, what: str) -> None:
    apics, address, mode, flags, expected = CASES[what]
    assert message(kvm, apics, address, VECTOR | mode << 8, flags) == expected
