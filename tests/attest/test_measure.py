# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD predicted, against published values, against the specification's stream, and against launches."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swtdx.vmm.launch
from swtdx.attest.measure import (
    MAXIMUM_ADDED,
    MeasureError,
    depends_on_memory,
    measure_image,
    order_matters,
    order_name,
)
from swtdx.image.firmware import Firmware
from swtdx.image.mrtd import MrtdPredictor, Order
from swtdx.image.tdvf import Section, SectionAttributes, TdvfError, parse
from swtdx.linux.arch.x86.virt.vmx.tdx.seamcall import Seamcall
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.launch import Plan, launch
from swtdx.vmm.slots import MemorySlots
from testing.tdvf_image import BFV, CFV, HOB, TEMP, image_with
from tests.conftest import KnownFirmware

MIB = 1 << 20


def by_the_specification(gpa: int, contents: bytes, measured: bool, order: Order) -> bytes:
    """MRTD of one region, block by block, as TDH.MEM.PAGE.ADD and TDH.MR.EXTEND are specified."""
    stream = hashlib.sha384()

    def add(page: int) -> None:
        stream.update((b"MEM.PAGE.ADD".ljust(16, b"\0") + page.to_bytes(8, "little")).ljust(128, b"\0"))

    def extend(page: int) -> None:
        for chunk in range(page, page + 4096, 256):
            stream.update((b"MR.EXTEND".ljust(16, b"\0") + chunk.to_bytes(8, "little")).ljust(128, b"\0"))
            stream.update(contents[chunk - gpa : chunk - gpa + 256])

    pages = range(gpa, gpa + len(contents), 4096)
    if order is Order.PER_PAGE:
        for page in pages:
            add(page)
            if measured:
                extend(page)
    else:
        for page in pages:
            add(page)
        for page in pages if measured else ():
            extend(page)
    return stream.digest()


@pytest.mark.parametrize(
    ("order", "member"), [(Order.PER_PAGE, "mrtd_per_page"), (Order.PER_REGION, "mrtd_per_region")]
)
def test_debian_12s_firmware_in_both_orders(order: Order, member: str, known_firmware: KnownFirmware) -> None:
    image, known = known_firmware
    assert measure_image(image, order=order).mrtd.hex() == known[member]


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
def test_a_launch_gives_what_was_measured(dialect: Dialect, ovmf_image: Path) -> None:
    """The MRTD that the TDX module holds after KVM_TDX_FINALIZE_VM."""
    image = ovmf_image.read_bytes()
    kernel = boot(dialect)
    plan = Plan(Firmware(ovmf_image, "it was named", image), 256 * MIB)
    with Kvm(kernel) as device, launch(device, plan) as machine:
        seen = kernel.inspect_td(machine.vm.fd)["mrtd"]
    orders = {order: measure_image(image, order=order).mrtd.hex() for order in Order}
    assert seen == orders[Order.PER_PAGE]
    assert orders[Order.PER_PAGE] != orders[Order.PER_REGION]


