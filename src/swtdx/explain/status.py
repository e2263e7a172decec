# SPDX-License-Identifier: GPL-2.0-or-later
"""A completion status (RAX, hw_error) taken apart: which rule of which leaf function, and what to do."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from swtdx.explain import Rule, entry_rules, leaves, table
from swtdx.explain.td_exit import is_td_exit, td_exit
from swtdx.seam.status import (
    DETAILS_L2_MASK,
    ERROR,
    FATAL,
    HOST_RECOVERABILITY_HINT,
    NON_RECOVERABLE,
    Operand,
    StatusCode,
)
from swtdx.seam.tables import load as module_table

VP_ENTER = "TDH.VP.ENTER"
VP_VMCALL = "TDG.VP.VMCALL"
_CLASSES_WITH_OPERAND = (1, 2, 3, 11)
UNKNOWN = "unknown"
_OF_VMCALL = "TDVMCALL_STATUS_"
_ENTRY_SIZES = ("4 KiB", "2 MiB", "1 GiB", "512 GiB", "256 TiB")
_PAGE_SIZES = ("4 KiB", "2 MiB", "1 GiB")


def parse_status(text: str) -> int | None:
    """A status as people write it, or None if it is none.

    >>> hex(parse_status("0xc000010000000001")), hex(parse_status("OPERAND_BUSY|SEPT_TREE"))
    ('0xc000010000000001', '0x8000020000000092')
    >>> hex(parse_status("TDX_EPT_WALK_FAILED")), parse_status("EINVAL")
    ('0xc0000b0000000000', None)
    """
    # A log can have it without 0x. Decimal statuses of errors have 19 digits, never 16.
    if re.fullmatch(r"[0-9a-fA-F]{16}", text) and is_known(int(text, 16)):
        return int(text, 16)
    try:
        return int(text, 0)
    except ValueError:
        pass
    name, _, operand = (part.strip() for part in _plain(text).partition("|"))
    if name not in _codes() or (operand and operand not in Operand.__members__):
        return None
    return _codes()[name] | (Operand[operand] if operand else 0)


def is_name_alone(text: str) -> bool:
    """Whether a status was written as a name without its operand, as ``OPERAND_BUSY``."""
    return _plain(text) in _codes()


def leaf_of_status(text: str) -> str:
    """TDG.VP.VMCALL for the name of a TDVMCALL's result, which the VMM gives and not the module; else nothing."""
    return VP_VMCALL if _plain(text).startswith(_OF_VMCALL) and _plain(text) in _codes() else ""


def _plain(text: str) -> str:
    """A status's name without what Linux puts before it; the result of a TDVMCALL as Linux names it."""
    return text.upper().removeprefix("TDX_").replace("TDG.VP.VMCALL_", _OF_VMCALL)


@cache
def _codes() -> dict[str, int]:
    """Every status by name, of other versions of the module where 1.5.06 has none of that name."""
    others = {row[0]: int(code, 16) for code, row in table("statuses")["other_versions"].items()}
    linux = {f"SEAMCALL_{row[0]}": int(code, 16) for code, row in table("statuses")["linux"].items()}
    rows = table("statuses")["tdvmcall"].items()
    vmcalls = {_OF_VMCALL + row[0]: int(code, 16) for code, row in rows if code != "columns"}
    return others | linux | vmcalls | {code.name: code.value for code in StatusCode}


def parse_leaf(text: str) -> str | None:
    """A leaf function as people write it: ``TDH.MNG.INIT``, ``tdh_mng_init``, ``MNG.INIT``; None if there is none.

    >>> parse_leaf("tdh_mem_page_add"), parse_leaf("MR.REPORT"), parse_leaf("TDH.MEM")
    ('TDH.MEM.PAGE.ADD', 'TDG.MR.REPORT', None)
    """
    wanted = re.sub(r"[._]", ".", text.upper())
    return next((name for name in leaves() if wanted in (name, name.partition(".")[2])), None)


