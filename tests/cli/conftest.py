# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a person calls it, in this process, over a scripted kernel or the one it would take."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import swtdx.cli.machine_parts
from swtdx.cli import main
from swtdx.uapi.dialect import Dialect
from testing.tdvf_image import image_with
from tests.vmm.fake_kernel import FakeKernel


@dataclass(frozen=True)
class Result:
    """What a call of the command did."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """``command("run", "--memory", "1G")``."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["swtdx", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:  # a command leaves its process with what it made, and these tests do not
            gc.unfreeze()
            gc.enable()
        out, err = capfd.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return call


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    """A synthetic TDVF in a file."""
    path = tmp_path / "synthetic.fd"
    path.write_bytes(image_with())
    return path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeKernel], FakeKernel]:
    """Make the command use a scripted kernel."""

    def use(kernel: FakeKernel) -> FakeKernel:
        def chosen(name: str, dialect: Dialect, *, cpus: int, memory: int, **options: object) -> FakeKernel:
            kernel.dialect = dialect
            return kernel

        monkeypatch.setattr(swtdx.cli.machine_parts, "kernel_named", chosen)
        return kernel

    return use
