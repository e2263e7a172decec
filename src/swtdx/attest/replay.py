# SPDX-License-Identifier: GPL-2.0-or-later
"""An event log replayed to RTMRs, and held against those of a quote or TDREPORT.

RTMR[i] starts as zeroes; each event makes it SHA-384(RTMR[i] || digest).  Firmware logs do not carry RTMR3, which
software in the guest extends as it likes: it is reported, and does not decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from swtdx.attest.event_log import SHA384_SIZE, Event

ENFORCED = (0, 1, 2)
"""The RTMRs that must be equal for a log to lead to a quote."""

Rtmrs = tuple[bytes, bytes, bytes, bytes]


def replay(events: Iterable[Event]) -> Rtmrs:
    """RTMR0-3, 48 bytes each, after all events.

    >>> replay([]) == (bytes(48),) * 4
    True
    """
    registers = [bytes(SHA384_SIZE)] * 4
    for event in events:
        if event.extends and event.rtmr is not None:
            registers[event.rtmr] = hashlib.sha384(registers[event.rtmr] + event.digest).digest()
    return (registers[0], registers[1], registers[2], registers[3])


def leads_to(replayed: Sequence[bytes], reported: Sequence[bytes]) -> bool:
    """Whether RTMR0-2 are equal.

    >>> leads_to([b"0", b"1", b"2", b"3"], [b"0", b"1", b"2", b"x"])
    True
    """
    return all(replayed[index] == reported[index] for index in ENFORCED)
