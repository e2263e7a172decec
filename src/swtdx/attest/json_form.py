# SPDX-License-Identifier: GPL-2.0-or-later
"""How fields of quotes and TDREPORTs are written in JSON."""

from __future__ import annotations

from typing import Any

_MASKS = {
    *{"valid", "seam_attributes", "attributes", "xfam", "tee_type"},
    *{"init_servtd_attributes", "current_servtd_attributes"},
}


def json_value(name: str, value: Any) -> Any:
    """How one field of a report or quote is written in JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [json_value(name, each) for each in value]
    if name in _MASKS and isinstance(value, int):
        return f"{value:#x}"
    return value
