# SPDX-License-Identifier: GPL-2.0-or-later
"""SEAMCALL wrappers, one for each leaf that the kernel uses, named as in arch/x86/virt/vmx/tdx/tdx.c.

Operands go where the leaf's interface function says (Intel TDX Module ABI, "TDH.*"). Each wrapper returns the 64-bit
completion status (RAX), those with outputs a tuple of status and outputs; none raises. RND_NO_ENTROPY is retried ten
times, as seamcall_retry does. ``cpu`` is the logical processor that issues the call.

Physical addresses are HPAs; GPA operands carry the level in their low bits: tdx_level, 0 for 4 KiB, 1 for 2 MiB...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.cpu.processor import SeamArgs

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor

# Leaf numbers
TDH_VP_ENTER = 0
TDH_MNG_ADDCX = 1
TDH_MEM_PAGE_ADD = 2
TDH_MEM_SEPT_ADD = 3
TDH_VP_ADDCX = 4
TDH_MEM_PAGE_AUG = 6
TDH_MEM_RANGE_BLOCK = 7
TDH_MNG_KEY_CONFIG = 8
TDH_MNG_CREATE = 9
TDH_VP_CREATE = 10
TDH_MNG_RD = 11
TDH_MEM_RD = 12
TDH_MEM_WR = 14
TDH_MR_EXTEND = 16
TDH_MR_FINALIZE = 17
TDH_VP_FLUSH = 18
TDH_MNG_VPFLUSHDONE = 19
TDH_MNG_KEY_FREEID = 20
TDH_MNG_INIT = 21
TDH_VP_INIT = 22
TDH_VP_RD = 26
TDH_PHYMEM_PAGE_RECLAIM = 28
TDH_MEM_PAGE_DEMOTE = 15
TDH_MEM_PAGE_REMOVE = 29
TDH_SYS_KEY_CONFIG = 31
TDH_SYS_INFO = 32
TDH_SYS_INIT = 33
TDH_SYS_RD = 34
TDH_SYS_LP_INIT = 35
TDH_SYS_TDMR_INIT = 36
TDH_MEM_TRACK = 38
TDH_PHYMEM_CACHE_WB = 40
TDH_PHYMEM_PAGE_WBINVD = 41
TDH_VP_WR = 43
TDH_SYS_CONFIG = 45
VERSION_1 = 1 << 16

# Completion status: class and name in bits 63:32
TDX_SEAMCALL_STATUS_MASK = 0xFFFFFFFF00000000
TDX_SUCCESS = 0
TDX_ERROR = 1 << 63
TDX_NON_RECOVERABLE = 1 << 62
TDX_SW_ERROR = 0x8000FF00 << 32  # statuses that Linux makes up: the SEAMCALL itself failed
TDX_SEAMCALL_VMFAILINVALID = 0x8000FF00FFFF0000
TDX_NON_RECOVERABLE_VCPU = 0x40000001 << 32
TDX_NON_RECOVERABLE_TD = 0x40000002 << 32
TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x60000005 << 32
TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE = 0x60000007 << 32
TDX_INTERRUPTED_RESUMABLE = 0x80000003 << 32
TDX_INTERRUPTED_RESTARTABLE = 0x80000004 << 32
TDX_OPERAND_INVALID = 0xC0000100 << 32
TDX_OPERAND_BUSY = 0x80000200 << 32
TDX_PREVIOUS_TLB_EPOCH_BUSY = 0x80000201 << 32
TDX_RND_NO_ENTROPY = 0x80000203 << 32
TDX_VCPU_NOT_ASSOCIATED = 0x80000702 << 32
TDX_NO_HKID_READY_TO_WBCACHE = 0x00000821 << 32
TDX_FLUSHVP_NOT_DONE = 0x80000824 << 32

RDRAND_RETRY_LOOPS = 10


def status_class(status: int) -> int:
    """Return the part of a completion status that names it: bits 63:32, the details cut off."""
    return status & TDX_SEAMCALL_STATUS_MASK


class Seamcall:
    """The wrappers, bound to a processor."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self._seamcall = processor.seamcall

    def __call__(self, fn: int, args: SeamArgs, cpu: int = 0) -> int:
        """seamcall_retry: issue leaf ``fn``, again while the module finds no entropy."""
        for _ in range(RDRAND_RETRY_LOOPS):
            status = self._seamcall(fn, args, cpu)
            if status & TDX_SEAMCALL_STATUS_MASK != TDX_RND_NO_ENTROPY:
                break
        return status

    def _call(self, fn: int, rcx: int = 0, rdx: int = 0, r8: int = 0, r9: int = 0, cpu: int = 0) -> int:
        args = SeamArgs()
        args.rcx, args.rdx, args.r8, args.r9 = rcx, rdx, r8, r9
        return self(fn, args, cpu)

    def _call_ret(
        self, fn: int, rcx: int = 0, rdx: int = 0, r8: int = 0, r9: int = 0, cpu: int = 0
    ) -> tuple[int, SeamArgs]:
        args = SeamArgs()
        args.rcx, args.rdx, args.r8, args.r9 = rcx, rdx, r8, r9
        return self(fn, args, cpu), args

    # --- The module as a whole ----------------------------------------------------------------------------------------

    def tdh_sys_init(self) -> int:
        return self._call(TDH_SYS_INIT)

    def tdh_sys_lp_init(self, cpu: int) -> int:
        return self._call(TDH_SYS_LP_INIT, cpu=cpu)

    def tdh_sys_rd(self, field: int) -> tuple[int, int]:
        """Return (status, value)."""
        status, args = self._call_ret(TDH_SYS_RD, rdx=field)
        return status, args.r8

    def tdh_sys_info(self, tdsysinfo: int, size: int, cmr_array: int, entries: int) -> int:
        return self._call(TDH_SYS_INFO, tdsysinfo, size, cmr_array, entries)

    def tdh_sys_config(self, tdmr_pa_array: int, count: int, global_keyid: int) -> int:
        return self._call(TDH_SYS_CONFIG, tdmr_pa_array, count, global_keyid)

    def tdh_sys_key_config(self, cpu: int) -> int:
        return self._call(TDH_SYS_KEY_CONFIG, cpu=cpu)

    def tdh_sys_tdmr_init(self, base: int) -> tuple[int, int]:
        """Return (status, next HPA to initialise)."""
        status, args = self._call_ret(TDH_SYS_TDMR_INIT, base)
        return status, args.rdx

    # --- A TD ---------------------------------------------------------------------------------------------------------

    def tdh_mng_create(self, tdr: int, hkid: int) -> int:
        return self._call(TDH_MNG_CREATE, tdr, hkid)

    def tdh_mng_key_config(self, tdr: int, cpu: int) -> int:
        return self._call(TDH_MNG_KEY_CONFIG, tdr, cpu=cpu)

    def tdh_mng_addcx(self, tdr: int, page: int) -> int:
        return self._call(TDH_MNG_ADDCX, page, tdr)

    def tdh_mng_init(self, tdr: int, td_params: int) -> tuple[int, int]:
        """Return (status, CPUID leaf and sub-leaf at fault)."""
        status, args = self._call_ret(TDH_MNG_INIT, tdr, td_params)
        return status, args.rcx

    def tdh_mng_rd(self, tdr: int, field: int) -> tuple[int, int]:
        """Return (status, value)."""
        status, args = self._call_ret(TDH_MNG_RD, tdr, field)
        return status, args.r8

    def tdh_mr_extend(self, tdr: int, gpa: int) -> int:
        return self._call(TDH_MR_EXTEND, gpa, tdr)

    def tdh_mr_finalize(self, tdr: int) -> int:
        return self._call(TDH_MR_FINALIZE, tdr)

    def tdh_mng_vpflushdone(self, tdr: int) -> int:
        return self._call(TDH_MNG_VPFLUSHDONE, tdr)

    def tdh_mng_key_freeid(self, tdr: int) -> int:
        return self._call(TDH_MNG_KEY_FREEID, tdr)

    # --- A virtual processor ------------------------------------------------------------------------------------------

    def tdh_vp_create(self, tdr: int, tdvpr: int) -> int:
        return self._call(TDH_VP_CREATE, tdvpr, tdr)

    def tdh_vp_addcx(self, tdvpr: int, page: int) -> int:
        return self._call(TDH_VP_ADDCX, page, tdvpr)

    def tdh_vp_init(self, tdvpr: int, initial_rcx: int, x2apicid: int | None, cpu: int) -> int:
        """Version 1 with the x2APIC id, version 0 (modules before 1.5.05) without."""
        if x2apicid is None:
            return self._call(TDH_VP_INIT, tdvpr, initial_rcx, cpu=cpu)
        return self._call(TDH_VP_INIT | VERSION_1, tdvpr, initial_rcx, x2apicid, cpu=cpu)

    def tdh_vp_flush(self, tdvpr: int, cpu: int) -> int:
        return self._call(TDH_VP_FLUSH, tdvpr, cpu=cpu)

    def tdh_vp_rd(self, tdvpr: int, field: int, cpu: int) -> tuple[int, int]:
        """Return (status, value)."""
        status, args = self._call_ret(TDH_VP_RD, tdvpr, field, cpu=cpu)
        return status, args.r8

    def tdh_vp_wr(self, tdvpr: int, field: int, value: int, mask: int, cpu: int) -> int:
        return self._call(TDH_VP_WR, tdvpr, field, value, mask, cpu)

    # --- Private memory. (status, RCX, RDX): the last two are the Secure EPT entry and its level and state on error. --

    def tdh_mem_sept_add(self, tdr: int, gpa: int, level: int, page: int) -> tuple[int, int, int]:
        status, args = self._call_ret(TDH_MEM_SEPT_ADD, gpa | level, tdr, page)
        return status, args.rcx, args.rdx

    def tdh_mem_page_add(self, tdr: int, gpa: int, page: int, source: int) -> tuple[int, int, int]:
        status, args = self._call_ret(TDH_MEM_PAGE_ADD, gpa, tdr, page, source)
        return status, args.rcx, args.rdx

    def tdh_mem_page_aug(self, tdr: int, gpa: int, level: int, page: int) -> tuple[int, int, int]:
        status, args = self._call_ret(TDH_MEM_PAGE_AUG, gpa | level, tdr, page)
        return status, args.rcx, args.rdx

    def tdh_mem_range_block(self, tdr: int, gpa: int, level: int) -> tuple[int, int, int]:
        status, args = self._call_ret(TDH_MEM_RANGE_BLOCK, gpa | level, tdr)
        return status, args.rcx, args.rdx

    def tdh_mem_page_remove(self, tdr: int, gpa: int, level: int) -> tuple[int, int, int]:
        status, args = self._call_ret(TDH_MEM_PAGE_REMOVE, gpa | level, tdr)
        return status, args.rcx, args.rdx

    def tdh_mem_page_demote(self, tdr: int, gpa: int, level: int, table: int) -> tuple[int, int, int]:
        """Again while an interrupt stops it: it starts over."""
        while True:
            status, args = self._call_ret(TDH_MEM_PAGE_DEMOTE, gpa | level, tdr, table)
            if status_class(status) != TDX_INTERRUPTED_RESTARTABLE:
                return status, args.rcx, args.rdx

    def tdh_mem_rd(self, tdr: int, gpa: int) -> tuple[int, int]:
        """Return (status, 8 bytes of a debug TD)."""
        status, args = self._call_ret(TDH_MEM_RD, gpa, tdr)
        return status, args.r8

    def tdh_mem_wr(self, tdr: int, gpa: int, value: int) -> int:
        return self._call(TDH_MEM_WR, gpa, tdr, value)

    def tdh_mem_track(self, tdr: int) -> int:
        return self._call(TDH_MEM_TRACK, tdr)

    # --- Physical pages and caches ------------------------------------------------------------------------------------

    def tdh_phymem_page_reclaim(self, page: int) -> tuple[int, int, int, int]:
        """Return (status, page type, owner, size)."""
        status, args = self._call_ret(TDH_PHYMEM_PAGE_RECLAIM, page)
        return status, args.rcx, args.rdx, args.r8

    def tdh_phymem_cache_wb(self, resume: bool, cpu: int) -> int:
        return self._call(TDH_PHYMEM_CACHE_WB, int(resume), cpu=cpu)

    def tdh_phymem_page_wbinvd(self, page_and_hkid: int) -> int:
        """``page_and_hkid``: the HPA with the KeyID in its top bits, as the cache lines carry it."""
        return self._call(TDH_PHYMEM_PAGE_WBINVD, page_and_hkid)
