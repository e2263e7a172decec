# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that come many at a time: what one step does for many pages.

A step that stands for the same calls of each of hundreds of pages tells them as one `Repeated`: the events of one page,
in which what differs from page to page is a `Column`. Who takes it may write, count or expand them. So a trace has an
event for each call, and a page costs a few formatted numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from swtdx.trace.event import Column, Emit, Event

_MARK = "\ufffc"
_MARKED = re.compile(f'"{_MARK}"')


@dataclass(frozen=True)
class Repeated:
    """``events``, one after the other, ``times`` times; each `Column` in them has so many values."""

    events: tuple[Event, ...]
    times: int

    def __iter__(self) -> Iterator[Event]:
        """All of them, each by itself, in their order."""
        return self.rows(0)

    def rows(self, first: int, end: int | None = None) -> Iterator[Event]:
        """Yield the events of repetitions ``first`` to ``end``, which is not included (None: all the others)."""
        for row in range(first, self.times if end is None else min(end, self.times)):
            for event in self.events:
                yield _at(event, row)

    def text(self, written: Callable[[Event], Iterable[Any]], before: str = "", after: str = "") -> str:
        """Return the JSON of all: what ``written`` makes of each event, between ``before`` and ``after``."""
        columns: list[Column] = []

        def marked(column: Column) -> str:
            columns.append(column)
            return _MARK

        encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=marked).encode
        once = "".join(before + encode(found) + after for event in self.events for found in written(event))
        order = iter(columns)
        form = _MARKED.sub(lambda _: next(order).form, once.replace("%", "%%"))
        if not columns:
            return once * self.times
        return "".join([form % row for row in zip(*(column.values for column in columns), strict=True)])


def _at(event: Event, row: int) -> Event:
    """Return one repetition of an event."""
    changed = {each.name: _value(getattr(event, each.name), row) for each in fields(event)}
    return replace(event, **changed)


def _value(value: Any, row: int) -> Any:
    if isinstance(value, Column):
        return value.values[row]
    if isinstance(value, dict):
        return {name: _value(each, row) for name, each in value.items()}
    return value


@dataclass(frozen=True)
class Sink:
    """Where events go, with a way of its own for those that come many at a time."""

    each: Emit
    many: Callable[[Repeated], None]

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.each(event)


def takers(emit: Emit) -> tuple[Emit, Callable[[Repeated], None]]:
    """Return what takes one event for ``emit``, and what takes many: one by one, unless it is a `Sink`."""
    if isinstance(emit, Sink):
        return emit.each, emit.many

    def one_by_one(batch: Repeated) -> None:
        for event in batch:
            emit(event)

    return emit, one_by_one
