# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's OVMF as a Trust Domain through the command, to the shell's prompt, in both dialects."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

# MRTD of OVMF.fd of Debian 12's ovmf 2022.11-6+deb12u2, measured page by page: three independent implementations agree.
KNOWN_IMAGE = "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773"
KNOWN_MRTD = "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
SCRIPT = "from swtdx.cli import main; main()"


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "run", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("dialect", ["upstream", "v10"])
def test_ovmf_boots_as_a_td_to_the_shell(dialect: str, ovmf_image: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    done = run_command("--firmware", str(ovmf_image), "--dialect", dialect, "--json", str(record), "--timeout", "200")
    assert done.returncode == 0, done.stderr
    assert "UEFI Interactive Shell" in done.stdout
    kept = json.loads(record.read_text())
    assert kept["outcome"] == "shell-prompt"
    assert kept["mrtd_source"] == "TDX module"
    assert kept["mrtd"] in kept["mrtd_predicted"].values()
    if hashlib.sha256(ovmf_image.read_bytes()).hexdigest() == KNOWN_IMAGE:
        assert kept["mrtd"] == KNOWN_MRTD
    # Debian 12's build has no TDX measurement driver: it never calls TDG.MR.RTMR.EXTEND, and the registers stay zero.
    assert [len(digest) for digest in kept["rtmr"]] == [96] * 4


def test_the_same_firmware_as_an_ordinary_vm(ovmf_image: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    done = run_command(
        "--vm-type", "default", "--firmware", str(ovmf_image), "--json", str(record), "--timeout", "200"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "UEFI Interactive Shell" in done.stdout
