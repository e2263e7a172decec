# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program is, as far as a front end must know: found, executable, of this machine, by which libc.

The preloaded library reaches a program whose ELF header names glibc's dynamic loader. It does not reach static programs
and those of other libcs, nor Go's, which make system calls without a libc; nor may it be in a program with a sanitizer.
The server of `swtdx.exec.notify` serves those. Nor does it reach setuid programs, whose loader ignores LD_PRELOAD; they
are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

_EM_X86_64 = 62
_MACHINES = {3: "32-bit x86", 40: "32-bit ARM", 183: "64-bit ARM", 243: "RISC-V", 21: "64-bit POWER", 22: "s390x"}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_STRTAB, _DT_STRSZ = 5, 10
_DYNAMIC = struct.Struct("<qQ")
_MOST_DYNAMIC = 1 << 16
_SANITIZERS = {
    b"__asan_init": "AddressSanitizer",
    b"__tsan_init": "ThreadSanitizer",
    b"__msan_init": "MemorySanitizer",
    b"__hwasan_init": "HWAddressSanitizer",
    b"liblsan.so": "LeakSanitizer",
}
"""What a program has among its dynamic strings if it is linked with one of them."""
_LOADERS = ("ld-linux", "ld-lsb")
"""How the names of glibc's loaders begin."""
_LOADER_OPTIONS_WITH_VALUE = {"--library-path", "--inhibit-rpath", "--audit", "--preload", "--argv0"}
_PYTHON = re.compile(r"python(\d+\.\d+)")
_MOST_SCRIPTS = 4  # the kernel's limit of interpreters of interpreters
NOT_FOUND, NOT_USABLE = 127, 126
"""Exit statuses, as of env(1) and of shells."""


class FrontEnd(StrEnum):
    """How a program's calls reach the emulated kernel."""

    preload = "preload"
    notify = "notify"


class ProgramError(Exception):
    """The program cannot be executed on the emulated kernel; one sentence for a person, and the exit status."""

    def __init__(self, text: str, status: int = NOT_USABLE) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Elf:
    """What the header of an executable says."""

    interpreter: str | None
    go: bool
    sanitizer: str | None = None


def find(command: str) -> Path:
    """The file that ``command`` names, by PATH if it has no slash. Raises `ProgramError`."""
    path = command if "/" in command else shutil.which(command)
    if path is None:
        raise ProgramError(f"{command or repr(command)}: no such program in PATH", NOT_FOUND)
    if not os.path.exists(path):
        raise ProgramError(f"{command}: no such file", NOT_FOUND)
    _check_kind(Path(path))
    if not os.access(path, os.X_OK):
        raise ProgramError(f"{command}: not an executable file (chmod +x makes it one)")
    return Path(path)


def choose(path: Path, arguments: list[str], depth: int = 0) -> tuple[FrontEnd, str]:
    """Return the front end for a program, and why it is not the preloaded library, as the end of a sentence.

    ``arguments``: those after the program's name. Raises `ProgramError` for what no front end can serve.
    """
    _check_kind(path)
    _check_privileges(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}") from None
    if head.startswith(b"#!"):
        return choose(*_interpreter_of(path, head, depth), depth + 1)
    elf = read_elf(path, head)
    if elf.interpreter is None and path.name.startswith(_LOADERS) and depth < _MOST_SCRIPTS:
        loaded = _loaded_by(arguments)  # the loader itself, with the program as its argument
        return choose(*loaded, depth + 1) if loaded is not None else (FrontEnd.preload, "")
    if elf.interpreter is not None and not Path(elf.interpreter).exists() and depth == 0:
        raise ProgramError(
            f"{path}: its loader {elf.interpreter} does not exist: it is for another system's libc; install that libc, "
            "or build the program for this one"
        )
    if elf.go:
        return FrontEnd.notify, "is a Go program, which makes system calls without libc"
    if elf.interpreter is None:
        return FrontEnd.notify, "is linked statically"
    if "ld-musl" in Path(elf.interpreter).name:
        return FrontEnd.notify, "is linked against musl"
    if not Path(elf.interpreter).name.startswith(_LOADERS):
        return FrontEnd.notify, f"is linked against another libc, by its loader {elf.interpreter}"
    if elf.sanitizer is not None:
        return FrontEnd.notify, f"is built with {elf.sanitizer}, whose library must be loaded first"
    version = _PYTHON.fullmatch(path.resolve().name)
    if version is not None and version[1] != _our_version():
        return FrontEnd.notify, f"is Python {version[1]}, and swtdx is installed for Python {_our_version()}"
    return FrontEnd.preload, ""


