# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a run: by what the kernel of the guest printed, how the run ended, or what the user's checker says.

Two runs have the same outcome if they are of one kind and have the same words, numbers apart, at the same function.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from swtdx.vmm.outcome import End
from swtdx.vmm.outcome import Outcome as Ended

CRASHES = ("kasan", "bug", "oops", "panic", "checker", "triple fault", "crash", "hang", "fatal", "swtdx")
"""Kinds that are kept. ``fatal``: the guest reported it by itself; ``swtdx``: the fault is ours."""
HARMLESS = ("warning", "ended", "enough", "time")
_PREFIX = rb"(?:<\d+>)?(?:\[ *\d+\.\d+\] ?)?(?:\[ *[TC]\d+\] ?)?"
_SAID = [
    (kind, re.compile(_PREFIX + words))
    for kind, words in (
        ("kasan", rb"BUG: KASAN: (.*)"),
        ("bug", rb"kernel BUG at (.*)!"),
        ("oops", rb"((?:Oops: |BUG: kernel NULL|BUG: unable to handle|general protection fault|divide error).*)"),
        ("bug", rb"BUG: (.*)"),
        ("panic", rb"Kernel panic - not syncing(?:: ?)?(.*)"),
        ("warning", rb"WARNING: (?:CPU: \d+ )?(?:PID: \d+ )?at (.*)"),
    )
]
_RIP = re.compile(_PREFIX + rb"RIP: 0010:([\w.]+)\+0x")
_OVER = re.compile(rb"---\[ end (?:Kernel panic|trace)")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,16}\b|\d+", re.IGNORECASE)
_SHOWN = 4096


@dataclass(frozen=True)
class Outcome:
    """``kind`` of `CRASHES` or `HARMLESS`; ``what``: in words; ``where``: a function or an address, if known."""

    kind: str
    what: str
    where: str = ""
    console: str = ""

    @property
    def is_crash(self) -> bool:
        """Whether it is to be kept."""
        return self.kind in CRASHES

    @property
    def signature(self) -> str:
        """What is the same for two runs with the same outcome."""
        return f"{self.kind}: {_NUMBERS.sub('#', self.what)}{' at ' + self.where if self.where else ''}"

    @property
    def name(self) -> str:
        """A name for a file."""
        digest = hashlib.sha256(self.signature.encode()).hexdigest()[:8]
        return f"{self.kind.replace(' ', '-')}-{digest}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}" + (f" at {self.where}" if self.where else "")


def said(console: bytes) -> Outcome | None:
    """Return the first of what a kernel says when something is wrong; a warning only if there is nothing else."""
    warning: Outcome | None = None
    lines = console.split(b"\n")[:-1]  # the last one may not be all there
    for number, line in enumerate(lines):
        for kind, pattern in _SAID:
            match = pattern.match(line.strip(b"\r "))
            if match is None:
                continue
            at = next((found[1] for each in lines[number:] if (found := _RIP.match(each.strip(b"\r ")))), b"")
            outcome = Outcome(kind, _text(match[1]), _text(at), _text(console[-_SHOWN:]))
            if kind != "warning":
                return outcome
            warning = warning or outcome
            break
    return warning


def is_over(console: bytes) -> bool:
    """Whether the kernel has printed the last line that it will."""
    return _OVER.search(console) is not None


def ended(end: Ended, console: bytes, rip: int) -> Outcome | None:
    """Return what the end of a run says by itself; None: nothing is wrong with it."""
    shown = _text(console[-_SHOWN:])
    if end.end is End.INTERNAL_ERROR:
        return Outcome("swtdx", end.text, "", shown)
    if end.end is End.FATAL_ERROR:
        return Outcome("fatal", end.text, "", shown)
    if end.end is End.CRASH:
        kind = "triple fault" if "triple fault" in end.text else "crash"
        return Outcome(kind, end.text, f"{rip:#x}" if kind == "crash" else "", shown)
    return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
