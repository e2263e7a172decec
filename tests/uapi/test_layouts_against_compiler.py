# SPDX-License-Identifier: GPL-2.0-or-later
"""Every structure, request and constant that the system's own <linux/kvm.h> has, as the C compiler sees it.

One C program is generated from the ctypes classes; each line prints one size, offset or value. Lines that do not
compile name what the system's header is too old to have: those must be in `test_documented_layouts`, which knows them
by number.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.uapi import asm_kvm, kvm

HEADERS = ["linux/kvm.h", "linux/kvm_para.h"]

NEWER_THAN_6_1 = {
    "kvm_userspace_memory_region2",
    "kvm_memory_attributes",
    "kvm_create_guest_memfd",
    "kvm_pre_fault_memory",
    "kvm_run.memory_fault",
    "kvm_run.tdx",
    "kvm_run.hypercall.flags",
}
"""Structures and members that a header of Linux 6.1 lacks."""


def structures() -> dict[str, type[ctypes.Structure]]:
    return {
        name: value
        for name, value in vars(kvm).items()
        if name.startswith("kvm_") and isinstance(value, type) and issubclass(value, ctypes.Structure)
    }


def members(kind: Any, path: str = "", base: int = 0) -> Iterator[tuple[str, int, int]]:
    """(C expression, offset, size) of each member; anonymous unions vanish as they do in C."""
    inherited = members(kind.__base__, path, base) if hasattr(kind.__base__, "_fields_") else ()
    yield from inherited
    for name, member, *_ in kind._fields_:
        descriptor = getattr(kind, name)
        anonymous = name in getattr(kind, "_anonymous_", ())
        inner = path if anonymous else f"{path}.{name}" if path else name
        if name.startswith("_"):
            continue
        if not anonymous:
            yield inner, base + descriptor.offset, ctypes.sizeof(member)
        if issubclass(member, ctypes.Structure | ctypes.Union):
            yield from members(member, inner, base + descriptor.offset)


def expected_layouts() -> dict[str, int]:
    """What the C expressions must print: "sizeof kvm_regs", "offset kvm_regs.rip", "width kvm_regs.rip"."""
    table: dict[str, int] = {}
    for name, structure in structures().items():
        table[f"sizeof {name}"] = ctypes.sizeof(structure)
        for path, offset, size in members(structure):
            table[f"offset {name}.{path}"] = offset
            if size:
                table[f"width {name}.{path}"] = size
    return table


def expected_constants() -> dict[str, int]:
    table = {
        name: int(value)
        for name, value in vars(kvm).items()
        if isinstance(value, int) and re.match(r"(KVM|GUEST_MEMFD|SYNC)_", name)
    }
    return table | {f"{vector.name}_VECTOR": int(vector) for vector in asm_kvm.Vector}


def c_line(item: str) -> str:
    kind, _, what = item.partition(" ")
    name, _, path = what.partition(".")
    expression = {
        "sizeof": f"sizeof(struct {name})",
        "offset": f"offsetof(struct {name}, {path})",
        "width": f"sizeof(((struct {name} *)0)->{path})",
    }[kind]
    return f'printf("{item}=%llu\\n", (unsigned long long)({expression}));'


def compile_and_run(directory: Path, lines: list[str]) -> tuple[dict[str, int], set[int]]:
    """The program's output, and the numbers of the lines that would not compile and were left out."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("LAYOUTS NOT CHECKED AGAINST THE COMPILER: no C compiler (install gcc)")
    prologue = ["#include <stddef.h>", "#include <stdio.h>", *(f"#include <{header}>" for header in HEADERS)]
    prologue += ["#include <asm/kvm.h>", "int main(void) {"]
    refused: set[int] = set()
    source, program = directory / "layouts.c", directory / "layouts"
    for _ in range(3):
        body = ["" if number in refused else line for number, line in enumerate(lines)]
        source.write_text("\n".join([*prologue, *body, "return 0; }", ""]))
        command = [compiler, "-w", "-fmax-errors=0", "-o", str(program), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            output = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
            pairs = (line.partition("=") for line in output.splitlines())
            return {item: int(value) for item, _, value in pairs}, refused
        if "No such file" in done.stderr:
            pytest.skip("LAYOUTS NOT CHECKED AGAINST THE COMPILER: no <linux/kvm.h> (install linux-libc-dev)")
        found = re.findall(rf"{re.escape(str(source))}:(\d+):\d+: error", done.stderr)
        refused |= {int(number) - 1 - len(prologue) for number in found}
    pytest.fail(f"the generated program does not compile:\n{done.stderr[-2000:]}")


def test_structures_lie_as_the_compiler_lays_them(tmp_path: Path) -> None:
    expected = expected_layouts()
    items = list(expected)
    measured, refused = compile_and_run(tmp_path, [c_line(item) for item in items])
    missing = {items[number].partition(" ")[2] for number in refused}
    unknown = {what for what in missing if not any(f"{what}.".startswith(f"{newer}.") for newer in NEWER_THAN_6_1)}
    assert not unknown, "the system's header does not have these at all"
    assert {item: expected[item] for item in measured} == measured
    assert len(measured) > 500, "the comparison has lost its subject"


def test_requests_and_constants_have_the_headers_values(tmp_path: Path) -> None:
    expected = expected_constants()
    lines = [f'\n#ifdef {name}\nprintf("{name}=%llu\\n", (unsigned long long)({name}));\n#endif' for name in expected]
    measured, refused = compile_and_run(tmp_path, lines)
    assert not refused
    assert {name: expected[name] & 0xFFFFFFFFFFFFFFFF for name in measured} == measured
    assert len(measured) > 300, "the comparison has lost its subject"


def test_every_request_that_x86_serves_in_this_header_is_declared() -> None:
    """The other direction: a request that the header has and we lack would go unnamed in a trace."""
    header = Path("/usr/include/linux/kvm.h")
    if not header.is_file():
        pytest.skip("REQUESTS NOT CHECKED AGAINST THE HEADER: no <linux/kvm.h> (install linux-libc-dev)")
    foreign = re.compile(r"S390|PPC|ARM|XEN|SPAPR|HTAB|RMA|ASSIGN|DIRTY_TLB|HYPERV_EVENTFD|RISCV|LOONGARCH")
    retired = {"KVM_TRACE_ENABLE", "KVM_TRACE_PAUSE", "KVM_TRACE_DISABLE", "KVM_DEBUG_GUEST"}
    retired |= {"KVM_SET_MEMORY_REGION", "KVM_SET_MEMORY_ALIAS"}
    names = re.findall(r"#define\s+(KVM_\w+)[\s\\]+_IO(?:R|W|WR)?\(\s*KVMIO", header.read_text())
    assert {name for name in names if not foreign.search(name)} - retired <= set(kvm.REQUESTS)
