# SPDX-License-Identifier: GPL-2.0-or-later
"""The diagrams show every state and transition, every floor and arrow, and nothing overlaps."""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from xml.etree import ElementTree

import pytest

from testing.places import REPOSITORY
from tests.architecture.test_layers import ARROWS

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


# --- floors -----------------------------------------------------------------------------------------------------------


def test_the_table_of_arrows_is_what_the_layers_are_tested_for(diagram: ModuleType) -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    assert diagram.floors_of_the_page(page) == {
        floor: below for floor, below in ARROWS.items() if not floor.startswith("__")
    }


def test_the_picture_of_the_floors_is_drawn_from_the_table(diagram: ModuleType) -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = (REPOSITORY / "docs/floors.svg").read_text(encoding="utf-8")
    assert drawn == diagram.picture(page), "run 'python docs/diagram.py'"


def test_each_floor_lies_above_what_it_imports_and_no_boxes_overlap(diagram: ModuleType) -> None:
    arrows = {"top": {"left", "right", "base"}, "left": {"base"}, "right": {"base"}, "base": set(), "alone": set()}
    root = ElementTree.fromstring(diagram.floors("t", arrows))
    boxes = [(float(box.get("x", 0)), float(box.get("y", 0)), float(box.get("width", 0))) for box in root[2:]
             if box.tag == f"{SVG}rect"]  # fmt: skip
    at = dict(zip([text.text for text in root.iter(f"{SVG}text")], boxes, strict=True))
    assert set(at) == set(arrows)
    for floor, below in arrows.items():
        assert all(at[floor][1] < at[other][1] for other in below)
    for left, right in pairwise(sorted(boxes, key=lambda box: (box[1], box[0]))):
        assert left[1] != right[1] or left[0] + left[2] < right[0]
    assert len(list(root.iter(f"{SVG}polyline"))) == 4, "top leads to base through left and right"
