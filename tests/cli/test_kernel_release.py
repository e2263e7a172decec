# SPDX-License-Identifier: GPL-2.0-or-later
"""``--kernel-release`` of every command that opens a kernel: what is chosen, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import swtdx.cli.machine_parts
from swtdx.cli.kernel_choice import DialectChoice, ModuleVersionChoice, chosen_release
from swtdx.cli.parameters import InputError
from swtdx.cpu.platform import MODULE_VERSIONS, PUBLISHED_MODULE_VERSIONS
from swtdx.exec.settings import Settings
from swtdx.linux.config import KernelConfig
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.release import NEWEST_RELEASE, KernelRelease
from tests.cli.conftest import Command

ALL = [name.value for name in KernelRelease]


def test_the_choices_are_those_that_there_are() -> None:
    assert {choice.value for choice in DialectChoice} == {dialect.value for dialect in Dialect}
    assert {choice.value for choice in ModuleVersionChoice} == {*MODULE_VERSIONS, *PUBLISHED_MODULE_VERSIONS}
    assert {name.dialect_name for name in KernelRelease} == {dialect.value for dialect in Dialect}


def test_the_newest_released_one_is_the_default_everywhere() -> None:
    assert chosen_release(None, None) is NEWEST_RELEASE
    assert Settings().kernel_release == NEWEST_RELEASE.value


@pytest.mark.parametrize("words", [["run"], ["exec"], ["qemu", "--print"]], ids=["run", "exec", "qemu"])
def test_an_unknown_release_lists_those_there_are(words: list[str], command: Command) -> None:
    result = command(*words, "--kernel-release", "6.17", *(["--", "true"] if words[0] == "exec" else []))
    assert result.status != 0
    assert all(name in result.err for name in ALL)


@pytest.mark.parametrize(("release", "dialect"), [("7.2", "v10"), ("v10", "upstream"), ("next", "v10")])
@pytest.mark.parametrize("word", ["run", "exec"])
def test_a_contradiction_is_one_sentence(word: str, release: str, dialect: str, command: Command) -> None:
    rest = ["--", "true"] if word == "exec" else []
    result = command(word, "--kernel-release", release, "--dialect", dialect, *rest)
    assert result.status in (2, 125)
    assert f"--kernel-release {release} and --dialect {dialect} contradict each other" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("release", [name for name in ALL if name != "v10"])
def test_a_module_that_is_too_old_is_refused_with_the_line_of_the_log(release: str, command: Command) -> None:
    result = command("run", "--kernel-release", release, "--module-version", "1.0")
    assert result.status == 2
    assert "virt/tdx: module initialization failed (-5)" in result.err
    assert "--kernel-release v10" in result.err


@pytest.mark.parametrize("release", [name for name in ALL if name != "v10"])
def test_a_module_without_a_feature_that_kvm_needs_is_refused(release: str, command: Command) -> None:
    result = command("run", "--kernel-release", release, "--module-version", "1.5.01")
    assert result.status == 2
    assert "TOPOLOGY_ENUM" in result.err


def test_the_host_has_the_kernel_that_it_has(command: Command) -> None:
    result = command("run", "--kvm", "host", "--kernel-release", "6.16")
    assert result.status == 2
    assert "the kernel of this machine cannot be chosen" in result.err


def test_qemu_hands_it_to_exec(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    arguments = ("qemu", "--print", "--firmware", "OVMF.fd", "--kernel-release", "6.18", "-m", "1G")
    assert command(*arguments).out.startswith("swtdx exec --kernel-release 6.18 -- /usr/bin/qemu")


@pytest.mark.parametrize(
    ("arguments", "huge_pages"), [([], None), (["--kernel-release", "next"], None), (["--no-huge-pages"], False)]
)
def test_run_leaves_the_size_of_pages_to_the_release(
    arguments: list[str], huge_pages: bool | None, command: Command, firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[KernelConfig] = []

    def refuse(*given: object, config: KernelConfig, **options: object) -> None:
        seen.append(config)
        raise InputError("seen enough")

    monkeypatch.setattr(swtdx.cli.machine_parts, "kernel_named", refuse)
    command("run", "--firmware", firmware, *arguments)
    assert [config.tdx_huge_page for config in seen] == [huge_pages]


@pytest.mark.parametrize("release", ["6.16", "next", "v10"])
def test_the_record_names_it(release: str, command: Command, firmware: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = command("run", "--firmware", firmware, "--kernel-release", release, "--json", path, "--timeout", "0.2")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["kernel_release"], kept["dialect"]) == (release, KernelRelease(release).dialect_name)
    assert KernelRelease(release).words in result.err
