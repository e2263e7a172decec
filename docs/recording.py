# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal session as an SVG that plays: ``python docs/recording.py OUT.svg COMMAND [ARGUMENT]...``.

The command runs on a pseudo-terminal of its own. Each line that it printed appears at its time, with pauses cut short,
by CSS alone; where animations are turned off all lines are shown. No script, no font and no image from elsewhere.
"""

from __future__ import annotations

import html
import os
import pty
import re
import sys
import time
from pathlib import Path

COLUMNS, ROWS = 100, 32
_LONGEST_PAUSE = 0.7
_LINE, _SIZE, _MARGIN = 18, 13.5, 16
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


def record(command: list[str]) -> list[tuple[float, str]]:
    """Run a command on a terminal; return (seconds since its start, line) of each line that stayed."""
    lines: list[tuple[float, str]] = []
    began, rest = time.monotonic(), b""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(ROWS), TERM="xterm")
        os.execvp(command[0], command)
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        lines += [(time.monotonic() - began, _shown(each)) for each in whole]
    _, status = os.waitpid(child, 0)
    if status:  # a recording of that would replace a good one
        raise SystemExit(f"{command[0]} ended with status {os.waitstatus_to_exitcode(status)}: nothing is recorded")
    if rest.strip():
        lines.append((time.monotonic() - began, _shown(rest)))
    return [each for each in lines if each[1].strip()]


def _shown(line: bytes) -> str:
    """What is left of a line on the terminal: behind the last return to its beginning, without controls.

    >>> _shown(b"a spinner\\r\\x1b[2Kdone \\x1b[1mhere\\x1b[0m\\r")
    'done here'
    """
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
    return _CONTROL.sub("", text).rstrip()[:COLUMNS]


def drawn(typed: str, lines: list[tuple[float, str]]) -> str:
    """The SVG."""
    shown = [(0.0, f"$ {typed}"), *_paced(lines)]
    if len(shown) > ROWS:  # the beginning and the end
        shown = [*shown[: ROWS // 2], (shown[ROWS // 2][0], "  [...]"), *shown[-(ROWS - ROWS // 2 - 1) :]]
    height, width = _LINE * len(shown) + 2 * _MARGIN, int(COLUMNS * 8.2) + 2 * _MARGIN
    texts = "\n".join(
        f'<text x="{_MARGIN}" y="{_MARGIN + _LINE * (number + 1) - 4}" style="animation-delay:{at:.2f}s">'
        f"{html.escape(text)}</text>"
        for number, (at, text) in enumerate(shown)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>{html.escape(typed)}</title>
<style>
text {{ font: {_SIZE}px ui-monospace, "DejaVu Sans Mono", monospace; fill: #dfe6ee; white-space: pre }}
text {{ animation: come 0.01s both }}
@keyframes come {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect width="100%" height="100%" rx="8" fill="#10161f"/>
{texts}
</svg>
"""


def _paced(lines: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The same lines, with no pause longer than a reader takes."""
    now, before, made = 0.6, 0.0, []
    for at, text in lines:
        now += min(at - before, _LONGEST_PAUSE)
        before = at
        made.append((now, text))
    return made


if __name__ == "__main__":
    target, *argv = sys.argv[1:]
    Path(target).write_text(drawn(" ".join(argv), record(argv)), encoding="utf-8")
