# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated processor: physical memory and its encryption keys, EPT walk, guest execution, VM exits, SEAMCALL.

``platform`` says what the BIOS set up, ``memory`` is physical memory with its per-page KeyIDs, ``processor`` the
package with its SEAMCALL gate, ``vmx`` the architectural numbers, ``_engine`` the native core. Nothing here knows of
TDX's rules or of KVM: those are the floors above.
"""
