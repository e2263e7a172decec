# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``swtdx``: what a person types.

A module is named after its command. ``app`` declares them, ``parameters`` reads what was typed, ``session`` carries
``swtdx run`` out, ``run_record`` reports how it went, and ``verdict`` has the exit statuses of a verifier's commands.
"""

from __future__ import annotations

from swtdx.cli.app import main

__all__ = ["main"]
