# SPDX-License-Identifier: GPL-2.0-or-later
"""Asynchronous page faults (virt/kvm/async_pf.c; kvm_pv_enable_async_pf and kvm_arch_async_page_present of x86.c).

KVM tells a guest of a page that the host does not have at hand, and when it is there. Here it always is, and no guest
ever waits. But KVM also wakes all that may wait, with the token FFFFFFFFH, each time a guest or user space names the
guest's memory for this: a guest that came from another host may have left tasks waiting there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.irq_comm import APIC_DM_FIXED
from swtdx.linux.arch.x86.kvm.x86.msrs import (
    ASYNC_PF_AS_INT,
    ASYNC_PF_ENABLED,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
)
from swtdx.uapi.kvm import KVM_MP_STATE_RUNNABLE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_BOTH = ASYNC_PF_ENABLED | ASYNC_PF_AS_INT
_TOKEN, _TOKEN_SIZE = 4, 4  # in struct kvm_vcpu_pv_apf_data
_WAKE_ALL = b"\xff" * _TOKEN_SIZE


class AsyncPf:
    """What a vCPU's guest is still to be told."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.wakes_all = False
        """Whether the event is there (vcpu->async_pf.done)."""
        self.requested = False
        """Whether to look at it before the next entry (KVM_REQ_APF_READY); once it could not be told, it is not."""

    @property
    def enabled(self) -> bool:
        """Whether the guest takes events (kvm_pv_async_pf_enabled)."""
        return bool(self._vcpu.msrs.values[MSR_KVM_ASYNC_PF_EN] & _BOTH == _BOTH)

    def set(self, *, host: bool) -> None:
        """MSR_KVM_ASYNC_PF_EN is written. What user space causes waits for KVM_RUN."""
        self.wakes_all = self.requested = self.enabled
        if not host:
            self.check_completion()

    def check_completion(self) -> None:
        """Tell the guest, if its local APIC is enabled and the last token read (kvm_check_async_pf_completion)."""
        vcpu, apic = self._vcpu, self._vcpu.apic
        self.requested = False
        if not self.wakes_all or apic is None or not (apic.enabled and apic.sw_enabled):
            return
        address = vcpu.msrs.values[MSR_KVM_ASYNC_PF_EN] & ~0x3F
        try:
            if any(vcpu.kvm.read_guest(address + _TOKEN, _TOKEN_SIZE)):
                return
            self.wakes_all = False
            vcpu.kvm.write_guest(address + _TOKEN, _WAKE_ALL)
        except OSError:
            return  # there is no memory to write to
        apic.accept_irq(APIC_DM_FIXED, vcpu.msrs.values[MSR_KVM_ASYNC_PF_INT], False)
        vcpu.kvm_set_mp_state(KVM_MP_STATE_RUNNABLE)
