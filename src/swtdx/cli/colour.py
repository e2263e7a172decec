# SPDX-License-Identifier: GPL-2.0-or-later
"""Results on a terminal: keys bold, what is well green, what is not red, a table's head bold.

Commands make plain lines, and `printed` adds colour on the way out. Where standard output is not a terminal, or
$NO_COLOR is set (https://no-color.org), the lines are unchanged, so that a program reads what it always read.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

BOLD, GREEN, RED = "1", "32", "31"
_LINE = re.compile(r"(?P<key>[A-Za-z][\w-]*|)(?P<gap> +)(?P<rest>\S.*)")
_KEY_WIDTH = 9
"""Of the column of keys; where a command has a wider one, two spaces follow the longest key."""
_WELL = re.compile(r"yes\b|.*: can start as a TD$|makes VMs and TDs")
_ILL = re.compile(r"no\b|no TDs:|.*: cannot start as a TD|none\b|.*makes VMs but no TDs")


def wanted() -> bool:
    """Whether standard output is a terminal that shows colour to a person who has not declined it."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def printed(lines: Iterable[str], *, table: bool = False) -> None:
    """Print the lines of a result; ``table``: the first is a head, and no line begins with a key."""
    coloured = wanted()
    for number, line in enumerate(lines):
        if not coloured:
            print(line)
        elif table:
            print(_styled(line, BOLD) if number == 0 else line)
        else:
            print(of_line(line))


def of_line(line: str) -> str:
    """A line with colour.

    >>> of_line("TD       yes, it can start as a TD")
    '\\x1b[1mTD\\x1b[0m       \\x1b[32myes, it can start as a TD\\x1b[0m'
    >>> of_line("         no TDs: the module kvm_intel is not loaded")
    '         \\x1b[31mno TDs: the module kvm_intel is not loaded\\x1b[0m'
    >>> of_line("0  BFV  0xffe20000")
    '0  BFV  0xffe20000'
    """
    found = _LINE.fullmatch(line)
    if found is None:
        return line
    key, gap, rest = found.groups()
    if len(gap) < 2 and len(key) + len(gap) != _KEY_WIDTH:
        return line
    if _WELL.match(rest):
        rest = _styled(rest, GREEN)
    elif _ILL.match(rest):
        rest = _styled(rest, RED)
    return (_styled(key, BOLD) if key else "") + gap + rest


def _styled(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m"
