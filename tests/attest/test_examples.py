# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples in the documentation of `swtdx.attest` do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import swtdx.attest

MODULES = [module.name for module in pkgutil.iter_modules(swtdx.attest.__path__, "swtdx.attest.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