def complete_leaf(incomplete: str) -> list[str]:
    """For a shell: the leaf functions that begin so."""
    return [name for name in leaves() if name.startswith(incomplete.upper().replace("_", "."))]


def explain_status(
    value: int,
    leaf: str | None = None,
    outputs: dict[str, int] | None = None,
    *,
    candidates: tuple[str, ...] = (),
    any_operand: bool = False,
) -> dict[str, Any]:
    """What a 64-bit status says, as a dictionary for JSON.

    ``leaf``: the function that answered it; ``candidates``: functions one of which answered it. ``outputs``: registers
    that came with it (rcx, rdx; of a TD exit also r8, r9). ``any_operand``: of the status only the name is known.
    """
    if leaf is None and len(candidates) == 1:
        leaf = candidates[0]
    if (value or leaf == VP_ENTER) and leaf in (None, VP_ENTER) and is_td_exit(value):
        return td_exit(value, outputs or {})
    if other := _of_others(value, leaf):
        return other
    code, detail = value & ~DETAILS_L2_MASK, value & DETAILS_L2_MASK
    name, version, meaning, remedy = known_status(code)
    found: dict[str, Any] = {
        "status": f"{value:#018x}",
        "name": name,
        "class": table("statuses")["classes"].get(str(value >> 40 & 0xFF), "unknown"),
        "error": bool(value & ERROR),
        "recoverable": not value & NON_RECOVERABLE,
        "fatal": bool(value & FATAL),
        "meaning": meaning,
    }
    if value & HOST_RECOVERABILITY_HINT:
        found["host_can_recover"] = True
    if name == UNKNOWN:
        return found
    found["remedy"] = remedy
    if version:
        found["module_version"] = version
    operand = None if any_operand else _operand(code, name, detail)
    if operand is not None:
        found["operand"] = operand
        if operand in table("statuses")["operands"]:
            found["operand_is"] = table("statuses")["operands"][operand]
    elif not any_operand and (text := _detail(name, detail)):
        found["detail"] = text
    if leaf is not None:
        found["leaf"] = leaf
        if operand is not None and (of_leaf := _operand_of_leaf(leaf, operand)):
            found["operand_of_leaf"] = of_leaf
        _put_rules(found, broken(leaf, name, operand))
    elif value & ERROR:
        answers = [each for each in candidates or leaves() if broken(each, name, operand)]
        if len(answers) == 1:
            return explain_status(value, answers[0], outputs, any_operand=any_operand)
        found["leaves"] = answers
    found |= _extended_information(name, operand, outputs or {})
    return found


def _extended_information(name: str, operand: str | None, outputs: dict[str, int]) -> dict[str, Any]:
    """What RCX and RDX tell beside some errors: a Secure-EPT entry, or a CPUID leaf of TD_PARAMS."""
    if operand == "CPUID_CONFIG" and outputs.get("rcx"):
        leaf, subleaf = outputs["rcx"] & 0xFFFF_FFFF, outputs["rcx"] >> 32
        return {"cpuid": {"leaf": f"{leaf:#x}", "subleaf": None if subleaf == 0xFFFF_FFFF else subleaf}}
    if "rdx" not in outputs or not (name.startswith(("EPT_", "GPA_RANGE_")) or name == "OPERAND_BUSY"):
        return {}
    states = {row["arch_state"]: state for state, row in module_table("sept_transitions")["states"].items()}
    level, state = outputs["rdx"] & 7, outputs["rdx"] >> 8 & 0xFF
    return {
        "entry": {
            "value": f"{outputs.get('rcx', 0):#x}",
            "level": level,
            "size": _ENTRY_SIZES[level] if level < len(_ENTRY_SIZES) else "",
            "state": states.get(state, str(state)),
        }
    }


def is_known(value: int) -> bool:
    """Whether a number is a status of some module, of Linux or of the GHCI, a TD exit's included."""
    return known_status(value & ~DETAILS_L2_MASK)[0] != UNKNOWN or _of_others(value, None) is not None


