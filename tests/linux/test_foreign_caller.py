# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller that lives in another process: its pointers, its descriptors and its slots' memory are its own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from swtdx.linux.uaccess import Mm, copy_from_user, copy_to_user, current_mm, own_mm, use_mm
from swtdx.linux.virt.kvm.hva import HvaMapping, UserWindows


class Foreign(Mm):
    """A child; what it has at ``page`` and ``read_only`` is private to it."""

    def __init__(self) -> None:
        buffers = [mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
        self.page, self.read_only = (ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in buffers)
        ready, done = os.pipe()
        pid = os.fork()
        if not pid:
            buffers[0][:5] = b"child"
            ctypes.CDLL(None).mprotect(ctypes.c_void_p(self.read_only), 8192, mmap.PROT_READ)
            os.write(done, b"x")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.close(ready)
        os.close(done)
        self.buffers = buffers
        super().__init__(pid)


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    mm = Foreign()
    use_mm(mm)
    yield mm
    use_mm(own_mm())
    os.kill(mm.pid, signal.SIGKILL)
    os.waitpid(mm.pid, 0)


def test_pointers_are_followed_in_the_callers_memory(foreign: Foreign) -> None:
    assert current_mm() is foreign
    assert copy_from_user(foreign.page, 5) == b"child"
    copy_to_user(foreign.page + 100, b"answer")
    assert copy_from_user(foreign.page + 100, 6) == b"answer"
    assert foreign.buffers[0][:106].strip(b"\0") == b"", "our own memory at that address stays as it is"


def test_memory_can_be_named_whoever_calls(foreign: Foreign) -> None:
    use_mm(own_mm())
    assert copy_from_user(foreign.page, 5) == bytes(5)
    assert copy_from_user(foreign.page, 5, foreign) == b"child"


def test_a_read_only_page_of_the_caller_refuses_a_write(foreign: Foreign) -> None:
    with pytest.raises(OSError) as raised:
        copy_to_user(foreign.read_only, b"x")
    assert raised.value.errno == errno.EFAULT


def test_a_slot_belongs_to_whoever_made_it(foreign: Foreign) -> None:
    """The window is asked of the caller's address space, also when the fault comes on another thread."""
    asked: list[tuple[int, int]] = []

    class Memory:
        def map_user(self, address: int, length: int) -> int:
            assert address == 0x7000_0000
            return 1 << 30

    def reach(start: int, end: int) -> int:
        asked.append((start, end))
        return 0x7000_0000

    foreign.reach = reach  # type: ignore[method-assign]
    slot = HvaMapping(UserWindows(Memory()), foreign.read_only, 8192)  # type: ignore[arg-type]
    use_mm(own_mm())
    hpa, start, end, writable = slot.hpa(foreign.read_only + 4096, False)
    assert (hpa, start, end, writable) == ((1 << 30) + 4096, foreign.read_only, foreign.read_only + 8192, False)
    assert asked == [(foreign.read_only, foreign.read_only + 8192)]
