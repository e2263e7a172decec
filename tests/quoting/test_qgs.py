# SPDX-License-Identifier: GPL-2.0-or-later
"""The quote generation service: both protocols, on every kind of socket, and peers that mean no good."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from swtdx.attest.quote import parse_quote
from swtdx.quoting import qgs
from swtdx.quoting.enclave import QuotingEnclave
from swtdx.quoting.qgs import QgsServer, QgsUnusable, QuoteService
from swtdx.vmm.get_quote import QuoteRefused, QuoteUnavailable
from swtdx.vmm.qgs_message import MessageError, framed, parse_quote_response, parse_request, quote_request
from swtdx.vmm.qgs_socket import AddressError, QuoteSocket, SocketAddress, parse_address
from testing.tdreport import TdReportFields

REPORT = TdReportFields().pack()
HEADER = struct.Struct("<HHIII")


@pytest.fixture
def service(enclave: QuotingEnclave) -> QuoteService:
    return QuoteService(enclave)


@pytest.fixture
def server(service: QuoteService) -> Iterator[QgsServer]:
    with QgsServer(service, timeout=5.0) as running:
        yield running


@pytest.fixture
def address(server: QgsServer, tmp_path: Path) -> SocketAddress:
    return server.listen(parse_address(f"unix:{tmp_path}/qgs.socket"))


def ask(address: SocketAddress, *pieces: bytes, pause: float = 0.0, end: bool = False) -> bytes:
    """Send pieces, then read to the end of the connection."""
    with socket.socket(address.family, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(address.address)
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            if end:
                connection.shutdown(socket.SHUT_WR)
            taken = b""
            while piece := connection.recv(65536):
                taken += piece
        except ConnectionError:
            return b""
        return taken


def is_a_quote(quote: bytes) -> bool:
    return parse_quote(quote).body.reportdata.startswith(b"report data")


def test_a_framed_request_gets_a_framed_quote(address: SocketAddress) -> None:
    answer = ask(address, framed(quote_request(REPORT)))
    (length,) = struct.unpack(">I", answer[:4])
    assert length == len(answer) - 4
    assert HEADER.unpack(answer[4:20]) == (1, 1, 1, length, 0)
    assert struct.unpack("<II", answer[20:28]) == (0, length - 24)
    assert is_a_quote(answer[28:])


def test_a_bare_report_gets_a_bare_quote(address: SocketAddress) -> None:
    assert is_a_quote(ask(address, REPORT))
    assert ask(address, REPORT + b"\0") == b""
    assert ask(address, REPORT[:-1], end=True) == b""


@pytest.mark.parametrize("message", [framed(quote_request(REPORT)), REPORT], ids=["framed", "raw"])
def test_a_peer_that_sends_byte_by_byte(message: bytes, address: SocketAddress) -> None:
    pieces = [message[at : at + 1] for at in range(len(message))]
    assert is_a_quote(ask(address, *pieces)[28 if message is not REPORT else 0 :])


def test_a_report_that_is_refused_gets_an_error_code(address: SocketAddress) -> None:
    forged = bytes([*REPORT[:200], REPORT[200] ^ 1, *REPORT[201:]])
    answer = ask(address, framed(quote_request(forged)))
    assert struct.unpack(">I", answer[:4]) == (24,)
    assert HEADER.unpack(answer[4:20]) == (1, 1, 1, 24, 0x12001)
    assert answer[20:] == bytes(8)
    assert ask(address, forged) == b""


def test_collateral_and_platform_information(address: SocketAddress) -> None:
    fmspc, ca = b"swtdx\0", b"platform"
    body = struct.pack("<II", len(fmspc), len(ca)) + fmspc + ca
    answer = ask(address, framed(HEADER.pack(1, 1, 2, 16 + len(body), 0) + body))
    assert HEADER.unpack(answer[4:20])[2:] == (3, len(answer) - 4, 0)
    major, minor, *sizes = struct.unpack("<HH7I", answer[20:52])
    assert (major, minor, sum(sizes)) == (3, 0, len(answer) - 52)
    assert b'{"tcbInfo":{"id":"TDX"' in answer
    other = struct.pack("<II", 6, 8) + b"\x90\xc0\x6f\0\0\0platform"
    refused = ask(address, framed(HEADER.pack(1, 1, 2, 16 + len(other), 0) + other))
    assert HEADER.unpack(refused[4:20])[4] == 0x12001
    info = ask(address, framed(HEADER.pack(1, 1, 4, 16, 0)))
    assert HEADER.unpack(info[4:20])[2:] == (5, len(info) - 4, 0)
    assert struct.unpack("<HHII", info[20:32]) == (8, 13, 16, 16)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 0),
        struct.pack(">I", 15) + bytes(15),
        struct.pack(">I", 0x7FFFFFFF),
        struct.pack(">I", 0xFFFFFFFF) + bytes(64),
        struct.pack(">I", 1 << 20) + bytes(1 << 20),
        framed(HEADER.pack(2, 1, 0, 16, 0)),
        framed(HEADER.pack(1, 1, 9, 16, 0)),
        framed(HEADER.pack(1, 1, 1, 16, 0)),
        framed(HEADER.pack(1, 1, 0, 16, 0)),
        framed(HEADER.pack(1, 1, 4, 17, 0) + b"x"),
        framed(HEADER.pack(1, 1, 0, 24, 0) + struct.pack("<II", 0xFFFFFFFF, 1)),
        framed(quote_request(REPORT)[:-1]),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x81" * 1024,
    ],
)
def test_what_cannot_be_parsed_gets_no_answer_and_the_next_peer_does(message: bytes, address: SocketAddress) -> None:
    assert ask(address, message, end=True) == b""
    assert is_a_quote(ask(address, REPORT))


def test_an_empty_report_is_refused_politely(address: SocketAddress) -> None:
    answer = ask(address, framed(quote_request(b"")))
    assert HEADER.unpack(answer[4:20])[4] == 0x12001


def test_silent_peers_do_not_stop_others(server: QgsServer, address: SocketAddress) -> None:
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(8)]
    try:
        for each in silent:
            each.connect(address.address)
            each.sendall(b"\0\0")
        assert is_a_quote(ask(address, REPORT))
    finally:
        for each in silent:
            each.close()


def test_a_silent_peer_is_dropped_in_time(service: QuoteService, tmp_path: Path) -> None:
    with QgsServer(service, timeout=0.2) as server:
        place = server.listen(parse_address(f"{tmp_path}/slow.socket"))
        started = time.monotonic()
        assert ask(place, b"\0\0\4") == b""
        assert time.monotonic() - started < 5


def test_more_peers_than_places_wait_for_one(
    service: QuoteService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qgs, "MAXIMUM_CONNECTIONS", 2)
    with QgsServer(service, timeout=0.3) as server:
        place = server.listen(parse_address(f"{tmp_path}/few.socket"))
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        for each in silent:
            each.connect(place.address)
        assert is_a_quote(ask(place, REPORT))
        for each in silent:
            each.close()


def test_peers_for_whom_there_is_no_thread_are_dropped(
    service: QuoteService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are places: none of them keeps its own."""
    monkeypatch.setattr(qgs, "MAXIMUM_CONNECTIONS", 2)

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with QgsServer(service) as server:
        place = server.listen(parse_address(f"{tmp_path}/qgs.socket"))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            assert [ask(place, REPORT) for _ in range(4)] == [b""] * 4
        assert is_a_quote(ask(place, REPORT))


