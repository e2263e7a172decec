# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures around `testing.seam.fake_host`: a processor without execution and a host that speaks SEAMCALL."""

from __future__ import annotations

import pytest

from testing.seam.fake_host import SEEN, FakePlatform, FakeProcessor, Host, tdcall


def pytest_collection_modifyitems(items):
    """What looks back on the other tests of this directory comes after them."""
    items.sort(key=lambda item: item.path.name in ("test_status_coverage.py", "test_status_rules.py"))


@pytest.fixture
def seen():
    """(leaf function, RAX) of all calls so far."""
    return SEEN


@pytest.fixture
def processor():
    """A fake processor with 1 GiB of memory and two logical processors."""
    return FakeProcessor(FakePlatform())


@pytest.fixture
def cold(processor):
    """A host in front of a module that nobody has called yet."""
    return Host(processor)


@pytest.fixture
def host(cold):
    """A host with a ready module."""
    return cold.bring_up()


@pytest.fixture(scope="session")
def new_host():
    """A factory of hosts on a platform of one's own (not brought up); for fixtures that outlive a test."""

    def make(**platform):
        return Host(FakeProcessor(FakePlatform(**platform)))

    return make


@pytest.fixture
def make_host(new_host):
    """A factory of hosts on another platform (not brought up)."""
    return new_host


@pytest.fixture
def call():
    """The guest step ``tdcall``."""
    return tdcall


REPORT: list[str] = []


def pytest_terminal_summary(terminalreporter):
    """Print what `report` was told, after the tests."""
    for line in REPORT:
        terminalreporter.write_line(line)


@pytest.fixture
def report():
    """Say something at the end of the test run: ``report(line, ...)``."""
    return lambda *lines: REPORT.extend(lines)
