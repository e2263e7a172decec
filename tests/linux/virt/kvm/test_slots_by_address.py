# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots by user address: what munmap(2) and madvise(2) of a range find, and how many slots are looked at for that."""

from __future__ import annotations

import random

import pytest

from swtdx.linux.virt.kvm.memslots import KVM_USER_MEM_SLOTS, Memslot, Memslots

PAGE = 4096
looks: list[str] = []


class Watched(Memslot):
    """Counts the looks at a slot's size, without which it is not known whether it reaches into a range."""

    def __getattribute__(self, name: str) -> object:
        if name == "npages":
            looks.append(name)
        return super().__getattribute__(name)


def slot(number: int, address: int, pages: int, kind: type[Memslot] = Memslot) -> Memslot:
    return kind(number, 0, 0, number << 20, pages, address, None)  # type: ignore[arg-type]


def by_looking_at_all(slots: Memslots, start: int, end: int) -> set[int]:
    return {
        each.slot_id for each in slots if each.userspace_addr < end and start < each.userspace_addr + each.npages * PAGE
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_same_slots_are_found_as_by_looking_at_all(seed: int) -> None:
    """Slots may show the same user memory, and come and go."""
    chance = random.Random(seed)
    slots = Memslots()
    for _ in range(200):
        number = chance.randrange(40)
        if number in slots.by_id:
            if chance.random() < 0.5:
                slots.remove(number)
            else:
                slots.move(slots.by_id[number], chance.randrange(1, 8) << 40 | number << 20)
        else:
            slots.insert(slot(number, chance.randrange(64) * PAGE, chance.choice([1, 1, 2, 3, 17])))
        start = chance.randrange(80) * PAGE
        end = start + chance.choice([1, PAGE, 5 * PAGE])
        found = slots.behind(start, end)
        assert {each.slot_id for each in found} == by_looking_at_all(slots, start, end)
        assert len(found) == len({each.slot_id for each in found})


def test_slots_of_a_machine_that_continues_elsewhere_are_found_where_they_are_there() -> None:
    """A snapshot keeps the slots, and the generation; where they are in user memory is the other process's business."""
    slots = Memslots()
    slots.insert(slot(1, 4 * PAGE, 4))
    slots.insert(slot(2, 16 * PAGE, 4))
    slots.remove(2)
    kept = dict(slots.by_id), list(slots._entries), slots.generation
    there = Memslots()
    there.insert(slot(1, 100 * PAGE, 4))
    there.generation = kept[2]
    assert [each.slot_id for each in there.behind(101 * PAGE, 102 * PAGE)] == [1]
    there.insert(slot(3, 200 * PAGE, 1))
    assert [each.slot_id for each in there.behind(0, 1000 * PAGE)] == [1, 3]
    slots.insert(slot(2, 16 * PAGE, 4))  # and in the same process, after more was changed
    slots.by_id, slots._entries, slots.generation = kept
    slots.insert(slot(5, 40 * PAGE, 1))
    assert [each.slot_id for each in slots.behind(0, 1000 * PAGE)] == [1, 5]
    slots.remove(1)
    assert [each.slot_id for each in slots.behind(0, 1000 * PAGE)] == [5]


def test_a_page_of_many_slots_is_found_without_a_look_at_the_others() -> None:
    slots = Memslots()
    for number in range(KVM_USER_MEM_SLOTS - 1):
        slots.insert(slot(number, number * 2 * PAGE, 2, Watched))
    looks.clear()
    (found,) = slots.behind(20_001 * PAGE, 20_002 * PAGE)
    assert found.slot_id == 10_000
    assert len(looks) < 8
