# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD of a firmware image: what the TDX module will have measured when a TD built from it is finalized.

The stream that is hashed is `swtdx.image.mrtd`'s, the same that a launch expects.  What a verifier must know about
it beside the digest is what it depends on: always on the order of the VMM's kernel (`Order`), and on the machine only
if the image has its TD HOB measured, for the HOB describes the machine's memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swtdx.image.initial_memory import InitialMemoryError, td_hob
from swtdx.image.memory_map import MemoryMap
from swtdx.image.mrtd import Order, predict_mrtd
from swtdx.image.tdvf import SectionType, Tdvf, check_memory, parse, unfilled
from swtdx.units import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.image.linux_image import LinuxBoot

MAXIMUM_ADDED = 1 << 30
"""Bytes of initial memory; an image that wants more is not measured: one field of it could otherwise cost hours."""


class MeasureError(Exception):
    """The image is a TDVF, but its MRTD cannot be told from what was given; the text is one sentence for a person."""


@dataclass(frozen=True)
class Measurement:
    """MRTD of an image (48 bytes) and what it came from. Sizes and addresses in bytes."""

    tdvf: Tdvf
    order: Order
    memory_size: int | None
    mrtd: bytes

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        sections = self.tdvf.sections
        return {
            "image": self.tdvf.name,
            "size": len(self.tdvf.image),
            "sha256": hashlib.sha256(self.tdvf.image).hexdigest(),
            "mrtd": self.mrtd.hex(),
            "order": order_name(self.order),
            "order_matters": order_matters(self.tdvf),
            "memory": self.memory_size,
            "depends_on_memory": depends_on_memory(self.tdvf),
            "pages_added": sum(one.memory_size // PAGE_SIZE for one in sections if one.added),
            "pages_measured": sum(one.memory_size // PAGE_SIZE for one in sections if one.added and one.measured),
            "sections": [
                {
                    "section": one.index,
                    "type": one.type.name,
                    "gpa": one.address,
                    "pages": one.memory_size // PAGE_SIZE,
                    "added": one.added,
                    "measured": one.added and one.measured,
                }
                for one in sections
            ],
        }


def measure_image(
    image: bytes, name: str = "the image", order: Order = Order.PER_PAGE, memory_size: int | None = None
) -> Measurement:
    """MRTD of a TD that is built from ``image`` and nothing else.

    ``memory_size``: of the guest, in bytes; needed only where the TD HOB is measured (`depends_on_memory`), and checked
    to hold all sections wherever it is given.

    Raises `swtdx.image.tdvf.TdvfError` for an image that cannot start as a TD, `MeasureError` for one whose MRTD cannot
    be told without a memory size, or that wants more than `MAXIMUM_ADDED` bytes of initial memory.

    >>> measure_image(b"")
    Traceback (most recent call last):
    ...
    swtdx.image.tdvf.TdvfError: the image is empty, so it is not a firmware image

    With the firmware at hand: ``measure_image(Path("OVMF.fd").read_bytes()).mrtd.hex()``.
    """
    return measure_tdvf(checked(image, name), order, memory_size)


def measure_direct(linux: LinuxBoot, memory_size: int, cpus: int, order: Order = Order.PER_PAGE) -> Measurement:
    """MRTD of a TD that starts ``linux`` without firmware, as ``swtdx run --firmware none`` does.

    It is all in MRTD: shim, kernel, initrd, command line, memory map and ACPI tables. Raises
    `swtdx.image.linux_image.LinuxImageError` for a kernel that does not fit, `MeasureError` for one that is too large.
    """
    return measure_tdvf(direct_tdvf(linux, memory_size, cpus), order, memory_size)


def direct_tdvf(linux: LinuxBoot, memory_size: int, cpus: int) -> Tdvf:
    """The shim with all that it brings, as an image would be parsed. Raises as `measure_direct` does."""
    from swtdx.image import shim  # only here: who hashes a firmware image does not wait for the board
    from swtdx.image.boot_protocol import lay_out

    return _measurable(shim.tdvf(lay_out(linux, MemoryMap(memory_size, shim.SIZE), cpus, td=True)))


def measure_tdvf(tdvf: Tdvf, order: Order = Order.PER_PAGE, memory_size: int | None = None) -> Measurement:
    """The same as `measure_image` for an image that is parsed and `checked` already."""
    name = tdvf.name
    if memory_size is None and depends_on_memory(tdvf):
        raise MeasureError(
            f"{name} has its TD HOB measured, so MRTD depends on the size of guest memory: give that too"
        )
    ram = MemoryMap(memory_size or 0, len(tdvf.image)).ram
    if memory_size is not None:
        check_memory(tdvf, ram)
    try:
        mrtd = predict_mrtd(tdvf, order, lambda section: td_hob(tdvf, section, ram))
    except InitialMemoryError as error:
        raise MeasureError(str(error)) from None
    return Measurement(tdvf, order, memory_size, mrtd)


def checked(image: bytes, name: str) -> Tdvf:
    """Parse an image that a TD can be built from. Raises `TdvfError` and `MeasureError` as `measure_image` does."""
    return complete(parse(image, name))


def complete(tdvf: Tdvf) -> Tdvf:
    """An image that a TD can be built from. Raises `TdvfError` and `MeasureError` as `measure_image` does."""
    for fault in unfilled(tdvf):
        raise fault
    return _measurable(tdvf)


def _measurable(tdvf: Tdvf) -> Tdvf:
    added = sum(section.memory_size for section in tdvf.sections if section.added)
    if added > MAXIMUM_ADDED:
        raise MeasureError(
            f"{tdvf.name} wants {added:#x} bytes of initial memory, "
            f"which is more than is measured here ({MAXIMUM_ADDED:#x})"
        )
    return tdvf


def order_matters(tdvf: Tdvf) -> bool:
    """Whether the two orders give different values: a section of more than one page is measured."""
    return any(one.added and one.measured and one.memory_size > PAGE_SIZE for one in tdvf.sections)


def depends_on_memory(tdvf: Tdvf) -> bool:
    """Whether MRTD depends on the size of guest memory: the TD HOB is measured, which describes it."""
    return any(one.added and one.measured and one.type is SectionType.TD_HOB for one in tdvf.sections)


def order_name(order: Order) -> str:
    """``page`` or ``region``, as typed.

    >>> [order_name(order) for order in Order]
    ['page', 'region']
    """
    return "page" if order is Order.PER_PAGE else "region"
