# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign: slices of work, each of some seconds on one guest, and what came of all of them.

A slice is told what is known, and returns what is new, both as plain data: so it does not matter where it is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swtdx.fuzzing.folder import Folder
from swtdx.fuzzing.guest import Guest, Result
from swtdx.fuzzing.minimise import minimised
from swtdx.fuzzing.mutation import Case, Over, explore
from swtdx.fuzzing.outcome import Outcome
from swtdx.lying.lie import parse

HONEST_RUNS = 3
"""Before the first lie: what timing alone reaches is not news."""
_EXAMPLES = 400
_REPLAYS = 3


@dataclass
class Crash:
    """One kind of crash, by its signature: the shortest case known, and how often it was repeated."""

    outcome: Outcome
    case: Case
    replayed: int = 0
    replays: int = 0
    times: int = 1

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "signature": self.outcome.signature,
            "kind": self.outcome.kind,
            "text": str(self.outcome),
            "lies": list(self.case),
            "times": self.times,
            "replayed": f"{self.replayed} of {self.replays}",
        }

    def comments(self) -> list[str]:
        """What its file says."""
        last = self.outcome.console.splitlines()[-12:]
        return [str(self.outcome), f"replays: {self.replayed} of {self.replays}", *(f"| {line}" for line in last)]


@dataclass
class Slice:
    """What is new after one slice."""

    runs: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    calls: int = 0
    lies: int = 0
    sites: int = 0
    corpus: list[tuple[Case, set[int]]] = field(default_factory=list)
    crashes: list[Crash] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    entered: Counter[str] = field(default_factory=Counter)
    """By the function of the lies: blocks that cases with them reached first."""


@dataclass(frozen=True)
class Known:
    """What a slice begins with."""

    corpus: tuple[Case, ...] = ()
    blocks: frozenset[int] = frozenset()
    crashes: frozenset[str] = frozenset()


def work(guest: Guest, known: Known, seed: int, seconds: float) -> Slice:
    """Fuzz for some seconds."""
    return _Work(guest, known, seed, seconds).done()


class _Work:
    def __init__(self, guest: Guest, known: Known, seed: int, seconds: float) -> None:
        self.guest = guest
        self.seed = seed
        self.seconds = seconds
        self.blocks = set(known.blocks)
        self.corpus = list(known.corpus)
        self.known_crashes = set(known.crashes)
        self.found = Slice()
        self.began = time.monotonic()

    def done(self) -> Slice:
        """Do it."""
        found = self.found
        if not self.guest.runs:
            self._know_the_guest()
        blind = self.guest.looks_at_a_part and not self.blocks  # that is said before there is a lie
        seed = self.seed
        while not blind and time.monotonic() < self.began + self.seconds and self.guest.host.sites:
            try:
                explore(seed, _EXAMPLES, self.guest.host, self.corpus, self.attempt)
            except Over:
                break
            except KeyboardInterrupt:
                found.interrupted = True
                break
            seed += 1 << 32
        found.seconds = time.monotonic() - self.began
        found.sites = len(self.guest.host.sites)
        return found

    def _know_the_guest(self) -> None:
        """Run it as it is, and what is known of it: then what is new is new."""
        for case in ((),) * HONEST_RUNS + tuple(self.corpus):
            self._note(case, self.run(case))

    def run(self, case: Sequence[str]) -> Result:
        """Run a case, and count it."""
        result = self.guest.run([parse(text) for text in case])
        self.found.runs += 1
        self.found.calls += result.calls
        self.found.lies += len(result.told)
        return result

    def attempt(self, case: Case) -> int:
        """Run a case for Hypothesis, while there is time."""
        if time.monotonic() >= self.began + self.seconds:
            raise Over
        return self._note(case, self.run(case))

    def _note(self, case: Case, result: Result) -> int:
        self.found.outcomes[result.outcome.signature] += 1
        new = result.new - self.blocks
        if new:
            self.blocks |= new
            self.corpus.append(case)
            self.found.corpus.append((case, new))
            for function in {text.split()[0].rstrip(":") for text in case} or {"no lie"}:
                self.found.entered[function] += len(new)
        if result.outcome.is_crash and result.outcome.signature not in self.known_crashes:
            self.known_crashes.add(result.outcome.signature)
            crash = Crash(result.outcome, tuple(result.told) or case)
            self.found.crashes.append(crash)
            self._shorten(crash, case, result)
        return len(new)

    def _shorten(self, crash: Crash, case: Case, result: Result) -> None:
        signature = crash.outcome.signature

        def crashes(lies: Sequence[str]) -> bool:
            return self.run(lies).outcome.signature == signature

        # What was told says which call it was; what was asked for may be shorter: "from this call on".
        for lies in (tuple(result.told), case):
            if lies and crashes(lies):
                crash.case = minimised(lies, crashes)
                break
        crash.replayed = sum(crashes(crash.case) for _ in range(_REPLAYS))
        crash.replays = _REPLAYS


class Campaign:
    """Everything that is known, put together from slices."""

    def __init__(self, folder: Folder, snapshot: str) -> None:
        """Raises FolderError."""
        folder.belongs_to(snapshot)
        self.folder = folder
        self.corpus: list[Case] = folder.corpus()
        self.blocks: set[int] = set()
        self.crashes: dict[str, Crash] = {}
        self.outcomes: Counter[str] = Counter()
        self.entered: Counter[str] = Counter()
        self.runs = self.calls = self.lies = self.sites = 0
        self.lost = 0
        """Slices whose worker was lost; each was done again."""
        self.began = time.monotonic()
        self.over_time: list[tuple[float, int, int, int]] = [(0.0, 0, 0, 0)]
        """Seconds, runs, blocks, crashes."""

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return time.monotonic() - self.began

    def known(self) -> Known:
        """What the next slice begins with."""
        return Known(tuple(self.corpus), frozenset(self.blocks), frozenset(self.crashes))

    def add(self, found: Slice) -> list[Crash]:
        """Take the results of a slice; the crashes that were not known."""
        for name in ("runs", "calls", "lies"):
            setattr(self, name, getattr(self, name) + getattr(found, name))
        self.sites = max(self.sites, found.sites)
        self.outcomes += found.outcomes
        self.entered += found.entered
        for case, blocks in found.corpus:
            if blocks - self.blocks:
                self.blocks |= blocks
                if case and case not in self.corpus:
                    self.corpus.append(case)
                    self.folder.keep(case)
        new = []
        for crash in found.crashes:
            known = self.crashes.get(crash.outcome.signature)
            if known is None:
                new.append(crash)
            if known is None or (len(crash.case), -crash.replayed) < (len(known.case), -known.replayed):
                self.crashes[crash.outcome.signature] = crash
                self.folder.keep_crash(crash.outcome.name, crash.case, crash.comments())
        self.over_time.append((self.seconds, self.runs, len(self.blocks), len(self.crashes)))
        return new

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        seconds = self.seconds
        return {
            "seconds": round(seconds, 3),
            "runs": self.runs,
            "runs_per_second": round(self.runs / seconds, 2) if seconds else 0,
            "calls": self.calls,
            "lies": self.lies,
            "sites": self.sites,
            "blocks": len(self.blocks),
            "corpus": len(self.corpus),
            "outcomes": dict(self.outcomes.most_common()),
            "crashes": [
                {**crash.as_json(), "file": f"crashes/{crash.outcome.name}.lies"} for crash in self.crashes.values()
            ],
            "entered": dict(self.entered.most_common()),
            "over_time": [list(each) for each in self.over_time],
            "lost_slices": self.lost,
        }
