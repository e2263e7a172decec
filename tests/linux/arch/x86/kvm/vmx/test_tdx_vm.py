# SPDX-License-Identifier: GPL-2.0-or-later
"""Sub-commands on the VM's fd: which check comes first, which errno it gives, and what a failure leaves behind.

Expectations: the ABI sheet of KVM's TDX (Linux 6.16), sections 2.2 to 2.4 and 5.4; v10 where said.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from typing import Any

import pytest

from swtdx.linux.arch.x86.virt.vmx.tdx import seamcall as s
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi import tdx_v10 as v10
from swtdx.uapi.layout import with_entries
from tests.linux.conftest import Bench, boot, on_release, refused

CREATE = ["MNG_CREATE", "MNG_KEY_CONFIG", *["MNG_ADDCX"] * 6, "MNG_INIT", "MNG_RD", "MNG_RD"]
RELEASE = ["MNG_VPFLUSHDONE", "PHYMEM_CACHE_WB", "MNG_KEY_FREEID"]
RECLAIM_TD = [*["PHYMEM_PAGE_RECLAIM"] * 7, "PHYMEM_PAGE_WBINVD"]


def everything_came_back(bench: Bench, hkids: int) -> None:
    assert not bench.kernel.pages.in_use
    assert bench.kernel.tdx is not None
    assert bench.kernel.tdx.free_hkids == hkids
    assert not bench.kernel.tdx.leaked_hkids


# --- Entry ------------------------------------------------------------------------------------------------------------


def test_a_normal_vm_has_no_tdx_commands(bench: Bench) -> None:
    with refused(errno.ENOTTY):
        bench.command(bench.vm(0), up.KVM_TDX_CAPABILITIES)


def test_efault_comes_before_anything_else(bench: Bench) -> None:
    with refused(errno.EFAULT):
        bench.ioctl(bench.vm(), k.KVM_MEMORY_ENCRYPT_OP, 8)


@pytest.mark.parametrize("number", range(8))
def test_hw_error_must_be_zero_for_every_command(bench: Bench, number: int) -> None:
    with refused(errno.EINVAL):
        bench.command(bench.vm(), number, error=1)


@pytest.mark.parametrize("number", [up.KVM_TDX_INIT_VCPU, up.KVM_TDX_INIT_MEM_REGION, up.KVM_TDX_GET_CPUID, 7, 99])
def test_what_is_not_a_vm_command_is_einval(bench: Bench, number: int) -> None:
    with refused(errno.EINVAL):
        bench.command(bench.td(), number)


def test_v10_wants_unused_to_be_zero(bench_v10: Bench) -> None:
    cmd = v10.kvm_tdx_cmd(id=v10.KVM_TDX_FINALIZE_VM, unused=1)
    with refused(errno.EINVAL):
        bench_v10.ioctl(bench_v10.vm(), k.KVM_MEMORY_ENCRYPT_OP, cmd)


# --- CAPABILITIES -----------------------------------------------------------------------------------------------------


def capabilities(bench: Bench, room: int, **cmd: Any) -> Any:
    answer = with_entries(up.kvm_tdx_capabilities, 8)()
    answer.reserved[249] = 7
    answer.cpuid.nent = room
    bench.command(bench.vm(), up.KVM_TDX_CAPABILITIES, answer, **cmd)
    return answer


def test_capabilities_are_what_kvm_and_module_share(bench: Bench) -> None:
    answer = capabilities(bench, 8)
    assert answer.supported_attrs == 1 << 28  # SEPT_VE_DISABLE alone: no DEBUG, PKS, PERFMON
    assert answer.supported_xfam & 3 == 3
    assert answer.supported_xfam & ~0x6DBE7 == 0
    words = (answer.kernel_tdvmcallinfo_1_r11, answer.user_tdvmcallinfo_1_r11)
    assert words == (0, 2)
    assert not any(answer.reserved[1:])
    assert [entry.function for entry in answer.cpuid.entries[: answer.cpuid.nent]] == [1, 7, 0x80000008]
    leaf_7 = answer.cpuid.entries[1]
    assert leaf_7.ebx & (1 << 4 | 1 << 11) == 0  # HLE, RTM
    assert leaf_7.ecx & 1 << 5 == 0  # WAITPKG
    assert answer.cpuid.entries[2].eax >> 16 & 0xFF == 0xFF
    assert [entry.flags for entry in answer.cpuid.entries[:3]] == [0, 0, 0]


def test_too_little_room_is_e2big_and_writes_nothing(bench: Bench) -> None:
    answer = with_entries(up.kvm_tdx_capabilities, 8)()
    answer.cpuid.nent = 2
    with refused(errno.E2BIG):
        bench.command(bench.vm(), up.KVM_TDX_CAPABILITIES, answer)
    assert answer.cpuid.nent == 2
    assert not answer.supported_attrs


def test_capabilities_flags_win_over_a_bad_pointer(bench: Bench) -> None:
    with refused(errno.EINVAL):
        bench.command(bench.vm(), up.KVM_TDX_CAPABILITIES, 8, flags=1)
    with refused(errno.EFAULT):
        bench.command(bench.vm(), up.KVM_TDX_CAPABILITIES, 8)


def test_v10_gives_the_modules_masks_and_configs_at_36(bench_v10: Bench) -> None:
    answer = with_entries(v10.kvm_tdx_capabilities, 4)()
    answer.nr_cpuid_configs = 4
    bench_v10.command(bench_v10.vm(), v10.KVM_TDX_CAPABILITIES, answer)
    assert answer.attrs_fixed0 == 0x8000000050000001
    assert answer.nr_cpuid_configs == 3
    assert bytes(answer)[36:44] == bytes([1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])
    answer.nr_cpuid_configs = 2
    with refused(errno.E2BIG):
        bench_v10.command(bench_v10.vm(), v10.KVM_TDX_CAPABILITIES, answer)


# --- INIT_VM ----------------------------------------------------------------------------------------------------------


def entry(function: int = 0x80000008, eax: int = 48 << 16, **members: int) -> k.kvm_cpuid_entry2:
    return k.kvm_cpuid_entry2(function=function, eax=eax, **members)


REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "reserved": ({"reserved": (ctypes.c_uint64 * 12)(*range(12))}, errno.EINVAL),
    "padding": ({"padding": 1}, errno.EINVAL),
    "too many entries": ({"nent": 257}, errno.E2BIG),
    "attributes": ({"attributes": 1}, errno.EINVAL),
    "xfam": ({"xfam": 3 | 1 << 14}, errno.EINVAL),
    "no address width": ({"entries": []}, errno.EINVAL),
    "a strange address width": ({"entries": [entry(eax=50 << 16)]}, errno.EINVAL),
    "TSX": ({"entries": [entry(), entry(7, 0, ebx=1 << 11)]}, errno.EINVAL),
    "WAITPKG": ({"entries": [entry(), entry(7, 0, ecx=1 << 5)]}, errno.EINVAL),
    "a leaf that is not configurable": ({"entries": [entry(), entry(2, 0)]}, errno.EINVAL),
    "a leaf twice": ({"entries": [entry(), entry(1, 0), entry(1, 0)]}, errno.EINVAL),
    "another sub-leaf": ({"entries": [entry(), entry(7, 0, index=1, flags=1)]}, errno.EINVAL),
}


@pytest.mark.parametrize("case", REFUSED)
def test_init_vm_refuses_before_any_seamcall(bench: Bench, case: str) -> None:
    members, code = REFUSED[case]
    vm = bench.td(init=False)
    bench.module.names()
    with refused(code):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm(**members))
    assert bench.module.names() == []
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())


def test_init_vm_order_of_checks(bench: Bench) -> None:
    vm = bench.td(init=False)
    with refused(errno.EINVAL):
        bench.command(vm, up.KVM_TDX_INIT_VM, 8, flags=1)  # flags before the pointer
    with refused(errno.EFAULT):
        bench.command(vm, up.KVM_TDX_INIT_VM, 8)
    with refused(errno.E2BIG):  # the count before reserved members
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm(nent=257, padding=1))
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    with refused(errno.EINVAL):  # the state before flags and pointer
        bench.command(vm, up.KVM_TDX_INIT_VM, 8, flags=1)


def test_init_vm_seamcalls_and_td_params(bench: Bench) -> None:
    written: list[bytes] = []

    def mng_init(args: Any) -> int:
        written.append(bench.kernel.processor.memory.read(args.rdx, 1024))
        return 0

    bench.module.answers["MNG_INIT"] = [mng_init]
    vm = bench.td(init=False)
    bench.module.names()
    digest = (ctypes.c_uint64 * 6)(*range(1, 7))
    bench.ioctl(vm, k.KVM_SET_TSC_KHZ, 2_000_000)
    bench.command(
        vm, up.KVM_TDX_INIT_VM, bench.init_vm(mrowner=digest, entries=[entry(eax=48 << 16 | 0x30), entry(1, 5)])
    )
    assert bench.module.names() == CREATE
    params = written[0]

    def word(offset: int, size: int = 8) -> int:
        return int.from_bytes(params[offset : offset + size], "little")

    assert (word(0), word(8), word(16, 2), word(24), word(32)) == (1 << 28, 3, 2, 6 | 3 << 3, 1 << 2)
    assert word(40, 2) == 2_000_000 // 25_000
    assert params[128:176] == bytes(digest)
    assert word(256, 4) == 5  # leaf 1 EAX, the first configurable leaf
    assert word(256 + 32, 4) == 0x30  # 0x80000008 EAX without the address width


def test_52_bits_of_address_need_five_levels(bench: Bench) -> None:
    vm = bench.td(init=False)
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm(entries=[entry(eax=52 << 16)]))
    assert bench.vm_object().mmu.direct_bits == 1 << 39
    assert bench.vm_object().mmu.direct.levels == 5


FAILURES = {
    "no entropy": ("MNG_CREATE", [s.TDX_RND_NO_ENTROPY] * 10, errno.EAGAIN, 0),
    "page entropy": ("MNG_ADDCX", [0, *[s.TDX_RND_NO_ENTROPY] * 10], errno.EAGAIN, 0),
    "operand": ("MNG_INIT", [0xC0000100_00000045], errno.EINVAL, 0xC0000100_00000045),
}
BUGS = {
    "key": ("MNG_KEY_CONFIG", [0x8000_0201 << 32]),
    "key entropy": ("MNG_KEY_CONFIG", [s.TDX_RND_NO_ENTROPY] * 10),
    "create": ("MNG_CREATE", [0xC0000100_00000001]),
    "create busy": ("MNG_CREATE", [0x80000200_00000001]),
    "page": ("MNG_ADDCX", [0, 0, 0xC000_0300 << 32]),
    "init": ("MNG_INIT", [0xC0000600_00000000]),
    "init entropy": ("MNG_INIT", [s.TDX_RND_NO_ENTROPY] * 10),
}


@pytest.mark.parametrize("case", BUGS)
def test_what_kvm_takes_for_granted_is_a_bug(bench: Bench, case: str) -> None:
    """TDX_BUG_ON: the VM is dead, and what it had comes back all the same."""
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td(init=False)
    leaf, statuses = BUGS[case]
    bench.module.answers[leaf] = list(statuses)
    with refused(errno.EIO):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    assert bench.cmd.hw_error == 0
    assert bench.vm_object().dead
    assert bench.kernel.tdx.free_hkids == hkids
    bench.kernel.close(vm)
    everything_came_back(bench, hkids)


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_init_vm_gives_everything_back_and_may_be_repeated(bench: Bench, case: str) -> None:
    leaf, statuses, code, hw_error = FAILURES[case]
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    bench.module.answers[leaf] = list(statuses)
    vm = bench.td(init=False)
    with refused(code):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    assert bench.cmd.hw_error == hw_error
    assert set(bench.kernel.pages.in_use) == {"ept"}  # the VM's own root
    assert bench.kernel.tdx.free_hkids == hkids
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    bench.kernel.close(vm)
    everything_came_back(bench, hkids)


@pytest.mark.parametrize("case", ["create", "page", "init"])
@on_release("6.18")
def test_before_6_19_only_the_call_fails(bench: Bench, case: str) -> None:
    """WARN_ON_ONCE there; only the key's configuration was a bug."""
    vm = bench.td(init=False)
    leaf, statuses = BUGS[case]
    bench.module.answers[leaf] = list(statuses)
    with refused(errno.EIO):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())


