# SPDX-License-Identifier: GPL-2.0-or-later
"""The second front end of ``swtdx exec``: a server that programs reach by seccomp user notification.

It serves what cannot be preloaded: static programs, other C libraries, Go, another Python. Nothing of it is in the
program's process; the program's system calls wait until the server has answered them.

`seccomp` stops calls and answers them, `launch` starts server and program, `server` has the threads that serve. What
they serve is in `kvm_calls`, `file_calls`, `memory_calls` and `fork_calls`; `tasks` and `address_space` know who calls,
`paths` and `descriptors` which files are ours; `ptrace` holds a program while its memory moves, `signals` ends KVM_RUN.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.exec.notify.launch import Background, rules_for
from swtdx.exec.notify.launch import run as _run
from swtdx.exec.notify.seccomp import Listener, available

if TYPE_CHECKING:
    from swtdx.exec.notify.server import Server
    from swtdx.exec.record import Record
    from swtdx.exec.settings import Settings
    from swtdx.exec.telling import Telling
    from swtdx.linux.files import File
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel

__all__ = ["available", "run"]


class _Serving(Background):
    def __init__(self, server: Server, record: Record, telling: Telling) -> None:
        self.server, self.record, self.telling = server, record, telling

    def descriptors(self) -> int:
        return self.server.descriptors.inotify if self.server.descriptors is not None else -1

    def collect(self, *, thoroughly: bool) -> None:
        if self.server.descriptors is not None:
            if thoroughly:
                self.server.descriptors.collect_all()
            else:
                self.server.descriptors.collect()
        if thoroughly:
            self.server.tasks.sweep()

    def settle(self) -> None:
        if self.server.machine is not None:
            self.server.machine.flush_trace()
            self.record.settle(self.server.machine)
            self.record.flush()

    def finish(self) -> None:
        if self.server.machine is not None:
            self.settle()
            self.record.finish()
            self.telling.injected(self.server.machine)


def run(path: Path, arguments: list[str], settings: Settings) -> int:
    """Execute the program with the emulated kernel behind /dev/kvm; its exit status. Ask `available` first."""
    from swtdx.exec.notify.paths import DEV_KVM, Paths

    usable = os.access(DEV_KVM, os.R_OK | os.W_OK)
    rules = rules_for(looking=not usable or bool(settings.files))

    def serve(listener: Listener) -> Background:
        from swtdx.exec.machine import boot
        from swtdx.exec.notify.file_calls import FileCalls
        from swtdx.exec.notify.fork_calls import ForkCalls
        from swtdx.exec.notify.kvm_calls import KvmCalls
        from swtdx.exec.notify.memory_calls import MemoryCalls
        from swtdx.exec.notify.server import Server
        from swtdx.exec.record import Record
        from swtdx.exec.telling import Telling
        from swtdx.linux.arch.x86.kvm.x86.vm_ioctl import VmFile

        sys.setswitchinterval(0.0005)
        telling, record = Telling(settings), Record(settings, arguments)

        def power_on() -> tuple[MachineKernel, Kernel]:
            record.begin()
            return boot(settings, record.sink if record.wanted else None)

        def released(file: File) -> None:
            if record.wanted and server.machine is not None and isinstance(file, VmFile):
                record.settle(server.machine)  # while a TD can be asked

        server = Server(listener, power_on, telling, released)
        FileCalls(server, Paths(settings.files, usable=usable))
        KvmCalls(server, MemoryCalls(server), record, host=settings.host)
        ForkCalls(server)
        server.start()
        return _Serving(server, record, telling)

    return _run(path, arguments, rules, serve)
