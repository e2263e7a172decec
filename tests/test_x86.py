# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the architecture have the values that Linux's headers and the exception table give them."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

import pytest

from swtdx import x86

HEADERS = (
    Path("/usr/include/x86_64-linux-gnu/asm/processor-flags.h"),
    Path("/usr/include/asm/processor-flags.h"),
)
_BIT = re.compile(r"^#define X86_(EFLAGS|CR0|CR4)_(\w+)_BIT\s+(\d+)", re.MULTILINE)
_CLASSES: dict[str, type[IntEnum]] = {"EFLAGS": x86.Rflags, "CR0": x86.Cr0, "CR4": x86.Cr4}
_RENAMED = {"FIXED": "FIXED_1"}
_FLAGS = [each for each in vars(x86).values() if isinstance(each, type) and each.__module__ == x86.__name__]


def test_flags_are_those_of_linux() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("asm/processor-flags.h is not installed (linux-libc-dev)")
    found = 0
    for register, name, bit in _BIT.findall(header.read_text(encoding="ascii")):
        ours = _CLASSES[register].__members__.get(_RENAMED.get(name, name))
        if ours is not None and name != "IOPL":  # a field of two bits
            assert ours == 1 << int(bit), (register, name)
            found += 1
    assert found > 30


@pytest.mark.parametrize("flags", _FLAGS)
def test_operators_give_plain_integers(flags: type[IntEnum]) -> None:
    """So that ``~flag`` is a complement of any width, and no operator runs Python code."""
    one, other = list(flags)[:2]
    assert type(one | other) is int
    assert ~one & (1 << 64) - 1 == (1 << 64) - 1 - int(one)


def test_registers_are_numbered_as_instructions_encode_them() -> None:
    legacy = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"]
    assert [each.name for each in x86.Gpr] == [*legacy, *(f"R{number}" for number in range(8, 16))]
