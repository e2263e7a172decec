# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX part of asm/kvm.h as merged: Linux 6.16 and later (Documentation/virt/kvm/x86/intel-tdx.rst).

A sub-command is a `kvm_tdx_cmd` passed by pointer with KVM_MEMORY_ENCRYPT_OP on the VM's or the vCPU's fd (which one:
`dialect`). ``hw_error`` must be 0 on the way in; on the way out it is the SEAMCALL status for INIT_VM (class
OPERAND_INVALID only) and FINALIZE_VM.

Where the kernel's documentation and its header disagree the header is followed: `kvm_tdx_capabilities` has four words
on TDVMCALLs followed by ``reserved[250]``; the text still shows ``reserved[254]`` (same size, same ``cpuid``).

>>> ctypes.sizeof(kvm_tdx_cmd), ctypes.sizeof(kvm_tdx_capabilities), ctypes.sizeof(kvm_tdx_init_vm)
(24, 2056, 264)
"""

from __future__ import annotations

import ctypes

from swtdx.uapi.asm_kvm import VmType, kvm_cpuid2
from swtdx.uapi.layout import u32, u64

KVM_X86_TDX_VM = VmType.TDX

KVM_TDX_CAPABILITIES = 0
KVM_TDX_INIT_VM = 1
KVM_TDX_INIT_VCPU = 2
KVM_TDX_INIT_MEM_REGION = 3
KVM_TDX_FINALIZE_VM = 4
KVM_TDX_GET_CPUID = 5
KVM_TDX_TERMINATE_VM = 6  # proposed (list, 2025); in no released kernel

KVM_TDX_MEASURE_MEMORY_REGION = 1 << 0  # kvm_tdx_cmd.flags of INIT_MEM_REGION

KVM_TDX_CAP_TERMINATE_VM = 1 << 0
"""Bit of ``reserved[0]`` of the capabilities (the proposal names that word ``supported_caps``): TERMINATE_VM is served.
Reads 0 on every merged kernel."""

# ATTRIBUTES of a TD: not in any uapi header, but in the TDX module's ABI specification.
TDX_TD_ATTR_DEBUG = 1 << 0
TDX_TD_ATTR_SEPT_VE_DISABLE = 1 << 28
TDX_TD_ATTR_MIGRATABLE = 1 << 29
TDX_TD_ATTR_PKS = 1 << 30
TDX_TD_ATTR_KL = 1 << 31
TDX_TD_ATTR_PERFMON = 1 << 63

KVM_TDX_MAX_CPUID_ENTRIES = 256  # INIT_VM with more is E2BIG


class kvm_tdx_cmd(ctypes.Structure):
    """``data`` is a pointer or, for INIT_VCPU, a value. 24 bytes, though the request number says 8."""

    _fields_ = [("id", u32), ("flags", u32), ("data", u64), ("hw_error", u64)]


class kvm_tdx_capabilities(ctypes.Structure):
    """What KVM and the module together offer. ``cpuid.nent`` too small is E2BIG, and nothing is written.

    ``cpuid.entries[].eax..edx`` are masks of the bits that INIT_VM may choose; EAX[23:16] of leaf 0x80000008 stands for
    the guest physical address width (48 or 52).
    """

    _fields_ = [
        ("supported_attrs", u64),
        ("supported_xfam", u64),
        ("kernel_tdvmcallinfo_1_r11", u64),
        ("user_tdvmcallinfo_1_r11", u64),
        ("kernel_tdvmcallinfo_1_r12", u64),
        ("user_tdvmcallinfo_1_r12", u64),
        ("reserved", u64 * 250),
        ("cpuid", kvm_cpuid2),
    ]


class kvm_tdx_init_vm(ctypes.Structure):
    """Digests are SHA-384 sized (48 bytes). ``cpuid`` may hold only leaves that the capabilities name."""

    _fields_ = [
        ("attributes", u64),
        ("xfam", u64),
        ("mrconfigid", u64 * 6),
        ("mrowner", u64 * 6),
        ("mrownerconfig", u64 * 6),
        ("reserved", u64 * 12),
        ("cpuid", kvm_cpuid2),
    ]


class kvm_tdx_init_mem_region(ctypes.Structure):
    """Written back advanced, also on failure, so that the call can be repeated for the rest."""

    _fields_ = [("source_addr", u64), ("gpa", u64), ("nr_pages", u64)]
