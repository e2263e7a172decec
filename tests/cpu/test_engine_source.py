# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine that was compiled from another source than the checkout has is refused when it is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import swtdx
from swtdx.cpu import _engine

PACKAGE = Path(swtdx.__file__).parent
ENGINE = Path(_engine.__file__)
SOURCE = PACKAGE / "cpu" / "_engine.pyx"
SENTENCE = "the engine was built from other sources: run script/setup"


def python(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the package in ``site``."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The package, in which the engine has no source beside it: as a wheel installs it."""
    cpu = tmp_path / "swtdx" / "cpu"
    cpu.mkdir(parents=True)
    for path in (*PACKAGE.iterdir(), *(PACKAGE / "cpu").iterdir()):
        if path.name not in {"cpu", "__pycache__", SOURCE.name}:
            (tmp_path / path.relative_to(PACKAGE.parent)).symlink_to(path)
    return tmp_path


def test_an_engine_without_a_source_beside_it_is_loaded(site: Path) -> None:
    loaded = python(site, "-c", "from swtdx.cpu import _engine; print(_engine.__file__)")
    assert loaded.stdout.strip() == str(site / "swtdx" / "cpu" / ENGINE.name), loaded.stderr


@pytest.mark.skipif(not SOURCE.exists(), reason="an installed package has no source of the engine")
@pytest.mark.parametrize("change", [b"# newer\n", b"", b"\n"])
def test_an_engine_of_another_source_is_refused(site: Path, change: bytes) -> None:
    (site / "swtdx" / "cpu" / SOURCE.name).write_bytes(SOURCE.read_bytes() + change)
    loaded = python(site, "-c", "import swtdx.cpu._engine")
    assert loaded.returncode == bool(change)
    assert SENTENCE in loaded.stderr or not change


def test_the_command_says_so_in_one_sentence(site: Path) -> None:
    (site / "swtdx" / "cpu" / SOURCE.name).write_text("# another\n")
    said = python(site, "-m", "swtdx", "run")
    assert (said.returncode, said.stderr.splitlines()[-1]) == (2, f"swtdx: {SENTENCE}")
    assert "Traceback" not in said.stderr
    probed = python(site, "-m", "swtdx", "probe", "--json")
    assert SENTENCE in json.loads(probed.stdout)["embedded"]["no_tdx_because"][0]
