# SPDX-License-Identifier: GPL-2.0-or-later
"""When a timer of a TD's expires, where KVM could not read the TD's TSC_OFFSET or TSC_MULTIPLIER.

td_tdcs_exec_read64 returns 0 for a field that it cannot read, and KVM_TDX_INIT_VM succeeds. From both KVM computes the
guest's TSC (kvm_read_l1_tsc: the host's, times the multiplier, plus the offset), and from that how far a deadline is
(start_sw_tscdeadline, which compares as unsigned). Without the offset it is the host's own time, without the multiplier
the offset alone, a negative number. Both are later than the guest's deadline: it expires at once.
"""

from __future__ import annotations

import pytest

from swtdx.linux.arch.x86.kvm.lapic import LVTT, TIMER_TSCDEADLINE
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from testing.td import close, fresh_td

VECTOR = 0x41


@pytest.mark.parametrize(
    ("inject", "at_once"),
    [((), False), (("TDH.MNG.RD: TD_FATAL @1",), True), (("TDH.MNG.RD: TD_FATAL @2",), True)],
    ids=["read", "no offset", "no multiplier"],
)
def test_a_deadline_of_a_td_whose_tsc_kvm_does_not_know_has_passed(
    inject: tuple[str, ...], at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = boot(inject=inject)
    expired: list[bool] = []
    try:
        with Kvm(kernel) as device:
            vm, vcpu, memfd = fresh_td(device, 1 << 20)
            try:
                (kvm,) = kernel.vms
                (inner,) = kvm.vcpus
                (td,) = kernel.module.tds.values()
                apic = inner.apic
                assert apic is not None
                monkeypatch.setattr(apic, "apic_timer_fn", lambda: expired.append(True))
                apic._set(LVTT, TIMER_TSCDEADLINE | VECTOR)
                now = (kernel.processor.rdtsc() * td.tsc_multiplier >> 48) + td.tsc_offset & (1 << 64) - 1
                apic.set_tsc_deadline(now + 500 * inner.virtual_tsc_khz)  # in half a second
                assert expired == [True] * at_once
                apic.lapic_timer.cancel()
            finally:
                close(vm, vcpu, memfd)
    finally:
        kernel.shutdown()
