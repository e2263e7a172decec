# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated TDX module: what runs in SEAM mode on a real machine.

Its host side is ``SEAMCALL`` (the ``TDH.*`` leaf functions, package ``tdh``), its guest side ``TDCALL`` (``TDG.*``,
package ``tdg``) and the VM exits of a Trust Domain that the module handles without telling the host. Between the two
stand the objects of the architecture, one file each: the physical address metadata table (``pamt``), the Secure EPT
(``sept``), the key ownership table (``keys``), a TD (``td``), a virtual CPU (``vcpu``), metadata, CPUID and MSR
virtualization, measurement and report.

Where the real module is driven by tables, so is this one: ``tables/*.json`` is the project's copy, and ``tables``
checks it when it is loaded. The version reproduced is 1.5.06; ``version`` says what 1.0 has otherwise.

The host may reach this package by SEAMCALL only, that is through ``Processor.seamcall``; the package in turn touches
memory and virtual CPUs only through the processor (``hardware`` says what it asks of it).

Reading the fast paths: leaf functions that run for each page or exit look before they call. ``if MR_EXTEND not in
td.allowed: td.check_state(MR_EXTEND)`` is ``td.check_state(MR_EXTEND)``, ``if entry & STATE_MASK != FREE:
check_entry(...)`` is ``check_entry(...)``, and a dictionary is read where ``module.td(...)`` would do. The called
function makes the same check first and then finds out which status to raise. A Python call costs as much as the rest
of such a check, and in the usual case there is nothing to raise.

Not reproduced: migration, TD partitioning, service TDs, TD preserving update, host-priority locks, the single- and
zero-step defence. Their leaf functions make the checks that come before the missing feature and answer as a module
does for which it is not enabled (``tdh/not_reproduced.py``, ``tdg/not_reproduced.py``); TDX_FEATURES0 does not offer
them.
"""
