# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` itself says, on stderr: stdout is the guest's."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

_TERMINAL_VARIABLES = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""With one of these rich decides what a terminal is."""
_CONTROL_CODES = dict.fromkeys((7, 8, 11, 12, 13))
"""Those that rich takes out of a text."""


class Voice:
    """What swtdx says on stderr: steps while it builds, then lines. A spinner on a terminal, plain lines otherwise.

    For those rich is not imported: that is a tenth of what a command imports.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._status: Status | None = None

    @cached_property
    def console(self) -> Console:
        """That of rich."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    @cached_property
    def is_terminal(self) -> bool:
        """Whether a person looks at stderr."""
        if sys.stderr.isatty() or not _TERMINAL_VARIABLES.isdisjoint(os.environ):
            return self.console.is_terminal
        return False

    def print(self, *parts: tuple[str, str]) -> None:
        """Print a line, of texts and their styles."""
        if not self.is_terminal:
            print("".join(text for text, _ in parts).translate(_CONTROL_CODES), file=sys.stderr)
            return
        from rich.text import Text

        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def say(self, text: str) -> None:
        """A line, unless it is quiet."""
        if not self.quiet:
            self.print(("swtdx:", "dim"), (f" {text}", ""))

    def interject(self, text: str) -> None:
        """A line of its own in the middle of what the guest prints, on a terminal."""
        self.print((f"\nswtdx: {text}", "dim"))

    def step(self, text: str) -> None:
        """A step of building begins."""
        if self.quiet:
            return
        if not self.is_terminal:
            self.say(text)
            return
        from rich.markup import escape

        if self._status is None:
            self._status = self.console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def waiting(self, text: str) -> None:
        """Say what is waited for; only on a terminal, where it is taken away again."""
        if self.is_terminal:
            self.step(text)

    def steps_end(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
