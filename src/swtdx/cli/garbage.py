# SPDX-License-Identifier: GPL-2.0-or-later
"""Python's garbage collector: not while a command starts.

What a command imports and builds then stays until its end. With Python's own setting a seventh of the time until a
guest ran was spent on looking through it.
"""

from __future__ import annotations

import gc

_OBJECTS_TO_A_COLLECTION = 50_000
"""Instead of Python's 700."""


def wait() -> None:
    """Collect nothing until `go_on`."""
    gc.disable()


def go_on() -> None:
    """Collect what is made from now on. Does nothing unless `wait` was called, as in a program that calls swtdx."""
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(_OBJECTS_TO_A_COLLECTION)
        gc.enable()
