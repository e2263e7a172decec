# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD as a VM: its life, and the sub-commands of KVM_MEMORY_ENCRYPT_OP on the VM's fd (arch/x86/kvm/vmx/tdx.c).

    UNINITIALIZED --INIT_VM--> INITIALIZED --FINALIZE_VM--> RUNNABLE --(last close)--> destroyed

An INIT_VM that fails tears the half-made TD down and may be repeated. Orders of checks are those of Linux; the v10
dialect has its own entry checks (``error`` and ``unused`` must be 0) and command set, see `tdx_params` for its INIT_VM.

Destruction gives everything back in the module's order: VP.FLUSH, VPFLUSHDONE, PHYMEM.CACHE.WB on every package,
KEY.FREEID and the HKID; then RECLAIM of the vCPUs' pages, the Secure EPT's, TDCS's and at last TDR.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.mmu.spte import PG_LEVEL_4K, pages_per_level
from swtdx.linux.arch.x86.kvm.vmx import tdx_params
from swtdx.linux.arch.x86.virt.vmx.tdx.seamcall import (
    TDX_INTERRUPTED_RESUMABLE,
    TDX_NO_HKID_READY_TO_WBCACHE,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_RND_NO_ENTROPY,
    status_class,
)
from swtdx.linux.arch.x86.virt.vmx.tdx.tdx import TdxHost
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.uaccess import copy_to_user, struct_from_user
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.reason import Reason, seamcall_failed

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx_params import InitVm
    from swtdx.linux.virt.kvm.kvm_main import Kvm

log = logging.getLogger(__name__)

MD_TDCS_TSC_OFFSET = 0x110000000000000A  # class 17, fields 10 and 11; KVM gives no size or context
MD_TDCS_TSC_MULTIPLIER = 0x110000000000000B
_CACHE_WB_LIMIT = 10000


class TdState(Enum):
    """enum kvm_tdx_state."""

    UNINITIALIZED = "UNINITIALIZED"
    INITIALIZED = "INITIALIZED"
    RUNNABLE = "RUNNABLE"


@dataclass(slots=True)
class KvmTdx:
    """struct kvm_tdx: what KVM knows of the TD. Pages are HPAs."""

    host: TdxHost
    state: TdState = TdState.UNINITIALIZED
    hkid: int = -1
    tdr: int = 0
    tdcs: list[int] = field(default_factory=list)
    attributes: int = 0
    xfam: int = 0
    gpaw: int = 0
    tsc_offset: int = 0
    tsc_multiplier: int = 1 << 48
    premapped: set[int] = field(default_factory=set)
    """gfns that are in the mirror while their MEM.PAGE.ADD is still to come."""
    wait_for_sept_zap: bool = False
    source_page: int = 0
    orphans: list[tuple[int, int]] = field(default_factory=list)  # HPA and KVM level
    """Private pages that could not be removed; they are reclaimed when the key is gone."""

    @property
    def is_hkid_assigned(self) -> bool:
        """Whether the TD has an HKID (is_hkid_assigned)."""
        return self.hkid > 0


def to_kvm_tdx(kvm: Kvm) -> KvmTdx:
    """Return the TD part of a VM that is one."""
    tdx = kvm.tdx
    assert tdx is not None
    return tdx


def tdx_operand_busy(status: int) -> bool:
    """Return whether a SEAMCALL failed because another processor uses one of its operands.

    The module never waits for a lock. KVM tries again where it knows that the other side comes to an end.
    """
    return status_class(status) == TDX_OPERAND_BUSY


# --- VM life ----------------------------------------------------------------------------------------------------------


def tdx_vm_init(kvm: Kvm) -> None:
    """KVM_CREATE_VM of a TD."""
    host = kvm.kernel.tdx
    assert host is not None
    kvm.tdx = KvmTdx(host)
    # upstream: user space says which memory is private. v10: the guest's access alone does.
    kvm.has_attributes = kvm.kernel.release.tds_have_attributes
    # The module's limit covers every platform that it supports. The host's own size is one that user space can predict.
    kvm.max_vcpus = min(kvm.max_vcpus, kvm.cpus.count, host.sysinfo.max_vcpus_per_td)


def tdx_ignore_address(kvm: Kvm, address: int) -> None:
    """KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR mean nothing for a TD."""


