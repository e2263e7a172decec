# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` itself says, on stderr: stdout is the guest's."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Voice:
    """What swtdx says on stderr: steps while it builds, then lines. A spinner on a terminal, plain lines otherwise."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._status: Status | None = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[dim]swtdx:[/dim] {escape(text)}", soft_wrap=True)

    def step(self, text: str) -> None:
        """A step of building begins."""
        if self.quiet:
            return
        if not self.console.is_terminal:
            self.say(text)
        elif self._status is None:
            self._status = self.console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def waiting(self, text: str) -> None:
        """Say what is waited for; only on a terminal, where it is taken away again."""
        if self.console.is_terminal:
            self.step(text)

    def steps_end(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
