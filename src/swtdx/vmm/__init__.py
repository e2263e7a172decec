# SPDX-License-Identifier: GPL-2.0-or-later
"""User space: a VMM that builds Trust Domains and ordinary VMs through ``/dev/kvm`` and runs them on a small q35 board.

This floor speaks ioctls (through ``swtdx.uapi.client``) and nothing else, so that it cannot tell the host's kernel from
the emulated one.  What it loads into a guest is computed in `swtdx.image`.  Where to look:

========================  ==============================================================================
``memory``, ``slots``     the user memory behind guest RAM, and the memory slots of KVM
``kernel_entry``          the registers with which an ordinary VM enters a kernel
``launch``, ``vcpu_model``  the creation flow, and the CPUID it gives to the guest
``run``, ``tdvmcall``, ``outcome``  the vCPU threads, the exits, and how a run ended
``execution``             which vCPUs may run while a debugger is attached
``gdb``                   the gdb stub and its monitor commands
``board``                 the devices
``bare_guest``, ``bare_td``  a few bytes of code as a guest, and a TD around them
``console``               the guest's serial console on a terminal or a pipe
========================  ==============================================================================
"""
