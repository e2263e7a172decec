# SPDX-License-Identifier: GPL-2.0-or-later
"""What the registers of a leaf function hold after it failed, where the module gives them a value of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testing.seam.fake_host import GPR, GuestStep, Host

NONE = (1 << 64) - 1
UNKNOWN = 0x1234_5678
GPA = 0x8000_0000
VM_RD, VM_WR, VP_RD, VP_WR, SYS_RD, SYS_RDALL, SERVTD_RD, SERVTD_WR = 7, 8, 9, 10, 11, 12, 18, 20


@pytest.mark.parametrize(
    ("leaf", "version", "inputs", "outputs"),
    [
        (VM_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": UNKNOWN, "r8": 0}),
        (VM_RD, 1, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 1, {"rcx": 1, "rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 2, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 255, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_WR, 0, {"rdx": UNKNOWN, "r8": 5, "r9": 1}, {"rdx": UNKNOWN, "r8": 0, "r9": 1}),
        (VP_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VP_WR, 0, {"rdx": UNKNOWN, "r8": 5, "r9": 1}, {"rdx": UNKNOWN, "r8": 0, "r9": 1}),
        (SYS_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (SYS_RDALL, 0, {"rdx": 8, "r8": 5}, {"rdx": 8, "r8": NONE}),
        (SYS_RDALL, 0, {"rdx": 1 << 47, "r8": 5}, {"rdx": 1 << 47, "r8": NONE}),
        (SERVTD_RD, 0, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (SERVTD_WR, 0, {"rdx": 9, "r8": 5}, {"rdx": 9, "r8": 0}),
    ],
)
def test_of_the_guest(
    host: Host, call: Callable[..., GuestStep], leaf: int, version: int, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    _, tdvpr, context = host.runnable(attributes=0)
    host.guest(tdvpr, context, call(leaf, version=version, **inputs))
    assert context.gpr[0] >> 63
    assert {name: context.gpr[GPR[name]] for name in outputs} == outputs


@pytest.mark.parametrize(
    ("name", "version", "outputs"),
    [
        ("TDH.SYS.RD", 0, {"rdx": NONE, "r8": 0}),
        ("TDH.SYS.RDALL", 0, {"r8": NONE}),
        ("TDH.MNG.RD", 0, {"rdx": UNKNOWN, "r8": 0}),
        ("TDH.MNG.RD", 1, {"rdx": NONE, "r8": 0}),
        ("TDH.MNG.RD", 2, {"rdx": NONE, "r8": 0}),
        ("TDH.VP.RD", 0, {"rdx": UNKNOWN, "r8": 0}),
        ("TDH.VP.RD", 1, {"rdx": NONE, "r8": 0}),
        ("TDH.VP.RD", 255, {"rdx": NONE, "r8": 0}),
        ("TDH.MNG.WR", 0, {"rdx": UNKNOWN, "r8": 0}),
        ("TDH.MEM.RD", 0, {"rcx": 0, "rdx": 0, "r8": 0}),
        ("TDH.MEM.WR", 0, {"rcx": 0, "rdx": 0, "r8": 0}),
        ("TDH.MEM.PAGE.PROMOTE", 0, {"rcx": 0, "rdx": 0, "r9": 9, "r10": 10, "r11": 11}),
        ("TDH.MEM.PAGE.PROMOTE", 1, {"rcx": 0, "rdx": 0, "r9": NONE, "r10": NONE, "r11": NONE}),
        ("TDH.MEM.PAGE.PROMOTE", 2, {"rcx": 0, "rdx": 0, "r9": NONE, "r10": NONE, "r11": NONE}),
        ("TDH.MEM.SEPT.REMOVE", 1, {"rcx": 0, "rdx": 0, "r9": NONE, "r10": NONE, "r11": NONE}),
        ("TDH.MEM.SEPT.ADD", 2, {"rcx": 0, "rdx": 0, "r9": 9, "r10": 10, "r11": 11}),
        ("TDH.PHYMEM.PAGE.RECLAIM", 0, {"rcx": 0, "rdx": 0, "r8": 0, "r9": 0, "r10": 0, "r11": 0}),
    ],
)
def test_of_the_host(host: Host, name: str, version: int, outputs: dict[str, Any]) -> None:
    status, args = host.call(name, version=version, rcx=UNKNOWN, rdx=UNKNOWN, r8=8, r9=9, r10=10, r11=11)
    assert status >> 63
    assert {register: getattr(args, register) for register in outputs} == outputs


def test_constants_that_the_module_has_for_what_is_not_reproduced(host: Host) -> None:
    """And sizes of lists, which do not tell how much of them is used."""
    for identifier, value in (
        (0x9000000100000000, 32),  # NUM_CMRS
        (0xA000000100000010, 512), (0xA000000000000020, 4), (0xA000000000000021, 2), (0xA000000000000022, 5),
        (0xA100000100000000, 1), (0xA100000300000001, 0x7FF_0000_0001), (0xA200000100000000, 0x807F),
        (0xA200000300000001, 1), (0xA200000300000003, 3), (0xA200000300000005, 7),
        (0x9900000100000800, 1), (0x9900000300000810, host.processor.cpuid(1)[0]),
    ):  # fmt: skip
        assert host.ok("TDH.SYS.RD", rdx=identifier).r8 == value, hex(identifier)


def test_virtual_cpus_stay_associated_after_a_late_failure(host: Host) -> None:
    tdr = host.build()
    for name in ("TDH.VP.RD", "TDH.VP.WR"):
        tdvpr = host.vcpu(tdr)
        host.ok("TDH.VP.FLUSH", rcx=tdvpr)
        assert host.call(name, rcx=tdvpr, rdx=UNKNOWN, lp=1)[0] >> 63
        assert host.module.vcpus[tdvpr].lp == 1


def test_x2apic_ids_of_failed_calls_are_taken(host: Host) -> None:
    tdr = host.build()
    host.vcpu(tdr, x2apic_id=7)
    host.vcpu(tdr)  # without one: 0
    assert host.module.tds[tdr].x2apic_ids == [7, 0]
