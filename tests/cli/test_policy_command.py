# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies on the command line: written from a prediction, read by ``quote verify``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from testing.uefi_image import edk2_like
from tests.cli.conftest import Command


def test_a_prediction_written_as_a_policy(tmp_path: Path, command: Command) -> None:
    image, policy = tmp_path / "x.fd", tmp_path / "td.toml"
    image.write_bytes(edk2_like())
    done = command("measure", image, "--policy-out", policy)
    assert done.status == 0
    assert tomllib.loads(policy.read_text())["td"] == {"mrtd": done.out.strip()}


def test_a_policy_is_not_written_over_an_input(firmware: Path, command: Command) -> None:
    before = firmware.read_bytes()
    assert command("measure", firmware, "--policy-out", firmware).status == 1
    assert firmware.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "{policy}", "--mrtd", "00" * 48], "--mrtd and --policy exclude each other"),
        (["--policy", "{policy}", "--allow-debug"], "--allow-debug and --policy exclude each other"),
        (["--policy", "{bad}"], "did you mean mrtd"),
        (["--policy", "{policy}", "--event-log", "{policy}"], "has no rules for events"),
        (["--event-log", "{policy}"], "--event-log and --claims need --policy"),
        (["--claims", "{claims}"], "--event-log and --claims need --policy"),
    ],
)
def test_options_that_exclude_each_other(tmp_path: Path, command: Command, more: list[str], said: str) -> None:
    names = {name: str(tmp_path / name) for name in ("policy", "bad", "claims")}
    Path(names["policy"]).write_text("[td]\n")
    Path(names["bad"]).write_text("[td]\nmrdt = ''\n")
    arguments = [each.format(**names) for each in more]
    done = command("quote", "verify", names["policy"], "--collateral", names["policy"], *arguments, "--json")
    assert done.status == 1
    assert said in done.err
    assert said in json.loads(done.out)["error"]
