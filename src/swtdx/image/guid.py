# SPDX-License-Identifier: GPL-2.0-or-later
"""GUIDs as they lie in memory and as text (UEFI, appendix A), without the module ``uuid``.

``uuid`` loads what finds the network cards of the machine, which a command that compares three GUIDs does not need.
"""

from __future__ import annotations

SIZE = 16


def guid_bytes(text: str) -> bytes:
    """Return a GUID as it lies in memory: its first three numbers are little-endian.

    >>> guid_bytes("8be4df61-93ca-11d2-aa0d-00e098032b8c").hex()
    '61dfe48bca93d211aa0d00e098032b8c'
    """
    first, second, third, *rest = (bytes.fromhex(part) for part in text.split("-"))
    return first[::-1] + second[::-1] + third[::-1] + b"".join(rest)


def guid_text(memory: bytes) -> str:
    """Return a GUID as it is written.

    >>> guid_text(bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c"))
    '8be4df61-93ca-11d2-aa0d-00e098032b8c'
    """
    first, second, third = memory[3::-1], memory[5:3:-1], memory[7:5:-1]
    return "-".join(part.hex() for part in (first, second, third, memory[8:10], memory[10:16]))
