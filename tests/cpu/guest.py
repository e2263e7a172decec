# SPDX-License-Identifier: GPL-2.0-or-later
"""The bare guest of these tests: see :mod:`testing.bare_processor`."""

from __future__ import annotations

from testing.bare_processor import (
    CODE,
    EPT_TABLES,
    FLAT_CODE,
    FLAT_DATA,
    GDT,
    IDT,
    PAGE_TABLES,
    SELECTOR_CODE,
    SELECTOR_DATA,
    STACK,
    Guest,
    assemble,
    ept_map,
)

__all__ = [
    "CODE",
    "EPT_TABLES",
    "FLAT_CODE",
    "FLAT_DATA",
    "GDT",
    "IDT",
    "PAGE_TABLES",
    "SELECTOR_CODE",
    "SELECTOR_DATA",
    "STACK",
    "Guest",
    "assemble",
    "ept_map",
]
