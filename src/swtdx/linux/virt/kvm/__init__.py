# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM on any architecture (virt/kvm)."""
