# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID of the emulated processor: what the host (kernel and TDX module) sees natively.

The feature bits are those that the execution engine really implements, so that nothing is offered that would be #UD:
x86-64-v2, and :attr:`Platform.features`, some of which the host's processor executes. The signature is
:attr:`Platform.signature`, by default that of Westmere: programs that go by the processor's model use what that model
has, and it has nothing that is not offered. The time-stamp counter is the host's.
Layouts: Intel SDM volume 2, CPUID.
"""

from __future__ import annotations

from swtdx.cpu.platform import Platform
from swtdx.x86 import XFeature

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

_NAME = b"Intel(R) Xeon(R) Processor (emulated by swtdx)".ljust(48, b"\0")
_LEAF_1_EDX = 0x0FCBFBFF
"""Everything up to SSE2 and self-snoop but the serial number, debug store, thermal monitor and PBE."""
_LEAF_1_ECX = sum(1 << bit for bit in (0, 1, 9, 13, 19, 20, 21, 22, 23, 24, 25, 26, 30))
"""SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES XSAVE RDRAND."""
_LEAF_7_EBX = 1 << 0 | 1 << 7 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24
"""FSGSBASE SMEP ERMS RDSEED ADX SMAP CLFLUSHOPT CLWB."""
_LEAF_7_ECX = 1 << 16
"""LA57."""
_PKU = 1 << 3
_LEAF_7_EDX = 1 << 26 | 1 << 29 | 1 << 31
"""SPEC_CTRL, ARCH_CAPABILITIES, SSBD."""
_LEAF_7_2_EDX = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 4
"""What SPEC_CTRL has besides: PSFD IPRED_CTRL RRSBA_CTRL BHI_CTRL."""
_FEATURE_BITS = {
    (1, 0): {"fma": (2, 12), "avx": (2, 28), "f16c": (2, 29)},
    (7, 0): {"bmi1": (1, 3), "avx2": (1, 5), "bmi2": (1, 8), "sha": (1, 29), "vaes": (2, 9), "vpclmulqdq": (2, 10)},
    (0xD, 1): {"xsavec": (0, 1), "xsaves": (0, 3)},
}
"""By leaf and sub-leaf: register and bit of what a platform may have besides."""
YMM_OFFSET, YMM_SIZE, PKRU_SIZE = 576, 256, 8
_CACHE = (
    (0x04000121, 0x02C0003F, 0x3F, 0),  # 48 KiB L1D, 12 ways
    (0x04000122, 0x01C0003F, 0x3F, 0),  # 32 KiB L1I
    (0x04000143, 0x03C0003F, 0x7FF, 0),  # 2 MiB L2, 16 ways
    (0x04004163, 0x0380003F, 0x6FFF, 4),  # L3
)


def _text(data: bytes) -> Registers:
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, 16, 4)]
    return words[0], words[1], words[2], words[3]


def native(platform: Platform, leaf: int, subleaf: int = 0, lp: int = 0) -> Registers:
    """Return what CPUID gives on logical processor ``lp`` outside any guest (kernel mode, all of XCR0 enabled)."""
    registers = _registers(platform, leaf, subleaf, lp)
    places = _FEATURE_BITS.get((leaf, 0 if leaf == 1 else subleaf))
    if places is None:
        return registers
    bits = [0, 0, 0, 0]
    for name, (register, bit) in places.items():
        if name in platform.features:
            bits[register] |= 1 << bit
    eax, ebx, ecx, edx = registers
    return eax | bits[0], ebx | bits[1], ecx | bits[2], edx | bits[3]


def supported_xcr0(platform: Platform) -> int:
    """Return the state components that XSAVE and XCR0 know."""
    components = XFeature.X87 | XFeature.SSE | (XFeature.AVX if "avx" in platform.features else 0)
    return components | (XFeature.PKRU if platform.pku else 0)


def _registers(platform: Platform, leaf: int, subleaf: int, lp: int) -> Registers:
    threads = max(platform.logical_processors, 1)
    bits = (threads - 1).bit_length()
    tsc = platform.tsc_hz
    match leaf:
        case 0:
            return 0x23, 0x756E6547, 0x6C65746E, 0x49656E69
        case 1:
            return (
                platform.signature,
                lp << 24 | min(threads, 255) << 16 | 8 << 8,
                _LEAF_1_ECX | 1 << 27,
                _LEAF_1_EDX | 1 << 28,
            )
        case 2:
            return 0x00FEFF01, 0, 0, 0
        case 4 if subleaf < len(_CACHE):
            eax, ebx, ecx, edx = _CACHE[subleaf]
            return eax | (min(threads, 4096) - 1 << 14 if subleaf == 3 else 0), ebx, ecx, edx
        case 5:
            return 0, 0, 0, 0
        case 6:
            return 4, 0, 0, 0  # ARAT: the APIC timer never stops
        case 7 if subleaf == 0:
            return 2, _LEAF_7_EBX, _LEAF_7_ECX | (_PKU if platform.pku else 0), _LEAF_7_EDX
        case 7 if subleaf == 2:
            return 0, 0, 0, _LEAF_7_2_EDX
        case 0xB | 0x1F:
            levels = ((0, 1, 1 << 8, lp), (bits, threads, 2 << 8 | 1, lp))
            return levels[subleaf] if subleaf < 2 else (0, 0, subleaf, lp)
        case 0xD:
            return _xsave(platform, subleaf)
        case 0x15:
            return 1, tsc // 25_000_000, 25_000_000, 0
        case 0x16:
            return tsc // 1_000_000, tsc // 1_000_000, 100, 0
        case 0x80000000:
            return 0x80000008, 0, 0, 0
        case 0x80000001:
            return 0, 0, 1 << 0 | 1 << 5, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
        case 0x80000002 | 0x80000003 | 0x80000004:
            at = (leaf - 0x80000002) * 16
            return _text(_NAME[at : at + 16])
        case 0x80000006:
            return 0, 0, 2048 << 16 | 7 << 12 | 64, 0
        case 0x80000007:
            return 0, 0, 0, 1 << 8  # invariant TSC
        case 0x80000008:
            return platform.physical_address_bits | 57 << 8, 1 << 9, 0, 0  # WBNOINVD
        case _:
            return 0, 0, 0, 0


def _xsave(platform: Platform, subleaf: int) -> Registers:
    ymm_size = YMM_SIZE if "avx" in platform.features else 0
    match subleaf:
        case 0:
            size = platform.pkru_offset + PKRU_SIZE if platform.pku else YMM_OFFSET + ymm_size
            return supported_xcr0(platform), size, size, 0
        case 1:
            compacted = YMM_OFFSET + ymm_size + (PKRU_SIZE if platform.pku else 0)
            return 1 << 0 | 1 << 2, compacted if "xsavec" in platform.features else 0, 0, 0  # XSAVEOPT, XGETBV of 1
        case 2 if "avx" in platform.features:
            return YMM_SIZE, YMM_OFFSET, 0, 0
        case 9 if platform.pku:
            return PKRU_SIZE, platform.pkru_offset, 0, 0
        case _:
            return 0, 0, 0, 0
