# SPDX-License-Identifier: GPL-2.0-or-later
"""Every release by every state of a TD by every call whose answer depends on that state.

`CALLS` is data: for each call the states in which it fails, with errno and condition of the kernel's source that
has it (arch/x86/kvm/vmx/tdx.c, x86.c, regs.c and mmu/mmu.c of Linux 6.16, 6.19, 7.1 and 7.2). In every other state the
call succeeds, and on a VM that is dead every call is EIO (``kvm->vm_dead``, virt/kvm/kvm_main.c). Nothing here was
taken from what the emulated kernel answers.

`V10_CALLS` is the same for the series of November 2022, as far as its mails have the condition (patches 018, 019, 021,
025 and 061): the calls that carry TDX commands.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi import tdx_v10 as v10
from swtdx.uapi.layout import with_entries
from swtdx.uapi.release import KernelRelease
from tests.linux.conftest import boot, boot_v10, exits

UPSTREAM = [name.value for name in KernelRelease if name is not KernelRelease.V10]
STATES = ("created", "INIT_VM", "vCPU", "INIT_VCPU", "memory", "finalized", "dead")
"""Each is reached from the one before. "dead": KVM_BUG_ON, or KVM_TDX_TERMINATE_VM where there is one."""
WITH_VCPU = STATES[2:]


def through(last: str) -> tuple[str, ...]:
    """The states up to ``last``."""
    return STATES[: STATES.index(last) + 1]


def since(first: str) -> tuple[str, ...]:
    """The states from ``first`` on, but for the dead one."""
    return STATES[STATES.index(first) : -1]


class Subject:
    """A TD in one of the states."""

    def __init__(self, release: str, state: str) -> None:
        old = release == KernelRelease.V10.value
        self.bench = bench = boot_v10() if old else boot(release=release, logical_processors=4)
        self.vm = bench.td(init=False)
        self.vcpu = -1
        number = STATES.index(state)
        if number >= STATES.index("INIT_VM"):
            bench.command(self.vm, up.KVM_TDX_INIT_VM, bench.init_vm())
        if number >= STATES.index("vCPU"):
            self.vcpu = bench.vcpu(self.vm, init=False)
        if number >= STATES.index("INIT_VCPU"):
            bench.command(self.vcpu, up.KVM_TDX_INIT_VCPU, 0)
        self.source = bench.memory(self.vm)
        if number >= STATES.index("memory"):
            bench.command(self.vm if old else self.vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(self.source, 0, 1))
        if number >= STATES.index("finalized"):
            bench.command(self.vm, up.KVM_TDX_FINALIZE_VM)
        if state == "dead":
            if release == "next":
                bench.command(self.vm, up.KVM_TDX_TERMINATE_VM)
            else:
                bench.vm_object().bug("a test")


Do = Callable[[Subject], Any]


@dataclass(frozen=True)
class Call:
    """``fails``: by state, (errno, condition in the kernel's source). ``since``: the first release that has them;
    ``before``: what the older ones have."""

    do: Do
    fails: Mapping[str, tuple[int, str]]
    states: tuple[str, ...] = STATES
    since: str = "6.16"
    before: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def failing(states: tuple[str, ...], code: int, why: str) -> dict[str, tuple[int, str]]:
    return dict.fromkeys(states, (code, why))


def on_vm(request: int, argument: Callable[[Subject], Any] | int = 0) -> Do:
    return lambda td: td.bench.ioctl(td.vm, request, argument(td) if callable(argument) else argument)


def on_vcpu(request: int, argument: Callable[[Subject], Any] | int = 0) -> Do:
    return lambda td: td.bench.ioctl(td.vcpu, request, argument(td) if callable(argument) else argument)


def vm_command(number: int, data: Callable[[Subject], Any] | int = 0) -> Do:
    return lambda td: td.bench.command(td.vm, number, data(td) if callable(data) else data)


def vcpu_command(number: int, data: Callable[[Subject], Any] | int = 0) -> Do:
    return lambda td: td.bench.command(td.vcpu, number, data(td) if callable(data) else data)


def capabilities(td: Subject) -> Any:
    space = (ctypes.c_char * 8192)()
    up.kvm_tdx_capabilities.from_buffer(space).cpuid.nent = 100
    return space


def room_for_cpuid(td: Subject) -> Any:
    answer = with_entries(k.kvm_cpuid2, 256)()
    answer.nent = 256
    return answer


def run(td: Subject) -> int:
    td.bench.module.answers["VP_ENTER"] = exits()
    return td.bench.ioctl(td.vcpu, k.KVM_RUN)


def new_slot(td: Subject) -> Any:
    return k.kvm_userspace_memory_region2(slot=9, guest_phys_addr=1 << 30, memory_size=4096, userspace_addr=td.source)


def attributes(td: Subject) -> Any:
    return k.kvm_memory_attributes(address=0xF000, size=4096, attributes=8)


def empty(layout: type[ctypes.Structure]) -> Callable[[Subject], Any]:
    return lambda td: layout()


PROTECTED = failing(
    since("vCPU"), errno.EINVAL, "has_protected_state && guest_state_protected, which tdx_vcpu_create sets"
)
CONFIDENTIAL = failing(since("vCPU"), errno.EINVAL, "fpstate_is_confidential && has_protected_state")
FINAL = "kvm_tdx->state == TD_STATE_RUNNABLE"
WITH_STATE = {
    "KVM_GET_REGS": (k.kvm_regs, PROTECTED),
    "KVM_SET_REGS": (k.kvm_regs, PROTECTED),
    "KVM_GET_SREGS": (k.kvm_sregs, PROTECTED),
    "KVM_SET_SREGS": (k.kvm_sregs, PROTECTED),
    "KVM_GET_SREGS2": (k.kvm_sregs2, PROTECTED),
    "KVM_SET_SREGS2": (k.kvm_sregs2, PROTECTED),
    "KVM_GET_DEBUGREGS": (k.kvm_debugregs, PROTECTED),
    "KVM_SET_DEBUGREGS": (k.kvm_debugregs, PROTECTED),
    "KVM_GET_XCRS": (k.kvm_xcrs, PROTECTED),
    "KVM_SET_XCRS": (k.kvm_xcrs, PROTECTED),
    "KVM_GET_FPU": (k.kvm_fpu, CONFIDENTIAL),
    "KVM_SET_FPU": (k.kvm_fpu, CONFIDENTIAL),
    "KVM_GET_XSAVE": (k.kvm_xsave, CONFIDENTIAL),
    "KVM_SET_XSAVE": (k.kvm_xsave, CONFIDENTIAL),
    "KVM_SET_GUEST_DEBUG": (
        k.kvm_guest_debug,
        failing(since("vCPU"), errno.EINVAL, "kvm_arch_vcpu_ioctl_set_guest_debug: guest_state_protected"),
    ),
    "KVM_GET_LAPIC": (
        k.kvm_lapic_state,
        failing(since("vCPU"), errno.EINVAL, "guest_apic_protected, which tdx_vcpu_create sets"),
    ),
    "KVM_SET_LAPIC": (
        k.kvm_lapic_state,
        failing(since("vCPU"), errno.EINVAL, "guest_apic_protected, which tdx_vcpu_create sets"),
    ),
    "KVM_GET_MP_STATE": (k.kvm_mp_state, {}),
}
CALLS: dict[str, Call] = {
    "KVM_TDX_CAPABILITIES": Call(vm_command(up.KVM_TDX_CAPABILITIES, capabilities), {}),
    "KVM_TDX_INIT_VM": Call(
        vm_command(up.KVM_TDX_INIT_VM, lambda td: td.bench.init_vm()),
        failing(since("INIT_VM"), errno.EINVAL, "tdx_td_init: kvm_tdx->state != TD_STATE_UNINITIALIZED"),
    ),
    "KVM_TDX_FINALIZE_VM": Call(
        vm_command(up.KVM_TDX_FINALIZE_VM),
        failing(("created",), errno.EINVAL, "tdx_td_finalize: !is_hkid_assigned")
        | failing(("finalized",), errno.EINVAL, f"tdx_td_finalize: {FINAL}"),
    ),
    "a command that no VM has": Call(
        vm_command(99), failing(STATES[:-1], errno.EINVAL, "tdx_vm_ioctl: default of the switch")
    ),
    "KVM_TDX_INIT_VCPU on the VM": Call(
        vm_command(up.KVM_TDX_INIT_VCPU), failing(STATES[:-1], errno.EINVAL, "tdx_vm_ioctl: default of the switch")
    ),
    "KVM_CREATE_VCPU": Call(
        on_vm(k.KVM_CREATE_VCPU, 3),
        failing(("created", "finalized"), errno.EIO, "tdx_vcpu_create: kvm_tdx->state != TD_STATE_INITIALIZED"),
    ),
    "KVM_CREATE_VCPU of one that exists": Call(
        on_vm(k.KVM_CREATE_VCPU, 0),
        failing(("vCPU", "INIT_VCPU", "memory"), errno.EEXIST, "kvm_vm_ioctl_create_vcpu: kvm_get_vcpu_by_id"),
        states=("vCPU", "INIT_VCPU", "memory", "dead"),
    ),
    "KVM_CREATE_VCPU of one that exists, once final": Call(
        on_vm(k.KVM_CREATE_VCPU, 0),
        failing(("finalized",), errno.EEXIST, "kvm_vm_ioctl_create_vcpu: kvm_get_vcpu_by_id"),
        states=("finalized",),
        since="7.3",
        before=failing(("finalized",), errno.EIO, "tdx_vcpu_create comes before the look at kvm_get_vcpu_by_id"),
    ),
    "KVM_SET_TSC_KHZ on the VM": Call(
        on_vm(k.KVM_SET_TSC_KHZ, 2_000_000),
        failing(since("vCPU"), errno.EINVAL, "kvm_arch_vm_ioctl: kvm->created_vcpus"),
        since="6.18",
    ),
    "KVM_SET_MEMORY_ATTRIBUTES": Call(on_vm(k.KVM_SET_MEMORY_ATTRIBUTES, attributes), {}),
    "KVM_CREATE_GUEST_MEMFD": Call(on_vm(k.KVM_CREATE_GUEST_MEMFD, lambda td: k.kvm_create_guest_memfd(size=4096)), {}),
    "KVM_SET_USER_MEMORY_REGION2": Call(on_vm(k.KVM_SET_USER_MEMORY_REGION2, new_slot), {}),
    "KVM_TDX_INIT_VCPU": Call(
        vcpu_command(up.KVM_TDX_INIT_VCPU),
        failing(("INIT_VCPU", "memory"), errno.EINVAL, "tdx_vcpu_init: tdx->state != VCPU_TD_STATE_UNINITIALIZED")
        | failing(("finalized",), errno.EINVAL, f"tdx_vcpu_ioctl: {FINAL}"),
        states=WITH_VCPU,
    ),
    "KVM_TDX_INIT_MEM_REGION": Call(
        vcpu_command(up.KVM_TDX_INIT_MEM_REGION, lambda td: td.bench.region(td.source, 0x2000, 1)),
        failing(("vCPU",), errno.EINVAL, "tdx_vcpu_init_mem_region: tdx->state != VCPU_TD_STATE_INITIALIZED")
        | failing(("finalized",), errno.EINVAL, f"tdx_vcpu_ioctl: {FINAL}"),
        states=WITH_VCPU,
    ),
    "KVM_TDX_GET_CPUID": Call(
        vcpu_command(up.KVM_TDX_GET_CPUID, room_for_cpuid),
        failing(("finalized",), errno.EINVAL, f"tdx_vcpu_ioctl: {FINAL}"),
        states=WITH_VCPU,
    ),
    "a command that no vCPU has": Call(
        vcpu_command(99),
        failing(since("vCPU"), errno.EINVAL, "tdx_vcpu_ioctl: default of the switch"),
        states=WITH_VCPU,
    ),
    "KVM_TDX_FINALIZE_VM on a vCPU": Call(
        vcpu_command(up.KVM_TDX_FINALIZE_VM),
        failing(since("vCPU"), errno.EINVAL, "tdx_vcpu_ioctl: default of the switch"),
        states=WITH_VCPU,
    ),
    "KVM_RUN": Call(
        run,
        failing(
            ("vCPU", "INIT_VCPU", "memory"),
            errno.EINVAL,
            "tdx_vcpu_pre_run: vCPU or TD not in the state to run",
        ),
        states=WITH_VCPU,
    ),
    "KVM_PRE_FAULT_MEMORY": Call(
        on_vcpu(k.KVM_PRE_FAULT_MEMORY, lambda td: k.kvm_pre_fault_memory(gpa=0x3000, size=4096)),
        failing(
            ("vCPU", "INIT_VCPU", "memory"),
            errno.EOPNOTSUPP,
            "!kvm->arch.pre_fault_allowed, which tdx_td_finalize sets",
        ),
        states=WITH_VCPU,
    ),
    "KVM_SET_TSC_KHZ on a vCPU": Call(
        on_vcpu(k.KVM_SET_TSC_KHZ, 2_000_000),
        failing(since("vCPU"), errno.EINVAL, "guest_tsc_protected, which tdx_vcpu_create sets"),
        states=WITH_VCPU,
    ),
    "KVM_NMI": Call(on_vcpu(k.KVM_NMI), {}, states=WITH_VCPU),
    **{
        name: Call(on_vcpu(k.REQUESTS[name], empty(layout)), fails, states=WITH_VCPU)
        for name, (layout, fails) in WITH_STATE.items()
    },
}


NO_VCPU_COMMAND = failing(("vCPU",), errno.EINVAL, "tdx_vcpu_ioctl: cmd.id != KVM_TDX_INIT_VCPU") | failing(
    ("INIT_VCPU", "memory", "finalized"), errno.EINVAL, "tdx_vcpu_ioctl: vcpu->initialized comes first"
)
V10_CALLS: dict[str, Call] = {
    "KVM_TDX_INIT_VM": Call(
        vm_command(v10.KVM_TDX_INIT_VM, lambda td: td.bench.init_vm()),
        failing(since("INIT_VM"), errno.EINVAL, "tdx_td_init: is_hkid_assigned comes before created_vcpus"),
    ),
    "KVM_TDX_INIT_MEM_REGION": Call(
        vm_command(v10.KVM_TDX_INIT_MEM_REGION, lambda td: td.bench.region(td.source, 0x2000, 1)),
        failing(("created", "INIT_VM"), errno.EINVAL, "tdx_init_mem_region: !online_vcpus")
        | failing(("finalized",), errno.EINVAL, "tdx_init_mem_region: is_td_finalized (v9 and v11)"),
    ),
    "KVM_TDX_FINALIZE_VM": Call(
        vm_command(v10.KVM_TDX_FINALIZE_VM),
        failing(("created", "finalized"), errno.EINVAL, "tdx_td_finalizemr: !is_hkid_assigned or is_td_finalized"),
    ),
    "KVM_TDX_INIT_VCPU on the VM": Call(
        vm_command(v10.KVM_TDX_INIT_VCPU), failing(STATES[:-1], errno.EINVAL, "tdx_vm_ioctl: default of the switch")
    ),
    "a command that no VM has": Call(
        vm_command(99), failing(STATES[:-1], errno.EINVAL, "tdx_vm_ioctl: default of the switch")
    ),
    "KVM_CREATE_VCPU": Call(on_vm(k.KVM_CREATE_VCPU, 3), {}),
    "KVM_CREATE_VCPU of one that exists": Call(
        on_vm(k.KVM_CREATE_VCPU, 0),
        failing(since("vCPU"), errno.EEXIST, "kvm_vm_ioctl_create_vcpu: kvm_get_vcpu_by_id"),
        states=WITH_VCPU,
    ),
    "KVM_TDX_INIT_VCPU": Call(
        vcpu_command(v10.KVM_TDX_INIT_VCPU),
        failing(("INIT_VCPU", "memory", "finalized"), errno.EINVAL, "tdx_vcpu_ioctl: vcpu->initialized"),
        states=WITH_VCPU,
    ),
    "KVM_TDX_INIT_MEM_REGION on a vCPU": Call(
        vcpu_command(v10.KVM_TDX_INIT_MEM_REGION, lambda td: td.bench.region(td.source, 0x2000, 1)),
        NO_VCPU_COMMAND,
        states=WITH_VCPU,
    ),
    "KVM_TDX_FINALIZE_VM on a vCPU": Call(vcpu_command(v10.KVM_TDX_FINALIZE_VM), NO_VCPU_COMMAND, states=WITH_VCPU),
    "a command that no vCPU has": Call(vcpu_command(99), NO_VCPU_COMMAND, states=WITH_VCPU),
    "KVM_SET_MEMORY_ATTRIBUTES": Call(
        on_vm(k.KVM_SET_MEMORY_ATTRIBUTES, attributes), failing(STATES[:-1], errno.ENOTTY, "there is no such ioctl")
    ),
}


def expected(call: Call, release: str, state: str) -> tuple[int, str]:
    if state == "dead":
        return errno.EIO, "kvm->vm_dead"
    if release in UPSTREAM and UPSTREAM.index(release) < UPSTREAM.index(call.since):
        return call.before.get(state, (0, f"the condition came with {call.since}"))
    return call.fails.get(state, (0, "no condition"))


def named(code: int) -> str:
    return errno.errorcode[code] if code else "success"


@pytest.mark.parametrize("release", [*UPSTREAM, "v10"])
@pytest.mark.parametrize("state", STATES)
def test_calls_by_state(release: str, state: str) -> None:
    """One TD for each call, since a call that succeeds changes the state."""
    wrong = []
    for name, call in (V10_CALLS if release == "v10" else CALLS).items():
        if state not in call.states:
            continue
        td, found = Subject(release, state), 0
        try:
            call.do(td)
        except OSError as error:
            found = error.errno or 0
        code, why = expected(call, release, state)
        if found != code:
            wrong.append(f"{name}: {named(found)}, and the kernel's answer is {named(code)} ({why})")
    assert not wrong, "\n".join(wrong)


def test_the_table_names_states_that_there_are() -> None:
    for name, call in (*CALLS.items(), *V10_CALLS.items()):
        assert set(call.fails) <= set(call.states) - {"dead"}, name
        assert call.since in UPSTREAM, name
