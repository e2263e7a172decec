# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of which only a number and TDX_FEATURES0 are published: they state what is known and invent nothing."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.cpu.platform import PUBLISHED_MODULE_VERSIONS, Platform
from swtdx.machine import boot
from swtdx.seam import identity
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.version import module_version
from testing.seam.fake_host import FakePlatform, FakeProcessor, Host

TABLE: dict[str, Any] = load("published_versions")
FEATURES0 = {  # Intel's mapping_file.json
    "1.5.01": 0xF0FBF, "1.5.05": 0x61F0FBF, "1.5.08": 0x22E1F0FBF, "1.5.09": 0x26F1F0FBF, "1.5.13": 0x226F1F0FBF,
    "1.5.16": 0x226F3F0FBF,
}  # fmt: skip
TOPOLOGY_ENUM = 1 << 20


def test_platforms_offer_the_versions_of_the_table() -> None:
    assert tuple(TABLE["versions"]) == PUBLISHED_MODULE_VERSIONS


@pytest.mark.parametrize("name", PUBLISHED_MODULE_VERSIONS)
def test_a_version_states_its_number_and_offers_nothing_that_is_not_reproduced(name: str) -> None:
    version = module_version(name)
    assert version.number == (*(int(part) for part in name.split(".")), 0)
    assert (version.build_date, version.build_num) == (0, 0)
    if name in FEATURES0:
        assert version.features0 == FEATURES0[name]
    offered = identity.features0(version)
    assert offered & identity.FEATURES_NOT_REPRODUCED == 0
    assert offered & ~identity.TDX_FEATURES0 == 0


@pytest.mark.parametrize("name", PUBLISHED_MODULE_VERSIONS)
def test_linux_makes_tds_on_all_but_the_oldest(name: str) -> None:
    kernel = boot(platform=Platform(memory_size=1 << 30, module_version=name))
    assert (kernel.tdx is not None) is (name != "1.5.01")
    if kernel.tdx is None:
        assert "TOPOLOGY_ENUM" in kernel.last_reason
    else:
        assert kernel.tdx.sysinfo.features0 & TOPOLOGY_ENUM


def test_the_same_kernel_takes_1_0_only_as_v10() -> None:
    machine = Platform(memory_size=1 << 30, module_version="1.0")
    assert boot(platform=machine).tdx is None
    assert boot(platform=machine, kernel_release="v10").tdx is not None


WITH_MAXGPA = [name for name, features0 in FEATURES0.items() if features0 >> 33 & 1]
MAXPA_VIRT, MAXGPA_VIRT, NO_RBP_MOD = 1 << 3, 1 << 4, 1 << 2


def host_of(name: str) -> Host:
    return Host(FakeProcessor(FakePlatform(module_version=name))).bring_up()


@pytest.mark.parametrize("name", ["1.5.06", *PUBLISHED_MODULE_VERSIONS])
def test_maxgpa_virtualisation_from_1_5_08_on(name: str) -> None:
    """The guest sees the processor's MAXPA, and its own address width in CPUID(0x80000008).EAX[23:16].

    tdh_mng_init.c of the module's public source of 2.0; 1.5.08 has the feature by its release notes.
    """
    host = host_of(name)
    offered = name in WITH_MAXGPA
    tdr = host.uninitialized()
    status, _ = host.call(
        "TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(config_flags=MAXGPA_VIRT | NO_RBP_MOD))
    )
    assert status == (0 if offered else StatusCode.OPERAND_INVALID | Operand.EXEC_CONTROLS)
    status, args = host.call("TDH.SYS.RD", rdx=0x9900_0003_0000_0006)
    assert (status, args.r8) == (0, 0x1F if offered else 0xF)
    if not offered:
        return
    td, native = host.module.tds[tdr], host.processor.platform.physical_address_bits
    eax = td.cpuid.values[0x8000_0008, None][0]
    assert (eax & 0xFF, eax >> 16 & 0xFF) == (native, min(native, 48))
    assert td.virt_maxpa == min(native, 48)


@pytest.mark.parametrize("name", WITH_MAXGPA)
def test_maxpa_and_maxgpa_exclude_each_other(name: str) -> None:
    host = host_of(name)
    tdr = host.uninitialized()
    params = host.td_params(config_flags=MAXGPA_VIRT | MAXPA_VIRT | NO_RBP_MOD)
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(params))
    assert status == StatusCode.OPERAND_INVALID | Operand.EXEC_CONTROLS


def test_without_the_flag_a_guest_sees_no_width_of_its_own() -> None:
    for name in ("1.5.06", "1.5.08"):
        host = host_of(name)
        tdr = host.build()
        assert host.module.tds[tdr].cpuid.values[0x8000_0008, None][0] >> 16 & 0xFF == 0
