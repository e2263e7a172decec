# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a TD or an ordinary VM, step by step in the order that KVM demands.

A TD (Documentation/virt/kvm/x86/intel-tdx.rst; QEMU does the same)::

    capability check        KVM_CAP_VM_TYPES and what else a TD needs
    KVM_CREATE_VM           of the TDX type
    KVM_ENABLE_CAP          MapGPA as an exit, split irqchip, APIC bus clock
    KVM_TDX_CAPABILITIES
    KVM_TDX_INIT_VM         attributes, XFAM, CPUID, owner's digests
    KVM_CREATE_VCPU         and KVM_SET_CPUID2, whose X2APIC bit the next step needs
    KVM_TDX_INIT_VCPU       with the address of the TD HOB
    memory slots            upstream: with guest_memfd, all private; v10: plain
    KVM_TDX_INIT_MEM_REGION once for each TDVF section, in the order of the metadata
    KVM_TDX_FINALIZE_VM

Whatever fails on the way, all that was built is taken down again, in reverse.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.clock import Clock
from swtdx.image.firmware import NO_FIRMWARE, Firmware
from swtdx.image.initial_memory import AddedRegion, InitialMemoryError, section_contents
from swtdx.image.memory_map import IDENTITY_MAP_ADDRESS, TSS_ADDRESS, MemoryMap
from swtdx.image.mrtd import MrtdPredictor, Order
from swtdx.image.tdvf import Section, Tdvf, check_memory, parse, unfilled
from swtdx.uapi import kvm
from swtdx.uapi.abilities import KeepError, Keeping, keeping
from swtdx.uapi.client import Kvm, KvmError, TdCapabilities, Vcpu, Vm, msi_route
from swtdx.uapi.dialect import Dialect, InitialMemory
from swtdx.uapi.tdx_upstream import TDX_TD_ATTR_DEBUG, TDX_TD_ATTR_SEPT_VE_DISABLE
from swtdx.vmm.board.ioapic import PINS, Msi
from swtdx.vmm.board.pvpanic import PanicEvent
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.get_quote import QuoteSource
from swtdx.vmm.memory import staged
from swtdx.vmm.slots import MemorySlots
from swtdx.vmm.tdvmcall import EventNotification
from swtdx.vmm.vcpu_model import td_xfam, vcpu_cpuid, without_shared_pages
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.image.boot_protocol import DirectBoot
    from swtdx.image.linux_image import LinuxBoot
    from swtdx.image.smbios import SmbiosFields

# OVMF takes the local APIC's timer to run at KVM's own 1 GHz, in TDs too (PcdFSBClock). A TD's CPUID leaf 0x15 tells
# 25 MHz, which is what QEMU sets (40 ns), and then every timer of the firmware is 40 times too slow: a key takes 0.8 s.
# Linux uses the TSC deadline and does not care.
APIC_BUS_CYCLE_NS = 1
SHA384_SIZE = 48

# What a TD needs beside its VM type, asked of the VM; (capability, value that must be in it).
_UPSTREAM_NEEDS = (
    (kvm.Cap.USER_MEMORY2, 1),
    (kvm.Cap.GUEST_MEMFD, 1),
    (kvm.Cap.MEMORY_ATTRIBUTES, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE),
)


class LaunchError(Exception):
    """The machine cannot be built as asked; the text is one sentence for a person."""


@dataclass(frozen=True)
class TdParameters:
    """What the owner of a TD decides. ``attributes`` None: SEPT_VE_DISABLE where offered, and what must be set.

    ``debug``: ATTRIBUTES.DEBUG too, with which the host may read and write all of the TD. MRTD does not tell, TDREPORT
    does.
    """

    attributes: int | None = None
    gpa_width: int = 48
    mrconfigid: bytes = bytes(SHA384_SIZE)
    mrowner: bytes = bytes(SHA384_SIZE)
    mrownerconfig: bytes = bytes(SHA384_SIZE)
    debug: bool = False

    @property
    def is_debug(self) -> bool:
        """Whether the TD has ATTRIBUTES.DEBUG, by whichever of the two members."""
        return self.debug or bool((self.attributes or 0) & TDX_TD_ATTR_DEBUG)


