# SPDX-License-Identifier: GPL-2.0-or-later
"""What the BIOS set up: memory, logical processors, and the split of physical-address bits and KeyIDs.

A physical address has ``physical_address_bits`` bits, of which the uppermost ``keyid_bits`` select an encryption key
(Intel MKTME). KeyIDs from ``first_private_hkid`` on are private: only SEAM mode may use them (TDX module base
specification, "memory encryption").
"""

from __future__ import annotations

import dataclasses
import functools
import time

MAXIMUM_MEMORY_SIZE = 1 << 44
"""Bytes; above 32 TiB (`swtdx.cpu.memory.WINDOW_BASE`) are windows on user memory."""
MODULE_VERSIONS = ("1.5.06", "1.0")
"""The TDX modules that are reproduced."""
PUBLISHED_MODULE_VERSIONS = (
    "1.5.01", "1.5.05", "1.5.08", "1.5.09", "1.5.13", "1.5.16", "1.5.20", "1.5.24", "1.5.28", "1.5.34",
)  # fmt: skip
"""Modules of which a number and at most TDX_FEATURES0 are published: they act as 1.5.06 does."""
WESTMERE = 0x000206C2
"""Family 6, model 0x2c, stepping 2: the newest server model without AVX and BMI, which TCG does not execute."""
SAPPHIRE_RAPIDS = 0x000806F8
"""Family 6, model 0x8f, stepping 8: the first server processor with TDX."""


REPORT_KEY_SIZE = 32
PKRU_OFFSET = 0xA80
TSC_UNIT_HZ = 25_000_000
"""The unit in which TDX expresses a TSC frequency. A processor with TDX counts at a multiple of it."""
TSC_RATIO_BITS = 48
_MEASURING_ERROR = 100e-6


@functools.cache
def _measure_tsc() -> int:
    """Return the host's TSC frequency in Hz."""
    from swtdx.cpu import _engine

    def moment() -> tuple[int, int]:
        """Return (ns, TSC) of one moment: the closest pair of a few tries, in case the thread is preempted."""
        tries = []
        for _ in range(5):
            before, ticks, after = time.perf_counter_ns(), _engine.host_tsc(), time.perf_counter_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]

    started, ticks = moment()
    time.sleep(0.02)
    ended, ticks_then = moment()
    return (ticks_then - ticks) * 1_000_000_000 // (ended - started)


@functools.cache
def scaled_tsc(host_hz: int) -> tuple[int, int]:
    """Return (frequency in Hz, ratio to the host's counter in units of 2^-48) of the emulated counter.

    The frequency is the multiple of 25 MHz that is nearest to the host's. A host that counts at one, as far as that can
    be measured, is not scaled.

    >>> scaled_tsc(2_500_010_000)
    (2500000000, 281474976710656)
    >>> frequency, ratio = scaled_tsc(2_445_424_000)
    >>> frequency, 2_445_424_000 * ratio + (1 << 47) >> 48
    (2450000000, 2450000000)
    """
    frequency = max(1, round(host_hz / TSC_UNIT_HZ)) * TSC_UNIT_HZ
    if abs(host_hz - frequency) < host_hz * _MEASURING_ERROR:
        return frequency, 1 << TSC_RATIO_BITS
    return frequency, (frequency << TSC_RATIO_BITS) // host_hz


@dataclasses.dataclass(frozen=True)
class Platform:
    """The machine below the kernel. All sizes in bytes.

    ``memory_size`` bytes of RAM start at physical address 0 and are backed by host memory only as they are touched.
    """

    memory_size: int = 8 << 30
    logical_processors: int = 4
    packages: int = 1
    physical_address_bits: int = 52
    keyid_bits: int = 6
    mktme_keyids: int = 31
    tdx_keyids: int = 32
    module_version: str = MODULE_VERSIONS[0]
    signature: int = WESTMERE
    """What CPUID leaf 1 says in EAX: stepping, model, family."""
    pkru_offset: int = PKRU_OFFSET
    """Offset of PKRU in the standard form of the XSAVE area."""
    report_key: bytes | None = dataclasses.field(default=None, repr=False)
    """The processor's key for the MACs of TDREPORTs, 32 bytes. None: a new one with every machine."""
    module_updated: bool = False
    """The TDX module was updated after its TDs were launched: TEE_TCB_SVN2 in their reports is higher."""

    def __post_init__(self) -> None:
        if self.memory_size <= 0 or self.memory_size % (1 << 30):
            raise ValueError("memory_size must be a positive multiple of 1 GiB (a TDMR's granularity)")
        if self.memory_size > MAXIMUM_MEMORY_SIZE:
            raise ValueError(f"memory_size is limited to {MAXIMUM_MEMORY_SIZE >> 40} TiB")
        if self.logical_processors < 1:
            raise ValueError("a platform has at least one logical processor")
        if self.signature & ~0x0FFF3FFF:
            raise ValueError(f"signature {self.signature:#x} has reserved bits of CPUID 1, EAX")
        if self.pkru_offset < 0x240 or self.pkru_offset % 8:
            raise ValueError(
                f"pkru_offset {self.pkru_offset:#x} is not an offset behind the legacy region and the header"
            )
        if self.mktme_keyids + self.tdx_keyids >= 1 << self.keyid_bits:
            raise ValueError("more KeyIDs than keyid_bits can name")
        versions = (*MODULE_VERSIONS, *PUBLISHED_MODULE_VERSIONS)
        if self.module_version not in versions:
            raise ValueError(f"module_version must be one of {', '.join(versions)}")
        if self.report_key is not None and len(self.report_key) != REPORT_KEY_SIZE:
            raise ValueError(f"report_key has {REPORT_KEY_SIZE} bytes")

    @property
    def cmrs(self) -> tuple[tuple[int, int], ...]:
        """Convertible memory ranges, (base, size): all of RAM."""
        return ((0, self.memory_size),)

    @property
    def first_private_hkid(self) -> int:
        """The lowest KeyID that belongs to TDX."""
        return self.mktme_keyids + 1

    @property
    def keyid_shift(self) -> int:
        """The position of the KeyID in a physical address."""
        return self.physical_address_bits - self.keyid_bits

    @property
    def tsc_hz(self) -> int:
        """The frequency of the time-stamp counter, a multiple of 25 MHz."""
        return scaled_tsc(_measure_tsc())[0]

    @property
    def tsc_ratio(self) -> int:
        """Ticks of the time-stamp counter for each of the host's, in units of 2^-48."""
        return scaled_tsc(_measure_tsc())[1]
