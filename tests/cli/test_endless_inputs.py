# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs without end, damaged, nested without end, or behind a path that cannot be walked: one sentence, soon."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swtdx.cpu.platform import Platform
from swtdx.image.memory_map import MemoryMap
from swtdx.machine import open_kernel
from testing.tdvf_image import image_with
from tests.cli.conftest import Command

HEAD = json.dumps({"kind": "trace", "version": 1, "swtdx": "0", "command": []}) + "\n"
EVENT = {"kind": "ioctl", "name": "KVM_RUN", "t": 1.0, "dur": 1.0, "tid": 1, "on": "vCPU 0", "args": {}, "result": 0}


def one_sentence(command: Command, *arguments: str | Path) -> tuple[int, str]:
    result = command(*arguments)
    assert result.status not in (0, 130)
    assert "Traceback" not in result.err
    complaint = result.err.splitlines()[-1]
    assert complaint.startswith("swtdx: ")
    return result.status, complaint


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--firmware", "/dev/zero"],
        ["run", "--firmware", "{firmware}", "--kernel", "/dev/zero"],
        ["run", "--firmware", "none", "--kernel", "/dev/zero"],
        ["run", "--firmware", "{firmware}", "--kernel", "{kernel}", "--initrd", "/dev/zero"],
        ["run", "--firmware", "{firmware}", "--disk", "/dev/zero"],
        ["run", "--firmware", "{firmware}", "--disk", "/dev/zero,ro,format=raw"],
        ["trace", "summary", "/dev/zero"],
        ["report", "html", "/dev/zero", "-o", "{folder}/page.html"],
        ["report", "parse", "/dev/zero"],
        ["quote", "parse", "/dev/zero"],
        ["quote", "verify", "/dev/zero", "--collateral", "/dev/zero"],
        ["measure", "/dev/zero"],
        ["measure", "none", "--kernel", "/dev/zero"],
        ["diff", "/dev/zero", "/dev/zero"],
        ["replay", "/dev/zero"],
    ],
)
def test_an_input_without_end(arguments: list[str], command: Command, firmware: Path, tmp_path: Path) -> None:
    from testing.uefi_image import efi_kernel

    kernel = tmp_path / "kernel"
    kernel.write_bytes(efi_kernel())
    names = {"firmware": firmware, "kernel": kernel, "folder": tmp_path}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one_sentence(command, *(each.format(**names) for each in arguments))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10  # KiB


def _nested(depth: int = 100_000) -> str:
    return "[" * depth


@pytest.mark.parametrize(
    "contents",
    [
        b"", b"\0" * 100, b"\n" * 100, b"[]", b"5\n", b"null\n", b'"x"\n', _nested().encode(),
        b'{"kind": "trace", "version": 1, "command": 5}\n', HEAD.encode() + _nested().encode() + b"\n",
        HEAD.encode() + b'{"a":' * 50_000 + b"\n", HEAD.encode() + b"5\n", HEAD.encode() + b"{}\n",
        *(
            (HEAD + json.dumps(EVENT | change) + "\n").encode()
            for change in (
                {"t": float("nan")}, {"t": float("inf")}, {"t": "1"}, {"dur": None}, {"name": 5}, {"args": 5},
                {"kind": "seamcall", "status": "many"}, {"kind": "exit", "guest": []}, {"kind": 5},
            )
        ),
        b"[\n" + _nested().encode() + b"\n", b'[\n{"ph": "X"}\n', b'[\n{"ph":"X","cat":"exit","name":1,"ts":"x"}\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_damaged_trace(contents: bytes, name: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(contents) if name.endswith("gz") else contents)
    for arguments in (["trace", "summary", path], ["report", "html", path, "-o", tmp_path / "page"]):
        result = command(*arguments)
        assert "Traceback" not in result.err
        assert result.status in (0, 2)
        assert result.status == 0 or result.err.splitlines()[-1].startswith("swtdx: ")


@pytest.mark.parametrize(
    "contents",
    [
        b"junk",
        b"\037\213\010\0junk",
        b"\037\213",
        gzip.compress(HEAD.encode() * 99, mtime=0)[:-9],
        gzip.compress(b"", mtime=0)[:-1],
    ],
)
def test_a_damaged_compressed_trace(contents: bytes, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(contents)
    assert one_sentence(command, "trace", "summary", path)[0] == 2


@pytest.mark.parametrize("path", ["x" * 300, "loop/x", "file/x", "loop"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--firmware", "{}"], ["run", "--firmware", "none", "--kernel", "{}"],
        ["run", "--firmware", "f.fd", "--disk", "{}"], ["run", "--firmware", "f.fd", "--log", "{}"],
        ["run", "--firmware", "f.fd", "--json", "{}/x"], ["run", "--firmware", "f.fd", "--html", "{}/x"],
        ["trace", "summary", "{}"], ["measure", "{}"], ["inspect", "f.fd", "--svg", "{}/x"], ["quote", "parse", "{}"],
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_walked(
    arguments: list[str], path: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a folder without permission to search it, which root does not meet."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("x")
    Path("f.fd").write_bytes(image_with())
    one_sentence(command, *(each.format(path) for each in arguments))


def test_a_machine_of_more_than_a_tebibyte_takes_only_what_it_touches() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_kernel("emulated", platform=Platform(memory_size=2 << 40))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_64_bit_bars_begin_above_all_memory() -> None:
    assert MemoryMap(1 << 30, 0).pci_high_start == 1 << 41
    assert MemoryMap(1 << 41, 0).pci_high_start == 1 << 42
    assert MemoryMap(3 << 40, 0).pci_high_start == 1 << 42


@pytest.mark.parametrize("size", ["1T", "1023G", "2T", "4T"])
def test_sizes_of_terabytes_are_taken(size: str, command: Command) -> None:
    from swtdx.cli.parameters import memory_size

    assert memory_size(size) >= 1023 << 30


def test_too_little_address_space_is_said(command: Command, firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import swtdx.machine

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(swtdx.machine, "open_kernel", refuse)
    status, said = one_sentence(command, "run", "--firmware", firmware)
    assert status == 2
    assert "8 GiB of address space" in said


@pytest.mark.parametrize(
    ("size", "td", "direct", "kvm", "release", "huge_pages", "seconds"),
    [
        (1 << 40, True, True, "emulated", "next", True, 128),
        (1 << 40, True, True, "emulated", "next", False, 2560),
        (1 << 40, True, True, "emulated", None, True, 2560),
        (8 << 30, True, True, "emulated", "7.2", True, 20),
        (1 << 40, True, True, "host", None, True, None),
        (1 << 40, False, True, "emulated", None, True, None),
        (1 << 40, True, False, "emulated", None, True, None),
        (1 << 30, True, True, "emulated", None, True, None),
        (16 << 30, True, True, "emulated", "next", True, None),
    ],
)
def test_a_long_acceptance_is_announced(
    size: int, td: bool, direct: bool, kvm: str, release: str | None, huge_pages: bool, seconds: int | None
) -> None:
    """Released kernels map 4 KiB, so that a GiB takes 262,144 calls of the TDX module."""
    from swtdx.cli.session import _accepts_slowly

    plan = SimpleNamespace(td=object() if td else None, memory_size=size, direct=object() if direct else None)
    options = SimpleNamespace(kvm=kvm, kernel_release=release, huge_pages=huge_pages, dialect=None)
    sentence = _accepts_slowly(cast(Any, plan), cast(Any, options))
    assert (sentence is not None) == (seconds is not None)
    if sentence is not None:
        assert f" take {seconds} s or more" in sentence