def _of_others(value: int, leaf: str | None) -> dict[str, Any] | None:
    """A status that is not the module's: the result of a TDVMCALL, or one that Linux made up."""
    row = table("statuses")["tdvmcall"].get(f"{value:#x}") if leaf == VP_VMCALL or value >> 60 == 8 else None
    of = "a TDVMCALL, in R10"
    if row is None:
        row, of = table("statuses")["linux"].get(f"{value:#018x}"), "Linux"
    if row is None:
        return None
    name, meaning, remedy = row
    return {"status": f"{value:#018x}", "name": name, "of": of, "meaning": meaning, "remedy": remedy}


def broken(leaf: str, status: str, operand: str | None) -> list[Rule]:
    """The rules of a leaf function that are answered with that status (and operand)."""
    rules = [*entry_rules(leaf), *leaves()[leaf]]
    matching = [rule for rule in rules if rule.status == status and rule.operand in ("", operand or rule.operand)]
    return matching or [rule for rule in rules if rule.status in _now(leaf, status, operand)]


def _now(leaf: str, status: str, operand: str | None) -> set[str]:
    """What module 1.5 says where module 1.0 said that."""
    found = set()
    for version in module_table("versions")["versions"].values():
        if status in version["op_state_errors"].values():
            found.add("OP_STATE_INCORRECT")
        if status in {answer for _, answer in version["entry_conditions"].get(leaf.replace(".", "_"), ())}:
            found.add("EPT_ENTRY_STATE_INCORRECT")
        for key, (former, former_operand) in version["renamed"].items():
            only, _, name = key.rpartition(" ")
            if former == status and former_operand in (None, operand) and only in ("", leaf):
                found.add(name)
    return found


def _put_rules(found: dict[str, Any], rules: list[Rule]) -> None:
    if rules:
        found["rules"] = [rule.text for rule in rules]
        own = [rule.remedy for rule in rules if rule.remedy]
        if own:
            found["remedy"] = " ".join(own)


def known_status(code: int) -> tuple[str, str, str, str]:
    """(name, version, meaning, what to do) of a status with DETAILS_L2 zero.

    The version is empty for module 1.5.06; it names another module where only that one has the status.
    """
    own = table("statuses")["statuses"]
    if code in set(StatusCode):
        name = StatusCode(code).name
        return (name, "", *own[name])
    if row := table("statuses")["other_versions"].get(f"{code:#018x}"):
        name, version, *words = row
        return (name, version, *(words or own[name]))
    return UNKNOWN, "", "No status of the TDX module, of Linux or of the GHCI: look whether it was copied whole.", ""


def _operand(code: int, name: str, detail: int) -> str | None:
    """The operand that DETAILS_L2 names; None for a status that names none."""
    if code >> 40 & 0xFF not in _CLASSES_WITH_OPERAND or name in table("statuses")["details"]:
        return None
    if not code & ERROR or (not detail and not name.startswith("OPERAND")):
        return None
    return Operand(detail).name if detail in set(Operand) else f"{detail:#x}"


def _detail(name: str, detail: int) -> str:
    template = table("statuses")["details"].get(name)
    if template is None:
        return f"{detail:#x}" if detail else ""
    parts = detail.to_bytes(4, "little")
    size = _PAGE_SIZES[parts[1]] if parts[1] < len(_PAGE_SIZES) else f"size {parts[1]}"
    text: str = template.format(detail, *parts, size=size, high=detail >> 16, low=detail & 0xFFFF)
    return text


def _operand_of_leaf(leaf: str, operand: str) -> str | None:
    """What a register is to a leaf function, by the module's own table."""
    kind = "seamcall" if leaf.startswith("TDH") else "tdcall"
    inputs = module_table("operands")[kind].get(leaf, ["", ""])[-2]
    named = {part.partition(":")[0]: part.partition(":")[2].partition("@")[0] for part in inputs.split()}
    return named.get(operand.lower())
