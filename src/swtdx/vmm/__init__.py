# SPDX-License-Identifier: GPL-2.0-or-later
"""User space: a VMM that builds Trust Domains and ordinary VMs through ``/dev/kvm`` and runs them on a small q35 board.

This floor speaks ioctls (through ``swtdx.uapi.client``) and nothing else, so that it cannot tell the host's kernel from
the emulated one.  Where to look:

========================  ==============================================================================
``tdvf``                  the metadata with which a TDX Virtual Firmware says how it wants to be loaded
``firmware``              which file that firmware is
``initial_memory``        the contents of each section, and the record of what was added
``linux_image``           a Linux kernel to start, with initrd and command line
``boot_protocol``         entering it without firmware: what stands where in memory
``shim``, ``kernel_entry``  the way there: a TD's from its reset vector, an ordinary VM's by its registers
``hob``                   the TD HOB: how the VMM tells the firmware what memory there is
``measurement``           MRTD, predicted from what the VMM is about to add and extend
``memory_map``, ``memory``  guest-physical layout, and the user memory behind it
``launch``, ``vcpu_model``  the creation flow, and the CPUID it gives to the guest
``run``, ``tdvmcall``, ``outcome``  the vCPU threads, the exits, and how a run ended
``board``                 the devices
``bare_guest``, ``bare_td``  a few bytes of code as a guest, and a TD around them
``console``               the guest's serial console on a terminal or a pipe
========================  ==============================================================================
"""
