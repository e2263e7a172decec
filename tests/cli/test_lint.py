# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx lint``: text, JSON, exit statuses and bad input; ``swtdx run --lint`` is shown by tests/machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtdx.trace.event import Event, Exit, Tdcall
from swtdx.trace.file import TraceWriter
from swtdx.trace.format import TraceFormat
from tests.cli.conftest import Command


class Output:
    """Where a trace goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: OSError | None = None
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> int:
        self.data += data
        return len(data)


def written(path: Path, value: int) -> Path:
    """A trace in which an OUT of one byte hands over ``value``."""
    output = Output(path)
    writer = TraceWriter(output, TraceFormat.jsonl, ["swtdx"], 0)
    args = {"mask": 0xFC00, "function": "Instruction.IO", "size": 1, "write": 1, "port": 0x80, "data": value}
    events: list[Event] = [
        Exit("IO", 1, 1, 1, {"rip": 0xFFFFFFFF81000104, "qualification": 0x80 << 16}),
        Exit("TDCALL", 2, 1, 1, {"rip": 0xFFFFFFFF82000010}),
        Tdcall("TDG.VP.VMCALL", 2, 1, 1, args, status=0),
    ]
    for event in events:
        writer.emit(event)
    writer.close()
    path.write_bytes(bytes(output.data))
    return path


def test_a_leak_is_named_with_its_instruction_and_mask(command: Command, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("ffffffff80000100 t io_serial_out\n")
    trace = written(tmp_path / "a.jsonl", 0x155)
    result = command("lint", trace, "--symbols", tmp_path / "map", "--kaslr-offset", "0x1000000", "--quiet")
    assert result.status == 2
    assert "leak: Instruction.IO, write of 1 byte: R15" in result.out
    assert "0x100 (mask 0x1ff; right is 0xff)" in result.out
    assert "0xffffffff81000104 (io_serial_out+0x4)" in result.out
    assert "1 TDVMCALLs: 1 kind of leak" in result.out


def test_a_trace_without_a_leak(command: Command, tmp_path: Path) -> None:
    result = command("lint", written(tmp_path / "a.jsonl", 0x55), "--quiet")
    assert (result.status, result.out) == (0, "1 TDVMCALLs: nothing found\n")


def test_json(command: Command, tmp_path: Path) -> None:
    result = command("lint", written(tmp_path / "a.jsonl", 0x155), "--json", "--quiet")
    found = json.loads(result.out)
    assert (result.status, found["calls"], found["leaks"]) == (2, 1, 1)
    (finding,) = found["findings"]
    assert finding["rule"] == "operand-bits"
    assert (finding["bits"], finding["mask"], finding["count"]) == ("0x100", "0x1ff", 1)
    assert finding["places"] == [{"address": "0xffffffff81000104", "symbol": "", "count": 1}]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["absent"], 3, ["absent", "No such file"]),
        (["map"], 2, ["map is not a trace"]),
        ([], 1, ["FILE"]),
        (["a.jsonl", "--kaslr-offset", "0x10"], 1, ["--kaslr-offset goes with --symbols"]),
        (["a.jsonl", "--symbols", "absent"], 3, ["--symbols absent", "No such file"]),
        (["a.jsonl", "--symbols", "a.jsonl"], 2, ["a.jsonl has no symbols"]),
        (["a.jsonl", "--symbols", "map", "--kaslr-offset", "far"], 1, ["'far' is not hexadecimal"]),
    ],
)
def test_one_sentence_for_bad_input(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int,
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map").write_text("ffffffff80000100 t io_serial_out\n")
    written(tmp_path / "a.jsonl", 0)
    result = command("lint", *arguments)
    assert (result.status, result.out) == (status, "")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
