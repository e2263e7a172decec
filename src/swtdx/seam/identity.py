# SPDX-License-Identifier: GPL-2.0-or-later
"""What the module and the platform say they are: version, limits, feature bits, and test values of the TCB.

The limits and fixed bits are those of module 1.5.06. The security version numbers, MRSEAM and the report key belong to
no real platform: they are test values, so that nobody takes a report of this module for one of real hardware.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from swtdx.seam.hardware import Processor

VENDOR_INTEL = 0x8086
MAJOR_VERSION, MINOR_VERSION, UPDATE_VERSION, INTERNAL_VERSION = 1, 5, 6, 0
BUILD_DATE = 20240407
BUILD_NUM = 744
HANDOFF_VERSION = 0

MAX_TDMRS = 64
MAX_RESERVED_PER_TDMR = 16
PAMT_ENTRY_SIZE = 16
TDR_BASE_SIZE = 4096
TDCS_BASE_SIZE = 24576
TDCS_SIZE_PER_L2_VM = 4096
TDVPS_BASE_SIZE = 24576
TDVPS_SIZE_PER_L2_VM = 12288
MAX_VCPUS_PER_TD = 576
MIN_VIRT_MAXPA = 45
MAX_CMRS = 32
MAX_CPUID_CONFIG_SLOTS = 32

ATTRIBUTES_FIXED0 = 0x8000_0000_7801_0001
ATTRIBUTES_FIXED1 = 0
ATTRIBUTE_LASS = 1 << 27
XFAM_FIXED0 = 0x6DBE7
XFAM_FIXED1 = 3
CONFIG_FLAGS_FIXED0 = 0xF
CONFIG_FLAGS_FIXED1 = 0
ARCH_CAPABILITIES_CONFIG_MASK = 0x118_0010
HP_LOCK_TIMEOUT_DEFAULT = 1_000_000
"""Microseconds."""

TDX_FEATURES0_1_5_06 = 0x2E1F_0FBF
FEATURES_NOT_REPRODUCED = (
    1 << 0  # migration
    | 1 << 1  # TD preserving
    | 1 << 2  # service TD
    | 1 << 7  # TD partitioning
    | 1 << 19  # L2 TLB invalidation
)
"""Bits of TDX_FEATURES0 that the real 1.5.06 sets and this module must not, because it lacks their leaf functions."""
TDX_FEATURES0 = TDX_FEATURES0_1_5_06 & ~FEATURES_NOT_REPRODUCED


@dataclass(frozen=True)
class Identity:
    """The identity that goes into reports: test values, and a report key that is new with every machine."""

    cpu_svn: bytes = bytes.fromhex("03000000000000000000000000000000")
    tee_tcb_svn: bytes = bytes.fromhex("06010400000000000000000000000000")
    mrseam: bytes = hashlib.sha384(b"swtdx test TDX module 1.5.06").digest()
    mrsignerseam: bytes = bytes(48)
    report_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """HMAC-SHA-256 key of REPORTMACSTRUCT; inside the processor on real hardware."""


def xfam_native(processor: Processor) -> int:
    """XFAM bits the processor supports: user states of CPUID 0xD.0, supervisor states of 0xD.1."""
    user, supervisor = processor.cpuid(0xD, 0), processor.cpuid(0xD, 1)
    return user[0] | user[3] << 32 | supervisor[2] | supervisor[3] << 32


def xfam_fixed0(processor: Processor) -> int:
    """XFAM bits a TD may be given on this processor."""
    return XFAM_FIXED0 & xfam_native(processor)


def attributes_fixed0(processor: Processor) -> int:
    """ATTRIBUTES bits a TD may be given on this processor: LASS only where it is native (CPUID 7.1 EAX bit 6)."""
    lass = processor.cpuid(7, 1)[0] >> 6 & 1
    return ATTRIBUTES_FIXED0 if lass else ATTRIBUTES_FIXED0 & ~ATTRIBUTE_LASS
