# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs read of the emulated machine by name, by release of the kernel."""

from __future__ import annotations

import pytest

from swtdx.exec.sightings import files
from swtdx.uapi.release import KernelRelease

VERSION = "/sys/devices/faux/tdx_host/version"
SHOWN_BY = {"7.2", "7.3-rc", "next"}


@pytest.mark.parametrize("release", KernelRelease)
def test_the_version_of_the_module_is_in_sysfs_since_7_2(release: KernelRelease) -> None:
    shown = files(tdx=True, release=release, module_version="1.5.06")
    assert shown.get(VERSION) == ("1.5.06\n" if release.value in SHOWN_BY else None)


def test_there_is_no_such_device_without_tdx() -> None:
    assert VERSION not in files(tdx=False)


def test_nothing_claims_that_the_module_can_be_updated() -> None:
    """seamldr_version and num_remaining_updates are there only for a module with TDX_FEATURES0 bit 1."""
    assert not [path for path in files(tdx=True) if "seamldr" in path or "updates" in path]
