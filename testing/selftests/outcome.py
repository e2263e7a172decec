# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest printed, read back: an outcome for each test, and what to do with a boot that ended early."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

_KILLED = 128 + signal.SIGKILL
_SKIP = 4  # KSFT_SKIP
_SAYS_SKIP = re.compile(r"\[SKIP\]|# *SKIP\b", re.IGNORECASE)
_SAYS_OK = re.compile(r"\[OK\]|^ok \d+(?!.*# *SKIP)", re.MULTILINE)
_SAYS_FAIL = re.compile(r"\[FAIL\]|^not ok\b(?!.*# *(?:XFAIL|SKIP|TODO))", re.MULTILINE)
_LINE = re.compile(r"SELFTEST (kernel|begin|\||k|end|done)(?: (.*))?$")


class Status(StrEnum):
    PASS = "pass"
    SKIP = "skip"
    FAIL = "fail"
    TIMEOUT = "timeout"
    NOT_BUILT = "not built"
    NO_RESULT = "no result"


@dataclass(frozen=True)
class Outcome:
    status: Status
    reason: str = ""
    output: tuple[str, ...] = ()


@dataclass
class Boot:
    """What one boot came to."""

    kernel: str = ""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    unfinished: str = ""  # the program that ran when the boot ended
    done: bool = False


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> str:
    for number, line in enumerate(lines):
        if pattern.search(line):
            rest = line.replace("[FAIL]", "").replace("[SKIP]", "").strip()
            return rest or (lines[number - 1].strip() if number else "")
    return ""


def judge(status: int, lines: Sequence[str], kernel: Sequence[str] = ()) -> Outcome:
    """Return what an exit status and the last lines of output mean, by the rules of kselftest."""
    text = "\n".join(lines)
    said = tuple(lines)
    if status == _KILLED:
        return Outcome(Status.TIMEOUT, f"killed; last said: {lines[-1].strip() if lines else 'nothing'}", said)
    if status == _SKIP:
        return Outcome(Status.SKIP, _first(_SAYS_SKIP, lines) or (lines[-1].strip() if lines else ""), said)
    if status == 0 and not _SAYS_FAIL.search(text):
        if _SAYS_SKIP.search(text) and not _SAYS_OK.search(text):
            return Outcome(Status.SKIP, _first(_SAYS_SKIP, lines), said)
        return Outcome(Status.PASS, "", said)
    if 0 < status < 128 and _SAYS_SKIP.search(text) and not _SAYS_FAIL.search(text) and not _SAYS_OK.search(text):
        return Outcome(Status.SKIP, _first(_SAYS_SKIP, lines), said)  # test_shadow_stack, for one, ends with 1
    if status > 128:
        try:
            ended = f"killed by {signal.Signals(status - 128).name}"
        except ValueError:
            ended = f"exit status {status}"
    else:
        ended = f"exit status {status}"
    why = _first(_SAYS_FAIL, lines) or (lines[-1].strip() if lines else "") or "".join(kernel[-1:])
    return Outcome(Status.FAIL, f"{ended}: {why}" if why else ended, said)


def read_console(text: str) -> Boot:
    """Return what the init of ``pack`` printed on a console."""
    boot = Boot()
    output: list[str] = []
    kernel: list[str] = []
    for line in text.replace("\r", "").split("\n"):
        found = _LINE.search(line)
        if found is None:
            continue
        kind, rest = found[1], found[2] or ""
        if kind == "kernel":
            boot.kernel = rest
        elif kind == "begin":
            boot.unfinished, output, kernel = rest, [], []
        elif kind == "|":
            output.append(rest)
        elif kind == "k":
            kernel.append(rest)
        elif kind == "done":
            boot.done = True
        elif len(words := rest.split()) == 2 and words[1].isdigit():
            boot.outcomes[words[0]] = judge(int(words[1]), output, kernel)
            boot.unfinished = ""
    return boot


@dataclass(frozen=True)
class Ended:
    """A boot's console, and how it ended when that was not by itself ("" if it was)."""

    console: str
    how: str = ""


def run_all(programs: Sequence[str], boot: Callable[[Sequence[str]], Ended]) -> tuple[str, dict[str, Outcome]]:
    """Boot until each program has an outcome; return the guest kernel's version and the outcomes.

    A boot that ends early costs the program that ran then, and the rest runs in the next boot. A boot that ends before
    any program began costs all that are left: the next would end the same way.
    """
    left = list(programs)
    outcomes: dict[str, Outcome] = {}
    version = ""
    while left:
        ended = boot(left)
        read = read_console(ended.console)
        version = read.kernel or version
        outcomes |= {name: each for name, each in read.outcomes.items() if name in left}
        left = [name for name in left if name not in outcomes]
        if read.done or not left:
            break
        how = ended.how or "the guest ended"
        tail = tuple(ended.console.replace("\r", "").split("\n")[-12:])
        status = Status.TIMEOUT if ended.how.startswith("no output") else Status.FAIL
        if read.unfinished in left:
            outcomes[read.unfinished] = Outcome(status, f"{how} while it ran", tail)
            left.remove(read.unfinished)
        elif not read.outcomes:
            break
    return version, outcomes | {name: Outcome(Status.NO_RESULT, "the guest did not reach it") for name in left}
