# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory is copied, never touched: whatever the pointer, EFAULT at worst."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.cpu._engine import read_user
from swtdx.linux.kept_file import KeptFile
from swtdx.linux.uaccess import Mm, copy_from_user, copy_to_user, get_user, put_user
from tests.cpu.guest import Guest

FAULTS = {signal.SIGSEGV, signal.SIGBUS}


@pytest.fixture(params=["by the processor's core", "by system calls"], autouse=True)
def copied(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of copying: where the core could not catch a fault, it leaves the copy to system calls."""
    Guest("hlt")  # a processor, with which the core's handlers come
    by_core = request.param == "by the processor's core"
    if not by_core:
        signal.pthread_sigmask(signal.SIG_BLOCK, FAULTS)
    word = ctypes.c_uint64(5)
    assert read_user(ctypes.addressof(word), 8) == (bytes(word) if by_core else None)
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FAULTS)


@pytest.mark.parametrize("length", [1, 24, 4096, 4097, 100_000])
def test_copies_of_any_length(length: int) -> None:
    data = bytes(n * 7 & 0xFF for n in range(length))
    memory = ctypes.create_string_buffer(length)
    copy_to_user(ctypes.addressof(memory), data)
    assert memory.raw == data
    assert copy_from_user(ctypes.addressof(memory), length) == data


def test_integers_are_little_endian() -> None:
    word = ctypes.c_uint64(0x1122334455667788)
    assert get_user(ctypes.addressof(word), 4) == 0x55667788
    put_user(ctypes.addressof(word), 1, 8)
    assert word.value == 1


@pytest.mark.parametrize("address", [0, 8, 0xFFFFFFFFFFFFFFF8, 1 << 47, 0xFFFF888000000000])
def test_a_bad_pointer_is_efault(address: int) -> None:
    for call in (lambda: copy_from_user(address, 24), lambda: copy_to_user(address, bytes(24))):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EFAULT


def test_a_copy_that_ends_in_unmapped_memory_is_efault() -> None:
    area = mmap.mmap(-1, 8192)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(address + 4096, 4096, 0) == 0
    with pytest.raises(OSError) as caught:
        copy_from_user(address + 4000, 200)
    assert caught.value.errno == errno.EFAULT


def test_a_read_only_page_refuses_a_write() -> None:
    area = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(address, 4096, mmap.PROT_READ) == 0
    assert copy_from_user(address, 8) == bytes(8)
    with pytest.raises(OSError) as caught:
        copy_to_user(address, b"12345678")
    assert caught.value.errno == errno.EFAULT


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 5000))
def test_any_address_answers_with_bytes_or_efault(address: int, length: int) -> None:
    try:
        outcome = len(copy_from_user(address, length))
    except OSError as error:
        outcome = -(error.errno or 0)
    assert outcome in (length, -errno.EFAULT)


def test_a_mapping_is_found_while_another_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read in pieces, by a descriptor that is kept: what others unmap and look for hides nothing."""
    mm = Mm()
    mm.kept_maps = KeptFile(f"/proc/{os.getpid()}/maps", os.O_RDONLY)
    areas = [mmap.mmap(-1, 4096, prot=prot) for _ in range(100) for prot in (3, 1)]  # neighbours do not merge
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(area)) for area in areas[::2]]
    goes: list[mmap.mmap] = []
    threads: list[threading.Thread] = []

    def watched(read: Callable[..., bytes]) -> Callable[..., bytes]:
        def then_unmap(*arguments: int) -> bytes:
            piece = read(*arguments)
            if goes:
                goes.pop().close()  # the lowest mapping, which was in the first piece
                threads.append(threading.Thread(target=mm.find_vma, args=(addresses[-1],)))
                threads[-1].start()
                threads[-1].join(0.02)
            return piece

        return then_unmap

    for name in ("read", "pread"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    found = []
    for address in addresses:
        goes.append(mmap.mmap(-1, 4096))
        found.append(mm.find_vma(address))
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    os.close(mm.kept_maps.fd())
    assert not goes, "the list was read in pieces"
    assert [vma and vma[0] <= at < vma[1] and vma[2:] for at, vma in zip(addresses, found, strict=True)] == [
        (True, True)
    ] * len(addresses)
