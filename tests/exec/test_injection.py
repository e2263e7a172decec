# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx exec --inject``: a program's call fails, in both front ends, and the command reports how often."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.exec.conftest import Run

PROGRAM = """
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void)
{
    int device = open("/dev/kvm", O_RDWR), number;
    for (number = 0; number < 3; number++)
        printf("%d ", ioctl(device, 0xae01, 0L) < 0 ? -errno : 0);
    return 0;
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    source, program = tmp_path / "three.c", tmp_path / "three"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-o", program, source], check=True)
    return program


@pytest.mark.parametrize("front_end", ["preload", "notify"])
def test_the_call_fails_and_the_command_reports_it(
    swtdx_exec: Run, program: Path, tmp_path: Path, front_end: str
) -> None:
    if front_end == "notify" and (cannot := available()):
        pytest.skip(cannot)
    text, kept = "KVM_CREATE_VM: EMFILE @2", tmp_path / "run.json"
    options = ["--front-end", front_end, "--inject", text, "--inject", "KVM_RUN: EINTR", "--json", str(kept)]
    done = swtdx_exec(program, options=options)
    assert (done.returncode, done.stdout) == (0, "0 -24 0 ")
    assert f"injected {text}: 1 of 3 calls failed\n" in done.stderr
    assert "injected KVM_RUN: EINTR: never called\n" in done.stderr
    (process,) = json.loads(kept.read_text())["processes"]
    assert [(each["calls"], each["struck"]) for each in process["injections"]] == [(3, 1), (0, 0)]
