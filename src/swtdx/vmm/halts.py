# SPDX-License-Identifier: GPL-2.0-or-later
"""How often the vCPUs of a machine have halted, by KVM's binary statistics (Documentation/virt/kvm/api.rst, 4.133).

KVM keeps a halted vCPU to itself, so that KVM_RUN does not return for it; the statistics are where it shows.

KVM_GET_STATS_FD takes the vCPU's mutex, as every vCPU ioctl, and KVM_RUN holds that while the guest computes. So the
descriptors are opened before the vCPUs run; reading them takes no lock.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from swtdx.uapi.client import KvmError, Vcpu, Vm
from swtdx.uapi.kvm import Cap, kvm_stats_desc, kvm_stats_header

_NAME = b"halt_exits"
_VALUE_BYTES = 8


class HaltCounter:
    """``total`` of all vCPUs; always 0 on a kernel without statistics.

    Make it before the vCPUs run, and close it before the vCPUs.
    """

    def __init__(self, vm: Vm, vcpus: Sequence[Vcpu]) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._files = self._open()  # descriptor, offset of the value

    def total(self) -> int:
        """How many halts there were since the vCPUs were made."""
        return sum(int.from_bytes(os.pread(file, _VALUE_BYTES, at), "little") for file, at in self._files)

    def _open(self) -> list[tuple[int, int]]:
        files: list[tuple[int, int]] = []
        if not self._vm.check_extension(Cap.BINARY_STATS_FD):
            return files
        for vcpu in self._vcpus:
            try:
                file = vcpu.stats_fd()
            except KvmError:
                return files
            at = _offset_of(file, _NAME)
            if at is None:
                vcpu.kernel.close(file)
            else:
                files.append((file, at))
        return files

    def close(self) -> None:
        """Close the descriptors."""
        for vcpu, (file, _) in zip(self._vcpus, self._files, strict=False):
            vcpu.kernel.close(file)
        self._files = []


def _offset_of(file: int, name: bytes) -> int | None:
    """Where in the file the value of that name is."""
    try:
        header = kvm_stats_header.from_buffer_copy(os.pread(file, ctypes.sizeof(kvm_stats_header), 0))
        stride = ctypes.sizeof(kvm_stats_desc) + header.name_size
        table = os.pread(file, stride * header.num_desc, header.desc_offset)
    except (OSError, ValueError):
        return None
    for start in range(0, len(table), stride):
        described = kvm_stats_desc.from_buffer_copy(table, start)
        if table[start + ctypes.sizeof(kvm_stats_desc) : start + stride].rstrip(b"\0") == name:
            return int(header.data_offset + described.offset)
    return None
