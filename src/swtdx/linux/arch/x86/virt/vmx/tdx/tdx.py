# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring up the TDX module and keep what the host owns of it: memory metadata and HKIDs (arch/x86/virt/vmx/tdx/tdx.c).

Order: SYS.INIT once, SYS.LP.INIT on every logical processor, metadata (SYS.RD; kernels of the v10 era knew only
SYS.INFO), then memory: each 1 GiB-aligned stretch of CMRs becomes a TDMR, its PAMT is allocated from kernel pages and,
like every hole, entered as a reserved area; SYS.CONFIG with the global KeyID, SYS.KEY.CONFIG once per package, and
SYS.TDMR.INIT until each TDMR is done. Any failure leaves the host without TDX, as in reality: KVM then has no TDX type.

KeyIDs: the first private one is the global key, the rest are for guests. A guest KeyID that could not be freed is
leaked, never reused.
"""

from __future__ import annotations

import errno
import heapq
import logging
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.virt.vmx.tdx.seamcall import Seamcall
from swtdx.linux.err import err
from swtdx.linux.mm import LOW_MEMORY, PageAllocator
from swtdx.x86 import PAGE_SIZE, PAGE_SIZE_1G, PAGE_SIZE_2M

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor

log = logging.getLogger(__name__)

GIB = 1 << 30
NO_SUBLEAF = 0xFFFFFFFF
TDMR_INFO = struct.Struct("<8Q")
TDMR_INFO_SIZE = 512  # 64 bytes and 16 reserved areas of 16, aligned up
TDSYSINFO_SIZE, CMR_ARRAY_ENTRIES = 1024, 32

# TDX module global metadata (TDX Module ABI, "Global Metadata Fields")
MD_TDX_FEATURES0 = 0x0A00000300000008
MD_MAX_TDMRS = 0x9100000100000008
MD_MAX_RESERVED_PER_TDMR = 0x9100000100000009
MD_PAMT_ENTRY_SIZES = (0x9100000100000010, 0x9100000100000011, 0x9100000100000012)
MD_TDCS_BASE_SIZE = 0x9800000100000100
MD_TDVPS_BASE_SIZE = 0x9800000100000200
MD_ATTRIBUTES_FIXED0 = 0x1900000300000000
MD_ATTRIBUTES_FIXED1 = 0x1900000300000001
MD_XFAM_FIXED0 = 0x1900000300000002
MD_XFAM_FIXED1 = 0x1900000300000003
MD_NUM_CPUID_CONFIG = 0x9900000100000004
MD_MAX_VCPUS_PER_TD = 0x9900000100000008
MD_CPUID_CONFIG_LEAVES = 0x9900000300000400
MD_CPUID_CONFIG_VALUES = 0x9900000300000500

FEATURE_NO_RBP_MOD = 1 << 18
FEATURE_TOPOLOGY_ENUM = 1 << 20


class TdxUnavailable(Exception):
    """The module cannot be used; says why. Stays inside the kernel's start-up."""


@dataclass(frozen=True)
class CpuidConfig:
    """A CPUID leaf of which INIT_VM may choose bits: (eax, ebx, ecx, edx) masks of them."""

    leaf: int
    subleaf: int  # NO_SUBLEAF if the leaf has none
    registers: tuple[int, int, int, int]


@dataclass(frozen=True)
class SysInfo:
    """struct tdx_sys_info: what the module says of itself. Sizes in bytes."""

    features0: int
    attributes_fixed0: int
    attributes_fixed1: int
    xfam_fixed0: int
    xfam_fixed1: int
    tdcs_base_size: int
    tdvps_base_size: int
    max_vcpus_per_td: int
    max_reserved_per_tdmr: int
    pamt_entry_sizes: tuple[int, int, int]
    cpuid_configs: tuple[CpuidConfig, ...]

    @property
    def tdcs_pages(self) -> int:
        """Pages to give with MNG.ADDCX."""
        return self.tdcs_base_size // PAGE_SIZE

    @property
    def tdcx_pages_per_vcpu(self) -> int:
        """Pages to give with VP.ADDCX: all of TDVPS but the first, the TDVPR."""
        return self.tdvps_base_size // PAGE_SIZE - 1


@dataclass
class Tdmr:
    """A range of memory the module keeps metadata for; everything (base, size) in bytes."""

    base: int
    size: int
    pamt: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0), (0, 0))  # 1G, 2M, 4K
    reserved: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size

    def pack(self) -> bytes:
        """TDMR_INFO as the module reads it; reserved areas by offset from the base, in order."""
        areas = b"".join(struct.pack("<2Q", base - self.base, size) for base, size in sorted(self.reserved))
        return (TDMR_INFO.pack(self.base, self.size, *(n for pair in self.pamt for n in pair)) + areas).ljust(
            TDMR_INFO_SIZE, b"\0"
        )


