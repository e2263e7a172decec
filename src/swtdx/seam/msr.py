# SPDX-License-Identifier: GPL-2.0-or-later
"""MSRs as a TD sees them: ``tables/msr.json`` and the few accesses the module carries out itself.

The table has for each MSR whether a read or write is native, raises #GP(0) or #VE, or is carried out by the module; an
MSR that is not listed raises #VE. Conditions (PERFMON, XFAM_PT, ...) are decided once for a TD.

A native MSR that the processor context holds does not exit at all. One that no context holds (the processor has no
such feature state) exits, and the module carries the access out as the processor would: it keeps the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import NamedTuple

from swtdx.seam.hardware import Processor
from swtdx.seam.tables import load
from swtdx.seam.td import (
    ATTRIBUTE_PERFMON,
    ATTRIBUTE_PKS,
    CTLS_ENUM_TOPOLOGY,
    Td,
)
from swtdx.seam.td_params import native_msr
from swtdx.seam.vcpu import Vcpu
from swtdx.x86 import Efer, Msr, XFeature

LOW_RANGE = range(0x2000)
HIGH_RANGE = range(0xC000_0000, 0xC000_2000)
BITMAP_SIZE = 1024
"""Bytes of each of the four quarters: read low, read high, write low, write high."""

X2APIC_REGISTERS = range(Msr.X2APIC_TPR, Msr.X2APIC_SELF_IPI + 1)
X2APIC_VECTORS = range(0x810, 0x828)
"""ISR, TMR and IRR."""
X2APIC_NATIVE = frozenset(
    map(int, (Msr.X2APIC_TPR, Msr.X2APIC_PPR, Msr.X2APIC_EOI, *X2APIC_VECTORS, Msr.X2APIC_SELF_IPI))
)
"""x2APIC registers that the virtual APIC page serves without an exit."""
HELD_BY_CONTEXT = X2APIC_NATIVE | {
    Msr.TSC,
    Msr.SPEC_CTRL,
    *range(Msr.SYSENTER_CS, Msr.SYSENTER_EIP + 1),
    Msr.PAT,
    *range(Msr.EFER, Msr.FMASK + 1),
    *range(Msr.FS_BASE, Msr.TSC_AUX + 1),
}
"""MSRs the processor context keeps."""
WRITE_ONLY = frozenset((Msr.PRED_CMD, Msr.FLUSH_CMD))
READ_ONLY = frozenset(
    (
        Msr.ARCH_CAPABILITIES,
        Msr.XAPIC_DISABLE_STATUS,
        Msr.PERF_CAPABILITIES,
        Msr.MISC_PACKAGE_CTLS,
        Msr.DEBUG_INTERFACE,
    )
)
PERFMON_AVAILABLE, PEBS_UNAVAILABLE = 1 << 7, 1 << 12
"""MISC_ENABLE."""
PEBS_OUTPUT_PT = 1 << 16
"""PERF_CAPABILITIES."""
DEBUGCTL_RESERVED = ~0xFFC3
DEBUGCTL_BTS, DEBUGCTL_TR = 1 << 7, 1 << 6
DEBUGCTL_FREEZE_SMM, DEBUGCTL_RTM, DEBUGCTL_UNCORE_PMI = 1 << 14, 1 << 15, 1 << 13
VMX_CAPABILITIES = range(0x480, 0x493)
SUPERVISOR_STATES = XFeature.PT | XFeature.CET | XFeature.UINTR | XFeature.LBR
"""What IA32_XSS of a TD can enable."""
MASK64 = (1 << 64) - 1


class Access(Enum):
    """What an access to an MSR comes to."""

    NATIVE = "native"
    EMULATED = "module emulates"
    GP = "#GP(0)"
    VE = "#VE"


class Refused(Exception):
    """The access raises an exception in the guest: `Access.GP` or `Access.VE`."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.access = access


class Range(NamedTuple):
    """A table row: inclusive range and the texts of its read and write columns."""

    first: int
    last: int
    read: str
    write: str


