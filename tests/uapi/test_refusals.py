# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM refuses, and with which errno: default VMs, on every kernel alike.

Expectations: the facts sheet ``kvm-tdx-abi.md``, sections 1 and 4.4 (marked [probe] there, or read in the kernel), and
Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from swtdx.uapi import kvm as header
from swtdx.uapi.client import Descriptor, Kvm, KvmError, Vm
from swtdx.uapi.dialect import TdxCommand
from swtdx.uapi.host import survey
from swtdx.uapi.kernel import Kernel

NOWHERE = 0x10  # an address that no process has mapped
UNKNOWN = 0xAEFE


@pytest.fixture
def kvm(kernel: Kernel) -> Iterator[Kvm]:
    with Kvm(kernel) as device:
        yield device


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as made:
        yield made


def refusal(call: Callable[[], object]) -> str:
    """The errno's name of the KvmError that ``call`` raises."""
    with pytest.raises(KvmError) as caught:
        call()
    return errno.errorcode[caught.value.errno or 0]


class TestDevice:
    def test_an_unknown_request(self, kvm: Kvm) -> None:
        assert refusal(lambda: kvm.ioctl(UNKNOWN)) == "EINVAL"

    def test_an_argument_where_none_is_taken(self, kvm: Kvm) -> None:
        assert refusal(lambda: kvm.ioctl(header.KVM_GET_API_VERSION, 1)) == "EINVAL"
        assert refusal(lambda: kvm.ioctl(header.KVM_GET_VCPU_MMAP_SIZE, 1)) == "EINVAL"

    @pytest.mark.parametrize("vm_type", [31, 32, 1 << 20])
    def test_an_unknown_vm_type(self, kvm: Kvm, vm_type: int) -> None:
        assert refusal(lambda: kvm.create_vm(vm_type)) == "EINVAL"

    def test_a_td_where_there_is_no_tdx(self, kvm: Kvm) -> None:
        if kvm.has_tdx():
            pytest.skip("this kernel makes TDs")
        assert refusal(kvm.create_td) == "EINVAL"

    def test_sub_commands_do_not_go_to_the_device(self, kvm: Kvm) -> None:
        assert refusal(lambda: kvm.ioctl(header.KVM_MEMORY_ENCRYPT_OP, NOWHERE)) == "EINVAL"

    def test_a_pointer_to_nowhere(self, kvm: Kvm) -> None:
        assert refusal(lambda: kvm.ioctl(header.KVM_GET_SUPPORTED_CPUID, NOWHERE)) == "EFAULT"
        assert refusal(lambda: kvm.ioctl(header.KVM_GET_MSR_INDEX_LIST, NOWHERE)) == "EFAULT"

    def test_too_little_room_for_cpuid(self, kvm: Kvm) -> None:
        answer = header.kvm_cpuid2(nent=0)
        assert refusal(lambda: kvm.put(header.KVM_GET_SUPPORTED_CPUID, answer)) == "E2BIG"

    def test_too_little_room_for_msrs_tells_how_many(self, kvm: Kvm) -> None:
        answer = header.kvm_msr_list(nmsrs=0)
        assert refusal(lambda: kvm.put(header.KVM_GET_MSR_INDEX_LIST, answer)) == "E2BIG"
        assert answer.nmsrs == len(kvm.msr_index_list())


class TestVm:
    def test_an_unknown_request(self, vm: Vm) -> None:
        assert refusal(lambda: vm.ioctl(UNKNOWN)) == "ENOTTY"

    def test_tdx_of_a_vm_that_is_no_td(self, vm: Vm) -> None:
        assert refusal(lambda: vm.tdx_command(TdxCommand.CAPABILITIES)) == "ENOTTY"

    def test_a_vcpu_id_taken(self, vm: Vm) -> None:
        with vm.create_vcpu(0):
            assert refusal(lambda: vm.create_vcpu(0)) == "EEXIST"

    def test_a_vcpu_id_too_large(self, vm: Vm) -> None:
        assert refusal(lambda: vm.create_vcpu(1 << 30)) == "EINVAL"

    def test_an_unknown_capability(self, vm: Vm) -> None:
        assert refusal(lambda: vm.enable_cap(9999)) == "EINVAL"

    def test_capability_flags(self, vm: Vm) -> None:
        assert refusal(lambda: vm.enable_cap(header.Cap.SPLIT_IRQCHIP, 24, flags=1)) == "EINVAL"

    def test_exit_hypercall_takes_map_gpa_range_alone(self, vm: Vm) -> None:
        assert refusal(lambda: vm.enable_cap(header.Cap.EXIT_HYPERCALL, 1 << 1)) == "EINVAL"
        vm.enable_cap(header.Cap.EXIT_HYPERCALL, 1 << header.KVM_HC_MAP_GPA_RANGE)

    def test_two_irqchips(self, vm: Vm) -> None:
        vm.split_irqchip()
        assert refusal(vm.split_irqchip) == "EEXIST"
        assert refusal(vm.create_irqchip) == "EEXIST"

    def test_an_irqchip_after_a_vcpu(self, vm: Vm) -> None:
        with vm.create_vcpu(0):
            assert refusal(vm.split_irqchip) == "EEXIST"
            assert refusal(vm.create_irqchip) == "EINVAL"

    def test_a_split_irqchip_with_too_many_pins(self, vm: Vm) -> None:
        assert refusal(lambda: vm.split_irqchip(4097)) == "EINVAL"

    def test_a_pit_without_pics(self, vm: Vm) -> None:
        assert refusal(vm.create_pit2) == "ENOENT"

    def test_routing_without_an_irqchip(self, vm: Vm) -> None:
        assert refusal(lambda: vm.set_gsi_routing([])) == "EINVAL"

    def test_a_pointer_to_nowhere(self, vm: Vm) -> None:
        assert refusal(lambda: vm.ioctl(header.KVM_SET_USER_MEMORY_REGION, NOWHERE)) == "EFAULT"
        assert refusal(lambda: vm.ioctl(header.KVM_ENABLE_CAP, NOWHERE)) == "EFAULT"


