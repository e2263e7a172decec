# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series on Unicorn: every patch has a test that fails without it.

This file says which, and checks that they exist. ``script/check-patches`` proves it: it builds the engine once per
patch with that patch left out and runs the tests named here, which must fail (about a minute each: not for every CI
run).
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED_BY: dict[str, list[str]] = {
    "00-engine": [],  # nothing builds without it
    "01-exit-requests": ["test_execution.py::test_a_read_modify_write_is_executed_once_however_often_it_is_stopped"],
    "02-physical-address-bits": ["test_ept.py::test_the_shared_bit_selects_the_shared_ept"],
    "03-syscall": ["test_execution.py::test_syscall_and_sysret_follow_star_and_lstar"],
    "04-port-io": [
        "test_execution.py::test_port_io_exits_with_its_qualification",
        "test_execution.py::test_user_code_may_not_touch_a_port_that_its_bitmap_forbids",
    ],
    "05-code-tracking": ["test_execution.py::test_code_changed_through_another_alias_is_seen"],
    "06-native-exceptions": ["test_execution.py::test_a_guest_takes_its_own_exceptions_without_an_exit"],
    "07-nested-stage": ["test_ept.py::test_the_guest_runs_from_where_ept_says"],
    "09-unmap": ["test_memory.py::test_windows_go_whoever_is_loaded"],
    "10-debug-registers": [
        "test_debug_registers.py::test_an_instruction_breakpoint_is_a_linear_address",
        "test_debug_registers.py::test_a_data_breakpoint_traps_after_the_store",
    ],
    "11-stores": ["test_execution.py::test_one_that_counts_in_memory_is_not_taken_for_polling"],
    "12-compare-exchange": ["test_execution.py::test_comparing_wide_operands_changes_zf_alone"],
    "08-vmx-exits": ["test_execution.py::test_tdcall_exits_in_a_trust_domain_and_is_undefined_elsewhere"],
}


def native_unicorn() -> ModuleType:
    """The build recipe, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("swtdx_native_unicorn", ROOT / "native/unicorn.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_patch_names_the_tests_that_need_it() -> None:
    assert sorted(NEEDED_BY) == [path.stem for path in native_unicorn().series()]


@pytest.mark.parametrize("name", [name for names in NEEDED_BY.values() for name in names])
def test_the_named_tests_exist(name: str) -> None:
    file, function = name.split("::")
    tree = ast.parse((Path(__file__).parent / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", native_unicorn().series(), ids=lambda path: path.stem)
def test_every_patch_says_why(path: Path) -> None:
    patch = tomllib.loads(path.read_text())
    assert len(patch["why"]) > 20
    assert patch["edit"]


def test_an_anchor_that_is_not_there_fails_loudly(tmp_path: Path) -> None:
    native = native_unicorn()
    for patch in native.series():
        for edit in tomllib.loads(patch.read_text())["edit"]:
            target = tmp_path / edit["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("not what we expect\n")
    with pytest.raises(native.BuildError, match=r"00-engine.toml, edit 1 .*the anchor occurs 0 times, expected 1"):
        native.apply_series(tmp_path)
