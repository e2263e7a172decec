# SPDX-License-Identifier: GPL-2.0-or-later
"""What crosses the system-call line: KVM's structures and numbers, both TDX dialects, the line, a typed client.

``kvm``, ``tdx_upstream``, ``tdx_v10`` and ``dialect`` say how bytes lie; ``kernel`` is the line (what implements it
is a kernel: ``host`` the real one, the emulated one elsewhere); ``client`` speaks over it with names, types and
exceptions.
"""
