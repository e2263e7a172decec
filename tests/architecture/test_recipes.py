# SPDX-License-Identifier: GPL-2.0-or-later
"""The recipes of docs/contribute: what an addition touches is compared with the registries, by name.

Each check returns sentences that say what is missing where, so that a contributor who forgot a file reads its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from swtdx.cli.app import COMMANDS
from swtdx.seam.tables import load
from swtdx.uapi import kvm
from swtdx.uapi.client.vcpu import Vcpu
from swtdx.uapi.client.vm import Vm
from tests.linux.conformance import CASES, PROVEN

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "docs" / "contribute"
NOT_REPRODUCED = ("TDH.EXPORT.", "TDH.IMPORT.", "TDH.MIG.", "TDH.SERVTD.")
"""Migration and service TDs: these leaf functions answer as a module without them (seam/tdh/not_reproduced.py)."""


def missing(names: Iterable[str], where: str, there: Iterable[str]) -> list[str]:
    """One sentence for each of ``names`` that is not in ``there``."""
    return [f"{name} is missing in {where}" for name in sorted(set(names) - set(there))]


def ioctls() -> list[str]:
    page = (ROOT / "docs/conformance.md").read_text()
    proven = {case.request for case in CASES} | {proof.request for proof in PROVEN}
    return [
        *missing(kvm.REQUESTS, "tests/linux/conformance.py", proven),
        *missing(kvm.REQUESTS, "docs/conformance.md", re.findall(r"^\| (KVM_\w+) \|", page, re.MULTILINE)),
    ]


def leaves() -> list[str]:
    found: list[str] = []
    rules = json.loads(next((ROOT / "src/swtdx").rglob("rules.json")).read_text())
    for kind in ("seamcall", "tdcall"):
        names = [name for _, name, _ in load("leaves")[kind]]
        here = [name for name in names if not name.startswith(NOT_REPRODUCED)]
        found += missing(here, "src/swtdx/seam/tables/operands.json", load("operands")[kind])
        found += missing(names, "rules.json", rules[kind])
        found += missing(rules[kind], "src/swtdx/seam/tables/leaves.json", names)
    return found


def commands() -> list[str]:
    readme = set(re.findall(r"`swtdx ([a-z-]+)", (ROOT / "README.md").read_text()))
    return missing(COMMANDS, "the tables of README.md", readme)


def patches() -> list[str]:
    names = [path.stem.partition("-")[2] for path in (ROOT / "native/patches").glob("*.patch")]
    page = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs/engine.md").read_text(), re.MULTILINE)
    return [*missing(names, "docs/engine.md", page), *missing(page, "native/patches", names)]


def versions() -> list[str]:
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"\b1\.[0-9.]*[0-9]", pages)
    return missing(load("versions")["versions"], "README.md and docs/architecture.md", named)


@pytest.mark.parametrize("registry", [ioctls, leaves, commands, patches, versions])
def test_what_is_declared_is_everywhere_that_its_recipe_says(registry: Callable[[], list[str]]) -> None:
    assert registry() == []


def test_a_missing_name_is_reported_with_its_file() -> None:
    assert missing(["KVM_X", "KVM_Y"], "errnos.json", ["KVM_Y"]) == ["KVM_X is missing in errnos.json"]


def test_the_typed_client_has_documented_methods_only() -> None:
    public = [
        (owner.__name__, name)
        for owner in (Vm, Vcpu)
        for name, member in vars(owner).items()
        if callable(member) and not name.startswith("_") and not (member.__doc__ or "").strip()
    ]
    assert public == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *sorted(RECIPES.glob("*.md"))], ids=lambda page: page.stem)
def test_files_that_a_recipe_names_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:src|tests|docs|native|fuzz|script|\.ci)/[\w./-]+)`", text)
    links = [(page.parent / link).resolve() for link in re.findall(r"\]\(([\w./-]+\.md)\)", text)]
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [link for link in links if not link.exists()] == []


def test_every_recipe_is_linked_from_the_front_door() -> None:
    linked = re.findall(r"\]\(docs/contribute/([a-z-]+)\.md\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(linked) == sorted(page.stem for page in RECIPES.glob("*.md"))
