# SPDX-License-Identifier: GPL-2.0-or-later
"""The console: finding text between escape sequences, streaming, and the keys after Ctrl-A."""

from __future__ import annotations

import io
import os
import pty
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.vmm.console import RECORD_SIZE, GuestOutput, Keyboard, TextWatch


def test_a_text_is_found_between_escape_sequences() -> None:
    watch = TextWatch("Shell>")
    assert not watch.feed(b"\x1b[2J\x1b[01;01HPress \x1b[1m\x1b[37mESC\x1b[0m in 1 second")
    assert not watch.feed(b"\x1b[06;01H\x1b[1m\x1b[33m\x1b[40mSh")
    assert watch.feed(b"\x1b[0mell\x1b(B>\x1b[37m")


@given(st.text("abc", min_size=1, max_size=4), st.binary(max_size=60).filter(lambda data: b"\x1b" not in data))
def test_without_escapes_it_finds_what_a_search_finds(text: str, data: bytes) -> None:
    assert TextWatch(text).feed(data) == (text.encode() in data)


def test_there_must_be_a_text() -> None:
    with pytest.raises(ValueError, match="is empty"):
        TextWatch("")


def test_output_is_streamed_recorded_and_watched() -> None:
    stream, found = io.BytesIO(), []
    output = GuestOutput(stream, TextWatch("ok"), lambda: found.append(1))
    for byte in b"line\nok>":
        output.put(bytes((byte,)))
    assert stream.getvalue() == b"line\n"
    output.flush()
    assert stream.getvalue() == b"line\nok>"
    assert not output.ends_in_newline
    assert found == [1]
    output.put(b"k")
    assert output.record == b"line\nok>k"


def test_the_record_keeps_the_last_of_an_endless_output() -> None:
    output = GuestOutput(None)
    for number in range(40):
        output.put(b"%07d\n" % number * (RECORD_SIZE // 64))
    assert RECORD_SIZE <= len(output.record) <= 2 * RECORD_SIZE
    assert output.record.endswith(b"0000039\n")


def test_a_lost_reader_is_noticed_once_and_the_guest_goes_on() -> None:
    lost = []
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as stream:
        output = GuestOutput(stream, on_lost=lambda: lost.append(1))
        output.put(b"\n")
        output.put(b"\n")
    assert lost == [1]
    assert output.record == b"\n\n"


class Typist:
    """A keyboard without terminal, and what it does."""

    def __init__(self) -> None:
        self.typed, self.left = bytearray(), 0
        self.said: list[str] = []
        self.keyboard = Keyboard(0, self.typed.extend, self._leave, self.said.append, lambda: "fine")

    def _leave(self) -> None:
        self.left += 1


def test_plain_keys_go_to_the_guest() -> None:
    typist = Typist()
    typist.keyboard.take(b"dir\r\x1b[A\x03")
    assert typist.typed == b"dir\r\x1b[A\x03"


def test_ctrl_a_commands() -> None:
    typist = Typist()
    typist.keyboard.take(b"a\x01")
    typist.keyboard.take(b"hb\x01c\x01\x01\x01ac\x01q")
    assert typist.typed == b"ab\x01\x01c"
    assert "Ctrl-A X" in typist.said[0]
    assert typist.said[1] == "fine"
    typist.keyboard.take(b"\x01x\x01X")
    assert typist.left == 2


def test_a_terminal_is_raw_while_the_guest_runs_and_restored_after() -> None:
    master, slave = pty.openpty()
    typed = bytearray()
    before = termios.tcgetattr(slave)
    with Keyboard(slave, typed.extend, lambda: None, lambda text: None, lambda: ""):
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(master, b"x\x03")
        deadline = time.monotonic() + 10
        while len(typed) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert typed == b"x\x03"
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
