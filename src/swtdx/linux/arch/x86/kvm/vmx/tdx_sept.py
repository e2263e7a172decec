# SPDX-License-Identifier: GPL-2.0-or-later
"""The Secure EPT: what a change of the mirror means in SEAMCALLs, and the TD's initial memory (arch/x86/kvm/vmx/tdx.c).

    table linked   MEM.SEPT.ADD
    leaf set       MEM.PAGE.AUG once the TD runs; before that nothing: INIT_MEM_REGION does MEM.PAGE.ADD
    leaf split     MEM.RANGE.BLOCK, MEM.TRACK, all vCPUs out, MEM.PAGE.DEMOTE with a page for the new table
    leaf removed   MEM.RANGE.BLOCK, MEM.TRACK (if needed), all vCPUs out, MEM.PAGE.REMOVE, PHYMEM.PAGE.WBINVD, wipe
    table freed    PHYMEM.PAGE.RECLAIM, wipe, after the HKID is gone

A leaf that finds the module busy while it is removed is tried once more with no vCPU allowed in. Any status that should
not be kills the VM; a page that could not be removed then is an orphan, reclaimed when the TD's key is gone.

Module 1.0 requires BLOCK and TRACK before every removal, later ones only in a TD that can run.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from swtdx.linux.arch.x86.kvm.mmu.spte import pages_per_level
from swtdx.linux.arch.x86.kvm.vmx.tdx import (
    TdState,
    building_failed,
    tdx_operand_busy,
    tdx_reclaim_control_page,
    tdx_reclaim_page,
    to_kvm_tdx,
)
from swtdx.linux.arch.x86.kvm.vmx.tdx_params import Command
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import copy_from_user, copy_to_user, struct_from_user
from swtdx.linux.virt.kvm.guest_memfd import kvm_gmem_get_index
from swtdx.uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, MemFlag
from swtdx.uapi.reason import Reason, seamcall_failed, sept_seamcall_failed
from swtdx.uapi.tdx_upstream import KVM_TDX_MEASURE_MEMORY_REGION, kvm_tdx_init_mem_region

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx import KvmTdx
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
    from swtdx.linux.virt.kvm.kvm_main import Kvm

log = logging.getLogger(__name__)
R = TypeVar("R", int, tuple[int, int, int])

TDX_EXTENDMR_CHUNKSIZE = 256


def tdx_sept_link_private_spt(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Link a table under the entry for ``gfn`` at KVM ``level``. Raises OSError(EBUSY, EIO)."""
    tdx = to_kvm_tdx(kvm)
    status, entry, level_state = tdx.host.seamcall.tdh_mem_sept_add(tdx.tdr, gfn << PAGE_SHIFT, level - 1, page)
    if status:
        raise _sept_error(kvm, "TDH.MEM.SEPT.ADD", status, entry, level_state)


