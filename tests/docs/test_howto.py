# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command in the tutorial and the how-to pages does what the page says.

In a ``console`` block a line that begins with ``$`` is run by bash, in a folder of the page's own with swtdx on the
PATH; the lines after it are what it prints. Where that is long or differs from machine to machine, a comment stands
before the block: under ``excerpt`` other lines may stand between those that are shown, under ``values differ``
numbers and hexadecimal digits are others. A line that ends with ``...`` has more after that. Readers see none of
that. A Python block after the words "Save this as" or under a comment "save the block above as" becomes that file. A
comment may say ``status N`` (how the last command of the block ends), ``run in the checkout``, ``needs FILE``, or
``once for all pages``: pages that have such a comment in the same words get the files and the output of one run,
which takes long. What ``needs $SWTDX_LINUX`` (a Linux guest, which script/linux fetches) is left out where that is
not set, and the test then counts as skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swtdx.image.firmware import FirmwareError, find_firmware
from testing.places import REPOSITORY
from tests.conftest import unit

PAGES = [REPOSITORY / "docs/tutorial.md", *sorted((REPOSITORY / "docs/howto").glob("*.md"))]
PAGES += [REPOSITORY / f"docs/explanation/{name}.md" for name in ("first-touch", "one-page-measured")]
_BLOCK = re.compile(r"(?:<!-- (?P<note>(?:(?!-->).)*?) -->\n)?```(?P<kind>console|python)\n(?P<body>.*?)```", re.DOTALL)
_SAVE_BEFORE = re.compile(r"Save this as `([^`]+)`:\s*$")
_SAVE_AFTER = re.compile(r"\s*<!-- save the block above as (\S+) -->")


@dataclass
class Step:
    """A command with what it is to print, or a file to be written."""

    text: str
    output: str = ""
    status: int = 0
    in_checkout: bool = False
    file: str = ""
    needs_linux: bool = False
    once: bool = False
    excerpt: bool = False
    values_differ: bool = False


@dataclass
class Made:
    """What a command did that is carried out once for all pages."""

    done: subprocess.CompletedProcess[str]
    files: list[Path]


_MADE: dict[str, Made] = {}
"""By the command's words. `tests/conftest.py` gives the pages that share commands to one process."""


def steps(page: str) -> Iterator[Step]:
    for block in _BLOCK.finditer(page):
        if block["kind"] == "python":
            name = _SAVE_BEFORE.search(page[: block.start()]) or _SAVE_AFTER.match(page[block.end() :])
            if name is not None:
                yield Step(block["body"], file=name[1])
            continue
        note = block["note"] or ""
        commands = re.split(r"^\$ ", block["body"], flags=re.MULTILINE)[1:]
        for number, command in enumerate(commands, 1):
            text, _, output = command.partition("\n")
            status = re.search(r"status (\d+)", note)
            last = number == len(commands)
            linux = "needs $SWTDX_LINUX" in note
            yield Step(
                text, output, int(status[1]) if status and last else 0, "in the checkout" in note, "", linux,
                once="once for all pages" in note, excerpt="excerpt" in note, values_differ="values differ" in note,
            )  # fmt: skip


_VALUE = re.compile(r"((?:0x)?[0-9A-Fa-f]*\d[0-9A-Fa-f,.]*(?<![,.]))|(\s+)|(\.\.\.$)")
_CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]")


def line_pattern(shown: str, *, values_differ: bool) -> re.Pattern[str]:
    """What a line of a page stands for."""
    parts, at = [], 0
    for found in _VALUE.finditer(shown):
        parts.append(re.escape(shown[at : found.start()]))
        at = found.end()
        if found[2]:
            parts.append(r"\s+")
        elif found[3]:
            parts.append(".*")
        else:
            parts.append(r"(?:0x)?[0-9A-Fa-f,.]+" if values_differ else re.escape(found[0]))
    return re.compile("".join(parts) + re.escape(shown[at:]))


def matches(expected: str, printed: str, *, excerpt: bool = False, values_differ: bool = False) -> bool:
    """Whether a page shows what was printed: every line of it, or with ``excerpt`` some, in this order."""
    shown, lines = expected.strip().splitlines(), _CONTROL.sub("", printed).strip().splitlines()
    patterns = [
        line_pattern(line.strip(), values_differ=values_differ) for line in shown if line.strip() or not excerpt
    ]
    if excerpt:
        left = iter(lines)
        return all(any(pattern.fullmatch(line.strip()) for line in left) for pattern in patterns)
    return len(patterns) == len(lines) and all(
        pattern.fullmatch(line.strip()) for pattern, line in zip(patterns, lines, strict=True)
    )


