# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions of ``dcap-qvl``, without what its package imports beside them.

``import dcap_qvl`` looks its own version up in the metadata of the installation, which loads a parser of mail, sockets
and archives: more than half of the time that ``swtdx quote verify`` takes to start.  Its functions are in an extension
module, which needs none of that.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

_PACKAGE = "dcap_qvl"
_EXTENSION = "dcap_qvl._dcap_qvl"


@cache
def library() -> Any:
    """Return ``Quote``, ``QuoteCollateralV3``, ``verify`` and ``verify_with_root_ca`` of ``dcap-qvl``.

    >>> library().Quote.parse(b"")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    ValueError: Failed to parse quote: Could not decode `Header::version`
    """
    found = sys.modules.get(_EXTENSION) or _extension_alone()
    return SimpleNamespace(
        Quote=found.PyQuote,
        QuoteCollateralV3=found.PyQuoteCollateralV3,
        verify=found.py_verify,
        verify_with_root_ca=found.py_verify_with_root_ca,
    )


def _extension_alone() -> ModuleType:
    """Import the extension while a bare module stands in for its package, which is not run."""
    if _PACKAGE in sys.modules:
        return import_module(_EXTENSION)
    spec = PathFinder.find_spec(_PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    sys.modules[_PACKAGE] = _bare(spec)
    try:
        return import_module(_EXTENSION)
    finally:
        del sys.modules[_PACKAGE]  # a later import of the package runs it


def _bare(spec: ModuleSpec) -> ModuleType:
    package = ModuleType(_PACKAGE)
    package.__path__ = spec.submodule_search_locations or []
    return package
