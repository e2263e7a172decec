# SPDX-License-Identifier: GPL-2.0-or-later
"""arch/x86/kvm/x86.c, in parts: vCPUs, their ioctls and what VMX VMs and TDs share."""
