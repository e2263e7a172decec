# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger's way into the machine: gdb's remote serial protocol (gdb manual, appendix E), spoken as QEMU does.

::

    server      listens, serves one client after the other in a thread of its own
    stub        what each packet means
    packet      packets out of bytes, and bytes out of packets
    registers   the registers that gdb is told of (target.xml), as QEMU tells them
    monitor     `monitor` commands
    breakpoints INT3 in memory, and the four debug registers
    vm_target   an ordinary VM, by KVM's own ioctls
    td_target   a debug TD, by TDH.MEM.RD and TDH.VP.RD

vCPUs are gdb's threads, numbered from 1, and stop and run together unless gdb steps one alone (`swtdx.vmm.execution`).
The machine's clocks run on while it stands.  Addresses are linear ones of the current thread's address space.
"""
