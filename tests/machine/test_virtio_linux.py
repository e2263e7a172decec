# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own virtio drivers: a distribution's kernel in a TD and in an ordinary VM, its shell on hvc0."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.newc import DIRECTORY, FILE, newc
from swtdx.cpu.platform import Platform
from swtdx.image.firmware import find_firmware
from swtdx.image.linux_image import load
from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.disk_image import DiskImage, DiskSpec, open_disk
from swtdx.vmm.launch import Plan, TdParameters, launch
from swtdx.vmm.outcome import End
from swtdx.vmm.run import Run

PATIENCE_SECONDS = 120.0
MEMORY = 512 << 20
MODULES = ("virtio_blk", "virtio-rng")
INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /*.ko; do insmod $module; done
PS1='guest> ' exec setsid cttyhack sh
"""
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # the shell asks the terminal where its cursor is


class Shell:
    """The guest's shell on hvc0."""

    def __init__(self, run: Run, printed: bytearray) -> None:
        self._run = run
        self._printed = printed

    def wait(self, start: int = 0) -> str:
        """What the console showed from ``start`` on, once the prompt is at its end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = _CONTROL_SEQUENCE.sub("", self._printed[start:].decode("ascii", "replace"))
            if seen.endswith("guest> "):
                return seen
            if self._run.wait(0.02) is not None or time.monotonic() > deadline:
                pytest.fail(f"no prompt ({self._run.outcome}): {seen[-600:]!r}")

    def command(self, line: str) -> str:
        """What a command prints."""
        start = len(self._printed) + len(line)
        self._run.machine.board.type(line.encode() + b"\n")
        return self.wait(start).removesuffix("guest> ")


@pytest.fixture
def initrd(kernel_folder: Path, busybox: Path, tmp_path: Path) -> Path:
    entries = [(name, DIRECTORY, b"") for name in ("bin", "dev", "proc", "sys", "mnt")]
    entries += [("init", FILE, INIT), ("bin/busybox", FILE, busybox.read_bytes())]
    for module in MODULES:
        (found,) = kernel_folder.glob(f"lib/modules/*/kernel/drivers/**/{module}.ko*")
        contents = found.read_bytes()
        entries.append((f"{module}.ko", FILE, lzma.decompress(contents) if found.suffix == ".xz" else contents))
    path = tmp_path / "initrd"
    path.write_bytes(newc(entries))
    return path


@contextmanager
def shell(firmware: Path, kernel: Path, initrd: Path, td: bool, disks: list[DiskImage]) -> Iterator[tuple[Shell, Run]]:
    printed = bytearray()
    plan = Plan(
        find_firmware(firmware, tdx=td),
        MEMORY,
        td=TdParameters() if td else None,
        linux=load(kernel, initrd, "console=hvc0 quiet", MEMORY),
        devices=(*(VirtioBlk(disk) for disk in disks), VirtioConsole(printed.extend, (100, 40)), VirtioRng()),
        say=pytest.fail,
    )
    kernel_below = open_kernel("emulated", Dialect.UPSTREAM, Platform(logical_processors=1), no_rbp_mod=False)
    with Kvm(kernel_below, Dialect.UPSTREAM) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        try:
            shown = Shell(run, printed)
            shown.wait()
            yield shown, run
        finally:
            run.stop()


@pytest.mark.parametrize("td", [True, False], ids=["td", "default"])
def test_linux_has_its_disks_console_and_random_numbers(
    td: bool, ovmf_image: Path, kernel_folder: Path, initrd: Path, tmp_path: Path
) -> None:
    kernel = sorted(kernel_folder.glob("boot/vmlinuz-*"))[-1]
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    first.write_bytes(os.urandom(8 << 20))
    second.write_bytes(bytes(4 << 20))
    before = first.read_bytes()
    with (
        open_disk(DiskSpec(first, read_only=True)) as readable,
        open_disk(DiskSpec(second)) as writable,
        shell(ovmf_image, kernel, initrd, td, [readable, writable]) as (guest, run),
    ):
        assert ("tdx" in guest.command("grep -o -w tdx_guest /proc/cpuinfo")) == td
        assert hashlib.sha256(before).hexdigest() in guest.command("sha256sum /dev/vda")
        assert "first.img" in guest.command("cat /sys/block/vda/serial")
        assert guest.command("cat /sys/block/vda/ro /sys/block/vdb/ro").split()[-2:] == ["1", "0"]
        assert "error" in guest.command("dd if=/dev/zero of=/dev/vda count=1; echo error $?").lower()
        guest.command("dd if=/dev/vda of=/dev/vdb bs=64k skip=16 count=32 conv=fsync")
        assert "16" in guest.command("dd if=/dev/hwrng bs=16 count=1 | wc -c").split()
        assert "40 100" in guest.command("stty size")
        interrupts = guest.command("cat /proc/interrupts")
        for name in ("virtio0-req.0", "virtio1-req.0", "virtio2-input", "virtio2-output", "virtio3-input"):
            assert re.search(rf"[1-9]\d* +PCI-MSIX-\S+ +\d+-edge +{name}", interrupts), interrupts
        run.machine.board.type(b"poweroff -f\n")
        outcome = run.wait(PATIENCE_SECONDS)
        assert outcome is not None
        assert outcome.end is End.POWER_OFF
    assert first.read_bytes() == before
    assert second.read_bytes()[: 2 << 20] == before[1 << 20 : 3 << 20]
    assert not any(second.read_bytes()[2 << 20 :])
