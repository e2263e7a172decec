# SPDX-License-Identifier: GPL-2.0-or-later
"""Where two builds of a TD part: the first measured call that differs, and which RTMRs do.

MRTD is one hash over all calls, so that from the first that differs on nothing can be told from the digest itself.
What differs in a call is its leaf, its address, or the contents of the page; of contents the first byte is told where
the bytes of both are at hand.

RTMRs are extended by the guest.  A launch on the emulated kernel records each extension, a prediction of a direct boot
knows them too: then the first that differs is told.  Of other launches only the final values are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from swtdx.attest.build_calls import Build, Call
from swtdx.attest.event import Event
from swtdx.attest.event_reasons import usual_reason
from swtdx.attest.event_words import type_name
from swtdx.image.initial_memory import InitialMemoryError
from swtdx.image.mrtd import Order
from swtdx.units import PAGE_SIZE

_CHUNK_SIZE = 256


@dataclass(frozen=True)
class Divergence:
    """The first call that differs. A ``call`` is None where that build has ended; ``offset`` is within the page."""

    number: int  # how many calls came before it that are the same
    calls: tuple[Call | None, Call | None]
    offset: int | None = None
    values: tuple[int, int] | None = None

    def __str__(self) -> str:
        first, second = self.calls
        same = f"after {self.number} equal call{'' if self.number == 1 else 's'}"
        if first is None or second is None:
            more = first or second
            assert more is not None
            return f"{same} one has ended, the other continues with {_called(more)}"
        if first._replace(sha384=None, section=0, type="", page=0) != second._replace(
            sha384=None, section=0, type="", page=0
        ):
            return f"{same} come {_called(first)} and {_called(second)}"
        text = f"{same} the contents measured by {_called(first)} differ"
        if self.offset is None or self.values is None:
            return f"{text}; in which byte is unknown, as the firmware itself is not at hand"
        at = first.gpa + self.offset
        return (
            f"{text} from byte {self.offset:#x} of the page on (GPA {at:#x}, chunk {at & -_CHUNK_SIZE:#x}): "
            f"{self.values[0]:#04x} and {self.values[1]:#04x}"
        )

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        gpa = next(call.gpa for call in self.calls if call is not None)
        return {
            "equal_calls": self.number,
            "calls": [None if call is None else _as_json(call) for call in self.calls],
            "offset_in_page": self.offset,
            "gpa": None if self.offset is None else gpa + self.offset,
            "bytes": None if self.values is None else list(self.values),
            "text": str(self),
        }


@dataclass(frozen=True)
class Comparison:
    """Two builds compared. ``rtmrs``: numbers of the RTMRs that differ, None where one side's are unknown."""

    builds: tuple[Build, Build]
    divergence: Divergence | None
    rtmrs: tuple[int, ...] | None

    @property
    def mrtd_equal(self) -> bool:
        """Whether the digests are the same."""
        return self.builds[0].mrtd == self.builds[1].mrtd

    @property
    def first_event(self) -> int | None:
        """The number of the first RTMR extension that differs between the two; None if unknown, or there is none."""
        one, other = self.extensions
        if one is None or other is None or one == other:
            return None
        return next(number for number, (a, b) in enumerate(zip_longest(one, other)) if a != b)

    @property
    def extensions(self) -> tuple[Sequence[tuple[int, bytes]] | None, ...]:
        """What each side extended the registers with that both know; None where that is not known."""
        known = [number for number in range(4) if all(build.rtmr and build.rtmr[number] for build in self.builds)]
        return tuple(
            None if build.events is None else [each for each in build.events if each[0] in known]
            for build in self.builds
        )

    @property
    def first_event_words(self) -> str | None:
        """What that extension is, where one side is a prediction that has it."""
        event = self._first_predicted
        return None if event is None else f"{type_name(event.event_type)}: {event.words}"

    @property
    def reason(self) -> str | None:
        """Why that extension usually differs."""
        event = self._first_predicted
        return None if event is None else usual_reason(event)

    @property
    def _first_predicted(self) -> Event | None:
        number = self.first_event
        for build, extensions in zip(self.builds, self.extensions, strict=True):
            if number is not None and build.predicted and extensions and number < len(extensions):
                return next(each for each in build.predicted if (each.rtmr, each.digest) == extensions[number])
        return None

    @property
    def equal(self) -> bool:
        """Whether all that is known of both is the same."""
        return self.mrtd_equal and not self.rtmrs

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "equal": self.equal,
            "mrtd_equal": self.mrtd_equal,
            "mrtd": [build.mrtd.hex() for build in self.builds],
            "names": [build.name for build in self.builds],
            "kinds": ["launch" if build.launched else "prediction" for build in self.builds],
            "orders": [None if build.order is None else build.order.value for build in self.builds],
            "divergence": None if self.divergence is None else self.divergence.as_json(),
            "rtmr_different": None if self.rtmrs is None else list(self.rtmrs),
            "first_event": self.first_event,
            "first_event_words": self.first_event_words,
            "usual_reason": self.reason,
        }


def compare(one: Build, other: Build) -> Comparison:
    """Find where two builds part. An unknown order is taken to be the other's, or else page by page.

    >>> from swtdx.image.initial_memory import AddedRegion
    >>> def build(*gpas: int) -> Build:
    ...     regions = tuple(AddedRegion(0, "TEMP_MEM", gpa, 1, False, ()) for gpa in gpas)
    ...     return Build("x", False, regions, Order.PER_PAGE, bytes(gpas[-1:]), None, None, None)
    >>> print(compare(build(0, 16), build(0, 32)).divergence)
    after 1 equal call come TDH.MEM.PAGE.ADD of 0x10 (section 0 TEMP_MEM, page 0) and \
TDH.MEM.PAGE.ADD of 0x20 (section 0 TEMP_MEM, page 0)
    """
    rtmrs = None
    if one.rtmr is not None and other.rtmr is not None:
        pairs = enumerate(zip(one.rtmr, other.rtmr, strict=True))
        rtmrs = tuple(number for number, (first, second) in pairs if first and second and first != second)
    return Comparison((one, other), _first_divergence(one, other), rtmrs)


def _first_divergence(one: Build, other: Build) -> Divergence | None:
    order = one.order or other.order or Order.PER_PAGE
    calls = zip_longest(one.calls(one.order or order), other.calls(other.order or order))
    for number, (first, second) in enumerate(calls):
        if first is None or second is None:
            return Divergence(number, (first, second))
        if (first.leaf, first.gpa, first.sha384) == (second.leaf, second.gpa, second.sha384):
            continue
        if (first.leaf, first.gpa) != (second.leaf, second.gpa):
            return Divergence(number, (first, second))
        return _contents_divergence(one, other, number, first, second)
    return None


def _contents_divergence(one: Build, other: Build, number: int, first: Call, second: Call) -> Divergence:
    try:
        left, right = one.page_contents(first), other.page_contents(second)
    except InitialMemoryError:
        left = right = None
    if left is None or right is None:
        return Divergence(number, (first, second))
    offset = next(at for at in range(PAGE_SIZE) if left[at] != right[at])
    return Divergence(number, (first, second), offset, (left[offset], right[offset]))


def _called(call: Call) -> str:
    return f"{call.leaf} of {call.gpa:#x} (section {call.section} {call.type}, page {call.page})"


def _as_json(call: Call) -> dict[str, Any]:
    return {
        "leaf": str(call.leaf),
        "gpa": call.gpa,
        "section": call.section,
        "type": call.type,
        "page": call.page,
        "sha384": None if call.sha384 is None else call.sha384.hex(),
    }
