# SPDX-License-Identifier: GPL-2.0-or-later
"""What the BIOS set up: memory, logical processors, and the split of physical-address bits and KeyIDs.

A physical address has ``physical_address_bits`` bits, of which the uppermost ``keyid_bits`` select an encryption key
(Intel MKTME). KeyIDs from ``first_private_hkid`` on are private: only SEAM mode may use them (TDX module base
specification, "memory encryption").
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Collection

MAXIMUM_MEMORY_SIZE = 1 << 44
"""Bytes; above 32 TiB (`swtdx.cpu.memory.WINDOW_BASE`) are windows on user memory."""
MODULE_VERSIONS = ("1.5.06", "1.0")
"""The TDX modules that are reproduced."""
PUBLISHED_MODULE_VERSIONS = (
    "1.5.01", "1.5.05", "1.5.08", "1.5.09", "1.5.13", "1.5.16", "1.5.20", "1.5.24", "1.5.28", "1.5.34",
)  # fmt: skip
"""Modules of which a number and at most TDX_FEATURES0 are published: they act as 1.5.06 does, with MAXGPA_VIRT."""
HOST_FEATURES = ("avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "sha")
"""What the host's processor may add to what TCG executes, in the order of enum swtdx_feature in native/engine."""
ENGINE_FEATURES = ("bmi1", "bmi2", "xsavec", "xsaves")
"""What TCG executes on any host, besides x86-64-v2."""
WESTMERE = 0x000206C2
"""Family 6, model 0x2c, stepping 2: a server model that has nothing which a host may lack, AVX and BMI among it."""
SAPPHIRE_RAPIDS = 0x000806F8
"""Family 6, model 0x8f, stepping 8: the first server processor with TDX."""


_NEEDED = {
    **dict.fromkeys(("avx2", "fma", "f16c", "vaes", "vpclmulqdq"), "avx"),
    "xsaves": "xsavec",
}
"""A feature that programs take for granted where they see another one (SDM volume 1, chapter 14)."""
_YMM_END = 0x340


@functools.cache
def host_features() -> frozenset[str]:
    """Return what an emulated processor can be offered here: names of HOST_FEATURES and ENGINE_FEATURES."""
    from swtdx.cpu import _engine

    bits = _engine.host_features()
    return frozenset([*ENGINE_FEATURES, *(name for bit, name in enumerate(HOST_FEATURES) if bits >> bit & 1)])


FEATURE_LEVELS = {
    "x86-64-v2": frozenset[str](),
    "x86-64-v3": frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "xsavec", "xsaves"}),
}
"""The levels of the x86-64 psABI, with what the kernel uses to save their registers."""


def features_of(text: str) -> frozenset[str]:
    """Return the features that a list separated by commas names; a name may be a level. Raises ValueError."""
    names: set[str] = set()
    for name in text.split(","):
        names |= FEATURE_LEVELS.get(name.strip(), {name.strip()})
    check_features(names)
    return frozenset(names)


def check_features(features: Collection[str]) -> None:
    """Raise ValueError for features that do not exist, that the processor here lacks, or that need another one."""
    known = (*HOST_FEATURES, *ENGINE_FEATURES)
    for name in sorted(features):
        if name not in known:
            raise ValueError(f"there is no feature {name!r}: the features are {', '.join(known)}")
        if name not in host_features():
            raise ValueError(f"the processor here has no {name}")
        if _NEEDED.get(name, name) not in features:
            raise ValueError(f"a processor with {name} has {_NEEDED[name]}, too")


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


def _parallel_by_environment() -> bool:
    """Return what $SWTDX_TCG_THREAD asks for, in the words of QEMU's `-accel tcg,thread=`. Raises ValueError.

    Without it: whether this process may use more than one of the host's processors.
    """
    text = os.environ.get("SWTDX_TCG_THREAD")
    if not text:
        return len(os.sched_getaffinity(0)) > 1
    if text not in ("single", "multi"):
        raise ValueError(f"SWTDX_TCG_THREAD is {text!r}: it can be single or multi")
    return text == "multi"


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
    vmmcall: bool = False
    """VMMCALL exits as VMCALL does, as on AMD's processors: guests execute it where CPUID names AMD."""
    pkru_offset: int = PKRU_OFFSET
    """Offset of PKRU in the standard form of the XSAVE area."""
    pku: bool = True
    """Whether the processor has protection keys, and PKRU among the components of XSAVE."""
    cpu_features: frozenset[str] | None = None
    """What the processor has besides x86-64-v2: names of HOST_FEATURES and ENGINE_FEATURES; None: all that there is."""
    report_key: bytes | None = dataclasses.field(default=None, repr=False)
    """The processor's key for the MACs of TDREPORTs, 32 bytes. None: a new one with every machine."""
    parallel: bool = dataclasses.field(default_factory=_parallel_by_environment)
    """Virtual CPUs execute at the same time, each on an engine of its own, instead of in turns."""
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
        check_features(self.cpu_features or ())
        if self.pkru_offset < 0x240 or self.pkru_offset % 8 or ("avx" in self.features and self.pkru_offset < _YMM_END):
            raise ValueError(
                f"pkru_offset {self.pkru_offset:#x} is not an offset behind the legacy region, the header and AVX state"
            )
        if self.mktme_keyids + self.tdx_keyids >= 1 << self.keyid_bits:
            raise ValueError("more KeyIDs than keyid_bits can name")
        versions = (*MODULE_VERSIONS, *PUBLISHED_MODULE_VERSIONS)
        if self.module_version not in versions:
            raise ValueError(f"module_version must be one of {', '.join(versions)}")
        if self.report_key is not None and len(self.report_key) != REPORT_KEY_SIZE:
            raise ValueError(f"report_key has {REPORT_KEY_SIZE} bytes")

    @property
    def features(self) -> frozenset[str]:
        """What the processor has besides x86-64-v2."""
        return host_features() if self.cpu_features is None else self.cpu_features

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
