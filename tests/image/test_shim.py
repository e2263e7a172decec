# SPDX-License-Identifier: GPL-2.0-or-later
"""The built-in TDVF: what is in the package is what its source says, and its metadata name every piece of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest

from swtdx.attest.measure import measure_direct
from swtdx.image import shim
from swtdx.image.boot_protocol import DirectBoot, lay_out
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.image.memory_map import MemoryMap
from swtdx.image.mrtd import Order
from swtdx.image.shim.assemble import assemble
from swtdx.image.tdvf import SectionType, check_memory, unfilled
from swtdx.image.tdvf import parse as parse_tdvf
from tests.image.test_linux_image import bzimage

MIB = 1 << 20


def linux(kernel: bytes = b"k" * 0x5010, initrd: bytes = b"initrd", command_line: str = "x") -> LinuxBoot:
    return LinuxBoot(parse(bzimage(kernel=kernel), "x"), initrd, command_line)


def entered(memory: int = 256 * MIB, **parts: object) -> DirectBoot:
    return lay_out(linux(**parts), MemoryMap(memory, shim.SIZE), 1, td=True)  # type: ignore[arg-type]


def test_the_package_has_what_the_assembler_makes_of_the_source(skip_loudly: Callable[[str], NoReturn]) -> None:
    try:
        made = assemble()
    except FileNotFoundError as error:
        skip_loudly(f"no {error.filename}: that shim.bin is shim.S assembled is not shown")
    assert made == shim.assembled(), "run python -m swtdx.image.shim.assemble"


def test_the_image_is_a_tdvf_of_one_page_with_a_section_for_each_piece() -> None:
    boot = entered()
    tdvf = shim.tdvf(boot)
    assert len(tdvf.image) == 4096
    kinds = {section.type: section for section in tdvf.sections}
    assert set(kinds) == {
        SectionType.BFV,
        SectionType.TD_HOB,
        SectionType.TEMP_MEM,
        SectionType.PAYLOAD_PARAM,
        SectionType.PAYLOAD,
        SectionType.PERM_MEM,
    }
    assert (kinds[SectionType.BFV].address, tdvf.contents(kinds[SectionType.BFV])) == (0xFFFF_F000, tdvf.image)
    for kind, piece in (
        (SectionType.PAYLOAD, boot.kernel),
        (SectionType.PAYLOAD_PARAM, boot.parameters),
        (SectionType.PERM_MEM, boot.initrd),
    ):
        assert piece is not None
        assert kinds[kind].address == piece.address
        assert tdvf.contents(kinds[kind]).rstrip(b"\0") == piece.contents.rstrip(b"\0")
    assert all(section.measured and section.added for section in tdvf.sections)
    check_memory(tdvf, MemoryMap(256 * MIB, shim.SIZE).ram)
    assert not list(unfilled(tdvf))


def test_the_image_alone_lacks_what_the_vmm_brings() -> None:
    alone = parse_tdvf(shim.image(entered()), "the shim")
    assert len(list(unfilled(alone))) == 2  # PAYLOAD and PAYLOAD_PARAM


def test_contents_that_do_not_fit_are_refused() -> None:
    tdvf = shim.tdvf(entered())
    with pytest.raises(ValueError, match="no room"):
        tdvf.with_contents({0: bytes(4097)})


def test_mrtd_covers_everything() -> None:
    base = measure_direct(linux(), 256 * MIB, 1).mrtd
    others = [
        measure_direct(linux(kernel=b"k" * 0x500F + b"K"), 256 * MIB, 1),
        measure_direct(linux(initrd=b"Initrd"), 256 * MIB, 1),
        measure_direct(linux(initrd=b""), 256 * MIB, 1),
        measure_direct(linux(command_line="y"), 256 * MIB, 1),
        measure_direct(linux(), 128 * MIB, 1),
        measure_direct(linux(), 256 * MIB, 2),
        measure_direct(linux(), 256 * MIB, 1, Order.PER_REGION),
    ]
    assert len({base, *(one.mrtd for one in others)}) == len(others) + 1
    assert base == measure_direct(linux(), 256 * MIB, 1).mrtd