def test_a_tsc_field_that_cannot_be_read_is_0(bench: Bench) -> None:
    """td_tdcs_exec_read64 logs it: KVM_TDX_INIT_VM succeeds."""
    vm = bench.td(init=False)
    bench.module.answers["MNG_RD"] = [0xC0000C02 << 32, 0xC0000C02 << 32]
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    tdx = bench.vm_object().tdx
    assert (tdx.tsc_offset, tdx.tsc_multiplier) == (0, 0)
    assert not bench.vm_object().dead


def test_entropy_is_asked_for_ten_times(bench: Bench) -> None:
    vm = bench.td(init=False)
    bench.module.names()
    bench.module.answers["MNG_CREATE"] = [s.TDX_RND_NO_ENTROPY] * 9
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    assert bench.module.names().count("MNG_CREATE") == 10


def test_no_hkid_is_enospc(bench: Bench) -> None:
    assert bench.kernel.tdx is not None
    vms = [bench.td() for _ in range(bench.kernel.tdx.free_hkids)]
    with refused(errno.ENOSPC):
        bench.td()
    bench.kernel.close(vms[0])
    bench.td()


def test_v10_reports_any_module_error_as_eio_with_the_status(bench_v10: Bench) -> None:
    bench_v10.module.answers["MNG_INIT"] = [0xC0000100_00000045]
    with refused(errno.EIO):
        bench_v10.td()
    assert bench_v10.cmd.error == 0xC0000100_00000045


