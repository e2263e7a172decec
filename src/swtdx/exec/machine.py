# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that a program under ``swtdx exec`` finds itself on.

A VMM executes CPUID itself and compares it with what KVM says: family and model (``-cpu host``), the offsets of XSAVE's
areas. The emulated processor therefore takes both from the machine's own processor. Its memory is large and sparse and
its logical processors are many, since it is the VMM that says how much of them a guest gets.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.cpu import _engine
from swtdx.cpu.platform import PKRU_OFFSET, Platform
from swtdx.exec.settings import Settings
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.uaccess import copy_from_user
from swtdx.machine import boot as power_on
from swtdx.trace.event import Emit
from swtdx.uapi.traced_kernel import TracedKernel

if TYPE_CHECKING:
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel

_SIGNATURE_MASK = 0x0FFF3FFF
_AMD = (b"AuthenticAMD", b"HygonGenuine")
_PKRU_COMPONENT, _PKRU_SIZE = 9, 8


def platform(settings: Settings) -> Platform:
    """Raises ValueError for a machine that cannot be."""
    pkru_offset = _host_pkru_offset()
    return Platform(
        memory_size=settings.memory,
        logical_processors=settings.processors,
        module_version=settings.module_version,
        cpu_features=None if settings.cpu_features is None else frozenset(settings.cpu_features),
        signature=_engine.host_cpuid(1)[0] & _SIGNATURE_MASK,
        vmmcall=_host_vendor() in _AMD,
        pkru_offset=pkru_offset or PKRU_OFFSET,
        pku=pkru_offset is not None,  # a VMM that finds no offset for it would offer it to guests at offset 0
        report_key=_report_key(settings.pki),
    )


def _report_key(folder: str) -> bytes | None:
    """The key of the machine that a quote generation service is on, too; another user may not read it."""
    if not folder:
        return None
    from swtdx.quoting.machine_folder import FolderError, report_key

    try:
        return report_key(Path(folder))
    except FolderError:
        return None


def _host_vendor() -> bytes:
    """The vendor that a VMM gives its guests (``-cpu host``). They choose between VMCALL and VMMCALL by it."""
    _, ebx, ecx, edx = _engine.host_cpuid(0)
    return struct.pack("<III", ebx, edx, ecx)


def _host_pkru_offset() -> int | None:
    """Return where the host's XSAVE keeps PKRU; None if the host has no PKRU."""
    highest = _engine.host_cpuid(0)[0]
    size, offset, _, _ = _engine.host_cpuid(0xD, _PKRU_COMPONENT) if highest >= 0xD else (0, 0, 0, 0)
    return offset if size == _PKRU_SIZE else None


def boot(settings: Settings, trace: Emit | None) -> tuple[MachineKernel, Kernel]:
    """Boot the machine. Return its kernel, and the same as calls reach it: watched, if there is a ``trace``."""
    machine = power_on(
        platform=platform(settings),
        kernel_release=settings.kernel_release,
        enable_tdx=settings.tdx,
        trace=trace,
        inject=settings.inject,
    )
    if trace is None:
        return machine, machine

    def page(fd: int) -> mmap.mmap | None:
        file = machine.files.by_fd.get(fd)
        return file.map if isinstance(file, VcpuFile) else None

    return machine, TracedKernel(machine, trace, copy_from_user, page)
