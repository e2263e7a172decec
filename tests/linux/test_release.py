# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences of kernels are named behaviours of one record each; nothing asks which kernel it is."""

from __future__ import annotations

import errno
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

import swtdx.linux
import swtdx.linux.release
from swtdx.linux.release import NOT_REPRODUCED, RELEASES, Release, release_for
from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.release import NEWEST_RELEASE, KernelRelease
from tests.linux.conftest import boot, refused

ASKS_FOR_A_KERNEL = re.compile(
    r"\b(is|is not|==|!=) (Dialect|KernelRelease)\.|\.upstream\b|\bdialect\.value (==|!=)"
    r"|\brelease\.name (==|!=|is|in)\b"
)
SOURCES = sorted(Path(swtdx.linux.__path__[0]).rglob("*.py"))
RECORD = {"name", "dialect"}


def test_every_release_and_every_dialect_has_its_record() -> None:
    assert list(RELEASES) == list(KernelRelease)
    assert {each.dialect for each in RELEASES.values()} == set(Dialect)
    assert all(name is each.name and each.dialect.value == name.dialect_name for name, each in RELEASES.items())


def test_nothing_asks_which_kernel_it_is() -> None:
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in SOURCES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if ASKS_FOR_A_KERNEL.search(line)
    ]
    assert found == []


def test_a_kept_file_may_have_the_name_of_the_candidate() -> None:
    """Snapshots and records that were made before Linux 7.3 came out say 7.3-rc."""
    assert release_for("7.3-rc", None) is RELEASES[KernelRelease.V7_3]
    assert KernelRelease("7.3-rc").words == "Linux 7.3"
    assert "7.3-rc" not in list(KernelRelease)


@pytest.mark.parametrize("name", [each.name for each in fields(Release) if each.name not in RECORD])
def test_every_behaviour_is_asked_for_somewhere(name: str) -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in Path(swtdx.__path__[0]).rglob("*.py"))
    assert re.search(rf"(release|kernel|RELEASES\[[^]]*\])\.{name}\b", text)


def test_the_newest_release_is_the_default_and_what_upstream_is_short_for() -> None:
    for given in (release_for(None, None), release_for(None, Dialect.UPSTREAM), boot().kernel.release):
        assert given is RELEASES[NEWEST_RELEASE]
    assert release_for(None, Dialect.V10).name is KernelRelease.V10


def test_what_is_released_serves_no_proposal() -> None:
    for release in RELEASES.values():
        proposed = release.name is KernelRelease.NEXT
        assert (release.serves_terminate_vm, release.maps_2m_private) == (proposed, proposed), release.name


def test_a_release_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"6\.17 is not available; there are v10, 6\.16, .*7\.3, next$"):
        release_for("6.17", None)


@pytest.mark.parametrize(("name", "dialect"), [("7.2", Dialect.V10), ("v10", Dialect.UPSTREAM)])
def test_a_release_and_a_dialect_that_it_does_not_speak_contradict(name: str, dialect: Dialect) -> None:
    with pytest.raises(ValueError, match=f"{name} speaks .* not {dialect.value}"):
        boot(dialect, release=name)


def test_what_is_not_reproduced_belongs_to_a_release() -> None:
    assert set(NOT_REPRODUCED) <= set(RELEASES)


def test_another_kernel_is_another_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """7.2 without one ioctl: the request is refused as one that does not exist, and nothing else changes."""
    absent = frozenset((int(k.KVM_SET_MEMORY_ATTRIBUTES),))
    changed = {**RELEASES, NEWEST_RELEASE: replace(RELEASES[NEWEST_RELEASE], absent_ioctls=absent)}
    monkeypatch.setattr(swtdx.linux.release, "RELEASES", changed)
    bench = boot()
    vm = bench.vm()
    with refused(errno.ENOTTY):
        bench.ioctl(vm, k.KVM_SET_MEMORY_ATTRIBUTES, 0)
    assert bench.ioctl(vm, k.KVM_CHECK_EXTENSION, k.KVM_CAP_USER_MEMORY) == 1