class TestMemorySlots:
    """Section 4.4."""

    @pytest.fixture
    def memory(self) -> mmap.mmap:
        return mmap.mmap(-1, 0x4000)

    def test_unaligned(self, vm: Vm, memory: mmap.mmap) -> None:
        assert refusal(lambda: vm.set_user_memory_region(0, 0x800, 0x1000, memory)) == "EINVAL"
        assert refusal(lambda: vm.set_user_memory_region(0, 0, 0x800, memory)) == "EINVAL"
        assert refusal(lambda: vm.set_user_memory_region(0, 0, 0x1000, 0x7F0000000800)) == "EINVAL"

    def test_overlap(self, vm: Vm, memory: mmap.mmap) -> None:
        vm.set_user_memory_region(0, 0, 0x2000, memory)
        assert refusal(lambda: vm.set_user_memory_region(1, 0x1000, 0x1000, memory)) == "EEXIST"

    def test_deleting_what_is_not_there(self, vm: Vm) -> None:
        assert refusal(lambda: vm.set_user_memory_region(3, 0, 0, 0)) == "EINVAL"

    def test_an_unknown_flag(self, vm: Vm, memory: mmap.mmap) -> None:
        assert refusal(lambda: vm.set_user_memory_region(0, 0, 0x1000, memory, 1 << 9)) == "EINVAL"

    def test_a_slot_number_too_large(self, vm: Vm, memory: mmap.mmap) -> None:
        slots = vm.check_extension(header.Cap.NR_MEMSLOTS)
        assert refusal(lambda: vm.set_user_memory_region(slots, 0, 0x1000, memory)) == "EINVAL"

    def test_other_memory_or_another_size_for_a_slot(self, vm: Vm, memory: mmap.mmap) -> None:
        vm.set_user_memory_region(0, 0, 0x2000, memory)
        assert refusal(lambda: vm.set_user_memory_region(0, 0, 0x1000, memory)) == "EINVAL"
        assert refusal(lambda: vm.set_user_memory_region(0, 0, 0x2000, mmap.mmap(-1, 0x2000))) == "EINVAL"

    def test_a_slot_may_move_and_be_deleted(self, vm: Vm, memory: mmap.mmap) -> None:
        vm.set_user_memory_region(0, 0, 0x2000, memory)
        vm.set_user_memory_region(0, 0x8000, 0x2000, memory)
        vm.set_user_memory_region(1, 0, 0x2000, memory)
        vm.set_user_memory_region(0, 0, 0, 0)

    def test_the_wrapping_end_of_memory(self, vm: Vm, memory: mmap.mmap) -> None:
        assert refusal(lambda: vm.set_user_memory_region(0, (1 << 64) - 0x1000, 0x2000, memory)) == "EINVAL"


class TestVcpu:
    def test_an_unknown_request(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            assert refusal(lambda: vcpu.ioctl(UNKNOWN)) == "EINVAL"
            assert refusal(lambda: vcpu.ioctl(0x5401)) == "EINVAL"  # TCGETS: not even KVM's letter

    def test_run_with_an_argument(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            assert refusal(lambda: vcpu.ioctl(header.KVM_RUN, 1)) == "EINVAL"

    def test_a_lapic_that_is_not_there(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            assert refusal(vcpu.get_lapic) == "EINVAL"

    def test_a_pointer_to_nowhere(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            for request in (header.KVM_GET_REGS, header.KVM_SET_REGS, header.KVM_SET_CPUID2, header.KVM_GET_MSRS):
                assert refusal(partial(vcpu.ioctl, request, NOWHERE)) == "EFAULT"

    def test_a_signal_mask_of_another_size(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            request = header.kvm_signal_mask(len=4)
            assert refusal(lambda: vcpu.put(header.KVM_SET_SIGNAL_MASK, request)) == "EINVAL"

    def test_tdx_of_a_vcpu_that_is_no_tds(self, vm: Vm) -> None:
        with vm.create_vcpu(0) as vcpu:
            assert refusal(lambda: vcpu.tdx_command(TdxCommand.INIT_VCPU)) in ("EINVAL", "ENOTTY")


def test_the_error_names_the_ioctl(vm: Vm) -> None:
    with pytest.raises(KvmError) as caught:
        vm.create_pit2()
    assert str(caught.value) == "KVM_CREATE_PIT2: ENOENT (No such file or directory)"


def test_a_descriptor_closes_once(kernel: Kernel) -> None:
    device = Kvm(kernel)
    device.close()
    device.close()
    assert refusal(device.api_version) == "EBADF"


def test_a_device_that_does_not_open(refusing_kernel: Kernel) -> None:
    with pytest.raises(KvmError, match="open /dev/kvm: EACCES"):
        Kvm(refusing_kernel)
    offer = survey(refusing_kernel)
    assert (offer.errno, offer.usable, offer.tdx) == (errno.EACCES, False, False)


def test_survey_agrees_with_the_client(kernel: Kernel, kvm: Kvm) -> None:
    offer = survey(kernel)
    assert offer.usable
    assert offer.api_version == 12
    assert offer.tdx == kvm.has_tdx()
    assert isinstance(kvm, Descriptor)
