# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a program's ioctls fail, on standard error, as they fail.

Not everything that fails is worth a word: programs try sizes (E2BIG), ask whether something exists, are interrupted.
A sentence is printed once in a process, however often its ioctl is repeated, also with other addresses.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from typing import TYPE_CHECKING

from swtdx.exec.settings import Settings
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.kvm import KVM_HAS_DEVICE_ATTR, KVM_KVMCLOCK_CTRL, KVM_MEMORY_ENCRYPT_OP, ioctl_name
from swtdx.uapi.release import KernelRelease

if TYPE_CHECKING:
    from swtdx.machine import MachineKernel

_STDERR = 2
_NUMBER = re.compile(r"\b(?:0x[0-9a-fA-F]+|\d+)\b")
_MOST_SENTENCES = 100
_ROUTINE = {errno.E2BIG, errno.EINTR, errno.EAGAIN}
_QUESTIONS = {int(KVM_HAS_DEVICE_ATTR), int(KVM_KVMCLOCK_CTRL)}
"""KVM_KVMCLOCK_CTRL: QEMU makes it of every vCPU that stops; EINVAL is a guest without kvmclock."""
_ENCRYPT_OP = int(KVM_MEMORY_ENCRYPT_OP)
_VGA_MEMORY = re.compile(r"private access to gfn 0x[ab][0-9a-f], where there is no slot")
_NO_VGA = "a VGA device has these addresses, and the TD takes them for memory: start it without one (QEMU: -vga none)"


class Telling:
    """One process's words."""

    def __init__(self, settings: Settings) -> None:
        self._quiet = settings.quiet
        self._dialect = Dialect(KernelRelease(settings.kernel_release).dialect_name)
        self._said: set[str] = set()

    def refused(self, request: int, argument: int, number: int, reason: str) -> tuple[str, str, str] | None:
        """An ioctl failed: report it, and return its name, errno and reason; None if that is routine."""
        if number in _ROUTINE or request in _QUESTIONS:
            return None
        if _VGA_MEMORY.fullmatch(reason):
            reason = f"{reason}: {_NO_VGA}"
        name = self._command(argument) if request == _ENCRYPT_OP else ioctl_name(request)
        facts = name, errno_name(number), reason or os.strerror(number)
        self.say(": ".join(facts))
        return facts

    def failed(self, what: str, error: BaseException) -> None:
        """A fault of swtdx's own."""
        lines = "".join(traceback.format_exception(error))
        self.say(f"{what}: internal error: {error!r}\n{lines.rstrip()}", always=True)

    def say(self, text: str, *, always: bool = False) -> None:
        """Print one sentence, unless it was printed before with other numbers in it."""
        shape = _NUMBER.sub("#", text)
        if (self._quiet and not always) or shape in self._said or len(self._said) >= _MOST_SENTENCES:
            return
        self._said.add(shape)
        if len(self._said) == _MOST_SENTENCES:
            text += "; further failures are not reported (swtdx exec --trace FILE keeps all)"
        try:
            os.write(_STDERR, f"swtdx: {text}\n".encode("utf-8", "replace"))
        except OSError:  # the reader is gone
            return

    def injected(self, machine: MachineKernel) -> None:
        """Print how often each fault that was asked for has struck."""
        for each in machine.injections():
            self.say(f"injected {each['text']}")

    def _command(self, argument: int) -> str:
        """Of KVM_MEMORY_ENCRYPT_OP the command, which is the first word of its argument."""
        from swtdx.linux.uaccess import get_user

        try:
            return f"KVM_TDX_{TdxCommand(get_user(argument, 4)).name}"
        except (OSError, ValueError):
            return "KVM_MEMORY_ENCRYPT_OP"
