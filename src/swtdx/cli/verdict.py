# SPDX-License-Identifier: GPL-2.0-or-later
"""How a verifier's command ends: exit statuses, as the ``check`` tool of go-tdx-guest has them.

======  ==================================================================================
status  meaning
======  ==================================================================================
0       verified; equal; shown
1       wrong usage
2       verification failed; the two differ; the image cannot start as a TD
3       an input (file, firmware, collateral) cannot be read
4       the policy is not met
5       an event log cannot be read, or does not lead to the registers
======  ==================================================================================
"""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """Exit statuses of inspect, measure, diff, replay, quote and report."""

    OK = 0
    USAGE = 1
    FAILED = 2
    NO_INPUT = 3
    POLICY = 4
    EVENT_LOG = 5


RUN_BAD_INPUT = 2
"""What ``swtdx run`` has in place of `Verdict.USAGE` and `Verdict.NO_INPUT`; `swtdx.vmm.outcome` has the others."""


class Failure(Exception):
    """Ends a verifier's command; the text is one sentence for a person, ``verdict`` the exit status."""

    def __init__(self, text: str, verdict: Verdict, *, shown: bool = False) -> None:
        super().__init__(text)
        self.verdict = verdict
        self.status: int = verdict
        """The exit status; that of a subclass may be another."""
        self.shown = shown
        """Whether the command has printed its JSON, with this text in it."""
