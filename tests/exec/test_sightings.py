# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs read of the emulated machine by name, by release of the kernel."""

from __future__ import annotations

import pytest

from swtdx.cpu.platform import MODULE_VERSIONS, PUBLISHED_MODULE_VERSIONS
from swtdx.exec.sightings import files
from swtdx.seam.identity import features0
from swtdx.seam.version import module_version
from swtdx.uapi.release import KernelRelease

VERSION = "/sys/devices/faux/tdx_host/version"
VERSIONS = [*MODULE_VERSIONS, *PUBLISHED_MODULE_VERSIONS]
SHOWN_BY = {"7.2", "7.3", "next"}


@pytest.mark.parametrize("release", KernelRelease)
def test_the_version_of_the_module_is_in_sysfs_since_7_2(release: KernelRelease) -> None:
    shown = files(tdx=True, release=release, module_version="1.5.06")
    assert shown.get(VERSION) == ("1.5.06\n" if release.value in SHOWN_BY else None)


def test_there_is_no_such_device_without_tdx() -> None:
    assert VERSION not in files(tdx=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_claims_that_the_module_can_be_updated(version: str) -> None:
    """Linux 7.2, tdx-host.c, supports_runtime_update: all of it depends on TDX_FEATURES0 bit 1.

    The attributes seamldr_version and num_remaining_updates, and the firmware upload "tdx_module".
    """
    assert not features0(module_version(version)) & 1 << 1
    shown = files(tdx=True, release=KernelRelease.V7_2, module_version=version)
    assert {path for path in shown if not path.startswith(("/proc/", "/sys/module/kvm_intel/"))} == {VERSION}
