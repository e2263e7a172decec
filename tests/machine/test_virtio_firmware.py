# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF's own virtio drivers on a disk: the shell lists, reads and writes the files of a FAT image."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swtdx.cpu.platform import Platform
from swtdx.image.firmware import find_firmware
from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.disk_image import DiskSpec, open_disk
from swtdx.vmm.launch import Plan, TdParameters, launch
from swtdx.vmm.run import Run
from tests.vmm.fat_image import fat12_image

PATIENCE_SECONDS = 120.0
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;=]*[A-Za-z]")


class Shell:
    """The UEFI shell of a running machine."""

    def __init__(self, run: Run, output: bytearray) -> None:
        self._run = run
        self._output = output

    def wait(self, text: str, start: int = 0) -> str:
        """What the console showed from ``start`` on, once ``text`` is in it; control sequences are taken out."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            seen = _CONTROL_SEQUENCE.sub("", self._output[start:].decode("ascii", "replace"))
            if text in seen:
                return seen
            if self._run.wait(0.05) is not None or time.monotonic() > deadline:
                pytest.fail(f"{text!r} did not come ({self._run.outcome}): {seen[-400:]!r}")

    def command(self, line: str) -> str:
        """What a command prints."""
        start = len(self._output)
        self._run.machine.board.type(line.encode() + b"\r")
        return self.wait("Shell>", start)


@contextmanager
def shell(firmware: Path, dialect: Dialect | None, said: list[str], *devices: VirtioDevice) -> Iterator[Shell]:
    """A machine in the shell; ``dialect`` None: an ordinary VM."""
    output = bytearray()
    plan = Plan(
        find_firmware(firmware), 256 << 20, td=TdParameters() if dialect else None, serial=output.extend,
        devices=devices, say=said.append,
    )  # fmt: skip
    # Debian 12's firmware waits for as many vCPUs as a TD may have, which is as many as the machine has processors.
    platform = Platform(logical_processors=1)
    kernel = open_kernel("emulated", dialect or Dialect.UPSTREAM, platform, no_rbp_mod=False)
    with Kvm(kernel, dialect or Dialect.UPSTREAM) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        try:
            shown = Shell(run, output)
            shown.wait("to skip")
            machine.board.type(b"\x1b")
            shown.wait("Shell>")
            yield shown
        finally:
            run.stop()


@pytest.mark.parametrize("dialect", [None, *Dialect], ids=lambda dialect: dialect.value if dialect else "default")
def test_the_shell_uses_a_fat_disk(dialect: Dialect | None, ovmf_image: Path, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    files = {"HELLO.TXT": b"the disk says hello\r\n", "LONG.BIN": bytes(range(256)) * 200}
    image.write_bytes(fat12_image(files))
    said: list[str] = []
    with (
        open_disk(DiskSpec(image)) as disk,
        shell(ovmf_image, dialect, said, VirtioBlk(disk), VirtioRng()) as uefi,
    ):
        mapped = uefi.command("map -r")
        assert re.search(r"FS0:.*BLK0:", mapped)
        assert "PciRoot(0x0)/Pci(0x1,0x0)" in mapped
        listed = uefi.command("ls fs0:")
        assert re.search(r"51,200 +LONG.BIN", listed)
        assert "2 File(s)" in listed
        assert "the disk says hello" in uefi.command("type fs0:\\HELLO.TXT")
        uefi.command("cp fs0:\\LONG.BIN fs0:\\COPY.BIN")
        assert "no differences" in uefi.command("comp fs0:\\LONG.BIN fs0:\\COPY.BIN").lower()
    assert said == []
    # The copy is the third entry of the root directory, and there is room for it right behind the others.
    contents = image.read_bytes()
    assert contents.count(b"COPY    BIN") == 1
    assert contents.count(bytes(range(256)) * 2) >= 200


def test_a_read_only_disk_stays_as_it_is(ovmf_image: Path, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    image.write_bytes(fat12_image({"HELLO.TXT": b"the disk says hello\r\n"}))
    before = image.read_bytes()
    said: list[str] = []
    with (
        open_disk(DiskSpec(image, read_only=True)) as disk,
        shell(ovmf_image, Dialect.UPSTREAM, said, VirtioBlk(disk)) as uefi,
    ):
        assert "the disk says hello" in uefi.command("type fs0:\\HELLO.TXT")
        uefi.command("echo no > fs0:\\NEW.TXT")
        assert "NEW.TXT" not in uefi.command("ls fs0:")
    assert image.read_bytes() == before
