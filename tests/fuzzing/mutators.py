# SPDX-License-Identifier: GPL-2.0-or-later
"""How many runs a mutator needs until the planted fault is found: ``python -m tests.fuzzing.mutators WAY KIND SEED``.

========== ====================================================================================
guided     Hypothesis draws edits of cases that reached new code (what ``swtdx fuzz guest`` does)
unguided   Hypothesis draws edits of the empty case, and is not told what was new
atheris    libFuzzer's mutation of bytes, each edit being some of them, of cases that reached new code
========== ====================================================================================

Prints WAY, KIND, SEED and the number of runs, or that of all that were tried and a ``+``. ``atheris`` is not one of the
development's packages: install it where Python finds it.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from swtdx.fuzzing.guest import Guest, Limits
from swtdx.fuzzing.mutation import Case, Draw, Over, changed, explore
from swtdx.lying.lie import parse
from tests.fuzzing.planted import planted

MOST_RUNS = 400
_EDIT = struct.Struct("<BHHHHBQ")
_WHAT = ("add", "add", "value", "drop", "splice")
_HOW = {"special": 8, "near": 17, "flip": 64, "small": 4097, "any": 1 << 64}
_LONGEST = 4 * _EDIT.size


class Found(Exception):
    """The guest crashed."""


def attempts(guest: Guest, corpus: list[Case] | None) -> Callable[[Case], int]:
    """Return what runs a case and counts. Raises `Found`, and `Over` when there were enough."""
    for _ in range(3):
        guest.run([])
    before = guest.runs

    def attempt(case: Case) -> int:
        if guest.runs - before >= MOST_RUNS:
            raise Over
        result = guest.run([parse(text) for text in case])
        if result.outcome.is_crash:
            raise Found(guest.runs - before)
        if corpus is None:
            return 0
        if result.new:
            corpus.append(case)
        return len(result.new)

    return attempt


def by_hypothesis(guest: Guest, seed: int, *, guided: bool) -> None:
    """Look for the fault. Raises as `attempts`."""
    corpus: list[Case] = []
    attempt = attempts(guest, corpus if guided else None)
    while True:
        explore(seed, MOST_RUNS, guest.host, corpus, attempt)
        seed += 1 << 32


def by_bytes(guest: Guest, seed: int) -> None:
    """Look for the fault by mutated bytes. Raises as `attempts`."""
    atheris: Any = import_module("atheris")
    corpus: list[Case] = []
    attempt = attempts(guest, corpus)
    kept: list[bytes] = [b""]
    draw = random.Random(seed)
    ended: list[BaseException] = []

    def mutate(data: bytes, longest: int, its_seed: int) -> bytes:
        return bytes(atheris.Mutate(draw.choice(kept), _LONGEST))

    def one(data: bytes) -> None:
        if ended:
            return
        try:
            if attempt(changed((), edits(data), guest.host, corpus)):
                kept.append(data)
        except (Found, Over) as end:
            ended.append(end)
            found = f"{end}" if isinstance(end, Found) else f"{MOST_RUNS}+"
            print(*sys.argv[1:], found, flush=True)
            sys.stdout.flush()
            import_module("os")._exit(0)  # libFuzzer has no other end without a report

    atheris.Setup([sys.argv[0], f"-seed={seed}", "-runs=100000"], one, custom_mutator=mutate)
    atheris.Fuzz()


def edits(data: bytes) -> list[Draw]:
    """Return what bytes stand for, as Hypothesis draws it."""
    found: list[Draw] = []
    for start in range(0, len(data) - _EDIT.size + 1, _EDIT.size):
        what, place, site, turn, register, how, number = _EDIT.unpack_from(data, start)
        name = list(_HOW)[how % len(_HOW)]
        value = number % _HOW[name] - (8 if name == "near" else 0)
        found.append((_WHAT[what % len(_WHAT)], place, site, turn, register, (name, value)))
    return found


def main(way: str, kind: str, seed: int) -> None:
    """Print how many runs it took."""
    limits = Limits(calls=180 if kind == "virtio" else 30, seconds=20)
    with planted(limits, kind) as guest:
        try:
            if way == "atheris":
                by_bytes(guest, seed)
            else:
                by_hypothesis(guest, seed, guided=way == "guided")
        except Found as found:
            print(way, kind, seed, found)
        except Over:
            print(way, kind, seed, f"{MOST_RUNS}+")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