def refusal(path: Path, why: str, cannot: str) -> ProgramError:
    """Return the error for a program that no front end reaches; ``cannot``: why notification does not."""
    return ProgramError(
        f"{path} {why}: the preloaded library does not reach it, and its /dev/kvm would be this machine's own. It "
        f"cannot be served by notification: {cannot}. Use a build that is linked dynamically against glibc, or "
        "--allow-host-kvm to run it on this machine's /dev/kvm"
    )


def _our_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _check_kind(path: Path) -> None:
    """Raise `ProgramError` for what is not a regular file; to open a FIFO would wait for its writer."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device, a FIFO or a socket"
        raise ProgramError(f"{path}: {kind}, not a program")


def _check_privileges(path: Path) -> None:
    status = path.stat()
    gains = (status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid()) or (
        status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP and status.st_gid != os.getegid()
    )
    with suppress(OSError):
        gains = gains or (os.geteuid() != 0 and bool(os.getxattr(path, "security.capability")))
    if gains:
        raise ProgramError(
            f"{path}: setuid, setgid or with file capabilities: the loader ignores LD_PRELOAD there. "
            "Run it as the user whose rights it takes, or a copy without them, or use --allow-host-kvm"
        )


def _interpreter_of(path: Path, head: bytes, depth: int) -> tuple[Path, list[str]]:
    """Of a script the interpreter, and the arguments that its first line gives to it."""
    line = head[2:].split(b"\n", 1)[0].decode("utf-8", "replace").split(None, 1)
    if not line or depth >= _MOST_SCRIPTS:
        raise ProgramError(f"{path}: its first line names no interpreter")
    interpreter = Path(line[0])
    if not interpreter.exists():
        raise ProgramError(f"{path}: its interpreter {interpreter} does not exist", NOT_FOUND)
    words = line[1].split() if len(line) > 1 else []
    if interpreter.name == "env":
        words = words[1:] if words[:1] == ["-S"] else words
        if words and "=" not in words[0] and not words[0].startswith("-"):
            interpreter, words = find(words[0]), words[1:]
    return interpreter, words


def _loaded_by(arguments: list[str]) -> tuple[Path, list[str]] | None:
    """Of ``ld-linux-x86-64.so.2 [OPTION]... PROGRAM [ARGUMENT]...`` the program and its arguments."""
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option in _LOADER_OPTIONS_WITH_VALUE:
            rest = rest[1:]
    return (find(rest[0]), rest[1:]) if rest else None


def read_elf(path: Path, head: bytes) -> Elf:
    """The header of an executable of this machine. Raises `ProgramError`."""
    if len(head) < _HEADER.size or head[:4] != b"\x7fELF":
        raise ProgramError(f"{path}: neither an ELF executable nor a script that begins with #!")
    ident, _, machine, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack_from(head)
    if ident[4] != 2 or ident[5] != 1 or machine != _EM_X86_64:
        name = _MACHINES.get(machine, f"machine {machine}" if ident[5] == 1 else "a big-endian machine")
        raise ProgramError(f"{path}: a program for {name}: the emulated /dev/kvm is that of a 64-bit x86 kernel")
    interpreter, go, dynamic, loaded = None, False, None, []
    with path.open("rb") as file:
        for number in range(count):
            file.seek(at + number * size)
            data = file.read(_SEGMENT.size)
            if len(data) < _SEGMENT.size:
                raise ProgramError(f"{path}: a truncated ELF executable")
            kind, _, offset, address, _, length, *_ = _SEGMENT.unpack(data)
            if kind == _PT_LOAD:
                loaded.append((address, length, offset))
            elif kind == _PT_DYNAMIC:
                dynamic = offset, min(length, _MOST_DYNAMIC)
            elif kind in (_PT_INTERP, _PT_NOTE) and length < 1 << 16:
                file.seek(offset)
                content = file.read(length)
                if kind == _PT_INTERP:
                    interpreter = content.rstrip(b"\0").decode("utf-8", "replace")
                elif content[12:16] == b"Go\0\0":
                    go = True
        sanitizer = _sanitizer(file, dynamic, loaded) if dynamic is not None and interpreter is not None else None
    return Elf(interpreter, go, sanitizer)


def _sanitizer(file: BinaryIO, dynamic: tuple[int, int], loaded: list[tuple[int, int, int]]) -> str | None:
    """Return the sanitizer whose names are among the dynamic strings. ``loaded``: address, length, offset."""
    file.seek(dynamic[0])
    data = file.read(dynamic[1] // _DYNAMIC.size * _DYNAMIC.size)
    entries = dict(_DYNAMIC.iter_unpack(data[: len(data) // _DYNAMIC.size * _DYNAMIC.size]))
    strings = entries.get(_DT_STRTAB, 0)
    for address, length, offset in loaded:
        if address <= strings < address + length:
            file.seek(offset + strings - address)
            text = file.read(min(entries.get(_DT_STRSZ, 0), length))
            return next((name for mark, name in _SANITIZERS.items() if mark in text), None)
    return None
