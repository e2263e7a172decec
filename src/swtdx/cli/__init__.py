# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``swtdx``: what a person types.

A module is named after its command. ``app`` declares them, ``parameters`` reads what was typed, ``session`` carries
``swtdx run`` out, ``run_record`` reports how it went, and ``verdict`` has the exit statuses of a verifier's commands.
``run`` and a verifier's command that are typed without a mistake run without typer, which would take longer than the
command.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from swtdx.cli import garbage

if TYPE_CHECKING:
    from swtdx.cli.standard_streams import StandardStreams

__all__ = ["main"]

COMPLETION_VARIABLE = "_SWTDX_COMPLETE"
"""Set by the scripts of ``swtdx completion``; typer and they have agreed on its name."""
_FOR_TYPER = -1


def main() -> None:
    """The entry point: every error that can be foreseen ends as one sentence and an exit status."""
    garbage.wait()
    from swtdx.cli.standard_streams import standard_streams
    from swtdx.cli.verdict import RUN_BAD_INPUT, Verdict

    arguments = sys.argv[1:]
    with standard_streams() as streams:
        status = None
        if COMPLETION_VARIABLE not in os.environ:
            if arguments in (["--version"], ["-V"], ["version"]):
                status = _version()
            elif arguments:
                status = _without_typer(arguments, streams)
        lost = RUN_BAD_INPUT if arguments[:1] == ["run"] else int(Verdict.USAGE)
        if status is None:
            from swtdx.cli.app import carry_out

            garbage.go_on()
            status, lost = carry_out(arguments or ["--help"], streams)
        status = streams.finish(status, when_lost=lost)
    sys.exit(status)


def _version() -> int:
    import swtdx

    print(f"swtdx {swtdx.__version__}")
    return 0


def _without_typer(arguments: list[str], streams: StandardStreams) -> int | None:
    """Return the status of a command on a plain command line; None if typer must read it."""
    from swtdx.cli.complaint import carried_out
    from swtdx.cli.plain import plain_call
    from swtdx.cli.verdict import RUN_BAD_INPUT, Verdict

    def action() -> int:
        call = plain_call(arguments)
        if call is None:
            return _FOR_TYPER
        if arguments[0] != "run":  # that builds a machine first
            garbage.go_on()
        return int(call() or 0)

    if arguments[0] == "run":  # its --json names a file
        status = carried_out(action, RUN_BAD_INPUT, streams, as_json=False)
    else:
        status = carried_out(action, Verdict.NO_INPUT, streams, as_json="--json" in arguments)
    return None if status == _FOR_TYPER else status
