# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a TD and taking it down: TDH.MNG.CREATE, KEY.CONFIG, ADDCX, INIT, VPFLUSHDONE, KEY.FREEID."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swtdx.seam import measurement, sept, td_params
from swtdx.seam.cpuid import VirtualCpuid
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.identity import (
    ARCH_CAPABILITIES_ALLOWED,
    ARCH_CAPABILITIES_FIXED0,
    ARCH_CAPABILITIES_RRSBA,
    ARCH_CAPABILITIES_TSX_CTRL,
    ARCH_CAPABILITIES_XAPIC_DISABLE_STATUS,
    HP_LOCK_TIMEOUT_DEFAULT,
)
from swtdx.seam.lifecycle import Event, LifecycleState, OpState
from swtdx.seam.msr import MsrPolicy
from swtdx.seam.pamt import PageType
from swtdx.seam.sept import SecureEpt
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_SEPT_VE_DISABLE,
    CONFIG_MAXPA_VIRT,
    CTLS_PENDING_VE_DISABLE,
    Td,
)
from swtdx.seam.td_params import TSC_UNIT_HZ, Checked, TdParams, check_limit_cpuid_maxval, native_msr
from swtdx.x86 import PAGE_SIZE, Msr

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

MNG_INIT = SEAMCALL_NUMBERS["TDH.MNG.INIT"]
MSR_BITMAPS_TDCX_INDEX = 2
ZERO_PAGE = bytes(PAGE_SIZE)
TSC_FRACTION_BITS = 48
MAX_GPA_BITS = 52


@leaf("TDH.MNG.CREATE")
def tdh_mng_create(module: TdxModule, args: Args, lp: int) -> int:
    """Create a TD from a page and a free private KeyID."""
    hpa = args.rcx
    hkid = module.kot.check_private(args.rdx, Operand.RDX)
    index = module.pamt.free_page(hpa, Operand.RCX)
    module.contention.check(Operand.KOT)
    module.kot.check_free(hkid)
    if module.version.entropy_checks:
        module.contention.check_entropy()
    # The TDR outlives the TD's key, because reclaiming the other pages needs it: it is under the module's key.
    module.take_page(hpa, module.global_hkid, ZERO_PAGE)
    module.kot.advance(hkid, Event.MNG_CREATE)
    module.pamt.assign(index, PageType.TDR, 0)
    module.tds[hpa] = Td(hpa, hkid, index, module.version, module.processor.random(32))
    return SUCCESS


@leaf("TDH.MNG.KEY.CONFIG")
def tdh_mng_key_config(module: TdxModule, args: Args, lp: int) -> int:
    """Program the TD's key on this package; after the last package the TD's keys are configured."""
    td = module.td_exclusive(args.rcx, Operand.RCX)
    if td.fatal:
        raise Status(StatusCode.TD_FATAL)
    if td.lifecycle is not LifecycleState.HKID_ASSIGNED:
        raise Status(StatusCode.LIFECYCLE_STATE_INCORRECT)
    package = 1 << module.package_of(lp)
    if td.packages_configured & package:
        raise Status(StatusCode.KEY_CONFIGURED)
    module.contention.check_key_generation()
    # One key for all packages: the first call makes it, the others program the same one.
    if not td.packages_configured:
        module.memory.create_key(td.hkid)
    td.packages_configured |= package
    if td.packages_configured == (1 << module.platform.packages) - 1:
        td.advance(Event.MNG_KEY_CONFIG)
    return SUCCESS


@leaf("TDH.MNG.ADDCX")
def tdh_mng_addcx(module: TdxModule, args: Args, lp: int) -> int:
    """Add a page to the TDCS; the fourth is the root of the Secure EPT."""
    hpa = args.rcx
    td = module.td_exclusive(args.rdx, Operand.RDX)
    if td.fatal:
        raise Status(StatusCode.TD_FATAL)
    if td.lifecycle is not LifecycleState.KEYS_CONFIGURED:
        raise Status(StatusCode.TD_KEYS_NOT_CONFIGURED)
    number, version = len(td.tdcx), td.version
    if td.op_state is not OpState.UNINITIALIZED and version.addcx_checks_op_state:
        raise version.wrong_op_state(MNG_INIT, td.op_state)
    if number >= version.max_tdcx:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    index = module.pamt.free_page(hpa, Operand.RCX)
    if number == version.min_tdcx - 1 and version.entropy_checks:  # complete: the TD gets its random identities
        module.contention.check_entropy()
    if number >= version.min_tdcx and td.op_state is not OpState.UNINITIALIZED:
        raise Status(StatusCode.OP_STATE_INCORRECT)
    contents = {MSR_BITMAPS_TDCX_INDEX: b"\xff" * PAGE_SIZE, sept.ROOT_TDCX_INDEX: sept.FREE_PAGE}
    module.take_page(hpa, td.hkid, contents.get(number, ZERO_PAGE))
    module.pamt.assign(index, PageType.TDCX, td.hpa)
    td.tdcx.append(hpa)
    td.child_count += 1
    td.admit()
    return SUCCESS


@leaf("TDH.MNG.INIT", clears=("rcx",))
def tdh_mng_init(module: TdxModule, args: Args, lp: int) -> int:
    """Initialise the TD from TD_PARAMS."""
    check_limit_cpuid_maxval(module.processor.rdmsr)
    td = module.td_exclusive(args.rcx, Operand.RCX)
    td.check_state(MNG_INIT)
    source = module.host.shared(args.rdx, td_params.ALIGNMENT, Operand.RDX)
    params = td_params.parse(module.read_host(source, td_params.SIZE), module.version)
    checked = module.td_rules.check(params, len(td.tdcx), module.tsc_adjust)
    configure(module, td, params, checked)
    td.advance(Event.MNG_INIT)
    args.rcx = 0
    return SUCCESS


