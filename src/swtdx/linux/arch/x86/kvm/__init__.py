# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM on x86 (arch/x86/kvm)."""
