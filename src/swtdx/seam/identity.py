# SPDX-License-Identifier: GPL-2.0-or-later
"""What the module and the platform say they are: version, limits, feature bits, and test values of the TCB.

The limits and fixed bits here are those that versions of the module share. The security version numbers, MRSEAM and the
report key are test values and do not belong to a real platform, so that a report of this module cannot be mistaken for
one of real hardware.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from swtdx.seam.hardware import Processor
from swtdx.seam.version import ModuleVersion
from swtdx.x86 import PAGE_SIZE, XFeature

VENDOR_INTEL = 0x8086
HANDOFF_VERSION = 0

MAX_TDMRS = 64
MAX_RESERVED_PER_TDMR = 16
PAMT_ENTRY_SIZE = 16
TDR_BASE_SIZE = PAGE_SIZE
TDCS_SIZE_PER_L2_VM = PAGE_SIZE
TDVPS_BASE_SIZE = 6 * PAGE_SIZE
TDVPS_SIZE_PER_L2_VM = 3 * PAGE_SIZE
MIN_VIRT_MAXPA = 45
MAX_CMRS = 32
MAX_PACKAGES = 8
MAX_CPUID_CONFIG_SLOTS = 32

ATTRIBUTES_FIXED1 = 0
ATTRIBUTE_LASS = 1 << 27
XFAM_FIXED0 = 0x6DBE7
XFAM_FIXED1 = XFeature.X87 | XFeature.SSE
CONFIG_FLAGS_FIXED1 = 0
ARCH_CAPABILITIES_CONFIG_MASK = 0x118_0010
ARCH_CAPABILITIES_ALLOWED, ARCH_CAPABILITIES_RRSBA = 0x110_0010, 1 << 19
"""Configurable bits: those a TD has only if the processor and the configuration have them, and one it has if either."""
ARCH_CAPABILITIES_TSX_CTRL, ARCH_CAPABILITIES_XAPIC_DISABLE_STATUS = 1 << 7, 1 << 21
ARCH_CAPABILITIES_FIXED0 = 0xFFFF_FFFF_FEC7_0E00
"""Bits 63:25, 23, 22, 18:16, 11:9."""
MODELS = (0xD06D0, 0xA06E0, 0xA06D0, 0xA06F3, 0xC06F2, 0x806F8)
"""CPUID(1).EAX of the processors that the module knows, newest first, each with its highest stepping."""
STEPPING = 0xF
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
FEATURE_MAXGPA_VIRT = 1 << 33
"""What 1.5.08 added to 1.5.06, by the release notes: virtualisation of CPUID(0x80000008).EAX[23:16]."""
TDX_FEATURES0 = (TDX_FEATURES0_1_5_06 | FEATURE_MAXGPA_VIRT) & ~FEATURES_NOT_REPRODUCED


def features0(version: ModuleVersion) -> int:
    """Return TDX_FEATURES0 of a version: of what is published of it, what is reproduced."""
    return version.features0 & TDX_FEATURES0


@dataclass(frozen=True)
class Identity:
    """The identity that goes into reports: test values, and a report key that is new with every machine."""

    cpu_svn: bytes = bytes.fromhex("03000000000000000000000000000000")
    tee_tcb_svn: bytes = bytes.fromhex("06010400000000000000000000000000")
    tee_tcb_svn2: bytes = tee_tcb_svn
    tcb_info_valid: int = 0x301FF
    """TEE_TCB_INFO.VALID: what reports of real 1.5 modules show (of 1.0: 0x1FF)."""
    mrseam: bytes = hashlib.sha384(b"swtdx test TDX module 1.5.06").digest()
    mrsignerseam: bytes = bytes(48)
    report_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    """HMAC-SHA-256 key of REPORTMACSTRUCT; inside the processor on real hardware."""

    @classmethod
    def of(cls, version: ModuleVersion, *, updated: bool = False) -> Identity:
        """Return the test identity of a version of the module; ``updated``: by a newer one, while TDs ran.

        Raises ValueError for a version that cannot report an update.
        """
        svn = bytes.fromhex(version.tee_tcb_svn)
        if updated and not version.has_svn2:
            raise ValueError(f"reports of TDX module {version.name} do not show an update (TEE_TCB_SVN2)")
        current = bytes([svn[0] + updated, *svn[1:]])
        return cls(
            tee_tcb_svn=svn,
            tee_tcb_svn2=current if version.has_svn2 else bytes(len(svn)),
            tcb_info_valid=version.tcb_info_valid,
            mrseam=hashlib.sha384(f"swtdx test TDX module {version.name}".encode()).digest(),
        )


def xfam_native(processor: Processor) -> int:
    """Return the XFAM bits the processor supports: user states of CPUID 0xD.0, supervisor states of 0xD.1."""
    user, supervisor = processor.cpuid(0xD, 0), processor.cpuid(0xD, 1)
    return user[0] | user[3] << 32 | supervisor[2] | supervisor[3] << 32


def xfam_fixed0(processor: Processor) -> int:
    """Return the XFAM bits a TD may be given on this processor."""
    return XFAM_FIXED0 & xfam_native(processor)


def attributes_fixed0(processor: Processor, version: ModuleVersion) -> int:
    """Return the ATTRIBUTES bits a TD may have on this processor: LASS only where native (CPUID 7.1 EAX bit 6)."""
    lass = processor.cpuid(7, 1)[0] >> 6 & 1
    return version.attributes_fixed0 if lass else version.attributes_fixed0 & ~ATTRIBUTE_LASS


def allowed_models(native: int) -> tuple[int, ...]:
    """Return what a migratable TD on this processor may have as CPUID(1).EAX: the native value, and older models."""
    for place, model in enumerate(MODELS):
        if (model ^ native) & ~STEPPING == 0:
            return native, *MODELS[place + 1 :]
    return (native,)


def may_migrate_to(model: int, native: int) -> bool:
    """Return whether a migratable TD may be given this CPUID(1).EAX: any stepping up to that of an allowed model."""
    return any(
        (model ^ allowed) & ~STEPPING == 0 and model & STEPPING <= allowed & STEPPING
        for allowed in allowed_models(native)
    )
