# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's kernel behind the line, without KVM, and the survey's sentence for a person."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator

import pytest

from swtdx.uapi.client import KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel, KvmOffer, dialect_spoken
from swtdx.uapi.kernel import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from swtdx.uapi.kvm import DEV_KVM, KVM_GET_API_VERSION, Cap


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("page")
    os.write(fd, b"x" * 0x2000)
    yield fd
    os.close(fd)


def test_errors_carry_the_systems_errno() -> None:
    with pytest.raises(OSError) as caught:
        HostKernel().ioctl(-1, KVM_GET_API_VERSION)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(FileNotFoundError):
        HostKernel().open("/nowhere")


def test_an_ioctl_that_the_file_does_not_know(memfd: int) -> None:
    with pytest.raises(OSError) as caught:
        HostKernel().ioctl(memfd, KVM_GET_API_VERSION)
    assert caught.value.errno == errno.ENOTTY


def test_a_mapping_is_shared(memfd: int) -> None:
    with HostKernel().mmap(memfd, 0x1000, 0x1000) as mapping:
        mapping[0] = ord("y")
    assert os.pread(memfd, 2, 0x1000) == b"yx"


def test_a_hole_is_punched(memfd: int) -> None:
    HostKernel().fallocate(memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 0x1000)
    assert os.pread(memfd, 1, 0) == b"\0"
    assert os.fstat(memfd).st_size == 0x2000
    with pytest.raises(OSError) as caught:
        HostKernel().fallocate(memfd, 0x1000, 0, 0x1000)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_an_eventfd_counts() -> None:
    kernel = HostKernel()
    fd = kernel.eventfd(3)
    assert os.eventfd_read(fd) == 3
    kernel.close(fd)


class Answering(HostKernel):
    """A kernel that answers KVM_CHECK_EXTENSION out of a dictionary."""

    def __init__(self, capabilities: dict[int, int]) -> None:
        self.capabilities = capabilities

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        return self.capabilities.get(arg, 0)


@pytest.mark.parametrize(
    ("capabilities", "dialect"),
    [
        ({}, None),
        ({235: 0x1}, None),
        ({235: 0x3}, None),  # software-protected VMs
        ({235: 0x21}, Dialect.UPSTREAM),
        ({225: 0x3}, Dialect.V10),
        ({225: 0x1, 235: 0x1}, None),  # upstream's dirty ring with bitmap
        ({225: 0x1, 235: 0x21}, Dialect.UPSTREAM),
    ],
)
def test_the_dialect_spoken(capabilities: dict[int, int], dialect: Dialect | None) -> None:
    assert dialect_spoken(Answering(capabilities), 0) is dialect


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        (KvmOffer(DEV_KVM, errno.ENOENT, None, 0, None), "No such file"),
        (KvmOffer(DEV_KVM, None, 11, 0, None), "API version is 11"),
        (KvmOffer(DEV_KVM, None, 12, 0x1, None), "KVM_CAP_VM_TYPES is 0x1, without bit 5"),
        (KvmOffer(DEV_KVM, None, 12, 0x21, Dialect.UPSTREAM), "makes VMs and TDs (upstream dialect"),
    ],
)
def test_the_survey_says_what_is_missing(offer: KvmOffer, words: str) -> None:
    assert words in str(offer)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(KvmError(errno.EINVAL, "KVM_TDX_INIT_VM", 0xC000010000000080)))
    assert (error.errno, error.ioctl, error.hw_error) == (errno.EINVAL, "KVM_TDX_INIT_VM", 0xC000010000000080)


def test_capabilities_have_their_names() -> None:
    assert Cap(121).name == "SPLIT_IRQCHIP"
