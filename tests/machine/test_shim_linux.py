# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's kernel, as shipped and with its default command line, entered without firmware."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guest.newc import DIRECTORY, FILE, newc

# Says what it sees, takes all processors but the first off line and on again, and powers off.
INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
echo "user space: $(nproc) processors, tdx $(grep -c -w tdx_guest /proc/cpuinfo), [$(cat /proc/cmdline)]"
others=$(ls -d /sys/devices/system/cpu/cpu[1-9]/online)
for each in $others; do echo 0 > $each; done
echo "off: $(nproc)"
for each in $others; do echo 1 > $each; done
echo "on: $(nproc)"
echo "memory $(grep MemTotal /proc/meminfo)"
dmesg | grep -i "tables.*checksum"
poweroff -f
"""
COMMAND = [sys.executable, "-c", "from swtdx.cli import main; main()"]


@pytest.fixture
def initrd(busybox: Path, tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    entries = [(name, DIRECTORY, b"") for name in ("bin", "dev", "proc", "sys")]
    path.write_bytes(newc([*entries, ("init", FILE, INIT), ("bin/busybox", FILE, busybox.read_bytes())]))
    return path


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        (["--cpus", "4", "--memory", "512M"], 4),
        (["--cpus", "2", "--memory", "256M", "--gpaw", "52", "--no-huge-pages", "--no-rbp-mod"], 2),
        (["--dialect", "v10", "--gpaw", "52", "--memory", "256M"], 1),
        (["--vm-type", "default", "--cpus", "2", "--memory", "256M"], 2),
    ],
    ids=["td", "td-52", "td-v10", "default"],
)
def test_linux_comes_to_user_space(
    options: list[str], processors: int, kernel_folder: Path, initrd: Path, tmp_path: Path
) -> None:
    kernel = sorted(kernel_folder.glob("boot/vmlinuz-*"))[-1]
    record = tmp_path / "run.json"
    boot = ["--kernel", str(kernel), "--initrd", str(initrd), "--append", "console=ttyS0 quiet"]
    arguments = ["run", "--firmware", "none", *boot, *options, "--json", str(record), "--timeout", "180"]
    done = subprocess.run(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(record.read_text())
    assert kept["outcome"] == "power-off", done.stdout + done.stderr
    td = "default" not in options
    seen = f"user space: {processors} processors, tdx {processors if td else 0}, [console=ttyS0 quiet]"
    assert seen in done.stdout
    assert "off: 1" in done.stdout
    assert f"on: {processors}" in done.stdout
    assert "checksum" not in done.stdout
    found = re.search(r"MemTotal: +(\d+) kB", done.stdout)
    assert found is not None
    size = options[options.index("--memory") + 1]
    wanted = int(size[:-1]) << {"M": 10, "G": 20}[size[-1]]  # kB
    assert wanted * 0.5 < int(found[1]) < wanted  # kernel, page structures and bounce buffers are not in it
    if not td:
        return
    sizes = ["--memory", size, "--cpus", str(processors)]
    measured = subprocess.run(
        [*COMMAND, "measure", "none", *boot, *sizes], capture_output=True, text=True, timeout=60, check=True
    )
    assert measured.stdout.strip() == kept["mrtd"]
    assert (kept["mrtd_source"], set("".join(kept["rtmr"]))) == ("TDX module", {"0"})
    differ = [*COMMAND, "diff", str(record), "none", *boot]  # memory and vCPUs are those of the launch
    assert subprocess.run(differ, capture_output=True, timeout=60, check=False).returncode == 0
    other = subprocess.run([*differ[:-1], "console=hvc0"], capture_output=True, text=True, timeout=60, check=False)
    assert other.returncode == 2
    assert "PAYLOAD_PARAM" in other.stdout