V10_REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "reserved0": ({"reserved0": 1}, errno.EINVAL),
    "PERFMON": ({"attributes": 1 << 63}, errno.EOPNOTSUPP),
    "too many vCPUs": ({"max_vcpus": 3}, errno.EINVAL),
    "no cpuid": ({"cpuid": 8}, errno.EFAULT),
}


@pytest.mark.parametrize("case", V10_REFUSED)
def test_v10_init_vm_refusals(bench_v10: Bench, case: str) -> None:
    members, code = V10_REFUSED[case]
    with refused(code):
        bench_v10.command(bench_v10.td(init=False), v10.KVM_TDX_INIT_VM, bench_v10.init_vm(**members))


def test_v10_masks_cpuid_silently(bench_v10: Bench) -> None:
    written: list[bytes] = []

    def mng_init(args: Any) -> int:
        written.append(bench_v10.kernel.processor.memory.read(args.rdx, 1024))
        return 0

    bench_v10.module.answers["MNG_INIT"] = [mng_init]
    entries = [entry(1, 0xFFFFFFFF), entry(2, 7), entry(0xD, 3, flags=1)]
    vm = bench_v10.td(init=False)
    bench_v10.command(vm, v10.KVM_TDX_INIT_VM, bench_v10.init_vm(entries=entries, max_vcpus=1))
    assert int.from_bytes(written[0][256:260], "little") == 0x0FFF3FFF
    assert int.from_bytes(written[0][8:16], "little") == 3
    assert int.from_bytes(written[0][16:18], "little") == 1