def tdx_vm_pre_destroy(kvm: Kvm) -> None:
    """Phase 1: release the HKID while the page tables still stand."""
    tdx_mmu_release_hkid(kvm)


def tdx_mmu_release_hkid(kvm: Kvm) -> None:
    """Flush vCPUs and caches, and free the key. A key that the module keeps is leaked.

    The order is the module's: VPFLUSHDONE checks that no vCPU is associated with a processor, CACHE.WB must follow it
    so that no line with the key comes back, KEY.FREEID requires both, and refuses where one of them failed. A key that
    it refuses to free is leaked: one given to another TD too early would decrypt the first one's lines.
    """
    from swtdx.linux.arch.x86.kvm.vmx.tdx_vcpu import tdx_flush_vp_on_cpu

    tdx = to_kvm_tdx(kvm)
    if not tdx.is_hkid_assigned:
        return
    host, seamcall, tdr = tdx.host, tdx.host.seamcall, tdx.tdr
    with host.lock:
        if tdr:
            for vcpu in kvm.vcpus:
                tdx_flush_vp_on_cpu(vcpu)
            status = seamcall.tdh_mng_vpflushdone(tdr)
            if status:
                host.tdx_guest_keyid_leak(tdx.hkid, f"TDH.MNG.VPFLUSHDONE: {status:#x}")
                return
            for cpu in host.package_cpus:
                smp_func_do_phymem_cache_wb(tdx, cpu)
            status = seamcall.tdh_mng_key_freeid(tdr)
            if status:
                host.tdx_guest_keyid_leak(tdx.hkid, f"TDH.MNG.KEY.FREEID: {status:#x}")
                return
        tdx_hkid_free(tdx)


def tdx_hkid_free(tdx: KvmTdx) -> None:
    """Give the TD's HKID back to the host; the module must have released it."""
    tdx.host.tdx_guest_keyid_free(tdx.hkid)
    tdx.hkid = -1


def smp_func_do_phymem_cache_wb(tdx: KvmTdx, cpu: int) -> None:
    """Write back the caches of the package of ``cpu``.

    The module yields to interrupts in the middle, and is called again to resume. "No HKID ready" means that another
    writeback covered this key already. A failure is only told: KEY.FREEID will refuse.
    """
    status, resume = 0, False
    for _ in range(_CACHE_WB_LIMIT):
        status = tdx.host.seamcall.tdh_phymem_cache_wb(resume, cpu)
        resume = True
        if status_class(status) != TDX_INTERRUPTED_RESUMABLE:
            break
    if status_class(status) not in (0, TDX_NO_HKID_READY_TO_WBCACHE):
        log.error("TDH.PHYMEM.CACHE.WB on CPU %d: %#x", cpu, status)


def tdx_reclaim_page(kvm: Kvm, page: int, pages: int = 1) -> bool:
    """TDH.PHYMEM.PAGE.RECLAIM of one page (512 small ones: 2 MiB) and wipe. False if the module keeps it."""
    status = to_kvm_tdx(kvm).host.seamcall.tdh_phymem_page_reclaim(page)[0]
    if status:
        log.error("VM %d: TDH.PHYMEM.PAGE.RECLAIM of %#x: %#x", kvm.number, page, status)
        return False
    if pages == 1:
        kvm.processor.memory.clear_page(page)
    else:
        kvm.processor.memory.clear_range(page, pages << PAGE_SHIFT, 0)
    return True


def tdx_reclaim_control_page(kvm: Kvm, page: int) -> None:
    """Reclaim a page that KVM allocated for the module, and free it. One that the module keeps stays booked: lost."""
    if tdx_reclaim_page(kvm, page):
        kvm.pages.free_page(page)


def tdx_vm_destroy(kvm: Kvm) -> None:
    """Phase 4: TDCS and TDR, in this order."""
    tdx = to_kvm_tdx(kvm)
    if tdx.source_page:
        kvm.pages.free_page(tdx.source_page)
        tdx.source_page = 0
    if not tdx.tdr or tdx.is_hkid_assigned:
        return  # not made, or the key could not be freed: nothing can be reclaimed
    tdx_reclaim_td_control_pages(kvm)


