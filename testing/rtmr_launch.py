# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch of a firmware extends into the RTMRs, and the event log that the firmware keeps of it."""

from __future__ import annotations

import time
from pathlib import Path

from swtdx.attest.event_log import Event, parse_event_log
from swtdx.image.firmware import Firmware
from swtdx.image.linux_image import LinuxBoot
from swtdx.machine import MachineKernel, boot
from swtdx.uapi.client import Kvm
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.launch import Plan, launch
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run


def event_log(kernel: MachineKernel) -> list[Event]:
    """The firmware's own log, found in the TD's private memory: sixteen pages, of which the first begins as logs do."""
    (vm,) = kernel.vms
    raw = kernel.processor.memory.raw
    for slot in vm.memslots:
        memory = slot.gmem
        assert memory is not None
        pages = {(number << 9) + at: hpa + (at << 12) for number, hpa in memory.huge.items() for at in range(512)}
        small = [(number << 9, at, entry) for number, page in memory.pages.items() for at, entry in enumerate(page)]
        pages.update({first + at: entry & -4096 for first, at, entry in small if entry})
        for number, hpa in pages.items():
            if bytes(raw[hpa + 32 : hpa + 47]) == b"Spec ID Event03":
                found = [pages[number + at] for at in range(16)]
                return parse_event_log(b"".join(bytes(raw[page : page + 4096]) for page in found))
    return []


def seen_rtmrs(
    image: bytes,
    kernel: LinuxBoot | None,
    memory: int,
    cpus: int,
    extensions: int,
    devices: tuple[VirtioDevice, ...] = (),
    seconds: float = 60,
) -> tuple[list[list[str]], list[Event]]:
    """[register, digest] of what a launch extends, up to that many extensions and a moment longer; its event log."""
    machine_kernel = boot(no_rbp_mod=False)
    plan = Plan(Firmware(Path("OVMF.inteltdx.fd"), "a test", image), memory, cpus, linux=kernel, devices=devices)
    with Kvm(machine_kernel) as kvm, launch(kvm, plan) as machine:
        run = Run(machine)
        run.start()
        deadline = time.monotonic() + seconds
        events: list[list[str]] = []
        while len(events) < extensions and time.monotonic() < deadline and run.wait(0.2) is None:
            events = machine_kernel.inspect_td(machine.vm.fd)["rtmr_events"]
        run.wait(0.5)
        run.finish(Outcome(End.INTERRUPTED, "seen enough"))
        run.stop()
        return list(machine_kernel.inspect_td(machine.vm.fd)["rtmr_events"]), event_log(machine_kernel)
