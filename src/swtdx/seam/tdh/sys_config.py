# SPDX-License-Identifier: GPL-2.0-or-later
"""Bringing the module up: TDH.SYS.INIT, LP.INIT, CONFIG, KEY.CONFIG, TDMR.INIT; and down: SHUTDOWN, UPDATE.

SYS.INIT once, LP.INIT on every logical processor, CONFIG once, KEY.CONFIG once for each package (the last one makes
the module ready), then TDMR.INIT for each TDMR until it says that the end is reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import cpuid, identity, tdmr
from swtdx.seam.dispatch import SUCCESS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import Event, SysState, VcpuState
from swtdx.seam.pamt import GIB, Tdmr
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_params import check_limit_cpuid_maxval, check_native_msr, check_tsc_adjust, native_msr
from swtdx.x86 import Msr

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

TDMR_POINTER_SIZE = 8

WAIVED_CPUID: dict[cpuid.Key, cpuid.Registers] = {
    # SSE3-era debug store and perfmon (DTES64, DS-CPL, PDCM), PCID; DS, ACPI, self snoop
    (1, None): (0, 0, 1 << 2 | 1 << 4 | 1 << 15 | 1 << 17, 1 << 21 | 1 << 22 | 1 << 27),
    # leaf 4: inclusiveness of the last level
    (4, 3): (0, 0, 0, 1),
    # INVPCID, FDP_EXCPTN_ONLY, FCS/FDS deprecation, SHA; MOVDIRI/MOVDIR64B/bus lock; fast short REP, arch perfmon; RTM
    # is module 1.0's demand, as are all of leaf 0xA but its first byte
    (7, 0): (0, 1 << 6 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 29 | 1 << 1, 0x9900_0000, 0xFC08_2600),
    (0xA, None): (0xFFFF, 0, 0xF, 0x801F),
    # XSAVEC, XSAVES; CET states
    (0xD, 1): (0xF, 0, 0x1800, 0),
    (0x14, 0): (0xFFFF_FFFF, 0, 0, 0),
    (0x80000001, None): (0, 0, 1 << 0 | 1 << 5 | 1 << 8, 0),
}
"""CPUID bits that the real module demands and the emulated processor may lack, because it does not implement the
feature. The TD then sees the feature as absent, which is the truth. All else is compared with the processor."""


@leaf("TDH.SYS.INIT", clears=("rcx", "rdx", "r8", "r9", "r10"))
def tdh_sys_init(module: TdxModule, args: Args, lp: int) -> int:
    """Start the module: check the platform, once.

    There are no SMRRs, no SEAMOPS capabilities and no VMX or TME MSRs to check on this processor. The MSRs that tell
    which vulnerabilities it has, and what it mitigates, must be as the module wants them.
    """
    module.contention.check(Operand.SYS)
    if args.rcx:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    if module.state is not SysState.SYSINIT_PENDING:
        raise Status(StatusCode.SYS_INIT_NOT_PENDING)
    read = module.processor.rdmsr
    for msr in module.version.native_msrs:
        check_native_msr(read, *msr)
    check_limit_cpuid_maxval(read)
    check_native_msr(read, Msr.MISC_ENABLE, *module.version.misc_enable)
    cpuid.check_native(module.processor, WAIVED_CPUID, module.version)
    if module.platform.mktme_keyids + module.platform.tdx_keyids >= module.version.max_hkids:
        raise Status(StatusCode.NUM_ACTIVATED_HKIDS_NOT_SUPPORTED, module.version.max_hkids)
    if not module.platform.cmrs or len(module.platform.cmrs) > identity.MAX_CMRS:
        raise Status(StatusCode.CMR_LIST_INVALID)
    module.contention.check_entropy()
    # Later entries compare: a host that moves the TSC of a logical processor would move it for TDs, too.
    module.tsc_adjust = native_msr(module.processor.rdmsr, Msr.TSC_ADJUST)
    module.advance(Event.SYS_INIT)
    args.rcx = args.rdx = args.r8 = args.r9 = args.r10 = 0
    return SUCCESS


@leaf("TDH.SYS.LP.INIT", clears=("rcx", "rdx", "r8"))
def tdh_sys_lp_init(module: TdxModule, args: Args, lp: int) -> int:
    """Initialise a logical processor. CPUID and MSRs are the same on all of them, so they cannot disagree."""
    module.contention.check(Operand.SYS)
    if module.state is not SysState.SYSINIT_DONE:
        raise Status(StatusCode.SYS_LP_INIT_NOT_PENDING)
    if lp in module.initialized_lps:
        raise Status(StatusCode.SYS_LP_INIT_DONE)
    module.contention.check_entropy()
    check_limit_cpuid_maxval(module.processor.rdmsr)
    if module.package_of(lp) >= identity.MAX_PACKAGES:
        raise Status(StatusCode.INVALID_PKG_ID, module.package_of(lp))
    check_tsc_adjust(module.processor.rdmsr, module.tsc_adjust)
    module.initialized_lps.add(lp)
    args.rcx = args.rdx = args.r8 = 0
    return SUCCESS


@leaf("TDH.SYS.CONFIG")
def tdh_sys_config(module: TdxModule, args: Args, lp: int) -> int:
    """Take the TDMRs and the module's own KeyID. The KeyID stays reserved even if a TDMR is then refused."""
    module.contention.check(Operand.SYS)
    if module.state is not SysState.SYSINIT_DONE or len(module.initialized_lps) < module.platform.logical_processors:
        raise Status(StatusCode.SYS_CONFIG_NOT_PENDING)
    array = module.host.shared(args.rcx, tdmr.ALIGNMENT, Operand.RCX)
    if not 1 <= args.rdx <= tdmr.MAX_TDMRS:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    # Before the TDMRs, as on the real module: a TDMR that is refused leaves the KeyID reserved.
    module.global_hkid = module.kot.check_private(args.r8, Operand.R8)
    module.kot.advance(module.global_hkid, Event.SYS_CONFIG)
    tdmrs = read_tdmrs(module, array, args.rdx)
    module.pamt.configure(tuple(tdmrs))
    module.advance(Event.SYS_CONFIG)
    return SUCCESS


