# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux recorded from its start to its power-off with commands typed, then replayed with traces: all of it the same.

``python -m testing.recorded_linux FOLDER`` with the folder of `script/linux`; `script/try-replay` has the arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pty
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

PROMPT = b"swtdx# "
COMMANDS = (
    "uname -a; date; cat /proc/uptime",
    "dd if=/dev/urandom bs=64 count=1 2>/dev/null | md5sum; cat /proc/sys/kernel/random/uuid",
    "for pause in 1 2 3; do sleep 0.1; echo $pause; done",
    "cat /proc/interrupts | head -n 12; grep -c . /proc/kallsyms; md5sum /bin/busybox",
    "poweroff -f",
)
"""What depends on time, on interrupts, on random numbers, and on much memory."""
KINDS = {"td": "tdx", "vm": "default"}
_SWTDX = Path(sys.executable).with_name("swtdx")
_OWN_TO_A_RUN = ("t", "dur", "tid", "seq", "guest")
_PATIENCE_SECONDS = 3000.0
_BEHIND_PROMPT = 16
"""Bytes: the shell asks the terminal where the cursor is."""


class Failed(Exception):
    """What was to be the same is not, or a run did not end as it should."""


def record(folder: Path, kind: str, memory: str, file: Path, append: str = "") -> bytes:
    """Record a run into ``file``; what the guest printed. Raises Failed."""
    (kernel,) = sorted((folder / "boot").glob("vmlinuz-*"))[-1:]
    arguments: list[str | Path] = [
        "run", "--firmware", "none", "--kernel", kernel, "--initrd", folder / "initrd.img", "--vm-type", KINDS[kind],
        "--memory", memory, "--append", f"console=ttyS0 {append}".strip(), "--quiet", "--record", file,
    ]  # fmt: skip
    log = file.with_suffix(".recorded")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(_SWTDX, [str(part) for part in ("swtdx", *arguments, "--log", log)])
    said = b""
    try:
        said = _type_all(terminal)
    finally:
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise Failed(f"the recording ended with {status}: {said[-600:].decode(errors='replace')}")
    return log.read_bytes()


def _type_all(terminal: int) -> bytes:
    """Type each command when the prompt is there, until the terminal is closed; what came since the last one."""
    left, seen, ends = list(COMMANDS), b"", time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < ends:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            return seen
        if PROMPT in seen[-_BEHIND_PROMPT:] and left:
            os.write(terminal, left.pop(0).encode() + b"\r")
            seen = b""
    raise Failed("the recording did not end")


def replay(file: Path, name: str) -> tuple[bytes, Path]:
    """Replay a record: what the guest printed, and the trace. Raises Failed."""
    log, trace = file.with_suffix(f".{name}"), file.with_suffix(f".{name}.jsonl")
    done = subprocess.run(
        [_SWTDX, "replay-run", file, "--log", log, "--trace", trace],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"the {name} replay ended with {done.returncode}: {done.stderr[-600:]}")
    return log.read_bytes(), trace


def events(trace: Path) -> Iterator[dict[str, Any]]:
    """What happened in a run, without the host's times and threads."""
    with trace.open() as lines:
        for line in lines:
            event = json.loads(line)
            if event.get("kind") in ("seamcall", "tdcall", "exit", "injected"):
                yield {key: value for key, value in event.items() if key not in _OWN_TO_A_RUN}


def compare(first: Path, second: Path) -> tuple[int, str]:
    """Return how many events two traces have, and a checksum of them. Raises Failed where they differ."""
    digest, number = hashlib.sha256(), -1
    for number, (one, other) in enumerate(zip_longest(events(first), events(second))):
        if one != other:
            raise Failed(f"event {number} differs:\n  {one}\n  {other}")
        digest.update(json.dumps(one, sort_keys=True).encode())
    return number + 1, digest.hexdigest()[:16]


def prove(folder: Path, kind: str, memory: str, kept: Path) -> str:
    """Record once, replay twice, compare everything; a sentence. Raises Failed."""
    file = kept / f"{kind}.record"
    file.unlink(missing_ok=True)
    seconds = [_cpu_seconds()]
    recorded = record(folder, kind, memory, file)
    seconds.append(_cpu_seconds())
    (first, traced), (second, again) = replay(file, "first"), replay(file, "second")
    seconds.append(_cpu_seconds())
    if not recorded == first == second:
        raise Failed(f"what was printed differs: see {kept}")
    number, digest = compare(traced, again)
    (count,) = (json.loads(line)[1] for line in file.read_text().splitlines() if line.startswith('["end"'))
    return (
        f"{kind}: {count:,} instructions, {len(first):,} bytes printed, {number:,} events of the trace (SHA-256 "
        f"{digest}...): twice the same; {seconds[1] - seconds[0]:.0f} s of CPU to record, "
        f"{(seconds[2] - seconds[1]) / 2:.0f} to replay and trace"
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str]) -> int:
    """Return 0 if all of it was the same."""
    parser = argparse.ArgumentParser(prog="script/try-replay", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=[*KINDS], action="append", help="default: both")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the record, the consoles and the traces")
    given = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.keep or Path(scratch)
        kept.mkdir(exist_ok=True)
        for kind in given.kind or KINDS:
            try:
                print(prove(given.folder, kind, given.memory, kept), flush=True)
            except Failed as failed:
                bad = 1
                print(f"{kind}: {failed}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
