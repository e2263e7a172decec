# SPDX-License-Identifier: GPL-2.0-or-later
"""String I/O of a normal VM: INS and OUTS with and without REP.

KVM_EXIT_IO carries as many items as fit into the PIO page and into RCX; after user space has answered, memory, RSI or
RDI, and RCX are updated, and RIP moves on when RCX is used up (otherwise the instruction is simply executed again).
Where the memory is MMIO, KVM_EXIT_MMIO follows the items of INS, and comes before each item of OUTS (em_in, em_out of
arch/x86/kvm/emulate.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.x86.guest_debug import do_singlestep
from swtdx.linux.arch.x86.kvm.x86.guest_memory import (
    GuestPageFault,
    Mmio,
    inject_page_fault,
    read_linear,
    write_linear,
)
from swtdx.linux.virt.kvm import run_struct
from swtdx.uapi.kvm import KVM_EXIT_IO
from swtdx.x86 import PAGE_SIZE, Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Part
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

RCX, RSI, RDI = int(Gpr.RCX), int(Gpr.RSI), int(Gpr.RDI)
RFLAGS_DF = Rflags.DF
_IO_REP = 1 << 5


def _in_order(data: bytes, size: int) -> bytes:
    """Memory order to port order, and back, where the direction flag makes them differ."""
    return b"".join(data[at : at + size] for at in range(len(data) - size, -1, -size))


class StringIo:
    """INS or OUTS at RIP: what one exit carries."""

    def __init__(self, vcpu: Vcpu, context: GuestContext, qualification: int) -> None:
        self.vcpu, self.context, self.rip = vcpu, context, context.rip
        self.size, self.port = (qualification & 7) + 1, qualification >> 16 & 0xFFFF
        self.is_in, self.repeats = bool(qualification & 8), bool(qualification & _IO_REP)
        address_size = 2 << (context.instruction_info >> 7 & 7)  # 2, 4 or 8 bytes
        self.mask = (1 << 8 * address_size) - 1
        self.backwards = bool(context.rflags & RFLAGS_DF)
        self.linear = context.guest_linear_address
        offset = self.linear & PAGE_SIZE - 1
        in_page = offset // self.size + 1 if self.backwards else (PAGE_SIZE - offset) // self.size
        # As many as fit into the page of pio_data and into this page of guest memory. The rest are further exits.
        self.count = max(1, min(self.items_left(), PAGE_SIZE // self.size, in_page))

    def items_left(self) -> int:
        """RCX as it is now: user space may change it."""
        return self.context.gpr[RCX] & self.mask if self.repeats else 1

    def start(self, items: int) -> int:
        """The lowest address of so many items."""
        return self.linear - (items - 1) * self.size if self.backwards else self.linear

    def skip(self) -> int:
        """Go on behind the instruction. 1, or 0: a single step ends."""
        return do_singlestep(self.vcpu, self.context) if self.context.skip_instruction() else 1

    def advance(self, items: int) -> int:
        """Count items that have been moved. 1."""
        gpr, mask = self.context.gpr, self.mask
        register = RDI if self.is_in else RSI
        step = -items * self.size if self.backwards else items * self.size
        gpr[register] = gpr[register] & ~mask | gpr[register] + step & mask
        remaining = self.items_left() - items
        if self.repeats:
            gpr[RCX] = gpr[RCX] & ~mask | remaining & mask
        if remaining <= 0:
            self.skip()
        return 1

    # --- INS ----------------------------------------------------------------------------------------------------------

    def read_device(self) -> int:
        """INS from a device of the kernel, or by user space."""
        size, vcpu = self.size, self.vcpu
        device = vcpu.kvm.buses.ports.get(self.port)
        if device is None:
            return self.exit()
        mask = (1 << 8 * size) - 1
        items = b"".join((device.read(self.port, size) & mask).to_bytes(size, "little") for _ in range(self.count))
        vcpu.run[run_struct.PIO_DATA : run_struct.PIO_DATA + self.count * size] = items
        return self.complete()

    def complete(self) -> int:
        """KVM_RUN after KVM_EXIT_IO."""
        if self.context.rip != self.rip:
            return 1
        items = min(self.count, self.items_left())  # no more than RCX says now, and what came
        if not self.is_in or not items:
            return self.advance(items)
        data = bytes(self.vcpu.run[run_struct.PIO_DATA : run_struct.PIO_DATA + items * self.size])
        try:
            in_order = _in_order(data, self.size) if self.backwards else data
            write_linear(self.vcpu, self.context, self.start(items), in_order)
        except GuestPageFault as fault:
            return inject_page_fault(self.context, fault)
        except Mmio:
            from swtdx.linux.arch.x86.kvm.emulate import emulate_by

            return emulate_by(self.vcpu, self.context, lambda instruction: self._store(instruction, data))
        return self.advance(items)

    def _store(self, instruction: Instruction, data: bytes) -> Part:
        """Write what INS has read to MMIO: all at once, in pieces of 8 bytes; item by item backwards."""
        step = self.size if self.backwards else len(data)
        for at in range(0, len(data), step):
            yield from instruction.write(self.linear - at, step, int.from_bytes(data[at : at + step], "little"))
        return lambda: self.advance(len(data) // self.size)

    # --- OUTS ---------------------------------------------------------------------------------------------------------

    def read_memory(self) -> int:
        """OUTS from memory; from MMIO one item at a time."""
        try:
            data = read_linear(self.vcpu, self.context, self.start(self.count), self.count * self.size)
        except GuestPageFault as fault:
            return inject_page_fault(self.context, fault)
        except Mmio:
            from swtdx.linux.arch.x86.kvm.emulate import emulate_by

            self.count = 1
            return emulate_by(self.vcpu, self.context, self._load)
        return self.write_device(_in_order(data, self.size) if self.backwards else data)

    def _load(self, instruction: Instruction) -> Part:
        value = yield from instruction.read(self.linear, self.size)
        return lambda: self.write_device(value.to_bytes(self.size, "little"))

    def write_device(self, data: bytes) -> int:
        """Give items to a device of the kernel, or to user space."""
        size, port, buses = self.size, self.port, self.vcpu.kvm.buses
        values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
        device = buses.ports.get(port)
        if device is not None:
            for value in values:
                device.write(port, size, value)
            return self.advance(self.count)
        if buses.pio.active and buses.pio.write(port, size, values[0]):
            for value in values[1:]:  # the device that took the first gets them all; one that it refuses is dropped
                buses.pio.write(port, size, value)
            return self.advance(self.count)
        self.vcpu.run[run_struct.PIO_DATA : run_struct.PIO_DATA + len(data)] = data
        return self.exit()

    def exit(self) -> int:
        """KVM_EXIT_IO. 0."""
        vcpu = self.vcpu
        vcpu.complete_userspace_io = self.complete
        run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_IO))
        direction = 0 if self.is_in else 1
        run_struct.IO.pack_into(
            vcpu.run, run_struct.UNION, direction, self.size, self.port, self.count, run_struct.PIO_DATA
        )
        return 0


def string_io(vcpu: Vcpu, context: GuestContext, qualification: int) -> int:
    """0 (to user space), or 1 when there is nothing to do."""
    instruction = StringIo(vcpu, context, qualification)
    if not instruction.items_left():
        return instruction.skip()
    return instruction.read_device() if instruction.is_in else instruction.read_memory()
