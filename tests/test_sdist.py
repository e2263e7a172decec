# SPDX-License-Identifier: GPL-2.0-or-later
"""A commit makes the same sdist from any checkout, at any time, and it carries what its tests and scripts use."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from testing.places import REPOSITORY


@pytest.fixture(scope="module")
def sdist() -> ModuleType:
    found = importlib.util.spec_from_file_location("native_sdist", REPOSITORY / "native/sdist.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def packed(folder: Path, order: list[str], owner: str) -> bytes:
    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uname = owner
        return member

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in order:
            archive.add(folder / name, name, recursive=False, filter=owned)
    return stream.getvalue()


def test_times_owners_umask_and_order_make_no_difference(sdist: ModuleType, tmp_path: Path) -> None:
    names = ["d", "d/run", "d/text", "d/link"]
    archives = []
    for number, umask in enumerate((0o022, 0o077)):
        folder = tmp_path / str(number)
        (folder / "d").mkdir(parents=True)
        (folder / "d/run").write_text("#!/bin/sh\n")
        (folder / "d/text").write_text("text\n")
        (folder / "d/link").symlink_to("text")
        (folder / "d").chmod(0o777 & ~umask)
        (folder / "d/run").chmod(0o777 & ~umask)
        (folder / "d/text").chmod(0o666 & ~umask)
        os.utime(folder / "d/text", (number, number))
        archives.append(packed(folder, names[:: -1 if number else 1], f"user{number}"))
    assert archives[0] != archives[1]
    first, second = (sdist.packed_again(archive, 1_700_000_000) for archive in archives)
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        found = {member.name: (member.mode, member.mtime, member.uid) for member in archive}
        text = archive.extractfile("d/text")
        assert text is not None
        assert text.read() == b"text\n"
    assert found["d/run"] == (0o755, 1_700_000_000, 0)
    assert found["d/text"] == (0o644, 1_700_000_000, 0)
    assert list(found) == sorted(names)


def test_each_folder_of_the_repository_is_in_the_sdist() -> None:
    """By MANIFEST.in; setuptools adds src itself."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: its folders are not known")
    folders = {name.partition("/")[0] for name in listed.stdout.splitlines() if "/" in name}
    grafted = set()
    for line in (REPOSITORY / "MANIFEST.in").read_text().splitlines():
        command, _, rest = line.partition(" ")
        if command in ("graft", "include"):
            grafted |= {word.partition("/")[0] for word in rest.split()}
    assert folders - grafted - {"src", ".github"} == set()
