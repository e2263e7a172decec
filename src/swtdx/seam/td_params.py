# SPDX-License-Identifier: GPL-2.0-or-later
"""TD_PARAMS: what the host asks for in a new TD, and the rules TDH.MNG.INIT holds it to.

1024 bytes, 1024-byte aligned. The rules are checked in the module's order, so that the first one broken decides the
status. An error in the CPUID configuration reports the leaf in RCX (leaf 31:0, sub-leaf 63:32).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from swtdx.seam import identity
from swtdx.seam.cpuid import NO_SUBLEAF, Key, Registers, check_topology, config_order, rows
from swtdx.seam.hardware import Processor
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_PERFMON,
    CONFIG_GPAW_52,
    CONFIG_MAXGPA_VIRT,
    CONFIG_MAXPA_VIRT,
)
from swtdx.x86 import Msr

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtdx.seam.td import Td
    from swtdx.seam.version import ModuleVersion

SIZE = 1024
ALIGNMENT = 1024
CPUID_CONFIG_OFFSET = 256
ATTRIBUTE_ICSSD = 1 << 16
MAX_L2_VMS = 3
WRITE_BACK = 6
FOUR_LEVELS, FIVE_LEVELS = 4, 5
TSC_FREQUENCIES = range(4, 401)
"""Units of 25 MHz."""
TSC_UNIT_HZ = 25_000_000
CONTROL_ARCH_CAPABILITIES = 1 << 0
HLE, RTM = 1 << 4, 1 << 11
_HEADER = struct.Struct("<QQHBB4sQQH38s48s48s48sQ24s")
_ENTRY = struct.Struct("<4I")


@dataclass(frozen=True)
class TdParams:
    """TD_PARAMS as read from the host."""

    attributes: int
    xfam: int
    max_vcpus: int
    num_l2_vms: int
    msr_config_ctls: int
    reserved_0: bytes
    eptp_controls: int
    config_flags: int
    tsc_frequency: int
    reserved_1: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    arch_capabilities_config: int
    reserved_2: bytes
    cpuid_config: Mapping[Key, Registers] = field(kw_only=True)
    reserved_3: bytes = field(kw_only=True)

    @property
    def sept_levels(self) -> int:
        """Levels of the Secure EPT: the page-walk length in EPTP_CONTROLS 5:3 plus one."""
        return (self.eptp_controls >> 3 & 7) + 1


def parse(data: bytes, version: ModuleVersion) -> TdParams:
    """Parse the 1024 bytes of TD_PARAMS."""
    config, offset = {}, CPUID_CONFIG_OFFSET
    for key in config_order(version.tables):
        config[key] = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
    return TdParams(*_HEADER.unpack_from(data), cpuid_config=config, reserved_3=data[offset:SIZE])


@dataclass
class Checked:
    """What the checks start from, and what they work out on the way."""

    cpuid_config: dict[Key, Registers]
    virt_maxpa: int
    num_tdcx: int
    tsc_adjust: int
    """IA32_TSC_ADJUST at SYS.INIT."""


Check: TypeAlias = "Callable[[Rules, TdParams, Checked], None]"


class Rules:
    """The rules of TDH.MNG.INIT on one processor."""

    def __init__(self, processor: Processor, version: ModuleVersion) -> None:
        self._processor = processor
        self._version = version
        self._attributes = identity.attributes_fixed0(processor, version)
        self._xfam = identity.xfam_fixed0(processor)

    def check(self, params: TdParams, num_tdcx: int, tsc_adjust: int = 0) -> Checked:
        """Apply every rule in order; raises the Status of the first one broken.

        ``tsc_adjust``: IA32_TSC_ADJUST at SYS.INIT.
        """
        checked = Checked(
            dict(params.cpuid_config), self._processor.platform.physical_address_bits, num_tdcx, tsc_adjust
        )
        for name in self._version.td_params_checks:
            _RULES[name](self, params, checked)
        return checked

    def _check_max_vcpus(self, params: TdParams, checked: Checked) -> None:
        if not 1 <= params.max_vcpus <= self._version.max_vcpus:
            raise Status(StatusCode.OPERAND_INVALID, Operand.MAX_VCPUS)

    def _check_l2_vms(self, params: TdParams, checked: Checked) -> None:
        if params.num_l2_vms > MAX_L2_VMS:
            raise Status(StatusCode.OPERAND_INVALID, Operand.NUM_L2_VMS)
        if checked.num_tdcx < 6 + params.num_l2_vms:
            raise Status(StatusCode.TDCS_NOT_ALLOCATED)

    def _check_config_flags(self, params: TdParams, checked: Checked) -> None:
        flags, both = params.config_flags, CONFIG_MAXPA_VIRT | CONFIG_MAXGPA_VIRT
        if flags & ~self._version.config_flags_fixed0 or flags & both == both:
            raise Status(StatusCode.OPERAND_INVALID, Operand.EXEC_CONTROLS)

    def _check_gpaw(self, params: TdParams, checked: Checked) -> None:
        """Check that a 52-bit address width has a fifth level, and that no other flag is set."""
        if params.config_flags & CONFIG_GPAW_52 and params.sept_levels != FIVE_LEVELS:
            raise Status(StatusCode.OPERAND_INVALID, Operand.EXEC_CONTROLS)
        self._check_config_flags(params, checked)

    def _check_tsc_frequency(self, params: TdParams, checked: Checked) -> None:
        if params.tsc_frequency not in TSC_FREQUENCIES:
            raise Status(StatusCode.OPERAND_INVALID, Operand.TSC_FREQUENCY)

    def _check_tsc_adjust(self, params: TdParams, checked: Checked) -> None:
        check_tsc_adjust(self._processor.rdmsr, checked.tsc_adjust)

    def _check_msr_config_ctls(self, params: TdParams, checked: Checked) -> None:
        if params.msr_config_ctls & ~CONTROL_ARCH_CAPABILITIES:
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)

    def _check_migratable(self, params: TdParams, checked: Checked) -> None:
        if params.attributes & ATTRIBUTE_MIGRATABLE and params.num_l2_vms:
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)

    def _check_attributes(self, params: TdParams, checked: Checked) -> None:
        attributes = params.attributes
        migratable, perfmon = attributes & ATTRIBUTE_MIGRATABLE, attributes & ATTRIBUTE_PERFMON
        if (
            attributes & ~self._attributes
            or ~attributes & identity.ATTRIBUTES_FIXED1
            or (migratable and attributes & (ATTRIBUTE_DEBUG | ATTRIBUTE_PERFMON))
            or (perfmon and attributes & ATTRIBUTE_ICSSD)
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.ATTRIBUTES)

    def _check_xfam(self, params: TdParams, checked: Checked) -> None:
        xfam = params.xfam
        avx512 = xfam >> 5 & 7
        cet, amx = xfam >> 11 & 3, xfam >> 17 & 3
        if (
            xfam & ~self._xfam
            or ~xfam & identity.XFAM_FIXED1
            or avx512 not in (0, 7)
            or (avx512 and not xfam & 4)
            or cet not in (0, 3)
            or amx not in (0, 3)
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.XFAM)

    def _check_eptp(self, params: TdParams, checked: Checked) -> None:
        self._check_eptp_alone(params, checked)
        if params.config_flags & CONFIG_GPAW_52 and params.sept_levels != FIVE_LEVELS:
            raise Status(StatusCode.OPERAND_INVALID, Operand.EPTP_CONTROLS)

    def _check_eptp_alone(self, params: TdParams, checked: Checked) -> None:
        controls, levels = params.eptp_controls, params.sept_levels
        five_levels = levels == FIVE_LEVELS and self._processor.platform.physical_address_bits >= 49
        if controls & ~0x3F or controls & 7 != WRITE_BACK or not (levels == FOUR_LEVELS or five_levels):
            raise Status(StatusCode.OPERAND_INVALID, Operand.EPTP_CONTROLS)

    def _check_cpuid(self, params: TdParams, checked: Checked) -> None:
        """Check CPUID leaf by leaf, in the order of the module's table."""
        table = rows(self._version.tables)
        more = {(1, None): self._check_model, (7, 0): self._check_tsx, (0x8000_0008, None): self._check_maxpa}
        for key in sorted(params.cpuid_config, key=lambda key: table[key].lookup_index):
            self._check_leaf(params, key)
            if key in more:
                more[key](params, checked)

    def _check_cpuid_alone(self, params: TdParams, checked: Checked) -> None:
        """Check CPUID as module 1.0 does, which looks at no leaf in particular."""
        for key in params.cpuid_config:
            self._check_leaf(params, key)

    def _check_leaf(self, params: TdParams, key: Key) -> None:
        """Check that only configurable bits are set. One that the processor lacks may be set, and stays 0."""
        row = rows(self._version.tables)[key]
        masks = zip(params.cpuid_config[key], row.config_direct, row.allow_direct, strict=True)
        if any(bits & ~(direct | allow) for bits, direct, allow in masks):
            raise _cpuid_fault(key)

    def _check_model(self, params: TdParams, checked: Checked) -> None:
        model, native = params.cpuid_config[1, None][0], self._processor.cpuid(1)[0]
        if params.attributes & ATTRIBUTE_MIGRATABLE:
            if not identity.may_migrate_to(model or native, native):
                raise _cpuid_fault((1, None))
        elif model and model != native:
            raise _cpuid_fault((1, None))

    def _check_tsx(self, params: TdParams, checked: Checked) -> None:
        row, native = rows(self._version.tables)[7, 0], self._processor.cpuid(7)[1]
        wanted = params.cpuid_config[7, 0][1]
        tsx = (wanted & row.config_direct[1] | wanted & native & row.allow_direct[1]) & (HLE | RTM)
        if tsx not in (0, HLE | RTM):
            raise _cpuid_fault((7, 0))
        if tsx and not native_msr(self._processor.rdmsr, Msr.ARCH_CAPABILITIES) & identity.ARCH_CAPABILITIES_TSX_CTRL:
            raise Status(StatusCode.INCORRECT_MSR_VALUE, Msr.ARCH_CAPABILITIES)

    def _check_maxpa(self, params: TdParams, checked: Checked) -> None:
        native = checked.virt_maxpa
        gpaw = 52 if params.config_flags & CONFIG_GPAW_52 else 48
        if params.config_flags & CONFIG_MAXGPA_VIRT:
            checked.virt_maxpa = min(native, gpaw)
        if not params.config_flags & CONFIG_MAXPA_VIRT:
            return
        wanted = params.cpuid_config[0x8000_0008, None][0] & 0xFF
        if not wanted:
            wanted = min(native, gpaw)
        elif not identity.MIN_VIRT_MAXPA <= wanted <= min(native, gpaw):
            raise Status(StatusCode.OPERAND_INVALID, Operand.CPUID_CONFIG, rcx=0)
        checked.virt_maxpa = wanted

    def _check_topology(self, params: TdParams, checked: Checked) -> None:
        """Check leaf 0x1F; if sub-leaf 0 is all zero, all have to be, and the TD has the native topology."""
        keys = [(0x1F, level) for level in range(6)]
        levels = [checked.cpuid_config[key] for key in keys]
        if not any(levels[0]):
            if any(any(level) for level in levels):
                raise Status(StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
            levels = [self._processor.cpuid(leaf, level) for leaf, level in keys]
            checked.cpuid_config.update(zip(keys, levels, strict=True))
        check_topology(levels)

    def _check_arch_capabilities(self, params: TdParams, checked: Checked) -> None:
        value = params.arch_capabilities_config
        if value & ~identity.ARCH_CAPABILITIES_CONFIG_MASK or (
            value and not params.msr_config_ctls & CONTROL_ARCH_CAPABILITIES
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.IA32_ARCH_CAPABILITIES_CONFIG)


def _reserved(*fields: str) -> Check:
    """Return the rule that these members are zero."""

    def check(rules: Rules, params: TdParams, checked: Checked) -> None:
        for name in fields:
            value = getattr(params, name)
            if any(value) if isinstance(value, bytes) else value:
                raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)

    return check


