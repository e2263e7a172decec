# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM on VMX, and the TDX half beside it (arch/x86/kvm/vmx)."""
