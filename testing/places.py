# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the repository is, and where things outside it are: firmware, and reference material."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def reference_directory() -> Path:
    """Where the reference material (vectors, tables) would be: $SWTDX_SHARED, or ``shared/reference`` beside us."""
    told = os.environ.get("SWTDX_SHARED")
    return Path(told) if told else REPOSITORY.parent / "shared" / "reference"


def firmware_image() -> Path:
    """Debian's and Ubuntu's TDX-capable firmware, as the package ``ovmf`` installs it."""
    return Path("/usr/share/ovmf/OVMF.fd")


def measuring_firmware_image() -> bytes:
    """edk2's TDX build as Debian's ovmf-inteltdx has it. Raises FileNotFoundError where there is none."""
    named = os.environ.get("SWTDX_TDX_FIRMWARE")
    cached = (REPOSITORY / ".cache").glob("*.fd")
    paths = [Path(named)] if named else [*cached, *firmware_image().parent.glob("*.inteltdx*.fd")]
    if not paths:
        raise FileNotFoundError(
            "no firmware that measures: script/tdx-firmware fetches it, $SWTDX_TDX_FIRMWARE names one"
        )
    return paths[0].read_bytes()
