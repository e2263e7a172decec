# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of a guest kernel's addresses: out of System.map, /proc/kallsyms, or an ELF file with a symbol table.

A kernel that places itself at random (KASLR) has all symbols moved by one distance. MSR LSTAR holds the address of
``entry_SYSCALL_64``, so the distance follows from it.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

ENTRY = "entry_SYSCALL_64"
_LINE = re.compile(rb"([0-9a-f]{16}) [A-Za-z?] (\S+)")
_ELF_HEADER = struct.Struct("<16x2xHI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<IBBHQQ")
_X86_64, _SYMTAB, _FUNCTION, _NO_TYPE = 62, 2, 2, 0
_LONGEST = 1 << 20
"""Bytes behind a symbol in which an address has its name."""
_ALIGNMENT = 1 << 21
"""Of a kernel in memory."""


class SymbolError(Exception):
    """A file has no symbols; the text is one sentence for a person."""


class Symbols:
    """Addresses and names, in order."""

    def __init__(self, pairs: Iterable[tuple[int, str]]) -> None:
        ordered = sorted(set(pairs))
        self._addresses = [address for address, _ in ordered]
        self._names = [name for _, name in ordered]
        self.entry = next((address for address, name in ordered if name == ENTRY), None)
        self.offset = 0
        """By how much the guest's kernel is moved."""

    def __len__(self) -> int:
        return len(self._addresses)

    def place(self, entries: Iterable[int]) -> None:
        """Find out by how much the kernel is moved, from values of LSTAR, the likeliest first."""
        for value in entries:
            if self.entry is not None and value and not (value - self.entry) % _ALIGNMENT:
                self.offset = value - self.entry
                return

    def __call__(self, address: int) -> str:
        """Return ``name+0x12``; empty for an address that is not in the kernel."""
        wanted = address - self.offset
        index = bisect_right(self._addresses, wanted) - 1
        if index < 0 or wanted - self._addresses[index] >= _LONGEST:
            return ""
        distance = wanted - self._addresses[index]
        return f"{self._names[index]}+{distance:#x}" if distance else self._names[index]


def none(_address: int) -> str:
    """Name nothing: there is no file with symbols."""
    return ""


def read(path: Path) -> Symbols:
    """Read a file of either kind. Raises OSError, `SymbolError`."""
    data = path.read_bytes()
    pairs = _of_elf(data, path) if data[:4] == b"\x7fELF" else _of_text(data)
    symbols = Symbols(pairs)
    if not len(symbols):
        what = "kallsyms shows its addresses to root only" if b" T " in data[:4096] else "give System.map, or vmlinux"
        raise SymbolError(f"{path} has no symbols: {what}")
    return symbols


def _of_text(data: bytes) -> Iterator[tuple[int, str]]:
    for line in data.splitlines():
        match = _LINE.match(line)
        if match is not None and (address := int(match[1], 16)) not in (0, (1 << 64) - 1):
            yield address, match[2].decode("ascii", "replace")


def _of_elf(data: bytes, path: Path) -> Iterator[tuple[int, str]]:
    try:
        machine, _, _, _, sections, _, _, _, _, entry_size, count, _ = _ELF_HEADER.unpack_from(data)
        if machine != _X86_64 or data[4] != 2 or entry_size != _SECTION.size:
            raise SymbolError(f"{path} is not an ELF file for x86-64")
        headers = [_SECTION.unpack_from(data, sections + number * entry_size) for number in range(count)]
        for header in headers:
            _, kind, _, _, offset, size, link, _, _, _ = header
            if kind != _SYMTAB:
                continue
            names = headers[link][4]
            for position in range(offset, offset + size, _SYMBOL.size):
                name, info, _, _, value, _ = _SYMBOL.unpack_from(data, position)
                if info & 0xF in (_FUNCTION, _NO_TYPE) and name and value:
                    end = data.index(b"\0", names + name)
                    yield value, data[names + name : end].decode("ascii", "replace")
    except (struct.error, IndexError, ValueError):
        raise SymbolError(f"{path} is an ELF file that is damaged or cut short") from None
