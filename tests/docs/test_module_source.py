# SPDX-License-Identifier: GPL-2.0-or-later
"""``docs/module-source.json`` has a row for all that the module dispatches and for each function of KVM's half."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.hardware import ExitReason
from swtdx.seam.module import TdxModule
from swtdx.seam.tables import load
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.seam.tdg.vm_exits import HANDLERS
from testing.places import REPOSITORY
from tests.linux import kernel_names

assert TdxModule.seamcall is not None, "the leaf functions are registered with it"
READING = json.loads((REPOSITORY / "docs" / "module-source.json").read_text(encoding="utf-8"))
KVM: dict[str, dict[str, list[str]]] = READING["kvm"]
GONE: dict[str, list[str]] = READING["kvm_gone"]
VERDICTS = ("equal", "differs")


def expected() -> dict[str, list[str]]:
    cpuid, msr = load("cpuid")["leaves"], load("msr")["rows"]
    return {
        "leaves": [*SEAMCALL_NUMBERS, *TDCALL_NUMBERS],
        "exits": [ExitReason(reason).name for reason in sorted(HANDLERS)],
        "cpuid": [leaf if subleaf is None else f"{leaf}.{subleaf}" for leaf, subleaf, *_ in cpuid],
        "msrs": [first if first == last else f"{first}-{last}" for _, first, last, *_ in msr],
    }


@pytest.mark.parametrize("part", ["leaves", "exits", "cpuid", "msrs"])
def test_there_is_a_row_for_each(part: str) -> None:
    assert list(READING[part]) == expected()[part]


@pytest.mark.parametrize("part", ["parts", "leaves", "exits", "cpuid", "msrs"])
def test_each_row_has_a_verdict_and_a_difference_its_words(part: str) -> None:
    rows: dict[str, Any] = READING[part]
    for key, (*_, verdict, words) in rows.items():
        assert verdict in VERDICTS, key
        assert bool(words) or verdict == "equal", key


def test_what_is_not_reproduced_was_read_too() -> None:
    """Of features that the module reports as absent there is nothing but a difference, or a state that cannot be."""
    absent = ("TDH.EXPORT.", "TDH.IMPORT.", "TDH.MIG.", "TDH.SERVTD.")
    rows = {name: row for name, row in READING["leaves"].items() if name.startswith(absent)}
    assert set(rows) == {name for name in SEAMCALL_NUMBERS if name.startswith(absent)}
    assert all(words for _, _, words in rows.values())


# --- KVM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [file for file in kernel_names.NAMES if file != "virt/kvm/guest_memfd.c"])
def test_there_is_a_row_for_each_function_of_the_kernel(file: str) -> None:
    """The list of names is that of 6.16, from which 7.2 has lost some; each of those is in no row."""
    listed, rows, gone = set(kernel_names.NAMES[file]), set(KVM[file]), set(GONE[file])
    assert listed <= rows | gone
    assert not rows & gone
    assert gone <= listed


@pytest.mark.parametrize("file", KVM)
def test_each_function_has_a_verdict_its_checks_and_words_for_what_is_not_simply_here(file: str) -> None:
    here = kernel_names.defined()
    for name, (verdict, checks, words) in KVM[file].items():
        assert verdict in VERDICTS, name
        assert checks, name
        # What is equal under its own name needs no more words; all else says what differs, or where it is.
        assert bool(words) or (verdict == "equal" and name in here), name


def test_each_kind_of_operation_of_a_td_is_read() -> None:
    """Whatever `vmx/main.py` puts into the table of operations for TDs has a row in main.c or tdx.c."""
    rows = {name for functions in KVM.values() for name in functions}
    made_here = {"vt_vcpu_kick", "vt_sync_regs_load", "vt_sync_regs_store", "vt_translate", "vt_has_interrupt"} | {
        *("vt_get_tsc_offset", "vt_read_l1_tsc", "vt_inject_machine_check"),
        *(f"vt_{verb}_{what}" for verb in ("get", "set") for what in ("regs", "sregs", "fpu", "xsave", "xcrs")),
        *("vt_get_debugregs", "vt_set_debugregs", "vt_get_lapic", "vt_set_lapic", "vt_set_guest_debug"),
    }
    wrappers = {name for name in kernel_names.defined() if name.startswith("vt_") and name != "vt_x86_ops"}
    assert wrappers - made_here - rows <= {"vt_msr_filter_changed"}
