# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated host kernel: Linux with KVM and TDX, as far as a program that opens /dev/kvm can tell.

Folders are those of the kernel tree: `virt/kvm`, `arch/x86/kvm` with `mmu` and `vmx`, `arch/x86/virt/vmx/tdx`. x86.c is
long, so it is a folder here (`arch/x86/kvm/x86`). This floor imports `uapi` (what crosses the system-call line) and
`cpu` (the machine that it runs on). It reaches the TDX module only by SEAMCALL.
"""