@dataclass(frozen=True)
class Plan:
    """What to build. ``td`` None: an ordinary VM. ``progress`` is told each step as it begins.

    ``linux`` is what the firmware is to start, ``direct`` a kernel that is entered without firmware: then ``firmware``
    is what `direct_boot` gives with it.
    ``devices`` are plugged in, in this order; ``say`` gets a sentence when one of them has something to tell.
    ``panicked`` gets what the guest's kernel reports by pvpanic, under the board's lock. ``quotes`` answers GetQuote;
    without it the guest reads that there is no service.
    ``empty``: nothing is loaded into memory, for a machine that continues from a snapshot (`Machine.restore`).
    ``clock`` is the board's, where it is not the host's.
    """

    firmware: Firmware
    memory_size: int
    cpus: int = 1
    td: TdParameters | None = field(default_factory=TdParameters)
    serial: Callable[[bytes], object] = lambda data: None
    debug: Callable[[bytes], object] | None = None
    progress: Callable[[str], object] = lambda step: None
    linux: LinuxBoot | None = None
    smbios: SmbiosFields | None = None
    debug_exit: int | None = None  # a port, if there is to be one
    direct: DirectBoot | None = None
    devices: tuple[VirtioDevice, ...] = ()
    say: Callable[[str], object] = lambda text: None
    panicked: Callable[[PanicEvent], object] = lambda event: None
    quotes: QuoteSource | None = None
    empty: bool = False
    clock: Clock | None = None

    @property
    def layout(self) -> MemoryMap:
        return MemoryMap(self.memory_size, len(self.firmware.image))


class Machine:
    """A built machine, ready to run; close it to take it down (a context manager)."""

    def __init__(
        self, plan: Plan, vm: Vm, vcpus: Sequence[Vcpu], slots: MemorySlots, board: Board, undo: ExitStack
    ) -> None:
        self.plan = plan
        self.vm = vm
        self.vcpus = tuple(vcpus)
        self.slots = slots
        self.board = board
        self.capabilities: TdCapabilities | None = None
        self.mrtd: dict[Order, bytes] = {}  # predicted, by the order in which the kernel makes its calls
        self.added: list[AddedRegion] = []  # what the TD started with, in the order in which it was added
        self.event_notification = EventNotification()
        self._undo = undo

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def snapshot(self, *, movable: bool = False) -> object:
        """Keep the whole machine as it is between two instructions; the answer is for `restore`.

        No vCPU may be in KVM_RUN (`Run.paused`). ``movable``: also for a machine that is built alike in another
        process. Raises KeepError, whose text is a sentence.
        """
        kernel = self._keeping()
        with self.board.lock:
            for vcpu in self.vcpus:
                _complete(vcpu)
            return kernel.snapshot([self], self.board.clock, movable=movable)

    def restore(self, snapshot: object) -> None:
        """Go on from where `snapshot` was made of this machine, as often as wanted. Raises KeepError."""
        kernel = self._keeping()
        with self.board.lock:
            kernel.restore([self], self.board.clock, snapshot)

    def _keeping(self) -> Keeping:
        kernel = keeping(self.vm.kernel)
        if kernel is None:
            raise KeepError(f"the {self.vm.kernel.name} kernel cannot keep a machine: only an emulated one can")
        return kernel

    def close(self) -> None:
        """Close vCPUs, VM and guest_memfds, then unmap the memory.

        A TD is terminated first where the kernel can: without a key its pages come back by one SEAMCALL each, not five.
        """
        if self.capabilities is not None and self.capabilities.can_terminate:
            with suppress(KvmError):  # a dead VM may have lost its key already
                self.vm.tdx_terminate()
        self._undo.close()


