# SPDX-License-Identifier: GPL-2.0-or-later
"""Every status that the published list of checks gives a leaf function has been met by some test, or cannot be.

The list is that of testing/published.json. `compare` looks at what the tests of the directory met when the run ends: it
means something only when all of them ran.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swtdx.seam.status import StatusCode
from testing import published, tally

CODES_BY_VALUE = {code.value for code in StatusCode}
PARTITIONING = "TD partitioning is not reproduced: there is no L2 virtual machine and no Secure EPT for one"
SERVICE_TD = "service TDs are not reproduced: none is bound, which is checked first"
NO_SUCH_HARDWARE = "the emulated processor has nothing of the kind that could be wrong"
ALIKE = "the emulated logical processors are alike"
OWN_CLOCK = (
    "the time-stamp counter does not go back; a host that writes it changes IA32_TSC_ADJUST, which is found first"
)
CANNOT = {
    **dict.fromkeys(
        [
            ("TDG.VP.ENTER", "PENDING_INTERRUPT"),
            ("TDH.MEM.PAGE.DEMOTE", "L2_SEPT_PAGE_NOT_PROVIDED"),
            ("TDH.MEM.SEPT.ADD", "L2_SEPT_ENTRY_NOT_FREE"), ("TDH.MEM.SEPT.ADD", "L2_SEPT_WALK_FAILED"),
        ],
        PARTITIONING,
    ),
    **dict.fromkeys(
        [
            ("TDG.SERVTD.RD", status)
            for status in (
                "SERVTD_INFO_HASH_MISMATCH", "SERVTD_UUID_MISMATCH",
            )
        ],
        SERVICE_TD,
    ),
    **dict.fromkeys(
        [
            ("TDH.SYS.INIT", status)
            for status in (
                "INCOMPATIBLE_SEAM_CAPABILITIES", "SYS_INCOMPATIBLE_SIGSTRUCT",
            )
        ],
        NO_SUCH_HARDWARE,
    ),
    **dict.fromkeys(
        [
            ("TDH.SYS.LP.INIT", status)
            for status in ("INCOMPATIBLE_SEAM_CAPABILITIES", "INCONSISTENT_CPUID_FIELD")
        ],
        ALIKE,
    ),
    ("TDH.MEM.RD", "EPT_ENTRY_STATE_INCORRECT"): "in each state in which a page is present it can be read",
    ("TDG.MEM.PAGE.ACCEPT", "OPERAND_BUSY_HOST_PRIORITY"): "the guest is told OPERAND_BUSY",
    ("TDG.SERVTD.RD", "CROSS_TD_TRAP"): "the status of a TD exit: the guest is told what is wrong with the other TD",
    ("TDH.VP.ENTER", "TSC_ROLLBACK"): OWN_CLOCK,
    ("TDG.MR.REPORT", "OPERAND_BUSY_HOST_PRIORITY"): "host-priority locks of a TD's structures are not reproduced",
    ("TDG.SYS.RDALL", "METADATA_LIST_OVERFLOW"): "the module's fields fit into one page",
    ("TDH.SYS.RDALL", "METADATA_LIST_OVERFLOW"): "the module's fields fit into one page",
    ("TDH.SYS.RD", "METADATA_FIELD_NOT_READABLE"): "the host may read all of the module's fields",
}  # fmt: skip
"""What an emulation without these features, or with this processor, cannot be made to say."""


def coverage(met_pairs: Any) -> Any:
    """(listed pairs that were met, listed pairs, those that nothing met although they can be, and the reverse)."""
    wanted = {(leaf, status) for leaf, statuses in published.statuses_of_checks().items() for status in statuses}
    met = {
        (leaf, StatusCode(rax & ~0xFFFF_FFFF).name) for leaf, rax in met_pairs if rax & ~0xFFFF_FFFF in CODES_BY_VALUE
    }
    return wanted & met, wanted, (wanted - met) ^ set(CANNOT)


def compare(session: pytest.Session) -> None:
    """Compare the statuses that the whole run met with the published list, if all tests of this directory ran."""
    tests = {f"tests/seam/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    if not tests <= tally.ran() or session.config.option.keyword or session.config.option.collectonly:
        return
    met, wanted, wrong = coverage(tally.gathered("statuses"))
    cannot = len(wanted - met)
    tally.LINES.append(f"(leaf, status): {len(met)} of {len(wanted)} listed pairs met; cannot be met: {cannot}")
    if wrong:
        tally.LINES.append(f"FAILED tests/seam/status_coverage.py: not as listed: {sorted(wrong)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
