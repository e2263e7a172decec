# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier of Trust Domains needs: measurements predicted, images and launches explained and compared.

Nothing here starts a TD or calls a kernel.  The names below are the public ones; each is loaded when it is first used,
so that who hashes a firmware image does not wait for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers; at run time __getattr__ finds them
    from swtdx.attest.build_calls import Build as Build
    from swtdx.attest.build_calls import RecordError as RecordError
    from swtdx.attest.build_calls import predicted_build as predicted_build
    from swtdx.attest.build_calls import recorded_build as recorded_build
    from swtdx.attest.divergence import Comparison as Comparison
    from swtdx.attest.divergence import Divergence as Divergence
    from swtdx.attest.divergence import compare as compare
    from swtdx.attest.inspection import Inspection as Inspection
    from swtdx.attest.inspection import inspect_image as inspect_image
    from swtdx.attest.measure import MeasureError as MeasureError
    from swtdx.attest.measure import Measurement as Measurement
    from swtdx.attest.measure import measure_image as measure_image
    from swtdx.attest.memory_picture import svg_picture as svg_picture
    from swtdx.attest.memory_picture import text_picture as text_picture

_HOMES = {
    "Build": "build_calls",
    "Comparison": "divergence",
    "Divergence": "divergence",
    "Inspection": "inspection",
    "MeasureError": "measure",
    "Measurement": "measure",
    "RecordError": "build_calls",
    "compare": "divergence",
    "inspect_image": "inspection",
    "measure_image": "measure",
    "predicted_build": "build_calls",
    "recorded_build": "build_calls",
    "svg_picture": "memory_picture",
    "text_picture": "memory_picture",
}
"""Public name -> the module of this package that has it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
