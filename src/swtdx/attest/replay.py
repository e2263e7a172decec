# SPDX-License-Identifier: GPL-2.0-or-later
"""An event log replayed to RTMRs, and compared with those of a quote or TDREPORT.

RTMR[i] starts as zeroes; each event makes it SHA-384(RTMR[i] || digest).  A firmware's log does not contain events of
RTMR3, which software in the guest extends: then RTMR3 is not covered by the log.  A log that does contain them must
lead to RTMR3 too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from swtdx.attest.event_digest import EV_SEPARATOR
from swtdx.attest.event_log import SHA384_SIZE, Event

ENFORCED = (0, 1, 2)
"""The RTMRs that must be equal for any log to lead to a quote."""

Rtmrs = tuple[bytes, bytes, bytes, bytes]


def replay(events: Iterable[Event]) -> Rtmrs:
    """Return RTMR0-3, 48 bytes each, after all events.

    >>> replay([]) == (bytes(48),) * 4
    True
    """
    registers = [bytes(SHA384_SIZE)] * 4
    for event in events:
        if event.extends and event.rtmr is not None:
            registers[event.rtmr] = hashlib.sha384(registers[event.rtmr] + event.digest).digest()
    return (registers[0], registers[1], registers[2], registers[3])


def covered(replayed: Sequence[bytes]) -> tuple[int, ...]:
    """Return the RTMRs that a log decides: RTMR0-2, and RTMR3 if the log extends it.

    >>> covered(replay([]))
    (0, 1, 2)
    """
    return ENFORCED if not any(replayed[3]) else (*ENFORCED, 3)


def leads_to(replayed: Sequence[bytes], reported: Sequence[bytes]) -> bool:
    """Whether all RTMRs that the log decides are equal.

    >>> leads_to([b"0", b"1", b"2", bytes(48)], [b"0", b"1", b"2", b"x"])
    True
    >>> leads_to([b"0", b"1", b"2", b"3"], [b"0", b"1", b"2", b"x"])
    False
    """
    return all(replayed[index] == reported[index] for index in covered(replayed))


def remarks(events: Iterable[Event]) -> list[str]:
    """Return what is odd about a log, and is not wrong: one sentence each."""
    separators: dict[int, list[int]] = defaultdict(list)
    for event in events:
        if event.extends and event.event_type == EV_SEPARATOR and event.rtmr is not None:
            separators[event.rtmr].append(event.number)
    return [
        f"RTMR{rtmr} has {len(numbers)} separators (events {', '.join(map(str, numbers))}): a fault of firmware from "
        "before edk2 commit efaf893, which measured the separator twice; verifiers such as go-eventlog refuse the log"
        for rtmr, numbers in sorted(separators.items())
        if len(numbers) > 1
    ]
