# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of a trace, as data: integers are integers here, and become text where a file or a page is written.

``t`` and ``dur`` are nanoseconds of ``time.perf_counter_ns``, ``tid`` is the thread. ``args`` holds decoded operands by
name: integers, names, and dictionaries and lists of them. An integer is written in hexadecimal, a `Count` in decimal.

In a trace file (docs/reference/trace.md) an event is a dictionary with times in microseconds; `Event.as_json` makes it,
`from_json` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Values = dict[str, Any]
ERROR = 1 << 63
"""In a completion status: the call has failed."""
_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+")


class Count(int):
    """A number that is written in decimal: a level, a size, how often."""


class Data(bytes):
    """What an access moves, lowest byte first; written as one number."""


class Column:
    """The values that an operand or a time has in events that come many at a time (`swtdx.trace.batch`).

    Times are added up and divided as single ones are. ``form`` is how a value is written in JSON, by "%".
    """

    __slots__ = ("form", "values")

    def __init__(self, values: Sequence[int] | Sequence[float], form: str = '"%#x"') -> None:
        self.values = values
        self.form = form

    def __sub__(self, other: Column | int) -> Column:
        if isinstance(other, Column):
            return Column([value - less for value, less in zip(self.values, other.values, strict=True)], self.form)
        return Column([value - other for value in self.values], self.form)

    def __truediv__(self, other: int) -> Column:
        return Column([value / other for value in self.values], "%r")


@dataclass(slots=True)
class Event:
    """What all events have."""

    kind: ClassVar[str]
    name: str
    t: int
    dur: int
    tid: int
    args: Values

    @property
    def failed(self) -> bool:
        """Whether the call was refused."""
        return False

    @property
    def succeeded(self) -> bool:
        """Whether the call took effect."""
        return not self.failed

    def details(self) -> Values:
        """Return the members that only this kind has, as they are written."""
        return {}

    def as_json(self, origin: int = 0) -> dict[str, Any]:
        """Return the event as it stands in a file; ``origin`` is the time 0."""
        return {
            "kind": self.kind,
            "name": self.name,
            "t": (self.t - origin) / 1000,
            "dur": self.dur / 1000,
            "tid": self.tid,
            "args": written(self.args),
            **self.details(),
        }


@dataclass(slots=True)
class Syscall(Event):
    """A system call other than ioctl; ``on`` is what the descriptor is, ``out`` what the kernel has written."""

    kind: ClassVar[str] = "syscall"
    on: str = ""
    result: int | None = None
    errno: str = ""
    out: Values = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return bool(self.errno)

    def details(self) -> Values:
        found: Values = {"on": self.on}
        if self.result is not None:
            found["result"] = self.result
        if self.errno:
            found["errno"] = self.errno
        if self.out:
            found["out"] = written(self.out)
        return found


@dataclass(slots=True)
class Ioctl(Syscall):
    """An ioctl; ``name`` is the request."""

    kind: ClassVar[str] = "ioctl"


@dataclass(slots=True)
class LeafCall(Event):
    """A call of a leaf function. Without a ``status`` it has not been carried out, and comes again."""

    version: int = 0
    status: int | None = None
    text: str = ""
    out: Values = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status is not None and bool(self.status & ERROR)

    @property
    def succeeded(self) -> bool:
        return self.status is not None and not self.status & ERROR

    def details(self) -> Values:
        found: Values = {}
        if self.version:
            found["version"] = self.version
        if self.status is not None:
            found["status"] = hex(self.status)
        found["text"] = self.text
        if self.out:
            found["out"] = written(self.out)
        return found


@dataclass(slots=True)
class Seamcall(LeafCall):
    """A SEAMCALL, on logical processor ``lp``."""

    kind: ClassVar[str] = "seamcall"
    lp: int = 0

    def details(self) -> Values:
        return {"lp": self.lp, **LeafCall.details(self)}


@dataclass(slots=True)
class Tdcall(LeafCall):
    """A TDCALL of virtual CPU ``vcpu``."""

    kind: ClassVar[str] = "tdcall"
    vcpu: int = 0

    def details(self) -> Values:
        return {"vcpu": self.vcpu, **LeafCall.details(self)}


@dataclass(slots=True)
class Exit(Event):
    """A VM exit; ``guest`` is how long the guest had run, in nanoseconds."""

    kind: ClassVar[str] = "exit"
    vcpu: int = 0
    guest: int = 0

    def details(self) -> Values:
        return {"vcpu": self.vcpu, "guest": self.guest / 1000}


@dataclass(slots=True)
class Injected(Event):
    """An exception, a #VE, an NMI or an interrupt that software puts into a guest."""

    kind: ClassVar[str] = "event"
    vcpu: int = 0

    def details(self) -> Values:
        return {"vcpu": self.vcpu}


Emit = Callable[[Event], None]
"""What takes each event of a trace; called from any thread."""
CLASSES: dict[str, type[Event]] = {each.kind: each for each in (Ioctl, Syscall, Seamcall, Tdcall, Exit, Injected)}
KINDS = tuple(CLASSES)


def written(value: Any) -> Any:
    """Return operands as they are written to a file.

    >>> written({"gpa": 4096, "level": Count(1), "data": Data(bytes([0x55, 0])), "names": ["a", 10]})
    {'gpa': '0x1000', 'level': 1, 'data': '0x0055', 'names': ['a', '0xa']}
    """
    kind = type(value)
    if kind is int:
        return hex(value)
    if kind is dict:
        return {name: written(each) for name, each in value.items()}
    if kind is list:
        return [written(each) for each in value]
    if isinstance(value, Data):
        return "0x" + value[::-1].hex()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int):
        return int(value) if kind is Count else hex(value)
    return value


def _read(value: Any) -> Any:
    """Return what `written` has made of operands; numbers are integers again."""
    if isinstance(value, str):
        return int(value, 16) if _HEXADECIMAL.fullmatch(value) else value
    if isinstance(value, dict):
        return {name: _read(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_read(each) for each in value]
    return Count(value) if isinstance(value, int) else value


def from_json(found: dict[str, Any]) -> Event:
    """Return the event that a file has. Raises KeyError, TypeError, ValueError for what is not a valid one."""
    kind = CLASSES[found["kind"]]
    more: Values = {
        name: found[name] for name in ("on", "result", "errno", "lp", "vcpu", "version", "text") if name in found
    }
    if "out" in found:
        more["out"] = _read(found["out"])
    if "status" in found:
        more["status"] = int(found["status"], 16)
    if "guest" in found:
        more["guest"] = round(found["guest"] * 1000)
    times = round(found["t"] * 1000), round(found["dur"] * 1000)
    if not isinstance(found["name"], str) or not isinstance(found.get("args", {}), dict):
        raise TypeError("an event has a name and named operands")
    return kind(found["name"], *times, int(found.get("tid", 0)), _read(found.get("args", {})), **more)
