# SPDX-License-Identifier: GPL-2.0-or-later
"""Random SEAMCALLs and TDCALLs: the campaign of ``tests/seam/random_calls.py``, made long."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def campaign(calls: int, seed: int, progress: Callable[[int], None], **limits: Any) -> Any:
    """See ``tests/seam/random_calls.py``; what the tests are made of is not annotated."""
    return import_module("tests.seam.random_calls").campaign(calls, seed, progress, **limits)
