# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU asks of KVM when it launches a TD, call by call, in the recorded order, on the raw system-call line.

The record (qemu-launch.md of the reference material) has one line for each ioctl up to the first KVM_RUN, with payloads
where they matter. Where QEMU derives a payload from an earlier answer (CPUID, XFAM, list lengths) so does the test.

Why here: the order and the payloads are those of a run of QEMU on a host with TDX, which no specification has. Without
the record tests/exec/test_qemu.py runs a QEMU that is installed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.layout import filled, with_entries

FATAL_WHEN_0 = {
    "VM_TYPES", "USER_MEMORY", "USER_MEMORY2", "GUEST_MEMFD", "MEMORY_ATTRIBUTES", "SYNC_MMU",
    "DESTROY_MEMORY_REGION_WORKS", "JOIN_MEMORY_REGIONS_WORKS", "INTERNAL_ERROR_DATA", "IOEVENTFD",
    "IOEVENTFD_ANY_LENGTH", "IRQCHIP", "IRQFD", "IRQ_ROUTING", "SIGNAL_MSI", "SET_TSS_ADDR", "SET_IDENTITY_MAP_ADDR",
    "EXT_CPUID", "MP_STATE", "DEBUGREGS", "XSAVE", "VCPU_EVENTS", "X86_ROBUST_SINGLESTEP", "MCE", "ADJUST_CLOCK",
    "X86_APIC_BUS_CYCLES_NS", "IMMEDIATE_EXIT",
}  # fmt: skip
SEPT_VE_DISABLE = 0x10000000


def recorded(reference: Path) -> Iterator[tuple[str, str, str]]:
    """(descriptor, request, rest of the line) up to the first KVM_RUN that would enter the guest."""
    text = (reference / "qemu-launch.md").read_text()
    for line in text.split("```")[1].splitlines():
        match = re.match(r"(dev|vm|vcpu\d) (KVM_\w+)(.*)", line)
        if match is None:
            continue
        fd, request, rest = match.groups()
        if request == "KVM_RUN" and "first" in rest:
            return
        times = re.search(r"\(x(\d+)\)", rest)
        for _ in range(int(times[1]) if times and "-7" not in rest else 1):
            yield fd, request, rest


