# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fuzzing campaign came to, where that is a number of cases, kinds of answers and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Result:
    """How often each kind of answer came, and a sentence for each case that failed. ``unit``: what a case is."""

    unit: str
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.cases:,} {self.unit}"
        yield "  ".join(f"{name} {count:,}" for name, count in self.answers.most_common())
        yield from self.failures
