# SPDX-License-Identifier: GPL-2.0-or-later
"""GSI routing and message-signalled interrupts (virt/kvm/irqchip.c, arch/x86/kvm/irq_comm.c).

With the split irqchip a GSI can only be an MSI: the I/O APIC is in user space and sends messages. With the whole
irqchip here it can also be pins of the PICs and the I/O APIC, at first those of its own number. Format: Intel SDM 3,
"Message Signalled Interrupts"; with KVM_X2APIC_API_USE_32BIT_IDS the upper address word carries destination bits 31:8.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.virt.kvm.eventfd import USERSPACE_SOURCE, Irqfds
from swtdx.uapi.kvm import (
    KVM_IOAPIC_NUM_PINS,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_MSI_VALID_DEVID,
    kvm_irq_routing_entry,
)

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.lapic import Lapic
    from swtdx.linux.virt.kvm.kvm_main import Kvm

KVM_MAX_IRQ_ROUTES = 4096
BROADCAST, X2APIC_BROADCAST = 0xFF, 0xFFFFFFFF
SELF, ALL_INCLUDING_SELF = 1, 2  # destination shorthands
(
    APIC_DM_FIXED,
    APIC_DM_LOWEST,
    APIC_DM_SMI,
    APIC_DM_REMRD,
    APIC_DM_NMI,
    APIC_DM_INIT,
    APIC_DM_STARTUP,
    APIC_DM_EXTINT,
) = range(8)
X2APIC, FLAT, CLUSTER, MIXED, OFF = "x2apic", "flat", "cluster", "mixed", "off"  # modes of logical destinations


class IrqRouting:
    """A VM's table from GSI to messages."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.routes: dict[int, list[tuple[int, int, int]]] = {}  # gsi -> (address_lo, address_hi, data)
        self.pins: dict[int, list[tuple[int, int]]] = {}  # gsi -> (chip, pin)
        self.irqfds = Irqfds(kvm)
        self._lock = threading.Lock()
        self._sources: dict[tuple[int, int], int] = {}  # who holds a pin up, as a bit mask

    def set_default_routes(self) -> None:
        """KVM_CREATE_IRQCHIP: GSI n is I/O APIC pin n, and for the first 16 the PICs' line n."""
        self.pins = {gsi: [(KVM_IRQCHIP_IOAPIC, gsi)] for gsi in range(KVM_IOAPIC_NUM_PINS)}
        for gsi in range(16):
            self.pins[gsi].insert(0, (gsi >> 3, gsi & 7))

    def set_routes(self, entries: list[kvm_irq_routing_entry]) -> None:
        """KVM_SET_GSI_ROUTING, the entries. Raises OSError(EINVAL) and changes nothing then."""
        routes: dict[int, list[tuple[int, int, int]]] = {}
        pins: dict[int, list[tuple[int, int]]] = {}
        for entry in entries:
            if entry.flags & ~(KVM_MSI_VALID_DEVID if entry.type == KVM_IRQ_ROUTING_MSI else 0):
                raise err(errno.EINVAL, f"routing flags {entry.flags:#x}")
            if entry.gsi >= KVM_MAX_IRQ_ROUTES:
                raise err(errno.EINVAL, f"gsi {entry.gsi}")
            if entry.gsi in routes or (entry.gsi in pins and entry.type != KVM_IRQ_ROUTING_IRQCHIP):
                raise err(errno.EINVAL, f"gsi {entry.gsi} is routed twice")
            if entry.type == KVM_IRQ_ROUTING_IRQCHIP and self._kvm.ioapic is not None:
                chip, pin = entry.u.irqchip.irqchip, entry.u.irqchip.pin
                if chip > KVM_IRQCHIP_IOAPIC or pin >= (8 if chip <= KVM_IRQCHIP_PIC_SLAVE else KVM_IOAPIC_NUM_PINS):
                    raise err(errno.EINVAL, f"chip {chip}, pin {pin}")
                if any(chip == other for other, _ in pins.get(entry.gsi, ())):
                    raise err(errno.EINVAL, f"gsi {entry.gsi} leads twice to chip {chip}")
                pins.setdefault(entry.gsi, []).append((chip, pin))
                continue
            if entry.type != KVM_IRQ_ROUTING_MSI:
                raise err(errno.EINVAL, f"routing type {entry.type} without an I/O APIC in the kernel")
            message = entry.u.msi
            if self._kvm.x2apic_format and message.address_hi & 0xFF:
                raise err(errno.EINVAL, "the low byte of address_hi must be 0 with 32-bit APIC ids")
            routes.setdefault(entry.gsi, []).append((message.address_lo, message.address_hi, message.data))
        self.routes, self.pins = routes, pins

    def set_irq(self, gsi: int, level: int, source: int = USERSPACE_SOURCE) -> int:
        """kvm_set_irq: raise or lower the line. Return the sum of the chips' answers, -1 without any.

        A pin is up while any ``source`` holds it up.
        """
        answers = [self._set_pin(chip, pin, level, source) for chip, pin in self.pins.get(gsi, ())]
        # An MSI has no level to lower: kvm_set_msi answers -1.
        answers += [self.send_msi(*route) if level else -1 for route in self.routes.get(gsi, ())]
        taken = [answer for answer in answers if answer >= 0]
        return sum(taken) if taken else -1

    def acked(self, chip: int, pin: int) -> None:
        """kvm_notify_acked_irq: the guest has ended the interrupt of a pin."""
        for gsi, pins in list(self.pins.items()):
            if (chip, pin) in pins:
                self.irqfds.acked(gsi)

    def _set_pin(self, chip: int, pin: int, level: int, source: int) -> int:
        kvm = self._kvm
        if kvm.ioapic is None or kvm.pic is None:
            return 0
        with self._lock:
            held = self._sources.get((chip, pin), 0)
            held = held | 1 << source if level else held & ~(1 << source)
            self._sources[chip, pin] = held
        level = int(held != 0)
        if chip == KVM_IRQCHIP_IOAPIC:
            return kvm.ioapic.set_irq(pin, level)
        return kvm.pic.set_irq(chip << 3 | pin, level)

    def send_msi(self, address_lo: int, address_hi: int, data: int) -> int:
        """Deliver a message: see `irq_delivery_to_apic`."""
        destination = address_lo >> 12 & 0xFF
        if self._kvm.x2apic_format:
            destination |= address_hi & 0xFFFFFF00
        return irq_delivery_to_apic(
            self._kvm,
            None,
            destination=destination,
            logical=bool(address_lo & 1 << 2),
            shorthand=0,
            delivery_mode=data >> 8 & 7,
            vector=data & 0xFF,
            level_triggered=bool(data & 1 << 15),
            lowest=data >> 8 & 7 == APIC_DM_LOWEST or bool(address_lo & 1 << 3 and address_lo & 1 << 2),
        )

    def release(self) -> None:
        """The VM ends."""
        self.irqfds.release()


