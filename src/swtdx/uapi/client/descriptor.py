# SPDX-License-Identifier: GPL-2.0-or-later
"""A file descriptor of KVM's, whichever kind: what /dev/kvm, a VM and a vCPU have in common."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable
from typing import Self, TypeVar

from swtdx.uapi import kvm
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import filled, u64, with_entries

S = TypeVar("S", bound=ctypes.Structure)

MAX_ENTRIES = 0x10000  # where `Descriptor.listed` stops believing E2BIG


class Descriptor:
    """Owns ``fd`` on ``kernel`` until `close`; a context manager. Every failing ioctl raises `KvmError`."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self.kernel = kernel
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor's number, for select() and the like."""
        return self.fd

    def close(self) -> None:
        """Close; a second time does nothing. What KVM keeps alive behind it (a VM whose vCPUs are open) stays alive."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.kernel.close(fd)

    def ioctl(self, request: int, arg: int = 0) -> int:
        """Any request, with an integer or an address; the typed methods are built on this.

        >>> kvm.ioctl(0xAE00)  # KVM_GET_API_VERSION
        12
        """
        try:
            return self.kernel.ioctl(self.fd, request, arg)
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, kvm.ioctl_name(request)) from None

    def put(self, request: int, argument: ctypes.Structure | u64) -> int:
        """A request whose argument is a pointer to ``argument``, which the kernel may also write."""
        return self.ioctl(request, ctypes.addressof(argument))

    def fetch(self, request: int, structure: type[S]) -> S:
        """A request that fills a structure."""
        answer = structure()
        self.put(request, answer)
        return answer

    def listed(self, request: int, structure: type[S], count_member: str, first: int = 16) -> S:
        """A request that fills as many entries as it finds room for, or says E2BIG: the room doubles until it fits."""
        count = first
        while True:
            answer: S = with_entries(structure, count)()
            setattr(answer, count_member, count)
            try:
                self.put(request, answer)
            except KvmError as error:
                if error.errno != errno.E2BIG or count >= MAX_ENTRIES:
                    raise
                count *= 2
            else:
                return answer

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if absent, otherwise 1 or what the capability defines (a count, a size, a mask).

        A VM may answer other values than /dev/kvm does.

        >>> kvm.check_extension(Cap.USER_MEMORY)
        1
        """
        return self.ioctl(kvm.KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> int:
        """KVM_ENABLE_CAP on a VM or a vCPU, with up to four 64-bit arguments.

        >>> vm.enable_cap(Cap.EXCEPTION_PAYLOAD, 1)
        0
        """
        request = kvm.kvm_enable_cap(cap=capability, flags=flags)
        for position, arg in enumerate(args):
            request.args[position] = arg
        return self.put(kvm.KVM_ENABLE_CAP, request)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS on a vCPU, or feature MSRs on /dev/kvm. Stops before the first MSR that KVM does not know.

        >>> vcpu.get_msrs([0xC0000080])  # EFER
        {3221225600: 0}
        """
        entries = [kvm.kvm_msr_entry(index=index) for index in indices]
        request = filled(kvm.kvm_msrs, entries, nmsrs=len(entries))
        done = self.put(kvm.KVM_GET_MSRS, request)
        return {entry.index: entry.data for entry in request.entries[:done]}

    def has_device_attr(self, group: int, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR: whether the attribute exists (ENXIO says no; other errors are raised).

        >>> vcpu.has_device_attr(99, 0)
        False
        """
        try:
            self.put(kvm.KVM_HAS_DEVICE_ATTR, kvm.kvm_device_attr(group=group, attr=attr))
        except KvmError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True

    def get_device_attr(self, group: int, attr: int) -> int:
        """KVM_GET_DEVICE_ATTR of a 64-bit attribute.

        >>> kvm.get_device_attr(0, 0) & 3  # KVM_X86_XCOMP_GUEST_SUPP: x87 and SSE
        3
        """
        value = u64()
        self.put(kvm.KVM_GET_DEVICE_ATTR, kvm.kvm_device_attr(group=group, attr=attr, addr=ctypes.addressof(value)))
        return value.value

    def set_device_attr(self, group: int, attr: int, value: int) -> None:
        """KVM_SET_DEVICE_ATTR of a 64-bit attribute.

        >>> vcpu.set_device_attr(0, 0, 0)  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
        """
        memory = u64(value)
        self.put(kvm.KVM_SET_DEVICE_ATTR, kvm.kvm_device_attr(group=group, attr=attr, addr=ctypes.addressof(memory)))

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ of a VM (the default of its vCPUs) or of a vCPU.

        >>> vcpu.get_tsc_khz() > 0
        True
        """
        return self.ioctl(kvm.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ; 0 means the host's frequency on a VM.

        >>> vcpu.set_tsc_khz(vcpu.get_tsc_khz())
        """
        self.ioctl(kvm.KVM_SET_TSC_KHZ, khz)

    def stats_fd(self) -> int:
        """KVM_GET_STATS_FD of a VM or a vCPU: a descriptor to read `kvm_stats_header` from; the caller closes it.

        >>> kvm.kernel.close(vm.stats_fd()) if kvm.check_extension(Cap.BINARY_STATS_FD) else None
        """
        return self.ioctl(kvm.KVM_GET_STATS_FD)
