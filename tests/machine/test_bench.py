# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark runs, and what it does to the machine that it measures does not stay. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from testing import seamcalls
from testing.places import REPOSITORY
from testing.taken import taken_until


def test_the_benchmark_of_seamcalls_leaves_nothing_behind() -> None:
    kernel = boot(platform=Platform(memory_size=1 << 30))
    assert kernel.tdx is not None
    with Kvm(kernel) as device:
        before = kernel.pages.in_use, kernel.tdx.free_hkids
        with seamcalls.host(device, kernel) as (host, pages):
            seconds = seamcalls.without_crypto(host, pages)
            source = kernel.pages.alloc_page("test")
            assert seamcalls.measured_pages(host, pages, source) > 0
            kernel.pages.free_page(source)
        assert len(seconds) > 5
        assert min(seconds.values()) > 0
        assert (kernel.pages.in_use, kernel.tdx.free_hkids) == before
        assert not kernel.module.tds


def test_every_figure_can_be_measured() -> None:
    command = [sys.executable, "-m", "bench", "--least", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=280)
    figures = json.loads(done.stdout)["figures"]
    assert len(figures) > 10
    assert all(min(figure["runs"]) > 0 for figure in figures)


def test_what_a_command_takes_until_its_text() -> None:
    program = "import sys, time; held = bytearray(64 << 20); sys.stdout.write('.' * 200_000 + 'rea'); "
    program += "sys.stdout.flush(); time.sleep(.1); print('dy', flush=True); time.sleep(600)"
    taken = taken_until([sys.executable, "-c", program], "ready", 60)
    assert taken.ended
    assert 0.1 <= taken.wall < 60
    assert taken.cpu > 0
    assert 64 << 10 <= taken.resident < 256 << 10


def test_a_command_that_does_not_come_so_far_has_not_ended() -> None:
    assert not taken_until([sys.executable, "-c", "print('no')"], "ready", 60).ended
    assert not taken_until([sys.executable, "-c", "import time; time.sleep(600)"], "ready", 0.5).ended


def printed_by(program: str, *arguments: str | Path) -> str:
    """Of a process: tests do not import `bench` (test_shared_code.py)."""
    line = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


_TWO_SIZES = """
import sys
from pathlib import Path
from bench import sizes
from testing.taken import Taken
little, much = sizes.rows(Path(sys.argv[1]), ["512M", "64G"])[:2]
little.runs, much.runs = [Taken(True, 2.0, 2.0, 1 << 20)], [Taken(True, 3.0, 5.0, 2 << 20), Taken(False, 0, 0, 0)]
print(little.line(little))
print(much.line(little))
"""
_CONTENDERS = """
import json, sys
from pathlib import Path
from bench import distribution
firmware, disk, copy = map(Path, sys.argv[1:])
print(json.dumps({who: command for who, command in distribution.contenders(firmware, disk, copy, 2).items()}))
"""


def test_sizes_are_compared_with_the_smallest_of_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6").touch()
    little, much = printed_by(_TWO_SIZES, tmp_path).splitlines()
    assert "times" not in little
    assert "2.50 times" in much
    assert "2048 MiB" in much


def test_a_distribution_is_started_from_a_copy_of_its_disk(tmp_path: Path) -> None:
    disk, copy = tmp_path / "debian.img", tmp_path / "copy.img"
    for who, command in json.loads(printed_by(_CONTENDERS, tmp_path / "OVMF.fd", disk, copy)).items():
        used = [word for word in command if ".img" in word]
        assert used == ([f"file={disk},format=raw,if=virtio,snapshot=on"] if "QEMU" in who else [str(copy)])


_PARALLEL = """
import json, sys
from pathlib import Path
from bench import parallel
firmware, kernel, initrd, said = map(Path, sys.argv[1:])
seen = parallel.contenders(firmware, kernel, initrd)
print(json.dumps([seen, parallel.measure(["cat", str(said)])]))
"""


def test_parallel_loads_have_the_same_guest_and_all_are_read(tmp_path: Path) -> None:
    said = tmp_path / "console"
    said.write_text("measured sha256 1.25\nmeasured awk 2.5\nmeasured forks 0.5\nmeasured serial 3\nmeasured end 0\n")
    files = tmp_path / "OVMF.fd", tmp_path / "vmlinuz", tmp_path / "initrd.img"
    commands, measured = json.loads(printed_by(_PARALLEL, *files, said))
    for who, command in commands.items():
        assert all(str(file) in command for file in files)
        assert command[command.index("-smp" if "QEMU" in who else "--cpus") + 1] == "2"
        assert sum("swtdx.run=/bin/parallel" in word for word in command) == 1
    assert measured.pop("cpu") >= 0
    assert measured == {"sha256": 1.25, "awk": 2.5, "forks": 0.5, "serial": 3}
