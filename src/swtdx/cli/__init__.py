# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``swtdx``: what a person types.

``app`` declares it, ``parameters`` reads what was typed, ``run`` carries ``swtdx run`` out, ``report`` tells how it
went.  The commands of a verifier have a module each, named after the command; ``verdict`` has their exit statuses.
"""

from __future__ import annotations

from swtdx.cli.app import main

__all__ = ["main"]
