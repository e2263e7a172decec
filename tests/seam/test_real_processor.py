# SPDX-License-Identifier: GPL-2.0-or-later
"""The module on the real emulated processor: a TD of a few instructions, from reset to TDVMCALL.

Everything else in this directory runs on the fake in `conftest`; this shows that the fake and `swtdx.cpu` agree.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from swtdx.cpu.vmx import ExitReason
from swtdx.seam.hardware import Segment
from swtdx.seam.status import StatusCode
from swtdx.x86 import Msr
from testing.seam.fake_host import FakeProcessor, Host

pytest.importorskip("swtdx.cpu._engine", reason="the execution engine is not built: no guest runs")

CODE, TABLES, DATA = 0x10_0000, 0x11_0000, 0x12_0000
SHARED = 1 << 47
TDCALL = bytes.fromhex("660f01cc")


def mov(register: int, value: int) -> bytes:
    """MOV r64, imm64 for RAX..R15 by number."""
    return bytes([0x49 if register > 7 else 0x48, 0xB8 + (register & 7)]) + struct.pack("<Q", value)


def tdcall(leaf: int, **registers: int) -> bytes:
    numbers = {"rcx": 1, "rdx": 2, "rbx": 3, "r8": 8, "r10": 10, "r11": 11, "r12": 12}
    return mov(0, leaf) + b"".join(mov(numbers[name], value) for name, value in registers.items()) + TDCALL


@pytest.fixture
def real(new_host: Callable[..., Host]) -> Host:
    from swtdx.cpu.platform import Platform
    from swtdx.cpu.processor import Processor

    template = new_host()
    host = type(template)(cast(FakeProcessor, Processor(Platform(memory_size=1 << 30, logical_processors=2))))
    return host.bring_up()


def start(host: Host, code: bytes, **params: Any) -> Any:
    """A TD with 64-bit code at CODE, identity mapped by four-level tables: (TDR, TDVPR, context)."""
    tdr = host.build(**params)
    host.add(tdr, CODE, code.ljust(4096, b"\xf4"))
    host.add(tdr, TABLES, struct.pack("<Q", TABLES + 0x1003).ljust(4096, b"\0"))
    host.add(tdr, TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2003).ljust(4096, b"\0"))
    # 1 GiB: 2 MiB pages, private; the second one of them shared
    directory = b"".join(struct.pack("<Q", n << 21 | 0x83 | (SHARED if n == 1 else 0)) for n in range(512))
    host.add(tdr, TABLES + 0x2000, directory)
    host.add(tdr, DATA, bytes(4096))
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    context = host.module.vcpus[tdvpr].context
    context.cr4 = 0x2060  # PAE
    context.cr3 = TABLES
    context.efer = 0xD01
    context.cr0 = 0x80000021
    context.set_segment(Segment.CS, 8, 0, 0xFFFFFFFF, 0xA09B)
    context.rip = CODE
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    return tdr, tdvpr, context


def test_reset_state_executes_in_protected_mode(real: Any) -> None:
    """HLT at the reset vector raises #VE; without an IDT that is a triple fault."""
    tdr = real.build()
    real.add(tdr, 0xFFFFF000, b"\xf4" * 4096)
    tdvpr = real.vcpu(tdr, x2apic_id=0)
    real.ok("TDH.MR.FINALIZE", rcx=tdr)
    assert real.enter(tdvpr)[0] == StatusCode.NON_RECOVERABLE_VCPU | ExitReason.TRIPLE_FAULT


def test_tdvmcall_round_trip(real: Any) -> None:
    code = tdcall(0, rcx=0x1C00, r10=1, r11=2, r12=3) + tdcall(0, rcx=0x0400, r10=0)
    _, tdvpr, context = start(real, code)
    status, args = real.enter(tdvpr)
    assert (status, args.rcx, args.r10, args.r11, args.r12) == (77, 0x1C00, 1, 2, 3)
    status, args = real.enter(tdvpr, r10=0x55, r11=0x66, r12=0x77)
    assert status == 77
    assert (context.gpr[11], context.gpr[12]) == (0x66, 0x77)