def tdx_sept_set_private_spte(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Set a leaf: add the page to a running TD, or note it for KVM_TDX_INIT_MEM_REGION. Raises OSError(EBUSY, EIO)."""
    tdx = to_kvm_tdx(kvm)
    if tdx.state is TdState.RUNNABLE:
        tdx_mem_page_aug(kvm, gfn, level, page)
    else:
        tdx_mem_page_record_premap_cnt(tdx, gfn)


def tdx_mem_page_aug(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Add a page, pending until the guest accepts it. Raises OSError(EBUSY, EIO).

    EBUSY: another vCPU works at the same entry; the fault is taken again, as often as it needs.
    """
    tdx = to_kvm_tdx(kvm)
    status, entry, level_state = tdx.host.seamcall.tdh_mem_page_aug(tdx.tdr, gfn << PAGE_SHIFT, level - 1, page)
    if status:
        raise _sept_error(kvm, "TDH.MEM.PAGE.AUG", status, entry, level_state)


def tdx_mem_page_record_premap_cnt(tdx: KvmTdx, gfn: int) -> None:
    """Note that only the mirror has the page: MEM.PAGE.ADD needs its contents, and comes later."""
    tdx.premapped.add(gfn)


def _sept_error(kvm: Kvm, leaf: str, status: int, entry: int, level_state: int) -> OSError:
    # upstream: only a busy operand asks the caller to retry. KVM keeps to the module's rules, so any other status means
    # that its mirror and the Secure EPT disagree (TDX_BUG_ON): the VM is dead.
    if tdx_operand_busy(status):
        return err(errno.EBUSY, sept_seamcall_failed(leaf, status, entry, level_state))
    return kvm.bug(sept_seamcall_failed(leaf, status, entry, level_state))


def tdx_sept_free_private_spt(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Free a table, with the TD: RECLAIM needs the TD's key gone, and no SEAMCALL unlinks tables before."""
    if to_kvm_tdx(kvm).is_hkid_assigned:
        log.error("VM %d: Secure EPT page %#x cannot be freed while the HKID is in use", kvm.number, page)
        return
    tdx_reclaim_control_page(kvm, page)


def tdx_sept_remove_private_spte(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Remove a leaf; its contents are lost. Failure kills the VM and keeps the page for later."""
    tdx = to_kvm_tdx(kvm)
    if not tdx.is_hkid_assigned:  # without a key there is no TD to run: a plain reclaim is enough
        if not tdx_reclaim_page(kvm, page, pages_per_level(level)):
            _orphan(kvm, tdx, page, level)
        return
    if gfn in tdx.premapped:  # in the mirror and never added: the Secure EPT has no such entry
        tdx.premapped.discard(gfn)
        return
    gpa = gfn << PAGE_SHIFT
    failure = tdx_sept_zap_private_spte(kvm, gpa, level - 1)
    if not failure:
        untracked = tdx_track(kvm)
        if untracked:
            kvm.bug(untracked)  # which does not end it: the module decides whether PAGE.REMOVE is possible
        failure = tdx_sept_drop_private_spte(kvm, gpa, level - 1, page)
    if failure:
        _orphan(kvm, tdx, page, level)
        kvm.bug(failure)


def tdx_sept_split_private_spte(kvm: Kvm, gfn: int, level: int, table: int) -> None:
    """Split a 2 MiB leaf into a table of 512; the guest's contents stay. Raises OSError(EBUSY, EIO)."""
    tdx = to_kvm_tdx(kvm)
    gpa = gfn << PAGE_SHIFT
    failure = tdx_sept_zap_private_spte(kvm, gpa, level - 1) or tdx_track(kvm)
    if failure:
        raise kvm.bug(failure)
    demote = tdx.host.seamcall.tdh_mem_page_demote
    status, entry, level_state = tdh_do_no_vcpus(demote, kvm, tdx.tdr, gpa, level - 1, table)
    if status:
        raise kvm.bug(sept_seamcall_failed("TDH.MEM.PAGE.DEMOTE", status, entry, level_state))


def _orphan(kvm: Kvm, tdx: KvmTdx, page: int, level: int) -> None:
    tdx.orphans.append((page, level))
    for gmem in kvm.guest_memfds:  # not by way of the slot, which may be gone by now
        gmem.give_up(page)


def tdh_do_no_vcpus(tdh_func: Callable[..., R], kvm: Kvm, *args: int) -> R:
    """Call a SEAMCALL, and once more with no vCPU in the TD if the module says that it is busy.

    The module takes its locks without waiting. While the kernel holds the MMU lock for writing no other host thread
    contends, so only guests can (TDG.MEM.PAGE.ACCEPT, TDG.VP.VMCALL): with all of them out the second call must
    succeed, and a third would be a bug. Returns what ``tdh_func`` returns, its status first.
    """
    result = tdh_func(*args)
    if tdx_operand_busy(_status(result)):
        tdx_no_vcpus_enter_start(kvm)
        try:
            result = tdh_func(*args)
        finally:
            tdx_no_vcpus_enter_stop(kvm)
    return result


def _status(result: int | tuple[int, int, int]) -> int:
    return result if isinstance(result, int) else result[0]


def tdx_no_vcpus_enter_start(kvm: Kvm) -> None:
    """Send every vCPU out of the TD, and let none in (tdx_vcpu_run waits for the mark to go)."""
    to_kvm_tdx(kvm).wait_for_sept_zap = True
    kvm.kick_all_outside_guest()


def tdx_no_vcpus_enter_stop(kvm: Kvm) -> None:
    """Let vCPUs in again."""
    to_kvm_tdx(kvm).wait_for_sept_zap = False


def tdx_sept_zap_private_spte(kvm: Kvm, gpa: int, level: int) -> Reason | None:
    """Block the entry: no new translation of it enters a TLB. Return what went wrong, or None."""
    tdx = to_kvm_tdx(kvm)
    block = tdx.host.seamcall.tdh_mem_range_block
    status, entry, level_state = tdh_do_no_vcpus(block, kvm, tdx.tdr, gpa, level)
    return sept_seamcall_failed("TDH.MEM.RANGE.BLOCK", status, entry, level_state) if status else None


def tdx_track(kvm: Kvm) -> Reason | None:
    """Make sure that no TLB has a translation of a blocked entry. Return what went wrong, or None.

    TRACK opens a new epoch of the TD, and a vCPU that enters in it starts with an empty TLB. Those inside still run in
    an older epoch, and TRACK refuses to open a second one meanwhile. So all of them are kicked, and waited for: when
    the kick returns none is inside any more.
    """
    tdx = to_kvm_tdx(kvm)
    # Before FINALIZE no vCPU has run: there is no TLB to clear. v10: always tracks, as module 1.0 requires.
    if tdx.state is not TdState.RUNNABLE and not kvm.kernel.release.tracks_while_building:
        return None
    status = tdh_do_no_vcpus(tdx.host.seamcall.tdh_mem_track, kvm, tdx.tdr)
    kvm.kick_all_outside_guest()  # and wait: PAGE.REMOVE fails while a vCPU of the older epoch is inside
    return seamcall_failed("TDH.MEM.TRACK", status) if status else None


def tdx_sept_drop_private_spte(kvm: Kvm, gpa: int, level: int, page: int) -> Reason | None:
    """Remove a page that is blocked and tracked, and wipe it. Return what went wrong, or None."""
    tdx = to_kvm_tdx(kvm)
    seamcall = tdx.host.seamcall
    status, entry, level_state = tdh_do_no_vcpus(seamcall.tdh_mem_page_remove, kvm, tdx.tdr, gpa, level)
    if status:
        return sept_seamcall_failed("TDH.MEM.PAGE.REMOVE", status, entry, level_state)
    # Cache lines with the TD's key must be written back before the page is used with another: they would overwrite it.
    size = pages_per_level(level + 1) << PAGE_SHIFT
    for small in range(page, page + size, PAGE_SIZE):
        status = seamcall.tdh_phymem_page_wbinvd(small | tdx.hkid << tdx.host.hkid_shift)
        if status:
            return seamcall_failed("TDH.PHYMEM.PAGE.WBINVD", status)
    if size == PAGE_SIZE:
        kvm.processor.memory.clear_page(page)
    else:
        kvm.processor.memory.clear_range(page, size, 0)
    return None


# --- KVM_TDX_INIT_MEM_REGION ------------------------------------------------------------------------------------------


def _check_region(kvm: Kvm, cmd: Command, *, end_may_touch_shared: bool) -> kvm_tdx_init_mem_region:
    if cmd.flags & ~KVM_TDX_MEASURE_MEMORY_REGION:
        raise err(errno.EINVAL, f"flags {cmd.flags:#x}")
    region = struct_from_user(kvm_tdx_init_mem_region, cmd.data)
    shared = kvm.mmu.direct_bits << PAGE_SHIFT
    end = region.gpa + (region.nr_pages << PAGE_SHIFT & (1 << 64) - 1)  # as 64 bits compute it
    # upstream: looks at the last byte. v10: looked at the end, so that a range up to the shared half is refused.
    last = end - 1 if end_may_touch_shared else end
    # 7.3: the page's own contents are reserved for conversions in place, which are not merged.
    if not region.source_addr and kvm.kernel.release.null_source == errno.EINVAL:
        raise err(errno.EINVAL, "source_addr must not be 0")
    if region.source_addr % PAGE_SIZE or region.gpa % PAGE_SIZE or not region.nr_pages:
        raise err(errno.EINVAL, "source_addr and gpa must be 4 KiB aligned and nr_pages not 0")
    if end >= 1 << 64 or end == region.gpa or region.gpa & shared or last & shared:
        raise err(errno.EINVAL, "the range wraps or reaches shared addresses")
    return region


def tdx_vcpu_init_mem_region(vcpu: Vcpu, cmd: Command) -> None:
    """Upstream. Raises OSError: EINVAL, EFAULT, EINTR, EEXIST, EBUSY, EIO, ENOMEM."""
    region = _check_region(vcpu.kvm, cmd, end_may_touch_shared=True)
    _add_pages(vcpu.kvm, vcpu, cmd, region)


def tdx_init_mem_region_v10(kvm: Kvm, cmd: Command) -> None:
    """v10, on the VM's fd: needs a vCPU, does not ask for attributes. Raises OSError as upstream."""
    if not kvm.vcpus:
        raise err(errno.EINVAL, "a vCPU must exist (the BSP first)")
    if to_kvm_tdx(kvm).state is not TdState.INITIALIZED:  # there a vCPU may be made before KVM_TDX_INIT_VM
        raise err(errno.EINVAL, "memory is added between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM")
    region = _check_region(kvm, cmd, end_may_touch_shared=False)
    vcpu = kvm.vcpus[0]
    with vcpu.mutex:
        _add_pages(kvm, vcpu, cmd, region)


def _add_pages(kvm: Kvm, vcpu: Vcpu, cmd: Command, region: kvm_tdx_init_mem_region) -> None:
    """Page by page; how far it came is always written back, then the error, if any, is raised."""
    measure = bool(cmd.flags & KVM_TDX_MEASURE_MEMORY_REGION)
    source, gpa, left = region.source_addr, region.gpa, region.nr_pages
    tdx = to_kvm_tdx(kvm)
    if not tdx.source_page:
        tdx.source_page = kvm.pages.alloc_page("bounce")
    try:
        # Slots and attributes must not change between their check and the page's ADD; outside is vcpu.mutex only.
        with kvm.slots_lock:
            while left:
                if vcpu.signal_pending():
                    raise err(errno.EINTR, "a signal is pending")
                tdx_gmem_post_populate(vcpu, tdx, source, gpa, measure)
                source += PAGE_SIZE
                gpa += PAGE_SIZE
                left -= 1
    finally:
        copy_to_user(cmd.data, kvm_tdx_init_mem_region(source_addr=source, gpa=gpa, nr_pages=left))


def tdx_gmem_post_populate(vcpu: Vcpu, tdx: KvmTdx, source: int, gpa: int, measure: bool) -> None:
    """Copy a page from user memory into the guest_memfd's page, add it to the TD and measure it if asked."""
    kvm, gfn = vcpu.kvm, gpa >> PAGE_SHIFT
    slot = kvm.memslots.gfn_to_memslot(gfn)
    if slot is None:
        raise err(errno.EINVAL, f"no slot with private memory at {gpa:#x}")
    gmem = slot.gmem
    if gmem is None:
        raise err(errno.EFAULT if slot.flags & MemFlag.GUEST_MEMFD else errno.EINVAL, f"no guest_memfd behind {gpa:#x}")
    index = kvm_gmem_get_index(slot, gfn)
    release = kvm.kernel.release
    content = copy_from_user(source, PAGE_SIZE) if source and release.pins_source_first else b""
    if release.populated_twice == errno.EEXIST and gmem.is_prepared(index):
        raise _populated(gpa, errno.EEXIST)
    if kvm.has_attributes and not kvm.attributes.load(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        raise err(errno.EINVAL, f"the page at {gpa:#x} is not private")
    if not source and release.pins_source_first:
        raise err(release.null_source, "source_addr must not be 0")
    # Since 7.1 guest_memfd does not know what is populated: the page tables do, and have nothing to map.
    mirror = kvm.mmu.mirror
    if mirror is not None and mirror.lookup(gfn) is not None:
        raise _populated(gpa, release.populated_twice)
    # By way of a page of the kernel's: MEM.PAGE.ADD reads its source by physical address, and encrypts it in the copy.
    kvm.processor.memory.write(tdx.source_page, content or copy_from_user(source, PAGE_SIZE))
    page = kvm_tdp_mmu_map_private_pfn(vcpu, gmem, index, gfn)
    tdx_mem_page_add(vcpu, tdx, gpa, page)
    tdx.premapped.discard(gfn)
    gmem.kvm_gmem_mark_prepared(index)
    if measure:
        mr_extend, tdr = tdx.host.seamcall.tdh_mr_extend, tdx.tdr
        for chunk in range(gpa, gpa + PAGE_SIZE, TDX_EXTENDMR_CHUNKSIZE):
            status = mr_extend(tdr, chunk)
            if status:
                raise building_failed(kvm, seamcall_failed("TDH.MR.EXTEND", status, where=f"at {chunk:#x}"))


def _populated(gpa: int, code: int) -> OSError:
    return err(code, f"the page at {gpa:#x} is populated already")


def kvm_tdp_mmu_map_private_pfn(vcpu: Vcpu, gmem: GuestMemfd, index: int, gfn: int) -> int:
    """Map the guest_memfd's page and return it; again while the module is busy. Raises OSError(EINTR, EIO, ENOMEM)."""
    while True:
        try:
            return vcpu.kvm.mmu.map_private(gmem, index, gfn)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        _wait_for_the_module(vcpu)


def _wait_for_the_module(vcpu: Vcpu) -> None:
    """Before the next try of what found the module busy. Raises OSError(EINTR, EIO)."""
    if vcpu.signal_pending():
        raise err(errno.EINTR, "a signal is pending")
    if vcpu.kvm.dead:
        raise vcpu.kvm.dead_error()
    time.sleep(0)


def tdx_mem_page_add(vcpu: Vcpu, tdx: KvmTdx, gpa: int, page: int) -> None:
    """Add the page that is mapped, with the contents of the source page. Raises OSError: EINTR, EBUSY, EIO.

    Since 6.19 this is a part of mapping the page: it is tried again while the module is busy, any other failure kills
    the VM, and the leaf is set only if the module has the page, so that nothing is left half mapped.
    """
    kvm, gfn = vcpu.kvm, gpa >> PAGE_SHIFT
    at_once = kvm.kernel.release.maps_and_adds_at_once
    page_add = tdx.host.seamcall.tdh_mem_page_add
    status, entry, level_state = page_add(tdx.tdr, gpa, page, tdx.source_page)
    try:
        while at_once and tdx_operand_busy(status):
            _wait_for_the_module(vcpu)
            status, entry, level_state = page_add(tdx.tdr, gpa, page, tdx.source_page)
        if status:
            reason = sept_seamcall_failed("TDH.MEM.PAGE.ADD", status, entry, level_state, f"of {gpa:#x}")
            if at_once:
                raise kvm.bug(reason)
            raise err(errno.EBUSY if tdx_operand_busy(status) else errno.EIO, reason)
    except OSError:
        if at_once:
            kvm.mmu.zap_private(gfn, gfn + 1)
        raise
