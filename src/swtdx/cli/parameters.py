# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person types, made into values; what cannot be is one sentence that says what would do."""

from __future__ import annotations

import re
import resource

from swtdx.image.memory_map import MAXIMUM_MEMORY, MIB, MINIMUM_MEMORY
from swtdx.units import PAGE_SIZE, UNITS

SHA384_SIZE = 48  # bytes of MRCONFIGID, MROWNER and MROWNERCONFIG

_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?\s*([KMGT]?)(?:I?B)?", re.ASCII)


class InputError(Exception):
    """Something typed cannot be used; the text is one sentence for a person."""


def memory_size(text: str) -> int:
    """``512M``, ``2G``, ``1.5G`` (binary), or MiB without a unit, as QEMU has it. Raises `InputError`.

    >>> memory_size("2048") == memory_size("2G"), memory_size("1.5G") >> 20
    (True, 1536)
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise InputError(f"--memory {text!r} is not a valid size: write a number with K, M or G, as in 512M or 2G")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    if not unit and not fraction and int(whole) < MIB:  # so many bytes are no machine
        unit = "M"
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * UNITS[unit], scale)
    if rest or size % PAGE_SIZE:
        raise InputError(f"--memory {text} is not a multiple of 4 KiB")
    if not MINIMUM_MEMORY <= size <= MAXIMUM_MEMORY:
        raise InputError(f"--memory {text} is out of range: from {MINIMUM_MEMORY // MIB}M to {MAXIMUM_MEMORY >> 40}T")
    return size


def seconds(option: str, text: str) -> float:
    """Return a time in seconds. Raises `InputError`."""
    try:
        value = float(text)
    except ValueError:
        number = text.rstrip("sS ")
        try:
            float(number)
        except ValueError:
            number = "60"
        raise InputError(f"{option} {text!r} is not a number of seconds: write it as in {option} {number}") from None
    if not 0 <= value < 1e9:
        raise InputError(f"{option} {text} is not a valid number of seconds")
    return value


def address_space_limit() -> str:
    """Return what limits the memory of this process, if anything does: the end of a sentence about a lack of it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f": ulimit -v allows {limit >> 10} KiB"


def digest(option: str, text: str | None) -> bytes:
    """48 bytes in hexadecimal, zeroes if not given; fewer digits are filled with zeroes behind. Raises `InputError`."""
    if text is None:
        return bytes(SHA384_SIZE)
    digits = text.removeprefix("0x")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        raise InputError(f"{option} {text!r} is not hexadecimal (an even number of the digits 0-9, a-f)") from None
    if len(value) > SHA384_SIZE:
        raise InputError(f"{option} has {len(value)} bytes, but a TD keeps {SHA384_SIZE}")
    return value.ljust(SHA384_SIZE, b"\0")


def bit_mask(option: str, text: str) -> int:
    """Return a 64-bit number, ``0x...`` or decimal. Raises `InputError`."""
    try:
        value = int(text, 0)
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number: write it as 0x10000000") from None
    if not 0 <= value < 1 << 64:
        raise InputError(f"{option} {text} does not fit into 64 bits")
    return value


def port(option: str, text: str) -> int:
    """Return the number of an I/O port. Raises `InputError`."""
    value = bit_mask(option, text)
    if value > 0xFFFC:
        raise InputError(f"{option} {text} is not an I/O port: 0xf4 and 0x501 are the usual ones")
    return value