def test_vp_info_accept_and_rtmr(real: Any) -> None:
    code = tdcall(6, rcx=DATA + 0x1000) + tdcall(2, rcx=DATA, rdx=2) + tdcall(1) + tdcall(0, rcx=0xFC00)
    tdr, tdvpr, context = start(real, code)
    status, args = real.enter(tdvpr)  # the page to accept is not there yet
    assert (status, args.r8, args.rdx & 0xF) == (48, DATA + 0x1000, 1)
    real.augment(tdr, DATA + 0x1000)
    assert real.enter(tdvpr)[0] == 77
    assert (context.gpr[1], context.gpr[2]) == (0xFC00, real.module.tds[tdr].attributes)
    assert real.module.tds[tdr].rtmr[2] != bytes(48)


def test_cpuid_is_answered_inside(real: Any) -> None:
    code = mov(0, 0x21) + mov(1, 0) + b"\x0f\xa2" + mov(0, 0) + mov(1, 0x8) + TDCALL
    _, tdvpr, context = start(real, code)
    assert real.enter(tdvpr)[0] == 77
    assert context.gpr[3] == 0x65746E49  # "Inte"


def test_private_memory_is_ciphertext_to_the_host(real: Any) -> None:
    store = mov(3, DATA) + mov(0, 0x1122334455667788) + b"\x48\x89\x03" + mov(0, 0) + mov(1, 8) + TDCALL
    tdr, tdvpr, _ = start(real, store)
    assert real.enter(tdvpr)[0] == 77
    entry, _ = real.entry(tdr, DATA)
    hpa = entry & 0x000FFFFFFFFFF000
    assert real.memory.raw[hpa : hpa + 8].tobytes() == struct.pack("<Q", 0x1122334455667788)
    assert real.memory.read(hpa, 8) != struct.pack("<Q", 0x1122334455667788)


def test_a_poisoned_page_kills_the_td(real: Any) -> None:
    load = mov(3, DATA) + b"\x48\x8b\x03" + b"\xf4"
    tdr, tdvpr, _ = start(real, load)
    hpa = real.entry(tdr, DATA)[0] & 0x000FFFFFFFFFF000
    real.memory.write(hpa, b"vandalism")
    assert real.enter(tdvpr)[0] == StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE
    assert real.enter(tdvpr)[0] == StatusCode.TD_FATAL


def test_shared_memory_without_tables_exits(real: Any) -> None:
    load = mov(3, 0x20_0000) + b"\x48\x8b\x03"
    _, tdvpr, _ = start(real, load)
    status, args = real.enter(tdvpr)
    assert (status, args.r8) == (48, SHARED | 0x20_0000)


def test_native_msrs_do_not_exit_and_others_do(real: Any) -> None:
    """WRMSR to STAR passes; to EFER with NXE cleared it raises #VE, which without an IDT is a triple fault."""
    star = mov(1, 0xC0000081) + mov(0, 0x77) + mov(2, 0) + b"\x0f\x30" + mov(0, 0) + mov(1, 8) + TDCALL
    efer = mov(1, 0xC0000080) + mov(0, 0x501) + mov(2, 0) + b"\x0f\x30"
    _, tdvpr, context = start(real, star + efer)
    assert real.enter(tdvpr)[0] == 77
    assert context.rdmsr(0xC0000081) == 0x77
    assert real.enter(tdvpr)[0] == StatusCode.NON_RECOVERABLE_VCPU | ExitReason.TRIPLE_FAULT


def test_an_interrupt_for_the_host_ends_the_entry(real: Any) -> None:
    _, tdvpr, _ = start(real, b"\xeb\xfe")
    real.processor.send_ipi(0)
    status, _ = real.enter(tdvpr)
    assert status == 1


def test_a_host_that_moves_its_time_stamp_counter_is_found_out(real: Any) -> None:
    _, tdvpr, _ = start(real, tdcall(0, rcx=0xFC00) * 3)
    assert real.enter(tdvpr)[0] == 77
    real.processor.wrmsr(0x3B, 1000)
    assert real.enter(tdvpr)[0] == StatusCode.INCONSISTENT_MSR | Msr.TSC_ADJUST
    real.processor.wrmsr(0x3B, 0)
    assert real.enter(tdvpr)[0] == 77
    with pytest.raises(KeyError):
        real.processor.wrmsr(0x12345, 0)