def _complete(vcpu: Vcpu) -> None:
    """Have what user space answered to the last exit carried out, without running the guest."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        vcpu.run()
    except KvmError as error:
        if error.errno not in (errno.EINTR, errno.EAGAIN):
            raise KeepError(f"the last exit of vCPU {vcpu.id} cannot be completed: {error}") from None
    finally:
        vcpu.kvm_run.immediate_exit = 0


def direct_boot(linux: LinuxBoot, memory_size: int, cpus: int, *, td: bool) -> tuple[DirectBoot, Firmware]:
    """What ``direct`` and ``firmware`` of a plan are for a kernel that is entered without firmware.

    A TD needs something at its reset vector all the same: the shim. Raises LinuxImageError.
    """
    from swtdx.image import shim
    from swtdx.image.boot_protocol import lay_out

    boot = lay_out(linux, MemoryMap(memory_size, shim.SIZE if td else 0), cpus, td=td)
    return boot, shim.firmware(boot) if td else Firmware(Path(NO_FIRMWARE), shim.WHY, b"")


def check_plan(plan: Plan) -> Tdvf | None:
    """Everything that can be known before the kernel is asked. Raises TdvfError or LaunchError."""
    if plan.td is None:
        return None
    if plan.direct:
        from swtdx.image import shim

        tdvf = shim.tdvf(plan.direct)
    else:
        tdvf = parse(plan.firmware.image, str(plan.firmware.path))
    check_memory(tdvf, plan.layout.ram)
    for fault in unfilled(tdvf):
        raise LaunchError(str(fault))
    return tdvf


def launch(device: Kvm, plan: Plan) -> Machine:
    """Build the machine on an open /dev/kvm. Raises TdvfError, LaunchError, KvmError; then nothing is left behind."""
    tdvf = check_plan(plan)
    with ExitStack() as undo:
        machine = _launch_vm(device, plan, undo) if tdvf is None else _launch_td(device, plan, tdvf, undo)
        machine._undo = undo.pop_all()
    return machine


def _launch_vm(device: Kvm, plan: Plan, undo: ExitStack) -> Machine:
    """An ordinary VM: the vCPU starts in real mode at the reset vector, 16 bytes below the end of the firmware.

    Without firmware the first one starts at the kernel's entry point instead; the others wait for it as ever.
    """
    plan.progress("creating the VM")
    vm = undo.enter_context(device.create_vm())
    vm.set_identity_map_addr(IDENTITY_MAP_ADDRESS)
    vm.set_tss_addr(TSS_ADDRESS)
    slots = _slots(vm, undo)
    vm.split_irqchip(PINS)
    plan.progress("mapping memory")
    for gpa, length in plan.layout.ram:
        slots.add(gpa, length)
    # The firmware is ROM where KVM has read-only slots: what the guest writes there arrives as MMIO, and is dropped.
    readonly = bool(vm.check_extension(kvm.Cap.READONLY_MEM))
    image = plan.firmware.image
    if image:
        contents = b"" if plan.empty else image
        slots.add(plan.layout.firmware_address, len(image), readonly=readonly, contents=contents)
    plan.progress(f"creating {plan.cpus} vCPU{'s' if plan.cpus > 1 else ''}")
    vcpus = _vcpus(device, vm, plan, undo)
    if plan.direct is not None and not plan.empty:
        plan.progress("loading the kernel")
        from swtdx.vmm.kernel_entry import enter, ordinary_vm

        for piece in (*ordinary_vm(), *plan.direct.pieces()):
            slots.memory.write(piece.address, piece.contents)
        enter(vcpus[0], plan.direct)
    return Machine(plan, vm, vcpus, slots, _board(vm, slots, plan), undo)


def _launch_td(device: Kvm, plan: Plan, tdvf: Tdvf, undo: ExitStack) -> Machine:
    assert plan.td is not None
    check_tdx(device)
    plan.progress("creating the TD")
    vm = undo.enter_context(device.create_td())
    slots = _slots(vm, undo)
    _enable_capabilities(vm)
    capabilities = vm.tdx_capabilities()
    plan.progress("initialising the TD")
    _init_td(device, vm, plan, plan.td, capabilities)
    plan.progress(f"creating {plan.cpus} vCPU{'s' if plan.cpus > 1 else ''}")
    vcpus = _vcpus(device, vm, plan, undo)
    for vcpu in vcpus:
        vcpu.tdx_init_vcpu(tdvf.hob.address)
    plan.progress("mapping memory")
    _map_td_memory(slots, plan)
    machine = Machine(plan, vm, vcpus, slots, _board(vm, slots, plan), undo)
    machine.capabilities = capabilities
    predictors = [MrtdPredictor(order) for order in Order]
    for section in tdvf.sections:
        if section.added and not plan.empty:
            measured = " and measuring" if section.measured else ""
            plan.progress(f"adding{measured} {section.type.name}, {section.memory_size // PAGE_SIZE} pages")
            try:
                contents = section_contents(tdvf, section, plan.layout.ram)
            except InitialMemoryError as error:
                raise LaunchError(str(error)) from None
            _add_section(slots, section, contents)
            machine.added.append(AddedRegion.of(section, contents))
            for predictor in predictors:
                predictor.add_region(section.address, contents, section.measured)
    plan.progress("finalising the measurement")
    vm.tdx_finalize()
    if not plan.empty:
        machine.mrtd = {predictor.order: predictor.digest() for predictor in predictors}
    return machine


def check_tdx(device: Kvm) -> None:
    """Refuse a kernel that makes no TDs. Raises LaunchError naming the capability."""
    if not device.has_tdx():
        raise LaunchError(
            f"the {device.kernel.name} kernel makes no TDs: KVM_CAP_VM_TYPES is {device.vm_types():#x}, "
            f"without bit {device.dialect.vm_type_tdx} (KVM_X86_TDX_VM)"
        )


def _enable_capabilities(vm: Vm) -> None:
    upstream = vm.dialect is Dialect.UPSTREAM
    if upstream:
        for capability, needed in _UPSTREAM_NEEDS:
            if not vm.check_extension(capability) & needed:
                raise LaunchError(
                    f"the {vm.kernel.name} kernel lacks KVM_CAP_{capability.name}, without which no TD runs"
                )
        vm.enable_cap(kvm.Cap.EXIT_HYPERCALL, 1 << kvm.KVM_HC_MAP_GPA_RANGE)
    vm.split_irqchip(PINS)
    if upstream or vm.check_extension(kvm.Cap.X86_APIC_BUS_CYCLES_NS):
        vm.enable_cap(kvm.Cap.X86_APIC_BUS_CYCLES_NS, APIC_BUS_CYCLE_NS)


def _init_td(device: Kvm, vm: Vm, plan: Plan, td: TdParameters, capabilities: TdCapabilities) -> None:
    attributes = td.attributes
    if attributes is None:
        attributes = TDX_TD_ATTR_SEPT_VE_DISABLE & capabilities.attributes_allowed | capabilities.attributes_required
    if td.debug:
        attributes |= TDX_TD_ATTR_DEBUG
    if refused := attributes & ~capabilities.attributes_allowed:
        raise LaunchError(
            f"attributes {attributes:#x} have bits that this kernel does not offer ({refused:#x}); "
            f"it offers {capabilities.attributes_allowed:#x}"
        )
    if missing := capabilities.attributes_required & ~attributes:
        raise LaunchError(f"attributes {attributes:#x} lack bits that a TD must have ({missing:#x})")
    limit = vm.check_extension(kvm.Cap.MAX_VCPUS)
    if limit and plan.cpus > limit:
        raise LaunchError(f"{plan.cpus} vCPUs are more than this kernel gives a TD ({limit})")
    model = vcpu_cpuid(device.supported_cpuid(), 0, plan.cpus)
    xfam, cpuid = td_xfam(model, capabilities), capabilities.configure(model, td.gpa_width)
    try:
        vm.tdx_init(attributes, xfam, cpuid, td.mrconfigid, td.mrowner, td.mrownerconfig, max_vcpus=plan.cpus)
    except KvmError as error:
        if error.errno != errno.EINVAL:
            raise
        raise LaunchError(
            f"no TD can be made with attributes {attributes:#x}, XFAM {xfam:#x} and a GPA width of {td.gpa_width}: "
            f"{error}"
        ) from error


def _vcpus(device: Kvm, vm: Vm, plan: Plan, undo: ExitStack) -> list[Vcpu]:
    supported = device.supported_cpuid()
    vcpus = []
    for number in range(plan.cpus):
        vcpu = undo.enter_context(vm.create_vcpu(number))
        model = vcpu_cpuid(supported, number, plan.cpus)
        vcpu.set_cpuid2(model if plan.td is None else without_shared_pages(model))
        vcpus.append(vcpu)
    return vcpus


def _slots(vm: Vm, undo: ExitStack) -> MemorySlots:
    """Empty slots, made before the vCPUs, so that what is taken down last is the memory that the others use."""
    slots = MemorySlots(vm)
    undo.callback(slots.close)
    undo.callback(vm.close)
    return slots


def _map_td_memory(slots: MemorySlots, plan: Plan) -> None:
    layout = plan.layout
    if slots.vm.dialect.initial_memory is InitialMemory.GUEST_MEMFD:
        for gpa, length in layout.ram:
            slots.add_private(gpa, length)
        slots.add_private(layout.firmware_address, layout.firmware_size)
        return
    for gpa, length in layout.ram:
        slots.add(gpa, length)
    slots.add(layout.firmware_address, layout.firmware_size)


def _add_section(slots: MemorySlots, section: Section, contents: bytes) -> None:
    vm = slots.vm
    pages = section.memory_size // PAGE_SIZE
    if vm.dialect.initial_memory is InitialMemory.MEMSLOT:
        # The slot's own memory is the source: what stands there becomes the TD's.
        slots.memory.write(section.address, contents)
        source = slots.memory.address(section.address, section.memory_size)
        vm.tdx_init_mem_region(source, section.address, pages, section.measured)
        return
    staging = staged([contents])
    try:
        vm.tdx_init_mem_region(staging.address, section.address, pages, section.measured)
    finally:
        staging.close()


def _board(vm: Vm, slots: MemorySlots, plan: Plan) -> Board:
    def route(messages: Sequence[Msi | None]) -> None:
        vm.set_gsi_routing([msi_route(pin, *message) for pin, message in enumerate(messages) if message is not None])

    try:
        board = Board(
            plan.layout,
            slots.memory,
            plan.cpus,
            serial=plan.serial,
            debug=plan.debug,
            debug_exit=plan.debug_exit,
            panicked=plan.panicked,
            linux=plan.linux,
            smbios=plan.smbios,
            level_interrupts=plan.td is None,
            clock=plan.clock,
            signal_msi=lambda message: vm.signal_msi(*message),
            route_msis=route,
        )
    except ValueError as error:  # the debug exit is the only device that has not a place of its own
        raise LaunchError(f"there can be no debug exit at port {plan.debug_exit or 0:#x}: {error}") from None
    if plan.direct is not None:
        board.program_chipset()
    for device in plan.devices:
        board.plug(device, slots.memory, plan.say)
    return board
