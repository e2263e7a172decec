# SPDX-License-Identifier: GPL-2.0-or-later
"""Another version of the module costs an entry of the table: leaf functions ask for behaviours, not for versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import swtdx.cpu.platform
import swtdx.seam
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.version import module_version

ADDED = "1.5.99"
ASKS_FOR_A_VERSION = re.compile(
    r"version\.(exact|name|number)\b *(==|!=|<|>|in\b|is\b)|version\.exact\b|[\"']1\.0[\"']"
)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch, make_host: Any) -> Any:
    """A host with a module 1.5.99: 1.5.06 with other limits, and with one behaviour of 1.0."""
    rows = load("versions")["versions"]
    changed = {"number": [1, 5, 99, 0], "max_vcpus": 3, "finalize_needs_vcpus": False}
    monkeypatch.setitem(rows, ADDED, rows["1.5.06"] | changed)
    monkeypatch.setattr(swtdx.cpu.platform, "MODULE_VERSIONS", (*swtdx.cpu.platform.MODULE_VERSIONS, ADDED))
    yield make_host(module_version=ADDED)
    module_version.cache_clear()


def test_a_version_is_an_entry_of_the_table(added: Any) -> None:
    host = added.bring_up()
    tdr = host.uninitialized()
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(max_vcpus=4), 1024))
    assert status == StatusCode.OPERAND_INVALID | Operand.MAX_VCPUS
    host.ok("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(max_vcpus=3), 1024))
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    assert module_version(ADDED).number == (1, 5, 99, 0)
    assert host.module.identity.mrseam != type(host.module.identity)().mrseam


def test_platforms_offer_the_versions_of_the_table() -> None:
    assert set(swtdx.cpu.platform.MODULE_VERSIONS) == set(load("versions")["versions"])


def test_all_versions_state_every_behaviour() -> None:
    first, *others = load("versions")["versions"].values()
    assert all(set(first) == set(other) for other in others)


def test_no_leaf_function_asks_which_version_it_is() -> None:
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in sorted(Path(swtdx.seam.__path__[0]).rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if ASKS_FOR_A_VERSION.search(line)
    ]
    assert found == []
