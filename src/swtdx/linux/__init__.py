# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated host kernel: Linux with KVM and TDX, as far as a program that opens /dev/kvm can tell.

Files are named after their places in the kernel tree (`kvm/`, `kvm/x86/`, `virt/tdx`). This floor knows `uapi` (what
crosses the system-call line) and `cpu` (the machine it runs on). It reaches the TDX module by SEAMCALL alone.
"""
