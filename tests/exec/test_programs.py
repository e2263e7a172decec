# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plain C client of /dev/kvm sees: descriptors, mappings, processes and signals, as on a real kernel.

The expectations are what Linux does. Where the machine has a /dev/kvm of its own, the same programs run there too and
must say the same; all but those that depend on how a processor runs real mode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

OPEN = """\
open: 12
open read-only: 12
open write-only: 12
openat: 12
openat absolute: 12
syscall(SYS_open): 12
syscall(SYS_openat): 12
syscall(SYS_openat2): 12
dots: 12
double slash: 12
relative: 12
relative in /dev: 12
/proc/self/fd: 12
fopen: 12
O_DIRECTORY: -20
O_CREAT|O_EXCL: -17
O_CREAT: 12
trailing slash: -20
another name: -2
"""
DUPLICATES = """\
close-on-exec: 1
not close-on-exec: 0
dup: 12
dup2: 12
dup3: 12
dup3 close-on-exec: 1
dup2 itself: 1
F_DUPFD: 200
F_DUPFD usable: 12
after close of the first: 12
closed: -9
VM close-on-exec: 1
dup2 over a VM: 1
no VM any more: -25
close_range: 0
closed by range: -9
bad descriptor: -9
"""
CALLS = """\
poll a vCPU: 1
poll events: 5
epoll: -1
stat is a character device: 1
stat number: 2792
fstat is a character device: 1
fstat number: 2792
access: 0
faccessat: 0
a terminal's ioctl: 0
FIOCLEX: 0
unknown ioctl of the device: -22
unknown ioctl of a VM: -25
unknown ioctl of a vCPU: -22
KVM ioctl of another file: -22
mmap of the device: -19
mmap of a VM: -19
"""
PROCESSES = """\
child, parent's VM: -5
child, parent's vCPU: -5
child, parent's /dev/kvm: 12
child, its own: exit 2
child's status: 3
parent after fork: exit 2
vfork's status: 0
VM after vfork: 1
spawned: 0
spawned with a cleared environment: 0
sent to itself: 12
VM sent to another process: -5
/dev/kvm sent to another process: 12
"""
VCPU_MAPPINGS = """\
at the address asked for: 1
the fixed one shows the exit: 2
a second one shows it: 2
port: 16
munmap: 0
munmap twice: 0
exit after munmap of one: 2
a part of it: 0
the other part: 2
the rest: 0
replaced: 1
by zeroes: 0
the neighbours are as they were: 0
"""
KEPT = """\
readable after close: 2
munmap: 0
the next descriptor is a low one: 1
"""
COALESCED = """\
exit: exit 2
entries in the second vCPU's page: 1
the byte: 90
entries where it was mapped at a fixed address: 1
"""
NOTIFIED = """\
first: 1
replaced: 2
given back: 3
write to what is read-only now: Bad address, exit 39
writable again: exit 2
unmapped: Bad address, exit 39
mapped again: exit 2
"""
FORKED = """\
private, the child: 1 8
private, the parent: 2 5
bss, the child: 1 8
bss, the parent: 2 5
private copy of a file, the child: 1 8
private copy of a file, the parent: 2 5
shared, the child: 2 8
shared, the parent: 7 8
MADV_DONTFORK: -1 -1, blocked: 1 0
the parent has it: 9
MADV_WIPEONFORK: 1 0, blocked: 1 0
the parent has it: 9
"""
CLONED = """\
a thread's: 3
spawned: 0
the program's: 4
"""
SIGNALS = {
    "spin": """\
spinning: EINTR, exit 10
handled: 1
KVM_RUN had ended when the handler ran: 1
soon: 1
and continues: exit 2
""",
    "hlt": """\
in HLT: EINTR, exit 10
handled: 1
soon: 1
""",
    "details": """\
the program sees its own handler: 1
timer: EINTR, exit 10
value: 1234
code: 1
outside of KVM_RUN: 5
the old one: 1
reset after one signal: 1
""",
    "ignored": """\
ignored, then the alarm: EINTR, exit 10
handled: 1
SIGCHLD is ignored, too: 1
a child ends, then the alarm: EINTR, exit 10
only the alarm: 1
""",
    "blocked": """\
pending and blocked: exit 2
handled: 0
handled when unblocked: 1
""",
    "jump": "after 20 jumps: exit 2\n",
    "cancel": """\
cancelled: 1
then: exit 2
""",
    "immediate": """\
immediate_exit: EINTR, exit 0
without: exit 2
""",
    "storm": """\
exits: 1
interrupted: 1
every signal was handled: 1
""",
}
SIGNALS["kvm-mask"] = SIGNALS["kvm-mask-default"] = """\
let in by KVM_SET_SIGNAL_MASK: EINTR, exit 10
handled: 0
still pending: 1
taken: exit 2
pending before KVM_RUN: EINTR, exit 10
blocked by the mask: exit 2
"""
GUEST_MEMFD = """\
flags: 3
shared: done, done, No such device
size: 16384
run: exit 2
what the guest wrote: 91
beyond the end: 1
its last page: 0
at the address asked for: 1
the same page: 91
not shared first: 1
nor at a place of the program's: 1
hole: 0
zeros: 0
run: exit 2
what the guest wrote: 66
run without: Bad address, exit 39
"""
CASES = [
    ("descriptors", "open", OPEN),
    ("descriptors", "duplicates", DUPLICATES),
    ("descriptors", "calls", CALLS),
    ("descriptors", "processes", PROCESSES),
    ("mappings", "vcpu", VCPU_MAPPINGS),
    ("mappings", "kept", KEPT),
    ("mappings", "coalesced", COALESCED),
    ("mappings", "notified", NOTIFIED),
    ("guest_memfd", "shared", GUEST_MEMFD),
    ("memory", "forked", FORKED),
    ("memory", "cloned", CLONED),
    *(("signals", case, text) for case, text in SIGNALS.items()),
]
_NEWER = {"guest_memfd"}  # this machine's kernel may be older than 6.18
_PROCESSOR = {"notified"}  # KVM without VMX emulates real mode and answers otherwise


