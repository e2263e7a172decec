# SPDX-License-Identifier: GPL-2.0-or-later
"""The MMU (arch/x86/kvm/mmu)."""