def carried_out(step: Step, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, or give its files to the page if another page has run it with the same words."""
    made = _MADE.get(step.text)
    if step.once and made is not None and all(file.is_file() for file in made.files):
        for file in made.files:
            shutil.copy(file, folder)
        return made.done
    before = set(folder.iterdir())
    done = subprocess.run(
        ["bash", "-c", step.text],
        cwd=REPOSITORY if step.in_checkout else folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=250,
        check=False,
    )
    if step.once:
        _MADE[step.text] = Made(done, [file for file in folder.iterdir() if file not in before])
    return done


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_its_commands_run_as_written(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(steps(text))
    for needed in re.findall(r"<!-- needs (/\S+) -->", text):
        if not Path(needed).is_file():
            pytest.skip(f"{needed} is not there: the commands of {page.name} are not run")
    if any("swtdx run" in step.text or "swtdx measure" in step.text for step in found):
        try:
            find_firmware()
        except FirmwareError as error:
            pytest.skip(str(error))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    environment.pop("PYTEST_ADDOPTS", None)
    left_out: list[str] = []
    for step in found:
        if step.needs_linux and not os.environ.get("SWTDX_LINUX"):
            left_out.append(step.text)
            continue
        if step.file:
            (tmp_path / step.file).write_text(step.text)
            continue
        done = carried_out(step, tmp_path, environment)
        said = done.stdout + done.stderr
        assert done.returncode == step.status, f"{step.text}\n{said}"
        if step.output.strip():
            streams = (done.stdout, done.stderr, said)
            how = {"excerpt": step.excerpt, "values_differ": step.values_differ}
            assert any(matches(step.output, stream, **how) for stream in streams), f"{step.text}\n{said}"
    if left_out:
        pytest.skip(f"$SWTDX_LINUX is not set (script/linux makes one), so that these were not run: {left_out}")


@pytest.mark.parametrize(
    ("expected", "printed", "excerpt", "values_differ", "same"),
    [
        ("a b", "a   b", False, False, True),
        ("a...", "abc", False, False, True),
        ("a.c", "abc", False, False, False),
        ("a\nc", "a\nb\nc", False, False, False),
        ("a\nc", "a\nb\nc", True, False, True),
        ("c\na", "a\nb\nc", True, False, False),
        ("a\nd", "a\nb\nc", True, False, False),
        ("12 of 0x1f", "7 of 0xabc", False, True, True),
        ("12 of 0x1f", "7 of 0xabc", False, False, False),
        ("12 of 7", "none of 7", False, True, False),
        ("took 1.5 s.", "took 12.25 s.", False, True, True),
        ("a", "\x1b[2J\x1b[01;01Ha", False, False, True),
    ],
)
def test_how_output_is_compared(expected: str, printed: str, excerpt: bool, values_differ: bool, same: bool) -> None:
    assert matches(expected, printed, excerpt=excerpt, values_differ=values_differ) is same


READ = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", READ, ids=lambda path: path.stem)
def test_readers_see_no_patterns(page: Path) -> None:
    assert "[...]" not in page.read_text(encoding="utf-8")


def test_a_command_for_all_pages_is_run_once(tmp_path: Path) -> None:
    note = "<!-- once for all pages -->\n```console\n$ date +%N | tee made\n```\n"
    (step,) = steps(note)
    folders = [tmp_path / "one", tmp_path / "other"]
    printed = []
    for folder in folders:
        folder.mkdir()
        printed.append(carried_out(step, folder, dict(os.environ)).stdout)
        assert (folder / "made").read_text() == printed[-1]
    assert printed[0] == printed[1]


def test_pages_that_share_a_command_run_in_one_process() -> None:
    sharing = [page.stem for page in PAGES if any(step.once for step in steps(page.read_text(encoding="utf-8")))]
    assert len(sharing) > 1
    assert len({unit(f"tests/docs/test_howto.py::test_its_commands_run_as_written[{stem}]") for stem in sharing}) == 1
