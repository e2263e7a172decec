# SPDX-License-Identifier: GPL-2.0-or-later
"""When words on the console are a panic: Linux's kernel/panic.c on one side, people who show logs on the other."""

from __future__ import annotations

import pytest

from swtdx.vmm.panic_watch import Activity, PanicWatch

BEGIN = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
END = b"[    1.240000] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"


class Guest:
    """A clock, and what the vCPUs do as it advances."""

    def __init__(self) -> None:
        self.now = 100.0
        self.halts = 7
        self.seconds = 3.0
        self.watch = PanicWatch(lambda: Activity(self.halts, self.seconds), lambda: self.now)

    def lives(self, seconds: float, *, computes: float = 1.0, halts: int = 0) -> bool:
        """Let time pass in small steps; returns whether it has panicked by then."""
        for _ in range(int(seconds * 20)):
            self.now += 0.05
            self.seconds += 0.05 * computes
            if self.watch.panicked():
                return True
        self.halts += halts
        return self.watch.panicked()


def test_a_kernel_that_ends_its_report_and_spins_has_panicked() -> None:
    guest = Guest()
    guest.watch.feed(b"[    1.2] VFS: Cannot open root device\r\n" + BEGIN + b"[    1.235] CPU: 0 PID: 1\r\n" + END)
    assert guest.lives(4)
    assert guest.watch.reason == "VFS: Unable to mount root fs"


def test_a_kernel_that_hangs_in_its_report_has_panicked_too() -> None:
    guest = Guest()
    guest.watch.feed(BEGIN)
    assert not guest.lives(20)
    assert guest.lives(20)


def test_a_loaded_machine_gets_more_time() -> None:
    guest = Guest()
    guest.watch.feed(BEGIN + END)
    assert not guest.lives(4, computes=0.1)
    assert guest.lives(20, computes=0.1)


@pytest.mark.parametrize(
    "prefix",
    ["", "[    0.000000] ", "[12345.678901] ", "<0>", "<0>[    1.000000] ", "[    1.000000][    T1] ", "[ 1.0][   C0] ",
     "\x1b[31m", "\x1b[1;31m[    1.000000] ", "\r"],
)  # fmt: skip
def test_the_ways_in_which_a_line_can_begin(prefix: str) -> None:
    guest = Guest()
    for words in ("", "Kernel panic - not syncing: x", "---[ end Kernel panic - not syncing: x ]---"):
        guest.watch.feed(f"{prefix}{words}\r\n".encode())
    assert guest.lives(4)


@pytest.mark.parametrize(
    "line",
    [
        b"log of another machine: Kernel panic - not syncing: old news",
        b"# grep 'Kernel panic - not syncing' /var/log/messages",
        b'"Kernel panic - not syncing"',
        b"Kernel panic",
        b"host kernel: [   12.000000] Kernel panic - not syncing: x",
        b"x" * 5000 + b"Kernel panic - not syncing",
    ],
)
def test_words_within_a_line_are_a_log(line: bytes) -> None:
    guest = Guest()
    guest.watch.feed(line + b"\r\n")
    assert not guest.lives(60)


def test_a_guest_that_shows_a_panic_and_goes_on_is_alive() -> None:
    """It waits in HLT for its next event, or it prints more."""
    halting, printing = Guest(), Guest()
    for guest in (halting, printing):
        guest.watch.feed(BEGIN + END)
    assert not halting.lives(1, halts=1)
    assert not halting.lives(60)
    for _ in range(60):
        assert not printing.lives(1)
        printing.watch.feed(b"still here\r\n")


def test_a_guest_that_sleeps_is_alive() -> None:
    """Halted all the time it computes nothing, and may make no new halt either."""
    guest = Guest()
    guest.watch.feed(BEGIN + END)
    assert not guest.lives(60, computes=0.01)


def test_a_crash_kernel_takes_over() -> None:
    """It checks and unpacks itself in silence for seconds, then prints; when it panics itself, that counts."""
    guest = Guest()
    guest.watch.feed(BEGIN)
    assert not guest.lives(20)
    guest.watch.feed(b"[    0.000000] Linux version 6.12\r\n")
    assert not guest.lives(5, halts=3)
    assert not guest.lives(60)
    guest.watch.feed(BEGIN.replace(b"VFS", b"again") + END.replace(b"VFS", b"again"))
    assert guest.lives(4)
    assert guest.watch.reason.startswith("again")


def test_it_does_not_matter_how_the_bytes_come() -> None:
    guest = Guest()
    for byte in BEGIN + END:
        guest.watch.feed(bytes((byte,)))
    assert guest.lives(4)


def test_a_line_without_end_takes_no_memory() -> None:
    guest = Guest()
    for _ in range(100):
        guest.watch.feed(b"Kernel panic" * 1000)
    assert len(guest.watch._line) < 5000
