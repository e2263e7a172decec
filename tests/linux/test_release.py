# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences of kernels are named behaviours of one record each; nothing asks which kernel it is."""

from __future__ import annotations

import errno
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

import swtdx.linux
import swtdx.linux.kernel
from swtdx.linux.release import RELEASES, Release
from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from tests.linux.conftest import boot, refused

ASKS_FOR_A_KERNEL = re.compile(r"\b(is|is not|==|!=) Dialect\.|\.upstream\b|\bdialect\.value (==|!=)")
SOURCES = sorted(Path(swtdx.linux.__path__[0]).rglob("*.py"))


def test_every_dialect_has_its_record() -> None:
    assert set(RELEASES) == set(Dialect)


def test_nothing_asks_which_kernel_it_is() -> None:
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in SOURCES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if ASKS_FOR_A_KERNEL.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", [each.name for each in fields(Release)])
def test_every_behaviour_is_asked_for_somewhere(name: str) -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES)
    assert re.search(rf"release\.{name}\b", text)


def test_another_kernel_is_another_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream without one ioctl: the request is refused as one that does not exist, and nothing else changes."""
    absent = frozenset((int(k.KVM_SET_MEMORY_ATTRIBUTES),))
    changed = {**RELEASES, Dialect.UPSTREAM: replace(RELEASES[Dialect.UPSTREAM], absent_ioctls=absent)}
    monkeypatch.setattr(swtdx.linux.kernel, "RELEASES", changed)
    bench = boot(Dialect.UPSTREAM)
    vm = bench.vm()
    with refused(errno.ENOTTY):
        bench.ioctl(vm, k.KVM_SET_MEMORY_ATTRIBUTES, 0)
    assert bench.ioctl(vm, k.KVM_CHECK_EXTENSION, k.KVM_CAP_USER_MEMORY) == 1
