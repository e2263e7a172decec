# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host does to a machine besides answering its calls: the kinds of lies other than ``calls``.

==============  =====================================================================================================
``virtio``      a device says another id, length or index of what it used, changes a descriptor or what it has written
``acpi``        a byte of the ACPI tables is another one, with sums that are right
``interrupts``  a vector comes that no device sent; with ``@N+``, at each call from then on
``ve``          a private page is taken away, and given back empty: its next access is #VE, if the TD has it so
``time``        the board's clock goes forward or back: PM timer, PIT, real-time clock
==============  =====================================================================================================

Moments are counted in calls of the guest, since nothing else is the same in two runs. What is to be done at a call is
done before the guest is entered with its answer: the call's thread leaves KVM_RUN for that, and comes by the `gate`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Protocol

from swtdx.image.acpi_tables import AcpiTables
from swtdx.uapi.abilities import overwriting
from swtdx.vmm.board.ioapic import MSI_ADDRESS_BASE
from swtdx.vmm.board.q35 import FIRST_FREE_SLOT
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.pci import VirtioPci
from swtdx.vmm.board.virtio.ring import Chain, RingError, Virtqueue
from swtdx.vmm.execution import Execution
from swtdx.vmm.launch import Machine
from swtdx.x86 import PAGE_SIZE

VIRTQUEUE, ACPI, INTERRUPT, PAGE, CLOCK = "Virtqueue", "Acpi", "Interrupt", "Page", "Clock"
AT_CALLS = {INTERRUPT: "vector", PAGE: "take", CLOCK: "skip"}
"""What is done at a call, and the part of the lie that says how."""
DESCRIPTOR_PARTS = {"address": (0, 8), "size": (8, 4), "flags": (12, 2), "next": (14, 2)}
"""Offset and size in a descriptor (virtio 1.2, 2.7.5)."""
DATA_BYTES = 8
_FORWARD = 1 << 63


class Liar(Protocol):
    """Who decides: a `swtdx.lying.teller.Teller`, or what stands in its place."""

    asked: Callable[[], object] | None

    def is_about(self, function: str) -> bool:
        """Return whether there is any lie about it."""
        ...

    def lie(self, function: str, registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
        """Return what becomes another value."""
        ...


class Hostile(Execution):
    """The execution of one run of ``machine``: its vCPUs do at the `gate` what ``liar`` has decided."""

    def __init__(self, machine: Machine, liar: Liar, *, stopped: bool = False) -> None:
        super().__init__(len(machine.vcpus), stopped=stopped)
        self._machine = machine
        self._liar = liar
        self._vcpus: dict[int, int] = {}
        """By thread."""
        self._due: dict[int, list[tuple[str, int]]] = {}
        self._at_calls = tuple(function for function in AT_CALLS if liar.is_about(function))
        self._acts = {INTERRUPT: self._interrupt, PAGE: self._take, CLOCK: self._skip}
        liar.asked = self._asked if self._at_calls else None
        if CLOCK in self._at_calls:
            machine.board.pm.use_clock(machine.board.clock.monotonic)
        for number, queue in queues(machine):
            queue.altered = partial(self._used, number)
        if liar.is_about(ACPI):
            self._hand_over()

    # --- At a call ----------------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        vcpu = self._vcpus.get(threading.get_ident())
        if vcpu is None:
            return
        due = []
        for function in self._at_calls:
            part = AT_CALLS[function]
            found = self._liar.lie(function, {"apic": vcpu}, {part: 0})
            if part in found:
                due.append((function, found[part]))
        if due:
            self._due[vcpu] = due
            self.kick()

    def gate(self, vcpu: int) -> None:
        self._vcpus[threading.get_ident()] = vcpu
        for function, value in self._due.pop(vcpu, ()):
            self._acts[function](vcpu, value)
        super().gate(vcpu)

    def _interrupt(self, vcpu: int, vector: int) -> None:
        self._machine.board.signal_msi((MSI_ADDRESS_BASE | vcpu << 12, vector & 0xFF))

    def _take(self, vcpu: int, gpa: int) -> None:
        page = gpa & -PAGE_SIZE
        try:
            if self._machine.slots.convert(page, PAGE_SIZE, False):
                self._machine.slots.convert(page, PAGE_SIZE, True)
        except OSError:
            return  # there is no memory

    def _skip(self, vcpu: int, nanoseconds: int) -> None:
        with self._machine.board.lock:
            self._machine.board.clock.skip(nanoseconds - (1 << 64) if nanoseconds & _FORWARD else nanoseconds)

    # --- In memory ----------------------------------------------------------------------------------------------------

    def _used(self, number: int, queue: Virtqueue, chain: Chain, written: int, index: int) -> tuple[int, int, int]:
        """As `swtdx.vmm.board.virtio.ring.Altered`."""
        told = {"id": chain.head, "length": written, "index": index}
        try:
            descriptor = queue.descriptor(chain.head)
        except RingError:
            return chain.head, written, index
        honest = dict(told)
        for part, (offset, size) in DESCRIPTOR_PARTS.items():
            honest[part] = int.from_bytes(descriptor[offset : offset + size], "little")
        data = chain.writable[0][:DATA_BYTES] if chain.writable else None
        if data is not None:
            honest["data"] = int.from_bytes(data, "little")
        for part, value in self._liar.lie(VIRTQUEUE, {"queue": number}, honest).items():
            if part in told:
                told[part] = value
            elif part == "data":
                if data is not None:
                    data[:] = (value & (1 << 8 * len(data)) - 1).to_bytes(len(data), "little")
            else:
                offset, size = DESCRIPTOR_PARTS[part]
                descriptor[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return told["id"] & 0xFFFF_FFFF, told["length"], told["index"] & 0xFFFF

    def _hand_over(self) -> None:
        """Give the guest other tables: by fw_cfg, or where it has them in memory from the start."""
        machine = self._machine
        direct = machine.plan.direct
        if direct is None:
            machine.board.alter_acpi(self._altered)
            return
        tables, rsdp = self._altered(direct.acpi).place(direct.acpi_at, direct.rsdp_at)
        put(machine, direct.acpi_at, tables)
        put(machine, direct.rsdp_at, rsdp)

    def _altered(self, tables: AcpiTables) -> AcpiTables:
        other = copy(tables)
        other.tables = bytearray(tables.tables)
        for offset, byte in enumerate(tables.tables):
            found = self._liar.lie(ACPI, {"offset": offset}, {"byte": byte})
            if "byte" in found:
                other.tables[offset] = found["byte"] & 0xFF
        return other


def queues(machine: Machine) -> list[tuple[int, Virtqueue]]:
    """Return the queues by slot * 256 + queue; not those of a console, where a kernel says what is wrong."""
    found = []
    for slot, device in enumerate(machine.plan.devices, FIRST_FREE_SLOT):
        transport = device.transport
        if isinstance(transport, VirtioPci) and not isinstance(device, VirtioConsole):
            found += [(slot << 8 | number, queue) for number, queue in enumerate(transport.queues)]
    return found


def put(machine: Machine, gpa: int, data: bytes) -> None:
    """Change private memory, as if the guest had been launched with it. Raises OSError, ValueError."""
    kernel = overwriting(machine.vm.kernel)
    for slot in machine.slots.slots:
        if kernel is not None and slot.guest_memfd is not None and slot.gpa <= gpa < slot.gpa + slot.length:
            kernel.overwrite(slot.guest_memfd, gpa - slot.gpa, data)
            return
    raise ValueError(f"no private memory at {gpa:#x}")
