# SPDX-License-Identifier: GPL-2.0-or-later
"""How a run ended, and the exit status that reports it to a script.

======  =====================================================================================
status  meaning
======  =====================================================================================
0       the guest powered off or reset, the awaited text appeared, or the user ended the run
1       internal error of swtdx or of the kernel below it
2       bad input, or a kernel that cannot do what was asked
3       the guest reported a fatal error or crashed, or its firmware found nothing to boot
4       time was up
odd     what the guest wrote to the debug exit port (``--debug-exit``), times 2 plus 1
130     interrupted (SIGINT, or the reader of the console is gone)
======  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from swtdx.uapi.reason import NO_REASON, Reason

STATUS_BAD_INPUT = 2


class End(Enum):
    """What ended the run: (name in the JSON record, exit status)."""

    POWER_OFF = ("power-off", 0)
    RESET = ("reset", 0)
    UNTIL = ("until", 0)
    SHELL_PROMPT = ("shell-prompt", 0)
    LEFT = ("left", 0)
    INTERNAL_ERROR = ("internal-error", 1)
    FATAL_ERROR = ("fatal-error", 3)
    CRASH = ("crash", 3)
    TIMEOUT = ("timeout", 4)
    INTERRUPTED = ("interrupted", 130)
    PANIC = ("panic", 3)
    NO_BOOT_OPTION = ("no-boot-option", 3)
    DEBUG_EXIT = ("debug-exit", 1)

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def status(self) -> int:
        return self.value[1]


@dataclass(frozen=True)
class Outcome:
    """The end of a run with one sentence for a person, and details for the record."""

    end: End
    text: str
    details: dict[str, object] = field(default_factory=dict)
    chosen_status: int | None = None  # by the guest, where it may
    reason: Reason = NO_REASON  # of a kernel that refused to go on

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return self.end.status if self.chosen_status is None else self.chosen_status
