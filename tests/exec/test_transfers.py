# SPDX-License-Identifier: GPL-2.0-or-later
"""read(2) and write(2) of KVM's descriptors: refused as by Linux, which has no such operations; statistics are read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.exec.conftest import Run, real_kvm

CODE = r"""
import ctypes, errno, fcntl, os, tempfile
r, w = os.pipe()
os.write(w, b'there is something to read')
file = os.memfd_create('file')
os.write(file, bytes(64))
kvm = os.open('/dev/kvm', os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xae01, 0)
vcpu = fcntl.ioctl(vm, 0xae41, 0)
calls = {
    'read': lambda fd: os.read(fd, 16),
    'nothing': lambda fd: os.read(fd, 0),
    'pread': lambda fd: os.pread(fd, 16, 0),
    'readv': lambda fd: os.readv(fd, [bytearray(16)]),
    'write': lambda fd: os.write(fd, b'16'),
    'pwrite': lambda fd: os.pwrite(fd, b'16', 0),
    'writev': lambda fd: os.writev(fd, [b'16']),
    'preadv': lambda fd: os.preadv(fd, [bytearray(16)], 0),
    'preadv2': lambda fd: os.preadv(fd, [bytearray(16)], 0, os.RWF_HIPRI),
    'pwritev': lambda fd: os.pwritev(fd, [b'16'], 0),
    'pwritev2': lambda fd: os.pwritev(fd, [b'16'], 0, os.RWF_SYNC),
    'sendfile': lambda fd: os.sendfile(w, fd, None, 16),
    'sendfile at': lambda fd: os.sendfile(w, fd, 0, 16),
    'sendfile to': lambda fd: os.sendfile(fd, file, 0, 16),
    'splice': lambda fd: os.splice(fd, w, 16),
    'splice at': lambda fd: os.splice(fd, w, 16, offset_src=0),
    'splice to': lambda fd: os.splice(r, fd, 16),
    'splice to at': lambda fd: os.splice(r, fd, 16, offset_dst=0),
    'copy': lambda fd: os.copy_file_range(fd, file, 16),
    'copy at': lambda fd: os.copy_file_range(fd, file, 16, 0, 0),
    'copy to': lambda fd: os.copy_file_range(file, fd, 16, 0),
}
def result(call, fd):
    try:
        done = calls[call](fd)
        return str(done if isinstance(done, int) else len(done))
    except OSError as error:
        return errno.errorcode[error.errno]
again = os.dup(vcpu)
for call in calls:
    print(call, *(result(call, fd) for fd in (kvm, vm, vcpu, again)))
statistics = fcntl.ioctl(vm, 0xaece)
print('statistics', len(os.pread(statistics, 24, 0)), len(os.read(statistics, 24)), result('write', statistics),
      result('pwrite', statistics))
"""
EXPECTED = """\
read EINVAL EINVAL EINVAL EINVAL
nothing EINVAL EINVAL EINVAL EINVAL
pread EINVAL ESPIPE ESPIPE ESPIPE
readv EINVAL EINVAL EINVAL EINVAL
write EINVAL EINVAL EINVAL EINVAL
pwrite EINVAL ESPIPE ESPIPE ESPIPE
writev EINVAL EINVAL EINVAL EINVAL
preadv EINVAL ESPIPE ESPIPE ESPIPE
preadv2 EINVAL ESPIPE ESPIPE ESPIPE
pwritev EINVAL ESPIPE ESPIPE ESPIPE
pwritev2 EINVAL ESPIPE ESPIPE ESPIPE
sendfile EINVAL EINVAL EINVAL EINVAL
sendfile at EINVAL ESPIPE ESPIPE ESPIPE
sendfile to EINVAL EINVAL EINVAL EINVAL
splice EINVAL EINVAL EINVAL EINVAL
splice at EINVAL EINVAL EINVAL EINVAL
splice to EINVAL EINVAL EINVAL EINVAL
splice to at EINVAL EINVAL EINVAL EINVAL
copy EINVAL EINVAL EINVAL EINVAL
copy at EINVAL EINVAL EINVAL EINVAL
copy to EINVAL EINVAL EINVAL EINVAL
statistics 24 24 EBADF ESPIPE
"""


def test_only_statistics_can_be_read(swtdx_exec: Run) -> None:
    done = swtdx_exec(sys.executable, "-c", CODE, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (EXPECTED, 0, "")


@pytest.mark.skipif(not real_kvm(), reason="this machine has no /dev/kvm of its own to compare with")
def test_the_machines_own_kvm_does_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True, env=os.environ)
    assert done.stdout == EXPECTED
