# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors as the kernel makes them: a number, and for the person who asks, why.

A system call can only return ``-errno``. The reason travels as a note on the exception (PEP 678): ``str(error)`` stays
what `fcntl.ioctl` would give, the traceback shows the reason, and `EmulatedKernel.last_reason` keeps it.
"""

import os


def err(code: int, reason: str) -> OSError:
    """An OSError (of the subclass that Python gives to ``code``) that carries ``reason``.

    >>> import errno
    >>> try:
    ...     raise err(errno.EEXIST, "slot 0 overlaps slot 3")
    ... except FileExistsError as error:
    ...     print(error.errno == errno.EEXIST, reason_of(error))
    True slot 0 overlaps slot 3
    """
    error = OSError(code, os.strerror(code))
    error.add_note(reason)
    return error


def reason_of(error: OSError) -> str:
    """The reason given to `err`; empty when the error comes from the system itself."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes[-1] if notes else ""
