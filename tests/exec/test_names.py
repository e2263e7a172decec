# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm by whatever name and call: the emulated device, whether the machine has one of its own or not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

Build = Callable[..., Path]
WAYS = [
    "open", "read-only", "creat", "fopen r+", "fopen rbe", "freopen", "openat2", "/proc/self/root",
    "below a link to /dev", "a link", "a relative link", "a link to a link", "a link named kvm", "O_PATH and again",
]  # fmt: skip
ROOTS_WAYS = ["a second node", "a second node named kvm", "by handle", "bound elsewhere"]
FLAGS = {"preload": (), "notify": ("-static",)}
WITHOUT = """\
mount -t tmpfs none "$1" && cd "$1" && shift || exit 99
for node in null zero random urandom; do cp -a /dev/$node .; done
ln -s /proc/self/fd fd && mkdir shm && mount --bind . /dev && cd / && test ! -e /dev/kvm || exit 99
exec "$@"
"""


def _emulated(ways: list[str]) -> str:
    return "".join(f"{way}: emulated\n" for way in ways)


def _program(compiled: Build, front_end: str) -> Path:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    return compiled("names", *FLAGS[front_end])


@pytest.mark.parametrize("front_end", FLAGS)
def test_it_is_the_emulated_device(compiled: Build, swtdx_exec: Run, tmp_path: Path, front_end: str) -> None:
    done = swtdx_exec(_program(compiled, front_end), tmp_path, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (_emulated(WAYS), 0, "")


@pytest.mark.skipif(os.geteuid() != 0 or not real_kvm(), reason="takes root and a /dev/kvm of the machine's own")
@pytest.mark.parametrize("front_end", FLAGS)
def test_another_node_of_the_device_is_the_emulated_one(
    compiled: Build, swtdx_exec: Run, tmp_path: Path, front_end: str
) -> None:
    done = swtdx_exec(_program(compiled, front_end), tmp_path, "root", options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (_emulated([*WAYS, *ROOTS_WAYS]), 0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="another /dev can be mounted by root only")
@pytest.mark.parametrize("front_end", FLAGS)
def test_the_machine_need_not_have_one(compiled: Build, swtdx_exec: Run, tmp_path: Path, front_end: str) -> None:
    """In a mount namespace whose /dev has no kvm."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        skip("mount namespaces are not allowed here")
    (tmp_path / "without").mkdir()
    swtdx = [sys.executable, "-m", "swtdx", "exec", "--quiet", "--"]
    command = [*swtdx, str(_program(compiled, front_end)), str(tmp_path)]
    line = ["unshare", "-m", "sh", "-c", WITHOUT, "sh", str(tmp_path / "without"), *command]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode, done.stderr) == (_emulated(WAYS), 0, "")