def tdx_reclaim_td_control_pages(kvm: Kvm) -> None:
    """Reclaim orphans, TDCS and at last TDR: the module keeps TDR while any other page belongs to the TD."""
    tdx = to_kvm_tdx(kvm)
    for page, level in tdx.orphans:
        if level == PG_LEVEL_4K:
            tdx_reclaim_control_page(kvm, page)
        elif tdx_reclaim_page(kvm, page, pages_per_level(level)):
            kvm.pages.free_huge_page(page)
    tdx.orphans.clear()
    for page in tdx.tdcs:
        tdx_reclaim_control_page(kvm, page)
    tdx.tdcs.clear()
    seamcall = tdx.host.seamcall
    status = seamcall.tdh_phymem_page_reclaim(tdx.tdr)[0]
    if status:
        log.error("VM %d: TDH.PHYMEM.PAGE.RECLAIM of the TDR: %#x", kvm.number, status)
        return
    # TDR alone is encrypted with the module's own key: its cache lines are written back with that one.
    status = seamcall.tdh_phymem_page_wbinvd(tdx.tdr | tdx.host.global_keyid << tdx.host.hkid_shift)
    if status:  # lines that come back later would overwrite what the page holds then: it is lost
        log.error("VM %d: TDH.PHYMEM.PAGE.WBINVD of the TDR: %#x", kvm.number, status)
        return
    kvm.processor.memory.clear_page(tdx.tdr)
    kvm.pages.free_page(tdx.tdr)
    tdx.tdr = 0


# --- Sub-commands on the VM's fd --------------------------------------------------------------------------------------


def tdx_vm_ioctl(kvm: Kvm, arg: int) -> int:
    """KVM_MEMORY_ENCRYPT_OP on the VM's fd; ``arg`` is the address of a kvm_tdx_cmd. Raises OSError."""
    dialect = kvm.kernel.dialect
    cmd = struct_from_user(dialect.cmd, arg)
    member = dialect.hw_error_member
    # The status member is output. Refusing a value there keeps it free for input later; v10: so is the unused one.
    if any(getattr(cmd, name) for name in (member, *kvm.kernel.release.reserved_members)):
        raise err(errno.EINVAL, f"{member} must be 0")
    with kvm.lock:
        handler = _VM_COMMANDS[dialect].get(cmd.id)
        # next: proposed only. No released kernel has the sub-command.
        if handler is tdx_terminate_vm and not kvm.kernel.release.serves_terminate_vm:
            handler = None
        if handler is None:
            raise err(errno.EINVAL, f"sub-command {cmd.id} is not one for the VM's fd")
        if handler is tdx_get_capabilities and not kvm.kernel.release.writes_capabilities_command:
            handler(kvm, cmd)
            return 0
        try:
            handler(kvm, cmd)
        except OSError:
            copy_to_user(arg, cmd)
            raise
        copy_to_user(arg, cmd)
    return 0


def tdx_get_capabilities(kvm: Kvm, cmd: tdx_params.Command) -> None:
    kernel, info = kvm.kernel, to_kvm_tdx(kvm).host.sysinfo
    tdx_params.init_kvm_tdx_caps(
        info,
        kernel.supported_xfam,
        cmd,
        kernel.config.debug_tds,
        terminate_vm=kernel.release.serves_terminate_vm,
    )


def _get_capabilities_v10(kvm: Kvm, cmd: tdx_params.Command) -> None:
    tdx_params.capabilities_v10(to_kvm_tdx(kvm).host.sysinfo, cmd)


def tdx_td_init(kvm: Kvm, cmd: tdx_params.Command) -> None:
    tdx = to_kvm_tdx(kvm)
    if tdx.state is not TdState.UNINITIALIZED:
        raise err(errno.EINVAL, "the TD is initialised already")
    if cmd.flags:
        raise err(errno.EINVAL, "flags must be 0")
    init = _PARSE_INIT_VM[kvm.kernel.dialect](kvm, tdx.host.sysinfo, cmd)
    __tdx_td_init(kvm, tdx, init, cmd)
    tdx.state = TdState.INITIALIZED


