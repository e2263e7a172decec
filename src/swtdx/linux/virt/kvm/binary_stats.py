# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics of VMs and vCPUs, and KVM_GET_STATS_FD (virt/kvm/binary_stats.c; Documentation/virt/kvm/api.rst, 4.133).

The descriptor reads as a file: header, id, one description for each statistic, and the values, 64 bits each. Names and
meanings are the kernel's; what it counts and this kernel has nothing of (shadow paging, halt polling, nesting) is not
described. The file is memory: counters live in it from the moment it is opened, so that a reader of the
descriptor sees them as they are.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.files import File, seal, show_file
from swtdx.uapi.kvm import (
    KVM_STATS_TYPE_CUMULATIVE,
    KVM_STATS_TYPE_INSTANT,
    KVM_STATS_TYPE_LOG_HIST,
    KVM_STATS_UNIT_BOOLEAN,
    KVM_STATS_UNIT_NONE,
    KVM_STATS_UNIT_SECONDS,
    kvm_stats_desc,
    kvm_stats_header,
)

if TYPE_CHECKING:
    from swtdx.linux.files import FileTable

NAME_SIZE = 48
HIST_BUCKETS = 32


@dataclass(frozen=True)
class Statistic:
    """One description (struct kvm_stats_desc). ``size``: how many 64-bit values."""

    name: str
    kind: int = KVM_STATS_TYPE_CUMULATIVE
    unit: int = KVM_STATS_UNIT_NONE
    exponent: int = 0
    size: int = 1


def _nanoseconds(name: str) -> Statistic:
    return Statistic(name, unit=KVM_STATS_UNIT_SECONDS, exponent=-9)


VM_STATISTICS = (
    Statistic("remote_tlb_flush"),
    Statistic("remote_tlb_flush_requests"),
    Statistic("pages_4k", KVM_STATS_TYPE_INSTANT),
    Statistic("pages_2m", KVM_STATS_TYPE_INSTANT),
    Statistic("pages_1g", KVM_STATS_TYPE_INSTANT),
)
VCPU_STATISTICS = (
    Statistic("halt_wakeup"),
    _nanoseconds("halt_wait_ns"),
    Statistic("halt_wait_hist", KVM_STATS_TYPE_LOG_HIST, KVM_STATS_UNIT_SECONDS, -9, HIST_BUCKETS),
    Statistic("blocking", KVM_STATS_TYPE_INSTANT, KVM_STATS_UNIT_BOOLEAN),
    *map(Statistic, ("pf_taken", "pf_fixed", "pf_emulate")),
    *map(Statistic, ("exits", "io_exits", "mmio_exits", "signal_exits", "irq_window_exits", "nmi_window_exits")),
    *map(Statistic, ("halt_exits", "request_irq_exits", "irq_exits", "host_state_reload")),
    *map(Statistic, ("insn_emulation", "insn_emulation_fail", "hypercalls", "irq_injections", "nmi_injections")),
)


def _positions(statistics: tuple[Statistic, ...]) -> dict[str, int]:
    positions, at = {}, 0
    for statistic in statistics:
        positions[statistic.name] = at
        at += statistic.size
    return positions


_VM, _VCPU = _positions(VM_STATISTICS), _positions(VCPU_STATISTICS)
REMOTE_TLB_FLUSH, REMOTE_TLB_FLUSH_REQUESTS = _VM["remote_tlb_flush"], _VM["remote_tlb_flush_requests"]
PAGES_4K, PAGES_2M = _VM["pages_4k"], _VM["pages_2m"]
HALT_WAKEUP, HALT_WAIT_NS, HALT_WAIT_HIST = _VCPU["halt_wakeup"], _VCPU["halt_wait_ns"], _VCPU["halt_wait_hist"]
BLOCKING, HALT_EXITS, HOST_STATE_RELOAD = _VCPU["blocking"], _VCPU["halt_exits"], _VCPU["host_state_reload"]
PF_TAKEN, PF_FIXED, PF_EMULATE = _VCPU["pf_taken"], _VCPU["pf_fixed"], _VCPU["pf_emulate"]
EXITS, IO_EXITS, MMIO_EXITS, SIGNAL_EXITS = (
    _VCPU["exits"], _VCPU["io_exits"], _VCPU["mmio_exits"], _VCPU["signal_exits"],
)  # fmt: skip
IRQ_WINDOW_EXITS, NMI_WINDOW_EXITS = _VCPU["irq_window_exits"], _VCPU["nmi_window_exits"]
REQUEST_IRQ_EXITS, IRQ_EXITS, HYPERCALLS = _VCPU["request_irq_exits"], _VCPU["irq_exits"], _VCPU["hypercalls"]
INSN_EMULATION, INSN_EMULATION_FAIL = _VCPU["insn_emulation"], _VCPU["insn_emulation_fail"]
IRQ_INJECTIONS, NMI_INJECTIONS = _VCPU["irq_injections"], _VCPU["nmi_injections"]


