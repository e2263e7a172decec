# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain English: phrases that docs/style.md asks not to use do not come back.

The list has what was swept once. Add a phrase when it has been swept; do not add a file to the exceptions.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BANNED = {
    r"\bto be had\b": "available, can be read",
    r"\bhad from\b": "obtained from",
    r"\bnobody\b": "no one in the text: name what does not happen",
    r"\bsomebody\b": "a person, another caller",
    r"\bwhoever\b": "the reader, the caller",
    r"(?<!there )(?<!where )\bis no (?!longer\b|more\b|such\b|need\b|way\b|different\b)[a-z]": "is not a",
    r"\btells? of\b": "reports",
    r"\bleaves? \S+ away\b": "omit",
    r"\banew\b": "again",
    r"\bfor ever\b": "indefinitely, without end",
    r"\b(?:in|of) (?:his|her|its) own accord\b": "itself",
    r"\bsays? so\b": "reports it",
    r"\bheld against\b": "compared with",
    r"\bbelieves?\b": "assumes",
    r"\bgoes on\b": "continues",
    r"\bstays? away\b": "is absent",
    r"\bin vain\b": "without success",
    r"\bd(?:ies?|ied) of\b": "ends with, fails with",
    r"\bmistakes? of ours\b": "internal error",
    r"\bgoes off\b(?! line)": "is switched off",
    r"\blives? on\b": "remains, depends on",
    r"\btold apart\b": "distinguished",
    r"\bbrought about\b": "caused",
    r"(?<!\d )(?<!years )\bof old\b": "legacy, earlier",
    r"\bhitherto|thereof|whereof|herein|thereby|wherein\b": "plain words",
    r"\bas predicted for calls that come\b": "matches the page-by-page prediction",
    r"\btell the mrtd\b": "Compute the MRTD",
    r"\bfor the machine that has written\b": "predict for the machine that wrote",
    r"\bat which two measurements part\b": "where two measurements diverge",
    r"\blet no vcpu run\b": "hold all vCPUs",
    r"\bend after so long\b": "stop after SECONDS",
    r"\bbring it into such a state\b": "change the entry's state first",
    r"\btrying again can\b": "retryable, not retryable",
    r"\bis no Intel one\b": "not an Intel processor",
    r"\bsays what there is\b": "try 'swtdx run --help'",
    r"\bregisters vouch\b": "the registers authenticate the digests",
    r"\banother nature\b": "asks to convert memory",
    r"\bfor want of\b": "because ... is missing",
    r"\brefuse any other value\b": "require this value",
}
"""Pattern, matched in lower case -> what to write instead."""
TEXT = re.compile(r"\.(?:py|pyi|pyx|md|c|h|S|json|toml|sh|cfg|yml)$|^script/|^\.ci/")
NOT_OURS = ("LICENSE", "native/patches/", "docs/style.md", "tests/architecture/test_words.py")


@cache
def texts() -> dict[str, str]:
    """{file: its text in lower case}, of all files in which people read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("NOT A GIT CHECKOUT: its files cannot be listed, so that their words were not checked")
    names = [name for name in listed.stdout.splitlines() if TEXT.search(name) and not name.startswith(NOT_OURS)]
    return {name: (ROOT / name).read_text(encoding="utf-8", errors="replace").lower() for name in names}


@pytest.mark.parametrize("phrase", BANNED)
def test_a_banned_phrase_does_not_come_back(phrase: str) -> None:
    pattern = re.compile(phrase)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts().items()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"write: {BANNED[phrase]}"
