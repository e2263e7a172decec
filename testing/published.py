# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests expect of published material, without the material: digests, names in order, two MRTDs.

``published.json`` beside this file is computed from the reference material (`reference_directory`), never from swtdx:
``python -m testing.published`` writes it, and tests/published/test_facts.py says when it is out of date. So a clone
without the material compares the same facts as one that has it; only where a table differs it cannot show the row.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from testing.places import reference_directory

_FACTS = Path(__file__).with_suffix(".json")
REGISTERS = ("eax", "ebx", "ecx", "edx")
CPUID_COLUMNS = ("fixed1", "fixed0_or_dynamic", "config_direct", "allow_direct", "verify_mask", "verify_value")
_FIELD = ("name", "field_id", "elem_size", "num_fields", "num_elem")
_MASKS = ("prod_rd_mask", "prod_wr_mask", "dbg_rd_mask", "dbg_wr_mask")
METADATA_COLUMNS = {
    "SYS": (*_FIELD, "vmm_rd_mask", "guest_rd_mask"),
    "TD": (*_FIELD, *_MASKS, "guest_rd_mask", "guest_wr_mask"),
    "VP": (*_FIELD, *_MASKS, "guest_rd_mask", "guest_wr_mask"),
    "VP_VMCS": (*_FIELD, *_MASKS),
}
VERSION = "1.5.06"


@cache
def facts() -> dict[str, Any]:
    """Return the checked-in facts."""
    content: dict[str, Any] = json.loads(_FACTS.read_text("ascii"))
    return content


