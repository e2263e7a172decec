# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the TDX module, compared row by row with the published ones.

Why here: elsewhere tests compare with the facts of testing/published.json, which holds digests and names. That file is
right only if it follows from the material, and only the material shows which row of a table differs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testing import published
from tests.seam.own_tables import OWN
from tests.seam.test_measurement import VECTORS


@pytest.mark.parametrize("name", published.TABLES)
def test_a_table_is_the_published_one(shared_reference: Path, name: str) -> None:
    assert OWN[name]() == published.TABLES[name](shared_reference)


def test_the_checked_in_facts_follow_from_the_material(shared_reference: Path) -> None:
    """``python -m testing.published`` writes the file."""
    assert published.facts() == published.from_material(shared_reference)


def test_digests_of_measurements_are_the_published_ones(shared_reference: Path) -> None:
    vectors = json.loads((shared_reference / "tdx-module" / "test_vectors.json").read_text())
    assert {vector["sha384"] for vector in vectors} == VECTORS
