# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client raises."""

from __future__ import annotations

import errno as _errno
import os


def errno_name(errno: int) -> str:
    """The kernel's name of an errno: Python prefers ENOTSUP to it, which is the same number.

    >>> errno_name(95), errno_name(22), errno_name(4000)
    ('EOPNOTSUPP', 'EINVAL', '4000')
    """
    return "EOPNOTSUPP" if errno == _errno.EOPNOTSUPP else _errno.errorcode.get(errno, str(errno))


class KvmError(OSError):
    """An ioctl failed.

    ``errno`` is the kernel's, ``ioctl`` the request's name in the header (for TDX with the sub-command's), ``hw_error``
    the SEAMCALL status that KVM passed on, 0 if none.

    >>> str(KvmError(22, "KVM_TDX_INIT_VM", 0xC000010000000001))
    'KVM_TDX_INIT_VM: EINVAL (Invalid argument), SEAMCALL status 0xc000010000000001'
    """

    def __init__(self, errno: int, ioctl: str, hw_error: int = 0) -> None:
        super().__init__(errno, os.strerror(errno))
        self.ioctl = ioctl
        self.hw_error = hw_error

    def __reduce__(self) -> tuple[type[KvmError], tuple[int, str, int]]:
        return type(self), (self.errno or 0, self.ioctl, self.hw_error)

    def __str__(self) -> str:
        name = errno_name(self.errno or 0)
        status = f", SEAMCALL status 0x{self.hw_error:016x}" if self.hw_error else ""
        return f"{self.ioctl}: {name} ({self.strerror}){status}"