_RULES: Mapping[str, Check] = {
    **{
        name: getattr(Rules, f"_check_{name}")
        for name in (
            "attributes", "xfam", "max_vcpus", "l2_vms", "config_flags", "gpaw", "eptp", "eptp_alone", "tsc_frequency",
            "tsc_adjust", "msr_config_ctls", "cpuid", "cpuid_alone", "topology",
            "arch_capabilities", "migratable",
        )
    },
    "reserved_0": _reserved("reserved_0"),
    "reserved_1": _reserved("reserved_1"),
    "reserved_2": _reserved("reserved_2"),
    "reserved_3": _reserved("reserved_3"),
    "reserved_16": _reserved("num_l2_vms", "msr_config_ctls", "reserved_0"),
    "reserved_224": _reserved("arch_capabilities_config", "reserved_2"),
}  # fmt: skip
"""The rules by the names that ``tables/versions.json`` puts in order; the last two are of members that 1.0 lacks."""

LIMIT_CPUID_MAXVAL, ENABLE_MONITOR_FSM = 1 << 22, 1 << 18
MONITOR = 1 << 3
"""CPUID.1 ECX."""


def check_limit_cpuid_maxval(read: Callable[[int], int]) -> None:
    """Check that IA32_MISC_ENABLE does not limit CPUID; raises LIMIT_CPUID_MAXVAL_SET."""
    if native_msr(read, Msr.MISC_ENABLE) & LIMIT_CPUID_MAXVAL:
        raise Status(StatusCode.LIMIT_CPUID_MAXVAL_SET)


