# SPDX-License-Identifier: GPL-2.0-or-later
"""The range map of attributes against a plain dictionary."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from swtdx.linux.virt.kvm.memory_attributes import MemoryAttributes

ranges = st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from([0, 8]))


@given(st.lists(ranges, max_size=30))
def test_it_is_a_map_from_frame_to_attributes(stores: list[tuple[int, int, int]]) -> None:
    attributes, model = MemoryAttributes(), dict.fromkeys(range(90), 0)
    for start, length, value in stores:
        attributes.store(start, start + length, value)
        model.update(dict.fromkeys(range(start, start + length), value))
    assert [attributes.load(gfn) for gfn in range(90)] == list(model.values())
    for start, length, value in stores:
        wanted = all(model[gfn] == value for gfn in range(start, start + length))
        assert attributes.range_has(start, start + length, value) is wanted


@given(st.lists(ranges, max_size=30))
def test_runs_are_disjoint_and_merged(stores: list[tuple[int, int, int]]) -> None:
    attributes = MemoryAttributes()
    for start, length, value in stores:
        attributes.store(start, start + length, value)
    runs = list(zip(attributes._starts, attributes._ends, strict=True))
    assert all(left[1] < right[0] for left, right in pairwise(runs))


def test_a_whole_vm_is_one_run() -> None:
    attributes = MemoryAttributes()
    attributes.store(0, 1 << 34, 8)
    assert len(attributes) == 1
    assert attributes.load((1 << 34) - 1) == 8
