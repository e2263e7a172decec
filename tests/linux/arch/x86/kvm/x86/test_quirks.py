# SPDX-License-Identifier: GPL-2.0-or-later
"""Every quirk of KVM_CAP_DISABLE_QUIRKS2 (Documentation/virt/kvm/api.rst), on and off.

Those with tests of their own: LAPIC_MMIO_HOLE, MISC_ENABLE_NO_MWAIT, FIX_HYPERCALL_INSN (test_hypercall_insn),
STUFF_FEATURE_MSRS. CD_NW_CLEARED is AMD's; SLOT_ZAP_ALL and IGNORE_GUEST_PAT change nothing that a guest or a VMM can
see here, where the whole memory of a guest is cached.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from testing.long_mode import CODE, LongModeVm

OUT = bytes.fromhex("e67e")  # out 0x7e, al
OUT_DX = bytes.fromhex("ee")  # out dx, al


def without(quirk: int) -> Callable[[Vm], None]:
    def setup(vm: Vm) -> None:
        if quirk:
            vm.enable_cap(k.Cap.DISABLE_QUIRKS2, quirk)

    return setup


@pytest.mark.parametrize("code", [OUT, OUT_DX], ids=["out imm8", "out dx"])
@pytest.mark.parametrize("port", [0x7E, 0x7F])
@pytest.mark.parametrize("quirk", [0, k.KVM_X86_QUIRK_OUT_7E_INC_RIP])
def test_rip_at_the_exit_of_an_out_to_port_7e(code: bytes, port: int, quirk: int) -> None:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=without(quirk)) as guest:
        guest.start(code.replace(b"\x7e", bytes([port])), rdx=port)
        assert guest.step() is k.Exit.IO
        assert guest.vcpu.kvm_run.io.port == port
        moved = port == 0x7E and not quirk
        assert guest.vcpu.get_regs().rip == CODE + (len(code) if moved else 0)
        assert guest.outcome() is None, "the instruction is executed once"


@pytest.mark.parametrize("quirk", [0, k.KVM_X86_QUIRK_OUT_7E_INC_RIP])
def test_a_vmm_that_repeats_an_out(quirk: int) -> None:
    """RIP that the VMM sets itself at the exit stays, in both cases."""
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=without(quirk)) as guest:
        guest.start(b"\x90" + OUT)
        assert guest.step() is k.Exit.IO
        regs = guest.vcpu.get_regs()
        regs.rip = CODE
        guest.vcpu.set_regs(regs)
        assert guest.step() is k.Exit.IO
        assert guest.vcpu.kvm_run.io.port == 0x7E
        assert guest.outcome() is None


def test_what_is_offered_and_refused() -> None:
    every = 0x3FF  # KVM_X86_VALID_QUIRKS of Linux 6.16
    with Kvm(open_kernel("emulated")) as kvm, kvm.create_vm() as vm:
        assert vm.check_extension(k.Cap.DISABLE_QUIRKS2) == every
        assert vm.check_extension(k.Cap.DISABLE_QUIRKS) == 1
        for bit in range(64):
            if every >> bit & 1:
                vm.enable_cap(k.Cap.DISABLE_QUIRKS2, 1 << bit)
            else:
                with pytest.raises(OSError, match="EINVAL"):
                    vm.enable_cap(k.Cap.DISABLE_QUIRKS2, 1 << bit)
                vm.enable_cap(k.Cap.DISABLE_QUIRKS, 1 << bit)  # which ignores what it does not know
