# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID as a TD sees it, computed from the processor's and the TD's parameters by ``tables/cpuid.json``.

A leaf's value is ``(native & ~fixed0_or_dynamic) | fixed1``; bits of ``config_direct`` are then what TD_PARAMS says,
bits of ``allow_direct`` are cleared unless TD_PARAMS sets them, and bits of extended features that XFAM or ATTRIBUTES
withhold are cleared. A few bits follow the running virtual CPU (OSXSAVE, APIC id, save-area sizes) and are filled in
when the guest asks.

A leaf above the highest basic or extended one is answered as leaf 0x23 (0x21 in module 1.0) with the same sub-leaf;
0x4000_0000-0x4FFF_FFFF and everything the table does not know raises #VE, so that the guest asks the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from swtdx.seam.hardware import Processor, Segment
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load, registers
from swtdx.seam.td import (
    ATTRIBUTE_LASS,
    ATTRIBUTE_MIGRATABLE,
    ATTRIBUTE_PERFMON,
    ATTRIBUTE_PKS,
    CONFIG_MAXGPA_VIRT,
    CTLS_ENUM_TOPOLOGY,
    CTLS_VIRT_CPUID2,
    Td,
)
from swtdx.seam.vcpu import AR_LONG, Vcpu
from swtdx.seam.version import ModuleVersion
from swtdx.x86 import Cr4, Msr

Registers = tuple[int, int, int, int]
Key = tuple[int, int | None]
"""(leaf, sub-leaf), sub-leaf None where the leaf has none."""

HIGHEST_EXTENDED = 0x8000_0008
HYPERVISOR_LEAVES = range(0x4000_0000, 0x5000_0000)
NO_SUBLEAF = 0xFFFF_FFFF
TOPOLOGY, SMT_LEVEL, CORE_LEVEL, LEVEL_TYPES = 0x1F, 1, 2, 6
LAST_LEVEL_CACHE = 4, 3
HIGHEST_NEEDED = {0: TOPOLOGY, 0x8000_0000: HIGHEST_EXTENDED}
"""The leaves that return the highest leaf number, and its required minimum."""
TSC_FREQUENCY, ADDRESS_SIZES = 0x15, 0x8000_0008
CRYSTAL_HZ = 25_000_000
MONITOR = 1 << 3
"""Leaf 1, ECX."""
TSX = 1 << 4 | 1 << 11
"""Leaf 7, EBX: HLE and RTM."""
TSX_CPUID_CLEAR = 1 << 1
"""IA32_TSX_CTRL."""
PKS, KEY_LOCKER = 1 << 31, 1 << 23
"""Leaf 7, ECX."""
PERFMON_EXTENSIONS = 1 << 8
"""Leaf 7, sub-leaf 1, EAX."""
LA57 = 1 << 16
"""Leaf 7, ECX."""
TOPOLOGY_LEAVES = (0xB, 0x1F)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    key: Key
    config_index: int | None
    lookup_index: int
    ve_always: bool
    fixed1: Registers
    fixed0_or_dynamic: Registers
    config_direct: Registers
    allow_direct: Registers
    verify_mask: Registers
    verify_value: Registers


@cache
def rows(version: str = "") -> Mapping[Key, Row]:
    """Return the table by (leaf, sub-leaf); ``version`` is the suffix of the version's table names."""
    result = {}
    for leaf, subleaf, config, lookup, ve_always, *masks in load(f"cpuid{version}")["leaves"]:
        key = (int(leaf, 16), subleaf)
        result[key] = Row(key, config, lookup, ve_always, *(registers(text) for text in masks[:6]))
    return result


@cache
def config_order(version: str = "") -> tuple[Key, ...]:
    """Return the configurable leaves in the order of TD_PARAMS.CPUID_CONFIG."""
    return tuple((int(leaf, 16), subleaf) for leaf, subleaf in load(f"cpuid{version}")["config_order"])


