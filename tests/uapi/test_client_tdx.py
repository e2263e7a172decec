# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client's TDX methods put on the line in either dialect, and what they make of the answers.

The kernel here is a script: it keeps each sub-command's bytes and answers as the test says. That a TD then really runs
is `test_td_launch`'s subject.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from swtdx.uapi import kvm as header
from swtdx.uapi import tdx_upstream, tdx_v10
from swtdx.uapi.client import Kvm, KvmError, TdCapabilities, Vcpu, Vm
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.layout import with_entries

DEVICE, VM, VCPU = 100, 101, 102
OPERAND_INVALID = 0xC000010000000000  # a SEAMCALL status, operand 0


def user_bytes(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


@dataclass
class Sent:
    """One sub-command as the kernel saw it."""

    fd: int
    id: int
    flags: int
    data: int
    payload: bytes


@dataclass
class Script:
    """A kernel that records sub-commands and answers them by ``answer(number of the call, address of cmd)``."""

    dialect: Dialect
    payload_size: int = 0
    answer: Callable[[int, int], None] = lambda call, cmd: None
    name: str = "script"
    sent: list[Sent] = field(default_factory=list)

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return DEVICE

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        if request == header.KVM_MEMORY_ENCRYPT_OP:
            cmd = self.dialect.cmd.from_address(arg)
            assert bytes(cmd)[16:] == bytes(len(bytes(cmd)) - 16), "what KVM writes must be 0 on the way in"
            payload = user_bytes(cmd.data, self.payload_size) if self.payload_size else b""
            self.sent.append(Sent(fd, cmd.id, cmd.flags, cmd.data, payload))
            self.answer(len(self.sent), arg)
            return 0
        if request == header.KVM_CHECK_EXTENSION:
            types = 1 | 1 << self.dialect.vm_type_tdx
            return {self.dialect.cap_vm_types: types, header.Cap.MAX_VCPUS: 288}.get(arg, 0)
        answers: dict[int, int] = {
            header.KVM_CREATE_VM: VM,
            header.KVM_CREATE_VCPU: VCPU,
            header.KVM_GET_VCPU_MMAP_SIZE: 0x3000,
        }
        return answers[request]

    def mmap(self, fd: int, length: int, offset: int = 0) -> mmap.mmap:
        return mmap.mmap(-1, length)

    def close(self, fd: int) -> None:
        pass

    def eventfd(self, initval: int = 0, flags: int = 0) -> int:
        raise NotImplementedError

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        raise NotImplementedError


def launched(script: Script) -> tuple[Vm, Vcpu]:
    vm = Kvm(script).create_td()
    return vm, vm.create_vcpu(0)


def refuse(number: int) -> OSError:
    return OSError(number, os.strerror(number))


both = pytest.mark.parametrize("dialect", Dialect)


@both
def test_the_dialect_is_found_by_asking(dialect: Dialect) -> None:
    assert Kvm(Script(dialect)).dialect is dialect


@both
def test_a_sub_command_goes_to_its_descriptor(dialect: Dialect) -> None:
    script = Script(dialect)
    vm, vcpu = launched(script)
    vcpu.tdx_init_vcpu(0x809000)
    vm.tdx_init_mem_region(0x7000, 0x1000, 3, measure=True)
    vm.tdx_finalize()
    region_fd = VM if dialect is Dialect.V10 else VCPU
    assert [(sent.fd, sent.id, sent.flags) for sent in script.sent] == [
        (VCPU, TdxCommand.INIT_VCPU, 0),
        (region_fd, TdxCommand.INIT_MEM_REGION, 1),
        (VM, TdxCommand.FINALIZE_VM, 0),
    ]
    assert script.sent[0].data == 0x809000


@both
def test_initial_memory_is_carried_on_where_a_signal_stopped_it(dialect: Dialect) -> None:
    def answer(call: int, cmd: int) -> None:
        region = dialect.init_mem_region.from_address(dialect.cmd.from_address(cmd).data)
        if call < 3:  # one page a time
            region.source_addr += 0x1000
            region.gpa += 0x1000
            region.nr_pages -= 1
            raise refuse((errno.EINTR, errno.EAGAIN)[call - 1])

    script = Script(dialect, 24, answer)
    vm, _ = launched(script)
    vm.tdx_init_mem_region(0x7000, 0x1000, 3)
    regions = [dialect.init_mem_region.from_buffer_copy(sent.payload) for sent in script.sent]
    assert [(r.source_addr, r.gpa, r.nr_pages) for r in regions] == [
        (0x7000, 0x1000, 3),
        (0x8000, 0x2000, 2),
        (0x9000, 0x3000, 1),
    ]


def test_initial_memory_needs_a_vcpu_upstream() -> None:
    vm = Kvm(Script(Dialect.UPSTREAM)).create_td()
    with pytest.raises(ValueError, match="by way of a vCPU"):
        vm.tdx_init_mem_region(0x7000, 0, 1)


@both
def test_a_refusal_names_the_sub_command_and_the_seamcall_status(dialect: Dialect) -> None:
    def answer(call: int, cmd: int) -> None:
        setattr(dialect.cmd.from_address(cmd), dialect.hw_error_member, OPERAND_INVALID)
        raise refuse(errno.EINVAL)

    vm, _ = launched(Script(dialect, 0, answer))
    with pytest.raises(KvmError, match=r"KVM_TDX_INIT_VM: EINVAL .*SEAMCALL status 0xc000010000000000") as caught:
        vm.tdx_init(0, 3, [])
    assert (caught.value.errno, caught.value.hw_error) == (errno.EINVAL, OPERAND_INVALID)


@both
def test_init_vm_waits_for_entropy(dialect: Dialect) -> None:
    def answer(call: int, cmd: int) -> None:
        if call < 4:
            raise refuse(errno.EAGAIN)

    script = Script(dialect, 0, answer)
    launched(script)[0].tdx_init(0, 3, [])
    assert len(script.sent) == 4


@both
def test_a_digest_of_another_size_is_a_mistake_of_the_caller(dialect: Dialect) -> None:
    vm, _ = launched(Script(dialect))
    with pytest.raises(ValueError, match="48 bytes, not 32"):
        vm.tdx_init(0, 3, [], mrowner=bytes(32))


def test_init_vm_upstream() -> None:
    script = Script(Dialect.UPSTREAM, 264 + 40)
    vm, _ = launched(script)
    entry = header.kvm_cpuid_entry2(function=0x80000008, eax=48 << 16)
    vm.tdx_init(1 << 28, 0x600E7, [entry], b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
    sent = with_entries(tdx_upstream.kvm_tdx_init_vm, 1).from_buffer_copy(script.sent[0].payload)
    assert (sent.attributes, sent.xfam, sent.cpuid.nent) == (1 << 28, 0x600E7, 1)
    assert (sent.cpuid.entries[0].function, sent.cpuid.entries[0].eax) == (0x80000008, 0x300000)
    assert bytes(sent)[16:160] == b"\x01" * 48 + b"\x02" * 48 + b"\x03" * 48
    assert bytes(sent)[160:256] == bytes(96)


def test_init_vm_v10_points_at_its_cpuid_and_carries_xfam_in_leaf_0xd() -> None:
    script = Script(Dialect.V10, 512)
    seen: list[tuple[int, ...]] = []

    def answer(call: int, cmd: int) -> None:
        init = tdx_v10.kvm_tdx_init_vm.from_address(tdx_v10.kvm_tdx_cmd.from_address(cmd).data)
        nent = header.kvm_cpuid2.from_address(init.cpuid).nent
        table = with_entries(header.kvm_cpuid2, nent).from_address(init.cpuid)
        seen.extend((e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in table.entries)

    script.answer = answer
    vm, _ = launched(script)
    old = header.kvm_cpuid_entry2(function=0xD, index=1, flags=1, eax=7, ecx=0xFFFF)
    vm.tdx_init(1 << 28, 0x1_00E7 | 1 << 8, [header.kvm_cpuid_entry2(function=1, eax=0x606A6), old], b"\x01" * 48)
    sent = tdx_v10.kvm_tdx_init_vm.from_buffer_copy(script.sent[0].payload)
    assert (sent.max_vcpus, sent.reserved0, sent.attributes) == (288, 0, 1 << 28)
    assert bytes(sent)[24:72] == b"\x01" * 48
    # XCR0's components in sub-leaf 0, XSS's (bit 8, processor trace; bit 16, hardware P-states) in sub-leaf 1
    assert seen == [(1, 0, 0, 0x606A6, 0, 0, 0), (0xD, 0, 1, 0xE7, 0, 0, 0), (0xD, 1, 1, 7, 0, 0x1_0100, 0)]


def test_capabilities_upstream_are_asked_with_more_room_until_they_fit() -> None:
    needed = 20
    rooms = []

    def answer(call: int, cmd: int) -> None:
        data = tdx_upstream.kvm_tdx_cmd.from_address(cmd).data
        room = tdx_upstream.kvm_tdx_capabilities.from_address(data).cpuid.nent
        rooms.append(room)
        if room < needed:
            raise refuse(errno.E2BIG)
        table = with_entries(tdx_upstream.kvm_tdx_capabilities, room).from_address(data)
        table.supported_attrs, table.supported_xfam = 1 << 28, 0x600E7
        table.user_tdvmcallinfo_1_r11 = 2
        table.cpuid.nent = needed
        table.cpuid.entries[needed - 1] = header.kvm_cpuid_entry2(function=0x80000008, eax=0xFF0000)

    vm, _ = launched(Script(Dialect.UPSTREAM, 0, answer))
    capabilities = vm.tdx_capabilities()
    assert rooms == [6, 12, 24]  # as QEMU asks
    assert (capabilities.attributes_allowed, capabilities.xfam_allowed) == (1 << 28, 0x600E7)
    assert (len(capabilities.cpuid), capabilities.cpuid[-1].leaf) == (needed, 0x80000008)
    assert capabilities.user_tdvmcalls == (2, 0)
    assert not capabilities.can_terminate


def test_capabilities_v10() -> None:
    def answer(call: int, cmd: int) -> None:
        data = tdx_v10.kvm_tdx_cmd.from_address(cmd).data
        table = with_entries(tdx_v10.kvm_tdx_capabilities, 2).from_address(data)
        assert table.nr_cpuid_configs >= 2
        table.attrs_fixed0, table.attrs_fixed1, table.xfam_fixed0, table.xfam_fixed1 = 0xF, 1, 0xE7, 3
        table.nr_cpuid_configs = 2
        table.cpuid_configs[0] = tdx_v10.kvm_tdx_cpuid_config(1, 0xFFFFFFFF, 0xFFF, 0, 0, 0)
        table.cpuid_configs[1] = tdx_v10.kvm_tdx_cpuid_config(4, 2, 0, 5, 0, 0)

    vm, _ = launched(Script(Dialect.V10, 0, answer))
    capabilities = vm.tdx_capabilities()
    assert (capabilities.attributes_required, capabilities.xfam_required) == (1, 3)
    assert [(c.leaf, c.subleaf, c.eax, c.ebx) for c in capabilities.cpuid] == [(1, None, 0xFFF, 0), (4, 2, 0, 5)]


def test_get_cpuid_takes_the_kernels_word_for_the_room() -> None:
    def answer(call: int, cmd: int) -> None:
        table = header.kvm_cpuid2.from_address(tdx_upstream.kvm_tdx_cmd.from_address(cmd).data)
        if table.nent < 300:
            table.nent = 300
            raise refuse(errno.E2BIG)
        table.nent = 299

    script = Script(Dialect.UPSTREAM, 0, answer)
    assert len(launched(script)[1].tdx_get_cpuid()) == 299
    assert len(script.sent) == 2


class TestConfigure:
    """Upstream KVM refuses bits that are not configurable and leaves that it does not list: section 2.3."""

    def capabilities(self, *configs: tuple[int, int, int, int, int, int]) -> TdCapabilities:
        def answer(call: int, cmd: int) -> None:
            data = tdx_upstream.kvm_tdx_cmd.from_address(cmd).data
            table = with_entries(tdx_upstream.kvm_tdx_capabilities, len(configs)).from_address(data)
            table.cpuid.nent = len(configs)
            for entry, (leaf, subleaf, eax, ebx, ecx, edx) in zip(table.cpuid.entries, configs, strict=True):
                entry.function, entry.index = leaf, subleaf
                entry.eax, entry.ebx, entry.ecx, entry.edx = eax, ebx, ecx, edx

        return launched(Script(Dialect.UPSTREAM, 0, answer))[0].tdx_capabilities()

    def test_registers_are_masked_and_other_leaves_dropped(self) -> None:
        wanted = [
            header.kvm_cpuid_entry2(function=1, eax=0x606A6, ecx=0xFFFFFFFF),
            header.kvm_cpuid_entry2(function=2, eax=1),
        ]
        (chosen,) = self.capabilities((1, 0, 0xFFF, 0, 0x80, 0)).configure(wanted)
        assert (chosen.function, chosen.eax, chosen.ecx) == (1, 0x6A6, 0x80)
        assert wanted[0].eax == 0x606A6, "the caller's entries stay as they were"

    def test_sub_leaves_are_told_apart(self) -> None:
        wanted = [header.kvm_cpuid_entry2(function=4, index=i, flags=1, eax=i + 1) for i in range(4)]
        chosen = self.capabilities((4, 3, 0xFF, 0, 0, 0), (4, 1, 0xFF, 0, 0, 0)).configure(wanted)
        assert [(entry.index, entry.eax) for entry in chosen] == [(3, 4), (1, 2)]

    @pytest.mark.parametrize("width", [48, 52])
    def test_the_guest_physical_width_goes_into_its_leaf_also_when_not_asked_for(self, width: int) -> None:
        (chosen,) = self.capabilities((0x80000008, 0, 0xFF0000, 0, 0, 0)).configure([], width)
        assert (chosen.function, chosen.eax) == (0x80000008, width << 16)
