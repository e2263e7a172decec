# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine-check registers of a vCPU and KVM_X86_SETUP_MCE, KVM_X86_SET_MCE (arch/x86/kvm/x86.c; SDM vol. 3, "MCA").

A bank is four MSRs: CTL, STATUS, ADDR, MISC. Nothing here ever fails by itself: user space injects errors, as a VMM
does that was told of one by its own kernel. An uncorrected error that needs no action interrupts through LVT CMCI,
where MCG_CAP has MCG_CMCI_P and the bank's IA32_MCi_CTL2 enables it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.lapic import LVTCMCI
from swtdx.linux.err import err
from swtdx.uapi.kvm import kvm_x86_mce
from swtdx.x86 import Msr

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

IA32_P5_MC_ADDR, IA32_P5_MC_TYPE = map(int, (Msr.P5_MC_ADDR, Msr.P5_MC_TYPE))
IA32_MCG_CAP, IA32_MCG_STATUS = map(int, (Msr.MCG_CAP, Msr.MCG_STATUS))
IA32_MCG_CTL, IA32_MCG_EXT_CTL = map(int, (Msr.MCG_CTL, Msr.MCG_EXT_CTL))
IA32_MC0_CTL2, IA32_MC0_CTL = map(int, (Msr.MC0_CTL2, Msr.MC0_CTL))
KVM_MAX_MCE_BANKS = 32
MCG_CTL_P, MCG_CMCI_P, MCG_SER_P, MCG_LMCE_P = 1 << 8, 1 << 10, 1 << 24, 1 << 27
MCG_CAP_SUPPORTED = MCG_CTL_P | MCG_CMCI_P | MCG_SER_P | MCG_LMCE_P
MCI_CTL2_CMCI_EN, MCI_CTL2_CMCI_THRESHOLD_MASK = 1 << 30, 0x7FFF
MCG_STATUS_MCIP = 1 << 2
MCG_EXT_CTL_LMCE_EN = 1 << 0
STATUS_VAL, STATUS_OVER, STATUS_UC, STATUS_PCC, STATUS_S, STATUS_AR = (
    1 << 63, 1 << 62, 1 << 61, 1 << 57, 1 << 56, 1 << 55,
)  # fmt: skip
_ALL_ONES = (1 << 64) - 1
_CTL, _STATUS = 0, 1  # then ADDR and MISC
MSRS = frozenset(
    [
        IA32_P5_MC_ADDR, IA32_P5_MC_TYPE, IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL, IA32_MCG_EXT_CTL,
        *range(IA32_MC0_CTL, IA32_MC0_CTL + 4 * KVM_MAX_MCE_BANKS),
        *range(IA32_MC0_CTL2, IA32_MC0_CTL2 + KVM_MAX_MCE_BANKS),
    ]
)  # fmt: skip
READ_ONLY = frozenset([IA32_P5_MC_ADDR, IA32_P5_MC_TYPE, IA32_MCG_CAP])
"""To write one is to write an MSR that KVM does not know."""


