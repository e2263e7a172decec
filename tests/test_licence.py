# SPDX-License-Identifier: GPL-2.0-or-later
"""What sdist and wheel say of their licence: a wheel's engine links Unicorn, and the sdist carries patches on it."""

from __future__ import annotations

import tomllib

from testing.places import REPOSITORY


def test_the_expression_names_both_licences() -> None:
    """Of a value in pyproject.toml, sdist and wheel say the same (core metadata 2.2 and later)."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["license"]
    assert set(stated.split(" AND ")) == {"GPL-2.0-or-later", "GPL-2.0-only"}
