# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of which only a number and TDX_FEATURES0 are published: they state what is known and invent nothing."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.cpu.platform import PUBLISHED_MODULE_VERSIONS, Platform
from swtdx.machine import boot
from swtdx.seam import identity
from swtdx.seam.tables import load
from swtdx.seam.version import module_version

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
