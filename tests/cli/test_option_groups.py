# SPDX-License-Identifier: GPL-2.0-or-later
"""Options in groups: typer sees a keyword for each field, and the command gets the groups."""

from __future__ import annotations

import doctest
import inspect
from dataclasses import fields

import pytest

from swtdx.cli import option_groups
from swtdx.cli.run import Debugger, Devices, Ending, Guest, Host, Keeping, Quoting, Records, TrustDomain, run
from swtdx.cli.run_options import Options

GROUPS = (Guest, Host, Ending, Devices, Records, TrustDomain, Quoting, Debugger, Keeping)


def test_examples() -> None:
    assert doctest.testmod(option_groups).failed == 0


def test_every_field_of_a_group_is_an_option_once() -> None:
    names = [field.name for group in GROUPS for field in fields(group)]
    assert list(inspect.signature(run).parameters) == names
    assert len(set(names)) == len(names)


def test_every_member_of_the_options_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed nowhere would always keep its default."""
    given: list[dict[str, object]] = []

    def noted(**members: object) -> None:
        given.append(members)
        raise KeyboardInterrupt

    monkeypatch.setattr("swtdx.cli.run_options.Options", noted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(given[0]) == {field.name for field in fields(Options)} - {"replayed"}  # of swtdx replay-run
