# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary system calls on KVM's descriptors: each answers as Linux's, which refuses most of them.

Columns: /dev/kvm, a VM, a vCPU, a guest_memfd, statistics. The expectations follow from the operations that KVM's files
have and from the VFS (vfs_fallocate, noop_llseek, do_vfs_ioctl, do_mmap, memfd_fcntl, generic_setlease, inodes that
have no type); the machine's own KVM is compared with them, too.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from tests.conftest import skip
from tests.exec.conftest import Run, real_kvm

Build = Callable[..., Path]
FLAGS = {"preload": (), "notify": ("-static",)}
CASES = {
    "contents": """\
ftruncate_0 EINVAL EINVAL EINVAL EINVAL EINVAL
ftruncate_page EINVAL EINVAL EINVAL EINVAL EINVAL
ftruncate_negative EINVAL EINVAL EINVAL EINVAL EINVAL
fsync EINVAL EINVAL EINVAL EINVAL EINVAL
fdatasync EINVAL EINVAL EINVAL EINVAL EINVAL
sync_file_range ESPIPE ESPIPE ESPIPE 0 ESPIPE
fadvise 0 0 0 0 0
readahead EINVAL EINVAL EINVAL EINVAL EINVAL
fallocate ENODEV ENODEV ENODEV EOPNOTSUPP EBADF
fallocate_negative EINVAL EINVAL EINVAL EINVAL EINVAL
fallocate_unknown EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
posix_fallocate ENODEV ENODEV ENODEV ESPIPE EBADF
""",
    "position": """\
lseek_set 0 0 0 ESPIPE 0
lseek_current 0 0 0 ESPIPE 0
lseek_end 0 0 0 ESPIPE 0
lseek_data 0 0 0 ESPIPE 0
lseek_unknown EINVAL EINVAL EINVAL EINVAL EINVAL
""",
    "transfers": """\
read EINVAL EINVAL EINVAL EINVAL 0
pread EINVAL ESPIPE ESPIPE ESPIPE 0
write EINVAL EINVAL EINVAL EINVAL EBADF
pwrite EINVAL ESPIPE ESPIPE ESPIPE ESPIPE
readv EINVAL EINVAL EINVAL EINVAL 0
writev EINVAL EINVAL EINVAL EINVAL EBADF
tee EINVAL EINVAL EINVAL EINVAL EINVAL
vmsplice EBADF EBADF EBADF EBADF EBADF
sendfile_to EINVAL EINVAL EINVAL EINVAL EBADF
splice_to EINVAL EINVAL EINVAL EINVAL EBADF
copy_to EINVAL EINVAL EINVAL EXDEV EINVAL
""",
    "memory": """\
mmap_shared ENODEV ENODEV 0 ENODEV EACCES
mmap_validated ENODEV ENODEV 0 ENODEV EACCES
mmap_private ENODEV ENODEV 0 ENODEV ENODEV
mmap_read ENODEV ENODEV 0 ENODEV ENODEV
mmap_code ENODEV EPERM EPERM EPERM EPERM
mmap_uneven EINVAL EINVAL EINVAL EINVAL EINVAL
""",
    "file": """\
fchdir ENOTDIR ENOTDIR ENOTDIR ENOTDIR ENOTDIR
getdents ENOTDIR ENOTDIR ENOTDIR ENOTDIR ENOTDIR
linkat ENOENT ENOENT ENOENT ENOENT ENOENT
fexecve EACCES EACCES EACCES EACCES EACCES
type 2 0 0 8 0
size 0 0 0 8192 0
""",
    "metadata": """\
mode 8576 384 384 33152 384
links 1 1 1 1 1
block_size 4096 4096 4096 4096 4096
blocks 0 0 0 0 0
device 2792 0 0 0 0
statx_mode 8576 384 384 33152 384
fstatat_mode 8576 384 384 33152 384
statx_links 1 1 1 1 1
fstatfs 16914836 151263540 151263540 151263540 151263540
fchmod 0 EOPNOTSUPP EOPNOTSUPP EINVAL EOPNOTSUPP
fchown 0 EOPNOTSUPP EOPNOTSUPP EINVAL EOPNOTSUPP
futimens 0 EOPNOTSUPP EOPNOTSUPP EINVAL EOPNOTSUPP
fsetxattr EPERM EPERM EPERM EOPNOTSUPP EPERM
fgetxattr ENODATA ENODATA ENODATA EOPNOTSUPP ENODATA
flistxattr 0 0 0 0 0
fremovexattr EPERM EPERM EPERM EOPNOTSUPP EPERM
handle 0 EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
syncfs 0 0 0 0 0
""",
    "locks": """\
flock_shared 0 0 0 0 0
flock_none 0 0 0 0 0
lock_read 0 0 0 0 0
lock_write 0 0 0 0 EBADF
lock_test 2 2 2 2 2
lockf 0 0 0 0 0
""",
    "passing": """\
named /dev/kvm 8 anon_inode:kvm-vm 8 anon_inode:kvm-vcpu:0 8 anon_inode:[kvm-gmem] 8 anon_inode:kvm-vm-stats 8
passed 1 1 EINVAL ENOTTY ENOTTY
fetched 1 1 EINVAL ENOTTY ENOTTY
duplicate 1 1 EINVAL ENOTTY ENOTTY
""",
    "flags": """\
F_GETFD 1 1 1 0 1
F_GETFL 2 2 2 2 0
F_SETFL_nonblock 0 0 0 0 0
F_SETFL_append 0 0 0 0 0
F_SETFL_direct EINVAL EINVAL EINVAL EINVAL EINVAL
F_SETFL_async 0 0 0 0 0
F_SETOWN 0 0 0 0 0
F_SETSIG 0 0 0 0 0
F_ADD_SEALS EINVAL EINVAL EINVAL EINVAL EPERM
F_GET_SEALS EINVAL EINVAL EINVAL EINVAL EINVAL
F_SETPIPE_SZ EBADF EBADF EBADF EBADF EBADF
F_GETPIPE_SZ EBADF EBADF EBADF EBADF EBADF
F_SETLEASE EINVAL EINVAL EINVAL 0 EINVAL
F_GETLEASE 2 2 2 0 2
F_NOTIFY ENOTDIR ENOTDIR ENOTDIR ENOTDIR ENOTDIR
F_unknown EINVAL EINVAL EINVAL EINVAL EINVAL
""",
    "ioctls": """\
FIONBIO 0 0 0 0 0
FIOASYNC 0 0 0 0 0
FIOASYNC_on ENOTTY ENOTTY ENOTTY ENOTTY ENOTTY
FIOCLEX 0 0 0 0 0
FIONREAD EINVAL ENOTTY EINVAL ENOTTY ENOTTY
FIGETBSZ 0 0 0 0 0
FIOQSIZE ENOTTY ENOTTY ENOTTY ENOTTY ENOTTY
FIBMAP EINVAL ENOTTY EINVAL ENOTTY ENOTTY
FS_IOC_GETFLAGS EINVAL ENOTTY EINVAL ENOTTY ENOTTY
FS_IOC_FIEMAP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
FICLONE EXDEV EXDEV EXDEV EXDEV EXDEV
TCGETS EINVAL ENOTTY EINVAL ENOTTY ENOTTY
TIOCGWINSZ EINVAL ENOTTY EINVAL ENOTTY ENOTTY
SIOCGIFNAME EINVAL ENOTTY EINVAL ENOTTY ENOTTY
unknown EINVAL ENOTTY EINVAL ENOTTY ENOTTY
""",
    "waiting": """\
poll 5 5 5 5 5
select 1 1 1 1 1
epoll EPERM EPERM EPERM EPERM EPERM
epoll_wait EINVAL EINVAL EINVAL EINVAL EINVAL
inotify EINVAL EINVAL EINVAL EINVAL EINVAL
signalfd EINVAL EINVAL EINVAL EINVAL EINVAL
timerfd EINVAL EINVAL EINVAL EINVAL EINVAL
send ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK
recv ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK
bind ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK
""",
}
NOT_STOPPED = re.compile(
    r"(lseek_[sced]|read|pread|write|pwrite|splice_to|sendfile_to|copy_to|mmap_private|posix_fallocate|F_[SG]ETLEASE|"
    r"F_SETFL_direct|fstatfs|fch|futimens|f.*xattr|handle|named|"
    r"FIO|FIBMAP|FS_IOC_GETFLAGS|FICLONE|TCGETS|TIOC|SIOC)"
)
"""With notify these reach the memory file behind the descriptor (docs/howto/exec.md)."""


