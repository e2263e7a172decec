# SPDX-License-Identifier: GPL-2.0-or-later
"""What a whole run of the tests met and has to say at its end, whichever processes ran it.

pytest-xdist runs the tests in workers, which do not share memory. Each sends what it gathered when it ends; the
controller, which runs no test, adds it up. Without xdist there is one process and nothing to send. `tests/conftest.py`
registers this module as a plugin.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

LINES: list[str] = []
"""Printed after the tests."""
_GATHERED: dict[str, set[tuple[Any, ...]]] = {}
_RAN: set[str] = set()
_KEY = "swtdx_tally"


def gathered(name: str) -> set[Any]:
    """Return the set that all tests of the run add their tuples to, of strings and integers, under this name."""
    return _GATHERED.setdefault(name, set())


def ran() -> set[str]:
    """Return the files, as in node ids, of which tests were collected to run."""
    return _RAN


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which files the run has tests of."""
    _RAN.update(item.nodeid.partition("::")[0] for item in session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what this worker gathered."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        sets = {name: sorted(found) for name, found in _GATHERED.items()}
        output[_KEY] = json.dumps({"lines": LINES, "sets": sets, "ran": sorted(_RAN)})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a worker sent. One that died sent nothing."""
    sent = json.loads(getattr(node, "workeroutput", {}).get(_KEY, "{}"))
    LINES.extend(sent.get("lines", []))
    _RAN.update(sent.get("ran", []))
    for name, found in sent.get("sets", {}).items():
        gathered(name).update(tuple(entry) for entry in found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines."""
    for line in LINES:
        terminalreporter.write_line(line)