class Launch:
    """A VMM that does what each line says."""

    def __init__(self, kernel: MachineKernel) -> None:
        self.kernel = kernel
        self.fds: dict[str, int] = {"dev": kernel.open("/dev/kvm")}
        self.keep: list[Any] = []
        self.counts: dict[str, int] = {}
        self.memfds: list[int] = []
        self.memory: list[tuple[int, int, int]] = []
        self.runs: dict[str, mmap.mmap] = {}
        self.capabilities: Any = None
        self.cpuid: list[k.kvm_cpuid_entry2] = []
        self.answered: dict[str, int] = {}

    def call(self, fd: str, request: str, argument: Any = 0) -> int:
        self.keep.append(argument)
        address = argument if isinstance(argument, int) else ctypes.addressof(argument)
        return self.kernel.ioctl(self.fds[fd], k.REQUESTS[request], address)

    def step(self, fd: str, request: str, rest: str) -> None:
        """One line of the record."""
        name = request.removeprefix("KVM_").lower()
        action: Callable[[str, str], None] | None = getattr(self, "_" + name, None)
        if action is not None:
            action(fd, rest)
            return
        arguments: dict[str, Any] = {
            "KVM_SET_IDENTITY_MAP_ADDR": ctypes.c_uint64(0xFEFFC000),
            "KVM_SET_TSS_ADDR": 0xFEFFD000,
            "KVM_X86_GET_MCE_CAP_SUPPORTED": ctypes.c_uint64(),
            "KVM_X86_SETUP_MCE": ctypes.c_uint64(1 << 24 | 1 << 8 | 10),
            "KVM_GET_CLOCK": k.kvm_clock_data(),
            "KVM_SET_CLOCK": k.kvm_clock_data(clock=1_000_000),
            "KVM_IRQ_LINE": k.kvm_irq_level(level=0),
            "KVM_TPR_ACCESS_REPORTING": k.kvm_tpr_access_ctl(enabled=1),
            "KVM_SET_VAPIC_ADDR": k.kvm_vapic_addr(),
            "KVM_SET_MSRS": filled(k.kvm_msrs, []),
            "KVM_GET_API_VERSION": 0,
            "KVM_GET_VCPU_MMAP_SIZE": 0,
            "KVM_GET_TSC_KHZ": 0,
            "KVM_SET_TSC_KHZ": 0,
            "KVM_GET_STATS_FD": 0,
        }
        answer = self.call(fd, request, arguments[request])
        expected = {"KVM_GET_API_VERSION": 12, "KVM_GET_VCPU_MMAP_SIZE": 0x3000}.get(request)
        assert expected in (None, answer)

    def _check_extension(self, fd: str, rest: str) -> None:
        name = rest.split()[0].removeprefix("KVM_CAP_")
        self.answered[name] = self.call(fd, "KVM_CHECK_EXTENSION", int(k.Cap[name]))

    def _create_vm(self, fd: str, rest: str) -> None:
        assert rest.split() == ["type", "5"]
        self.fds["vm"] = self.call(fd, "KVM_CREATE_VM", 5)

    def _enable_cap(self, fd: str, rest: str) -> None:
        name, first = re.findall(r"KVM_CAP_(\w+) args \['(\w+)'", rest)[0]
        request = k.kvm_enable_cap(cap=int(k.Cap[name]))
        request.args[0] = int(first, 16)
        assert self.call(fd, "KVM_ENABLE_CAP", request) == 0

    def _msr_list(self, fd: str, request: str, rest: str) -> None:
        count = 0 if rest.split()[-1] == "0" else self.counts[request]
        array = filled(k.kvm_msr_list, [0] * count, nmsrs=count)
        try:
            self.call(fd, request, array)
        except OSError as error:
            if (error.errno, count) != (errno.E2BIG, 0):
                raise
        self.counts[request] = array.nmsrs

    def _get_msr_index_list(self, fd: str, rest: str) -> None:
        self._msr_list(fd, "KVM_GET_MSR_INDEX_LIST", rest)

    def _get_msr_feature_index_list(self, fd: str, rest: str) -> None:
        self._msr_list(fd, "KVM_GET_MSR_FEATURE_INDEX_LIST", rest)

    def _get_msrs(self, fd: str, rest: str) -> None:
        index = int(rest.split("'")[1], 16)
        assert self.call(fd, "KVM_GET_MSRS", filled(k.kvm_msrs, [k.kvm_msr_entry(index=index)], nmsrs=1)) == 1

    def _get_supported_cpuid(self, fd: str, rest: str) -> None:
        if "-7" in rest:
            return  # the loop is played whole at its last line
        room = 1
        while not self.cpuid:
            request = filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2()] * room, nent=room)
            try:
                self.call(fd, "KVM_GET_SUPPORTED_CPUID", request)
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                room *= 2
                continue
            assert request.nent < room
            self.cpuid = list(request.entries)[: request.nent]

    def _get_device_attr(self, fd: str, rest: str) -> None:
        value = ctypes.c_uint64()
        assert self.call(fd, "KVM_GET_DEVICE_ATTR", k.kvm_device_attr(addr=ctypes.addressof(value))) == 0
        assert value.value & 3 == 3

    def _set_gsi_routing(self, fd: str, rest: str) -> None:
        entries = [k.kvm_irq_routing_entry(gsi=gsi, type=k.KVM_IRQ_ROUTING_MSI) for gsi in range(24)]
        self.call(fd, "KVM_SET_GSI_ROUTING", filled(k.kvm_irq_routing, entries, nr=24))

    def _create_guest_memfd(self, fd: str, rest: str) -> None:
        size = int(rest.split()[1], 16)
        self.memfds.append(self.call(fd, "KVM_CREATE_GUEST_MEMFD", k.kvm_create_guest_memfd(size=size)))

    def _set_user_memory_region2(self, fd: str, rest: str) -> None:
        slot, flags, gpa, size = re.findall(r"slot (\d+) flags (\d+) gpa (\w+) size (\w+)", rest)[0]
        length = int(size, 16)
        backing = mmap.mmap(-1, length)
        address = ctypes.addressof(ctypes.c_char.from_buffer(backing))
        self.keep.append(backing)
        self.memory.append((int(gpa, 16), length, address))
        region = k.kvm_userspace_memory_region2(
            slot=int(slot),
            flags=int(flags),
            guest_phys_addr=int(gpa, 16),
            memory_size=length,
            userspace_addr=address,
            guest_memfd=self.memfds[int(slot)],
        )
        assert self.call(fd, "KVM_SET_USER_MEMORY_REGION2", region) == 0

    def _set_memory_attributes(self, fd: str, rest: str) -> None:
        address, size, _, attributes = rest.split()
        request = k.kvm_memory_attributes(address=int(address, 16), size=int(size, 16), attributes=int(attributes))
        assert self.call(fd, "KVM_SET_MEMORY_ATTRIBUTES", request) == 0

    def _create_vcpu(self, fd: str, rest: str) -> None:
        number = int(rest.split()[1])
        name = f"vcpu{number}"
        self.fds[name] = self.call(fd, "KVM_CREATE_VCPU", number)
        self.runs[name] = self.kernel.mmap(self.fds[name], 0x3000)

    def _set_cpuid2(self, fd: str, rest: str) -> None:
        assert self.call(fd, "KVM_SET_CPUID2", filled(k.kvm_cpuid2, self.cpuid, nent=len(self.cpuid))) == 0

    def _run(self, fd: str, rest: str) -> None:
        assert "immediate_exit" in rest
        run = k.kvm_run.from_buffer(self.runs[fd])
        run.immediate_exit = 1
        with pytest.raises(InterruptedError):
            self.call(fd, "KVM_RUN")
        run.immediate_exit = 0

    # --- TDX ----------------------------------------------------------------------------------------------------------

    def command(self, fd: str, number: int, data: Any, flags: int = 0) -> int:
        self.keep.append(data)
        address = data if isinstance(data, int) else ctypes.addressof(data)
        command = up.kvm_tdx_cmd(id=number, flags=flags, data=address)
        answer = self.call(fd, "KVM_MEMORY_ENCRYPT_OP", command)
        assert command.hw_error == 0
        return answer

    def _tdx_capabilities(self, fd: str, rest: str) -> None:
        if self.capabilities is not None or not rest.endswith(" 6"):
            return  # the loop is played whole at its first line
        room = 6
        while room <= 256:
            answer = with_entries(up.kvm_tdx_capabilities, room)()
            answer.cpuid.nent = room
            try:
                self.command(fd, up.KVM_TDX_CAPABILITIES, answer)
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                room *= 2
            else:
                self.capabilities = answer
                return

    def _tdx_init_vm(self, fd: str, rest: str) -> None:
        """CPUID as recorded, each register under the mask of what may be configured, as QEMU does it."""
        capabilities = self.capabilities
        masks = {(e.function, e.index): e for e in list(capabilities.cpuid.entries)[: capabilities.cpuid.nent]}
        entries = []
        for line in re.findall(r"\('(\w+)', (\d+), (\d+), '(\w+)', '(\w+)', '(\w+)', '(\w+)'\)", rest):
            function, index, flags = int(line[0], 16), int(line[1]), int(line[2])
            mask = masks.get((function, index))
            if mask is None:
                continue
            registers = {
                name: int(value, 16) & getattr(mask, name)
                for name, value in zip(("eax", "ebx", "ecx", "edx"), line[3:], strict=True)
            }
            own = next((entry.eax for entry in self.cpuid if entry.function == function), 0)
            if function == 1:  # -cpu host: family, model and stepping are the machine's, and so is its address width
                registers["eax"] = own
            elif function == 0x80000008:
                registers["eax"] = own & 0xFF | (52 if own & 0xFF == 52 else 48) << 16
            entries.append(k.kvm_cpuid_entry2(function=function, index=index, flags=flags, **registers))
        init = filled(up.kvm_tdx_init_vm, entries)
        init.cpuid.nent = len(entries)
        init.attributes = SEPT_VE_DISABLE
        init.xfam = 0x600E3 & capabilities.supported_xfam
        assert "attributes 0x10000000 xfam 0x600e3" in rest
        assert self.command(fd, up.KVM_TDX_INIT_VM, init) == 0

    def _tdx_get_cpuid(self, fd: str, rest: str) -> None:
        assert self.command(fd, up.KVM_TDX_GET_CPUID, filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2()] * 100, nent=100)) == 0

    def _tdx_init_vcpu(self, fd: str, rest: str) -> None:
        assert self.command(fd, up.KVM_TDX_INIT_VCPU, int(rest.split()[-1], 16)) == 0

    def _tdx_init_mem_region(self, fd: str, rest: str) -> None:
        flags, gpa, pages = re.findall(r"flags (\d+) gpa (\w+) pages (\d+)", rest)[0]
        start, _, user = next(m for m in self.memory if m[0] <= int(gpa, 16) < m[0] + m[1])
        region = up.kvm_tdx_init_mem_region(
            source_addr=user + int(gpa, 16) - start, gpa=int(gpa, 16), nr_pages=int(pages)
        )
        assert self.command(fd, up.KVM_TDX_INIT_MEM_REGION, region, int(flags)) == 0
        assert region.nr_pages == 0

    def _tdx_finalize_vm(self, fd: str, rest: str) -> None:
        assert self.command(fd, up.KVM_TDX_FINALIZE_VM, 0) == 0


def test_the_recorded_launch(shared_reference: Path) -> None:
    launch = Launch(boot())
    lines = list(recorded(shared_reference))
    assert len(lines) > 150
    for number, (fd, request, rest) in enumerate(lines):
        try:
            launch.step(fd, request, rest)
        except OSError as error:
            pytest.fail(f"line {number}: {fd} {request}{rest}: {error} ({launch.kernel.last_reason})")
    assert sorted(launch.fds) == ["dev", "vcpu0", "vcpu1", "vm"]
    asked = FATAL_WHEN_0 & launch.answered.keys()
    assert len(asked) == len(FATAL_WHEN_0)
    assert not {name for name in asked if not launch.answered[name]}
    assert launch.answered["VM_TYPES"] & 1 << 5
    assert launch.answered["MEMORY_ATTRIBUTES"] == 8
