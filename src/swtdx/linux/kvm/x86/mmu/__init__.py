# SPDX-License-Identifier: GPL-2.0-or-later
"""arch/x86/kvm/mmu: the TDP MMU, with direct and mirror page tables."""
