# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a test does not pass, as analysed by hand: (test, a part of what it said) -> a sentence.

Only an outcome that has that part gets the sentence, so that an old reason does not hide a new failure.
"""

from __future__ import annotations

from testing.selftests.outcome import Outcome

_PORTS = (
    "Port I/O in a TD raises #VE. Linux handles #VE from user mode for CPUID alone (virt_exception_user) and sends "
    "SIGSEGV: the same on hardware."
)
_LAM = "The processor has no linear-address masking (CPUID), and Debian's kernel no CONFIG_ADDRESS_MASKING."
_AMX = "The processor has no AMX (CPUID leaf 7)."
_VM86 = "Debian's cloud kernel has no virtual-8086 mode (CONFIG_VM86 needs a 32-bit kernel)."
_CET = "The processor has no shadow stacks (CPUID leaf 7, CET_SS)."

REASONS: dict[str, list[tuple[str, str]]] = {
    "amx": [("no AMX support", _AMX)],
    "entry_from_vm86": [("vm86 not supported", _VM86)],
    "ioperm": [("outb to 0x80 failed", _PORTS)],
    "iopl": [("outb to 0x80 failed", _PORTS)],
    "lam": [("LAM is not supported", _LAM)],
    "test_shadow_stack": [("Could not enable Shadow stack", _CET)],
}


def reason_for(name: str, outcome: Outcome) -> str:
    """Return the sentence for an outcome, or "" if it has not been analysed."""
    said = "\n".join((outcome.reason, *outcome.output))
    return next((sentence for part, sentence in REASONS.get(name, []) if part in said), "")