def __tdx_td_init(kvm: Kvm, tdx: KvmTdx, init: InitVm, cmd: tdx_params.Command) -> None:
    """Create the TD. Raises OSError: ENOSPC, ENOMEM, EAGAIN, EIO, EINVAL; then everything is given back."""
    host, seamcall, pages = tdx.host, tdx.host.seamcall, kvm.pages
    hkid = host.tdx_guest_keyid_alloc()
    tdr = 0
    tdcs: list[int] = []
    try:
        tdr = pages.alloc_page("tdr")
        for _ in range(host.sysinfo.tdcs_pages):
            tdcs.append(pages.alloc_page("tdcs"))  # one by one: what was had when one fails is given back
        # Against tdx_mmu_release_hkid: CREATE and CACHE.WB with KEY.FREEID contend for the module's table of keys.
        with host.lock:
            status = seamcall.tdh_mng_create(tdr, hkid)
        if status:
            raise _not_created(kvm, status, "TDH.MNG.CREATE")
    except OSError:
        for page in (*tdcs, *([tdr] if tdr else [])):
            pages.free_page(page)
        host.tdx_guest_keyid_free(hkid)
        raise
    tdx.hkid, tdx.tdr = hkid, tdr
    try:
        for cpu in host.package_cpus:  # each package has a memory controller with keys of its own
            tdx_do_tdh_mng_key_config(kvm, tdx, cpu)
        while tdcs:
            status = seamcall.tdh_mng_addcx(tdr, tdcs[0])
            if status:
                raise _not_created(kvm, status, "TDH.MNG.ADDCX")
            tdx.tdcs.append(tdcs.pop(0))
        _mng_init(kvm, tdx, init, cmd)
    except OSError:
        for page in tdcs:
            pages.free_page(page)
        tdx_mmu_release_hkid(kvm)
        tdx_vm_destroy(kvm)
        raise
    kvm.mmu.init_mirror(5 if init.gpaw == 52 else 4, 1 << (init.gpaw - 1 - PAGE_SHIFT))
    tdx.attributes, tdx.xfam, tdx.gpaw = init.attributes, init.xfam, init.gpaw
    if init.max_vcpus:
        kvm.max_vcpus = min(kvm.max_vcpus, init.max_vcpus)


def tdx_do_tdh_mng_key_config(kvm: Kvm, tdx: KvmTdx, cpu: int) -> None:
    """Program the TD's key into the package of ``cpu``. Raises OSError(EIO), and the VM is dead.

    upstream: only on the way to a new TD, where nothing contends; a status of any kind is an error.
    """
    status = tdx.host.seamcall.tdh_mng_key_config(tdx.tdr, cpu)
    if status:
        raise kvm.bug(seamcall_failed("TDH.MNG.KEY.CONFIG", status))


def _mng_init(kvm: Kvm, tdx: KvmTdx, init: InitVm, cmd: tdx_params.Command) -> None:
    seamcall = tdx.host.seamcall
    page = kvm.pages.alloc_zeroed_page("td_params")
    try:
        kvm.processor.memory.write(page, init.td_params)
        status, rcx = seamcall.tdh_mng_init(tdx.tdr, page)
    finally:
        kvm.pages.free_page(page)
    if status:
        # v10: any failure is EIO, and user space reads the status. upstream: an operand that the module refuses came
        # from user space, so that it is EINVAL with the status; all else is KVM's own error.
        if not kvm.kernel.release.init_reports_operands:
            cmd.error = status
            raise err(errno.EIO, seamcall_failed("TDH.MNG.INIT", status, rcx))
        if status_class(status) == TDX_OPERAND_INVALID:
            cmd.hw_error = status
            raise err(errno.EINVAL, seamcall_failed("TDH.MNG.INIT", status, rcx))
        raise building_failed(kvm, seamcall_failed("TDH.MNG.INIT", status, rcx))
    tdx.tsc_offset = td_tdcs_exec_read64(tdx, MD_TDCS_TSC_OFFSET)
    tdx.tsc_multiplier = td_tdcs_exec_read64(tdx, MD_TDCS_TSC_MULTIPLIER)


def td_tdcs_exec_read64(tdx: KvmTdx, md_field: int) -> int:
    """Read a field of the TDCS; one that cannot be read is 0."""
    status, value = tdx.host.seamcall.tdh_mng_rd(tdx.tdr, md_field)
    if status:
        log.error("TDH.MNG.RD of %#x: %#x", md_field, status)
        return 0
    return value


def _not_created(kvm: Kvm, status: int, leaf: str) -> OSError:
    """Return what KVM_TDX_INIT_VM fails with when CREATE or ADDCX does: EAGAIN without entropy, else EIO."""
    reason = seamcall_failed(leaf, status)
    return err(errno.EAGAIN, reason) if status_class(status) == TDX_RND_NO_ENTROPY else building_failed(kvm, reason)


