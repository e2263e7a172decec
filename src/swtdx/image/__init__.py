# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch image: what will be in a guest's memory, and on its board, when it starts. No system calls are made here.

A VMM loads it and a verifier predicts measurements from it, with the same code. Where to look:

=================================  =====================================================================
``tdvf``                           the metadata in which a TDX Virtual Firmware describes how to load it
``firmware``                       how the firmware file is found
``memory_map``, ``io_map``         guest-physical layout, and the I/O ports that tables name
``hob``                            the TD HOB: the description of memory that a TDVF reads
``initial_memory``                 the contents of each section, and the record of what was added
``mrtd``                           MRTD, predicted from what will be added and extended
``linux_image``                    a Linux kernel to start, with initrd and command line
``boot_protocol``, ``shim``        a kernel without firmware: memory contents, and a TD's way to its entry
``acpi_tables``, ``aml``           the board described to an operating system
``smbios``                         the machine's names and sizes, described in the same way
``fw_cfg_items``                   what firmware reads from fw_cfg
=================================  =====================================================================
"""
