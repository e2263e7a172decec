# SPDX-License-Identifier: GPL-2.0-or-later
"""What tools/testing/selftests/x86/Makefile says: which tests there are, and what each is compiled from.

Reads the part of make's language that this Makefile uses, so that a newer kernel tree brings its own list.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

BITS = (64, 32)
_LISTS = {
    64: ("TARGETS_C_BOTHBITS", "TARGETS_C_64BIT_ONLY", "TARGETS_C_32BIT_NEEDED"),
    32: ("TARGETS_C_BOTHBITS", "TARGETS_C_32BIT_ONLY", "TARGETS_C_32BIT_NEEDED"),
}
_ASSIGNMENT = re.compile(r"^(TARGETS_C_\w+)\s*\+?:?=\s*(.*)$")
_EXTRA_FILES = re.compile(r"^\$\(eval \$\(call extra-files,(\w+),([^)]*)\)\)")
_TARGET_VARIABLE = re.compile(r"^\$\(OUTPUT\)/(\w+):\s*(CFLAGS|EXTRA_FILES)\s*\+?:?=\s*(.*)$")


@dataclass(frozen=True)
class Test:
    """One program: ``name`` is that of the source file, ``program`` adds the width."""

    __test__ = False  # for pytest: not a class of tests

    name: str
    bits: int
    flags: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        return f"{self.name}_{self.bits}"


@dataclass
class _Read:
    lists: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    flags: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def read_tests(makefile: str) -> list[Test]:
    """Return the tests of a Makefile's text, by name, 64 bit first. Raise ValueError if it names none."""
    read = _Read()
    for line in makefile.replace("\\\n", " ").splitlines():
        if found := _ASSIGNMENT.match(line):
            # TARGETS_C_..._ALL are made of the others by $(...) references.
            read.lists[found[1]] += [word for word in found[2].split() if "$" not in word]
        elif found := _EXTRA_FILES.match(line):
            read.files[found[1]] += found[2].split()
        elif found := _TARGET_VARIABLE.match(line):
            (read.flags if found[2] == "CFLAGS" else read.files)[found[1]] += found[3].split()
    tests = []
    for bits in BITS:
        names = {name for each in _LISTS[bits] for name in read.lists[each]}
        for name in names:
            program = f"{name}_{bits}"
            tests.append(Test(name, bits, tuple(read.flags[program]), tuple(read.files[program])))
    if not tests:
        raise ValueError("the Makefile names no tests (TARGETS_C_BOTHBITS and its siblings)")
    return sorted(tests, key=lambda test: (test.name, -test.bits))
