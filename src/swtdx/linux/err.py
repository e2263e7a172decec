# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors as the kernel makes them: a number, and for the person who asks, why.

A system call can only return ``-errno``. The reason travels on the exception: ``str(error)`` stays what `fcntl.ioctl`
would give, a note (PEP 678) shows the reason in a traceback, and `EmulatedKernel.last_refusal` keeps its facts.
"""

from __future__ import annotations

import os

from swtdx.uapi.reason import NO_REASON, Reason

_ATTRIBUTE = "swtdx_reason"


def err(code: int, reason: str | Reason) -> OSError:
    """Return an OSError (of the subclass that Python gives to ``code``) that carries ``reason``.

    >>> import errno
    >>> try:
    ...     raise err(errno.EEXIST, "slot 0 overlaps slot 3")
    ... except FileExistsError as error:
    ...     print(error.errno == errno.EEXIST, reason_of(error).text)
    True slot 0 overlaps slot 3
    """
    error = OSError(code, os.strerror(code))
    why = Reason(reason) if isinstance(reason, str) else reason
    error.add_note(why.text)
    setattr(error, _ATTRIBUTE, why)
    return error


def reason_of(error: OSError) -> Reason:
    """Return the reason given to `err`; an empty one when the error comes from the system itself."""
    reason = getattr(error, _ATTRIBUTE, None)
    return reason if isinstance(reason, Reason) else NO_REASON
