# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the tests with the host's gcc, and pack them with busybox into an initrd."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from guest.newc import DIRECTORY, FILE, newc
from testing.selftests.makefile import Test, read_tests

FOLDER = Path("tools/testing/selftests/x86")
NEEDED = (FOLDER / "Makefile", FOLDER.parent / "kselftest.h")
# These look up the vDSO by dlopen, or unwind through it, which a static program cannot do: they bring their libraries.
DYNAMIC = {"test_vsyscall", "vdso_restorer", "unwind_vdso"}
_LIBRARIES = {
    64: ("ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1"),
    32: ("ld-linux.so.2", "libc.so.6", "libm.so.6", "libgcc_s.so.1"),
}
# Each program names its loader; init names the other folders by LD_LIBRARY_PATH, and a loader skips the other width.
_PLACES = {64: ("lib64", "libs64"), 32: ("lib", "libs32")}
COMPILE_SECONDS = 120


class InputError(Exception):
    """What the caller named cannot be used; the message is one sentence for a person."""


@dataclass(frozen=True)
class Built:
    """A test and its program, or why there is none."""

    test: Test
    program: bytes = b""
    failure: str = ""


def read_tree(tree: Path) -> list[Test]:
    """Return the tests of a kernel tree. Raise InputError if ``tree`` is not one."""
    if not tree.is_dir():
        raise InputError(f"{tree}: not a directory (name the top of a Linux source tree)")
    for needed in NEEDED:
        if not (tree / needed).is_file():
            raise InputError(f"{tree}: not a Linux source tree: it has no {needed}")
    try:
        return read_tests((tree / FOLDER / "Makefile").read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{tree / FOLDER}: {error}") from error


def version_of(tree: Path) -> str:
    """Return a kernel tree's version from its Makefile, or "unknown"."""
    try:
        text = (tree / "Makefile").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    values: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text, re.MULTILINE)
    )
    if "VERSION" not in values:
        return "unknown"
    numbers = ".".join(values[name] for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL") if values.get(name))
    return numbers + values.get("EXTRAVERSION", "")


def why_no_compiler(bits: int, scratch: Path) -> str:
    """Return why gcc cannot make static programs of this width here, or "" if it can."""
    source = scratch / "trivial.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts(""); return 0; }\n')
    command = ["gcc", f"-m{bits}", "-static", "-o", str(scratch / "trivial"), str(source)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except FileNotFoundError:
        return "there is no gcc here: install it (apt-get install gcc libc6-dev)"
    if result.returncode == 0:
        return ""
    package = "gcc-multilib" if bits == 32 else "libc6-dev"
    return f"gcc cannot make {bits}-bit programs here: install {package} (apt-get install {package})"


def command_for(test: Test, tree: Path, output: Path) -> list[str]:
    """Return gcc's arguments, which are the Makefile's but for -static."""
    folder = tree / FOLDER
    linking = [] if test.name in DYNAMIC else ["-static"]
    options = ["-O2", "-std=gnu99", "-pthread", "-no-pie", "-s", "-w", "-DCAN_BUILD_32", "-DCAN_BUILD_64"]
    sources = [str(folder / name) for name in (f"{test.name}.c", *test.files)]
    flags = [flag for flag in test.flags if flag != "-static"]
    return ["gcc", f"-m{test.bits}", *linking, *options, *flags, "-o", str(output), *sources, "-lrt", "-ldl", "-lm"]


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = (
        [line for line in lines if "error:" in line or "undefined reference" in line] or lines[-1:] or ["no message"]
    )
    return re.sub(r"^\S*/", "", chosen[0])


def compile_test(test: Test, tree: Path, scratch: Path) -> Built:
    """Compile one test; never raises for what the compiler says."""
    output = scratch / test.program
    try:
        result = subprocess.run(
            command_for(test, tree, output), capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Built(test, failure=f"gcc did not end in {COMPILE_SECONDS} s")
    if result.returncode != 0:
        return Built(test, failure=_first_error(result.stderr))
    program = output.read_bytes()
    output.unlink()
    return Built(test, program)


def libraries(bits: int) -> list[tuple[str, bytes]]:
    """Return (path in the guest, contents) of what a dynamic program of this width loads, as far as gcc has it."""
    loader_folder, folder = _PLACES[bits]
    found = []
    for name in _LIBRARIES[bits]:
        command = ["gcc", f"-m{bits}", f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
        if path.is_absolute() and path.is_file():
            found.append((f"{loader_folder if name.startswith('ld-') else folder}/{name}", path.read_bytes()))
    return found


INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
cd /tmp
export LD_LIBRARY_PATH=/libs64:/libs32
uname -r | sed 's/^/SELFTEST kernel /'
while read -r program; do
    echo "SELFTEST begin $program"
    timeout -s KILL SECONDS /tests/$program >/tmp/$program.output 2>&1 </dev/null
    status=$?
    tail -n LINES /tmp/$program.output | sed 's/^/SELFTEST | /'
    dmesg -c 2>/dev/null | grep -E 'BUG|WARNING|Oops|segfault|traps:|general protection' | tail -n 4 |
        sed 's/^/SELFTEST k /'
    echo "SELFTEST end $program $status"
done </tests/list
echo "SELFTEST done"
poweroff -f
"""
LINES_KEPT = 60
_FOLDERS = ("bin", "dev", "proc", "sys", "tmp", "tests", "lib", "lib64", "libs64", "libs32")


def pack(busybox: bytes, built: list[Built], seconds: int) -> bytes:
    """Return an initrd that runs these programs, each for at most ``seconds``, and powers off."""
    entries = [(name, DIRECTORY, b"") for name in _FOLDERS]
    entries.append(("bin/busybox", FILE, busybox))
    init = INIT.replace("SECONDS", str(seconds)).replace("LINES", str(LINES_KEPT))
    entries.append(("init", FILE, init.encode()))
    programs = [each for each in built if not each.failure]
    entries += [(f"tests/{each.test.program}", FILE, each.program) for each in programs]
    entries.append(("tests/list", FILE, "".join(f"{each.test.program}\n" for each in programs).encode()))
    for bits in sorted({each.test.bits for each in programs if each.test.name in DYNAMIC}):
        entries += [(path, FILE, contents) for path, contents in libraries(bits)]
    return newc(entries)
