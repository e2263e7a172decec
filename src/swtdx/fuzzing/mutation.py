# SPDX-License-Identifier: GPL-2.0-or-later
"""Lies that vary those of before, by Hypothesis' engine: it draws which case is changed, how, and with which values.

Hypothesis is told how many new blocks each case reached (`hypothesis.target`), and varies what did best. What it draws
is numbers, always in the same ranges: they stand for calls and registers by what is known of the guest at that moment,
so that the guest may make calls that it never made before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from swtdx.fuzzing.host import Call, Host, Site
from swtdx.lying.lie import kind_of, statuses, table

Case = tuple[str, ...]
"""Lies, as text."""
_NUMBER = (1 << 16) - 1
_SPECIAL = 8
_MOST_LIES = 64
Draw = tuple[str, int, int, int, int, tuple[str, int]]


class Over(BaseException):
    """The time of a slice is up. Not an Exception: Hypothesis is not to look into it."""


def explore(seed: int, examples: int, host: Host, corpus: Sequence[Case], attempt: Callable[[Case], int]) -> None:
    """Have ``attempt`` run ``examples`` new cases; it returns how many new blocks one reached, or raises `Over`."""
    import hypothesis
    from hypothesis import strategies as some

    number = some.integers(0, _NUMBER)
    value = some.one_of(
        some.tuples(some.just("special"), some.integers(0, _SPECIAL - 1)),
        some.tuples(some.just("near"), some.integers(-8, 8)),
        some.tuples(some.just("flip"), some.integers(0, 63)),
        some.tuples(some.just("small"), some.integers(0, 4096)),
        some.tuples(some.just("any"), some.integers(0, (1 << 64) - 1)),
    )
    edit = some.tuples(
        some.sampled_from(("add", "add", "value", "drop", "splice")), number, number, number, number, value
    )

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.target),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(parent=number, edits=some.lists(edit, min_size=1, max_size=4))
    def one(parent: int, edits: list[Draw]) -> None:
        if not host.sites:
            raise Over
        case = changed(corpus[parent % len(corpus)] if corpus else (), edits, host, corpus)
        hypothesis.target(float(attempt(case)), label="new blocks")

    random.seed(seed)
    one()


def changed(case: Case, edits: Sequence[Draw], host: Host, corpus: Sequence[Case]) -> Case:
    """Return a case with the edits made."""
    lies = list(case)
    functions: dict[str, list[tuple[Site, Call]]] = {}
    for each in host.sites.items():
        functions.setdefault(kind_of(each[0][0]), []).append(each)
    kinds = list(functions.values())
    for what, place, site, turn, register, value in edits:
        if what == "splice" and corpus:
            lies += corpus[site % len(corpus)]
        elif what == "drop" and lies:
            del lies[place % len(lies)]
        else:
            if what == "value" and lies:
                del lies[place % len(lies)]
            sites = kinds[site % len(kinds)]
            lies.append(_lie(*sites[site // len(kinds) % len(sites)], turn, register, value))
    unique = dict.fromkeys(lies)
    return tuple(unique)[-_MOST_LIES:]


def _lie(site: Site, call: Call, turn: int, register: int, value: tuple[str, int]) -> str:
    function, operand = site
    names = list(call.bits) or ["r10"]
    name = names[register % len(names)]
    where = f" {operand:#x}" if "operand" in table()["functions"][function] else ""
    if name == "r10":
        of = [name for name, number in statuses().items() if number != call.honest.get("r10")]
        answer = of[value[1] % len(of)]
    else:
        drawn = _value(value, call.honest.get(name, 0), call.bits[name])
        if call.values and value[0] != "any":
            drawn = call.values[value[1] % len(call.values)]
        if drawn == call.honest.get(name):
            drawn ^= 1  # the truth is not worth a run
        answer = f"{name.upper()}={drawn:#x}"
    # One time in four it is lied about from that call on: what a guest polls for must not come the next time.
    when = f"@{turn // 4 % call.count + 1}" + ("" if turn % 4 else "+")
    return f"{function}{where}: {answer} {when}"


def _value(value: tuple[str, int], honest: int, width: int) -> int:
    how, number = value
    mask = (1 << width) - 1
    if how == "near":
        return honest + number & mask
    if how == "flip":
        return honest ^ 1 << number % width
    if how == "special":
        specials = (0, mask, 1 << width - 1, mask >> 1, 1, 0xFFFF & mask, 0x7FFF_FFFF & mask, ~honest & mask)
        return specials[number]
    return number & mask
