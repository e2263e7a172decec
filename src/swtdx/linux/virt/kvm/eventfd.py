# SPDX-License-Identifier: GPL-2.0-or-later
"""ioeventfd and irqfd (virt/kvm/eventfd.c).

An ioeventfd swallows a guest's write to an address and counts it in an eventfd. An irqfd turns a count in an eventfd
into an interrupt; one thread waits for all of them. The caller's descriptor is duplicated, as the kernel takes a
reference; which descriptors are the same eventfd /proc tells (a kernel before 5.2 does not: there their numbers must be
equal). A line whose irqfd has a resampling eventfd stays up until the guest has ended the interrupt, and then counts
there, so that the device can check whether it still needs the line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from swtdx.linux.err import err, reason_of
from swtdx.linux.uaccess import current_mm
from swtdx.linux.virt.kvm.coalesced_mmio import CoalescedRing, Zone
from swtdx.uapi.kvm import (
    KVM_IOEVENTFD_VALID_FLAG_MASK,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    IoeventfdFlag,
    kvm_ioeventfd,
    kvm_irqfd,
)

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm


NR_IOBUS_DEVS = 1000
USERSPACE_SOURCE, IRQFD_RESAMPLE_SOURCE = 0, 2
"""Sources of a line (KVM_USERSPACE_IRQ_SOURCE_ID, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID): it is up while one of them is."""


@dataclass(frozen=True)
class Eventfd:
    """A reference to an eventfd: ``fd`` is ours, ``context`` identifies the eventfd (struct eventfd_ctx)."""

    fd: int
    context: int

    @classmethod
    def get(cls, fd: int) -> Eventfd:
        """eventfd_ctx_fdget. Raises OSError(EBADF, EINVAL)."""
        try:
            copy = current_mm().dup(fd)
        except OSError as error:
            raise err(errno.EBADF, reason_of(error).text or f"fd {fd} is not open") from error
        try:
            with open(f"/proc/thread-self/fdinfo/{copy}", "rb") as info:
                fields = dict(line.split(b":", 1) for line in info.read().splitlines() if b":" in line)
            if b"eventfd-count" not in fields:
                raise err(errno.EINVAL, f"fd {fd} is not an eventfd")
        except BaseException:
            os.close(copy)
            raise
        return cls(copy, int(fields.get(b"eventfd-id", -fd)))

    def put(self) -> None:
        """eventfd_ctx_put."""
        os.close(self.fd)

    def signal(self) -> None:
        """eventfd_signal: count one; a full one stays full."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.fd, 1)


@dataclass(eq=False)
class Ioeventfd:
    """``length`` 0 matches any."""

    address: int
    length: int
    datamatch: int | None
    eventfd: Eventfd

    def matches(self, length: int, value: int) -> bool:
        """Return whether a write of ``value`` is this one's."""
        return (not self.length or self.length == length) and (self.datamatch is None or self.datamatch == value)


class PortDevice(Protocol):
    """A device in the kernel that answers ports."""

    def read(self, port: int, size: int) -> int:
        """IN."""
        ...

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        ...


class IoBus:
    """Addresses whose writes the kernel itself takes: ioeventfds, and zones of the coalesced ring."""

    def __init__(self, ring: CoalescedRing) -> None:
        self.listeners: dict[int, list[Ioeventfd]] = {}
        self.zones: list[Zone] = []
        self.active = False
        """Whether there is a listener. Check it before `write`."""
        self._ring = ring

    def write(self, address: int, length: int, value: int) -> bool:
        """Offer a write; True if a listener took it."""
        for listener in self.listeners.get(address, ()):
            if listener.matches(length, value):
                listener.eventfd.signal()
                return True
        return any(zone.holds(address, length) and self._ring.put(zone, address, length, value) for zone in self.zones)

    def settle(self) -> None:
        """What is on the bus has changed."""
        self.active = bool(self.listeners or self.zones)


