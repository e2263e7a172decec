# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEAMCALL entry: which leaf functions there are, and what is checked before one runs.

Leaf functions register themselves with `leaf`, by the name they have in ``tables/leaves.json``; number and versions
come from there.

In order: reserved bits of RAX, version, SYS_STATE, leaf number. A leaf that fails raises `Status`; registers it names
in ``clears`` are then 0 and those in ``sets`` all ones, unless the status defines them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import SysState
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.version import ModuleVersion

Handler = Callable[["TdxModule", Args, int], int]
"""A leaf function: module, registers, number of the logical processor; returns RAX."""
VersionedHandler = Callable[["TdxModule", Args, int, int], int]
_H = TypeVar("_H", Handler, VersionedHandler)

LEAF_MASK = 0xFFFF
ALL_ONES = (1 << 64) - 1
VERSION_SHIFT = 16
SUCCESS = 0
VMFAIL_INVALID = 0x8000_FF00_FFFF_0000
"""What the processor's door answers (in Linux's words) for a SEAMCALL that cannot enter the module at all."""

SEAMCALL_NUMBERS: dict[str, int] = {name: number for number, name, _ in load("leaves")["seamcall"]}
_VERSIONS: dict[int, tuple[int, ...]] = {number: tuple(v) for number, _, v in load("leaves")["seamcall"]}

BEFORE_READY = frozenset(
    SEAMCALL_NUMBERS[f"TDH.SYS.{name}"]
    for name in ("INFO", "RD", "RDALL", "INIT", "LP.INIT", "CONFIG", "KEY.CONFIG", "LP.SHUTDOWN", "UPDATE")
)
"""Leaf functions accepted before the module is ready."""
LP_SHUTDOWN = SEAMCALL_NUMBERS["TDH.SYS.LP.SHUTDOWN"]


class Entry(NamedTuple):
    """A leaf function under one RAX value (leaf and version)."""

    handler: Handler
    defaults: tuple[tuple[str, int], ...]
    """Registers that a failure sets, and to what."""


LEAVES: dict[int, Entry] = {}
"""Every reproduced leaf function by RAX (version 23:16, leaf 15:0)."""


def _defaults(clears: tuple[str, ...], sets: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    return (*((register, 0) for register in clears), *((register, ALL_ONES) for register in sets))


def leaf(name: str, *, clears: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> Callable[[Handler], Handler]:
    """Register a leaf function that has version 0 only."""
    number = SEAMCALL_NUMBERS[name]
    if _VERSIONS[number] != (0,):
        raise ValueError(f"{name} has versions {_VERSIONS[number]}: use versioned_leaf")

    def register(handler: Handler) -> Handler:
        LEAVES[number] = Entry(handler, _defaults(clears, sets))
        return handler

    return register


def versioned_leaf(
    name: str, *, clears: tuple[str, ...] = (), later: tuple[str, ...] = ()
) -> Callable[[VersionedHandler], VersionedHandler]:
    """Register a leaf function whose last parameter is its version; ``later``: what all but version 0 set to -1."""
    number = SEAMCALL_NUMBERS[name]

    def register(handler: VersionedHandler) -> VersionedHandler:
        for version in _VERSIONS[number]:
            defaults = _defaults(clears, later if version else ())
            LEAVES[number | version << VERSION_SHIFT] = Entry(_bind(handler, version), defaults)
        return handler

    return register


def _bind(handler: VersionedHandler, version: int) -> Handler:
    @wraps(handler)  # what documents leaf functions reads the name and the docstring
    def call(module: TdxModule, args: Args, lp: int) -> int:
        return handler(module, args, lp, version)

    return call


@cache
def leaves_of(module: ModuleVersion) -> dict[int, Entry]:
    """Return the leaf functions that a version of the module has, by RAX."""
    if module.seamcalls is None:
        return LEAVES
    return {SEAMCALL_NUMBERS[name]: LEAVES[SEAMCALL_NUMBERS[name]] for name in module.seamcalls}


def refuse(fn: int, state: SysState, module: ModuleVersion) -> int | None:
    """Make the entry checks for a RAX value: the status that refuses it, or None if a leaf function may run."""
    bad_rax = StatusCode.OPERAND_INVALID | Operand.RAX
    number = fn
    if module.leaf_versions:
        number, version = fn & LEAF_MASK, fn >> VERSION_SHIFT & 0xFF
        if fn >> 24 or (version and version not in _VERSIONS.get(number, (0,)) and not _tolerates_versions(number)):
            return bad_rax
    if state is SysState.SHUTDOWN and number != LP_SHUTDOWN:
        return StatusCode.SYS_SHUTDOWN
    there = leaves_of(module)
    early = number in BEFORE_READY and (module.seamcalls is None or number in there)
    if state is not SysState.SYS_READY and not early:
        return StatusCode.SYS_NOT_READY
    if fn not in there:
        return bad_rax
    return None


def _tolerates_versions(number: int) -> bool:
    """Return whether the leaf function itself checks its version (and answers OPERAND_INVALID|RAX)."""
    return len(_VERSIONS.get(number, ())) > 1


def refused(status: int, fn: int, args: Args, there: dict[int, Entry]) -> int:
    """Return the status that `refuse` gave. Leaf functions that check their version themselves set registers, too."""
    latest = fn & LEAF_MASK | 1 << VERSION_SHIFT
    if status == StatusCode.OPERAND_INVALID | Operand.RAX and latest in there and not fn >> 24:
        for register, value in there[latest].defaults:
            setattr(args, register, value)
    return status


def failed(status: Status, args: Args, defaults: tuple[tuple[str, int], ...]) -> int:
    """Turn the `Status` that ended a leaf function into registers and RAX."""
    for register, value in defaults:
        setattr(args, register, value)
    for register, value in status.outputs.items():
        setattr(args, register, value)
    return status.value