def test_many_at_once(address: SocketAddress) -> None:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(address, REPORT))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 24
    assert all(map(is_a_quote, answers))


def test_descriptors_and_threads_are_given_back(address: SocketAddress) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    ask(address, REPORT)
    before = held()
    for _ in range(50):
        ask(address, b"\0\0\0\1x", end=True)
    deadline = time.monotonic() + 5
    while held() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() <= before


def test_on_tcp(server: QgsServer) -> None:
    place = server.listen(parse_address("127.0.0.1:0"))
    assert is_a_quote(ask(place, REPORT))
    assert is_a_quote(QuoteSocket(place).quote(REPORT))


def test_on_vsock(server: QgsServer) -> None:
    try:
        place = server.listen(SocketAddress(socket.AF_VSOCK, (socket.VMADDR_CID_ANY, 40500 + os.getpid() % 1000)))
    except QgsUnusable as error:
        pytest.skip(f"NO VSOCK HERE ({error}): not shown that QGS serves it")
    try:
        answer = ask(SocketAddress(socket.AF_VSOCK, (1, place.address[1])), REPORT)  # VMADDR_CID_LOCAL
    except OSError as error:
        pytest.skip(f"NO VSOCK LOOPBACK HERE ({error.strerror}): not shown that QGS serves it")
    assert is_a_quote(answer)


def test_a_socket_of_a_dead_service_is_replaced_and_a_living_one_is_not(service: QuoteService, tmp_path: Path) -> None:
    path = tmp_path / "qgs.socket"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    with QgsServer(service) as first:
        first.listen(parse_address(str(path)))
        with QgsServer(service) as second, pytest.raises(QgsUnusable, match="another service listens there"):
            second.listen(parse_address(str(path)))
        assert is_a_quote(ask(parse_address(str(path)), REPORT))
    assert not path.exists()


