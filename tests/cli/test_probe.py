# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx probe``: what it says of the two kernels and of the firmware, and when it exits with 0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import swtdx.cli.probe
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import KvmOffer, survey
from swtdx.uapi.release import KernelRelease
from tests.cli.conftest import Command


@pytest.fixture
def firmware_found(monkeypatch: pytest.MonkeyPatch, firmware: Path, tmp_path: Path) -> Path:
    """Two candidates: one that is not a TDVF, then one that is."""
    (tmp_path / "zeroes.fd").write_bytes(bytes(65536))

    def candidates() -> Iterator[tuple[Path, str]]:
        yield tmp_path / "zeroes.fd", "a test"
        yield firmware, "a test"

    monkeypatch.setattr(swtdx.cli.probe, "candidates", candidates)
    return firmware


def test_a_td_can_always_be_run(command: Command, firmware_found: Path) -> None:
    result = command("probe", "--json")
    found = json.loads(result.out)
    assert result.status == 0
    assert found["embedded"]["dialects"] == ["upstream", "v10"]
    assert found["embedded"]["kernel_releases"] == [name.value for name in KernelRelease]
    assert found["td"]["kernel"] == ("host" if survey().tdx else "emulated")
    assert found["td"]["firmware"] == str(firmware_found)
    assert [image["can_start"] for image in found["firmware"]] == [False, True]
    assert "no GUID table" in found["firmware"][0]["broken"][0]
    assert found["host"]["text"] == str(survey())
    assert result.err == ""


def test_a_host_with_tdx_comes_first(command: Command, firmware_found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = survey
    offer = KvmOffer("/dev/kvm", None, 12, 0x21, Dialect.UPSTREAM)
    monkeypatch.setattr(swtdx.cli.probe, "survey", lambda kernel=None: real(kernel) if kernel else offer)
    result = command("probe")
    assert "yes, on this machine's own kernel" in result.out
    assert "VM types: default, tdx" in result.out
    assert "no TDs" not in result.out


def test_no_firmware_is_said_and_no_failure(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swtdx.cli.probe, "candidates", lambda: iter(()))
    result = command("probe")
    assert result.status == 0
    assert "none found" in result.out
    assert "needs a firmware" in result.out


def test_without_an_engine_and_without_a_host_it_is_2(
    command: Command, firmware_found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(swtdx.cli.probe, "survey", lambda kernel=None: KvmOffer("/dev/kvm", 2, None, 0, None))
    monkeypatch.setitem(sys.modules, "swtdx.machine", None)  # as if its extension could not be loaded
    result = command("probe")
    assert result.status == 2
    assert "native engine cannot be loaded" in result.out
    assert "No such file" in result.out


def test_quiet(command: Command, firmware_found: Path) -> None:
    result = command("probe", "--quiet")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_json_and_quiet_exclude_each_other(command: Command) -> None:
    assert command("probe", "--json", "--quiet").status == 1
