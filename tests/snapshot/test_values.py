# SPDX-License-Identifier: GPL-2.0-or-later
"""Trees of state: what is refused, and that a tree from a stranger brings nothing but numbers into a machine."""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.linux.arch.x86.kvm.mmu.mirror import KvmMmuPage
from swtdx.linux.virt.kvm.memory_attributes import MemoryAttributes
from swtdx.seam.lifecycle import VcpuState
from swtdx.snapshot.values import Decoder, Encoder, Misfit, NotKept, condensed
from swtdx.vmm.board.ioapic import IoApic
from swtdx.vmm.board.uart16550 import Uart16550

ATTRIBUTES = "swtdx.linux.virt.kvm.memory_attributes.MemoryAttributes"


def through(value: Any, present: Any = None) -> Any:
    return Decoder().decode(Encoder().encode(value), present)


@pytest.mark.parametrize(
    "value",
    [
        None, True, -1, 1 << 70, 0.5, "text", b"bytes", (1, (b"2",)), [1, [2, b""]], {1, 2}, frozenset({3}),
        {1: "a", (2, 3): [b"x"]}, deque([1, 2]), bytearray(b"abc"), VcpuState.READY,
    ],
)  # fmt: skip
def test_values_come_back(value: Any) -> None:
    again = through(value)
    assert again == value
    assert type(again) is type(value)


def test_containers_are_filled_and_not_replaced_for_others_may_hold_them() -> None:
    numbers, names, buffer = [1, 2], {"a": 1}, bytearray(b"ab")
    tree = Encoder().encode([numbers, names, buffer])
    numbers.append(3)
    names["b"] = 2
    buffer[0] = 0
    Decoder().decode(tree, [numbers, names, buffer])
    assert (numbers, names, buffer) == ([1, 2], {"a": 1}, bytearray(b"ab"))


def test_a_tree_is_not_changed_by_what_it_is_put_into() -> None:
    attributes = MemoryAttributes()
    attributes.store(0, 16, 8)
    tree = Encoder().encode(attributes)
    for _ in range(2):
        attributes.store(4, 8, 0)
        Decoder().decode(tree, attributes)
        assert [attributes.load(gfn) for gfn in (0, 5, 15, 16)] == [8, 8, 8, 0]


def test_objects_that_a_machine_has_fewer_of_are_made() -> None:
    page = KvmMmuPage(2, 0, 1)
    page.tables[3] = KvmMmuPage(1, 3 << 9, 7)
    page.tables[3].leaves[5] = 0x1000
    tree = Encoder().encode(page)
    page.tables.clear()
    Decoder().decode(tree, page)
    leaves = struct.unpack("<512Q", bytes(page.tables[3].leaves))
    assert {index: hpa for index, hpa in enumerate(leaves) if hpa} == {5: 0x1000}
    assert page.tables[3].external_spt == 7


def test_what_is_not_in_the_tables_is_refused_by_name() -> None:
    with pytest.raises(NotKept, match=r"builtins.object, which a snapshot does not hold"):
        Encoder().encode([object()])


@pytest.mark.parametrize(
    ("tree", "present"),
    [
        (["o", 0, "builtins.object", {}, None], None),
        (["o", 0, "subprocess.Popen", {"args": "true"}, None], None),
        (["o", 0, "swtdx.vmm.board.uart16550.Uart16550", {}, None], None),  # a machine has it, a file may not make it
        (["o", 0, ATTRIBUTES, {"load": 1}, None], MemoryAttributes()),  # a method
        (["o", 0, ATTRIBUTES, {"__class__": 1}, None], MemoryAttributes()),
        (["o", 0, ATTRIBUTES, {"generation": "1"}, None], MemoryAttributes()),
        (["o", 0, ATTRIBUTES, {"_starts": 5}, None], MemoryAttributes()),
        (["o", 0, ATTRIBUTES, [], None], MemoryAttributes()),
        (["o", "0", ATTRIBUTES, {}, None], MemoryAttributes()),
        (["e", "signal.Signals", "SIGKILL"], None),
        (["e", "swtdx.seam.lifecycle.VcpuState", "__class__"], None),
        (["c", "ctypes.c_char_p", b"12345678"], None),
        (["c", "swtdx.uapi.asm_kvm.kvm_pic_state", b"12345678"], None),
        (["r", 7], None),
        (["d", [1], []], None),
        (["m", b"abc"], memoryview(bytearray(2))),
        (["m", b"abc"], 5),
        (["b", "text"], None),
        (["x"], None),
        ([], None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_tree_from_a_stranger_is_refused(tree: Any, present: Any) -> None:
    with pytest.raises(Misfit):
        Decoder().decode(tree, present)


def test_wiring_cannot_be_reached() -> None:
    """Not even an object's own attributes: what a UART sends to is not its state."""
    for attribute in ("_send", "_set_irq", "__dict__"):
        tree = ["o", 0, "swtdx.vmm.board.uart16550.Uart16550", {attribute: None}, None]
        with pytest.raises(Misfit):
            Decoder().decode(tree, Uart16550.__new__(Uart16550))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        | st.tuples(st.sampled_from("bltsfqdmecro"), inner, inner).map(list)
        | st.tuples(st.just("o"), st.integers(), st.just(ATTRIBUTES), st.dictionaries(
            st.sampled_from(["_starts", "_ends", "generation", "load"]), inner), inner).map(list)
    ),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json)
def test_any_tree_is_a_value_or_a_misfit(tree: Any) -> None:
    attributes = MemoryAttributes()
    for read in (tree, condensed(tree)):
        with contextlib.suppress(Misfit):
            Decoder().decode(read, attributes)
    assert type(attributes) is MemoryAttributes
    assert callable(attributes.load)


def test_lines_and_registers_of_a_device_come_back() -> None:
    sent: list[object] = []
    chip = IoApic(sent.append)
    tree = Encoder().encode(chip)
    chip.mmio_write(0, 4, 0x10)
    chip.mmio_write(0x10, 4, 0x31)
    Decoder().decode(tree, chip)
    assert chip.mmio_read(0, 4) == 0
    chip.set_irq(0, True)
    assert not sent  # it is masked again