class TdxHost:
    """The module, initialised and configured. Construction raises TdxUnavailable if the module cannot be used."""

    def __init__(self, processor: Processor, pages: PageAllocator, *, sys_rd: bool) -> None:
        self.processor = processor
        self.pages = pages
        self.seamcall = Seamcall(processor)
        platform = processor.platform
        self.packages: int = platform.packages
        self.package_cpus = self._one_cpu_per_package(platform.logical_processors)
        self.hkid_shift: int = platform.physical_address_bits - platform.keyid_bits
        self.global_keyid: int = platform.first_private_hkid
        self._free_hkids = list(range(self.global_keyid + 1, self.global_keyid + platform.tdx_keyids))  # a heap
        self.leaked_hkids: list[int] = []
        self._hkid_lock = threading.Lock()
        self.lock = threading.Lock()  # tdx_lock: one MNG.CREATE or CACHE.WB/FREEID at a time

        self.try_init_module_global()
        # upstream: a CPU that comes online is enabled before KVM may use it. LP.INIT of all must precede SYS.CONFIG.
        for cpu in range(platform.logical_processors):
            self.tdx_cpu_enable(cpu)
        # v10: those kernels read one structure by SYS.INFO; later modules report new fields by SYS.RD only.
        self.sysinfo = self.get_tdx_sys_info() if sys_rd else self._read_tdsysinfo()
        self.init_tdx_module(platform.cmrs)

    def _one_cpu_per_package(self, cpus: int) -> list[int]:
        per_package = max(1, cpus // self.packages)
        return [package * per_package for package in range(self.packages)]

    # --- Bring-up -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _must(status: int, leaf: str) -> None:
        if status:
            raise TdxUnavailable(f"{leaf} failed: {status:#018x}")

    def try_init_module_global(self) -> None:
        """Initialise the module as a whole; it accepts no other leaf before. Raises TdxUnavailable."""
        self._must(self.seamcall.tdh_sys_init(), "TDH.SYS.INIT")

    def tdx_cpu_enable(self, cpu: int) -> None:
        """Initialise the module on a logical processor. Raises TdxUnavailable."""
        self._must(self.seamcall.tdh_sys_lp_init(cpu), f"TDH.SYS.LP.INIT on CPU {cpu}")

    def read_sys_metadata_field(self, field_id: int) -> int:
        """Read one of the module's global fields. Raises TdxUnavailable."""
        status, value = self.seamcall.tdh_sys_rd(field_id)
        self._must(status, f"TDH.SYS.RD of {field_id:#x}")
        return value

    def get_tdx_sys_info(self) -> SysInfo:
        """Read what the kernel needs to know of the module. Raises TdxUnavailable."""
        rd = self.read_sys_metadata_field
        configs = []
        for number in range(rd(MD_NUM_CPUID_CONFIG)):
            leaf = rd(MD_CPUID_CONFIG_LEAVES + number)
            low, high = rd(MD_CPUID_CONFIG_VALUES + 2 * number), rd(MD_CPUID_CONFIG_VALUES + 2 * number + 1)
            registers = (low & 0xFFFFFFFF, low >> 32, high & 0xFFFFFFFF, high >> 32)
            configs.append(CpuidConfig(leaf & 0xFFFFFFFF, leaf >> 32, registers))
        sizes = [rd(field_id) for field_id in MD_PAMT_ENTRY_SIZES]
        return SysInfo(
            features0=rd(MD_TDX_FEATURES0),
            attributes_fixed0=rd(MD_ATTRIBUTES_FIXED0),
            attributes_fixed1=rd(MD_ATTRIBUTES_FIXED1),
            xfam_fixed0=rd(MD_XFAM_FIXED0),
            xfam_fixed1=rd(MD_XFAM_FIXED1),
            tdcs_base_size=rd(MD_TDCS_BASE_SIZE),
            tdvps_base_size=rd(MD_TDVPS_BASE_SIZE),
            max_vcpus_per_td=rd(MD_MAX_VCPUS_PER_TD),
            max_reserved_per_tdmr=rd(MD_MAX_RESERVED_PER_TDMR),
            pamt_entry_sizes=(sizes[0], sizes[1], sizes[2]),
            cpuid_configs=tuple(configs),
        )

    def _read_tdsysinfo(self) -> SysInfo:
        memory, pages = self.processor.memory, self.pages
        info_page, cmr_page = pages.alloc_zeroed_page("tdsysinfo"), pages.alloc_zeroed_page("tdsysinfo")
        try:
            status = self.seamcall.tdh_sys_info(info_page, TDSYSINFO_SIZE, cmr_page, CMR_ARRAY_ENTRIES)
            self._must(status, "TDH.SYS.INFO")
            info = memory.read(info_page, TDSYSINFO_SIZE)
        finally:
            pages.free_page(info_page)
            pages.free_page(cmr_page)
        max_tdmrs, max_reserved, pamt_entry = struct.unpack_from("<3H", info, 32)
        del max_tdmrs
        fixed = struct.unpack_from("<4Q", info, 64)
        configs = []
        for number in range(struct.unpack_from("<I", info, 128)[0]):
            leaf, subleaf, eax, ebx, ecx, edx = struct.unpack_from("<6I", info, 132 + 24 * number)
            configs.append(CpuidConfig(leaf, subleaf, (eax, ebx, ecx, edx)))
        return SysInfo(
            features0=0,  # not part of the structure: nothing that needs a feature bit is used then
            attributes_fixed0=fixed[0],
            attributes_fixed1=fixed[1],
            xfam_fixed0=fixed[2],
            xfam_fixed1=fixed[3],
            tdcs_base_size=struct.unpack_from("<H", info, 48)[0],
            tdvps_base_size=struct.unpack_from("<H", info, 52)[0],
            max_vcpus_per_td=0xFFFF,
            max_reserved_per_tdmr=max_reserved,
            pamt_entry_sizes=(pamt_entry, pamt_entry, pamt_entry),
            cpuid_configs=tuple(configs),
        )

    def init_tdx_module(self, cmrs: tuple[tuple[int, int], ...]) -> None:
        """Give the module its memory and its key. Raises TdxUnavailable.

        The order is the module's: TDMRs and the global KeyID are configured together, the KeyID is programmed into each
        package, and only then can TDMR.INIT write metadata with it.
        """
        tdmrs = self.construct_tdmrs(cmrs)
        self.config_tdx_module(tdmrs)
        self.config_global_keyid()
        self.init_tdmrs(tdmrs)
        self.tdmrs = tdmrs

    def config_tdx_module(self, tdmrs: list[Tdmr]) -> None:
        """Pass the TDMRs and the global KeyID to the module. Raises TdxUnavailable."""
        memory = self.processor.memory
        table = self.pages.alloc_contig_pages(1)  # pointers, then TDMR_INFOs: up to 7, the host has few
        memory.clear_page(table)
        for number, tdmr in enumerate(tdmrs):
            if number == 7:
                raise TdxUnavailable("more than 7 TDMRs")
            place = table + (number + 1) * TDMR_INFO_SIZE
            memory.write(table + 8 * number, place.to_bytes(8, "little"))
            memory.write(place, tdmr.pack())
        self._must(self.seamcall.tdh_sys_config(table, len(tdmrs), self.global_keyid), "TDH.SYS.CONFIG")

    def config_global_keyid(self) -> None:
        """Program the global key into every package: each has memory controllers of its own. Raises TdxUnavailable."""
        for cpu in self.package_cpus:
            self.do_global_key_config(cpu)

    def do_global_key_config(self, cpu: int) -> None:
        """Program the global key into the package of ``cpu``. Raises TdxUnavailable."""
        self._must(self.seamcall.tdh_sys_key_config(cpu), f"TDH.SYS.KEY.CONFIG on CPU {cpu}")

    def init_tdmrs(self, tdmrs: list[Tdmr]) -> None:
        """Initialise the metadata of all TDMRs. Raises TdxUnavailable."""
        for tdmr in tdmrs:
            self.init_tdmr(tdmr)

    def init_tdmr(self, tdmr: Tdmr) -> None:
        """Initialise a TDMR's metadata. Raises TdxUnavailable.

        The leaf does a part only, so that no call takes long, and returns the address up to which it came.
        """
        progress = tdmr.base
        while progress < tdmr.end:
            status, progress = self.seamcall.tdh_sys_tdmr_init(tdmr.base)
            self._must(status, "TDH.SYS.TDMR.INIT")

    def construct_tdmrs(self, cmrs: tuple[tuple[int, int], ...]) -> list[Tdmr]:
        """Cover all usable memory with TDMRs. Raises TdxUnavailable."""
        tdmrs = fill_out_tdmrs(cmrs)
        self.tdmrs_set_up_pamt_all(tdmrs)
        self.tdmrs_populate_rsvd_areas_all(tdmrs, cmrs)
        return tdmrs

    def tdmrs_set_up_pamt_all(self, tdmrs: list[Tdmr]) -> None:
        """Allocate the metadata of all TDMRs: a PAMT may lie in another TDMR than the one that it describes."""
        for tdmr in tdmrs:
            self.tdmr_set_up_pamt(tdmr)

    def tdmr_set_up_pamt(self, tdmr: Tdmr) -> None:
        """Allocate a TDMR's metadata, one table for each page size."""
        pamt = []
        for entry_size, unit in zip(
            reversed(self.sysinfo.pamt_entry_sizes), (PAGE_SIZE_1G, PAGE_SIZE_2M, PAGE_SIZE), strict=True
        ):
            size = tdmr_get_pamt_sz(tdmr, unit, entry_size)
            pamt.append((self.pages.alloc_contig_pages(size // PAGE_SIZE), size))
        tdmr.pamt = (pamt[0], pamt[1], pamt[2])

    def tdmrs_populate_rsvd_areas_all(self, tdmrs: list[Tdmr], cmrs: tuple[tuple[int, int], ...]) -> None:
        """Enter what of the TDMRs the module must not give to a TD. Raises TdxUnavailable."""
        for tdmr in tdmrs:
            tdmr.reserved = _merge(tdmr_populate_rsvd_holes(tdmr, cmrs) + tdmr_populate_rsvd_pamts(tdmr, tdmrs))
            if len(tdmr.reserved) > self.sysinfo.max_reserved_per_tdmr:
                raise TdxUnavailable(f"TDMR {tdmr.base:#x} needs {len(tdmr.reserved)} reserved areas")

    # --- KeyIDs -------------------------------------------------------------------------------------------------------

    def tdx_guest_keyid_alloc(self) -> int:
        """Return a private KeyID for a guest. Raises OSError(ENOSPC) when all are taken."""
        with self._hkid_lock:
            if not self._free_hkids:
                raise err(errno.ENOSPC, "all private KeyIDs are in use")
            return heapq.heappop(self._free_hkids)  # the lowest that is free, as an IDA gives it

    def tdx_guest_keyid_free(self, hkid: int) -> None:
        """Give a KeyID back; the module must have released it (KEY.FREEID)."""
        with self._hkid_lock:
            heapq.heappush(self._free_hkids, hkid)

    def tdx_guest_keyid_leak(self, hkid: int, reason: str) -> None:
        """The module would not release the KeyID: it is lost until the next boot."""
        log.error("HKID %d leaked: %s", hkid, reason)
        self.leaked_hkids.append(hkid)

    @property
    def free_hkids(self) -> int:
        """How many guest KeyIDs are free."""
        return len(self._free_hkids)


def fill_out_tdmrs(cmrs: tuple[tuple[int, int], ...]) -> list[Tdmr]:
    """Return TDMRs, whose bases and sizes must be multiples of 1 GiB, over all CMRs."""
    tdmrs: list[Tdmr] = []
    for base, size in sorted(cmrs):
        start, end = base & ~(GIB - 1), (base + size + GIB - 1) & ~(GIB - 1)
        if tdmrs and start <= tdmrs[-1].end:
            tdmrs[-1].size = end - tdmrs[-1].base
        else:
            tdmrs.append(Tdmr(start, end - start))
    return tdmrs


def tdmr_get_pamt_sz(tdmr: Tdmr, unit: int, entry_size: int) -> int:
    """Return bytes of metadata for pages of ``unit`` bytes, in whole pages."""
    return -(-(tdmr.size // unit * entry_size) // PAGE_SIZE) * PAGE_SIZE


def tdmr_populate_rsvd_pamts(tdmr: Tdmr, tdmrs: list[Tdmr]) -> list[tuple[int, int]]:
    """Return the PAMTs that lie in the TDMR, its own and others'."""
    return [area for other in tdmrs for area in other.pamt if tdmr.base <= area[0] < tdmr.end]


def tdmr_populate_rsvd_holes(tdmr: Tdmr, cmrs: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Return what of the TDMR is not usable memory: outside every CMR, or the BIOS's first megabyte."""
    holes = []
    position, end = tdmr.base, tdmr.end
    if position == 0:
        holes.append((0, LOW_MEMORY))
        position = LOW_MEMORY
    for base, size in sorted(cmrs):
        if base >= end or base + size <= position:
            continue
        if base > position:
            holes.append((position, base - position))
        position = max(position, base + size)
    if position < end:
        holes.append((position, end - position))
    return holes


def _merge(areas: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for base, size in sorted(areas):
        if merged and base <= sum(merged[-1]):
            merged[-1] = (merged[-1][0], max(sum(merged[-1]), base + size) - merged[-1][0])
        else:
            merged.append((base, size))
    return merged