# --- FINALIZE_VM, TERMINATE_VM, the end -------------------------------------------------------------------------------


def test_finalize_does_not_look_at_flags(bench: Bench) -> None:
    vm = bench.td()
    bench.command(vm, up.KVM_TDX_FINALIZE_VM, 0x1234, flags=9)
    with refused(errno.EINVAL):
        bench.command(vm, up.KVM_TDX_FINALIZE_VM)


def test_finalize_before_init(bench: Bench) -> None:
    with refused(errno.EINVAL):
        bench.command(bench.td(init=False), up.KVM_TDX_FINALIZE_VM)


def test_finalize_busy_can_be_repeated(bench: Bench) -> None:
    vm = bench.td()
    bench.module.answers["MR_FINALIZE"] = [0x80000200_00000080]
    with refused(errno.EBUSY):
        bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    assert bench.cmd.hw_error == 0x80000200_00000080
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)


def test_finalize_waits_for_memory_that_is_being_added(bench: Bench) -> None:
    """tdx_td_finalize takes slots_lock, as KVM_TDX_INIT_MEM_REGION does: a page is added or not, never half."""
    vm = bench.td()
    kvm = bench.vm_object()
    assert kvm.tdx is not None
    finalize = threading.Thread(target=bench.command, args=(vm, up.KVM_TDX_FINALIZE_VM))
    with kvm.slots_lock:
        finalize.start()
        finalize.join(0.2)
        assert kvm.tdx.state.name == "INITIALIZED"
    finalize.join(20)
    assert kvm.tdx.state.name == "RUNNABLE"