def test_a_kernel_that_adds_a_region_and_then_extends_it_gives_the_other_value(
    ovmf_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trees before Linux 6.16 did: here the test extends, by SEAMCALL, what KVM has added without measuring."""
    image = ovmf_image.read_bytes()
    kernel = boot()
    seamcall, add = Seamcall(kernel.processor), swtdx.vmm.launch._add_section

    def add_then_extend(slots: MemorySlots, section: Section, contents: bytes) -> None:
        add(slots, replace(section, attributes=section.attributes & ~SectionAttributes.MR_EXTEND), contents)
        (tdx,) = (vm.tdx for vm in kernel.vms)
        assert tdx is not None
        for chunk in range(section.address, section.end if section.measured else 0, 256):
            assert seamcall.tdh_mr_extend(tdx.tdr, chunk) == 0

    monkeypatch.setattr(swtdx.vmm.launch, "_add_section", add_then_extend)
    plan = Plan(Firmware(ovmf_image, "it was named", image), 256 * MIB)
    with Kvm(kernel) as device, launch(device, plan) as machine:
        seen = kernel.inspect_td(machine.vm.fd)["mrtd"]
    assert seen == measure_image(image, order=Order.PER_REGION).mrtd.hex()


def test_a_launch_gives_what_was_measured_of_a_td_hob_too() -> None:
    image = image_with(rows=(BFV, CFV, TEMP, (*HOB[:5], 1)))
    assert depends_on_memory(parse(image, "x.fd"))
    kernel = boot(Dialect.UPSTREAM)
    for memory in (64 * MIB, 96 * MIB):
        plan = Plan(Firmware(Path("x.fd"), "it was named", image), memory)
        with Kvm(kernel) as device, launch(device, plan) as machine:
            assert kernel.inspect_td(machine.vm.fd)["mrtd"] == measure_image(image, memory_size=memory).mrtd.hex()
    assert measure_image(image, memory_size=64 * MIB).mrtd != measure_image(image, memory_size=96 * MIB).mrtd
    with pytest.raises(MeasureError, match="depends on the size of guest memory"):
        measure_image(image, "x.fd")


@given(
    page=st.integers(0, (1 << 40) - 1),
    contents=st.binary(min_size=1, max_size=300),
    pages=st.integers(1, 40),
    short=st.integers(0, 5000),
    measured=st.booleans(),
    order=st.sampled_from(Order),
)
def test_the_stream_is_the_specifications(
    page: int, contents: bytes, pages: int, short: int, measured: bool, order: Order
) -> None:
    """Wherever the region begins and ends, and with zeroes behind what the file has."""
    full = (contents * (pages * 4096 // len(contents) + 1))[: pages * 4096]
    given_part = full[: max(0, len(full) - short)]
    predictor = MrtdPredictor(order)
    predictor.add_region(page * 4096, given_part, measured, len(full))
    padded = given_part.ljust(len(full), b"\0")
    assert predictor.digest() == by_the_specification(page * 4096, padded, measured, order)


def test_one_predictor_takes_regions_up_and_down() -> None:
    """What a region left in the buffers must not show in the next."""
    regions = [(0xFFFF_F000_0000, b"\xff" * 0x3000), (0x1000, bytes(0x1000)), (0xF000, b"\x01" * 0x2000)]
    one = MrtdPredictor()
    for gpa, contents in regions:
        one.add_region(gpa, contents, True)
    fresh = hashlib.sha384()
    for gpa, contents in regions:
        for at in range(0, len(contents), 4096):
            page = gpa + at
            fresh.update((b"MEM.PAGE.ADD".ljust(16, b"\0") + page.to_bytes(8, "little")).ljust(128, b"\0"))
            for chunk in range(0, 4096, 256):
                head = b"MR.EXTEND".ljust(16, b"\0") + (page + chunk).to_bytes(8, "little")
                fresh.update(head.ljust(128, b"\0") + contents[at + chunk : at + chunk + 256])
    assert one.digest() == fresh.digest()


def test_contents_do_not_exceed_their_region() -> None:
    with pytest.raises(ValueError, match="more contents than room"):
        MrtdPredictor().add_region(0, bytes(8192), True, 4096)


def test_the_order_matters_only_where_more_than_a_page_is_measured() -> None:
    assert order_matters(parse(image_with(), "x.fd"))
    unmeasured = image_with(rows=((*BFV[:5], 0), CFV, TEMP, HOB))
    assert not order_matters(parse(unmeasured, "x.fd"))
    assert len({measure_image(unmeasured, order=order).mrtd for order in Order}) == 1


def test_memory_that_is_given_must_hold_the_sections() -> None:
    with pytest.raises(TdvfError, match="needs RAM"):
        measure_image(image_with(), "x.fd", memory_size=MIB)


def test_an_image_that_wants_endless_memory_is_refused_at_once() -> None:
    rows = (BFV, CFV, HOB, (0, 0, 1 << 40, MAXIMUM_ADDED, 3, 1))
    with pytest.raises(MeasureError, match="more than is measured here"):
        measure_image(image_with(rows=rows), "x.fd")


def test_all_of_a_measurement_is_json() -> None:
    measurement = measure_image(image_with(), "x.fd", Order.PER_REGION)
    kept = json.loads(json.dumps(measurement.as_json()))
    assert (kept["mrtd"], kept["order"]) == (measurement.mrtd.hex(), "region")
    assert (kept["pages_added"], kept["pages_measured"]) == (24, 12)
    assert [order_name(order) for order in Order] == ["page", "region"]
