# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of the TDX module, and in what they differ: 1.5.06, and 1.0 as hosts of the year 2022 knew it.

A machine is made with one of them (``Platform.module_version``). Leaf functions ask a `ModuleVersion` for a named
behaviour or limit and never which version it is, so that another version is another entry of ``tables/versions.json``,
with CPUID and metadata tables of its own where they differ. What 1.0 does otherwise than 1.5.06:

* Which leaf functions there are. RAX has no version field, and there is no TDH.SYS.RD.
* Sizes and limits: a TDCS of exactly four pages, virtual CPUs of TDVPX pages, six configurable CPUID leaves.
* A TD has two flags in place of OP_STATE: TD_NOT_INITIALIZED, TD_INITIALIZED, TD_NOT_FINALIZED, TD_FINALIZED.
* Secure-EPT entries: 1.0 asks one question after the other (``entry_conditions``), each with a status of its own, and
  shows the entry to the host only when the walk to it failed. The questions: free, used, leaf (an entry of a 4 KiB page
  always is one), table, blocked, unblocked.
* A mapping is blocked and tracked before it goes, also while the TD is still being built.
* Status values have no FATAL bit, and some other names (``renamed``: by status, or by leaf function and status).

Source: TDX module 1.0, its public source; build date and number as the Linux of its time documents them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.lifecycle import OpState
from swtdx.seam.sept import ANY_BLOCKED, FREE, LEAF, STATE_MASK
from swtdx.seam.status import DETAILS_L2_MASK, FATAL, FormerStatus, Operand, Status, StatusCode
from swtdx.seam.tables import load

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}
_HIDDEN = frozenset({StatusCode.EPT_PAGE_NOT_FREE, StatusCode.EPT_INVALID_PROMOTE_CONDITIONS})
"""Statuses of 1.5 that show an entry where 1.0's do not."""


@dataclass(frozen=True, eq=False)
class ModuleVersion:
    """What is particular to one version of the module. Sizes in bytes."""

    name: str
    number: tuple[int, int, int, int]
    """Major, minor, update, internal."""
    build_date: int
    build_num: int
    features0: int
    """TDX_FEATURES0 as published; the module offers what of it is reproduced (`identity.features0`)."""
    sys_rd: bool
    """Whether there is TDH.SYS.RD."""
    leaf_versions: bool
    """Whether RAX 23:16 is the version of a leaf function; else it is a part of the leaf number."""
    tables: str
    """What the names of this version's CPUID and metadata tables end with."""
    exact_field_ids: bool
    """Metadata fields go by class, code and the non-architectural bit alone, which must all be right."""
    seamcalls: frozenset[str] | None
    """Leaf functions that there are; None: all."""
    tdcalls: frozenset[str] | None
    native_msrs: tuple[tuple[int, int, int], ...]
    """MSRs that TDH.SYS.INIT checks, in order: number, mask, wanted value."""
    misc_enable: tuple[int, int]
    """Mask and wanted value of IA32_MISC_ENABLE, checked after it is known not to limit CPUID."""
    fatal_bit: bool
    entropy_checks: bool
    """Whether TDs get random identities, for which there may be no entropy."""
    interrupts_remapping: bool
    """Whether PROMOTE and DEMOTE look for a pending interrupt."""
    tdr_flags: int
    """Bits of a TDR operand that are a flag to SEPT.ADD, SEPT.RD and DEMOTE."""
    min_tdcx: int
    max_tdcx: int
    tdcs_base_size: int
    max_tdvps_pages: int
    vcpu_page_type: int
    attributes_fixed0: int
    config_flags_fixed0: int
    max_vcpus: int
    max_hkids: int
    """KeyIDs of any kind that there may be."""
    highest_basic_cpuid: int
    free_entry: int
    """What a free Secure-EPT entry is, to a debugger who reads the root."""
    tcb_info_valid: int
    """TEE_TCB_INFO.VALID of reports."""
    has_svn2: bool
    tee_tcb_svn: str
    """TEE_TCB_SVN of the test identity, in hexadecimal."""
    always_tracks: bool
    """Whether BLOCK and TRACK come before every removal, not only once the TD can run."""
    finalize_needs_vcpus: bool
    lp_shutdown_shuts_down: bool
    entry_states: bool
    """Whether leaf functions check the state of a Secure-EPT entry (``tables/sept_transitions.json``) and report it.

    Otherwise they ask the questions of ``entry_conditions`` one after the other.
    """
    tdcs_before_op_state: bool
    """Whether missing TDCX pages are reported before the OP_STATE is checked."""
    addcx_checks_op_state: bool
    """Whether TDH.MNG.ADDCX refuses an initialized TD at once, and not only once the TDCS is complete."""
    promotes_pending: bool
    """Whether TDH.MEM.PAGE.PROMOTE merges pending pages, too."""
    td_params_checks: tuple[str, ...]
    """The rules of TDH.MNG.INIT in their order (`td_params`)."""
    op_state_errors: Mapping[str, int]
    """What is said in place of OP_STATE_INCORRECT, by leaf function or by state."""
    renamed: Mapping[tuple[int | None, int], tuple[int, int | None]]
    """(leaf number or None, status) of 1.5 -> status here, and its operand where that is another."""
    entry_conditions: Mapping[str, tuple[tuple[str, int], ...]]

    @cached_property
    def has_own_statuses(self) -> bool:
        """Whether a status of a leaf function must pass through `present`."""
        return bool(self.renamed) or not self.fatal_bit

    def wrong_op_state(self, leaf: int, state: OpState) -> Status:
        """Return why a leaf function is refused in this OP_STATE."""
        errors = self.op_state_errors
        if not errors:
            return Status(StatusCode.OP_STATE_INCORRECT)
        return Status(errors[_NAMES[leaf]] if _NAMES[leaf] in errors else errors[state.name])

    def check_entry(self, leaf: str, entry: int, level: int) -> None:
        """Check that a leaf function may act on an unlocked entry; raises the Status of a failed check."""
        if self.entry_states:
            if entry & STATE_MASK not in sept.ALLOWED[leaf]:
                raise sept.wrong_state(entry, level)
            return
        answers = _answers(entry, level)
        for question, status in self.entry_conditions[leaf]:
            if not answers[question]:
                raise Status(status, Operand.RCX)

    def entry_info(self, entry: int, level: int) -> dict[str, int]:
        """Return RCX and RDX for an entry that is shown to the host."""
        return sept.extended_info(entry, level) if self.entry_states else sept.former_info(entry, level)

    def present(self, status: int, leaf: int | None) -> tuple[int, bool]:
        """Translate a status of 1.5 into this version's; returns it and whether RCX and RDX still show an entry."""
        code, details = status & ~DETAILS_L2_MASK, status & DETAILS_L2_MASK
        new = self.renamed.get((leaf, code)) or self.renamed.get((None, code))
        shows = True
        if new is not None:
            shows = code not in _HIDDEN
            code = new[0]
            details = details if new[1] is None else new[1]
        if not self.fatal_bit and code != StatusCode.SUCCESS:
            code &= ~FATAL
        return code | details, shows