def lines(output: str, *, all_of_them: bool) -> list[str]:
    return [line for line in output.splitlines() if all_of_them or not NOT_STOPPED.match(line)]


@pytest.mark.parametrize("front_end", FLAGS)
@pytest.mark.parametrize("calls", CASES)
def test_they_answer_as_linux(compiled: Build, swtdx_exec: Run, calls: str, front_end: str) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(compiled("ordinary", *FLAGS[front_end]), calls, options=["--quiet", "--front-end", front_end])
    whole = front_end == "preload"
    expected = lines(CASES[calls], all_of_them=whole)
    assert (lines(done.stdout, all_of_them=whole), done.stderr) == ([*expected, "then: exit 17"], "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
@pytest.mark.parametrize("calls", CASES)
def test_the_machines_own_kvm_does_the_same(compiled: Build, calls: str) -> None:
    done = subprocess.run([str(compiled("ordinary")), calls], check=False, capture_output=True, text=True)
    if " -" in done.stdout:
        skip("the kernel of this machine has no guest_memfd or no statistics")
    assert done.stdout == CASES[calls] + "then: exit 17\n"


@pytest.mark.parametrize("front_end", FLAGS)
@pytest.mark.parametrize("calls", ["ring", "aio"])
def test_calls_that_go_past_the_library_harm_nothing(
    compiled: Build, swtdx_exec: Run, calls: str, front_end: str
) -> None:
    """io_uring and AIO reach the memory file: its length is sealed, and the vCPU runs as before."""
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(compiled("ordinary", *FLAGS[front_end]), calls, options=["--quiet", "--front-end", front_end])
    if done.stdout == "no io_uring\n":
        skip("io_uring is not allowed here")
    assert done.stdout.endswith("\nthen: exit 17\n")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("front_end", FLAGS)
def test_no_client_takes_the_memory_of_a_vcpu_away(compiled: Build, swtdx_exec: Run, front_end: str) -> None:
    """By ftruncate(2) of the descriptor, or of one that was opened by its name: KVM_RUN hung."""
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    done = swtdx_exec(
        compiled("ordinary", *FLAGS[front_end]), "shorten", options=["--quiet", "--front-end", front_end], timeout=30
    )
    assert done.stdout == "shortened: 0\nthen: exit 17\n"
