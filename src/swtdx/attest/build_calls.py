# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls that build a TD, as one can know them afterwards: predicted from an image, or from the record of a launch.

``swtdx run --json FILE`` keeps for each section where it was added and a SHA-384 of each measured page, and in which
order the kernel's calls came, if MRTD shows it.  `Build` holds the same for both, so that any two can be compared.

The measured calls of a build are PAGE.ADD for each page and MR.EXTEND for each 256-byte chunk of a measured page; the
sixteen MR.EXTEND of one page are one `Call` here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swtdx.attest.event import Event
from swtdx.attest.measure import MAXIMUM_ADDED, checked, measure_tdvf
from swtdx.image.initial_memory import AddedRegion, unpadded_contents
from swtdx.image.memory_map import MemoryMap
from swtdx.image.mrtd import Order
from swtdx.image.tdvf import MAXIMUM_IMAGE_SIZE, Tdvf, TdvfError, parse
from swtdx.units import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.attest.boot_prediction import BootPrediction

_SHA384_SIZE = 48
_RTMRS = 4


class RecordError(Exception):
    """The input is not a record of a TD's launch; the text is one sentence for a person."""


class Leaf(StrEnum):
    """SEAMCALL leaf functions that feed MRTD."""

    PAGE_ADD = "TDH.MEM.PAGE.ADD"
    MR_EXTEND = "TDH.MR.EXTEND"


class Call(NamedTuple):
    """One call, or the sixteen MR.EXTEND of one page; ``sha384`` of the page's contents where those are measured."""

    leaf: Leaf
    gpa: int
    section: int
    type: str
    page: int
    sha384: bytes | None


@dataclass(frozen=True)
class Build:
    """How a TD was or would be built. ``order`` None: unknown, MRTD is that of neither; ``rtmr`` None: unknown, all
    or one of them."""

    name: str
    launched: bool
    regions: tuple[AddedRegion, ...]
    order: Order | None
    mrtd: bytes
    rtmr: tuple[bytes | None, ...] | None
    tdvf: Tdvf | None  # the image, where it is at hand
    ram: tuple[tuple[int, int], ...] | None
    events: tuple[tuple[int, bytes], ...] | None = None
    """What the guest extended RTMRs with, in order (register, digest); None where that was not recorded."""
    predicted: tuple[Event, ...] = ()
    """What those are, where that is known: of a prediction."""
    memory_size: int | None = None
    cpus: int | None = None

    def calls(self, order: Order) -> Iterator[Call]:
        """The measured calls, if they come in this order."""
        for region in self.regions:
            adds = (self._call(Leaf.PAGE_ADD, region, page) for page in range(region.pages))
            if not region.measured:
                yield from adds
                continue
            extends = (self._call(Leaf.MR_EXTEND, region, page) for page in range(region.pages))
            if order is Order.PER_REGION:
                yield from adds
                yield from extends
            else:
                for add, extend in zip(adds, extends, strict=True):
                    yield add
                    yield extend

    @staticmethod
    def _call(leaf: Leaf, region: AddedRegion, page: int) -> Call:
        digest = region.page_digests[page] if leaf is Leaf.MR_EXTEND else None
        return Call(leaf, region.gpa + page * PAGE_SIZE, region.index, region.type, page, digest)

    def page_contents(self, call: Call) -> bytes | None:
        """The 4096 bytes that were measured, None where they are not at hand."""
        if self.tdvf is None:
            return None
        section = next((one for one in self.tdvf.sections if one.index == call.section), None)
        if section is None:
            return None
        contents = unpadded_contents(self.tdvf, section, self.ram or ())
        page = bytes(contents[call.page * PAGE_SIZE : (call.page + 1) * PAGE_SIZE]).ljust(PAGE_SIZE, b"\0")
        return page if hashlib.sha384(page).digest() == call.sha384 else None


def predicted_build(
    image: bytes, name: str = "the image", order: Order = Order.PER_PAGE, memory_size: int | None = None
) -> Build:
    """The build that an image leads to. Parameters and errors are those of `swtdx.attest.measure.measure_image`."""
    return build_of(checked(image, name), order, memory_size)


def build_of(tdvf: Tdvf, order: Order = Order.PER_PAGE, memory_size: int | None = None) -> Build:
    """The same for what is `swtdx.attest.measure.checked` already, or stands in for an image."""
    mrtd = measure_tdvf(tdvf, order, memory_size).mrtd
    ram = MemoryMap(memory_size or 0, len(tdvf.image)).ram
    regions = tuple(
        AddedRegion.of(section, unpadded_contents(tdvf, section, ram) if section.measured else b"")
        for section in tdvf.sections
        if section.added
    )
    return Build(tdvf.name, False, regions, order, mrtd, None, tdvf, ram, memory_size=memory_size)


