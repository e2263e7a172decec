# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series on Unicorn: every patch has a test that fails without it.

This file says which, and checks that they exist. ``script/check-patches`` proves it: it builds the engine once per
patch with that patch left out and runs the tests named here, which must fail (about a minute each: not for every CI
run).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED_BY: dict[str, list[str]] = {
    "engine": [],  # nothing builds without it
    "asserts": [],  # no mode but release builds without it
    "temporaries": ["test_translator.py::test_a_page_of_one_instruction"],
    "ram-addresses": ["test_memory.py::test_windows_have_translated_code_of_their_own"],
    "no-end-address": ["test_translator.py::test_code_at_linear_address_zero_runs"],
    "sse4a": ["test_translator.py::test_sse4a_is_undefined"],
    "lock-prefix": ["test_translator.py::test_lock_is_undefined_but_for_some_instructions_that_write_memory"],
    "exit-requests": ["test_execution.py::test_a_read_modify_write_is_executed_once_however_often_it_is_stopped"],
    "physical-address-bits": ["test_ept.py::test_the_shared_bit_selects_the_shared_ept"],
    "syscall": ["test_execution.py::test_syscall_and_sysret_follow_star_and_lstar"],
    "port-io": [
        "test_execution.py::test_port_io_exits_with_its_qualification",
        "test_execution.py::test_user_code_may_not_touch_a_port_that_its_bitmap_forbids",
    ],
    "code-tracking": ["test_execution.py::test_code_changed_through_another_alias_is_seen"],
    "native-exceptions": ["test_execution.py::test_a_guest_takes_its_own_exceptions_without_an_exit"],
    "nested-stage": ["test_ept.py::test_the_guest_runs_from_where_ept_says"],
    "unmap": ["test_memory.py::test_windows_go_whoever_is_loaded"],
    "debug-registers": [
        "test_debug_registers.py::test_an_instruction_breakpoint_is_a_linear_address",
        "test_debug_registers.py::test_a_data_breakpoint_traps_after_the_store",
    ],
    "stores": ["test_spins.py::test_one_that_works_is_never_taken_for_it"],
    "compare-exchange": ["test_execution.py::test_comparing_wide_operands_changes_zf_alone"],
    "fast-system-calls": [
        "test_transfers.py::test_sysenter_enters_the_kernel",
        "test_transfers.py::test_sysret_takes_no_reserved_flags",
    ],
    "stack-privilege": ["test_transfers.py::test_a_user_transfer_uses_the_stack_as_the_user"],
    "vex": ["test_undefined.py::test_what_cpuid_does_not_offer_is_undefined"],
    "sse": [
        "test_instructions.py::test_sse_and_mmx_instructions_do_what_the_host_does",
        "test_instructions.py::test_128_bits_of_memory_are_aligned_unless_the_instruction_says_otherwise",
    ],
    "global-pages": ["test_global_pages.py::test_mov_to_cr3_leaves_what_is_global"],
    "large-code-pages": ["test_global_pages.py::test_code_that_is_mapped_anew_is_executed"],
    "recent-blocks": [],  # it saves time and changes nothing
    "ordered-tsc": ["test_memory_order.py::test_no_pair_shows_what_the_processor_rules_out"],
    "kept-jumps": [],  # it saves time and changes nothing
    "pkru": [],  # it saves time and changes nothing
    "string-steps": [],  # it saves time and changes nothing
    "growing-tlb": ["test_growing_tlb.py::test_pages_of_a_loop_are_walked_for_a_few_times"],
    "table-words": [],  # it saves time and changes nothing
    "descriptor-bases": ["test_execution.py::test_descriptor_tables_have_canonical_bases"],
    "null-segments": ["test_transfers.py::test_a_return_to_the_user_leaves_the_bases_of_segments"],
    "nmi-window": ["test_nmi_window.py::test_the_window_opens_behind_the_shadow"],
    "protection-keys": ["test_protection_keys.py::test_a_page_that_was_read_obeys_the_keys"],
    "resume-flag": ["test_resume_flag.py::test_a_fault_sets_it"],
    "smsw": ["test_smsw.py::test_in_real_mode"],
    "divide": ["test_float_isolation.py::test_the_quotient_that_does_not_exist_is_de"],
    "x87": ["test_instructions.py::test_x87_instructions_do_what_the_host_does"],
    "stack-switch": ["test_stack_switch.py::test_in_compatibility_mode"],
    "split-stores": ["test_split_stores.py::test_a_store_over_two_pages_writes_all_or_nothing"],
    "whole-instructions": ["test_whole_instructions.py::test_a_fault_leaves_everything_as_it_was"],
    "x87-images": ["test_x87_pointers.py::test_fnstenv_in_protected_mode"],
    "canonical-addresses": ["test_canonical_addresses.py::test_a_reference_to_the_stack_is_ss"],
    "alignment": ["test_alignment.py::test_an_unaligned_access_is_ac"],
    "bus-locks": ["test_bus_lock.py::test_each_locked_instruction"],
    "bmi": ["test_bit_manipulation.py::test_a_field_at_the_edge_of_its_operand"],
    "avx": ["test_undefined.py::test_a_vex_prefix_selects_what_cpuid_offers_and_xcr0_enables"],
    "xsave": ["test_avx.py::test_the_compacted_form_has_them_behind_each_other"],
    "segment-limits": [
        "test_near_branches.py::test_an_indirect_branch_to_no_canonical_address_does_not_begin",
        "test_segment_limits.py::test_an_access_ends_at_the_limit",
    ],
    "page-ends": ["test_near_branches.py::test_code_up_to_the_end_of_a_page_is_executed"],
    "vmx-exits": ["test_execution.py::test_tdcall_exits_in_a_trust_domain_and_is_undefined_elsewhere"],
    "atomics": [
        "test_shared_memory.py::test_no_count_is_lost",
        "test_shared_memory.py::test_a_load_comes_after_the_store_before_the_fence",
    ],
    "page-bits": ["test_shared_memory.py::test_an_entry_that_is_taken_away_does_not_come_back"],
    "shared-code": ["test_shared_memory.py::test_code_that_another_one_writes_is_not_stale"],
    "waiting-loops": ["test_spins.py::test_one_that_polls_sleeps_until_what_it_waits_for_is_there"],
    "sixteen-bytes": ["test_memory_order.py::test_sixteen_aligned_bytes_are_one_access"],
    "counted": [
        "test_counting.py::test_each_instruction_counts_once",
        "test_counting.py::test_it_stops_at_the_instruction_asked_for",
    ],
    "barriers": [],  # what it mends takes hours to be met
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
    native = native_unicorn()
    assert sorted(NEEDED_BY) == sorted(native.patch_name(path) for path in native.series())


@pytest.mark.parametrize("name", [name for names in NEEDED_BY.values() for name in names])
def test_the_named_tests_exist(name: str) -> None:
    file, function = name.split("::")
    tree = ast.parse((Path(__file__).parent / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", native_unicorn().series(), ids=lambda path: path.stem)
def test_every_patch_is_a_message_and_a_diff(path: Path) -> None:
    message, _, diff = path.read_text().partition("\ndiff --git ")
    headers, _, why = message.partition("\n\n")
    subject = re.search(r"^Subject: \[PATCH\] ([a-z0-9-]+): (.+)$", headers, re.MULTILINE)
    assert subject
    assert subject[1] == path.stem.partition("-")[2]
    assert len(f"{subject[1]}: {subject[2]}") <= 72
    assert len(why.split()) > 5
    assert "\n@@ " in diff


def test_a_patch_whose_context_is_not_there_fails_loudly(tmp_path: Path) -> None:
    native = native_unicorn()
    for patch in native.series():
        for name in re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("not what we expect\n")
    with pytest.raises(native.BuildError, match=r"0001-engine.patch does not apply to Unicorn 2\.1\.4"):
        native.apply_series(tmp_path)


@pytest.mark.parametrize("name", ["a b", "it's", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a$b", "a;b", 'a"b', "a(b)"])
def test_the_engine_is_not_compiled_where_configure_would_split_the_path(name: str, tmp_path: Path) -> None:
    cache = tmp_path / name
    cache.mkdir()
    folder = native_unicorn().build_folder(cache)
    assert folder != cache
    assert not set(str(folder)) & set(" '\"$;()")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert native_unicorn().build_folder(plain) == plain


def test_the_cache_keeps_the_builds_that_were_used_last(tmp_path: Path) -> None:
    native = native_unicorn()
    for age in range(native.KEPT + 3):
        folder = tmp_path / f"engine-{age:016x}"
        folder.mkdir()
        (folder / native.LIBRARIES[0]).write_bytes(b"")
        os.utime(folder, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "linux").mkdir()
    native.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"engine-{age:016x}" for age in range(native.KEPT)), "linux",
    ]  # fmt: skip
