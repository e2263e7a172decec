# SPDX-License-Identifier: GPL-2.0-or-later
"""arch/x86/virt: the part of TDX that belongs to the host, not to KVM."""
