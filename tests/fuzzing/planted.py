# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a fault: it trusts a length that its host tells, if the host has told it that a device is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swtdx.cpu.platform import Platform
from swtdx.fuzzing.campaign import Campaign, Crash, Known, work
from swtdx.fuzzing.folder import Folder, lies_of
from swtdx.fuzzing.guest import Guest, Limits
from swtdx.fuzzing.host import Host
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.lying.lie import CALLS
from swtdx.lying.lie import parse as parse_lie
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.vmm.bare_guest import tdvmcall_io
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.execution import Execution
from swtdx.vmm.launch import Machine, Plan, TdParameters, direct_boot, launch
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run
from testing.bare_processor import assemble
from tests.fuzzing.sources import SOURCES
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import COM1

PRESENT, LENGTH = 0x700, 0x704
"""Ports that no board has: an honest host answers with ones."""
MEMORY = 64 << 20
ROOM = 16
BEGUN = "!"
"""What the guest prints when its memory is accepted, and before it asks for anything."""


def _out(port: int, size: int) -> str:
    return ".byte " + ",".join(map(str, tdvmcall_io(size, 1, port)))


def _in(port: int, size: int) -> str:
    return ".byte " + ",".join(map(str, tdvmcall_io(size, 0, port)))


def code() -> bytes:
    """The machine code. A length of more than `ROOM` bytes overwrites the return address."""
    return assemble(f"""
        lea rsp, [rip + top]
        mov r15d, {ord(BEGUN)}
        {_out(COM1, 1)}
    again:
        call look
        jmp again
    look:
        sub rsp, {ROOM}
        {_in(PRESENT, 1)}
        cmp r11b, 0xff
        je nothing
        {_in(LENGTH, 2)}
        movzx ecx, r11w
        cmp ecx, 0xffff
        je nothing
        mov eax, 0xa5
        mov rdi, rsp
        cld
        rep stosb
    nothing:
        add rsp, {ROOM}
        ret
        .balign 4096
        .skip 4096
    top:
        .skip 131072
    """)


@contextmanager
def planted(limits: Limits | None = None, kind: str = CALLS) -> Iterator[Guest]:
    """The guest whose fault lies of that kind reach, to be fuzzed from its first instruction."""
    host = Host({kind})
    kernel = boot(platform=Platform(memory_size=1 << 30, report_key=bytes(32)), lies=host)
    linux = LinuxBoot(parse(image(kind), "a guest with a fault"), b"", "")
    direct, firmware = direct_boot(linux, MEMORY, 1, td=True)
    guest = Guest(host, kernel.processor, limits or Limits(calls=30, seconds=5))
    td = TdParameters(attributes=0 if kind == "ve" else None)
    devices = (VirtioRng(),) if kind == "virtio" else ()
    plan = Plan(firmware, MEMORY, 1, td, direct=direct, serial=guest.feed, devices=devices)
    try:
        with Kvm(kernel) as device, launch(device, plan) as machine:
            guest.attach(machine, _at_its_first_call(host, machine))
            yield guest
    finally:
        kernel.shutdown()


def image(kind: str = CALLS) -> bytes:
    """The guest as a kernel, for the command."""
    return bzimage(kernel=bytes(0x200) + (code() if kind == CALLS else assemble(SOURCES[kind])))


def _at_its_first_call(host: Host, machine: Machine) -> object:
    """A snapshot of when the guest has begun: all its memory is accepted."""
    execution, called = Execution(1), threading.Event()
    run = Run(machine, execution)
    host.begin((), 1, called.set)
    run.start()
    try:
        assert called.wait(60)
        with run.paused():
            return machine.snapshot()
    finally:
        run.finish(Outcome(End.INTERRUPTED, "it is kept"))
        run.stop()


def until_found(guest: Guest, folder: Path) -> tuple[Campaign, Crash]:
    """Work on a new campaign until the fault has made the guest triple-fault, for two minutes at most.

    It may end otherwise, too, which is another crash: by a length that reaches beyond the guest's memory.
    """
    campaign, deadline, seed = Campaign(Folder(folder), "a digest"), time.monotonic() + 120, 1
    while time.monotonic() < deadline:
        campaign.add(work(guest, campaign.known() if seed > 1 else Known(), seed, 5.0))
        for crash in campaign.crashes.values():
            if crash.outcome.kind == "triple fault":
                return campaign, crash
        seed += 1
    raise AssertionError("the fault was not found")


def replayed(guest: Guest, folder: Path) -> list[str]:
    """How the guest ends with the lies of each crash's file."""
    files = (folder / "crashes").iterdir()
    return [guest.run([parse_lie(text) for text in lies_of(file.read_text())]).outcome.kind for file in files]
