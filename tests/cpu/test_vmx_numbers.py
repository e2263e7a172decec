# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit reasons have the numbers of Linux's header asm/vmx.h, which names some of them otherwise than the SDM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swtdx.cpu.vmx import ExitReason

HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/vmx.h"), Path("/usr/include/asm/vmx.h"))
LINUX_NAMES = {
    "INIT_SIGNAL": "INIT",
    "SIPI_SIGNAL": "SIPI",
    "VMOFF": "VMXOFF",
    "VMON": "VMXON",
    "IO_INSTRUCTION": "IO",
    "MSR_READ": "RDMSR",
    "MSR_WRITE": "WRMSR",
    "INVALID_STATE": "ENTRY_FAILURE",
    "MSR_LOAD_FAIL": "MSR_LOADING",
    "MWAIT_INSTRUCTION": "MWAIT",
    "MONITOR_TRAP_FLAG": "MTF",
    "MONITOR_INSTRUCTION": "MONITOR",
    "PAUSE_INSTRUCTION": "PAUSE",
    "MCE_DURING_VMENTRY": "MACHINE_CHECK_DURING_ENTRY",
    "EOI_INDUCED": "VIRTUALIZED_EOI",
    "NOTIFY": "NOTIFICATION",
}


def test_exit_reasons_are_those_of_linux() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("asm/vmx.h is not installed (linux-libc-dev)")
    found = set()
    for name, number in re.findall(r"^#define EXIT_REASON_(\w+)\s+(\d+)$", header.read_text("ascii"), re.MULTILINE):
        ours = ExitReason.__members__.get(LINUX_NAMES.get(name, name))
        if ours is not None:
            assert ours == int(number), name
            found.add(ours)
    # Linux's header lacks the reasons that KVM never meets.
    rest = {"OTHER_SMI", "GETSEC", "RSM", "PCONFIG", "ENCLV", "ENQCMD", "ENQCMDS", "SEAMCALL", "TDCALL", "HOST_FAULT"}
    rest.add("C_STATE_SMI")
    assert {reason.name for reason in set(ExitReason) - found} <= rest
