# SPDX-License-Identifier: GPL-2.0-or-later
"""The x86 architecture in names: registers, their bits, MSRs, exception vectors, pages.

Every floor may import this module, and it imports only `swtdx.units`. It holds what the architecture defines for any
software; what VMX defines is in `swtdx.cpu.vmx`, what the TDX module or KVM define is in their floors. Names follow the
SDM, MSRs without the prefix IA32_.

Bits are members of an IntEnum and not of an IntFlag: ``Cr0.PE | Cr0.NE`` and ``~Cr4.VMXE`` are plain integers then.
With an IntFlag every operator runs Python code, as long as a whole fast path of a SEAMCALL, and the complement of
a flag has only as many bits as the flag: ``value & ~flag`` loses the upper half of a register.

Code that looks something up at each exit takes ``int(Gpr.RAX)`` once: as keys, members are slower than plain integers.

Source: Intel SDM volume 1 (3.4, 13), volume 3 (2, 4, 6.3, 17) and volume 4 (2).
"""

from __future__ import annotations

from enum import IntEnum

from swtdx.units import PAGE_SIZE as PAGE_SIZE

PAGE_SHIFT = 12
PAGE_OFFSET_MASK = PAGE_SIZE - 1
"""Address bits that select a byte in a 4 KiB page."""
PAGE_SIZE_2M = 1 << 21
PAGE_SIZE_1G = 1 << 30
ENTRIES_PER_TABLE = 512
"""Entries of a page table, or of an EPT page."""
CACHE_LINE = 64


class Gpr(IntEnum):
    """General-purpose registers, as instructions encode them."""

    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15


class Vector(IntEnum):
    """Exception vectors."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21


class Rflags(IntEnum):
    """RFLAGS."""

    CF = 1 << 0
    FIXED_1 = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


class Cr0(IntEnum):
    """Control register 0."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntEnum):
    """Control register 4."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24
    UINTR = 1 << 25
    LASS = 1 << 27
    LAM_SUP = 1 << 28


class Efer(IntEnum):
    """IA32_EFER."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


class Dr6(IntEnum):
    """Debug status register."""

    B0 = 1 << 0
    B1 = 1 << 1
    B2 = 1 << 2
    B3 = 1 << 3
    BLD = 1 << 11
    BD = 1 << 13
    BS = 1 << 14
    BT = 1 << 15
    RTM = 1 << 16


DR6_INIT = 0xFFFF_0FF0
"""DR6 after reset: bits 31:16 and 11:4 read as one while nothing is reported."""


class Dr7(IntEnum):
    """Debug control register."""

    L0 = 1 << 0
    G0 = 1 << 1
    L1 = 1 << 2
    G1 = 1 << 3
    L2 = 1 << 4
    G2 = 1 << 5
    L3 = 1 << 6
    G3 = 1 << 7
    LE = 1 << 8
    GE = 1 << 9
    FIXED_1 = 1 << 10
    RTM = 1 << 11
    GD = 1 << 13


class XFeature(IntEnum):
    """State components of XSAVE: bits of XCR0, IA32_XSS and a TD's XFAM."""

    X87 = 1 << 0
    SSE = 1 << 1
    AVX = 1 << 2
    BNDREGS = 1 << 3
    BNDCSR = 1 << 4
    OPMASK = 1 << 5
    ZMM_HI256 = 1 << 6
    HI16_ZMM = 1 << 7
    PT = 1 << 8
    PKRU = 1 << 9
    PASID = 1 << 10
    CET_U = 1 << 11
    CET_S = 1 << 12
    HDC = 1 << 13
    UINTR = 1 << 14
    LBR = 1 << 15
    HWP = 1 << 16
    TILECFG = 1 << 17
    TILEDATA = 1 << 18
    AVX512 = OPMASK | ZMM_HI256 | HI16_ZMM
    AMX = TILECFG | TILEDATA
    CET = CET_U | CET_S


class Msr(IntEnum):
    """Model-specific registers."""

    P5_MC_ADDR = 0x0
    P5_MC_TYPE = 0x1
    TSC = 0x10
    APIC_BASE = 0x1B
    SMI_COUNT = 0x34
    FEATURE_CONTROL = 0x3A
    TSC_ADJUST = 0x3B
    SPEC_CTRL = 0x48
    PRED_CMD = 0x49
    BIOS_UPDT_TRIG = 0x79
    BIOS_SIGN_ID = 0x8B
    SGXLEPUBKEYHASH0 = 0x8C
    SMBASE = 0x9E
    MISC_PACKAGE_CTLS = 0xBC
    XAPIC_DISABLE_STATUS = 0xBD
    PLATFORM_INFO = 0xCE
    UMWAIT_CONTROL = 0xE1
    MTRRCAP = 0xFE
    ARCH_CAPABILITIES = 0x10A
    FLUSH_CMD = 0x10B
    BBL_CR_CTL3 = 0x11E
    TSX_CTRL = 0x122
    MISC_FEATURES_ENABLES = 0x140
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_CAP = 0x179
    MCG_STATUS = 0x17A
    MCG_CTL = 0x17B
    MISC_ENABLE = 0x1A0
    XFD = 0x1C4
    XFD_ERR = 0x1C5
    DEBUGCTL = 0x1D9
    POWER_CTL = 0x1FC
    PAT = 0x277
    MC0_CTL2 = 0x280
    MTRR_DEF_TYPE = 0x2FF
    PERF_CAPABILITIES = 0x345
    PERF_GLOBAL_CTRL = 0x38F
    MC0_CTL = 0x400
    VMX_BASIC = 0x480
    VMX_VMFUNC = 0x491
    MCG_EXT_CTL = 0x4D0
    RTIT_OUTPUT_BASE = 0x560
    RTIT_CTL = 0x570
    RTIT_ADDR0_A = 0x580
    TSC_DEADLINE = 0x6E0
    X2APIC_APICID = 0x802
    X2APIC_TPR = 0x808
    X2APIC_PPR = 0x80A
    X2APIC_EOI = 0x80B
    X2APIC_SELF_IPI = 0x83F
    DEBUG_INTERFACE = 0xC80
    BNDCFGS = 0xD90
    XSS = 0xDA0
    EFER = 0xC000_0080
    STAR = 0xC000_0081
    LSTAR = 0xC000_0082
    CSTAR = 0xC000_0083
    FMASK = 0xC000_0084
    FS_BASE = 0xC000_0100
    GS_BASE = 0xC000_0101
    KERNEL_GS_BASE = 0xC000_0102
    TSC_AUX = 0xC000_0103
    HWCR = 0xC001_0015
    """AMD's."""


PAT_RESET = 0x0007_0406_0007_0406
"""IA32_PAT after reset."""
