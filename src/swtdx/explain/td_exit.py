# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD exit: what TDH.VP.ENTER leaves in RAX, RCX (exit qualification), RDX (extended), R8 (GPA) and R9 (interruption).

The upper half of RAX is a status of class 0, the lower half the VMX exit reason (bit 31: the entry itself failed).

Sources: Intel TDX module ABI specification, TDH.VP.ENTER; Intel SDM volume 3, 28.2 (qualifications), appendix C.
"""

from __future__ import annotations

from typing import Any

from swtdx.cpu.vmx import reason_name
from swtdx.explain import table
from swtdx.seam.status import DETAILS_L2_MASK, ERROR, FATAL, NON_RECOVERABLE, StatusCode
from swtdx.seam.tables import load as module_table

ENTRY_FAILED = 1 << 31
EPT_VIOLATION, EPT_MISCONFIG, EXCEPTION = 48, 49, 0
_EXIT_CODES = {
    StatusCode.SUCCESS,
    StatusCode.NON_RECOVERABLE_VCPU,
    StatusCode.NON_RECOVERABLE_TD,
    StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE,
    StatusCode.NON_RECOVERABLE_TD_CORRUPTED_MD,
    StatusCode.HOST_PRIORITY_BUSY_TIMEOUT,
    StatusCode.CROSS_TD_FAULT,
    StatusCode.CROSS_TD_TRAP,
    StatusCode.NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    0x4000_0002 << 32,  # module 1.0's NON_RECOVERABLE_TD
    0x4000_0005 << 32,  # and NON_RECOVERABLE_TD_FATAL
}
_ACCESSES = ((1, "read"), (2, "write"), (4, "instruction fetch"))
_ALLOWED = ((8, "read"), (16, "write"), (32, "execute"))
_EVENTS = {0: "external interrupt", 2: "NMI", 3: "hardware exception", 4: "software interrupt", 6: "software exception"}
_VECTORS = {2: "NMI", 18: "machine check"}


def is_td_exit(value: int) -> bool:
    """Whether a status is what TDH.VP.ENTER returns when the guest has been left."""
    return value & ~DETAILS_L2_MASK in _EXIT_CODES


def td_exit(value: int, outputs: dict[str, int]) -> dict[str, Any]:
    """A TD exit as a dictionary for JSON; ``outputs`` has those of rcx, rdx, r8 and r9 that are known."""
    code, reason = value & ~DETAILS_L2_MASK, value & 0xFFFF
    row = table("statuses")["exits"].get(str(reason))
    name = row[0] if row else reason_name(reason)
    found: dict[str, Any] = {
        "status": f"{value:#018x}",
        "name": StatusCode(code).name if code in set(StatusCode) else "NON_RECOVERABLE_TD",
        "leaf": "TDH.VP.ENTER",
        "error": bool(value & ERROR),
        "recoverable": not value & NON_RECOVERABLE,
        "fatal": bool(value & FATAL),
        "exit_reason": {"number": reason, "name": name},
    }
    if value & ENTRY_FAILED:
        found["exit_reason"]["entry_failed"] = True
    meaning, remedy = (row[1], row[2]) if row else (f"The guest was left for VMX exit reason {reason}.", "")
    if not code:
        found["name"] = f"TD exit {name}"
    else:
        own = table("statuses")["statuses"][found["name"]]
        meaning, remedy = f"{own[0]} {meaning}", own[1]
    if reason == EPT_VIOLATION and "rcx" in outputs:
        found["qualification"] = _ept_violation(outputs["rcx"])
    elif "rcx" in outputs:
        found["qualification"] = {"value": f"{outputs['rcx']:#x}"}
    if "rdx" in outputs:
        found["extended"] = _extended(outputs["rdx"])
        if not code and outputs["rdx"] & 0xF == 6:
            remedy = (
                "The guest must accept the page (TDG.MEM.PAGE.ACCEPT) before it uses it; KVM treats the VM as dead. "
                "Without ATTRIBUTES.SEPT_VE_DISABLE the guest gets a #VE in place of this exit."
            )
    if "r8" in outputs:
        found["gpa"] = _gpa(outputs["r8"])
    if "r9" in outputs:
        found["interruption"] = _interruption(outputs["r9"])
    found["meaning"], found["remedy"] = meaning, remedy
    return found


def _named(value: int, names: tuple[tuple[int, str], ...]) -> list[str]:
    return [name for bit, name in names if value & bit]


def _ept_violation(qualification: int) -> dict[str, Any]:
    """Bits 2:0: the access; 5:3: what the entry allows; 7 and 8 (shared addresses only): the linear address."""
    found: dict[str, Any] = {
        "value": f"{qualification:#x}",
        "access": _named(qualification, _ACCESSES),
        "entry_allows": _named(qualification, _ALLOWED),
    }
    if qualification & 1 << 7:
        found["during"] = "the access itself" if qualification & 1 << 8 else "the walk of the guest's page tables"
    return found


def _extended(value: int) -> dict[str, Any]:
    """RDX: type 3:0; information 63:32 (levels, the Secure-EPT entry's state, L2 VM)."""
    kind = value & 0xF
    name, meaning = table("statuses")["extended"].get(str(kind), (f"type {kind}", "unknown"))
    found: dict[str, Any] = {"value": f"{value:#x}", "type": name, "meaning": meaning}
    information = value >> 32
    if kind in (1, 5):
        states = {row["arch_state"]: state for state, row in module_table("sept_transitions")["states"].items()}
        state = information >> 6 & 0xFF
        found |= {
            "required_level": information & 7,
            "level": information >> 3 & 7,
            "entry_state": states.get(state, str(state)),
            "leaf_entry": bool(information >> 14 & 1),
        }
        if vm := information >> 20 & 3:
            found["l2_vm"] = vm
    return found


def _gpa(value: int) -> dict[str, Any]:
    """The page, and its nature: the shared bit is bit 47 of a TD with 48-bit addresses, bit 51 with 52."""
    shared = [bit for bit in (47, 51) if value >> bit & 1]
    return {
        "page": f"{value & ~0xFFF:#x}",
        "nature": f"shared, if bit {shared[-1]} is the shared bit" if shared else "private",
    }


def _interruption(value: int) -> dict[str, Any]:
    """R9: vector 7:0, type 10:8, error code 11, valid 31."""
    if not value >> 31 & 1:
        return {"value": f"{value:#x}", "valid": False}
    vector, kind = value & 0xFF, value >> 8 & 7
    return {
        "value": f"{value:#x}",
        "valid": True,
        "vector": vector,
        "name": _VECTORS.get(vector, f"vector {vector}"),
        "type": _EVENTS.get(kind, str(kind)),
    }
