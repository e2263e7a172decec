# SPDX-License-Identifier: GPL-2.0-or-later
"""arch/x86/kvm/vmx: normal VMs, TDs, and the table that picks between them."""
