# SPDX-License-Identifier: GPL-2.0-or-later
"""kvm_x86_ops: the one table through which KVM reaches what runs guests (arch/x86/kvm/vmx/main.c).

Without TDX its entries are the VMX callbacks themselves. With TDX those that must differ are replaced by ``vt_*``
wrappers, which ask whether the VM is a TD; the others stay plain VMX for TDs too. A few exist for TDs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swtdx.linux.arch.x86.kvm.vmx import tdx, tdx_sept, tdx_vcpu, vmx, vmx_exit, vmx_state
from swtdx.linux.arch.x86.kvm.vmx.tdx_vcpu import tdx_handle_exit, tdx_vcpu_pre_run, tdx_vcpu_run
from swtdx.linux.arch.x86.kvm.vmx.vmx import vmx_vcpu_pre_run, vmx_vcpu_run
from swtdx.linux.arch.x86.kvm.vmx.vmx_exit import vmx_handle_exit
from swtdx.linux.arch.x86.kvm.x86 import guest_debug

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.uapi.kvm import kvm_guest_debug


@dataclass(frozen=True)
class KvmX86Ops:
    """The callbacks, named as in struct kvm_x86_ops where it has them.

    Beside the kernel's own: ``vcpu_kick`` and ``post_run_state`` (never asked of a vCPU whose state is protected) stand
    for inlined code, and get/set of whole register
    sets (``get_regs``...) for the many small register callbacks, which here would each cross into the processor.
    """

    vm_init: Callable[[Kvm], None]
    vm_pre_destroy: Callable[[Kvm], None]
    vm_destroy: Callable[[Kvm], None]
    vcpu_precreate: Callable[[Kvm], None]
    vcpu_create: Callable[[Vcpu], None]
    vcpu_free: Callable[[Vcpu], None]
    vcpu_reset: Callable[[Vcpu, bool], None]
    vcpu_load: Callable[[Vcpu, int], None]
    set_cr8: Callable[[Vcpu, int], None]
    vcpu_pre_run: Callable[[Vcpu], int]
    vcpu_run: Callable[[Vcpu, int], None]
    handle_exit: Callable[[Vcpu], int]
    vcpu_kick: Callable[[Vcpu], None]
    post_run_state: Callable[[Vcpu], tuple[int, int, int]]  # ready for injection, IF, CR8
    sync_regs_load: Callable[[Vcpu, int, int], None]
    sync_regs_store: Callable[[Vcpu, int], None]

    has_emulated_msr: Callable[[Kvm | None, int], bool]
    get_msr: Callable[[Vcpu, int, bool], int]
    set_msr: Callable[[Vcpu, int, int, bool], None]
    get_regs: Callable[[Vcpu], bytes]
    set_regs: Callable[[Vcpu, bytes], None]
    get_sregs: Callable[[Vcpu], bytes]
    set_sregs: Callable[[Vcpu, bytes], None]
    get_fpu: Callable[[Vcpu], bytes]
    set_fpu: Callable[[Vcpu, bytes], None]
    get_xsave: Callable[[Vcpu], bytes]
    set_xsave: Callable[[Vcpu, bytes], None]
    get_xcrs: Callable[[Vcpu], bytes]
    set_xcrs: Callable[[Vcpu, bytes], None]
    get_debugregs: Callable[[Vcpu], bytes]
    set_debugregs: Callable[[Vcpu, bytes], None]
    get_lapic: Callable[[Vcpu], bytes]
    set_lapic: Callable[[Vcpu, bytes], None]
    translate: Callable[[Vcpu, int], int | None]
    set_guest_debug: Callable[[Vcpu, kvm_guest_debug], None]
    get_tsc_offset: Callable[[Vcpu], int]
    write_tsc_offset: Callable[[Vcpu, int], None]
    read_l1_tsc: Callable[[Vcpu, int], int]
    write_tsc_multiplier: Callable[[Vcpu], None]
    vcpu_after_set_cpuid: Callable[[Vcpu], None]

    inject_machine_check: Callable[[Vcpu], bool]
    deliver_interrupt: Callable[[Vcpu, int], None]
    has_interrupt: Callable[[Vcpu], bool]
    interrupt_allowed: Callable[[Vcpu], bool]
    nmi_allowed: Callable[[Vcpu], bool]
    apic_init_signal_blocked: Callable[[Vcpu], bool]
    clear_hlt: Callable[[Vcpu], None]
    vcpu_deliver_sipi_vector: Callable[[Vcpu, int], None]
    set_virtual_apic_mode: Callable[[Vcpu], None]
    msr_filter_changed: Callable[[Vcpu], None]
    load_mmu_pgd: Callable[[Vcpu], None]
    set_tss_addr: Callable[[Kvm, int], None]
    set_identity_map_addr: Callable[[Kvm, int], None]

    # TDs only
    mem_enc_ioctl: Callable[[Kvm, int], int]
    vcpu_mem_enc_ioctl: Callable[[Vcpu, int], int]
    link_external_spt: Callable[[Kvm, int, int, int], None]
    set_external_spte: Callable[[Kvm, int, int, int], None]
    remove_external_spte: Callable[[Kvm, int, int, int], None]
    split_external_spte: Callable[[Kvm, int, int, int], None]
    free_external_spt: Callable[[Kvm, int, int, int], None]


VMX_OPS = KvmX86Ops(
    vm_init=vmx.vmx_vm_init,
    vm_pre_destroy=vmx.vmx_vm_pre_destroy,
    vm_destroy=vmx.vmx_vm_destroy,
    vcpu_precreate=vmx.vmx_vcpu_precreate,
    vcpu_create=vmx.vmx_vcpu_create,
    vcpu_free=vmx.vmx_vcpu_free,
    vcpu_reset=vmx.vmx_vcpu_reset,
    vcpu_load=vmx.vmx_vcpu_load,
    set_cr8=vmx.vmx_set_cr8,
    vcpu_pre_run=vmx.vmx_vcpu_pre_run,
    vcpu_run=vmx.vmx_vcpu_run,
    handle_exit=vmx_exit.vmx_handle_exit,
    vcpu_kick=vmx.vmx_vcpu_kick,
    post_run_state=vmx.vmx_post_run_state,
    sync_regs_load=vmx_state.vmx_sync_regs_load,
    sync_regs_store=vmx_state.vmx_sync_regs_store,
    has_emulated_msr=vmx.vmx_has_emulated_msr,
    get_msr=vmx.vmx_get_msr,
    set_msr=vmx.vmx_set_msr,
    get_regs=vmx_state.vmx_get_regs,
    set_regs=vmx_state.vmx_set_regs,
    get_sregs=vmx_state.vmx_get_sregs,
    set_sregs=vmx_state.vmx_set_sregs,
    get_fpu=vmx_state.vmx_get_fpu,
    set_fpu=vmx_state.vmx_set_fpu,
    get_xsave=vmx_state.vmx_get_xsave,
    set_xsave=vmx_state.vmx_set_xsave,
    get_xcrs=vmx_state.vmx_get_xcrs,
    set_xcrs=vmx_state.vmx_set_xcrs,
    get_debugregs=vmx_state.vmx_get_debugregs,
    set_debugregs=vmx_state.vmx_set_debugregs,
    get_lapic=vmx_state.vmx_get_lapic,
    set_lapic=vmx_state.vmx_set_lapic,
    translate=vmx_state.vmx_translate,
    set_guest_debug=guest_debug.set_guest_debug,
    get_tsc_offset=vmx.vmx_get_tsc_offset,
    write_tsc_offset=vmx.vmx_write_tsc_offset,
    read_l1_tsc=vmx.vmx_read_l1_tsc,
    write_tsc_multiplier=vmx.vmx_write_tsc_multiplier,
    vcpu_after_set_cpuid=vmx.vmx_vcpu_after_set_cpuid,
    inject_machine_check=vmx.vmx_inject_machine_check,
    deliver_interrupt=vmx.vmx_deliver_interrupt,
    has_interrupt=vmx.vmx_has_interrupt,
    interrupt_allowed=vmx.vmx_interrupt_allowed,
    nmi_allowed=vmx.vmx_nmi_allowed,
    apic_init_signal_blocked=vmx.vmx_apic_init_signal_blocked,
    clear_hlt=vmx.vmx_clear_hlt,
    vcpu_deliver_sipi_vector=vmx.vmx_vcpu_deliver_sipi_vector,
    set_virtual_apic_mode=vmx.vmx_set_virtual_apic_mode,
    msr_filter_changed=vmx.vmx_msr_filter_changed,
    load_mmu_pgd=vmx.vmx_load_mmu_pgd,
    set_tss_addr=vmx.vmx_set_tss_addr,
    set_identity_map_addr=vmx.vmx_set_identity_map_addr,
    mem_enc_ioctl=vmx.vmx_mem_enc_ioctl,
    vcpu_mem_enc_ioctl=vmx.vmx_vcpu_mem_enc_ioctl,
    link_external_spt=vmx.vmx_no_external_spt,
    set_external_spte=vmx.vmx_no_external_spt,
    remove_external_spte=vmx.vmx_no_external_spt,
    split_external_spte=vmx.vmx_no_external_spt,
    free_external_spt=vmx.vmx_no_external_spt,
)
"""What kvm_intel is without TDX."""


# The wrappers on the path of every exit are written out; one made by `_vt_vcpu` costs several times as much, which a
# normal VM beside TDs would feel (script/bench shows what is left).


def vt_vcpu_pre_run(vcpu: Vcpu) -> int:
    """Before the first entry of a KVM_RUN. 1: go on; 0: to user space."""
    return tdx_vcpu_pre_run(vcpu) if vcpu.is_td else vmx_vcpu_pre_run(vcpu)


def vt_vcpu_run(vcpu: Vcpu, cpu: int) -> None:
    """Enter the guest on ``cpu``."""
    if vcpu.is_td:
        tdx_vcpu_run(vcpu, cpu)
    else:
        vmx_vcpu_run(vcpu, cpu)


def vt_handle_exit(vcpu: Vcpu) -> int:
    """1: back into the guest; 0: to user space."""
    if vcpu.is_td:
        return tdx_handle_exit(vcpu)
    return vmx_handle_exit(vcpu)


def _vt_vcpu(name: str, td: Callable[..., Any]) -> Callable[..., Any]:
    normal: Callable[..., Any] = getattr(VMX_OPS, name)

    def vt(vcpu: Vcpu, *args: Any) -> Any:
        return td(vcpu, *args) if vcpu.is_td else normal(vcpu, *args)

    vt.__name__ = f"vt_{name}"
    return vt


def _vt_vm(name: str, td: Callable[..., Any]) -> Callable[..., Any]:
    normal: Callable[..., Any] = getattr(VMX_OPS, name)

    def vt(kvm: Kvm | None, *args: Any) -> Any:
        return td(kvm, *args) if kvm is not None and kvm.is_td else normal(kvm, *args)

    vt.__name__ = f"vt_{name}"
    return vt


VT_OPS = replace(
    VMX_OPS,
    vcpu_pre_run=vt_vcpu_pre_run,
    vcpu_run=vt_vcpu_run,
    handle_exit=vt_handle_exit,
    **{name: _vt_vm(name, getattr(tdx, f"tdx_{name}")) for name in ("vm_init", "vm_pre_destroy", "vm_destroy")},
    mem_enc_ioctl=_vt_vm("mem_enc_ioctl", tdx.tdx_vm_ioctl),
    has_emulated_msr=_vt_vm("has_emulated_msr", tdx_vcpu.tdx_has_emulated_msr),
    vcpu_precreate=_vt_vm("vcpu_precreate", tdx_vcpu.tdx_vcpu_precreate),
    link_external_spt=tdx_sept.tdx_sept_link_private_spt,
    set_external_spte=tdx_sept.tdx_sept_set_private_spte,
    remove_external_spte=tdx_sept.tdx_sept_remove_private_spte,
    split_external_spte=tdx_sept.tdx_sept_split_private_spte,
    free_external_spt=tdx_sept.tdx_sept_free_private_spt,
    vcpu_mem_enc_ioctl=_vt_vcpu("vcpu_mem_enc_ioctl", tdx_vcpu.tdx_vcpu_ioctl),
    has_interrupt=_vt_vcpu("has_interrupt", tdx_vcpu.tdx_protected_apic_has_interrupt),
    **{
        name: _vt_vcpu(name, getattr(tdx_vcpu, f"tdx_{name}"))
        for name in (
            "vcpu_create",
            "vcpu_free",
            "vcpu_reset",
            "vcpu_load",
            "vcpu_kick",
            "sync_regs_load",
            "sync_regs_store",
            "get_msr",
            "set_msr",
            "translate",
            "get_tsc_offset",
            "write_tsc_offset",
            "read_l1_tsc",
            "write_tsc_multiplier",
            "vcpu_after_set_cpuid",
            "inject_machine_check",
            "deliver_interrupt",
            "interrupt_allowed",
            "nmi_allowed",
            "apic_init_signal_blocked",
            "clear_hlt",
            "set_virtual_apic_mode",
            "msr_filter_changed",
            "load_mmu_pgd",
        )
    },
    **{
        name: _vt_vcpu(name, tdx_vcpu.tdx_guest_state_protected)
        for name in (
            *(f"{verb}_{what}" for verb in ("get", "set") for what in ("regs", "sregs", "fpu", "xsave", "xcrs")),
            *("get_debugregs", "set_debugregs", "get_lapic", "set_lapic", "set_guest_debug"),
        )
    },
    **{name: _vt_vm(name, tdx.tdx_ignore_address) for name in ("set_tss_addr", "set_identity_map_addr")},
)
"""What kvm_intel is with TDX."""


def vt_x86_ops(enable_tdx: bool) -> KvmX86Ops:
    """Return the table for a kernel with or without TDX."""
    return VT_OPS if enable_tdx else VMX_OPS