def configure(module: TdxModule, td: Td, params: TdParams, checked: Checked) -> None:
    """Set everything in a TD that follows from its checked parameters."""
    td.params = replace(params, cpuid_config=checked.cpuid_config)
    td.attributes, td.xfam, td.config_flags = params.attributes, params.xfam, params.config_flags
    td.max_vcpus, td.num_l2_vms = params.max_vcpus, params.num_l2_vms
    td.debug = bool(params.attributes & ATTRIBUTE_DEBUG)
    td.td_ctls = CTLS_PENDING_VE_DISABLE if params.attributes & ATTRIBUTE_SEPT_VE_DISABLE else 0
    td.hp_lock_timeout = HP_LOCK_TIMEOUT_DEFAULT
    td.virt_maxpa = checked.virt_maxpa
    td.shared_bit = 1 << (td.gpaw - 1)
    td.illegal_gpa_bits = illegal_gpa_bits(td)
    td.private_limit = td.gpa_limit = min(td.shared_bit, 1 << td.virt_maxpa)
    td.sept = SecureEpt(module.memory.qwords, td.tdcx[sept.ROOT_TDCX_INDEX], params.sept_levels)
    td.tsc_frequency = params.tsc_frequency
    td.tsc_multiplier = (params.tsc_frequency * TSC_UNIT_HZ << TSC_FRACTION_BITS) // module.platform.tsc_hz
    td.tsc_offset = -(module.processor.rdtsc() * td.tsc_multiplier >> TSC_FRACTION_BITS) & (1 << 64) - 1
    td.cpuid = VirtualCpuid(td, module.processor, checked.cpuid_config, checked.virt_maxpa)
    native = native_msr(module.processor.rdmsr, Msr.ARCH_CAPABILITIES)
    td.arch_capabilities = native
    if td.version.native_msrs:  # module 1.0 asks nothing of the processor, and passes on what it has
        td.arch_capabilities = arch_capabilities(native, params.arch_capabilities_config, tsx=td.cpuid.has_tsx)
    td.msrs = MsrPolicy(td, module.processor)
    hpa = td.tdcx[MSR_BITMAPS_TDCX_INDEX]
    module.memory.raw[hpa : hpa + PAGE_SIZE] = td.msrs.bitmap
    td.mrconfigid, td.mrowner, td.mrownerconfig = params.mrconfigid, params.mrowner, params.mrownerconfig
    measurement.start(td)


def arch_capabilities(native: int, configured: int, *, tsx: bool) -> int:
    """Return the virtual IA32_ARCH_CAPABILITIES of a TD."""
    value = native & ~ARCH_CAPABILITIES_FIXED0
    if not tsx:
        value &= ~ARCH_CAPABILITIES_TSX_CTRL
    value &= ~ARCH_CAPABILITIES_ALLOWED | configured
    return value | configured & ARCH_CAPABILITIES_RRSBA | ARCH_CAPABILITIES_XAPIC_DISABLE_STATUS


def illegal_gpa_bits(td: Td) -> int:
    """Return bits 48 up to the virtual MAXPA of a 48-bit TD, and the virtual MAXPA to 51 except the shared bit."""
    maxpa = td.virt_maxpa if td.config_flags & CONFIG_MAXPA_VIRT else MAX_GPA_BITS
    above = (1 << MAX_GPA_BITS) - (1 << maxpa)
    between = (1 << maxpa) - (1 << td.gpaw) if td.gpaw < maxpa else 0
    return (above | between) & ~td.shared_bit


@leaf("TDH.MNG.VPFLUSHDONE")
def tdh_mng_vpflushdone(module: TdxModule, args: Args, lp: int) -> int:
    """Release the TD's key once no virtual CPU is associated; caches must be written back next."""
    td = module.td_exclusive(args.rcx, Operand.RCX)
    module.contention.check(Operand.KOT)
    if td.lifecycle not in (LifecycleState.KEYS_CONFIGURED, LifecycleState.HKID_ASSIGNED):
        raise Status(StatusCode.LIFECYCLE_STATE_INCORRECT)
    if td.num_associated:
        raise Status(StatusCode.FLUSHVP_NOT_DONE)
    # Lines under the key may still be in caches. Until they are written back, the KeyID must not get another key.
    module.kot.flush(td.hkid, module.platform.packages)
    td.advance(Event.MNG_VPFLUSHDONE)
    return SUCCESS


@leaf("TDH.MNG.KEY.FREEID")
def tdh_mng_key_freeid(module: TdxModule, args: Args, lp: int) -> int:
    """Free the KeyID after all packages wrote their caches back; the TD's pages can be reclaimed."""
    td = module.td_exclusive(args.rcx, Operand.RCX)
    if td.lifecycle is not LifecycleState.BLOCKED:
        raise Status(StatusCode.LIFECYCLE_STATE_INCORRECT)
    module.contention.check(Operand.KOT)
    if module.kot.write_back_pending(td.hkid):
        raise Status(StatusCode.WBCACHE_NOT_COMPLETE)
    module.kot.advance(td.hkid, Event.MNG_KEY_FREEID)
    module.memory.drop_key(td.hkid)
    td.advance(Event.MNG_KEY_FREEID)
    return SUCCESS


@leaf("TDH.MNG.KEY.RECLAIMID")
def tdh_mng_key_reclaimid(module: TdxModule, args: Args, lp: int) -> int:
    """Do nothing, in 1.0 and 1.5."""
    return SUCCESS
