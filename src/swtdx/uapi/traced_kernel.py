# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-call line, traced: a kernel that passes every call on to another one and reports it.

Works on either kernel, since it knows only what crosses the line: the request number, the structure behind the pointer
before and after the call, and the page that a vCPU shares.  Structures are read as the kernel reads them, so that a
wild pointer is shown as one and does no harm.  Without a trace the kernel itself is used.
"""

from __future__ import annotations

import ctypes
import mmap as _mmap
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns
from typing import Any

from swtdx.trace.event import Count, Data, Emit, Ioctl, Syscall
from swtdx.uapi import kvm
from swtdx.uapi.abilities import stated_dialect
from swtdx.uapi.capability import Cap
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.ioctl import IOC_READ, IOC_WRITE
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.kvm import Exit, ioctl_name, kvm_run
from swtdx.uapi.layout import u32

_REQUESTS = {int(request): request for request in kvm.REQUESTS.values()}
_RUN, _ENCRYPT_OP = int(kvm.KVM_RUN), int(kvm.KVM_MEMORY_ENCRYPT_OP)
_NAMED_ARGUMENT = {
    int(kvm.KVM_CREATE_VM): "type",
    int(kvm.KVM_CREATE_VCPU): "id",
    int(kvm.KVM_CHECK_EXTENSION): "capability",
}
# In the structures these are addresses only for the kernel's eyes, or nothing at all.
_DULL = ("reserved", "pad", "padding", "unused", "dummy")
_SHOWN_ELEMENTS = 8
_UNION = kvm_run.exit.offset
_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<Q8sIB")
_DATA_OF_INIT = {
    TdxCommand.CAPABILITIES: "capabilities",
    TdxCommand.INIT_VM: "init_vm",
    TdxCommand.INIT_MEM_REGION: "init_mem_region",
}
# kvm_run's members for the exits that come seldom, and what of each is shown.
_EXIT_MEMBERS: dict[int, tuple[str, tuple[str, ...]]] = {
    Exit.FAIL_ENTRY: ("fail_entry", ("hardware_entry_failure_reason", "cpu")),
    Exit.EXCEPTION: ("ex", ("exception", "error_code")),
    Exit.HYPERCALL: ("hypercall", ("nr", "args", "ret")),
    Exit.INTERNAL_ERROR: ("internal", ("suberror", "data")),
    Exit.SYSTEM_EVENT: ("system_event", ("type", "data")),
    Exit.IOAPIC_EOI: ("eoi", ("vector",)),
    Exit.X86_RDMSR: ("msr", ("index", "reason")),
    Exit.X86_WRMSR: ("msr", ("index", "data", "reason")),
    Exit.MEMORY_FAULT: ("memory_fault", ("flags", "gpa", "size")),
    Exit.TDX: ("tdx", ("nr",)),
}


Read = Callable[[int, int], bytes]
"""(address, length) -> what the caller of the kernel has there."""
Page = Callable[[int], _mmap.mmap | None]
"""The page that the vCPU of a descriptor shares, if there is one."""


class TracedKernel:
    """A kernel that passes each system call to ``kernel`` and an event about it to ``emit``.

    Other attributes are those of ``kernel``, for a script that knows which kernel it traces. Code that works with
    any kernel asks `swtdx.uapi.abilities`.

    A front end whose callers are other programs says how their memory is read (OSError if it cannot be) and where the
    page of a vCPU's descriptor is; otherwise they are this process's.
    """

    def __init__(self, kernel: Kernel, emit: Emit, read: Read | None = None, page: Page | None = None) -> None:
        self.name = kernel.name
        self.wrapped = kernel
        self._emit = emit
        self._dialect: Dialect = stated_dialect(kernel) or Dialect.UPSTREAM
        self._labels: dict[int, str] = {}
        self._pages: dict[int, _mmap.mmap] = {}
        self._page = page or self._pages.get
        self._memory = -1
        if read is None:
            self._memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
            read = self._own_memory
        self._octets = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __del__(self) -> None:
        if self._memory >= 0:
            with suppress(OSError):
                os.close(self._memory)

    def _own_memory(self, address: int, length: int) -> bytes:
        return os.pread(self._memory, length, address)

    # --- Calls --------------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDWR | os.O_CLOEXEC) -> int:
        """open(2)."""
        fd = int(self._told("open", path, {"path": path}, self.wrapped.open, path, flags))
        self._labels[fd] = path
        return fd

    def mmap(self, fd: int, length: int, offset: int = 0) -> _mmap.mmap:
        """mmap(2)."""
        given = {"length": length, "offset": offset}
        page: _mmap.mmap = self._told("mmap", self._label(fd), given, self.wrapped.mmap, fd, length, offset)
        self._pages[fd] = page
        return page

    def close(self, fd: int) -> None:
        """close(2)."""
        label = self._labels.pop(fd, f"fd {fd}")
        self._pages.pop(fd, None)
        self._told("close", label, {}, self.wrapped.close, fd)

    def eventfd(self, initval: int = 0, flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
        """eventfd(2)."""
        fd = int(self._told("eventfd", "", {}, self.wrapped.eventfd, initval, flags))
        self._labels[fd] = "eventfd"
        return fd

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        given = {"mode": mode, "offset": offset, "length": length}
        self._told("fallocate", self._label(fd), given, self.wrapped.fallocate, fd, mode, offset, length)

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """ioctl(2), with its argument before and after."""
        args = self._before(request, arg)
        number: int | None = None
        result = 0
        began = perf_counter_ns()
        try:
            result = self.wrapped.ioctl(fd, request, arg)
        except OSError as error:
            number = error.errno
            raise
        finally:
            ended = perf_counter_ns()
            tid = threading.get_native_id()
            event = Ioctl(ioctl_name(request), began, ended - began, tid, args, self._label(fd))
            if number is None:
                event.result = result
                self._learn(fd, request, arg, result)
            else:
                event.errno = errno_name(number)
            event.out = self._after(fd, request, arg, args, number is None)
            self._emit(event)
        return result

    def _told(self, name: str, on: str, args: dict[str, Any], call: Callable[..., Any], *operands: object) -> Any:
        event = Syscall(name, 0, 0, threading.get_native_id(), args, on)
        event.t = began = perf_counter_ns()
        try:
            result = call(*operands)
        except OSError as error:
            event.errno = errno_name(error.errno or 0)
            raise
        else:
            if isinstance(result, int):
                event.result = result
            return result
        finally:
            event.dur = perf_counter_ns() - began
            self._emit(event)

    # --- Arguments ----------------------------------------------------------------------------------------------------

    def _label(self, fd: int) -> str:
        return self._labels.get(fd) or f"fd {fd}"

    def _learn(self, fd: int, request: int, arg: int, result: int) -> None:
        """Descriptors are known by what they are."""
        if request == kvm.KVM_CREATE_VM:
            self._labels[result] = "VM"
        elif request == kvm.KVM_CREATE_VCPU:
            self._labels[result] = f"vCPU {arg}"
        elif request == kvm.KVM_CREATE_GUEST_MEMFD:
            self._labels[result] = "guest_memfd"

    def _before(self, request: int, arg: int) -> dict[str, Any]:
        known = _REQUESTS.get(request & 0xFFFFFFFF)
        if request == _ENCRYPT_OP:
            return self._tdx_command(arg)
        if known is None or known.argument is None:
            name = _NAMED_ARGUMENT.get(request)
            if name == "capability":
                return {name: _capability(arg)}
            return {name or "arg": arg} if arg or name else {}
        if known.direction & IOC_WRITE:
            return self._structure(known.argument, arg)
        return {}

    def _after(self, fd: int, request: int, arg: int, args: dict[str, Any], succeeded: bool) -> dict[str, Any]:
        if request == _RUN:
            return self._exit(fd)
        known = _REQUESTS.get(request & 0xFFFFFFFF)
        if request == _ENCRYPT_OP:
            command = self._read(self._dialect.cmd, arg)
            if command is None:
                return {}
            out: dict[str, Any] = {"hw_error": getattr(command, self._dialect.hw_error_member)}
            if succeeded and args.get("command") in ("KVM_TDX_CAPABILITIES", "KVM_TDX_INIT_MEM_REGION"):
                out["data"] = self._tdx_data(command)
            return out
        if succeeded and known is not None and known.argument is not None and known.direction & IOC_READ:
            after = self._structure(known.argument, arg)
            return {name: value for name, value in after.items() if args.get(name) != value}
        return {}

    def _tdx_command(self, address: int) -> dict[str, Any]:
        command = self._read(self._dialect.cmd, address)
        if command is None:
            return {"arg": f"{address:#x} (not readable)"}
        try:
            name = f"KVM_TDX_{TdxCommand(command.id).name}"
        except ValueError:
            name = f"{command.id:#x}"
        given: dict[str, Any] = {"command": name, "flags": command.flags}
        given["data"] = self._tdx_data(command)
        return given

    def _tdx_data(self, command: Any) -> Any:
        member = _DATA_OF_INIT.get(command.id)
        if member is None or (command.id == TdxCommand.CAPABILITIES and not command.data):
            return command.data
        return self._structure(getattr(self._dialect, member), command.data)

    def _structure(self, layout: Any, address: int) -> dict[str, Any]:
        value = self._read(layout, address)
        if value is None:
            return {"arg": f"{address:#x} (not readable)"}
        return _shown(value) if isinstance(value, ctypes.Structure) else {"value": value.value}

    def _read(self, layout: Any, address: int) -> Any:
        """What stands at an address of the caller's; None where it cannot be read."""
        try:
            return layout.from_buffer_copy(self._octets(address, ctypes.sizeof(layout)))
        except (OSError, ValueError, OverflowError):
            return None

    def _exit(self, fd: int) -> dict[str, Any]:
        """Why KVM_RUN came back, from the shared page."""
        page = self._page(fd)
        if page is None or page.closed:
            return {}
        (reason,) = struct.unpack_from("<I", page, kvm_run.exit_reason.offset)
        if reason == Exit.IO:
            direction, size, port, count, offset = _IO.unpack_from(page, _UNION)
            found: dict[str, Any] = {"exit": "IO", "direction": "out" if direction else "in", "port": port}
            found["size"] = Count(size)
            if count != 1:
                found["count"] = Count(count)
            if direction:
                found["data"] = Data(page[offset : offset + size])
            return found
        if reason == Exit.MMIO:
            gpa, data, length, is_write = _MMIO.unpack_from(page, _UNION)
            found = {"exit": "MMIO", "direction": "write" if is_write else "read", "gpa": gpa, "size": Count(length)}
            if is_write:
                found["data"] = Data(data[:length])
            return found
        try:
            found = {"exit": Exit(reason).name}
        except ValueError:
            return {"exit": str(reason)}
        if reason in _EXIT_MEMBERS:
            member, fields = _EXIT_MEMBERS[reason]
            shown = getattr(kvm_run.from_buffer_copy(page[: ctypes.sizeof(kvm_run)]), member)
            found |= {name: _value(getattr(shown, name)) for name in fields}
        return found


def _capability(number: int) -> str | int:
    try:
        return f"KVM_CAP_{Cap(number).name}"
    except ValueError:
        return number


def _shown(structure: ctypes.Structure) -> dict[str, Any]:
    """A structure's members, without padding and the contents of unions; a flexible array is left out."""
    found: dict[str, Any] = {}
    for entry in structure._fields_:
        name, layout = entry[0], entry[1]
        if name.lower().startswith(_DULL) or issubclass(layout, ctypes.Union):
            continue
        value = getattr(structure, name)
        if isinstance(value, ctypes.Structure):
            found[name] = _shown(value)
        elif not (isinstance(value, ctypes.Array) and not len(value)):
            found[name] = _value(value)
    return found


def _value(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, ctypes.Array) and not issubclass(value._type_, ctypes.Structure):
        if value._type_ is u32 or ctypes.sizeof(value._type_) > 1:
            return list(value)[:_SHOWN_ELEMENTS]
        return bytes(value)[:32]
    return str(type(value).__name__)
