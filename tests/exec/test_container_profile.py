# SPDX-License-Identifier: GPL-2.0-or-later
"""In a container without further rights: under the calls that docker's and podman's default profiles refuse.

Both are lists of what is allowed; this is the rest, as far as x86-64 has it, for a process without capabilities
(moby's profiles/seccomp/default.json, containers/common's pkg/seccomp/seccomp.json). Of what swtdx uses, podman's has
what docker's has, and pidfd_getfd and clone3 besides. io_uring is on newer lists of docker no more, so it is refused
here too.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import code

_EPERM, _ENOSYS, _AF_VSOCK = 1, 38, 40
_CLONE_NEW = 0x7E020000
_CLONE, _SOCKET, _CLONE3 = 56, 41, 435
_OLD = {134, 136, 139, 156, 174, *range(177, 179), *range(180, 186), 212, 236}  # uselib, ustat, sysfs, _sysctl ...
_ADMINISTRATION = {
    *{103, 153, 155, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 227, 246, 272, 300},
    *{304, 308, 313, 320, 428, 429, 430, 431, 432, 433, 442, 443},
}  # syslog, pivot_root, chroot, mount, reboot, iopl, unshare, setns, kexec, fsopen ...
_OTHERS = {
    *{237, 238, 239, 256, 279, 450},  # mbind, set_mempolicy, get_mempolicy, migrate_pages, move_pages
    *{248, 249, 250, 298, 321, 323},  # add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd
    *{312, 438, 440},  # kcmp, pidfd_getfd, process_madvise
    *{425, 426, 427},  # io_uring
}
_NEWER = set(range(451, 480))
REFUSED = sorted(_OLD | _ADMINISTRATION | _OTHERS | _NEWER)


def _filter() -> bytes:
    """Classic BPF (linux/filter.h) over struct seccomp_data."""

    def instruction(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    def load(offset: int) -> bytes:
        return instruction(0x20, 0, 0, offset)

    def answer(value: int) -> bytes:
        return instruction(0x06, 0, 0, value)

    error = 0x50000
    program = [load(0), instruction(0x15, 0, 1, _CLONE3), answer(error | _ENOSYS)]
    for number in REFUSED:
        program += [instruction(0x15, 0, 1, number), answer(error | _EPERM)]
    program += [instruction(0x15, 0, 3, _CLONE), load(16), instruction(0x45, 0, 1, _CLONE_NEW), answer(error | _EPERM)]
    program += [load(0), instruction(0x15, 0, 3, _SOCKET), load(16)]
    program += [instruction(0x15, 0, 1, _AF_VSOCK), answer(error | _EPERM)]
    return b"".join([*program, answer(0x7FFF0000)])


def in_a_container() -> None:
    """Become a process under that profile: for ``preexec_fn``."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = ctypes.create_string_buffer(_filter())
    described = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(program)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(317, 1, 0, described):  # PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def contained(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swtdx", *map(str, arguments)],
        preexec_fn=in_a_container,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_profile_is_in_force() -> None:
    tried = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.syscall(323, 0), ctypes.get_errno())"
    done = subprocess.run(
        [sys.executable, "-c", tried], preexec_fn=in_a_container, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"-1 {_EPERM}\n"


def test_the_installation_is_whole() -> None:
    done = contained("selftest")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_is_kept_and_continues(tmp_path: Path) -> None:
    kernel, kept = tmp_path / "bzImage", tmp_path / "kept"
    kernel.write_bytes(bzimage(kernel=bytes(0x200) + code(td=False)))
    machine: list[str | Path] = ["--firmware", "none", "--kernel", kernel, "--vm-type", "default", "--memory", "64M"]
    done = contained("run", *machine, "--snapshot-at", "FGH", "--snapshot", kept)
    assert (done.stdout, done.returncode) == ("BCDEFGH\n", 0), done.stderr
    done = contained("run", "--from", kept, "--until", "NOP")
    assert (done.stdout[:8], done.returncode) == ("IJKLMNOP", 0), done.stderr


@pytest.mark.parametrize("front_end", ["preload", "notify"])
def test_a_program_finds_a_kernel_that_makes_tds(front_end: str) -> None:
    asked = 'import fcntl; kvm = open("/dev/kvm", "rb", buffering=0); print(fcntl.ioctl(kvm, 0xAE03, 235) >> 5 & 1)'
    done = contained("exec", "--front-end", front_end, "--", sys.executable, "-c", asked)  # KVM_CAP_VM_TYPES
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_a_dynamic_program_gives_an_eventfd(compiled: Callable[..., Path]) -> None:
    assert contained("exec", "--", compiled("irqfd")).stdout == "taken\n"


def test_what_a_static_program_lacks_is_said(compiled: Callable[..., Path]) -> None:
    """Its eventfds are copied by pidfd_getfd(2), which takes CAP_SYS_PTRACE under the profile."""
    done = contained("exec", "--", compiled("irqfd", "-static"))
    assert done.stdout == "Bad file descriptor\n"
    assert "pidfd_getfd(2) is refused here" in done.stderr
    assert "--cap-add SYS_PTRACE" in done.stderr
