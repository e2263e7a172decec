# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM: virt/kvm and arch/x86/kvm."""
