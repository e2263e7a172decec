# SPDX-License-Identifier: GPL-2.0-or-later
"""The creation flow: the order of calls in both dialects, what they carry, and that nothing stays behind."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from swtdx.image.mrtd import MrtdPredictor, Order
from swtdx.image.tdvf import TdvfError
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.tdx_upstream import kvm_tdx_init_vm
from swtdx.uapi.tdx_v10 import kvm_tdx_init_vm as kvm_tdx_init_vm_v10
from swtdx.vmm.launch import LaunchError, Plan, TdParameters, launch
from testing.tdvf_image import BASE, BFV, CFV, HOB, SIZE, TEMP, image_with
from tests.vmm.fake_kernel import FakeKernel

Planner = Callable[..., Plan]


def without_repeats(calls: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [call for position, call in enumerate(calls) if position == 0 or calls[position - 1] != call]


MAPPING = ("KVM_CREATE_GUEST_MEMFD", "KVM_SET_USER_MEMORY_REGION2", "KVM_SET_MEMORY_ATTRIBUTES")


def test_upstream_order(plan: Planner) -> None:
    kernel = FakeKernel()
    with Kvm(kernel) as device, launch(device, plan(cpus=2)):
        pass
    order = [call for call in without_repeats(kernel.calls) if call[1] != "close"]
    assert [call for call in order if call[0] != "kvm"] == [
        ("vm", "KVM_ENABLE_CAP"),
        ("vm", "KVM_TDX_CAPABILITIES"),
        ("vm", "KVM_TDX_INIT_VM"),
        ("vm", "KVM_CREATE_VCPU"),
        ("vcpu0", "KVM_SET_CPUID2"),
        ("vm", "KVM_CREATE_VCPU"),
        ("vcpu1", "KVM_SET_CPUID2"),
        ("vcpu0", "KVM_TDX_INIT_VCPU"),
        ("vcpu1", "KVM_TDX_INIT_VCPU"),
        *[("vm", name) for name in MAPPING] * 2,
        ("vcpu0", "KVM_TDX_INIT_MEM_REGION"),
        ("vm", "KVM_TDX_FINALIZE_VM"),
    ]  # fmt: skip
    assert kernel.attributes == [(0, 64 << 20, 8), (BASE, SIZE, 8)]


def test_v10_order(plan: Planner) -> None:
    kernel = FakeKernel(Dialect.V10)
    with Kvm(kernel, Dialect.V10) as device, launch(device, plan()):
        pass
    order = [call for call in without_repeats(kernel.calls) if call[1] != "close" and call[0] != "kvm"]
    assert order == [
        ("vm", "KVM_ENABLE_CAP"),
        ("vm", "KVM_TDX_CAPABILITIES"),
        ("vm", "KVM_TDX_INIT_VM"),
        ("vm", "KVM_CREATE_VCPU"),
        ("vcpu0", "KVM_SET_CPUID2"),
        ("vcpu0", "KVM_TDX_INIT_VCPU"),
        ("vm", "KVM_SET_USER_MEMORY_REGION"),
        ("vm", "KVM_TDX_INIT_MEM_REGION"),
        ("vm", "KVM_TDX_FINALIZE_VM"),
    ]


@pytest.mark.parametrize("dialect", Dialect)
def test_sections_are_added_in_the_order_of_the_metadata_with_their_contents(dialect: Dialect, plan: Planner) -> None:
    kernel = FakeKernel(dialect)
    with Kvm(kernel, dialect) as device, launch(device, plan()) as machine:
        predicted = dict(machine.mrtd)
    image = image_with()
    assert [(gpa, pages, measured) for gpa, pages, measured, _ in kernel.regions] == [
        (BASE + 0x4000, 12, True), (BASE, 4, False), (0x80_0000, 6, False), (0x80_9000, 2, False),
    ]  # fmt: skip
    assert kernel.regions[0][3] == image[0x4000:]
    assert kernel.regions[1][3] == image[:0x4000]
    assert kernel.regions[2][3] == bytes(0x6000)
    assert kernel.regions[3][3][:4] == b"\x01\x00\x38\x00"  # EFI_HOB_TYPE_HANDOFF, 56 bytes
    for order in Order:
        predictor = MrtdPredictor(order)
        for gpa, _, measured, contents in kernel.regions:
            predictor.add_region(gpa, contents, measured)
        assert predicted[order] == predictor.digest()


def test_init_vm_carries_what_the_owner_decided(plan: Planner) -> None:
    kernel = FakeKernel()
    td = TdParameters(mrconfigid=b"\x11" * 48, mrowner=b"\x22" * 48, mrownerconfig=b"\x33" * 48, gpa_width=52)
    with Kvm(kernel) as device, launch(device, plan(td=td)):
        pass
    init = kvm_tdx_init_vm.from_buffer_copy(kernel.init_vm)
    assert (init.attributes, init.xfam) == (1 << 28, 3)
    assert bytes(init.mrconfigid) + bytes(init.mrowner) + bytes(init.mrownerconfig) == bytes(
        b"\x11" * 48 + b"\x22" * 48 + b"\x33" * 48
    )


def test_v10_init_vm_says_how_many_vcpus(plan: Planner) -> None:
    kernel = FakeKernel(Dialect.V10)
    with Kvm(kernel, Dialect.V10) as device, launch(device, plan(cpus=3)):
        pass
    assert kvm_tdx_init_vm_v10.from_buffer_copy(kernel.init_vm).max_vcpus == 3


def test_vcpus_have_x2apic_and_their_own_apic_ids(plan: Planner) -> None:
    kernel = FakeKernel()
    with Kvm(kernel) as device, launch(device, plan(cpus=3)):
        pass
    for number in range(3):
        by_leaf = {(entry.function, entry.index): entry for entry in kernel.cpuids[f"vcpu{number}"]}
        features = by_leaf[0x1, 0]
        assert features.ecx >> 21 & 1
        assert features.ebx >> 24 == number
        assert features.ebx >> 16 & 0xFF == 4
        assert by_leaf[0xB, 1].ebx == 3
        assert by_leaf[0xB, 1].edx == number


def test_an_ordinary_vm_has_the_firmware_as_rom_and_no_tdx(plan: Planner) -> None:
    kernel = FakeKernel(tdx=False)
    with Kvm(kernel) as device, launch(device, plan(td=None)) as machine:
        assert machine.slots.memory.read(BASE, SIZE) == image_with()
    names = {call for _, call in kernel.calls}
    assert not any(name.startswith("KVM_TDX") for name in names)
    assert "KVM_SET_TSS_ADDR" in names


STEPS = [
    "KVM_CREATE_VM", "KVM_ENABLE_CAP", "KVM_TDX_CAPABILITIES", "KVM_TDX_INIT_VM", "KVM_CREATE_VCPU", "KVM_SET_CPUID2",
    "KVM_TDX_INIT_VCPU", "KVM_CREATE_GUEST_MEMFD", "KVM_SET_USER_MEMORY_REGION2", "KVM_SET_MEMORY_ATTRIBUTES",
    "KVM_TDX_INIT_MEM_REGION", "KVM_TDX_FINALIZE_VM",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_refusal_at_any_step_leaves_nothing_open(step: str, plan: Planner) -> None:
    kernel = FakeKernel()
    kernel.refuse[step] = errno.EIO
    with Kvm(kernel) as device:
        with pytest.raises(KvmError, match=step):
            launch(device, plan(cpus=2))
        assert set(kernel.names.values()) == {"kvm"}


def test_what_is_taken_down_last_is_the_memory(plan: Planner) -> None:
    kernel = FakeKernel()
    with Kvm(kernel) as device:
        launch(device, plan(cpus=2)).close()
        assert set(kernel.names.values()) == {"kvm"}
    assert [name for name, call in kernel.calls if call == "close"] == ["vcpu1", "vcpu0", "vm", "memfd", "memfd", "kvm"]


def test_a_kernel_without_tdx_is_named_with_its_capability(plan: Planner) -> None:
    with (
        Kvm(FakeKernel(tdx=False)) as device,
        pytest.raises(LaunchError, match=r"KVM_CAP_VM_TYPES is 0x1, without bit 5"),
    ):
        launch(device, plan())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"td": TdParameters(attributes=1)}, "does not offer"),
        ({"cpus": 5}, "5 vCPUs are more"),
    ],
)
def test_what_the_kernel_cannot_give_is_one_sentence(changes: dict[str, object], words: str, plan: Planner) -> None:
    kernel = FakeKernel()
    with Kvm(kernel) as device:
        with pytest.raises(LaunchError, match=words):
            launch(device, plan(**changes))
        assert set(kernel.names.values()) == {"kvm"}


def test_bad_firmware_is_refused_before_the_kernel_is_asked(plan: Planner) -> None:
    kernel = FakeKernel()
    with Kvm(kernel) as device:
        with pytest.raises(TdvfError, match="needs RAM"):
            launch(device, plan(memory_size=0x80_9000))
        rows = (BFV, CFV, TEMP, HOB, (0, 0, 0x90_0000, 0x1000, 5, 0))
        firmware = plan().firmware
        broken = type(firmware)(firmware.path, firmware.why, image_with(rows=rows))
        with pytest.raises(LaunchError, match=r"section 4 \(PAYLOAD\)"):
            launch(device, plan(firmware=broken))
    assert [call for call in kernel.calls if call[1] not in ("close",)] == []
