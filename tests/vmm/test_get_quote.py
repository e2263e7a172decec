# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.VP.VMCALL<GetQuote>: checks, statuses and the buffer, as QEMU has them (target/i386/kvm/tdx.c)."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from swtdx.uapi import kvm
from swtdx.vmm.get_quote import GetQuote, QuoteRefused, QuoteUnavailable

BUFFER, SIZE = 0x1000, 0x2000
IN_FLIGHT = 0xFFFF_FFFF_FFFF_FFFF
ERROR, UNAVAILABLE = 0x8000_0000_0000_0000, 0x8000_0000_0000_0001


class Memory:
    """256 KiB from address 0 on."""

    def __init__(self) -> None:
        self.content = bytearray(256 << 10)

    def contains(self, gpa: int, length: int) -> bool:
        return gpa + length <= len(self.content)

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(self.content[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        self.content[gpa : gpa + len(data)] = data

    def header(self, gpa: int = BUFFER) -> tuple[int, ...]:
        return struct.unpack_from("<QQII", self.content, gpa)


class Source:
    """Answers with ``answer``, when ``go`` is set."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.go = threading.Event()
        self.go.set()
        self.seen: list[bytes] = []
        self.patience = 5.0

    def quote(self, report: bytes) -> bytes:
        self.seen.append(report)
        self.go.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.go.set()


@pytest.fixture
def memory() -> Memory:
    memory = Memory()
    for gpa in range(BUFFER, BUFFER + 20 * SIZE, SIZE):
        memory.write(gpa, struct.pack("<QQII", 1, 0, 1024, 0) + bytes(range(256)) * 4)
    return memory


@pytest.fixture
def notified() -> list[int]:
    return []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(thread.name == "get-quote" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def service(memory: Memory, source: Source | None, notified: list[int], said: list[str] | None = None) -> GetQuote:
    return GetQuote(memory, source, lambda: notified.append(1), (said if said is not None else []).append)


def test_a_quick_quote_is_there_when_the_call_returns(memory: Memory, notified: list[int]) -> None:
    source = Source(b"quote" * 100)
    assert service(memory, source, notified).request(BUFFER, SIZE) == 0
    assert memory.header() == (1, 0, 1024, 500)
    assert memory.read(BUFFER + 24, 500) == b"quote" * 100
    assert source.seen == [bytes(range(256)) * 4]
    assert notified == [1]


def test_a_slow_quote_comes_later(memory: Memory, notified: list[int]) -> None:
    source = Source(b"late")
    source.patience = 0.05
    source.go.clear()
    assert service(memory, source, notified).request(BUFFER, SIZE) == 0
    assert memory.header() == (1, IN_FLIGHT, 1024, 0)
    assert notified == []
    source.go.set()
    deadline = time.monotonic() + 5
    while not notified and time.monotonic() < deadline:
        time.sleep(0.01)
    assert memory.header() == (1, 0, 1024, 4)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(QuoteUnavailable("none"), UNAVAILABLE), (QuoteRefused("no"), ERROR), (bytes(SIZE - 23), ERROR)],
    ids=["unavailable", "refused", "too long"],
)
def test_failures_leave_data_and_length_alone(
    answer: bytes | Exception, status: int, memory: Memory, notified: list[int]
) -> None:
    said: list[str] = []
    before = memory.read(BUFFER + 16, SIZE - 16)
    assert service(memory, Source(answer), notified, said).request(BUFFER, SIZE) == 0
    assert memory.header() == (1, status, 1024, 0)
    assert memory.read(BUFFER + 16, SIZE - 16) == before
    assert (notified, len(said)) == ([1], 1)


def test_the_largest_quote_that_fits(memory: Memory, notified: list[int]) -> None:
    assert service(memory, Source(b"q" * (SIZE - 24)), notified).request(BUFFER, SIZE) == 0
    assert memory.header() == (1, 0, 1024, SIZE - 24)


def test_without_a_service_the_guest_reads_so(memory: Memory, notified: list[int]) -> None:
    assert service(memory, None, notified).request(BUFFER, SIZE) == 0
    assert memory.header() == (1, UNAVAILABLE, 1024, 0)
    assert notified == [1]


@pytest.mark.parametrize("source", [None, Source(b"q")], ids=["no service", "a service"])
@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (BUFFER, 0, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (BUFFER + 8, 0, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (BUFFER + 8, SIZE, kvm.TDVMCALL_STATUS_ALIGN_ERROR),
        (BUFFER, SIZE + 1, kvm.TDVMCALL_STATUS_ALIGN_ERROR),
        (0, (128 << 10) + 0x1000, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (1 << 40, SIZE, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (255 << 10 & ~0xFFF, 0x2000, kvm.TDVMCALL_STATUS_INVALID_OPERAND),
        (0, SIZE, kvm.TDVMCALL_STATUS_INVALID_OPERAND),  # version 0
    ],
)
def test_a_buffer_that_is_none(
    gpa: int, size: int, status: int, source: Source | None, memory: Memory, notified: list[int]
) -> None:
    before = bytes(memory.content)
    assert service(memory, source, notified).request(gpa, size) == status
    assert bytes(memory.content) == before
    assert notified == []


@pytest.mark.parametrize(("length", "status"), [(SIZE - 24, 0), (SIZE - 23, ERROR), (0xFFFFFFFF, ERROR)])
def test_a_length_beyond_the_buffer(length: int, status: int, memory: Memory, notified: list[int]) -> None:
    memory.write(BUFFER + 16, struct.pack("<I", length))
    assert service(memory, Source(b"q"), notified).request(BUFFER, SIZE) == status


def test_the_seventeenth_request_is_to_be_tried_again(memory: Memory, notified: list[int]) -> None:
    source = Source(b"q")
    source.patience = 0.0
    source.go.clear()
    requests = service(memory, source, notified)
    buffers = [BUFFER + index * SIZE for index in range(17)]
    assert [requests.request(gpa, SIZE) for gpa in buffers] == [0] * 16 + [kvm.TDVMCALL_STATUS_RETRY]
    assert memory.header(buffers[16]) == (1, 0, 1024, 0)
    source.go.set()
    deadline = time.monotonic() + 5
    while len(notified) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [memory.header(gpa)[1] for gpa in buffers[:16]] == [0] * 16
    assert requests.request(buffers[16], SIZE) == 0


def test_nothing_is_written_when_the_machine_is_gone(memory: Memory, notified: list[int]) -> None:
    source = Source(b"q")
    source.patience = 0.0
    source.go.clear()
    requests = service(memory, source, notified)
    requests.request(BUFFER, SIZE)
    before = bytes(memory.content)
    requests.close()
    assert source.go.is_set()
    assert bytes(memory.content) == before
    assert notified == []
    requests.request(BUFFER + SIZE, SIZE)
    assert bytes(memory.content) == before


def test_a_process_without_room_for_a_thread_has_the_guest_try_again(
    memory: Memory, notified: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux asks again only where the buffer does not say that a request is in flight."""
    get_quote = service(memory, Source(b"quote"), notified)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        assert get_quote.request(BUFFER, SIZE) == kvm.TDVMCALL_STATUS_RETRY
    assert memory.header() == (1, 0, 1024, 0)
    get_quote.close()
    again = service(memory, Source(b"quote"), notified)
    assert again.request(BUFFER, SIZE) == 0
    assert memory.header() == (1, 0, 1024, 5)


def no_room(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