def check_native_msr(read: Callable[[int], int], index: int, mask: int, wanted: int) -> None:
    """Check bits of a native MSR that the module needs; raises INCORRECT_MSR_VALUE with the MSR."""
    if native_msr(read, index) & mask != wanted:
        raise Status(StatusCode.INCORRECT_MSR_VALUE, index)


def check_tsc_adjust(read: Callable[[int], int], at_init: int) -> None:
    """Check that IA32_TSC_ADJUST is what it was at SYS.INIT; raises INCONSISTENT_MSR|0x3B."""
    if native_msr(read, Msr.TSC_ADJUST) != at_init:
        raise Status(StatusCode.INCONSISTENT_MSR, Msr.TSC_ADJUST)


def check_monitor(read: Callable[[int], int], td: Td) -> None:
    """Check that a TD with MONITOR and MWAIT has them; raises INCORRECT_MSR_VALUE|0x1A0."""
    if td.cpuid.values[1, None][2] & MONITOR and not native_msr(read, Msr.MISC_ENABLE) & ENABLE_MONITOR_FSM:
        raise Status(StatusCode.INCORRECT_MSR_VALUE, Msr.MISC_ENABLE)


def native_msr(read: Callable[[int], int], index: int) -> int:
    """Return a native MSR, 0 where the processor has none."""
    try:
        return read(index)
    except KeyError:
        return 0


def _cpuid_fault(key: Key) -> Status:
    leaf, subleaf = key
    sub = NO_SUBLEAF if subleaf is None else subleaf
    return Status(StatusCode.OPERAND_INVALID, Operand.CPUID_CONFIG, rcx=leaf | sub << 32)