@pytest.mark.parametrize(("program", "case", "expected"), CASES, ids=[f"{p}-{c}" for p, c, _ in CASES])
def test_a_program_sees_what_linux_shows(
    compiled: Callable[..., Path], swtdx_exec: Run, program: str, case: str, expected: str
) -> None:
    done = swtdx_exec(compiled(program), case, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")


def test_what_of_a_guest_memfd_cannot_be_mapped(compiled: Callable[..., Path], swtdx_exec: Run) -> None:
    """kvm_gmem_mmap: ENODEV without the flag, else EINVAL for a private mapping."""
    done = swtdx_exec(compiled("guest_memfd"), "refused", options=["--quiet"])
    assert done.stdout == (
        "private: Invalid argument, Invalid argument\n"
        "one large page: Invalid argument\n"
        "without the flag: No such device, No such device\n"
    )


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize(("program", "case", "expected"), CASES, ids=[f"{p}-{c}" for p, c, _ in CASES])
def test_the_expectations_are_what_the_machines_own_kvm_does(
    compiled: Callable[..., Path], program: str, case: str, expected: str
) -> None:
    if program in _NEWER:
        pytest.skip("depends on the kernel's release")
    if case in _PROCESSOR:
        pytest.skip("depends on how the processor runs real mode")
    done = subprocess.run([compiled(program), case], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == expected


@pytest.mark.parametrize(("flags", "unset"), [([], False), (["-D_FORTIFY_SOURCE=2", "-O2"], False), ([], True)])
def test_a_fortified_program_and_an_absent_temporary_folder_make_no_difference(
    compiled: Callable[..., Path], swtdx_exec: Run, flags: list[str], unset: bool
) -> None:
    done = swtdx_exec(compiled("descriptors", *flags), "open", env={"PATH": "/usr/bin"} if unset else None)
    assert (done.stdout, done.returncode) == (OPEN, 0)


LOCKS = """
import ctypes, fcntl, os, sys
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
libc = ctypes.CDLL(None)
lock = (lambda: libc.syscall(151, 3)) if "raw" in sys.argv else lambda: libc.mlockall(3)
print(lock(), fcntl.ioctl(vm, 0xAE41, 0) > 0, end=" ")
with open("/proc/self/status") as file:
    resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
print(resident < 1 << 20)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root may lock as much as it likes")
@pytest.mark.parametrize("call", ["libc", "raw"])
@pytest.mark.parametrize("front_end", ["preload", "notify"])
def test_memory_that_is_locked_stays_sparse(swtdx_exec: Run, front_end: str, call: str) -> None:
    """QEMU's -overcommit mem-lock=on: mlockall() would populate the 64 GiB of the machine."""
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    options = ["--quiet", "--memory", "64G", "--front-end", front_end]
    done = swtdx_exec(sys.executable, "-c", LOCKS, call, options=options)
    assert (done.stdout, done.returncode, done.stderr) == ("0 True True\n", 0, "")
