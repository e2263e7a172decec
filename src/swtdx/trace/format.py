# SPDX-License-Identifier: GPL-2.0-or-later
"""Which formats a trace has, for those who name one without making a trace: see `swtdx.trace.file`."""

from __future__ import annotations

from enum import StrEnum


class TraceFormat(StrEnum):
    """How a trace is written."""

    jsonl = "jsonl"
    chrome = "chrome"
