# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures around `testing.seam.fake_host`: a processor without execution and a host that speaks SEAMCALL.

Every status that a test meets must break a rule that `swtdx explain` knows; this is checked when the test ends. When
the run ends and all tests of this directory were in it, the statuses are compared with the published list
(`status_coverage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swtdx.explain import leaves
from swtdx.explain.status import UNKNOWN, explain_status
from swtdx.explain.td_exit import is_td_exit
from testing.seam.fake_host import SEEN, FakePlatform, FakeProcessor, Host, tdcall
from testing.tally import LINES

_EXPLAINED: set[tuple[str, int]] = set()


@pytest.fixture
def processor() -> FakeProcessor:
    """A fake processor with 1 GiB of memory and two logical processors."""
    return FakeProcessor(FakePlatform())


@pytest.fixture
def cold(processor: FakeProcessor) -> Host:
    """A host in front of a module that has not been called yet."""
    return Host(processor)


@pytest.fixture
def host(cold: Host) -> Host:
    """A host with a ready module."""
    return cold.bring_up()


@pytest.fixture(scope="session")
def new_host() -> Callable[..., Host]:
    """A factory of hosts on a platform of one's own (not brought up); for fixtures that outlive a test."""

    def make(**platform: Any) -> Host:
        return Host(FakeProcessor(FakePlatform(**platform)))

    return make


@pytest.fixture
def make_host(new_host: Callable[..., Host]) -> Callable[..., Host]:
    """A factory of hosts on another platform (not brought up)."""
    return new_host


@pytest.fixture
def call() -> Callable[..., Callable[..., int]]:
    """The guest step ``tdcall``."""
    return tdcall


@pytest.fixture
def report() -> Callable[..., None]:
    """Say something at the end of the test run: ``report(line, ...)``."""
    return lambda *lines: LINES.extend(lines)


def without_rule(leaf: str, rax: int) -> str:
    """What is wrong with the explanation of a status that ``leaf`` answered; empty if nothing is."""
    if leaf not in leaves() or not rax >> 32 or is_td_exit(rax):
        return ""
    found = explain_status(rax, leaf)
    if found["name"] == UNKNOWN:
        return f"{leaf}: {rax:#x} is not a known status"
    # Statuses that only module 1.0 has are explained, but the rules are those of 1.5.06. What Linux answers for a
    # SEAMCALL that did not reach the module is not an answer of a leaf function.
    if {"module_version", "of"} & set(found) or found.get("rules"):
        return ""
    return f"{leaf}: no rule has the status {rax:#x}"


@pytest.fixture(autouse=True)
def every_status_has_its_rule() -> Iterator[None]:
    """Fail the test that meets a status which breaks no known rule of the leaf function."""
    yield
    fresh = SEEN - _EXPLAINED
    _EXPLAINED.update(fresh)
    assert list(filter(None, (without_rule(leaf, rax) for leaf, rax in sorted(fresh)))) == []