def building_failed(kvm: Kvm, reason: Reason) -> OSError:
    """Return EIO for a status that should not be while a TD is built; since 6.19 the VM is dead, too (TDX_BUG_ON)."""
    return kvm.bug(reason) if kvm.kernel.release.building_errors_kill else err(errno.EIO, reason)


def tdx_td_finalize(kvm: Kvm, cmd: tdx_params.Command) -> None:
    """Complete the measurement; from here on vCPUs may run. Raises OSError: EINVAL, EBUSY, EIO and the VM is dead."""
    with kvm.slots_lock:  # a page of KVM_TDX_INIT_MEM_REGION is added completely, or not at all
        tdx = to_kvm_tdx(kvm)
        if not tdx.is_hkid_assigned or tdx.state is TdState.RUNNABLE:
            raise err(errno.EINVAL, "the TD is not initialised, or is final already")
        if tdx.premapped:  # the mirror would say present where the Secure EPT has nothing
            raise err(errno.EINVAL, f"{len(tdx.premapped)} pages were mapped but never added")
        status = tdx.host.seamcall.tdh_mr_finalize(tdx.tdr)
        if status:
            setattr(cmd, kvm.kernel.dialect.hw_error_member, status)
            # Another call uses the TD at the moment; nothing has changed, and user space may repeat this one.
            if tdx_operand_busy(status):
                raise err(errno.EBUSY, seamcall_failed("TDH.MR.FINALIZE", status))
            raise kvm.bug(seamcall_failed("TDH.MR.FINALIZE", status))
        tdx.state = TdState.RUNNABLE
        if kvm.kernel.release.tracks_while_building:
            # v10: once more, though no vCPU has run; the result does not matter.
            tdx.host.seamcall.tdh_mem_track(tdx.tdr)


def tdx_terminate_vm(kvm: Kvm, cmd: tdx_params.Command) -> None:
    """KVM_TDX_TERMINATE_VM (proposed 2025, v5): the TD dies and its HKID comes back before the last close.

    What comes after, page by page, are plain reclaims instead of BLOCK, TRACK, REMOVE.
    """
    tdx = to_kvm_tdx(kvm)
    if cmd.flags or cmd.data:
        raise err(errno.EINVAL, "flags and data must be 0")
    if not tdx.is_hkid_assigned:
        raise err(errno.EINVAL, "the TD has no HKID")
    locked = []
    try:
        for vcpu in kvm.vcpus:
            if not vcpu.mutex.acquire(blocking=False):  # as kvm_trylock_all_vcpus: a vCPU in KVM_RUN may never return
                raise err(errno.EBUSY, f"vCPU {vcpu.vcpu_id} is in an ioctl")
            locked.append(vcpu)
        kvm.dead = True  # before the key goes: no vCPU may enter, and no ioctl use the TD, from here on
        with kvm.mmu.lock:  # a zap must see the TD with its key, or without it
            tdx_mmu_release_hkid(kvm)
    finally:
        for vcpu in locked:
            vcpu.mutex.release()


def _init_mem_region(kvm: Kvm, cmd: tdx_params.Command) -> None:
    from swtdx.linux.arch.x86.kvm.vmx.tdx_sept import tdx_init_mem_region_v10

    tdx_init_mem_region_v10(kvm, cmd)


_PARSE_INIT_VM = {Dialect.UPSTREAM: tdx_params.init_vm_upstream, Dialect.V10: tdx_params.init_vm_v10}
_VM_COMMANDS = {
    Dialect.UPSTREAM: {
        int(TdxCommand.CAPABILITIES): tdx_get_capabilities,
        int(TdxCommand.INIT_VM): tdx_td_init,
        int(TdxCommand.FINALIZE_VM): tdx_td_finalize,
        int(TdxCommand.TERMINATE_VM): tdx_terminate_vm,
    },
    Dialect.V10: {
        int(TdxCommand.CAPABILITIES): _get_capabilities_v10,
        int(TdxCommand.INIT_VM): tdx_td_init,
        int(TdxCommand.INIT_MEM_REGION): _init_mem_region,
        int(TdxCommand.FINALIZE_VM): tdx_td_finalize,
    },
}