@cache
def ranges() -> tuple[Range, ...]:
    """Return the table, ascending."""
    return tuple(Range(int(a, 16), int(b, 16), read, write) for _, a, b, read, write in load("msr")["rows"])


class MsrPolicy:
    """The MSR rules of one TD, with the bitmap that lets native accesses pass."""

    def __init__(self, td: Td, processor: Processor) -> None:
        self._td = td
        self._processor = processor
        self._conditions = self._decide(td)
        self.reads: dict[int, Access] = {}
        self.writes: dict[int, Access] = {}
        for row in ranges():
            read, write = self._resolve(row.read, row.first), self._resolve(row.write, row.first)
            for index in range(row.first, row.last + 1):
                self.reads[index], self.writes[index] = read, write
        self.bitmap: bytes = b"".join(
            bytes(_bitmap_quarter(covered, accesses))
            for accesses in (self.reads, self.writes)
            for covered in (LOW_RANGE, HIGH_RANGE)
        )

    @staticmethod
    def _decide(td: Td) -> dict[str, bool]:
        features = td.cpuid.values
        xfam = td.xfam
        perfmon = bool(td.attributes & ATTRIBUTE_PERFMON)
        return {
            "PERFMON": perfmon,
            "XFAM_CET": bool(xfam & XFeature.CET),
            "XFAM_PT": bool(xfam & XFeature.PT),
            "XFAM_ULI": bool(xfam & XFeature.UINTR),
            "XFAM_LBR": bool(xfam & XFeature.LBR),
            "UMWAIT": bool(features[7, 0][2] >> 5 & 1),
            "XFD": bool(features[0xD, 1][0] >> 4 & 1),
            "PKS": bool(td.attributes & ATTRIBUTE_PKS),
            "TSX": bool(features[7, 0][1] & (1 << 4 | 1 << 11)),
            "OTHER": perfmon and bool(xfam & XFeature.PT),
        }

    def _resolve(self, rule: str, index: int) -> Access:
        if rule.startswith("native if "):
            condition, _, otherwise = rule.removeprefix("native if ").partition(" else ")
            return Access.NATIVE if self._conditions[condition] else Access(otherwise)
        if rule == "#GP(0) or #VE (feature dependent)":
            return self._by_feature(index)
        return Access(rule)

    def _by_feature(self, index: int) -> Access:
        """Return #VE if the feature with the MSR is virtualized, #GP(0) if CPUID does not have it."""
        features = self._td.cpuid.values
        ecx1, ecx7, edx7 = features[1, None][2], features[7, 0][2], features[7, 0][3]
        if index == Msr.TSC_DEADLINE:
            present = ecx1 >> 24 & 1
        elif index in (0x1F8, 0x1F9, 0x1FA):
            present = ecx1 >> 18 & 1  # DCA
        elif 0x981 <= index <= 0x984:
            present = ecx7 >> 13 & 1  # TME
        else:
            present = edx7 >> 18 & 1  # PCONFIG
        return Access.VE if present else Access.GP

    # --- accesses that exit -------------------------------------------------------------------------------------------

    def read(self, vcpu: Vcpu, index: int) -> int:
        """Execute RDMSR for the guest; raises Refused."""
        access = self.reads.get(index, Access.VE)
        if access is Access.NATIVE:
            return self._read_native(vcpu, index)
        if access is Access.EMULATED:
            return self._read_emulated(vcpu, index)
        raise Refused(access)

    def write(self, vcpu: Vcpu, index: int, value: int) -> None:
        """Execute WRMSR for the guest; raises Refused."""
        access = self.writes.get(index, Access.VE)
        if access is Access.NATIVE:
            self._write_native(vcpu, index, value)
        elif access is Access.EMULATED:
            self._write_emulated(vcpu, index, value)
        else:
            raise Refused(access)

    def _read_native(self, vcpu: Vcpu, index: int) -> int:
        if index == Msr.TSC:
            td = self._td
            return ((self._processor.rdtsc() * td.tsc_multiplier >> 48) + td.tsc_offset) & MASK64
        if index in WRITE_ONLY or index in X2APIC_REGISTERS:
            raise Refused(Access.GP)
        if index in HELD_BY_CONTEXT:
            return vcpu.context.rdmsr(index)
        return vcpu.msrs.get(index, native_msr(self._processor.rdmsr, index))

    def _write_native(self, vcpu: Vcpu, index: int, value: int) -> None:
        if index in READ_ONLY or index in X2APIC_REGISTERS:
            raise Refused(Access.GP)
        if index in WRITE_ONLY:
            if value & ~1:
                raise Refused(Access.GP)
            return  # there is no predictor and no cache to flush
        if index in HELD_BY_CONTEXT:
            vcpu.context.wrmsr(index, value)
        else:
            vcpu.msrs[index] = value

    def _read_emulated(self, vcpu: Vcpu, index: int) -> int:
        td = self._td
        if index == Msr.ARCH_CAPABILITIES:
            return td.arch_capabilities
        if index == Msr.XAPIC_DISABLE_STATUS:
            return 1  # legacy xAPIC is disabled
        if index == Msr.MISC_ENABLE:
            native = native_msr(self._processor.rdmsr, index)
            if td.attributes & ATTRIBUTE_PERFMON:
                return native
            return native & ~PERFMON_AVAILABLE | PEBS_UNAVAILABLE
        if index == Msr.X2APIC_APICID:
            if not td.td_ctls & CTLS_ENUM_TOPOLOGY:
                raise Refused(Access.VE)
            return vcpu.x2apic_id
        if index == Msr.PERF_CAPABILITIES:
            if not td.attributes & ATTRIBUTE_PERFMON:
                return 0
            native = native_msr(self._processor.rdmsr, index)
            return native if td.xfam & XFeature.PT else native & ~PEBS_OUTPUT_PT
        if index in VMX_CAPABILITIES:
            # No L2 VM can be made, so a guest has no use for them: as on a processor without VMX.
            raise Refused(Access.GP)
        return vcpu.msrs[index]

    def _write_emulated(self, vcpu: Vcpu, index: int, value: int) -> None:
        if index == Msr.EFER:
            _write_efer(vcpu, value)
        elif index == Msr.XSS:
            if value & ~(self._td.xfam & SUPERVISOR_STATES):
                raise Refused(Access.GP)
            vcpu.msrs[Msr.XSS] = value
        else:
            self._write_debugctl(vcpu, value)

    def _write_debugctl(self, vcpu: Vcpu, value: int) -> None:
        perfmon, tsx = self._conditions["PERFMON"], self._conditions["TSX"]
        if value & DEBUGCTL_RESERVED:
            raise Refused(Access.GP)
        if value & DEBUGCTL_TR and not value & DEBUGCTL_BTS:
            raise Refused(Access.VE)
        if (value & DEBUGCTL_FREEZE_SMM and not perfmon) or (value & DEBUGCTL_RTM and not tsx):
            raise Refused(Access.GP)
        vcpu.msrs[Msr.DEBUGCTL] = value & ~DEBUGCTL_UNCORE_PMI


def _write_efer(vcpu: Vcpu, value: int) -> None:
    """Write EFER: only SCE may change; LMA is read-only and ignored."""
    old = vcpu.context.efer
    value = value & ~Efer.LMA | old & Efer.LMA
    if (value ^ old) & ~Efer.SCE:
        raise Refused(Access.VE)
    vcpu.context.efer = value


def _bitmap_quarter(covered: range, accesses: dict[int, Access]) -> bytearray:
    """Return 1024 bytes of VMX MSR bitmap: 1 exits; clear for native MSRs that the context holds."""
    quarter = bytearray(b"\xff" * BITMAP_SIZE)
    for index in _passing(covered, accesses):
        bit = index - covered.start
        quarter[bit >> 3] &= ~(1 << (bit & 7))
    return quarter


def _passing(covered: range, accesses: dict[int, Access]) -> Iterator[int]:
    for index in HELD_BY_CONTEXT:
        if index in covered and accesses.get(index) is Access.NATIVE:
            yield index
