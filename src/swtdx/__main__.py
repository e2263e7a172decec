# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m swtdx``: the command, where its script is not on the path."""

from __future__ import annotations

from swtdx.cli import main

if __name__ == "__main__":
    main()