def irq_delivery_to_apic(
    kvm: Kvm,
    source: Lapic | None,
    *,
    destination: int,
    logical: bool,
    shorthand: int,
    delivery_mode: int,
    vector: int,
    level_triggered: bool,
    lowest: bool = False,
) -> int:
    """kvm_irq_delivery_to_apic: find the addressed local APICs and deliver.

    Return the number of those that took it; 0 if a map of all local APICs has none with that address. Without a map,
    which broadcasts and APICs in different modes do not use, -1 if no APIC that is on has it.
    """
    targets = _mapped(kvm, source, destination, logical, shorthand, vector, lowest)
    if targets is None:
        lowest = lowest and (logical or destination != BROADCAST)
        targets = _matched(kvm, source, destination, logical, shorthand, vector, lowest)
        if not targets:
            return -1
    return sum(apic.accept_irq(delivery_mode, vector, level_triggered) for apic in targets)


def _mapped(
    kvm: Kvm, source: Lapic | None, destination: int, logical: bool, shorthand: int, vector: int, lowest: bool
) -> list[Lapic] | None:
    """kvm_irq_delivery_to_apic_fast: look the destination up; None if there is no map for it."""
    if shorthand:
        return [source] if shorthand == SELF and source is not None else None
    apics = [vcpu.apic for vcpu in kvm.vcpus if vcpu.apic is not None]
    if not apics or _is_broadcast(kvm, source, destination, apics):
        return None
    on = [apic for apic in apics if apic.enabled]
    if not logical:
        found = _physical(kvm, on, destination)
        if len(found) != 1 and not kvm.x2apic_format and len({apic.apic_id for apic in on}) < len(on):
            return None  # two have the same id
        return found[:1]
    slots = _logical_slots(kvm, on, destination)
    if not lowest or not slots:
        return slots if slots is None else [apic for apic in slots if apic is not None]
    chosen = slots[vector % len(slots)]
    return [] if chosen is None else [chosen]


