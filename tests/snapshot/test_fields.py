# SPDX-License-Identifier: GPL-2.0-or-later
"""Every attribute of every class that a machine consists of is state or fixed, and the table says which.

The attributes are read from the source, so that one which a class gets tomorrow makes a test fail until it is decided.
Objects of classes that are not in the table are refused when a snapshot is made.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import pytest

from swtdx.snapshot.fields import CREATABLE, ENUMERATIONS, FIELDS, STRUCTURES

BUILT_IN = {"swtdx.cpu._engine.GuestContext"}
"""Compiled: its ``kept`` gives all of it."""


def stored(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes of self that are assigned to anywhere below."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


def attributes(kind: type) -> set[str]:
    """The attributes that instances of a class get by its own source and that of its base classes of swtdx."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("swtdx."):
            continue
        tree = ast.parse(inspect.getsource(base))
        definition = tree.body[0]
        assert isinstance(definition, ast.ClassDef)
        found |= set(stored(definition))
        slots = base.__dict__.get("__slots__", ())
        found |= {slots} if isinstance(slots, str) else set(slots)
        found -= {"__dict__", "__weakref__"}  # no attributes: they make room for others
        if base.__dict__.get("_is_protocol"):
            continue
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotation = ast.unparse(node.annotation)
                if "ClassVar" not in annotation and "Final" not in annotation:
                    found.add(node.target.id)
    return found


def resolve(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    assert isinstance(kind, type)
    return kind


@pytest.mark.parametrize("name", sorted(set(FIELDS) - BUILT_IN))
def test_every_attribute_is_declared_once(name: str) -> None:
    fields = FIELDS[name]
    declared = [*fields.state, *fields.fixed]
    assert len(declared) == len(set(declared))
    found = attributes(resolve(name))
    assert found - set(declared) == set(), "state or fixed? see swtdx.snapshot.fields"
    gone = {one for one in declared if one not in found and not hasattr(resolve(name), one)}
    assert gone == set(), "there is no such attribute any more"


@pytest.mark.parametrize("name", sorted(ENUMERATIONS | STRUCTURES | set(FIELDS)))
def test_every_name_of_the_tables_is_that_of_a_class(name: str) -> None:
    assert resolve(name).__name__ == name.rpartition(".")[2]


def test_what_a_file_may_create_is_data_without_behaviour() -> None:
    """No object that a file brings into being holds a callable, a descriptor or an address."""
    for name in CREATABLE:
        assert name in FIELDS
        assert not FIELDS[name].fixed, name
        kind = resolve(name)
        assert not hasattr(kind, "go_on"), name
        assert not hasattr(kind, "__del__"), name
        assert "__new__" not in {name for base in kind.__mro__[:-1] for name in vars(base)}, name
