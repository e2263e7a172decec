# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtualization support that is not KVM (arch/x86/virt)."""
