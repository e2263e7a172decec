# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug SEAMCALLs on a TD with ATTRIBUTES.DEBUG: TDH.MEM.RD and WR, TDH.VP.RD and WR.

No kernel so far lets user space at them: upstream's KVM does not even offer the attribute (KVM_SUPPORTED_TD_ATTRS), and
refuses KVM_GET_REGS and its like for any TD.  Here they are a door beside the system calls, for a debugger.  It checks
nothing itself: of a production TD it is the TDX module that refuses.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.vmx.tdx import to_kvm_tdx

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm

TDX_STATUS_MASK = 0xFFFFFFFF_00000000
_WHY = {
    0xC0000605_00000000: "TD_NON_DEBUG: the TD has not been given ATTRIBUTES.DEBUG",
    0xC0000C01_00000000: "METADATA_FIELD_NOT_WRITABLE: not by the host of this TD",
    0xC0000C02_00000000: "METADATA_FIELD_NOT_READABLE: not to the host of this TD",
}


class TdxDebugError(OSError):
    """A SEAMCALL failed: EIO with its ``status``, or EACCES where the module refuses access."""

    def __init__(self, leaf: str, status: int) -> None:
        why = _WHY.get(status & TDX_STATUS_MASK)
        super().__init__(errno.EACCES if why else errno.EIO, f"{leaf}: {status:#x}{f' ({why})' if why else ''}")
        self.status = status


class TdxDebug:
    """The door to one TD. ``vcpus`` by file descriptor."""

    def __init__(self, kvm: Kvm, vcpu_of: dict[int, Vcpu]) -> None:
        self._kvm = kvm
        self._vcpu_of = vcpu_of

    def mem_rd(self, gpa: int) -> int:
        """8 bytes of private memory. Raises TdxDebugError."""
        td = to_kvm_tdx(self._kvm)
        status, value = td.host.seamcall.tdh_mem_rd(td.tdr, gpa)
        if status:
            raise TdxDebugError("TDH.MEM.RD", status)
        return value

    def mem_wr(self, gpa: int, value: int) -> None:
        """Raises TdxDebugError."""
        td = to_kvm_tdx(self._kvm)
        status = td.host.seamcall.tdh_mem_wr(td.tdr, gpa, value)
        if status:
            raise TdxDebugError("TDH.MEM.WR", status)

    def vp_rd(self, vcpu_fd: int, field: int) -> int:
        """Return a field of a vCPU, by its metadata identifier. Raises TdxDebugError, OSError(EBADF)."""
        vcpu, cpu = self._on_its_cpu(vcpu_fd)
        status, value = to_kvm_tdx(self._kvm).host.seamcall.tdh_vp_rd(vcpu.tdx.tdvpr, field, cpu)
        if status:
            raise TdxDebugError(f"TDH.VP.RD of {field:#x}", status)
        return value

    def vp_wr(self, vcpu_fd: int, field: int, value: int, mask: int) -> None:
        """Raises TdxDebugError, OSError(EBADF)."""
        vcpu, cpu = self._on_its_cpu(vcpu_fd)
        status = to_kvm_tdx(self._kvm).host.seamcall.tdh_vp_wr(vcpu.tdx.tdvpr, field, value, mask, cpu)
        if status:
            raise TdxDebugError(f"TDH.VP.WR of {field:#x}", status)

    def _on_its_cpu(self, vcpu_fd: int) -> tuple[Vcpu, int]:
        """The vCPU, and the CPU on which alone the module talks about it; it is associated with that from now on."""
        vcpu = self._vcpu_of.get(vcpu_fd)
        if vcpu is None or not vcpu.tdx.initialized:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if vcpu.tdx.associated_cpu < 0:
            vcpu.tdx.associated_cpu = vcpu.cpu
        return vcpu, vcpu.tdx.associated_cpu
