# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a machine makes no TDs, from what its /proc and /sys hold; the names are those of Linux 6.16."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from swtdx.uapi import host_tdx
from swtdx.uapi.host_tdx import host_facts

CPUINFO = "processor\t: {number}\nvendor_id\t: {vendor}\nmodel name\t: {model}\nflags\t\t: fpu vme {flags}\n\n"


def machine(
    root: Path,
    *,
    vendor: str = "GenuineIntel",
    flags: str = "vmx tdx_host_platform",
    release: str = "6.16.0",
    kvm_intel: bool = True,
    tdx: str | None = "Y",
) -> Path:
    """A machine's /proc and /sys under ``root``; by default one that lacks nothing."""
    (root / "proc/sys/kernel").mkdir(parents=True)
    cpus = [CPUINFO.format(number=n, vendor=vendor, model="Intel(R) Xeon(R) 6710E", flags=flags) for n in (0, 1)]
    (root / "proc/cpuinfo").write_text("".join(cpus))
    (root / "proc/sys/kernel/osrelease").write_text(release + "\n")
    if kvm_intel:
        (root / "sys/module/kvm_intel/parameters").mkdir(parents=True)
        if tdx is not None:
            (root / "sys/module/kvm_intel/parameters/tdx").write_text(tdx + "\n")
    return root


def test_a_machine_that_lacks_nothing(tmp_path: Path) -> None:
    facts = host_facts(machine(tmp_path))
    assert facts.obstacles() == []
    assert (facts.model, facts.version, facts.kvm_intel_tdx) == ("Intel(R) Xeon(R) 6710E", (6, 16), "Y")
    assert not facts.in_guest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vendor": "AuthenticAMD"}, "not from Intel (AuthenticAMD)"),
        ({"flags": "vmx"}, "tdx_host_platform"),
        ({"flags": "vmx tdx_host_platform hypervisor"}, "virtual machine"),
        ({"flags": "vmx tdx_host_platform hypervisor tdx_guest"}, "is a TD itself"),
        ({"release": "6.15.9-200.fc42.x86_64"}, "6.15.9-200.fc42.x86_64 is older than 6.16"),
        ({"release": "5.14.0"}, "older"),
        ({"kvm_intel": False}, "kvm_intel is not loaded"),
        ({"tdx": None}, "CONFIG_KVM_INTEL_TDX"),
        ({"tdx": "N"}, "load kvm_intel with tdx=1"),
    ],
)
def test_each_lack_is_named_alone(tmp_path: Path, change: dict[str, str], words: str) -> None:
    facts = host_facts(machine(tmp_path, **change))  # type: ignore[arg-type]
    (obstacle,) = facts.obstacles()
    assert words in obstacle


def test_a_kernel_after_6_is_not_older(tmp_path: Path) -> None:
    assert host_facts(machine(tmp_path, release="7.0.1")).obstacles() == []


def test_nothing_to_read_is_no_crash(tmp_path: Path) -> None:
    facts = host_facts(tmp_path)
    assert facts.model == ""
    assert facts.release
    assert any("unknown vendor" in obstacle for obstacle in facts.obstacles())


def test_examples() -> None:
    assert doctest.testmod(host_tdx).failed == 0