class Buses:
    """KVM_PIO_BUS and KVM_MMIO_BUS: addresses that the kernel answers itself."""

    def __init__(self) -> None:
        self.ring = CoalescedRing()
        self.pio = IoBus(self.ring)
        self.mmio = IoBus(self.ring)
        self.ccw = IoBus(self.ring)  # s390's notifications, which x86 takes and never hears of
        self.ports: dict[int, PortDevice] = {}
        """Devices in the kernel, by each of their ports."""

    def register_zone(self, zone: Zone) -> None:
        """KVM_REGISTER_COALESCED_MMIO. Raises OSError(ENOSPC) when the bus is full."""
        bus = self.pio if zone.pio else self.mmio
        if len(bus.zones) >= NR_IOBUS_DEVS:  # ioeventfds do not count: descriptors limit them
            raise err(errno.ENOSPC, f"{NR_IOBUS_DEVS} devices on the bus")
        bus.zones.append(zone)
        bus.settle()

    def unregister_zone(self, zone: Zone) -> None:
        """Remove every zone that holds all of ``zone`` (KVM_UNREGISTER_COALESCED_MMIO). None is not an error."""
        bus = self.pio if zone.pio else self.mmio
        bus.zones = [other for other in bus.zones if not other.holds(zone.address, zone.size)]
        bus.settle()

    def ioeventfd(self, request: kvm_ioeventfd) -> None:
        """KVM_IOEVENTFD. Raises OSError(EINVAL, EEXIST, ENOENT, EBADF)."""
        flags, address, length = request.flags, request.addr, request.len
        bus = (
            self.pio
            if flags & IoeventfdFlag.PIO
            else self.ccw
            if flags & IoeventfdFlag.VIRTIO_CCW_NOTIFY
            else self.mmio
        )
        match = request.datamatch if flags & IoeventfdFlag.DATAMATCH else None
        if flags & IoeventfdFlag.DEASSIGN:
            self._deassign(bus, address, length, match, request.fd)
            return
        if length not in (0, 1, 2, 4, 8):
            raise err(errno.EINVAL, f"length {length}")
        if address + length >= 1 << 64:
            raise err(errno.EINVAL, "the range wraps")
        if flags & ~KVM_IOEVENTFD_VALID_FLAG_MASK:
            raise err(errno.EINVAL, f"flags {flags:#x}")
        if not length and match is not None:
            raise err(errno.EINVAL, "a match needs a length")
        eventfd = Eventfd.get(request.fd)
        listeners = bus.listeners.setdefault(address, [])
        for other in listeners:
            if not other.length or not length or other.length == length:
                if other.datamatch is None or match is None or other.datamatch == match:
                    eventfd.put()
                    raise err(errno.EEXIST, f"an ioeventfd at {address:#x} exists")
        listeners.append(Ioeventfd(address, length, match, eventfd))
        bus.settle()

    @staticmethod
    def _deassign(bus: IoBus, address: int, length: int, match: int | None, fd: int) -> None:
        eventfd = Eventfd.get(fd)
        eventfd.put()
        for listener in bus.listeners.get(address, []):
            if (listener.length, listener.datamatch, listener.eventfd.context) == (length, match, eventfd.context):
                bus.listeners[address].remove(listener)
                if not bus.listeners[address]:
                    del bus.listeners[address]
                bus.settle()
                listener.eventfd.put()
                return
        raise err(errno.ENOENT, f"no such ioeventfd at {address:#x}")

    def release(self) -> None:
        """The VM ends."""
        for bus in (self.pio, self.mmio, self.ccw):
            for listeners in bus.listeners.values():
                for listener in listeners:
                    listener.eventfd.put()
            bus.listeners.clear()
            bus.zones.clear()
            bus.settle()
        self.ring.release()


