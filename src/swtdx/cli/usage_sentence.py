# SPDX-License-Identifier: GPL-2.0-or-later
"""What typer, click and pydantic say of a command line that they do not take, in the words of the rest of swtdx."""

from __future__ import annotations

import re

_WORDS = (
    (r"^Value error, |(?<=: )Value error, ", ""),  # pydantic's
    (r"Input should be a valid (?:number|integer), unable to parse string as an? (?:number|integer)", "not a number"),
    (r"Input should be greater than or equal to ([\d.]+)", r"at least \1"),
    (r"Input should be less than or equal to ([\d.]+)", r"at most \1"),
    (r"'?([^' ]*)'? is not in the range ([\d.]+)<=x<=([\d.]+)\.?", r"\1 is not from \2 to \3"),
    (r"^Got unexpected extra arguments? \((.*)\)$", r"\1: not expected here"),
    (r"^Got unexpected extra argument\(s\) \((.*)\)$", r"\1: not expected here"),
)
_FILE_OPTIONS = {
    "run": (
        (r"\.(?:fd|bin|fv|rom)$|OVMF", "--firmware"), (r"vmlinuz|bzImage|\.efi$", "--kernel"),
        (r"initr(?:d|amfs)", "--initrd"), (r"\.(?:img|raw|iso|qcow2)$", "--disk"),
    ),
}  # fmt: skip
"""Command -> (what a file is called, the option that takes it)."""


def usage_sentence(text: str, command: str) -> str:
    """Return one sentence for a person who typed ``command`` in a way that ``text`` complains of.

    >>> usage_sentence("Got unexpected extra argument(s) (mine.fd)", "swtdx run")
    'mine.fd: not expected here; did you mean --firmware mine.fd? (try swtdx run --help)'
    """
    sentence = " ".join(text.split())
    for pattern, words in _WORDS:
        sentence = re.sub(pattern, words, sentence)
    extra = re.match(r"([^:]+): not expected here$", sentence)
    for pattern, option in _FILE_OPTIONS.get(command.rpartition(" ")[2], ()) if extra else ():
        assert extra is not None
        if re.search(pattern, extra[1]):
            sentence = f"{sentence}; did you mean {option} {extra[1]}?"
            break
    return f"{sentence.rstrip('.')} (try {command} --help)"
