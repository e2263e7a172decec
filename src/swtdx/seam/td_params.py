# SPDX-License-Identifier: GPL-2.0-or-later
"""TD_PARAMS: what the host asks for in a new TD, and the rules TDH.MNG.INIT holds it to.

1024 bytes, 1024-byte aligned. The rules are checked in the module's order, so that the first one broken decides the
status. An error in the CPUID configuration reports the leaf in RCX (leaf 31:0, sub-leaf 63:32).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swtdx.seam import identity
from swtdx.seam.cpuid import NO_SUBLEAF, Key, Registers, check_topology, config_mask, config_order
from swtdx.seam.hardware import Processor
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_PERFMON,
    CONFIG_GPAW_52,
    CONFIG_MAXPA_VIRT,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1024
ALIGNMENT = 1024
CPUID_CONFIG_OFFSET = 256
ATTRIBUTE_ICSSD = 1 << 16
MAX_L2_VMS = 3
WRITE_BACK = 6
TSC_FREQUENCIES = range(4, 401)
"""Units of 25 MHz."""
TSC_UNIT_HZ = 25_000_000
MSR_ARCH_CAPABILITIES = 0x10A
ARCH_CAPABILITIES_TSX_CTRL = 1 << 7
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


def parse(data: bytes) -> TdParams:
    """TD_PARAMS from its 1024 bytes."""
    config, offset = {}, CPUID_CONFIG_OFFSET
    for key in config_order():
        config[key] = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
    return TdParams(*_HEADER.unpack_from(data), cpuid_config=config, reserved_3=data[offset:SIZE])


@dataclass
class Checked:
    """What the checks work out on the way."""

    cpuid_config: dict[Key, Registers]
    virt_maxpa: int


class Rules:
    """The rules of TDH.MNG.INIT on one processor."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._attributes = identity.attributes_fixed0(processor)
        self._xfam = identity.xfam_fixed0(processor)

    def check(self, params: TdParams, num_tdcx: int, tsc_adjust: int = 0) -> Checked:
        """Apply every rule in order; raises the Status of the first one broken.

        ``tsc_adjust``: IA32_TSC_ADJUST at SYS.INIT.
        """
        self._check_attributes(params.attributes)
        self._check_xfam(params.xfam)
        if not 1 <= params.max_vcpus <= identity.MAX_VCPUS_PER_TD:
            raise Status(StatusCode.OPERAND_INVALID, Operand.MAX_VCPUS)
        if params.num_l2_vms > MAX_L2_VMS:
            raise Status(StatusCode.OPERAND_INVALID, Operand.NUM_L2_VMS)
        if num_tdcx < 6 + params.num_l2_vms:
            raise Status(StatusCode.TDCS_NOT_ALLOCATED)
        _zero(params.reserved_0)
        if params.config_flags & ~identity.CONFIG_FLAGS_FIXED0:
            raise Status(StatusCode.OPERAND_INVALID, Operand.EXEC_CONTROLS)
        self._check_eptp(params)
        if params.tsc_frequency not in TSC_FREQUENCIES:
            raise Status(StatusCode.OPERAND_INVALID, Operand.TSC_FREQUENCY)
        check_tsc_adjust(self._processor.rdmsr, tsc_adjust)
        _zero(params.reserved_1)
        if params.msr_config_ctls & ~CONTROL_ARCH_CAPABILITIES:
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
        _zero(params.reserved_2)
        checked = Checked(self._check_cpuid(params), self._check_maxpa(params))
        self._check_topology(checked)
        _zero(params.reserved_3)
        self._check_arch_capabilities(params)
        if params.attributes & ATTRIBUTE_MIGRATABLE and params.num_l2_vms:
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
        return checked

    def _check_attributes(self, attributes: int) -> None:
        migratable, perfmon = attributes & ATTRIBUTE_MIGRATABLE, attributes & ATTRIBUTE_PERFMON
        if (
            attributes & ~self._attributes
            or ~attributes & identity.ATTRIBUTES_FIXED1
            or (migratable and attributes & (ATTRIBUTE_DEBUG | ATTRIBUTE_PERFMON))
            or (perfmon and attributes & ATTRIBUTE_ICSSD)
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.ATTRIBUTES)

    def _check_xfam(self, xfam: int) -> None:
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

    def _check_eptp(self, params: TdParams) -> None:
        controls, length = params.eptp_controls, params.eptp_controls >> 3 & 7
        five_levels = length == 4 and self._processor.platform.physical_address_bits >= 49
        if (
            controls & ~0x3F
            or controls & 7 != WRITE_BACK
            or not (length == 3 or five_levels)
            or (params.config_flags & CONFIG_GPAW_52 and length != 4)
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.EPTP_CONTROLS)

    def _check_cpuid(self, params: TdParams) -> dict[Key, Registers]:
        for key, value in params.cpuid_config.items():
            mask = config_mask(self._processor, key)
            if any(bits & ~allowed for bits, allowed in zip(value, mask, strict=True)):
                raise _cpuid_fault(key)
        model = params.cpuid_config[1, None][0]
        # Only the native model is in the list for migratable TDs, as nothing can be migrated here.
        if model and model != self._processor.cpuid(1)[0]:
            raise _cpuid_fault((1, None))
        tsx = params.cpuid_config[7, 0][1] & (HLE | RTM)
        if tsx not in (0, HLE | RTM):
            raise _cpuid_fault((7, 0))
        if tsx and not native_msr(self._processor.rdmsr, MSR_ARCH_CAPABILITIES) & ARCH_CAPABILITIES_TSX_CTRL:
            raise Status(StatusCode.INCORRECT_MSR_VALUE, MSR_ARCH_CAPABILITIES)
        return dict(params.cpuid_config)

    def _check_maxpa(self, params: TdParams) -> int:
        native = self._processor.platform.physical_address_bits
        if not params.config_flags & CONFIG_MAXPA_VIRT:
            return native
        wanted = params.cpuid_config[0x8000_0008, None][0] & 0xFF
        gpaw = 52 if params.config_flags & CONFIG_GPAW_52 else 48
        if not identity.MIN_VIRT_MAXPA <= wanted <= min(native, gpaw):
            raise Status(StatusCode.OPERAND_INVALID, Operand.CPUID_CONFIG, rcx=0)
        return wanted

    def _check_topology(self, checked: Checked) -> None:
        keys = [(0x1F, level) for level in range(6)]
        levels = [checked.cpuid_config[key] for key in keys]
        if not any(any(level) for level in levels):
            for leaf, level in keys:
                checked.cpuid_config[leaf, level] = self._processor.cpuid(leaf, level)
            return
        check_topology(levels)

    def _check_arch_capabilities(self, params: TdParams) -> None:
        value = params.arch_capabilities_config
        if value & ~identity.ARCH_CAPABILITIES_CONFIG_MASK or (
            value and not params.msr_config_ctls & CONTROL_ARCH_CAPABILITIES
        ):
            raise Status(StatusCode.OPERAND_INVALID, Operand.IA32_ARCH_CAPABILITIES_CONFIG)


MSR_TSC_ADJUST = 0x3B


def check_tsc_adjust(read: Callable[[int], int], at_init: int) -> None:
    """IA32_TSC_ADJUST is what it was at SYS.INIT; raises INCONSISTENT_MSR|0x3B."""
    if native_msr(read, MSR_TSC_ADJUST) != at_init:
        raise Status(StatusCode.INCONSISTENT_MSR, MSR_TSC_ADJUST)


def native_msr(read: Callable[[int], int], index: int) -> int:
    """A native MSR, 0 where the processor has none."""
    try:
        return read(index)
    except KeyError:
        return 0


def _zero(reserved: bytes) -> None:
    if any(reserved):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)


def _cpuid_fault(key: Key) -> Status:
    leaf, subleaf = key
    sub = NO_SUBLEAF if subleaf is None else subleaf
    return Status(StatusCode.OPERAND_INVALID, Operand.CPUID_CONFIG, rcx=leaf | sub << 32)
