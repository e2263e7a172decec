# SPDX-License-Identifier: GPL-2.0-or-later
"""Each call of the conformance table on each kind of VM, and the page made of that table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.linux import conformance
from tests.linux.conformance import CASES, KINDS, PROVEN, Case

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("case", "kind"),
    [pytest.param(case, kind, id=f"{kind}-{case.id}") for case in CASES for kind in KINDS if kind in case.on],
)
def test_outcome(case: Case, kind: str) -> None:
    subject = conformance.subject(kind)
    got = case.run(subject)
    assert conformance.name_of(got) == conformance.name_of(case.outcome), subject.bench.kernel.last_reason


def test_no_two_cases_are_the_same() -> None:
    assert len({case.id + "".join(sorted(case.on)) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", sorted({proof.test for proof in PROVEN}))
def test_a_test_that_is_named_exists(name: str) -> None:
    file, _, function = name.partition("::")
    (path,) = HERE.rglob(file)
    assert re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE)


def test_the_committed_page_is_up_to_date() -> None:
    assert conformance.PAGE_PATH.read_text() == conformance.page(), "run: python -m tests.linux.conformance"