@cache
def _xfam_clear(version: str) -> Mapping[Key, tuple[tuple[int, Registers], ...]]:
    result = {}
    for name, bits in load(f"cpuid{version}")["xfam_clear"].items():
        leaf, _, subleaf = name.partition("_")
        key = (int(leaf, 16), None if int(subleaf, 16) == NO_SUBLEAF else int(subleaf, 16))
        result[key] = tuple((int(bit), registers(masks)) for bit, masks in bits.items())
    return result


def config_mask(processor: Processor, key: Key, version: str = "") -> Registers:
    """Return the bits of a configurable leaf that TD_PARAMS may set: config_direct | (allow_direct & native)."""
    row, native = rows(version)[key], processor.cpuid(key[0], key[1] or 0)
    eax, ebx, ecx, edx = (
        direct | (allow & value)
        for direct, allow, value in zip(row.config_direct, row.allow_direct, native, strict=True)
    )
    return eax, ebx, ecx, edx


def check_native(processor: Processor, waived: Mapping[Key, Registers], module: ModuleVersion) -> None:
    """Check that the processor can run TDs: each native leaf, in the order of the module's table.

    ``waived`` are bits that the processor need not have. Raises INCORRECT_CPUID_VALUE with leaf, mask and value,
    CPUID_LEAF_NOT_SUPPORTED with the leaf that is beyond the highest one (RAX where leaf 0x1F has no core level), and
    CPUID_LEAF_1F_FORMAT_UNRECOGNIZED where its levels do not rise, INVALID_WBINVD_SCOPE.
    """
    for leaf, needed in HIGHEST_NEEDED.items():
        if processor.cpuid(leaf)[0] < needed:
            raise Status(StatusCode.CPUID_LEAF_NOT_SUPPORTED, needed)
    for row in sorted(rows(module.tables).values(), key=lambda row: row.lookup_index):
        leaf, subleaf = row.key
        native = processor.cpuid(leaf, subleaf or 0)
        excused = waived.get(row.key, (0, 0, 0, 0))
        for value, mask, wanted, excuse in zip(native, row.verify_mask, row.verify_value, excused, strict=True):
            if (value ^ wanted) & mask & ~excuse:
                raise _incorrect(row)
        if leaf == TOPOLOGY:
            _check_level(processor, subleaf or 0)
        elif leaf == TSC_FREQUENCY and not native[1]:
            raise Status(StatusCode.CPUID_LEAF_NOT_SUPPORTED, TSC_FREQUENCY)
        elif leaf == ADDRESS_SIZES:
            _check_linear_bits(processor, native[0] >> 8 & 0xFF)


def _check_linear_bits(processor: Processor, bits: int) -> None:
    """Check that linear addresses are as wide as leaf 7 says."""
    wanted = 57 if processor.cpuid(7)[2] & LA57 else 48
    if bits != wanted:
        leaf = ADDRESS_SIZES | NO_SUBLEAF << 32
        raise Status(StatusCode.INCORRECT_CPUID_VALUE, rcx=leaf, rdx=0xFF00, r8=0, r9=wanted << 8, r10=0)


def _incorrect(row: Row) -> Status:
    leaf, subleaf = row.key
    mask, value = row.verify_mask, row.verify_value
    return Status(
        StatusCode.INCORRECT_CPUID_VALUE,
        rcx=leaf | (NO_SUBLEAF if subleaf is None else subleaf) << 32,
        rdx=mask[0] | mask[1] << 32,
        r8=mask[2] | mask[3] << 32,
        r9=value[0] | value[1] << 32,
        r10=value[2] | value[3] << 32,
    )