def test_finalize_error_kills_the_vm(bench: Bench) -> None:
    vm = bench.td()
    bench.module.answers["MR_FINALIZE"] = [0xC0000607 << 32]
    with refused(errno.EIO):
        bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    assert bench.cmd.hw_error == 0xC0000607 << 32
    with refused(errno.EIO):
        bench.ioctl(vm, k.KVM_CHECK_EXTENSION, 0)


def test_terminate_releases_the_key_at_once() -> None:
    bench = boot(release="next")
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.module.names()
    with refused(errno.EINVAL):
        bench.command(vm, up.KVM_TDX_TERMINATE_VM, flags=1)
    bench.command(vm, up.KVM_TDX_TERMINATE_VM)
    assert bench.module.names() == ["VP_FLUSH", *RELEASE]
    assert bench.kernel.tdx.free_hkids == hkids
    with refused(errno.EIO):
        bench.ioctl(vcpu, k.KVM_RUN)
    for fd in (vcpu, vm):
        bench.kernel.close(fd)
    assert bench.module.names() == ["PHYMEM_PAGE_RECLAIM"] * 6 + RECLAIM_TD
    everything_came_back(bench, hkids)


def test_the_end_in_the_modules_order(bench: Bench) -> None:
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 2))
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.module.names()
    gmem = bench.gmem
    for fd in (vm, vcpu):
        bench.kernel.close(fd)
    assert bench.module.names() == []  # the guest_memfd holds the VM
    bench.kernel.close(gmem)
    removal = ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]
    tdvps, sept = ["PHYMEM_PAGE_RECLAIM"] * 6, ["PHYMEM_PAGE_RECLAIM"] * 3
    assert bench.module.names() == [*removal * 2, "VP_FLUSH", *RELEASE, *tdvps, *sept, *RECLAIM_TD]
    everything_came_back(bench, hkids)


def test_a_key_that_cannot_be_freed_is_leaked_not_reused(bench: Bench) -> None:
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    bench.module.answers["MNG_VPFLUSHDONE"] = [s.TDX_FLUSHVP_NOT_DONE]
    bench.kernel.close(vm)
    assert bench.kernel.tdx.free_hkids == hkids - 1
    assert len(bench.kernel.tdx.leaked_hkids) == 1
    assert bench.kernel.pages.in_use == {"tdr": 1, "tdcs": 6}  # nothing can be reclaimed without the key's release


