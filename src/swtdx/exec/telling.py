# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person is told of a program's ioctls: why one failed, on standard error, as it fails; and the trace.

Not everything that fails is worth a word: programs try sizes (E2BIG), ask whether something exists, are interrupted.
A sentence is said once in a process, however often its ioctl is repeated.
"""

from __future__ import annotations

import errno
import os
import traceback

from swtdx.exec.settings import Settings
from swtdx.trace.event import Event
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.kvm import KVM_HAS_DEVICE_ATTR, KVM_MEMORY_ENCRYPT_OP, ioctl_name

_STDERR = 2
_MOST_SENTENCES = 100
_ROUTINE = {errno.E2BIG, errno.EINTR, errno.EAGAIN}
_QUESTIONS = {int(KVM_HAS_DEVICE_ATTR)}
_ENCRYPT_OP = int(KVM_MEMORY_ENCRYPT_OP)


class Telling:
    """One process's words."""

    def __init__(self, settings: Settings) -> None:
        self._quiet = settings.quiet
        self._dialect = Dialect(settings.dialect)
        self._said: set[str] = set()

    def emit(self, event: Event) -> None:
        """An event of the trace."""

    def forked(self) -> None:
        """A child: its trace is another."""

    def finish(self) -> None:
        """The process exits."""

    def refused(self, request: int, argument: int, number: int, reason: str) -> None:
        """An ioctl failed."""
        if self._quiet or number in _ROUTINE or request in _QUESTIONS:
            return
        name = self._command(argument) if request == _ENCRYPT_OP else ioctl_name(request)
        self.say(f"{name}: {errno_name(number)}: {reason or os.strerror(number)}")

    def failed(self, what: str, error: BaseException) -> None:
        """A fault of swtdx's own."""
        lines = "".join(traceback.format_exception(error))
        self.say(f"{what}: internal error: {error!r}\n{lines.rstrip()}", always=True)

    def say(self, text: str, *, always: bool = False) -> None:
        """One sentence, the first time."""
        if (self._quiet and not always) or text in self._said or len(self._said) >= _MOST_SENTENCES:
            return
        self._said.add(text)
        if len(self._said) == _MOST_SENTENCES:
            text += "; further failures are not reported (--trace keeps all)"
        try:
            os.write(_STDERR, f"swtdx: {text}\n".encode("utf-8", "replace"))
        except OSError:  # nobody listens
            return

    def _command(self, argument: int) -> str:
        """Of KVM_MEMORY_ENCRYPT_OP the command, which is the first word of its argument."""
        from swtdx.linux.uaccess import get_user

        try:
            return f"KVM_TDX_{TdxCommand(get_user(argument, 4)).name}"
        except (OSError, ValueError):
            return "KVM_MEMORY_ENCRYPT_OP"
