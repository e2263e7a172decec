# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_EMULATED_CPUID (kvm_dev_ioctl_get_cpuid, sanity_check_entries, cpuid_func_emulated of cpuid.c)."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError

HEADER, ENTRY = 8, ctypes.sizeof(k.kvm_cpuid_entry2)
PADDING = k.kvm_cpuid_entry2.padding
MOVBE, RDPID, RDTSCP = 1 << 22, 1 << 22, 1 << 27


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def test_what_is_emulated(kvm: Kvm) -> None:
    found = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in kvm.emulated_cpuid()]
    (extended,) = [entry for entry in kvm.supported_cpuid() if entry.function == 0x80000001]
    rdpid = RDPID if extended.edx & RDTSCP else 0
    significant = int(k.KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    assert found == [(0, 0, 0, 7, 0, 0, 0), (1, 0, 0, 0, 0, MOVBE, 0), (7, 0, significant, 0, 0, rdpid, 0)]


def ask(kvm: Kvm, nent: int, dirty: int | None = None, word: int = 0) -> int:
    """The errno of a request, with a word of an entry's padding that is not 0."""
    request = bytearray(HEADER + ENTRY * 300)
    request[:4] = nent.to_bytes(4, "little")
    if dirty is not None:
        request[HEADER + ENTRY * dirty + PADDING.offset + 4 * word] = 1
    try:
        kvm.ioctl(k.KVM_GET_EMULATED_CPUID, ctypes.addressof(ctypes.c_char.from_buffer(request)))
    except KvmError as error:
        return error.errno or 0
    assert int.from_bytes(request[:4], "little") == 3
    return 0


@pytest.mark.parametrize(
    ("nent", "expected"), [(n, errno.E2BIG) for n in range(4)] + [(4, 0), (256, 0), (0xFFFFFFFF, 0)]
)
def test_the_room_that_is_needed(kvm: Kvm, nent: int, expected: int) -> None:
    """One more than there are entries: the next leaf is looked at before it is found to be none."""
    assert ask(kvm, nent) == expected


@pytest.mark.parametrize("word", range(3))
@pytest.mark.parametrize(("nent", "dirty", "expected"), [
    (4, 0, errno.EINVAL), (4, 3, errno.EINVAL), (4, 4, 0), (2, 1, errno.EINVAL), (2, 2, errno.E2BIG),
    (1000, 255, errno.EINVAL), (1000, 256, 0), (0, 0, errno.E2BIG),
])  # fmt: skip
def test_padding_that_is_not_0(kvm: Kvm, nent: int, dirty: int, word: int, expected: int) -> None:
    """Of as many entries as are asked for, and at most KVM_MAX_CPUID_ENTRIES."""
    assert ask(kvm, nent, dirty, word) == expected


def test_entries_that_cannot_be_read(kvm: Kvm) -> None:
    libc = ctypes.CDLL(None)
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(address + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    at = address + mmap.PAGESIZE - HEADER - 4 * ENTRY
    for nent, expected in ((4, 0), (5, errno.EINVAL)):
        ctypes.c_uint32.from_address(at).value = nent
        try:
            kvm.ioctl(k.KVM_GET_EMULATED_CPUID, at)
            result = 0
        except KvmError as error:
            result = error.errno or 0
        assert result == expected
    assert libc.mprotect(ctypes.c_void_p(address + mmap.PAGESIZE), mmap.PAGESIZE, 3) == 0
