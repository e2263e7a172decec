# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier of Trust Domains needs: measurements predicted, images and launches explained and compared.

Nothing here starts a TD or calls a kernel.  The names below are the public ones; each is loaded when it is first used,
so that who hashes a firmware image does not wait for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


_HOMES: dict[str, str] = {}
"""Public name -> the module of this package that has it."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
