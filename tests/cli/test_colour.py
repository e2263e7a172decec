# SPDX-License-Identifier: GPL-2.0-or-later
"""Results have colour on a terminal, and none anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.cli.colour import of_line
from testing.tdvf_image import image_with

BOLD, GREEN, RED, END = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    master, slave = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        subprocess.run(
            [sys.executable, "-m", "swtdx", *arguments],
            stdout=slave, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=clean | {"TERM": "xterm", "COLUMNS": "200"} | environment, timeout=100, check=False,
        )  # fmt: skip
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                return shown.decode().replace("\r\n", "\n")
    finally:
        os.close(master)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    good, broken, trace = tmp_path / "good.fd", tmp_path / "broken.fd", tmp_path / "t.jsonl"
    good.write_bytes(image_with())
    broken.write_bytes(bytes(8192))
    event = '{"kind":"exit","name":"IO","t":1.0,"dur":1.0,"tid":1,"args":{},"vcpu":0,"guest":0.5}\n'
    trace.write_text('{"kind":"trace","version":1}\n' + event + '{"kind":"end","events":1,"record":null}\n')
    return {"good": str(good), "broken": str(broken), "events": str(trace)}


@pytest.mark.parametrize(
    ("arguments", "coloured"),
    [
        (["inspect", "good"], f"{BOLD}TD{END}       {GREEN}yes, it can start as a TD{END}"),
        (["inspect", "broken"], f"{BOLD}TD{END}       {RED}no, it cannot start as a TD:{END}"),
        (["explain", "EIO", "--command", "KVM_TDX_INIT_VM"], f"{BOLD}failed{END}"),
        (["trace", "summary", "events"], f"{BOLD}kind  name  count"),
    ],
)
def test_a_terminal_shows_colour_and_a_pipe_or_no_color_the_bare_words(
    arguments: list[str], coloured: str, files: dict[str, str]
) -> None:
    words = [files.get(word, word) for word in arguments]
    assert coloured in on_a_terminal(*words)
    plain = coloured.replace(BOLD, "").replace(GREEN, "").replace(RED, "").replace(END, "")
    for shown in (
        on_a_terminal(*words, NO_COLOR="1"),
        on_a_terminal(*words, TERM="dumb"),
        subprocess.run([sys.executable, "-m", "swtdx", *words], capture_output=True, text=True, check=False).stdout,
    ):
        assert plain in shown
        assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "host     /dev/kvm makes VMs but no TDs: bit 5",
            f"{BOLD}host{END}     {RED}/dev/kvm makes VMs but no TDs: bit 5{END}",
        ),
        ("embedded makes VMs and TDs, module 1", f"{BOLD}embedded{END} {GREEN}makes VMs and TDs, module 1{END}"),
        ("firmware /x.fd: can start as a TD", f"{BOLD}firmware{END} {GREEN}/x.fd: can start as a TD{END}"),
        ("do       not twice", f"{BOLD}do{END}       not twice"),
        ("note that this is a sentence", "note that this is a sentence"),
        ("       0x100000000 +------+", "       0x100000000 +------+"),
        ("", ""),
    ],
)
def test_keys_are_bold_and_verdicts_green_or_red(line: str, expected: str) -> None:
    assert of_line(line) == expected
