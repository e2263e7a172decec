# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX part of asm/kvm.h as the document of November 2022 describes it ("KVM TDX basic feature support", v10).

Never merged; the document that this project started from. The code posted with it had other layouts in places; the
document is followed here, and only numbers that it does not give (VM type, capability) are the posted code's.

Where the document contradicts itself:

* `kvm_tdx_init_vm` has two members named ``reserved``: the u32 after ``max_vcpus`` and the tail. Here the first is
  ``reserved0``.
* INIT_MEM_REGION is described with the id of INIT_VCPU; its own id, 3, is meant.
* ``mrownerconfig`` is annotated "sha348": a SHA-384 digest like its neighbours.
* `kvm_tdx_capabilities` lists the CPUID configurations right after the u32 that counts them, so they begin at byte 36,
  although the fixed part is padded to 40 bytes. What is copied is 36 + 24 * n bytes (the posted code puts an explicit
  padding there and begins at 40).

>>> ctypes.sizeof(kvm_tdx_cmd), ctypes.sizeof(kvm_tdx_capabilities), ctypes.sizeof(kvm_tdx_init_vm)
(32, 40, 512)
>>> kvm_tdx_capabilities.cpuid_configs.offset
36
"""

from __future__ import annotations

import ctypes

from swtdx.uapi.layout import u32, u64

KVM_X86_TDX_VM = 1  # posted code; the document says only "TDX_VM_TYPE"
KVM_CAP_VM_TYPES = 225  # posted code; upstream 225 is DIRTY_LOG_RING_WITH_BITMAP

KVM_TDX_CAPABILITIES = 0
KVM_TDX_INIT_VM = 1
KVM_TDX_INIT_VCPU = 2
KVM_TDX_INIT_MEM_REGION = 3
KVM_TDX_FINALIZE_VM = 4

KVM_TDX_MEASURE_MEMORY_REGION = 1 << 0

KVM_TDX_NO_SUB_LEAF = 0xFFFFFFFF  # kvm_tdx_cpuid_config.sub_leaf of a leaf that has none


class kvm_tdx_cmd(ctypes.Structure):
    """``error`` (the SEAMCALL status, out) and ``unused`` must be 0 on the way in."""

    _fields_ = [("id", u32), ("flags", u32), ("data", u64), ("error", u64), ("unused", u64)]


class kvm_tdx_cpuid_config(ctypes.Structure):
    """``eax``..``edx`` are masks of the bits that may be chosen; TDX module's CPUID_CONFIG."""

    _fields_ = [("leaf", u32), ("sub_leaf", u32), ("eax", u32), ("ebx", u32), ("ecx", u32), ("edx", u32)]


class kvm_tdx_capabilities(ctypes.Structure):
    """The module's own fixed-bit masks: a bit may be 1 only if set in fixed0, must be 1 if set in fixed1."""

    _fields_ = [
        ("attrs_fixed0", u64),
        ("attrs_fixed1", u64),
        ("xfam_fixed0", u64),
        ("xfam_fixed1", u64),
        ("nr_cpuid_configs", u32),
        ("cpuid_configs", kvm_tdx_cpuid_config * 0),
    ]


class kvm_tdx_init_vm(ctypes.Structure):
    """``cpuid`` is a pointer to a kvm_cpuid2. XFAM is not a member: it follows from CPUID leaf 0xD."""

    _fields_ = [
        ("max_vcpus", u32),
        ("reserved0", u32),
        ("attributes", u64),
        ("cpuid", u64),
        ("mrconfigid", u64 * 6),
        ("mrowner", u64 * 6),
        ("mrownerconfig", u64 * 6),
        ("reserved", u64 * 43),
    ]


class kvm_tdx_init_mem_region(ctypes.Structure):
    """``source_addr`` points at the initial contents (here: the memory slot's own); written back advanced."""

    _fields_ = [("source_addr", u64), ("gpa", u64), ("nr_pages", u64)]