def digest(table: Any) -> str:
    """Return the SHA-256 of a table in the one JSON form that it has."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checks() -> dict[str, list[str]]:
    """{leaf function: its answers (``NAME`` or ``NAME|OPERAND``) in the order of the published checks}."""
    content: dict[str, list[str]] = facts()["checks"]
    return content


def statuses_of_checks() -> dict[str, set[str]]:
    """{leaf function: names of the statuses in its published checks}."""
    return {leaf: {answer.partition("|")[0] for answer in answers} for leaf, answers in checks().items()}


# --- the forms in which tables are compared: of the published ones here, of swtdx's in the tests ----------------------


def _material(directory: Path, name: str) -> Any:
    return json.loads((directory / "tdx-module" / f"{name}.json").read_text())


def leaves(directory: Path) -> Any:
    """{kind: {leaf function: number}}."""
    published = _material(directory, "leaves")
    return {kind: {leaf["name"]: leaf["num"] for leaf in published[kind]} for kind in ("seamcall", "tdcall")}


def op_states(directory: Path) -> Any:
    """Return the states with their numbers, and the states in which each leaf function is allowed."""
    published = _material(directory, "op_states")[VERSION]
    return {"states": published["states"], "allowed": published["seamcall_allowed"]}


def sept_transitions(directory: Path) -> Any:
    """Return entry bits and architectural number of each state, allowed states, and moves that have no condition."""
    published = _material(directory, "sept_transitions")[VERSION]
    states = published["states"]
    moves = {
        leaf: {old: old if new == "unchanged" else new.split()[0].rstrip(";") for old, new in rows.items()}
        for leaf, rows in published["transitions"].items()
    }
    allowed = published["seamcall_allowed_entry_states"] | published["tdcall_allowed_entry_states"]
    return {
        "states": {name: [int(state["entry_bits"], 16), state["arch_state"]] for name, state in states.items()},
        "allowed": {leaf: sorted(names) for leaf, names in allowed.items()},
        "transitions": {leaf: rows for leaf, rows in moves.items() if {*rows, *rows.values()} <= set(states)},
    }


def cpuid(directory: Path, version: str = VERSION) -> Any:
    """Return rows of CPUID virtualization and the order of TD_PARAMS.CPUID_CONFIG."""
    published = _material(directory, "cpuid_virtualization")[version]
    rows = []
    for leaf in published["leaves"]:
        indices = [leaf["config_index"], leaf["lookup_index"], leaf["ve_always"]] if version == VERSION else []
        values = [[int(leaf[column][register], 16) for register in REGISTERS] for column in CPUID_COLUMNS]
        rows.append([int(leaf["leaf"], 16), leaf["subleaf"], indices, values])
    order = [[int(entry["leaf"], 16), entry["subleaf"]] for entry in published["cpuid_config_order"]]
    return {"rows": sorted(rows, key=repr), "order": order}


def msr(directory: Path) -> Any:
    """Return rows of MSR virtualization: name, first, last, read, write."""
    columns = ("name", "first", "last", "read", "write")
    return [[row[column] for column in columns] for row in _material(directory, "msr_virtualization")[VERSION]]


def metadata(directory: Path) -> Any:
    """{context: its fields, each as the columns of `METADATA_COLUMNS`}."""
    published = _material(directory, "metadata_fields")[VERSION]
    return {
        context: [[row.get(column, "0x0") for column in columns] for row in published[context]]
        for context, columns in METADATA_COLUMNS.items()
    }


def statuses(directory: Path) -> Any:
    """{status or operand: value} of the version that is reproduced."""
    published = _material(directory, "status_codes")
    return {
        "codes": {
            name.removeprefix("TDX_"): int(code["value"], 16)
            for name, code in published["codes"].items()
            if VERSION in code["in_versions"]
        },
        "operands": {name: o["value"] for name, o in published["operand_ids"].items() if VERSION in o["in_versions"]},
    }


def statuses_of_other_versions(directory: Path) -> Any:
    """Return [name, value] of what other versions answer and the reproduced one does not."""
    published = _material(directory, "status_codes")["codes"]
    ours = set(statuses(directory)["codes"].values())
    found = {
        (name.removeprefix("TDX_"), int(value, 16))
        for name, row in published.items()
        for value in (row["value"], *row.get("differs_in", {}).values())
        if int(value, 16) not in ours
    }
    return sorted([name, value] for name, value in found)


def statuses_1_0(directory: Path) -> dict[str, str]:
    """{value, DETAILS_L2 zero: name} of module 1.0."""
    return {
        code.get("differs_in", {}).get("1.0", code["value"]): name.removeprefix("TDX_")
        for name, code in _material(directory, "status_codes")["codes"].items()
        if "1.0" in code["in_versions"]
    }


# --- what the file holds ----------------------------------------------------------------------------------------------


def _answers(text: str, sequences: Mapping[str, list[str]], codes: list[str]) -> list[str]:
    """Return the statuses (``NAME|OPERAND``) that a published check names, its sequences written out in place.

    Sequences are HPA4K, TDR, STATE, GPA, WALK, ENTRY, TRACKED and TDVPR, which many leaf functions share.
    """
    found: list[tuple[float, str]] = []
    for code in codes:
        for match in re.finditer(rf"(?<![A-Z_0-9]){code}(?![A-Z_0-9])(\|[A-Z0-9_]+)?", text):
            found.append((match.start(), code + (match[1] or "")))
    for name, steps in sequences.items():
        base = name.split("(")[0]
        bare = base in ("STATE", "ENTRY") or "(" not in name
        for match in re.finditer(rf"(?<![A-Z_0-9.]){base}" + (r"(?![A-Z_0-9=])" if bare else r"\(([^)]*)\)"), text):
            operand = "" if bare else match[1].split(",")[0]
            for number, check in enumerate(steps):
                inner = _answers(re.sub(r"\bop\b", operand, check) if operand else check, sequences, codes)
                found += [(match.start() + number / 100 + place / 10_000, each) for place, each in enumerate(inner)]
    return [each for _, each in sorted(found)]


def answers_of_checks(directory: Path) -> dict[str, list[str]]:
    """{leaf function: its answers in the order of the checks}."""
    published = _material(directory, "leaves")
    codes = sorted((code for code in statuses(directory)["codes"] if code != "SUCCESS"), key=len, reverse=True)
    return {
        leaf["name"]: list(
            dict.fromkeys(
                answer for check in leaf["checks"] for answer in _answers(check, published["check_sequences"], codes)
            )
        )
        for leaf in (*published["seamcall"], *published["tdcall"])
    }


def firmware(directory: Path) -> dict[str, Any]:
    """{SHA-256 of a distribution's firmware: its sections, and its MRTD in both orders}."""
    vectors = json.loads((directory / "vectors" / "tdvf_metadata_and_mrtd.json").read_text())
    members = ("sections", "mrtd_per_page", "mrtd_per_region")
    return {row["sha256"]: {member: row[member] for member in members} for row in vectors.values() if "sections" in row}


TABLES: dict[str, Callable[[Path], Any]] = {
    "leaves": leaves,
    "op_states": op_states,
    "sept_transitions": sept_transitions,
    "cpuid": cpuid,
    "cpuid-1.0": lambda directory: cpuid(directory, "1.0"),
    "msr": msr,
    "metadata": metadata,
    "statuses": statuses,
    "statuses of other versions": statuses_of_other_versions,
}


def from_material(directory: Path) -> dict[str, Any]:
    """Return what ``published.json`` has to hold."""
    return {
        "digests": {name: digest(table(directory)) for name, table in TABLES.items()},
        "checks": answers_of_checks(directory),
        "statuses_1_0": statuses_1_0(directory),
        "firmware": firmware(directory),
    }


if __name__ == "__main__":
    _FACTS.write_text(json.dumps(from_material(reference_directory()), indent=1) + "\n", "ascii")
    sys.stdout.write(f"{_FACTS}\n")
