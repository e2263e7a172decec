# SPDX-License-Identifier: GPL-2.0-or-later
"""The page "What changes from release to release" says all that the table of releases holds."""

from __future__ import annotations

import sys
from dataclasses import fields
from itertools import pairwise

import pytest

from swtdx.linux.release import NOT_REPRODUCED, RELEASES, Release
from swtdx.uapi.release import KernelRelease
from testing.places import REPOSITORY

pytest.importorskip("sphinx", reason="NOT SHOWN: the page about releases; install the extra dev")
sys.path.insert(0, str(REPOSITORY / "docs"))
generate = pytest.importorskip("generate")


@pytest.fixture(scope="module")
def page() -> str:
    text: str = generate.releases()
    return text


def test_every_behaviour_has_words() -> None:
    assert set(generate._behaviours()) == {each.name for each in fields(Release)} - {"name", "dialect"}


def test_every_release_has_its_section(page: str) -> None:
    names = [name.value for name in KernelRelease if name is not KernelRelease.V10]
    assert [line for line in page.splitlines() if line.startswith("## ")][:-1] == [
        f"## {new}, against {old}" for old, new in pairwise(names)
    ]


@pytest.mark.parametrize("name", [name for name in KernelRelease if name is not KernelRelease.V10][1:])
def test_a_section_has_each_difference_and_nothing_else(name: KernelRelease, page: str) -> None:
    section = page.split(f"## {name.value}, against ")[1].split("\n## ")[0]
    order = list(RELEASES)
    old, new = RELEASES[order[order.index(name) - 1]], RELEASES[name]
    words = generate._behaviours()
    changed = {each for each in words if getattr(old, each) != getattr(new, each)}
    assert {each for each in words if f"| {words[each]} |" in section} == changed
    assert all(f"- {text}" in section for text in NOT_REPRODUCED.get(name, ()))


def test_errnos_and_requests_have_names(page: str) -> None:
    assert "EOPNOTSUPP" in page
    assert "KVM_CREATE_GUEST_MEMFD" in page
    assert "KVM_CAP_GUEST_MEMFD" in page
