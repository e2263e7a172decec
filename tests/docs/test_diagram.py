# SPDX-License-Identifier: GPL-2.0-or-later
"""The diagrams of the state machines show every state and every transition, and nothing overlaps."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from xml.etree import ElementTree

import pytest

from testing.places import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"
STATES = ["A", "LONG_NAME_OF_A_STATE", "C"]
MOVES = [("A", "C", "TDH.ONE"), ("C", "A", "TDH.BACK"), ("LONG_NAME_OF_A_STATE", "C", "x < y & z"), ("C", "C", "again")]


@pytest.fixture
def diagram(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    monkeypatch.delitem(sys.modules, "diagram", raising=False)
    module: ModuleType = import_module("diagram")
    return module


def test_it_is_xml_with_each_name_once_and_an_arrow_for_each_move(diagram: ModuleType) -> None:
    root = ElementTree.fromstring(diagram.ladder("a < b", STATES, MOVES))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == [*STATES, *(event for _, _, event in MOVES)]
    heads = [path for path in root.iter(f"{SVG}path") if path.get("d", "").endswith("z")]
    assert len(heads) == len(MOVES)


def test_boxes_do_not_overlap_and_lie_inside(diagram: ModuleType) -> None:
    root = ElementTree.fromstring(diagram.ladder("m", STATES, MOVES))
    boxes = [(float(box.get("x", 0)), float(box.get("width", 0))) for box in root.iter(f"{SVG}rect")]
    assert all(left + width < right for (left, width), (right, _) in pairwise(boxes))
    assert boxes[-1][0] + boxes[-1][1] <= float(root.get("width", 0))


def test_a_label_fits_between_the_lines_that_its_arrow_joins(diagram: ModuleType) -> None:
    root = ElementTree.fromstring(diagram.ladder("m", ["A", "B"], [("A", "B", "x" * 60)]))
    first, second = [float(line.get("x1", 0)) for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")]
    assert second - first >= 60 * 7


def test_a_machine_without_moves_has_its_states(diagram: ModuleType) -> None:
    root = ElementTree.fromstring(diagram.ladder("m", STATES, []))
    assert len(list(root.iter(f"{SVG}rect"))) == 3
