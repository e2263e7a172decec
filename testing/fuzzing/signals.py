# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals at random moments for a VMM's threads under ``swtdx exec``: tests/exec/programs/storm.c, again and again.

A case is a kick. A run kicks five threads: in KVM_RUN with a guest that computes and with one that halts, in
KVM_SET_USER_MEMORY_REGION, KVM_PRE_FAULT_MEMORY and KVM_TDX_INIT_MEM_REGION. The measurement of its TDs must be that of
a run without kicks.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from testing.fuzzing.result import Result

FRONT_ENDS = {"preload": (), "notify": ("-static",)}
"""What the compiler is told for each: a static program loads no library."""
KICKS_OF_A_RUN, TDS_OF_A_RUN, PATIENCE = 1000, 10, 900
_SOURCE = Path(__file__).parents[2] / "tests/exec/programs/storm.c"
_INTERRUPTED = re.compile(r"(\w+) (\d+) of \d+")


def _compiled(folder: Path, front_end: str) -> Path:
    program = folder / f"storm-{front_end}"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("script/fuzz signals: no C compiler: install gcc")
    subprocess.run(
        [compiler, "-O1", "-w", "-o", program, _SOURCE, "-lpthread", *FRONT_ENDS[front_end]], check=True, timeout=60
    )
    return program


def _run(program: Path, front_end: str, seed: int, kicks: int, tds: int) -> tuple[str, str, set[str]]:
    """Return what a run printed, what it told of interrupted calls, and the MRTDs of its TDs."""
    record = program.with_suffix(".json")
    swtdx = str(Path(sys.executable).with_name("swtdx"))
    command = [swtdx, "exec", "--quiet", "--front-end", front_end, "--json", str(record), "--", str(program)]
    try:
        done = subprocess.run(
            [*command, str(seed), str(kicks), str(tds)],
            check=False, capture_output=True, text=True, errors="replace", timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"did not end in {PATIENCE} s", "", set()
    if done.returncode > 1:
        return f"exit status {done.returncode}: {done.stdout}{done.stderr}", "", set()
    processes = json.loads(record.read_text(encoding="utf-8"))["processes"]
    return done.stdout, done.stderr, {td["mrtd"] for process in processes for td in process["tds"]}


def campaign(
    cases: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    front_ends: Sequence[str] = tuple(FRONT_ENDS),
    tds: int = TDS_OF_A_RUN,
) -> Result:
    """So many kicks. The same seed gives the same choice of threads and pauses, not the same interleaving."""
    result = Result("kicks")
    chance = Random(seed)
    with tempfile.TemporaryDirectory(prefix="swtdx-signals-") as folder:
        programs = {name: _compiled(Path(folder), name) for name in front_ends}
        calm = {name: _run(program, name, 0, 0, 1)[2] for name, program in programs.items()}
        turn = 0
        while result.cases < cases:
            front_end = front_ends[turn % len(front_ends)]
            turn += 1
            kicks, one = min(KICKS_OF_A_RUN, cases - result.cases), chance.randrange(1, 1 << 30)
            printed, told, measured = _run(programs[front_end], front_end, one, kicks, tds)
            result.cases += kicks
            progress(result.cases)
            for thread, count in _INTERRUPTED.findall(told):
                result.answers[f"{front_end} {thread}"] += int(count)
            if printed != f"kicks: {kicks}\nwrong: 0\nlost: 0\nTDs: {tds}\nthe guest counted: 1\n":
                result.failures.append(f"{front_end}, storm {one} {kicks} {tds}: {printed.strip()!r}")
            elif measured != calm[front_end] or len(measured) != 1:
                result.failures.append(f"{front_end}, storm {one} {kicks} {tds}: MRTDs {sorted(measured)}")
    return result