def with_boot(build: Build, prediction: BootPrediction) -> Build:
    """A predicted build whose firmware then starts something: its RTMRs are known then, but for those left open."""
    known = tuple(event for event in prediction.events if event.rtmr in prediction.registers)
    extended = tuple((event.rtmr or 0, event.digest) for event in known)
    registers = tuple(
        value if number in (*prediction.registers, 3) else None for number, value in enumerate(prediction.rtmrs)
    )
    return replace(build, rtmr=registers, events=extended, predicted=known)


def recorded_build(record: bytes, name: str = "the record") -> Build:
    """The build that ``swtdx run --json`` has recorded.

    Where the firmware that was launched is still where it was and still the same, its bytes are taken from there.
    Raises `RecordError` if it is not a record of a TD's launch.

    >>> recorded_build(b"[]", "x.json")
    Traceback (most recent call last):
    ...
    swtdx.attest.build_calls.RecordError: x.json is not a record of a launch: it is not a JSON object
    """
    try:
        kept = json.loads(record)
    except (ValueError, RecursionError):
        raise RecordError(f"{name} is not a record of a launch: it is not JSON") from None
    if not isinstance(kept, dict):
        raise RecordError(f"{name} is not a record of a launch: it is not a JSON object")
    if kept.get("vm_type") == "default":
        raise RecordError(f"{name} records the launch of an ordinary VM, of which nothing is measured")
    for needed in ("mrtd", "mrtd_order", "added"):
        if needed not in kept:
            raise RecordError(f"{name} is not a record of a launch with its measured pages: it has no {needed!r}")
    try:
        order = None if kept["mrtd_order"] is None else Order(kept["mrtd_order"])
        regions = _regions(kept["added"])
        mrtd = _digest(kept["mrtd"])
        rtmr = kept.get("rtmr")
        registers = None if rtmr is None else tuple(_digest(each) for each in rtmr)
        if registers is not None and len(registers) != _RTMRS:
            raise ValueError("it has not four RTMRs")
        events = kept.get("rtmr_events")
        extended = None if events is None else tuple(_event(each) for each in events)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RecordError(f"{name} is not a record of a launch: {_because(error)}") from None
    tdvf = _image_of(kept)
    memory = kept.get("memory")
    ram = MemoryMap(memory, len(tdvf.image)).ram if tdvf is not None and isinstance(memory, int) else None
    cpus = kept.get("cpus")
    return Build(
        name, True, regions, order, mrtd, registers, tdvf, ram, extended,
        memory_size=memory if isinstance(memory, int) else None, cpus=cpus if isinstance(cpus, int) else None,
    )  # fmt: skip


def _event(kept: Any) -> tuple[int, bytes]:
    register, digest = kept
    if register not in range(_RTMRS):
        raise ValueError(f"{register!r} is not the number of an RTMR")
    return register, _digest(digest)


def _because(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _regions(kept: Any) -> tuple[AddedRegion, ...]:
    if not isinstance(kept, list):
        raise ValueError("'added' is not a list")
    regions = []
    total = 0
    for each in kept:
        numbers = [each[key] for key in ("section", "gpa", "pages")]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a section has members that are not numbers")
        index, gpa, pages = numbers
        total += pages
        if total * PAGE_SIZE > MAXIMUM_ADDED:
            raise ValueError(f"it has more than {MAXIMUM_ADDED // PAGE_SIZE} pages")
        measured, digests = bool(each["measured"]), tuple(_digest(digest) for digest in each["sha384"])
        if len(digests) != (pages if measured else 0):
            raise ValueError(f"section {index} has {pages} pages and {len(digests)} digests")
        regions.append(AddedRegion(index, str(each["type"]), gpa, pages, measured, digests))
    return tuple(regions)


def _digest(text: Any) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != _SHA384_SIZE:
        raise ValueError(f"a digest has {len(digest)} bytes, not {_SHA384_SIZE}")
    return digest


def _image_of(kept: dict[str, Any]) -> Tdvf | None:
    """The firmware of a recorded launch, if its file still holds the same bytes."""
    firmware = kept.get("firmware")
    if not isinstance(firmware, dict) or not isinstance(firmware.get("path"), str):
        return None
    try:
        path = Path(firmware["path"])
        if not path.is_file():  # a record is anybody's: what it names may be a pipe, which would be waited for
            return None
        with path.open("rb") as file:
            image = file.read(MAXIMUM_IMAGE_SIZE + 1)
        if hashlib.sha256(image).hexdigest() != firmware.get("sha256"):
            return None
        return parse(image, firmware["path"])
    except (OSError, ValueError, TdvfError):
        return None