class MachineCheck:
    """A vCPU's registers. `read` and `write` answer None or False where the access is refused."""

    def __init__(self) -> None:
        self.mcg_cap = KVM_MAX_MCE_BANKS
        self.mcg_status = self.mcg_ctl = self.mcg_ext_ctl = 0
        self.banks = [0] * (4 * KVM_MAX_MCE_BANKS)
        self.ctl2 = [0] * KVM_MAX_MCE_BANKS

    @property
    def lmce(self) -> bool:
        """Whether MCG_CAP has local machine checks."""
        return bool(self.mcg_cap & MCG_LMCE_P)

    @property
    def cmci(self) -> bool:
        """Whether MCG_CAP has corrected-error interrupts."""
        return bool(self.mcg_cap & MCG_CMCI_P)

    def setup(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE. Raises OSError(EINVAL)."""
        count = mcg_cap & 0xFF
        if not count or count > KVM_MAX_MCE_BANKS or mcg_cap & ~(MCG_CAP_SUPPORTED | 0xFF | 0xFF0000):
            raise err(errno.EINVAL, f"mcg_cap {mcg_cap:#x}")
        self.mcg_cap = mcg_cap
        if mcg_cap & MCG_CTL_P:
            self.mcg_ctl = _ALL_ONES
        for bank in range(count):
            self.banks[4 * bank + _CTL] = _ALL_ONES
            self.ctl2[bank] = 0

    def read(self, index: int, *, host: bool) -> int | None:
        """``host``: user space reads, not the guest."""
        if index in (IA32_P5_MC_ADDR, IA32_P5_MC_TYPE):
            return 0
        if index == IA32_MCG_CAP:
            return self.mcg_cap
        if index == IA32_MCG_STATUS:
            return self.mcg_status
        if index == IA32_MCG_CTL:
            return self.mcg_ctl if self.mcg_cap & MCG_CTL_P or host else None
        if index >= IA32_MC0_CTL:
            number = index - IA32_MC0_CTL
            return self.banks[number] if number < 4 * (self.mcg_cap & 0xFF) else None
        bank = index - IA32_MC0_CTL2
        return self.ctl2[bank] if bank < self.mcg_cap & 0xFF and (self.cmci or host) else None

    def write(self, index: int, value: int, *, any_status: bool, host: bool) -> bool:
        """``host``: user space writes, not the guest. ``any_status``: a bank's status can be set, not only cleared."""
        if index == IA32_MCG_STATUS:
            self.mcg_status = value
        elif index == IA32_MCG_CTL:
            if (not self.mcg_cap & MCG_CTL_P and (value or not host)) or value not in (0, _ALL_ONES):
                return False
            self.mcg_ctl = value
        elif index >= IA32_MC0_CTL:
            return self._write_bank(index - IA32_MC0_CTL, value, any_status=any_status)
        elif index >= IA32_MC0_CTL2:
            return self._write_ctl2(index - IA32_MC0_CTL2, value, host=host)
        else:
            return False
        return True

    def _write_ctl2(self, bank: int, value: int, *, host: bool) -> bool:
        if bank >= self.mcg_cap & 0xFF or (not self.cmci and (value or not host)):
            return False
        if value & ~(MCI_CTL2_CMCI_EN | MCI_CTL2_CMCI_THRESHOLD_MASK):
            return False
        self.ctl2[bank] = value
        return True

    def _write_bank(self, number: int, value: int, *, any_status: bool) -> bool:
        register = number & 3
        if number >= 4 * (self.mcg_cap & 0xFF):
            return False
        if register == _CTL and value and value | 1 << 10 | 1 != _ALL_ONES:  # bits 0 and 10 some guests leave out
            return False
        if register == _STATUS and value and not any_status:
            return False
        self.banks[number] = value
        return True


def set_mce(vcpu: Vcpu, mce: kvm_x86_mce) -> None:
    """KVM_X86_SET_MCE: an error is found in a bank, the guest gets #MC if it is uncorrected. Raises OSError(EINVAL)."""
    state = vcpu.msrs.mce
    status = mce.status
    if mce.bank >= state.mcg_cap & 0xFF or not status & STATUS_VAL:
        raise err(errno.EINVAL, f"bank {mce.bank}, status {status:#x}")
    base = 4 * mce.bank
    control, old = state.banks[base], state.banks[base + _STATUS]

    def store(overflow: int) -> None:
        state.banks[base + _STATUS : base + 4] = status | overflow, mce.addr, mce.misc

    overflow = STATUS_OVER if old & STATUS_VAL else 0
    if not status & STATUS_UC:
        if old & STATUS_VAL and old & STATUS_UC:  # what is worse stays
            state.banks[base + _STATUS] = old | STATUS_OVER
        else:
            store(overflow)
    elif not mce.mcg_status and not status & (STATUS_PCC | STATUS_S | STATUS_AR):  # uncorrected, no action required
        store(0)
        state.mcg_status = 0
        if state.cmci and state.ctl2[mce.bank] & MCI_CTL2_CMCI_EN and vcpu.apic is not None:
            vcpu.apic.local_deliver(LVTCMCI)
    elif (not state.mcg_cap & MCG_CTL_P or state.mcg_ctl == _ALL_ONES) and control == _ALL_ONES:  # reporting is on
        if state.mcg_status & MCG_STATUS_MCIP or not vcpu.ops.inject_machine_check(vcpu):
            vcpu.triple_fault_pending = True
            return
        store(overflow)
        state.mcg_status = mce.mcg_status