def test_places_where_nothing_can_listen(service: QuoteService, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with QgsServer(service) as server:
        with pytest.raises(QgsUnusable, match="is not a socket"):
            server.listen(parse_address(f"{tmp_path}/file"))
        with pytest.raises(QgsUnusable, match="there is no folder"):
            server.listen(parse_address(f"{tmp_path}/none/qgs.socket"))
        taken = server.listen(parse_address("127.0.0.1:0"))
        with pytest.raises(QgsUnusable, match="in use"):
            server.listen(taken)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an address"),
        ("nonsense", "not an address"),
        ("unix:", "needs a path"),
        ("/" + "x" * 107, "at most 107 bytes, this one has 108"),
        ("vsock:2:4294967296", "numbers of 32 bits"),
        ("127.0.0.1:70000", "not a TCP port"),
        ("{", "not a SocketAddress"),
        ('{"type": "unix"}', "not a SocketAddress"),
        ('{"type": "fd", "str": "3"}', "the type is unix, vsock or inet"),
        ('{"type": "vsock", "cid": "x", "port": "1"}', "numbers of 32 bits"),
        *(
            (f'{{"type": "inet", "host": "{host}", "port": "1"}}', "not the name or the address of a host")
            for host in ("a b", "a\\u0000b", "\\ud800", "\\u00e9", "a\\nb")
        ),
    ],
)
def test_what_is_not_an_address(text: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/" + "x" * 106, "unix:/" + "x" * 106),
        ("unix:relative", "unix:relative"),
        ("localhost:1", "tcp:localhost:1"),
        ("[::1]:4050", "tcp:[::1]:4050"),
        ("tcp:127.0.0.1:4050", "tcp:127.0.0.1:4050"),
        ('{"type":"inet","host":"fe80::1%lo","port":"4050"}', "tcp:[fe80::1%lo]:4050"),
        ('{"type":"unix","path":"/a"}', "unix:/a"),
        ('{"type":"inet","host":"127.0.0.1","port":"4050"}', "tcp:127.0.0.1:4050"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


# --- The VMM's side ---------------------------------------------------------------------------------------------------


class Answering:
    """A peer that sends ``answer`` to the first that connects, and then closes."""

    def __init__(self, path: Path, answer: bytes, wait: float = 0.0) -> None:
        self.address = SocketAddress(socket.AF_UNIX, str(path))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(answer, wait), daemon=True)
        self._thread.start()

    def _serve(self, answer: bytes, wait: float) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(OSError):
            time.sleep(wait)
            connection.recv(65536)
            connection.sendall(answer)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


GOOD = struct.pack("<HHIIIII", 1, 1, 1, 27, 0, 0, 3) + b"abc"


def test_an_answer_is_unwrapped(tmp_path: Path) -> None:
    peer = Answering(tmp_path / "s", framed(GOOD))
    assert QuoteSocket(peer.address).quote(REPORT) == b"abc"
    peer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0\0",
        framed(b""),
        framed(GOOD)[:-1],
        framed(GOOD[:23]),
        struct.pack(">I", 0xFFFFFFFF) + GOOD,
        framed(b"\2" + GOOD[1:]),  # major version
        framed(GOOD[:2] + b"\2" + GOOD[3:]),  # minor version
        framed(GOOD[:4] + b"\3" + GOOD[5:]),  # type
        framed(GOOD[:8] + b"\x1c" + GOOD[9:]),  # size beyond the message
        framed(GOOD[:12] + b"\1\x20\1" + GOOD[15:]),  # error
        framed(GOOD[:16] + b"\1" + GOOD[17:]),  # an identity was selected
        framed(GOOD[:20] + b"\2" + GOOD[21:]),  # size of the quote
    ],
)
def test_an_answer_that_qemu_refuses_is_refused(answer: bytes, tmp_path: Path) -> None:
    peer = Answering(tmp_path / "s", answer)
    with pytest.raises(QuoteRefused):
        QuoteSocket(peer.address, timeout=5).quote(REPORT)
    peer.close()


def test_no_service_is_unavailable_and_a_slow_one_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(QuoteUnavailable, match="no service at unix:"):
        QuoteSocket(parse_address(f"{tmp_path}/none")).quote(REPORT)
    peer = Answering(tmp_path / "s", framed(GOOD), wait=0.4)
    with pytest.raises(QuoteRefused, match=r"has not answered after 0.1 s"):
        QuoteSocket(peer.address, timeout=0.1).quote(REPORT)
    peer.close()


def test_closing_ends_a_request_that_is_under_way(tmp_path: Path) -> None:
    peer = Answering(tmp_path / "s", b"", wait=1.0)
    source = QuoteSocket(peer.address)
    threading.Timer(0.1, source.close).start()
    started = time.monotonic()
    with pytest.raises(QuoteRefused):
        source.quote(REPORT)
    assert time.monotonic() - started < 0.9
    peer.close()


# --- Mutations --------------------------------------------------------------------------------------------------------


def damaged(seed: bytes, random: Random) -> bytes:
    data = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        kind, at = random.randrange(4), random.randrange(len(data) or 1)
        if kind == 0 and data:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[at : at + random.randint(1, 64)]
        elif kind == 2:
            data[at:at] = random.randbytes(random.randint(1, 64))
        elif len(data) >= at + 4:
            data[at : at + 4] = random.choice([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f"])
    return bytes(data)


@pytest.mark.parametrize("parse", [parse_request, parse_quote_response], ids=["request", "response"])
def test_parsers_raise_nothing_else(parse: Callable[[bytes], object]) -> None:
    random = Random(16)
    for _ in range(2000):
        message = damaged(random.choice([quote_request(REPORT), GOOD]), random)
        with suppress(MessageError):
            parse(message)


def test_a_service_takes_whatever_comes(service: QuoteService) -> None:
    random = Random(17)
    for _ in range(500):
        service.message(damaged(quote_request(REPORT), random))
        service.raw(damaged(REPORT, random))