class IrqfdThread:
    """The thread that waits for every VM's irqfds; it starts with the first."""

    def __init__(self) -> None:
        self._selector: selectors.BaseSelector = selectors.SelectSelector()  # holds no descriptor until it is needed
        self._wake = -1
        self._lock = threading.Lock()
        self._serving = -1
        self._served = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._off = False

    def add(self, eventfd: Eventfd, function: Callable[[], None], *, shared: bool) -> None:
        """Call ``function`` from the thread whenever ``eventfd`` has a count.

        Raises OSError(EBUSY) if there is a function for that eventfd already and it is not to be shared.
        """
        with self._lock:
            if self._thread is None:
                self._selector = selectors.DefaultSelector()
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._selector.register(self._wake, selectors.EVENT_READ, None)
            elif not shared and self._functions(eventfd.context):
                raise err(errno.EBUSY, "the eventfd is an irqfd of another VM")
            self._selector.register(eventfd.fd, selectors.EVENT_READ, (eventfd.context, function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="swtdx-irqfd", daemon=True)
                self._thread.start()
        os.eventfd_write(self._wake, 1)

    def _functions(self, context: int) -> list[Callable[[], None]]:
        """What is called for an eventfd, by whatever descriptors it was given."""
        with_data = (key.data for key in self._selector.get_map().values() if key.data is not None)
        return [function for other, function in with_data if other == context]

    def remove(self, eventfd: Eventfd) -> None:
        """Forget ``eventfd``. Its function is not running any more when this returns. Not from a function."""
        with self._served:
            self._selector.unregister(eventfd.fd)
            os.eventfd_write(self._wake, 1)
            while self._serving == eventfd.context:
                self._served.wait()

    def stop(self) -> None:
        """End the thread and give its descriptors back: the machine is switched off."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._off = True
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()
            self._selector.close()
            os.close(self._wake)

    def _loop(self) -> None:
        while not self._off:
            for event in [key.fd for key, _ in self._selector.select()]:
                self._serve(event)

    def _serve(self, eventfd: int) -> None:
        """A function of its own: a thread that waits must not hold the last reference to a VM that has ended."""
        with self._lock:
            key = self._selector.get_map().get(eventfd)
            if key is None:
                return
            try:
                os.eventfd_read(eventfd)
            except BlockingIOError:
                return
            functions: list[Callable[[], None]] = []
            if key.data is not None:  # an irqfd is an exclusive waiter: the one that came first is told, and no other
                self._serving = key.data[0]
                functions = self._functions(key.data[0])[:1]
        try:
            for function in functions:
                function()
        finally:
            with self._served:
                self._serving = -1
                self._served.notify_all()


@dataclass(eq=False)
class Irqfd:
    """An assigned irqfd."""

    gsi: int
    eventfd: Eventfd
    resample: Eventfd | None


class Irqfds:
    """The irqfds of a VM."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._irqfds: list[Irqfd] = []

    def irqfd(self, request: kvm_irqfd) -> None:
        """KVM_IRQFD. Raises OSError: EINVAL, EBADF, EBUSY, and EMFILE where the thread that waits cannot start."""
        kvm, flags = self._kvm, request.flags
        if flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE):
            raise err(errno.EINVAL, f"flags {flags:#x}")
        if flags & KVM_IRQFD_FLAG_DEASSIGN:
            self._deassign(request.fd, request.gsi)
            return
        if flags & KVM_IRQFD_FLAG_RESAMPLE and kvm.ioapic is None:
            raise err(errno.EINVAL, "resampling needs the I/O APIC in the kernel")
        if not kvm.irqchip_in_kernel:
            raise err(errno.EINVAL, "no irqchip in the kernel")
        with ExitStack() as undo:
            eventfd = Eventfd.get(request.fd)
            undo.callback(eventfd.put)
            resample = None
            if flags & KVM_IRQFD_FLAG_RESAMPLE:
                resample = Eventfd.get(request.resamplefd)
                undo.callback(resample.put)
            if any(irqfd.eventfd.context == eventfd.context for irqfd in self._irqfds):
                raise err(errno.EBUSY, f"eventfd {request.fd} is an irqfd already")
            irqfd = Irqfd(request.gsi, eventfd, resample)
            kvm.kernel.irqfd_thread.add(
                eventfd, lambda: self._inject(irqfd), shared=kvm.kernel.release.irqfds_share_eventfds
            )
            self._irqfds.append(irqfd)
            undo.pop_all()

    def _inject(self, irqfd: Irqfd) -> None:
        routing = self._kvm.irq_routing
        if irqfd.resample is not None:
            routing.set_irq(irqfd.gsi, 1, IRQFD_RESAMPLE_SOURCE)
        else:
            routing.set_irq(irqfd.gsi, 1)
            routing.set_irq(irqfd.gsi, 0)

    def acked(self, gsi: int) -> None:
        """irqfd_resampler_ack: the guest has ended the interrupt of a line."""
        resamplers = [irqfd for irqfd in self._irqfds if irqfd.gsi == gsi and irqfd.resample is not None]
        if resamplers:
            self._kvm.irq_routing.set_irq(gsi, 0, IRQFD_RESAMPLE_SOURCE)
        for irqfd in resamplers:
            if irqfd.resample is not None:
                irqfd.resample.signal()

    def _deassign(self, fd: int, gsi: int) -> None:
        eventfd = Eventfd.get(fd)
        eventfd.put()
        for irqfd in [i for i in self._irqfds if (i.eventfd.context, i.gsi) == (eventfd.context, gsi)]:
            self._shutdown(irqfd)

    def _shutdown(self, irqfd: Irqfd) -> None:
        self._irqfds.remove(irqfd)
        self._kvm.kernel.irqfd_thread.remove(irqfd.eventfd)
        irqfd.eventfd.put()
        if irqfd.resample is not None:
            irqfd.resample.put()
            if not any(other.gsi == irqfd.gsi and other.resample is not None for other in self._irqfds):
                self._kvm.irq_routing.set_irq(irqfd.gsi, 0, IRQFD_RESAMPLE_SOURCE)

    def release(self) -> None:
        """The VM ends."""
        for irqfd in list(self._irqfds):
            self._shutdown(irqfd)
