# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses the preloaded library reports: from the lowest to the highest of a slot.

A program may make 32,764 slots (set_memory_region_test of the kernel's selftests): for each, no other may be looked at.
"""

from __future__ import annotations

import mmap
from types import SimpleNamespace
from typing import Any

import pytest

from swtdx.exec import inside
from swtdx.exec.settings import Settings
from swtdx.linux.virt.kvm.memslots import Memslots
from swtdx.machine import boot
from swtdx.uapi import kvm as k
from swtdx.uapi.layout import address_of

PAGE = 4096


class Slots:
    """Requests of a program, by the bridge's entry, and what it was told to watch."""

    def __init__(self, process: inside.Process, watched: list[tuple[int, int]]) -> None:
        self.process, self.watched = process, watched
        kernel = process.kernel = process.machine = boot()
        self.vm = kernel.ioctl(kernel.open("/dev/kvm"), int(k.KVM_CREATE_VM), 0)
        self.memory = mmap.mmap(-1, 64 * PAGE)
        self.base = address_of(self.memory)

    def set(self, slot: int, page: int, pages: int = 1) -> int:
        region = k.kvm_userspace_memory_region(
            slot=slot, guest_phys_addr=slot << 20, memory_size=pages * PAGE, userspace_addr=self.base + page * PAGE
        )
        return self.process.ioctl(self.vm, int(k.KVM_SET_USER_MEMORY_REGION), address_of(region), 0)

    @property
    def pages(self) -> list[tuple[int, int]]:
        return [
            ((start - self.base) // PAGE, (end - self.base) // PAGE) if end else (0, 0) for start, end in self.watched
        ]


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    watched: list[tuple[int, int]] = []
    bridge = SimpleNamespace(watch=lambda start, end: watched.append((start, end)))
    monkeypatch.setattr(inside, "_bridge", bridge)
    return Slots(inside.Process(Settings()), watched)


def test_it_grows_with_the_slots_and_ends_with_the_last(slots: Slots) -> None:
    assert slots.set(1, 10, 2) == 0
    assert slots.set(2, 20) == 0
    assert slots.set(3, 15) == 0
    assert slots.set(4, 2) == 0
    assert slots.set(2, 0, 0) == 0
    assert slots.pages == [(10, 12), (10, 21), (2, 21)]
    for slot in (1, 3, 4):
        assert slots.set(slot, 0, 0) == 0
    assert slots.pages[-1] == (0, 0)
    assert slots.set(5, 30) == 0
    assert slots.pages[-1] == (30, 31)


def test_a_slot_that_is_refused_changes_nothing(slots: Slots) -> None:
    assert slots.set(1, 10) == 0
    assert slots.set(1, 40, 2) < 0
    assert slots.pages == [(10, 11)]


def test_no_other_slot_is_looked_at(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(self: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Memslots, "__iter__", looks)
    for slot in range(1, 60):
        assert slots.set(slot, slot) == 0
    for slot in range(1, 60):
        assert slots.set(slot, 0, 0) == 0
