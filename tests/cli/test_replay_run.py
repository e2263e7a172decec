# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run --record`` and ``swtdx replay-run``: what they do, and each wrong use in one sentence."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from swtdx.lying.lie import CALLS
from swtdx.x86 import PAGE_SIZE
from testing.bare_processor import assemble
from tests.cli.conftest import Command
from tests.fuzzing.planted import image
from tests.fuzzing.sources import SOURCES
from tests.fuzzing.test_kinds import FATAL
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import LETTERS, code

ALPHABET = LETTERS.decode()


@pytest.fixture(params=[pytest.param("td", marks=pytest.mark.slow), "vm"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def kernel_of(folder: Path, shape: str) -> Path:
    file = folder / f"bzImage-{shape}"
    file.write_bytes(bzimage(kernel=bytes(0x200) + code(td=shape == "td")))
    return file


def machine(kernel: Path, shape: str, *more: str | Path) -> list[str | Path]:
    kind = "tdx" if shape == "td" else "default"
    return ["run", "--firmware", "none", "--kernel", kernel, "--vm-type", kind, "--memory", "64M", *more]


@pytest.fixture
def record(tmp_path: Path, command: Command) -> Path:
    file = tmp_path / "record"
    result = command(*machine(kernel_of(tmp_path, "vm"), "vm", "--until", ALPHABET * 3, "--record", file))
    assert result.status == 0, result.err
    return file


def executed(trace: Path) -> list[Any]:
    """What happened in a run, without times and threads."""
    kept = []
    for line in trace.read_text().splitlines():
        event = json.loads(line)
        if event.get("kind") in ("seamcall", "tdcall", "exit", "injected"):
            kept.append(
                {name: value for name, value in event.items() if name not in ("t", "dur", "tid", "seq", "guest")}
            )
    return kept


def test_two_replays_and_the_recording_are_the_same(shape: str, tmp_path: Path, command: Command) -> None:
    kernel, file = kernel_of(tmp_path, shape), tmp_path / "record"
    traces = [tmp_path / name for name in ("recorded", "first", "second")]
    result = command(*machine(kernel, shape, "--until", ALPHABET * 2, "--record", file, "--trace", traces[0]))
    assert result.status == 0, result.err
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    for trace in traces[1:]:
        again = command("replay-run", file, "--trace", trace)
        assert again.status == 0, again.err
        assert "the recorded run ended here" in again.err
        assert again.out == result.out
    recorded, first, second = (executed(trace) for trace in traces)
    assert len(first) > 10
    assert first == second
    exits = [place for place, event in enumerate(recorded) if event["kind"] == "exit"]
    # The last exit is written when it is over, which is the end of the run: beyond the one before it, what was recorded
    # and what is replayed end in their own ways.
    assert first[: exits[-2] + 1] == recorded[: exits[-2] + 1]


def ve_page() -> int:
    """Where the guest of this kind has what its host takes."""
    return (0x200 + assemble(SOURCES["ve"]).rindex((0x1122334455667788).to_bytes(8, "little"))) & -PAGE_SIZE


LIES = {
    CALLS: ["IO 0x700: R11=0x1 @5", "IO 0x704: R11=0x200"],
    **{kind: [text] for kind, text in FATAL.items()},
    "ve": [f"Page: TAKE={0x100_0000 + ve_page():#x} @9"],
    "any": ["any: random 3% seed 5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIES)
def test_the_lies_of_a_host_are_told_again(kind: str, tmp_path: Path, command: Command) -> None:
    kernel, file, told = (tmp_path / name for name in ("bzImage", "record", "lies"))
    kernel.write_bytes(image(CALLS if kind == "any" else kind))
    options = [option for lie in LIES[kind] for option in ("--lie", lie)]
    options += ["--rng"] if kind == "virtio" else ["--attributes", "0"] if kind == "ve" else []
    run = ["run", "--firmware", "none", "--kernel", kernel, "--memory", "64M", "--timeout", "20", *options]
    results = [tmp_path / name for name in ("recorded", "first", "second")]
    recorded = command(*run, "--lies-to", told, "--record", file, "--json", results[0])
    assert recorded.status in (3, 4), recorded.err
    assert recorded.status == 3 or kind == "any"
    assert told.read_text()
    for result in results[1:]:
        again = command("replay-run", file, "--json", result)
        assert again.status == (3 if recorded.status == 3 else 0), again.err
        assert again.out == recorded.out
    first, *others = (json.loads(result.read_text()) for result in results)
    assert [each["lies"] for each in others] == [first["lies"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "injection"),
    [
        ("td", "TDH.VP.ENTER: OPERAND_BUSY every 7"),
        ("td", "TDH.VP.ENTER: TD_FATAL @16410"),
        ("vm", "KVM_RUN: EINTR every 3"),
        ("vm", "KVM_RUN: EFAULT @20"),
    ],
)
def test_calls_that_were_made_to_fail_fail_again(shape: str, injection: str, tmp_path: Path, command: Command) -> None:
    file, results = tmp_path / "record", [tmp_path / name for name in ("recorded", "first", "second")]
    run = machine(kernel_of(tmp_path, shape), shape, "--until", ALPHABET * 2, "--timeout", "60", "--inject", injection)
    recorded = command(*run, "--record", file, "--json", results[0])
    ends = "TD_FATAL" in injection or "EFAULT" in injection
    assert recorded.status == (1 if ends else 0), recorded.err
    for result in results[1:]:
        again = command("replay-run", file, "--json", result)
        assert again.status == recorded.status, again.err
        assert "diverged" not in again.err
        assert again.out == recorded.out
    made, first, second = (json.loads(result.read_text())["injections"][0]["struck"] for result in results)
    assert first == second
    # How often the guest is entered after its last instruction is not part of the run.
    assert 0 < made <= first <= made + 1


def test_a_kernel_that_was_moved_is_named_and_another_is_refused(
    record: Path, tmp_path: Path, command: Command
) -> None:
    moved = (tmp_path / "bzImage-vm").rename(tmp_path / "elsewhere")
    result = command("replay-run", record)
    assert result.status == 2
    assert "bzImage-vm cannot be read: No such file" in result.err
    assert command("replay-run", record, "--kernel", moved).status == 0
    moved.write_bytes(moved.read_bytes() + b"\0")
    result = command("replay-run", record, "--kernel", moved)
    assert result.status == 2
    assert "elsewhere is not the file that was recorded" in result.err
    result = command("replay-run", record, "--kernel", moved, "--initrd", moved)
    assert result.status == 2


def resealed(lines: list[str]) -> str:
    text = "".join(f"{line}\n" for line in lines)
    return text + json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()}) + "\n"


def test_a_replay_that_goes_another_way_is_told(record: Path, command: Command) -> None:
    lines = record.read_text().splitlines()[:-1]
    at = next(number for number, line in enumerate(lines) if line.startswith('["check"'))
    check = json.loads(lines[at])
    rip, registers, _ = check[-1].split()
    lines[at] = json.dumps([*check[:-1], f"{rip} {registers} 00000000"])
    record.write_text(resealed(lines))
    result = command("replay-run", record)
    assert result.status == 1
    assert f"the replay diverged: at instruction {check[1]:,} it has other contents: console" in result.err


def test_a_record_that_was_cut_short_or_changed_is_refused_in_a_sentence(record: Path, command: Command) -> None:
    whole = record.read_bytes()
    lines = whole.decode().splitlines()
    first = json.loads(lines[0])
    other = json.dumps({**first, "maker": ["0.0.1", "x"]})
    builds = [
        json.dumps({**first, "maker": [*first["maker"][:at], "other", *first["maker"][at + 1 :]]})
        for at in range(1, len(first["maker"]))
    ]
    strange = json.dumps({**first, "td": 5})
    damaged = {
        b"": "is not a record of a run",
        b"\xff\xfe": "is not a record of a run",
        b"{}\n": "is not a record of a run",
        whole[:-40]: "is cut short",
        b"\n".join(whole.splitlines()[:-1]) + b"\n": "is cut short",
        whole.replace(b'"check"', b'"chick"', 1): "is damaged: its SHA-256 is another",
        resealed([other, *lines[1:-1]]).encode(): "was made by swtdx 0.0.1: this is",
        **{
            resealed([build, *lines[1:-1]]).encode(): f"was made by another build of swtdx {first['maker'][0]}: a run"
            for build in builds
        },
        resealed([strange, *lines[1:-1]]).encode(): "is damaged: it does not say what the machine is",
        resealed([lines[0], "[1]"]).encode(): "is damaged: a line of it is not readable",
    }
    for data, sentence in damaged.items():
        record.write_bytes(data)
        result = command("replay-run", record)
        assert (result.status, len(result.err.strip().splitlines())) == (2, 1), (sentence, result.err)
        assert sentence in result.err
    record.unlink()
    assert "cannot be read: No such file" in command("replay-run", record).err
    assert "is not a record of a run" in command("replay-run", record.parent).err


def test_a_record_knows_the_sources_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import swtdx
    from swtdx.cli.recorded_run import _source

    package = tmp_path / "swtdx"
    (package / "cpu").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cpu" / "counted.py").write_text("a = 1\n")
    monkeypatch.setattr(swtdx, "__file__", str(package / "__init__.py"))
    first = _source()
    assert _source() == first
    (package / "cpu" / "counted.pyc").write_text("not a source")
    assert _source() == first
    (package / "cpu" / "counted.py").write_text("a = 2\n")
    second = _source()
    (package / "cpu" / "counted.py").rename(package / "cpu" / "other.py")
    assert len({first, second, _source()}) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cpus", "2"], "--record records machines with one vCPU only"),
        (["--disk", "x"], "--record does not keep what is written to a disk: --disk x,ro"),
        (["--gdb", ":0"], "debug the replay"),
        (["--quote-generation-socket", "unix:x"], "--quote-generation-socket cannot be used together"),
        (["--kvm", "host"], "--record is for the embedded kernel"),
        (["--snapshot-at", "x", "--snapshot", "{tmp}/x"], "--record and --snapshot cannot be used together"),
    ],
)
def test_what_cannot_be_madeis_refused(arguments: list[str], sentence: str, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "record"
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    result = command(*machine(kernel_of(tmp_path, "vm"), "vm", "--record", file, *given))
    assert result.status == 2
    assert sentence in result.err
    assert not file.exists()


def test_a_snapshot_that_continues_is_not_recorded(tmp_path: Path, command: Command) -> None:
    kept, file = tmp_path / "kept", tmp_path / "record"
    result = command(*machine(kernel_of(tmp_path, "vm"), "vm", "--snapshot-at", "BC", "--snapshot", kept))
    assert result.status == 0, result.err
    result = command("run", "--from", kept, "--record", file)
    assert (result.status, len(result.err.strip().splitlines())) == (2, 1), result.err
    assert "--from cannot be used together" in result.err
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tdx", "default"])
def test_a_firmware_with_disks_and_tables_of_its_own_is_repeated(
    kind: str, ovmf_image: Path, tmp_path: Path, command: Command
) -> None:
    image, disk, file = tmp_path / "OVMF.fd", tmp_path / "a,b.img", tmp_path / "record"
    image.write_bytes(ovmf_image.read_bytes())
    disk.write_bytes(b"not a file system" * 4096)
    disk.write_bytes(disk.read_bytes()[: 64 << 10])
    logs = [tmp_path / name for name in ("recorded", "replayed")]
    made = command(
        *("run", "--firmware", image, "--vm-type", kind, "--rng", "--virtio-console", "--log", logs[0]),
        *("--disk", f"{tmp_path}/a,,b.img,ro", "--smbios", "type=1,serial=8086", "--record", file),
        *("--debugcon", tmp_path / "debug", "--until", "Interactive Shell"),
    )
    assert made.status == 0, made.err
    disk.rename(tmp_path / "elsewhere")
    moved = ["replay-run", file, "--disk", tmp_path / "elsewhere"]
    again = command(*moved, "--log", logs[1], "--debugcon", tmp_path / "debug")
    assert again.status == 0, again.err
    assert "the recorded run ended here: the console showed 'Interactive Shell'" in again.err
    recorded, replayed = (log.read_bytes() for log in logs)
    assert b"Interactive Shell" in replayed
    assert replayed == recorded
    for wrong, sentence in (
        (["--disk", image], f"--disk {image} is not the file that was recorded"),
        (["--disk", image, "--disk", image], "had 1; give as many, in their order"),
        ([*moved[2:], "--firmware", disk], f"--firmware {disk} cannot be read: No such file"),
        ([], "a,b.img cannot be read: No such file"),
    ):
        refused = command("replay-run", file, *wrong)
        assert (refused.status, len(refused.err.strip().splitlines())) == (2, 1), refused.err
        assert sentence in refused.err


def test_what_the_maderun_had_not_is_refused(record: Path, tmp_path: Path, command: Command) -> None:
    for option, sentence in (
        ("--disk", "had none; give as many"),
        ("--firmware", "had none"),
        ("--debugcon", "had no debug port"),
    ):
        refused = command("replay-run", record, option, tmp_path / "x")
        assert (refused.status, len(refused.err.strip().splitlines())) == (2, 1), refused.err
        assert sentence in refused.err
    assert not (tmp_path / "x").exists()