def _is_broadcast(kvm: Kvm, source: Lapic | None, destination: int, apics: list[Lapic]) -> bool:
    if kvm.x2apic_broadcast_quirk_disabled:
        return destination == X2APIC_BROADCAST or (
            destination == BROADCAST and _logical_mode([apic for apic in apics if apic.enabled]) != X2APIC
        )
    return destination == (X2APIC_BROADCAST if source is not None and source.x2apic else BROADCAST)


def _physical(kvm: Kvm, on: list[Lapic], destination: int) -> list[Lapic]:
    """The local APICs of that id. With 32-bit ids those in x2APIC mode, and those whose id does not fit, come first."""
    if not kvm.x2apic_format:
        return [apic for apic in on if apic.apic_id == destination]
    return [apic for apic in on if apic.vcpu.vcpu_id == destination and (apic.x2apic or destination > BROADCAST)] + [
        apic for apic in on if not apic.x2apic and apic.apic_id == destination
    ]


def _logical_mode(on: list[Lapic]) -> str:
    """The mode of logical destinations that all local APICs which software has enabled agree on."""
    modes = {apic.logical_mode for apic in on if apic.sw_enabled and apic.logical_id}
    return MIXED if len(modes) > 1 else modes.pop() if modes else OFF


def _logical_slots(kvm: Kvm, on: list[Lapic], destination: int) -> list[Lapic | None] | None:
    """For each bit of a logical destination the local APIC that has it, if one has; None if there is no map."""
    mode = _logical_mode(on)
    if mode in (MIXED, OFF):
        return None if mode == MIXED else []
    if mode == X2APIC:
        first, last = destination >> 16 << 4, max(BROADCAST, *(apic.vcpu.vcpu_id for apic in on))
        numbers = [first + bit for bit in range(16) if destination >> bit & 1 and first + bit <= last]
        return [next(iter(_physical(kvm, on, number)), None) for number in numbers]
    width = 8 if mode == FLAT else 4
    slots: dict[tuple[int, int], Lapic] = {}
    for apic in on:
        mask = apic.logical_id & (1 << width) - 1
        if not apic.sw_enabled or not mask:
            continue
        slot = apic.logical_id >> width, mask
        if mask & mask - 1 or slot in slots:
            return None
        slots[slot] = apic
    group = (destination & 0xFF) >> width
    return [slots.get((group, 1 << bit)) for bit in range(width) if destination >> bit & 1]


def _matched(
    kvm: Kvm, source: Lapic | None, destination: int, logical: bool, shorthand: int, vector: int, lowest: bool
) -> list[Lapic]:
    """Ask each local APIC that is on. One of those that software has enabled takes an interrupt of lowest priority."""
    found = []
    for vcpu in kvm.vcpus:
        apic = vcpu.apic
        if apic is None or not apic.enabled:
            continue
        if shorthand == SELF:
            matches = apic is source
        elif shorthand:
            matches = shorthand == ALL_INCLUDING_SELF or apic is not source
        else:
            matches = apic.match_destination(destination, logical, is_ipi=source is not None)
        if matches and (apic.sw_enabled or not lowest):
            found.append(apic)
    return [found[vector % len(found)]] if lowest and found else found