def test_cache_writeback_goes_on_while_it_is_interrupted(bench: Bench) -> None:
    vm = bench.td()
    bench.module.answers["PHYMEM_CACHE_WB"] = [s.TDX_INTERRUPTED_RESUMABLE] * 3
    bench.module.calls.clear()
    bench.kernel.close(vm)
    resumes = [registers["rcx"] for name, registers, _ in bench.module.calls if name == "PHYMEM_CACHE_WB"]
    assert resumes == [0, 1, 1, 1]


def test_a_key_is_freed_though_a_writeback_failed(bench: Bench) -> None:
    """smp_func_do_phymem_cache_wb returns nothing: the module refuses TDH.MNG.KEY.FREEID if it was needed."""
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    bench.module.answers["PHYMEM_CACHE_WB"] = [0xC0000820 << 32]
    bench.module.names()
    bench.kernel.close(vm)
    assert bench.module.names() == [*RELEASE, *RECLAIM_TD]
    everything_came_back(bench, hkids)
    vm = bench.td()
    bench.module.answers["PHYMEM_CACHE_WB"] = [s.TDX_INTERRUPTED_RESUMABLE] * 10001
    bench.module.answers["MNG_KEY_FREEID"] = [0xC0000817 << 32]
    bench.module.names()
    bench.kernel.close(vm)
    assert bench.module.names().count("PHYMEM_CACHE_WB") == 10000
    assert len(bench.kernel.tdx.leaked_hkids) == 1


def test_no_caches_are_written_back_for_vcpus_that_are_not_flushed(bench: Bench) -> None:
    vm = bench.td()
    bench.module.answers["MNG_VPFLUSHDONE"] = [s.TDX_FLUSHVP_NOT_DONE]
    bench.module.names()
    bench.kernel.close(vm)
    assert bench.module.names() == ["MNG_VPFLUSHDONE"]


def test_a_tdr_whose_lines_may_come_back_is_lost(bench: Bench) -> None:
    """tdx_reclaim_td_control_pages returns before __free_page."""
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    bench.module.answers["PHYMEM_PAGE_WBINVD"] = [0xC0000100_00000001]
    bench.kernel.close(vm)
    assert bench.kernel.pages.in_use == {"tdr": 1}
    assert bench.kernel.tdx.free_hkids == hkids


def test_the_lowest_key_that_is_free_is_taken(bench: Bench) -> None:
    """tdx_guest_keyid_alloc: ida_alloc_range."""
    assert bench.kernel.tdx is not None
    vms = [bench.td() for _ in range(3)]
    first = [bench.kernel.tdx.global_keyid + number for number in (1, 2, 3)]
    assert sorted(kvm.tdx.hkid for kvm in bench.kernel.vms if kvm.tdx is not None) == first
    bench.kernel.close(vms[0])
    bench.kernel.close(vms[1])
    bench.td()
    assert bench.vm_object().tdx.hkid == first[0]


def test_the_count_alone_is_read_before_it_is_checked(bench: Bench) -> None:
    """tdx_td_init: get_user of cpuid.nent, E2BIG, and only then the copy of all that stands around it."""
    vm = bench.td(init=False)
    space = mmap.mmap(-1, 8192)
    start = ctypes.addressof(ctypes.c_char.from_buffer(space))
    libc = ctypes.CDLL(None, use_errno=True)
    offset = up.kvm_tdx_init_vm.cpuid.offset
    space[4096:4100] = (257).to_bytes(4, "little")
    assert libc.mprotect(ctypes.c_void_p(start), 4096, 0) == 0
    with refused(errno.E2BIG):
        bench.command(vm, up.KVM_TDX_INIT_VM, start + 4096 - offset)
    space[4096:4100] = (1).to_bytes(4, "little")
    with refused(errno.EFAULT):
        bench.command(vm, up.KVM_TDX_INIT_VM, start + 4096 - offset)
    assert libc.mprotect(ctypes.c_void_p(start), 4096, mmap.PROT_READ | mmap.PROT_WRITE) == 0
