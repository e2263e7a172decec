# SPDX-License-Identifier: GPL-2.0-or-later
"""Sentences that a newcomer stumbled over do not come back, in what is printed or in the documentation."""

from __future__ import annotations

import pytest

from testing.places import REPOSITORY

REPLACED = {
    "nobody is to type": "stdin is not a terminal, so the run ends here",
    "as predicted for calls that come": "matches the page-by-page prediction",
    "Tell the MRTD": "Compute the MRTD",
    "for the machine that has written": "predict for the machine that wrote",
    "is not to be had": "cannot be read",
    "at which two measurements part": "where two measurements diverge",
    "Let no vCPU run": "hold all vCPUs",
    "End after so long": "stop after SECONDS",
    "Bring it into such a state": "change the entry's state first",
    "trying again can": "retryable, not retryable",
    "is no Intel one": "not an Intel processor",
    "says what there is": "try 'swtdx run --help'",
    "Registers vouch": "the registers authenticate the digests",
    "believes in a TD": "trusts a TD by its MRTD",
    "another nature": "asks to convert memory",
    "for want of": "because ... is missing",
    "Refuse any other value": "require this value",
}
"""What was written, and what says it plainly."""
WHERE = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
WHERE += [*(REPOSITORY / "src/swtdx").rglob("*.json")]
WHERE += [*(REPOSITORY / "src/swtdx/cli").glob("*.py"), *(REPOSITORY / "src/swtdx/explain").glob("*.py")]
LEFT_OUT = {"style.md", "commands.md", "statuses.md"}
"""The first shows bad sentences as examples; the others are made of what is read here, when the site is built."""


@pytest.mark.parametrize("sentence", REPLACED)
def test_a_sentence_stays_replaced(sentence: str) -> None:
    assert [
        str(path) for path in WHERE if path.name not in LEFT_OUT and sentence in path.read_text(encoding="utf-8")
    ] == []
