# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables behind swtdx explain: whole, and in agreement with the specification, the kernel and the module."""

from __future__ import annotations

import errno
import re

import pytest

from swtdx.explain import known_ioctls, leaves, refusals, table
from swtdx.explain.failure import parse_errno
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tables import load
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS
from testing import published
from testing.places import REPOSITORY
from tests.linux.conformance import PAGE_PATH


def test_every_status_and_operand_has_its_words() -> None:
    statuses = table("statuses")
    assert set(statuses["statuses"]) >= set(StatusCode.__members__)
    assert all(len(row) == 2 and all(text.endswith(".") for text in row) for row in statuses["statuses"].values())
    assert set(statuses["operands"]) <= set(Operand.__members__)
    assert set(statuses["details"]) <= set(StatusCode.__members__)


def test_every_leaf_has_its_rules_and_no_placeholder_is_left() -> None:
    wanted = {row[1] for kind in ("seamcall", "tdcall") for row in load("leaves")[kind]}
    assert set(leaves()) == wanted
    for leaf, rules in leaves().items():
        for rule in rules:
            assert rule.status in StatusCode.__members__, leaf
            assert not rule.operand or rule.operand in Operand.__members__, leaf
            assert rule.text, leaf
            assert not re.search(r"[{}@]|\|\|", rule.text + rule.remedy), (leaf, rule)


def test_rules_name_every_status_of_the_published_checks() -> None:
    missing = {
        (leaf, status)
        for leaf, statuses in published.statuses_of_checks().items()
        for status in statuses - {rule.status for rule in leaves()[leaf]}
    }
    assert missing == set()


def test_rules_are_in_the_order_of_the_published_checks() -> None:
    for leaf, wanted in published.checks().items():
        if leaf == "TDG.MEM.PAGE.ACCEPT":  # names PAGE_ALREADY_ACCEPTED twice: for a larger page, and at the end
            continue
        own = list(dict.fromkeys(rule.answer for rule in leaves()[leaf]))
        assert [each for each in own if each in wanted] == [each for each in wanted if each in own], leaf


@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_sub_command_and_only_what_exists(dialect: Dialect) -> None:
    assert {f"KVM_TDX_{each.name}" for each in dialect.commands} <= set(known_ioctls(dialect))
    assert set(known_ioctls(dialect)) - set(REQUESTS) - {"open"} == {
        f"KVM_TDX_{each.name}" for each in dialect.commands
    }
    for ioctl in known_ioctls(dialect):
        for refusal in refusals(ioctl, dialect):
            assert hasattr(errno, refusal.errno) or refusal.errno == "EHWPOISON", ioctl
            assert set(refusal.seamcalls) <= set(leaves()), ioctl
            assert refusal.rule, ioctl
            assert refusal.remedy.endswith("."), ioctl


def test_the_description_of_the_interface_names_the_same_errno() -> None:
    """docs/abi.md, written by hand: what it lists under each sub-command, of both dialects together."""
    text = (REPOSITORY / "docs" / "abi.md").read_text(encoding="utf-8")
    sections = {section.split("\n")[0]: section for section in re.split(r"^## ", text, flags=re.MULTILINE)}
    ioctls = table("errnos")["ioctls"]
    general = {refusal.errno for refusal in refusals("KVM_MEMORY_ENCRYPT_OP", Dialect.UPSTREAM)}
    for name in {*ioctls["upstream"], *ioctls["v10"]}:
        listed = re.search(r"^:Errors: (.*)$", sections[name], re.MULTILINE)
        assert listed is not None, name
        described = set(re.findall(r"`(E[A-Z0-9]+)`", listed[1]))
        known = {each.errno for dialect in Dialect for each in refusals(name, dialect) if name in ioctls[dialect.value]}
        own = {row[0] for dialect in Dialect for row in ioctls[dialect.value].get(name, ()) if isinstance(row, list)}
        assert own - general <= described <= known, name


def test_every_errno_that_the_emulated_kernel_is_shown_to_give_is_explained() -> None:
    """The conformance page has, for each ioctl and dialect, the errno that tests bring about."""
    checked, missing = 0, []
    for line in PAGE_PATH.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6 or not cells[0].startswith("KVM_"):
            continue
        for dialect, outcomes in zip((Dialect.UPSTREAM, Dialect.V10), cells[3:5], strict=True):
            if cells[0] not in known_ioctls(dialect):  # then what holds for every ioctl is all that is said
                continue
            known = {refusal.errno for refusal in refusals(cells[0], dialect)}
            for name in re.findall(r"\bE[A-Z0-9]+\b", outcomes):
                checked += 1
                if parse_errno(name) not in known:
                    missing.append((cells[0], dialect.value, name))
    assert missing == [], missing
    assert checked > 100
