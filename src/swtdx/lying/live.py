# SPDX-License-Identifier: GPL-2.0-or-later
"""Between a machine and its guest: the answer to a TDVMCALL is changed when the guest is entered with it.

Virtual CPUs are made from a subclass of what the processor makes otherwise (`Processor.context_class`), so kernel, VMM
and TDX module stay honest, and know nothing of it. The module itself answers most CPUID leaves and MSRs; about those a
host cannot lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, WeakSet

from swtdx.cpu._engine import GuestContext
from swtdx.cpu.vmx import ExitReason
from swtdx.lying.lie import table

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor

Coverage = Callable[[int], object]
"""Takes the address of each instruction at which a guest left: the nearest to coverage without the translator."""
_ANSWERS = tuple(f"r{number}" for number in range(10, 16))
_FUNCTIONS = {row["number"]: name for name, row in table()["functions"].items() if "number" in row}
_TDCALL = int(ExitReason.TDCALL)


class Answers(Protocol):
    """Who decides what the host answers: a `swtdx.lying.teller.Teller`, or what stands in its place."""

    @property
    def left(self) -> Coverage | None:
        """Who is told where the guest has left, each time."""
        ...

    @property
    def asked(self) -> Callable[[], object] | None:
        """Who is told of each call when it comes, on the thread of the virtual CPU."""
        ...

    def lie(self, function: str, registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
        """Return registers of the answer that become others."""
        ...


Asked = tuple[str, dict[str, int]]
"""A call whose answer the guest has not got yet: the function, and its registers."""


class Pending:
    """The calls of a processor that are not answered yet."""

    def __init__(self) -> None:
        self._contexts = WeakSet[_LiedTo]()

    def add(self, context: _LiedTo) -> None:
        """Know a virtual CPU."""
        self._contexts.add(context)

    def kept(self) -> WeakKeyDictionary[_LiedTo, Asked | None]:
        """Return them, for `go_on`."""
        return WeakKeyDictionary({context: context.asked for context in self._contexts})

    def go_on(self, kept: WeakKeyDictionary[_LiedTo, Asked | None]) -> None:
        """Have those again."""
        for context in self._contexts:
            context.asked = kept.get(context)


def listen(processor: Processor, teller: Answers) -> Pending:
    """Let every TD's virtual CPU that ``processor`` creates from now on have its answers by ``teller``.

    Returns what goes back with a machine that continues from a moment before.
    """
    pending = Pending()
    members = {
        "teller": teller, "pending": pending, "left": None if teller.left is None else staticmethod(teller.left),
    }  # fmt: skip
    processor.context_class = type("LiedTo", (_LiedTo, processor.context_class), members)
    return pending


class _LiedTo(GuestContext):
    teller: Answers
    pending: Pending
    left: Coverage | None

    def attach_views(self) -> None:
        self.asked: Asked | None = None
        self.pending.add(self)
        super().attach_views()

    def run(self) -> int:
        if self.asked is not None:
            self._answer(*self.asked)
        reason = super().run()
        if self.left is not None:
            self.left(self.rip)
        if reason == _TDCALL and not self.gpr[0] and not self.gpr[10]:
            function = _FUNCTIONS.get(self.gpr[11])
            if function is not None:
                if self.teller.asked is not None:
                    self.teller.asked()
                self.asked = function, {name: self.gpr[10 + number] for number, name in enumerate(_ANSWERS)}
        return reason

    def go_on(self, kept: bytes) -> None:
        super().go_on(kept)
        self.asked = None  # of what ran here before the snapshot was given back

    def _answer(self, function: str, registers: dict[str, int]) -> None:
        self.asked = None
        mask, gpr = self.gpr[1], self.gpr
        honest = {name: gpr[10 + number] for number, name in enumerate(_ANSWERS) if mask >> 10 + number & 1}
        for name, value in self.teller.lie(function, registers, honest).items():
            gpr[int(name[1:])] = value
