# SPDX-License-Identifier: GPL-2.0-or-later
"""With --json each attestation command prints one JSON object, whatever it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.cli.conftest import Command

COMMANDS = [
    "measure {file}",
    "measure {file} --policy-out /nonexistent/x",
    "measure --nothing",
    "measure none",
    "inspect {file}",
    "inspect {file} --svg /nonexistent/x",
    "diff {file} {file}",
    "diff {file} {image}",
    "diff {file}",
    "replay {file}",
    "replay {image} --quote {file}",
    "replay {image} --report {file}",
    "replay {image} --ima {file}",
    "replay",
    "quote",
    "quote parse {file}",
    "quote verify {file}",
    "quote verify {file} --collateral {image}",
    "quote verify {file} --collateral {image} --policy {file}",
    "quote verify {file} --collateral {image} --at never",
    "report",
    "report parse {file}",
]


@pytest.mark.parametrize("kind", ["missing", "empty", "random", "folder"])
@pytest.mark.parametrize("line", COMMANDS)
def test_a_refusal_is_one_json_object(tmp_path: Path, firmware: Path, command: Command, line: str, kind: str) -> None:
    file = tmp_path / "file"
    if kind in ("empty", "random"):
        file.write_bytes(random.Random(3).randbytes(3000) if kind == "random" else b"")
    elif kind == "folder":
        file.mkdir()
    done = command(*line.format(file=file, image=firmware).split(), "--json")
    assert done.status != 0
    answer = json.loads(done.out)
    assert isinstance(answer, dict)
    assert answer.get("error") or answer.get("broken") or "equal" in answer
    assert "Traceback" not in done.err
