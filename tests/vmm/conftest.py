# SPDX-License-Identifier: GPL-2.0-or-later
"""Images and plans for the tests of the VMM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.image.firmware import Firmware
from swtdx.vmm.launch import Plan, TdParameters
from testing.tdvf_image import image_with


@pytest.fixture
def plan() -> Callable[..., Plan]:
    """Makes a plan for a synthetic TDVF in 64 MiB; keywords replace members."""

    def make(**changes: object) -> Plan:
        members: dict[str, object] = {
            "firmware": Firmware(Path("synthetic.fd"), "a test made it", image_with()),
            "memory_size": 64 << 20,
            "td": TdParameters(),
        }
        return Plan(**{**members, **changes})  # type: ignore[arg-type]

    return make
