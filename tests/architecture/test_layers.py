# SPDX-License-Identifier: GPL-2.0-or-later
"""The house stands: each floor imports only the floors it may know, and every file keeps the house rules.

The arrows are those of docs/architecture.md. They are read from the syntax tree, so that an import inside a function,
under ``if TYPE_CHECKING`` or by ``importlib`` with a constant name counts as much as one at the top.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.sources import imports_and_calls, parsed

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "swtdx"

ARROWS: dict[str, set[str]] = {
    "x86": {"units"},  # names of the architecture: a floor below all others
    "units": set(),
    "clock": set(),
    "snapshot": set(),  # finds the classes that it holds by their names
    "trace": {"units"},  # makes files and pages of events, and knows nothing of what is traced
    "cpu": {"x86", "clock", "snapshot"},
    "uapi": {"trace", "clock"},
    "seam": {"cpu", "trace", "x86"},
    "linux": {"uapi", "cpu", "trace", "x86", "clock"},  # the TDX module only by Processor.seamcall
    "image": {"x86", "units"},  # no system calls: a launch loads what it computes, a verifier predicts from it
    "vmm": {"uapi", "image", "x86", "clock", "snapshot"},
    "attest": {"image", "units", "x86"},
    # The host's quoting side: what a TD asks for by way of its VMM, and a verifier compares with.
    "quoting": {"attest", "vmm", "uapi", "x86"},
    "explain": {"cpu", "uapi", "seam", "vmm"},
    "inject": {"cpu", "explain", "seam", "uapi"},
    "lint": {"cpu", "seam.tables", "trace"},
    "lying": {"cpu", "inject"},
    "fuzzing": {"lying", "vmm", "image", "uapi", "x86"},
    "machine": {
        "cpu",
        "inject",
        "lint",
        "lying",
        "seam",
        "linux",
        "uapi",
        "trace",
        "x86",
        "clock",
        "snapshot",
    },  # the one place that wires
    # The kernel in the process of a program that is not ours.
    "exec": {
        "quoting.machine_folder",
        "cpu.platform",
        "cpu._engine",
        "uapi",
        "linux",
        "explain",
        "trace",
        "units",
        "machine",
    },
    "cli": {
        "cpu",
        "uapi",
        "seam",
        "linux",
        "image",
        "vmm",
        "attest",
        "quoting",
        "explain",
        "inject",
        "lint",
        "lying",
        "fuzzing",
        "machine",
        "clock",
        "snapshot",
        "trace",
        "units",
        "x86",
        "exec",
    },
    # What a test's author would do by hand.
    "pytest_plugin": {"uapi", "image", "vmm", "explain", "inject", "quoting", "machine", "cpu.platform"},
    # The public face: loads each of its names when it is first used.
    "__init__": {"cpu.platform", "uapi", "linux.config", "image.firmware", "vmm", "machine"},
    "__main__": {"cli"},
}
"""Floor -> what it may import. A dotted name allows that module of the floor and nothing else of it."""


def floor_of(module: str) -> str:
    """``swtdx.linux.arch.x86.kvm.x86.vcpu`` -> ``linux``; ``swtdx`` -> ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(file: Path, package: Path) -> str:
    parts = [package.name, *file.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that ``file`` imports of ``package``, wherever in the file it does."""
    name = module_name(file, package)
    around = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
    for node in imports_and_calls(file):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else around[: len(around) - node.level + 1]
            base = [*base, *(node.module.split(".") if node.module else [])]
            found = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call):
            found = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        yield from ((node.lineno, each) for each in found if each.split(".")[0] == package.name)


def allowed(importer: str, imported: str) -> bool:
    """May module ``importer`` import ``imported``, a module or a name in one?"""
    here, there = floor_of(importer), floor_of(imported)
    if here == there or (here in {"cli", "trace"} and imported in {"swtdx", "swtdx.__version__"}):
        return True
    tail = imported.split(".", 1)[1] if "." in imported else ""
    return any(tail == arrow or tail.startswith(arrow + ".") for arrow in ARROWS[here])


def breaches(package: Path) -> list[str]:
    """One sentence per import that points the wrong way."""
    return [
        f"{file.relative_to(package.parent)}:{line}: {floor_of(module_name(file, package))} may not import {imported}"
        for file in sorted(package.rglob("*.py"))
        for line, imported in imports_of(file, package)
        if not allowed(module_name(file, package), imported)
    ]


def test_every_floor_has_its_arrows() -> None:
    floors = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert floors <= set(ARROWS), "a new floor or module needs its line in ARROWS and in docs/architecture.md"


def test_imports_follow_the_arrows() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("linux/arch/x86/virt/vmx/tdx/tdx.py", "from swtdx.seam import module\n"),
        ("linux/arch/x86/virt/vmx/tdx/tdx.py", "def bring_up():\n    import swtdx.seam.module as m\n    return m\n"),
        ("linux/virt/kvm/hva.py", "from ....seam.module import TdxModule\n"),
        ("linux/virt/kvm/hva.py", "from .... import seam\n"),
        ("vmm/launch.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from swtdx.linux import kernel\n"),
        ("vmm/launch.py", "import importlib\nimportlib.import_module('swtdx.machine')\n"),
        ("cpu/memory.py", "import swtdx.uapi.kvm\n"),
        ("x86.py", "from swtdx.cpu import vmx\n"),
        ("seam/module.py", "from swtdx.linux.kernel import EmulatedKernel\n"),
        ("image/tdvf.py", "from swtdx.uapi import kvm\n"),
        ("attest/quote.py", "from swtdx.seam.module import TdxModule\n"),
        ("attest/measure.py", "from swtdx.vmm.launch import launch\n"),
        ("machine.py", "from swtdx import cli\n"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, where: str, text: str) -> None:
    file = tmp_path / "swtdx" / where
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert len(breaches(tmp_path / "swtdx")) == 1


def test_an_import_along_the_arrows_is_not_reported(tmp_path: Path) -> None:
    package = tmp_path / "swtdx"
    for where, text in {
        "linux/virt/kvm/hva.py": "from ....uapi import kvm\nfrom swtdx.cpu.context import GuestContext\n",
        "seam/__init__.py": "from .module import TdxModule\n",
        "attest/measure.py": "from swtdx.image.tdvf import Tdvf\nimport os\n",
        "cli/__init__.py": "from swtdx import __version__\nfrom swtdx.machine import open_kernel\n",
    }.items():
        (package / where).parent.mkdir(parents=True, exist_ok=True)
        (package / where).write_text(text)
    assert breaches(package) == []


# --- house rules ------------------------------------------------------------------------------------------------------

SOURCES = {".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".sh"}
BUILT = {"build", "dist", "__pycache__"}
SPDX = "SPDX-License-Identifier: GPL-2.0-or-later"
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|opt|mnt)/\w")
"""A path that exists on one machine only. Paths of the system under Debian (/usr/share, /dev) are no such paths."""


@cache
def our_files() -> tuple[Path, ...]:
    """All text files of the repository: neither what is built nor what tools leave behind in hidden directories."""
    found = []
    for folder, inner, names in os.walk(REPOSITORY):
        inner[:] = [
            name
            for name in inner
            if name not in BUILT and not name.endswith(".egg-info") and (name[0] != "." or name == ".ci")
        ]
        for name in names:
            path = Path(folder) / name
            binary = path.suffix in {".so", ".bin", ".fd"} or name in (
                "_engine.c",
                ".git",
            )  # a worktree has .git as a file
            if not binary and path.is_file():
                found.append(path)
    return tuple(sorted(found))


def is_source(file: Path) -> bool:
    return file.suffix in SOURCES or file.parent in {REPOSITORY / "script", REPOSITORY / ".ci"}


def test_every_source_file_names_its_licence_in_its_first_lines() -> None:
    """Line 1, or line 2 where line 1 must be ``#!``."""
    lacking = []
    for file in filter(is_source, our_files()):
        lines = file.read_text(encoding="utf-8").splitlines()[:2]
        head = lines[1:] if lines and lines[0].startswith("#!") else lines[:1]
        if not any(SPDX in line for line in head):
            lacking.append(str(file.relative_to(REPOSITORY)))
    assert lacking == []


def test_every_module_says_what_it_is() -> None:
    lacking = [
        str(file.relative_to(REPOSITORY))
        for file in our_files()
        if file.suffix == ".py" and not ast.get_docstring(parsed(file))
    ]
    assert lacking == []


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for file in our_files()
        if file.name != "test_layers.py"
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
