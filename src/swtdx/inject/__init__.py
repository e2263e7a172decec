# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults on demand: SEAMCALLs and ioctls that fail because a person asked for it.

`parse` reads what was typed (``TDH.MEM.PAGE.AUG: OPERAND_BUSY @3``) into an `Injection`; `line` has what stands at the
SEAMCALL line and at the system-call line of a machine that has injections. A machine without one has nothing of this.
"""

from __future__ import annotations

from swtdx.inject.injection import Injection, InjectionError, When
from swtdx.inject.line import Armed, Faults

__all__ = ["Armed", "Faults", "Injection", "InjectionError", "When"]
