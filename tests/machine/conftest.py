# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests are made of that the repository does not bring along.

$SWTDX_LINUX names a folder with a kernel as its package has it: ``boot/vmlinuz-*`` and ``lib/modules``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest


@pytest.fixture
def kernel_folder(skip_loudly: Callable[[str], NoReturn]) -> Path:
    """The folder of a distribution's kernel; tests that boot it skip without it."""
    named = os.environ.get("SWTDX_LINUX")
    if not named or not list(Path(named).glob("boot/vmlinuz-*")):
        skip_loudly(
            "no Linux kernel in $SWTDX_LINUX (boot/vmlinuz-*, lib/modules): what it does in a guest is not shown"
        )
    return Path(named)


@pytest.fixture
def busybox(skip_loudly: Callable[[str], NoReturn]) -> Path:
    """A statically linked busybox; tests that make a guest's user space of it skip without it."""
    fetched = Path(os.environ.get("SWTDX_LINUX", "/nonexistent"), "busybox")
    found = str(fetched) if fetched.is_file() else shutil.which("busybox")
    if found is None:
        skip_loudly("no busybox (package busybox-static) to make a guest of: what Linux does in a guest is not shown")
    return Path(found)