class Statistics:
    """The values of one VM or vCPU: ``values[POSITION] += 1``. ``id``: which it is, at most 47 characters."""

    def __init__(self, id_: str, statistics: tuple[Statistic, ...]) -> None:
        self._id = id_
        self._statistics = statistics
        self._count = sum(statistic.size for statistic in statistics)
        self.values = memoryview(array("Q", bytes(8 * self._count)))
        self._file: StatsFile | None = None

    def log_hist(self, position: int, value: int) -> None:
        """Count ``value`` in the histogram at ``position``: bucket n is for 2^(n-1) and what is below 2^n."""
        self.values[position + min(value.bit_length(), HIST_BUCKETS - 1)] += 1

    def _head(self) -> bytes:
        """Return all that comes before the values."""
        stride = ctypes.sizeof(kvm_stats_desc) + NAME_SIZE
        at = ctypes.sizeof(kvm_stats_header)
        header = kvm_stats_header(
            name_size=NAME_SIZE,
            num_desc=len(self._statistics),
            id_offset=at,
            desc_offset=at + NAME_SIZE,
            data_offset=at + NAME_SIZE + stride * len(self._statistics),
        )
        parts, offset = [bytes(header), self._id.encode().ljust(NAME_SIZE, b"\0")], 0
        for statistic in self._statistics:
            flags = statistic.kind | statistic.unit
            parts.append(struct.pack("<IhHII", flags, statistic.exponent, statistic.size, offset, 0))
            parts.append(statistic.name.encode().ljust(NAME_SIZE, b"\0"))
            offset += 8 * statistic.size
        return b"".join(parts)

    def open(self, files: FileTable, name: str, get: Callable[[], None], put: Callable[[], None]) -> int:
        """Return a new descriptor, read-only.

        ``get`` and ``put`` keep the VM while one is open. Raises OSError(EMFILE).
        """
        if self._file is not None and (fd := files.open_again(self._file)) >= 0:
            return fd
        head = self._head()
        file = StatsFile(self, name, put)
        memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(memory, 0o666)  # not a program
        try:
            os.truncate(memory, len(head) + 8 * self._count)
            os.pwrite(memory, head, 0)
            seal(memory)
            fd = files.install(file, os.open(f"/proc/thread-self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC))
            try:
                mapping = mmap.mmap(-1, len(head) + 8 * self._count)
                show_file(mapping, memory)
                values = memoryview(mapping)[len(head) :].cast("Q")
            except OSError:
                file.put = lambda: None
                files.close(fd)
                raise
        finally:
            os.close(memory)
        values[:] = self.values
        self.values = values
        self._file = file
        get()
        return fd

    def closed(self, file: StatsFile) -> None:
        """No descriptor of ``file`` is left: the counters move back."""
        if self._file is file:
            self.values = memoryview(array("Q", self.values.tolist()))
            self._file = None


class StatsFile(File):
    """An open statistics descriptor, and all others of the same VM or vCPU."""

    def __init__(self, statistics: Statistics, name: str, put: Callable[[], None]) -> None:
        super().__init__()
        self.name = name
        self.put = put
        self._statistics = statistics

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        raise err(errno.EBADF, f"{self.name} is open for reading only")

    def release(self) -> None:
        self._statistics.closed(self)
        self.put()
