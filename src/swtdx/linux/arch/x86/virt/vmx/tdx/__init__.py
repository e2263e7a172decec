# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX module from the host's side: bring-up and SEAMCALLs (arch/x86/virt/vmx/tdx)."""
