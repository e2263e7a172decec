# SPDX-License-Identifier: GPL-2.0-or-later
"""String I/O of a normal VM: INS and OUTS with and without REP.

KVM_EXIT_IO carries as many items as fit into the PIO page and into RCX; after user space has answered, memory, RSI or
RDI, and RCX are updated, and RIP moves on when RCX is used up (otherwise the instruction is simply executed again).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.emulate import inject_page_fault
from swtdx.linux.arch.x86.kvm.x86.guest_debug import do_singlestep
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestPageFault, Mmio, read_linear, write_linear
from swtdx.linux.virt.kvm import run_struct
from swtdx.uapi.kvm import KVM_EXIT_IO
from swtdx.x86 import PAGE_SIZE, Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

RCX, RSI, RDI = int(Gpr.RCX), int(Gpr.RSI), int(Gpr.RDI)
RFLAGS_DF = Rflags.DF
_IO_REP = 1 << 5


def _in_order(data: bytes, size: int) -> bytes:
    """Memory order to port order, and back, where the direction flag makes them differ."""
    return b"".join(data[at : at + size] for at in range(len(data) - size, -1, -size))


def string_io(vcpu: Vcpu, context: GuestContext, qualification: int) -> int:
    """0 (to user space), or 1 when there is nothing to do."""
    size, port = (qualification & 7) + 1, qualification >> 16 & 0xFFFF
    is_in = bool(qualification & 8)
    address_size = 2 << (context.instruction_info >> 7 & 7)  # 2, 4 or 8 bytes
    mask = (1 << 8 * address_size) - 1
    gpr, rip = context.gpr, context.rip
    left = gpr[RCX] & mask if qualification & _IO_REP else 1  # as it is now; see complete()
    if not left:
        return do_singlestep(vcpu, context) if context.skip_instruction() else 1
    backwards = bool(context.rflags & RFLAGS_DF)
    linear = context.guest_linear_address
    in_page = (linear & PAGE_SIZE - 1) // size + 1 if backwards else (PAGE_SIZE - (linear & PAGE_SIZE - 1)) // size
    # As many as fit into the page of pio_data and into this page of guest memory. The rest are further exits.
    count = max(1, min(left, PAGE_SIZE // size, in_page))
    start = linear - (count - 1) * size if backwards else linear
    data_at = run_struct.PIO_DATA

    def items_left() -> int:
        return gpr[RCX] & mask if qualification & _IO_REP else 1

    def advance(items: int) -> None:
        register = RDI if is_in else RSI
        step = -items * size if backwards else items * size
        gpr[register] = gpr[register] & ~mask | gpr[register] + step & mask
        remaining = items_left() - items
        if qualification & _IO_REP:
            gpr[RCX] = gpr[RCX] & ~mask | remaining & mask
        if remaining <= 0 and context.skip_instruction():
            do_singlestep(vcpu, context)

    def complete() -> int:
        if context.rip != rip:
            return 1
        items = min(count, items_left())  # user space may have changed RCX: no more than it says, and what came
        if is_in and items:
            data = bytes(vcpu.run[data_at : data_at + items * size])
            data = _in_order(data, size) if backwards else data
            try:
                write_linear(vcpu, context, linear - (items - 1) * size if backwards else linear, data)
            except GuestPageFault as fault:
                return inject_page_fault(context, fault.address)
            except Mmio:
                return vcpu.internal_error(vcpu.vmx.exit_reason)
        advance(items)
        return 1

    buses = vcpu.kvm.buses
    device = buses.ports.get(port)
    if is_in and device is not None:
        items = b"".join((device.read(port, size) & (1 << 8 * size) - 1).to_bytes(size, "little") for _ in range(count))
        vcpu.run[data_at : data_at + count * size] = items
        return complete()
    if not is_in:
        try:
            data = read_linear(vcpu, context, start, count * size)
        except GuestPageFault as fault:
            return inject_page_fault(context, fault.address)
        except Mmio:
            return vcpu.internal_error(vcpu.vmx.exit_reason)
        data = _in_order(data, size) if backwards else data
        values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
        if device is not None:
            for value in values:
                device.write(port, size, value)
            advance(count)
            return 1
        if buses.pio.active and buses.pio.write(port, size, values[0]):
            for value in values[1:]:  # the device that took the first gets them all; one that it refuses is dropped
                buses.pio.write(port, size, value)
            advance(count)
            return 1
        vcpu.run[data_at : data_at + count * size] = data
    vcpu.complete_userspace_io = complete
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_IO))
    run_struct.IO.pack_into(vcpu.run, run_struct.UNION, 0 if is_in else 1, size, port, count, data_at)
    return 0