def read_tdmrs(module: TdxModule, array: int, count: int) -> list[Tdmr]:
    """Read and check the TDMR_INFOs behind an array of pointers, one after the other."""
    rules = tdmr.MemoryRules(module.platform.cmrs, 1 << module.host.hkid_shift)
    pointers = module.read_host(array, count * TDMR_POINTER_SIZE)
    tdmrs: list[Tdmr] = []
    for number in range(count):
        pointer = int.from_bytes(pointers[number * 8 : number * 8 + 8], "little")
        module.host.shared(pointer, tdmr.ALIGNMENT, Operand.RCX)
        info = tdmr.parse(module.read_host(pointer, tdmr.SIZE))
        tdmrs.append(tdmr.check(number, info, tdmrs, rules))
    return tdmrs


@leaf("TDH.SYS.KEY.CONFIG")
def tdh_sys_key_config(module: TdxModule, args: Args, lp: int) -> int:
    """Program the module's KeyID on this package; after the last package the module is ready."""
    module.contention.check(Operand.SYS)
    if module.state is not SysState.SYSCONFIG_DONE:
        raise Status(StatusCode.SYS_KEY_CONFIG_NOT_PENDING)
    package = module.package_of(lp)
    if package in module.packages_configured:
        raise Status(StatusCode.KEY_CONFIGURED)
    module.contention.check_key_generation()
    if not module.packages_configured:
        module.memory.create_key(module.global_hkid)
    module.packages_configured.add(package)
    if len(module.packages_configured) == module.platform.packages:
        module.advance(Event.SYS_KEY_CONFIG)
    return SUCCESS


@leaf("TDH.SYS.TDMR.INIT", clears=("rdx",))
def tdh_sys_tdmr_init(module: TdxModule, args: Args, lp: int) -> int:
    """Initialise the metadata of the next part of a TDMR; RDX: progress, rounded down to 1 GiB."""
    base = args.rcx
    if base % GIB or base >> module.host.hkid_shift:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    progress = module.pamt.initialized_up_to(base)
    if progress is None:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    module.contention.check(Operand.TDMR, base, named=Operand.RCX)
    if any(region.base == base and region.end == progress for region in module.pamt.tdmrs):
        raise Status(StatusCode.TDMR_ALREADY_INITIALIZED)
    args.rdx = module.pamt.initialize_slice(base, module.global_hkid) & ~(GIB - 1)
    return SUCCESS


@leaf("TDH.SYS.LP.SHUTDOWN")
def tdh_sys_lp_shutdown(module: TdxModule, args: Args, lp: int) -> int:
    """Do nothing, since module 1.5; in 1.0 shut down for good and disable the logical processor for SEAM."""
    if module.version.lp_shutdown_shuts_down:
        module.contention.check(Operand.SYS)
        module.advance(Event.SYS_LP_SHUTDOWN)
        module.shut_down_lps.add(lp)
    return SUCCESS


@leaf("TDH.SYS.SHUTDOWN")
def tdh_sys_shutdown(module: TdxModule, args: Args, lp: int) -> int:
    """Shut the module down so that another one can take its place: only SYS.LP.SHUTDOWN is accepted from now on.

    RCX is the version of the data handed over; this module knows one. A logical processor that runs a guest is inside
    the module. Nothing is handed over: TD preserving (TDX_FEATURES0 bit 1) is not reproduced.
    """
    if args.rcx != identity.HANDOFF_VERSION:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    module.contention.check(Operand.SYS)
    if any(vcpu.state is VcpuState.ACTIVE for vcpu in module.vcpus.values()):
        raise Status(StatusCode.SYS_BUSY)
    module.advance(Event.SYS_SHUTDOWN)
    return SUCCESS


@leaf("TDH.SYS.UPDATE")
def tdh_sys_update(module: TdxModule, args: Args, lp: int) -> int:
    """Take over the TDs of the previous module, of which there are none (see SYS.SHUTDOWN)."""
    module.contention.check(Operand.SYS)
    if module.state is not SysState.SYSINIT_DONE or len(module.initialized_lps) < module.platform.logical_processors:
        raise Status(StatusCode.SYS_STATE_INCORRECT)
    raise Status(StatusCode.SYS_INVALID_HANDOFF)