def _answers(entry: int, level: int) -> dict[str, bool]:
    free, blocked = entry == FREE, entry & STATE_MASK in ANY_BLOCKED
    leaf = bool(entry & LEAF) or level == 0
    return {"free": free, "used": not free, "leaf": leaf, "table": not leaf, "blocked": blocked,
            "unblocked": not blocked}  # fmt: skip


def _code(name: str) -> int:
    codes: tuple[type[IntEnum], ...] = (StatusCode, FormerStatus)
    return next(int(enum[name]) for enum in codes if name in enum.__members__)


def _renamed(rows: Mapping[str, list[str | None]]) -> Mapping[tuple[int | None, int], tuple[int, int | None]]:
    result: dict[tuple[int | None, int], tuple[int, int | None]] = {}
    for old, (new, operand) in rows.items():
        leaf, _, status = old.rpartition(" ")
        assert new is not None
        result[SEAMCALL_NUMBERS[leaf] if leaf else None, int(StatusCode[status])] = (
            _code(new),
            None if operand is None else int(Operand[operand]),
        )
    return MappingProxyType(result)


def _published(name: str, features0: str | None, new: str) -> dict[str, Any]:
    """What is known of a version beside what it has in common with another: 0 where nothing is."""
    number = [int(part) for part in name.split(".")]
    row: dict[str, Any] = {"number": [*number, 0], "build_date": 0, "build_num": 0}
    if features0 is None:
        return row
    for feature, follows in load("published_versions")["by_feature"].items():
        if int(features0, 16) & int(feature, 16):
            row |= follows
    return row | {"features0": features0}


@cache
def module_version(name: str) -> ModuleVersion:
    """Return the version called ``name``; raises ValueError if it does not exist."""
    rows: dict[str, dict[str, Any]] = load("versions")["versions"]
    published = load("published_versions")
    if name in published["versions"]:
        rows = rows | {name: rows[published["like"]] | _published(name, *published["versions"][name])}
    if name not in rows:
        raise ValueError(f"TDX module {name} is not available; there are {', '.join((*rows, *published['versions']))}")
    row: dict[str, Any] = {
        key: int(value, 16) if isinstance(value, str) and value[:2] == "0x" else value
        for key, value in rows[name].items()
    }
    names = {key: None if row[key] is None else frozenset(row[key]) for key in ("seamcalls", "tdcalls")}
    parsed: dict[str, Any] = names | {
        "number": tuple(row["number"]),
        "native_msrs": tuple(tuple(int(value, 16) for value in msr) for msr in row["native_msrs"]),
        "misc_enable": tuple(int(value, 16) for value in row["misc_enable"]),
        "td_params_checks": tuple(row["td_params_checks"]),
        "op_state_errors": {key: _code(value) for key, value in row["op_state_errors"].items()},
        "renamed": _renamed(row["renamed"]),
        "entry_conditions": {
            leaf: tuple((question, _code(status)) for question, status in conditions)
            for leaf, conditions in row["entry_conditions"].items()
        },
    }
    values: dict[str, Any] = row | parsed
    return ModuleVersion(name=name, **values)