def _check_level(processor: Processor, subleaf: int) -> None:
    """Check a sub-leaf of the native leaf 0x1F: types rise from SMT until there is none.

    All logical processors of a package share the last-level cache, so that WBINVD writes back all of it.
    """
    levels = [processor.cpuid(TOPOLOGY, number) for number in range(subleaf + 1)]
    types = [level[2] >> 8 & 0xFF for level in levels]
    before, here = types[:-1], types[-1]
    if here and (here <= max(before, default=0) or here >= LEVEL_TYPES):
        raise Status(StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
    if not here and CORE_LEVEL not in before:
        raise Status(StatusCode.CPUID_LEAF_NOT_SUPPORTED, Operand.RAX)
    if not here and before[-1]:  # the first invalid level: the one before has the shift to the package number
        shift = levels[-2][0] & 0x1F
        sharing = processor.cpuid(*LAST_LEVEL_CACHE)[0] >> 14 & 0xFFF
        if shift and sharing >> shift - 1 != 1:  # without a shift there is but one
            raise Status(StatusCode.INVALID_WBINVD_SCOPE)


class VirtualCpuid:
    """The CPUID of one TD."""

    def __init__(self, td: Td, processor: Processor, config: Mapping[Key, Registers], maxpa: int) -> None:
        self._td = td
        self._processor = processor
        self._version = td.version
        self.values: dict[Key, Registers] = {}
        for key, row in rows(self._version.tables).items():
            if not row.ve_always:
                self.values[key] = self._value(row, config.get(key))
        self._complete(config, maxpa)
        self._static = {
            (leaf, subleaf): value for (leaf, subleaf), value in self.values.items() if leaf not in _DYNAMIC
        }

    def _value(self, row: Row, config: Registers | None) -> Registers:
        leaf, subleaf = row.key
        result = []
        for i, native in enumerate(self._processor.cpuid(leaf, subleaf or 0)):
            value = (native & ~row.fixed0_or_dynamic[i]) | row.fixed1[i]
            if config is not None:
                value = (value & ~row.config_direct[i]) | (config[i] & row.config_direct[i])
                value &= ~row.allow_direct[i] | config[i]
            result.append(value & 0xFFFF_FFFF)
        for bit, masks in _xfam_clear(self._version.tables).get(row.key, ()):
            if not self._td.xfam >> bit & 1:
                result = [value & ~mask for value, mask in zip(result, masks, strict=True)]
        eax, ebx, ecx, edx = result
        return eax, ebx, ecx, edx

    def _complete(self, config: Mapping[Key, Registers], maxpa: int) -> None:
        """Add the values that follow ATTRIBUTES, XFAM, the TSC frequency, other leaves and the native processor."""
        td, values = self._td, self.values
        if config.get((1, None), (0,) * 4)[0] == 0:  # family, model, stepping 0: native
            self._replace((1, None), eax=self._processor.cpuid(1)[0])
        pks, lass = bool(td.attributes & ATTRIBUTE_PKS), bool(td.attributes & ATTRIBUTE_LASS)
        self._replace((7, 0), ecx=values[7, 0][2] & ~(PKS | KEY_LOCKER) | pks << 31)
        self._replace((7, 1), eax=values[7, 1][0] & ~(1 << 6) | lass << 6)
        if not values[1, None][2] & MONITOR:
            self._clear(5)
        if not td.attributes & ATTRIBUTE_PERFMON:
            self._clear(0xA, 0x23)
        if not values[7, 1][0] & PERFMON_EXTENSIONS:
            self._clear(0x23)
        if td.attributes & ATTRIBUTE_MIGRATABLE:
            self._clear(0x1A)
        for leaf, states in ((0x14, 1 << 8), (0x1C, 1 << 15), (0x1D, 3 << 17)):
            if td.xfam & states != states:
                self._clear(leaf)
        for component in range(2, 19):
            if not td.xfam >> component & 1 and (0xD, component) in values:
                values[0xD, component] = (0, 0, 0, 0)
        self._replace((0xD, 0), ecx=self.save_area_size(td.xfam))
        if not any(values.get((0xD, n), (0, 0, 0, 0))[2] & 4 for n in range(2, 19)):  # XFD of a component
            self._replace((0xD, 1), eax=values[0xD, 1][0] & ~(1 << 4))
        values[0x15, None] = (1, td.tsc_frequency, CRYSTAL_HZ, 0)
        linear = 57 if values[7, 0][2] & LA57 else 48
        eax, ebx, ecx, edx = values[0x8000_0008, None]
        physical, guest = maxpa, 0
        if td.config_flags & CONFIG_MAXGPA_VIRT:
            physical, guest = self._processor.platform.physical_address_bits, maxpa
        values[0x8000_0008, None] = (eax & ~0xFFFFFF | guest << 16 | linear << 8 | physical, ebx, ecx, edx)
        for level, value in enumerate(levels_0b([values.get((0x1F, number), (0,) * 4) for number in range(6)])):
            if (0xB, level) in values:
                values[0xB, level] = value

    @property
    def has_tsx(self) -> bool:
        """Whether the TD has HLE and RTM."""
        return bool(self.values[7, 0][1] & TSX)

    def _replace(self, key: Key, *, eax: int | None = None, ecx: int | None = None) -> None:
        old = self.values[key]
        self.values[key] = (old[0] if eax is None else eax, old[1], old[2] if ecx is None else ecx, old[3])

    def _clear(self, *leaves: int) -> None:
        for key in self.values:
            if key[0] in leaves:
                self.values[key] = (0, 0, 0, 0)

    def save_area_size(self, states: int, *, compacted: bool = False) -> int:
        """Return the bytes of an XSAVE area for ``states`` (an XCR0 or XFAM value); legacy area and header are 576."""
        size = 576
        for component in range(2, 19):
            if not states >> component & 1:
                continue
            length, offset, flags, _ = self._processor.cpuid(0xD, component)
            if compacted:
                size = (size + 63 & ~63 if flags & 2 else size) + length
            elif not flags & 1:
                size = max(size, offset + length)
        return size

    # --- what the guest asks ------------------------------------------------------------------------------------------

    def query(self, vcpu: Vcpu, leaf: int, subleaf: int) -> Registers | None:
        """Return CPUID of a running virtual CPU; None where it raises #VE."""
        if vcpu.cpuid_supervisor_ve or vcpu.cpuid_user_ve:
            if vcpu.cpuid_user_ve if vcpu.cpl else vcpu.cpuid_supervisor_ve:
                return None
        # Most answers depend on the TD only, and are looked up without the checks of `_slow`.
        static = self._static
        value = static.get((leaf, subleaf)) or static.get((leaf, None))
        if value is None:
            value = self._slow(vcpu, leaf, subleaf)
        return value

    def _slow(self, vcpu: Vcpu, leaf: int, subleaf: int) -> Registers | None:
        highest_basic = self._version.highest_basic_cpuid
        if highest_basic < leaf < 0x8000_0000 or leaf > HIGHEST_EXTENDED:
            if leaf in HYPERVISOR_LEAVES:
                return None
            leaf = highest_basic
        key: Key = (leaf, subleaf)
        value = self.values.get(key)
        if value is None:
            key = (leaf, None)
            value = self.values.get(key)
        if value is None:
            return None
        if any(vcpu.cpuid_control):
            control = vcpu.cpuid_control[rows(self._version.tables)[key].lookup_index]
            if control & (2 if vcpu.cpl else 1):
                return None
        return self._dynamic(vcpu, leaf, subleaf, value)

    def control_changed(self, vcpus: list[Vcpu]) -> None:
        """Stop using static answers: a guest has set CPUID_CONTROL, which each answer must check."""
        if any(any(vcpu.cpuid_control) for vcpu in vcpus):
            self._static = {}

    def _dynamic(self, vcpu: Vcpu, leaf: int, subleaf: int, value: Registers) -> Registers | None:
        """Fill in the bits that follow the virtual CPU's state."""
        td, context = self._td, vcpu.context
        eax, ebx, ecx, edx = value
        topology = td.td_ctls & CTLS_ENUM_TOPOLOGY
        if leaf == 1:
            apic_id = vcpu.x2apic_id if topology else vcpu.index
            ebx = ebx & 0xFF_FFFF | (apic_id & 0xFF) << 24
            if context.cr4 & Cr4.OSXSAVE:
                ecx |= 1 << 27
        elif leaf == 2 and not td.td_ctls & CTLS_VIRT_CPUID2:
            return None
        elif leaf == 7 and subleaf == 0:
            if context.cr4 & Cr4.PKE:
                ecx |= 1 << 4
            if ebx & TSX and vcpu.msrs.get(Msr.TSX_CTRL, 0) & TSX_CPUID_CLEAR:
                ebx &= ~TSX
        elif leaf == 0xD and subleaf == 0:
            ebx = self.save_area_size(context.xcr0)
        elif leaf == 0xD and subleaf == 1:
            ebx = self.save_area_size(context.xcr0 | vcpu.msrs[Msr.XSS], compacted=True)
        elif leaf in TOPOLOGY_LEAVES:
            if not topology:
                return None
            edx = vcpu.x2apic_id
        elif leaf == 0x8000_0001 and context.segment(Segment.CS)[3] & AR_LONG:
            edx |= 1 << 11  # SYSCALL, in 64-bit mode only
        return eax, ebx, ecx, edx

    # --- metadata -----------------------------------------------------------------------------------------------------

    def indexed(self, element: int) -> int:
        """Return one register of a leaf by its place in the table (row * 4 + register), as the metadata of 1.0 does."""
        place, register = divmod(element, 4)
        by_place = {row.lookup_index: key for key, row in rows(self._version.tables).items()}
        key = by_place.get(place)
        return self.values[key][register] if key in self.values else 0

    def metadata_codes(self) -> list[int]:
        """Return the field codes of CPUID_VALUES, ascending."""
        return sorted(_metadata_code(key) | half for key in self.values for half in (0, 1))

    def metadata(self, code: int) -> int | None:
        """Return a CPUID_VALUES field: EAX and EBX, or ECX and EDX with bit 0 of the code set; None if unknown."""
        for key, value in self.values.items():
            if _metadata_code(key) == code & ~1:
                return value[2] | value[3] << 32 if code & 1 else value[0] | value[1] << 32
        return None


_DYNAMIC = frozenset({1, 2, 7, 0xD, *TOPOLOGY_LEAVES, 0x8000_0001})


def _metadata_code(key: Key) -> int:
    """Return the field code of a leaf: leaf bit 31 at 16, leaf 15:9, sub-leaf absent 8, sub-leaf 7:1."""
    leaf, subleaf = key
    low = 0x1FE if subleaf is None else subleaf << 1
    return leaf >> 31 << 16 | (leaf & 0x7F) << 9 | low


def check_topology(levels: list[Registers]) -> None:
    """Check leaf 0x1F of a TD, sub-leaf by sub-leaf.

    Raises CPUID_LEAF_1F_FORMAT_UNRECOGNIZED: a level's number is the sub-leaf, its type is above the one before, SMT
    comes only first, and there is no end before the cores.
    """
    before, cores = 0, False
    for number, (_, _, ecx, _) in enumerate(levels):
        kind = ecx >> 8 & 0xFF
        if kind:
            wrong = kind <= before or kind >= LEVEL_TYPES or ecx & 0xFF != number or (kind == SMT_LEVEL and number)
        else:
            wrong = not cores
        if wrong:
            raise Status(StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
        cores = cores or kind == CORE_LEVEL
        before = kind


def levels_0b(levels: list[Registers]) -> list[Registers]:
    """Return leaf 0xB, which knows threads and cores only, of leaf 0x1F: cores are all that is above threads."""
    kinds = [level[2] >> 8 & 0xFF for level in levels]
    result = [levels[0]] if kinds[0] == SMT_LEVEL else []
    last = next((level for level, kind in zip(reversed(levels), reversed(kinds), strict=True) if kind), (0,) * 4)
    result.append((last[0], last[1], len(result) | CORE_LEVEL << 8, last[3]))
    return result + [(0, 0, 0, 0)] * (3 - len(result))
