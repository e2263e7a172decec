/* SPDX-License-Identifier: GPL-2.0-or-later */
/* By native/vex_table.py: map, opcode, prefix, /digit or 8, form, memory, register, bytes, flags, feature */
    { 0, 0x10, 0, 8, VEX_MOVE, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vmovups */
    { 0, 0x10, 0, 8, VEX_MOVE, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovups */
    { 0, 0x10, 1, 8, VEX_MOVE, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vmovupd */
    { 0, 0x10, 1, 8, VEX_MOVE, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovupd */
    { 0, 0x10, 2, 8, VEX_OPERATION, 1, 0, 4, 0, VEX_AVX }, /* vmovss */
    { 0, 0x10, 2, 8, VEX_OPERATION, 0, 1, 0, VEX_VVVV, VEX_AVX }, /* vmovss */
    { 0, 0x10, 3, 8, VEX_OPERATION, 1, 0, 8, 0, VEX_AVX }, /* vmovsd */
    { 0, 0x10, 3, 8, VEX_OPERATION, 0, 1, 0, VEX_VVVV, VEX_AVX }, /* vmovsd */
    { 0, 0x11, 0, 8, VEX_MOVE, 1, 1, 16, VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovups */
    { 0, 0x11, 0, 8, VEX_MOVE, 1, 1, 32, VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovups */
    { 0, 0x11, 1, 8, VEX_MOVE, 1, 1, 16, VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovupd */
    { 0, 0x11, 1, 8, VEX_MOVE, 1, 1, 32, VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovupd */
    { 0, 0x11, 2, 8, VEX_STORE, 1, 0, 4, 0, VEX_AVX }, /* vmovss */
    { 0, 0x11, 2, 8, VEX_STORE, 0, 1, 0, VEX_VVVV, VEX_AVX }, /* vmovss */
    { 0, 0x11, 3, 8, VEX_STORE, 1, 0, 8, 0, VEX_AVX }, /* vmovsd */
    { 0, 0x11, 3, 8, VEX_STORE, 0, 1, 0, VEX_VVVV, VEX_AVX }, /* vmovsd */
    { 0, 0x12, 0, 8, VEX_OPERATION, 1, 0, 8, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovlps */
    { 0, 0x12, 0, 8, VEX_OPERATION, 0, 1, 0, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovhlps */
    { 0, 0x12, 1, 8, VEX_OPERATION, 1, 0, 8, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovlpd */
    { 0, 0x12, 2, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vmovsldup */
    { 0, 0x12, 2, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovsldup */
    { 0, 0x12, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vmovddup */
    { 0, 0x12, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovddup */
    { 0, 0x13, 0, 8, VEX_STORE, 1, 0, 8, VEX_SHORT, VEX_AVX }, /* vmovlps */
    { 0, 0x13, 1, 8, VEX_STORE, 1, 0, 8, VEX_SHORT, VEX_AVX }, /* vmovlpd */
    { 0, 0x14, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vunpcklps */
    { 0, 0x14, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vunpcklps */
    { 0, 0x14, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vunpcklpd */
    { 0, 0x14, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vunpcklpd */
    { 0, 0x15, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vunpckhps */
    { 0, 0x15, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vunpckhps */
    { 0, 0x15, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vunpckhpd */
    { 0, 0x15, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vunpckhpd */
    { 0, 0x16, 0, 8, VEX_OPERATION, 1, 0, 8, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovhps */
    { 0, 0x16, 0, 8, VEX_OPERATION, 0, 1, 0, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovlhps */
    { 0, 0x16, 1, 8, VEX_OPERATION, 1, 0, 8, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmovhpd */
    { 0, 0x16, 2, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vmovshdup */
    { 0, 0x16, 2, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovshdup */
    { 0, 0x17, 0, 8, VEX_STORE, 1, 0, 8, VEX_SHORT, VEX_AVX }, /* vmovhps */
    { 0, 0x17, 1, 8, VEX_STORE, 1, 0, 8, VEX_SHORT, VEX_AVX }, /* vmovhpd */
    { 0, 0x28, 0, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_SHORT, VEX_AVX }, /* vmovaps */
    { 0, 0x28, 0, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_LONG, VEX_AVX }, /* vmovaps */
    { 0, 0x28, 1, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_SHORT, VEX_AVX }, /* vmovapd */
    { 0, 0x28, 1, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_LONG, VEX_AVX }, /* vmovapd */
    { 0, 0x29, 0, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovaps */
    { 0, 0x29, 0, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovaps */
    { 0, 0x29, 1, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovapd */
    { 0, 0x29, 1, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovapd */
    { 0, 0x2a, 2, 8, VEX_FROM_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_NARROW, VEX_AVX }, /* vcvtsi2ss */
    { 0, 0x2a, 2, 8, VEX_FROM_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_WIDE, VEX_AVX }, /* vcvtsi2ss */
    { 0, 0x2a, 3, 8, VEX_FROM_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_NARROW, VEX_AVX }, /* vcvtsi2sd */
    { 0, 0x2a, 3, 8, VEX_FROM_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_WIDE, VEX_AVX }, /* vcvtsi2sd */
    { 0, 0x2b, 0, 8, VEX_MOVE, 1, 0, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovntps */
    { 0, 0x2b, 0, 8, VEX_MOVE, 1, 0, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovntps */
    { 0, 0x2b, 1, 8, VEX_MOVE, 1, 0, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovntpd */
    { 0, 0x2b, 1, 8, VEX_MOVE, 1, 0, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovntpd */
    { 0, 0x2c, 2, 8, VEX_TO_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_NARROW, VEX_AVX }, /* vcvttss2si */
    { 0, 0x2c, 2, 8, VEX_TO_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_WIDE, VEX_AVX }, /* vcvttss2si */
    { 0, 0x2c, 3, 8, VEX_TO_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_NARROW, VEX_AVX }, /* vcvttsd2si */
    { 0, 0x2c, 3, 8, VEX_TO_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_WIDE, VEX_AVX }, /* vcvttsd2si */
    { 0, 0x2d, 2, 8, VEX_TO_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_NARROW, VEX_AVX }, /* vcvtss2si */
    { 0, 0x2d, 2, 8, VEX_TO_GENERAL, 1, 1, 4, VEX_FLOAT | VEX_WIDE, VEX_AVX }, /* vcvtss2si */
    { 0, 0x2d, 3, 8, VEX_TO_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_NARROW, VEX_AVX }, /* vcvtsd2si */
    { 0, 0x2d, 3, 8, VEX_TO_GENERAL, 1, 1, 8, VEX_FLOAT | VEX_WIDE, VEX_AVX }, /* vcvtsd2si */
    { 0, 0x2e, 0, 8, VEX_FLAGS, 1, 1, 4, VEX_FLOAT, VEX_AVX }, /* vucomiss */
    { 0, 0x2e, 1, 8, VEX_FLAGS, 1, 1, 8, VEX_FLOAT, VEX_AVX }, /* vucomisd */
    { 0, 0x2f, 0, 8, VEX_FLAGS, 1, 1, 4, VEX_FLOAT, VEX_AVX }, /* vcomiss */
    { 0, 0x2f, 1, 8, VEX_FLAGS, 1, 1, 8, VEX_FLOAT, VEX_AVX }, /* vcomisd */
    { 0, 0x50, 0, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmovmskps */
    { 0, 0x50, 0, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmovmskps */
    { 0, 0x50, 0, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vmovmskps */
    { 0, 0x50, 0, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_WIDE, VEX_AVX }, /* vmovmskps */
    { 0, 0x50, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmovmskpd */
    { 0, 0x50, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmovmskpd */
    { 0, 0x50, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vmovmskpd */
    { 0, 0x50, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_WIDE, VEX_AVX }, /* vmovmskpd */
    { 0, 0x51, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vsqrtps */
    { 0, 0x51, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vsqrtps */
    { 0, 0x51, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vsqrtpd */
    { 0, 0x51, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vsqrtpd */
    { 0, 0x51, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vsqrtss */
    { 0, 0x51, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vsqrtsd */
    { 0, 0x52, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vrsqrtps */
    { 0, 0x52, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vrsqrtps */
    { 0, 0x52, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vrsqrtss */
    { 0, 0x53, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vrcpps */
    { 0, 0x53, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vrcpps */
    { 0, 0x53, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vrcpss */
    { 0, 0x54, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vandps */
    { 0, 0x54, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vandps */
    { 0, 0x54, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vandpd */
    { 0, 0x54, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vandpd */
    { 0, 0x55, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vandnps */
    { 0, 0x55, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vandnps */
    { 0, 0x55, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vandnpd */
    { 0, 0x55, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vandnpd */
    { 0, 0x56, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vorps */
    { 0, 0x56, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vorps */
    { 0, 0x56, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vorpd */
    { 0, 0x56, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vorpd */
    { 0, 0x57, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vxorps */
    { 0, 0x57, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vxorps */
    { 0, 0x57, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vxorpd */
    { 0, 0x57, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX }, /* vxorpd */
    { 0, 0x58, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vaddps */
    { 0, 0x58, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vaddps */
    { 0, 0x58, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vaddpd */
    { 0, 0x58, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vaddpd */
    { 0, 0x58, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vaddss */
    { 0, 0x58, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vaddsd */
    { 0, 0x59, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmulps */
    { 0, 0x59, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vmulps */
    { 0, 0x59, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmulpd */
    { 0, 0x59, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vmulpd */
    { 0, 0x59, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vmulss */
    { 0, 0x59, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vmulsd */
    { 0, 0x5a, 0, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtps2pd */
    { 0, 0x5a, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtps2pd */
    { 0, 0x5a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtpd2ps */
    { 0, 0x5a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtpd2ps */
    { 0, 0x5a, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vcvtss2sd */
    { 0, 0x5a, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vcvtsd2ss */
    { 0, 0x5b, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtdq2ps */
    { 0, 0x5b, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtdq2ps */
    { 0, 0x5b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtps2dq */
    { 0, 0x5b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtps2dq */
    { 0, 0x5b, 2, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvttps2dq */
    { 0, 0x5b, 2, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvttps2dq */
    { 0, 0x5c, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vsubps */
    { 0, 0x5c, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vsubps */
    { 0, 0x5c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vsubpd */
    { 0, 0x5c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vsubpd */
    { 0, 0x5c, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vsubss */
    { 0, 0x5c, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vsubsd */
    { 0, 0x5d, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vminps */
    { 0, 0x5d, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vminps */
    { 0, 0x5d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vminpd */
    { 0, 0x5d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vminpd */
    { 0, 0x5d, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vminss */
    { 0, 0x5d, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vminsd */
    { 0, 0x5e, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vdivps */
    { 0, 0x5e, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vdivps */
    { 0, 0x5e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vdivpd */
    { 0, 0x5e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vdivpd */
    { 0, 0x5e, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vdivss */
    { 0, 0x5e, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vdivsd */
    { 0, 0x5f, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmaxps */
    { 0, 0x5f, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vmaxps */
    { 0, 0x5f, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmaxpd */
    { 0, 0x5f, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vmaxpd */
    { 0, 0x5f, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vmaxss */
    { 0, 0x5f, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV, VEX_AVX }, /* vmaxsd */
    { 0, 0x60, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpcklbw */
    { 0, 0x60, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpcklbw */
    { 0, 0x61, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpcklwd */
    { 0, 0x61, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpcklwd */
    { 0, 0x62, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpckldq */
    { 0, 0x62, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpckldq */
    { 0, 0x63, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpacksswb */
    { 0, 0x63, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpacksswb */
    { 0, 0x64, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpgtb */
    { 0, 0x64, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpgtb */
    { 0, 0x65, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpgtw */
    { 0, 0x65, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpgtw */
    { 0, 0x66, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpgtd */
    { 0, 0x66, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpgtd */
    { 0, 0x67, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpackuswb */
    { 0, 0x67, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpackuswb */
    { 0, 0x68, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpckhbw */
    { 0, 0x68, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpckhbw */
    { 0, 0x69, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpckhwd */
    { 0, 0x69, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpckhwd */
    { 0, 0x6a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpckhdq */
    { 0, 0x6a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpckhdq */
    { 0, 0x6b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpackssdw */
    { 0, 0x6b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpackssdw */
    { 0, 0x6c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpcklqdq */
    { 0, 0x6c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpcklqdq */
    { 0, 0x6d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpunpckhqdq */
    { 0, 0x6d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpunpckhqdq */
    { 0, 0x6e, 1, 8, VEX_FROM_GENERAL, 1, 1, 4, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmovd */
    { 0, 0x6e, 1, 8, VEX_FROM_GENERAL, 1, 1, 8, VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vmovq */
    { 0, 0x6f, 1, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_SHORT, VEX_AVX }, /* vmovdqa */
    { 0, 0x6f, 1, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_LONG, VEX_AVX }, /* vmovdqa */
    { 0, 0x6f, 2, 8, VEX_MOVE, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vmovdqu */
    { 0, 0x6f, 2, 8, VEX_MOVE, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vmovdqu */
    { 0, 0x70, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vpshufd */
    { 0, 0x70, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG, VEX_AVX2 }, /* vpshufd */
    { 0, 0x70, 2, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vpshufhw */
    { 0, 0x70, 2, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG, VEX_AVX2 }, /* vpshufhw */
    { 0, 0x70, 3, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vpshuflw */
    { 0, 0x70, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG, VEX_AVX2 }, /* vpshuflw */
    { 0, 0x71, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrlw */
    { 0, 0x71, 1, 4, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsraw */
    { 0, 0x71, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsllw */
    { 0, 0x71, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrlw */
    { 0, 0x71, 1, 4, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsraw */
    { 0, 0x71, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsllw */
    { 0, 0x72, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrld */
    { 0, 0x72, 1, 4, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrad */
    { 0, 0x72, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpslld */
    { 0, 0x72, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrld */
    { 0, 0x72, 1, 4, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrad */
    { 0, 0x72, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpslld */
    { 0, 0x73, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrlq */
    { 0, 0x73, 1, 3, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrldq */
    { 0, 0x73, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsllq */
    { 0, 0x73, 1, 7, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpslldq */
    { 0, 0x73, 1, 2, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrlq */
    { 0, 0x73, 1, 3, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrldq */
    { 0, 0x73, 1, 6, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsllq */
    { 0, 0x73, 1, 7, VEX_SHIFT, 0, 1, 0, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpslldq */
    { 0, 0x74, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpeqb */
    { 0, 0x74, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpeqb */
    { 0, 0x75, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpeqw */
    { 0, 0x75, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpeqw */
    { 0, 0x76, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpeqd */
    { 0, 0x76, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpeqd */
    { 0, 0x77, 0, 8, VEX_ZERO_UPPER, 0, 1, 0, VEX_SHORT, VEX_AVX }, /* vzeroupper */
    { 0, 0x77, 0, 8, VEX_ZERO_ALL, 0, 1, 0, VEX_LONG, VEX_AVX }, /* vzeroall */
    { 0, 0x7c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vhaddpd */
    { 0, 0x7c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vhaddpd */
    { 0, 0x7c, 3, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vhaddps */
    { 0, 0x7c, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vhaddps */
    { 0, 0x7d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vhsubpd */
    { 0, 0x7d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vhsubpd */
    { 0, 0x7d, 3, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vhsubps */
    { 0, 0x7d, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vhsubps */
    { 0, 0x7e, 1, 8, VEX_STORE_GENERAL, 1, 1, 4, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmovd */
    { 0, 0x7e, 1, 8, VEX_STORE_GENERAL, 1, 1, 8, VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vmovq */
    { 0, 0x7e, 2, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vmovq */
    { 0, 0x7f, 1, 8, VEX_MOVE, 1, 1, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovdqa */
    { 0, 0x7f, 1, 8, VEX_MOVE, 1, 1, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovdqa */
    { 0, 0x7f, 2, 8, VEX_MOVE, 1, 1, 16, VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovdqu */
    { 0, 0x7f, 2, 8, VEX_MOVE, 1, 1, 32, VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovdqu */
    { 0, 0xae, 0, 2, VEX_LOAD_MXCSR, 1, 0, 4, VEX_SHORT, VEX_AVX }, /* vldmxcsr */
    { 0, 0xae, 0, 3, VEX_STORE_MXCSR, 1, 0, 4, VEX_SHORT, VEX_AVX }, /* vstmxcsr */
    { 0, 0xc2, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vcmpps */
    { 0, 0xc2, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vcmpps */
    { 0, 0xc2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vcmppd */
    { 0, 0xc2, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vcmppd */
    { 0, 0xc2, 2, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV, VEX_AVX }, /* vcmpss */
    { 0, 0xc2, 3, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV, VEX_AVX }, /* vcmpsd */
    { 0, 0xc4, 1, 8, VEX_FROM_GENERAL, 1, 1, 2, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpinsrw */
    { 0, 0xc4, 1, 8, VEX_FROM_GENERAL, 1, 1, 2, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpinsrw */
    { 0, 0xc5, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpextrw */
    { 0, 0xc5, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpextrw */
    { 0, 0xc6, 0, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vshufps */
    { 0, 0xc6, 0, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vshufps */
    { 0, 0xc6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vshufpd */
    { 0, 0xc6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vshufpd */
    { 0, 0xd0, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vaddsubpd */
    { 0, 0xd0, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vaddsubpd */
    { 0, 0xd0, 3, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vaddsubps */
    { 0, 0xd0, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vaddsubps */
    { 0, 0xd1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrlw */
    { 0, 0xd1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrlw */
    { 0, 0xd2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrld */
    { 0, 0xd2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrld */
    { 0, 0xd3, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrlq */
    { 0, 0xd3, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrlq */
    { 0, 0xd4, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddq */
    { 0, 0xd4, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddq */
    { 0, 0xd5, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmullw */
    { 0, 0xd5, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmullw */
    { 0, 0xd6, 1, 8, VEX_STORE, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vmovq */
    { 0, 0xd7, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpmovmskb */
    { 0, 0xd7, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpmovmskb */
    { 0, 0xd7, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpmovmskb */
    { 0, 0xd7, 1, 8, VEX_TO_GENERAL, 0, 1, 0, VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpmovmskb */
    { 0, 0xd8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubusb */
    { 0, 0xd8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubusb */
    { 0, 0xd9, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubusw */
    { 0, 0xd9, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubusw */
    { 0, 0xda, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminub */
    { 0, 0xda, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminub */
    { 0, 0xdb, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpand */
    { 0, 0xdb, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpand */
    { 0, 0xdc, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddusb */
    { 0, 0xdc, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddusb */
    { 0, 0xdd, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddusw */
    { 0, 0xdd, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddusw */
    { 0, 0xde, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxub */
    { 0, 0xde, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxub */
    { 0, 0xdf, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpandn */
    { 0, 0xdf, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpandn */
    { 0, 0xe0, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpavgb */
    { 0, 0xe0, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpavgb */
    { 0, 0xe1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsraw */
    { 0, 0xe1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsraw */
    { 0, 0xe2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsrad */
    { 0, 0xe2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsrad */
    { 0, 0xe3, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpavgw */
    { 0, 0xe3, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpavgw */
    { 0, 0xe4, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmulhuw */
    { 0, 0xe4, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmulhuw */
    { 0, 0xe5, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmulhw */
    { 0, 0xe5, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmulhw */
    { 0, 0xe6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvttpd2dq */
    { 0, 0xe6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvttpd2dq */
    { 0, 0xe6, 2, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtdq2pd */
    { 0, 0xe6, 2, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtdq2pd */
    { 0, 0xe6, 3, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_SHORT, VEX_AVX }, /* vcvtpd2dq */
    { 0, 0xe6, 3, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_LONG, VEX_AVX }, /* vcvtpd2dq */
    { 0, 0xe7, 1, 8, VEX_MOVE, 1, 0, 16, VEX_ALIGNED | VEX_STORES | VEX_SHORT, VEX_AVX }, /* vmovntdq */
    { 0, 0xe7, 1, 8, VEX_MOVE, 1, 0, 32, VEX_ALIGNED | VEX_STORES | VEX_LONG, VEX_AVX }, /* vmovntdq */
    { 0, 0xe8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubsb */
    { 0, 0xe8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubsb */
    { 0, 0xe9, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubsw */
    { 0, 0xe9, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubsw */
    { 0, 0xea, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminsw */
    { 0, 0xea, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminsw */
    { 0, 0xeb, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpor */
    { 0, 0xeb, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpor */
    { 0, 0xec, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddsb */
    { 0, 0xec, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddsb */
    { 0, 0xed, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddsw */
    { 0, 0xed, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddsw */
    { 0, 0xee, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxsw */
    { 0, 0xee, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxsw */
    { 0, 0xef, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpxor */
    { 0, 0xef, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpxor */
    { 0, 0xf0, 3, 8, VEX_MOVE, 1, 0, 16, VEX_SHORT, VEX_AVX }, /* vlddqu */
    { 0, 0xf0, 3, 8, VEX_MOVE, 1, 0, 32, VEX_LONG, VEX_AVX }, /* vlddqu */
    { 0, 0xf1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsllw */
    { 0, 0xf1, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsllw */
    { 0, 0xf2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpslld */
    { 0, 0xf2, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpslld */
    { 0, 0xf3, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsllq */
    { 0, 0xf3, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsllq */
    { 0, 0xf4, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmuludq */
    { 0, 0xf4, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmuludq */
    { 0, 0xf5, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaddwd */
    { 0, 0xf5, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaddwd */
    { 0, 0xf6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsadbw */
    { 0, 0xf6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsadbw */
    { 0, 0xf7, 1, 8, VEX_MASKED_BYTES, 0, 1, 16, VEX_SHORT, VEX_AVX }, /* vmaskmovdqu */
    { 0, 0xf8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubb */
    { 0, 0xf8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubb */
    { 0, 0xf9, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubw */
    { 0, 0xf9, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubw */
    { 0, 0xfa, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubd */
    { 0, 0xfa, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubd */
    { 0, 0xfb, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsubq */
    { 0, 0xfb, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsubq */
    { 0, 0xfc, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddb */
    { 0, 0xfc, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddb */
    { 0, 0xfd, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddw */
    { 0, 0xfd, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddw */
    { 0, 0xfe, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpaddd */
    { 0, 0xfe, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpaddd */
    { 1, 0x00, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpshufb */
    { 1, 0x00, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpshufb */
    { 1, 0x01, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphaddw */
    { 1, 0x01, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphaddw */
    { 1, 0x02, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphaddd */
    { 1, 0x02, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphaddd */
    { 1, 0x03, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphaddsw */
    { 1, 0x03, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphaddsw */
    { 1, 0x04, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaddubsw */
    { 1, 0x04, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaddubsw */
    { 1, 0x05, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphsubw */
    { 1, 0x05, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphsubw */
    { 1, 0x06, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphsubd */
    { 1, 0x06, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphsubd */
    { 1, 0x07, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vphsubsw */
    { 1, 0x07, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vphsubsw */
    { 1, 0x08, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsignb */
    { 1, 0x08, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsignb */
    { 1, 0x09, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsignw */
    { 1, 0x09, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsignw */
    { 1, 0x0a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpsignd */
    { 1, 0x0a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpsignd */
    { 1, 0x0b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmulhrsw */
    { 1, 0x0b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmulhrsw */
    { 1, 0x0c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpermilps */
    { 1, 0x0c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vpermilps */
    { 1, 0x0d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpermilpd */
    { 1, 0x0d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vpermilpd */
    { 1, 0x0e, 1, 8, VEX_FLAGS, 1, 1, 16, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vtestps */
    { 1, 0x0e, 1, 8, VEX_FLAGS, 1, 1, 32, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vtestps */
    { 1, 0x0f, 1, 8, VEX_FLAGS, 1, 1, 16, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vtestpd */
    { 1, 0x0f, 1, 8, VEX_FLAGS, 1, 1, 32, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vtestpd */
    { 1, 0x13, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_SHORT | VEX_NARROW, VEX_F16C }, /* vcvtph2ps */
    { 1, 0x13, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_LONG | VEX_NARROW, VEX_F16C }, /* vcvtph2ps */
    { 1, 0x16, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpermps */
    { 1, 0x17, 1, 8, VEX_FLAGS, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vptest */
    { 1, 0x17, 1, 8, VEX_FLAGS, 1, 1, 32, VEX_LONG, VEX_AVX }, /* vptest */
    { 1, 0x18, 1, 8, VEX_OPERATION, 1, 0, 4, VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vbroadcastss */
    { 1, 0x18, 1, 8, VEX_OPERATION, 0, 1, 0, VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vbroadcastss */
    { 1, 0x18, 1, 8, VEX_OPERATION, 1, 0, 4, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vbroadcastss */
    { 1, 0x18, 1, 8, VEX_OPERATION, 0, 1, 0, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vbroadcastss */
    { 1, 0x19, 1, 8, VEX_OPERATION, 1, 0, 8, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vbroadcastsd */
    { 1, 0x19, 1, 8, VEX_OPERATION, 0, 1, 0, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vbroadcastsd */
    { 1, 0x1a, 1, 8, VEX_OPERATION, 1, 0, 16, VEX_LONG | VEX_NARROW, VEX_AVX }, /* vbroadcastf128 */
    { 1, 0x1c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vpabsb */
    { 1, 0x1c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX2 }, /* vpabsb */
    { 1, 0x1d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vpabsw */
    { 1, 0x1d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX2 }, /* vpabsw */
    { 1, 0x1e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vpabsd */
    { 1, 0x1e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_LONG, VEX_AVX2 }, /* vpabsd */
    { 1, 0x20, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovsxbw */
    { 1, 0x20, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovsxbw */
    { 1, 0x21, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_SHORT, VEX_AVX }, /* vpmovsxbd */
    { 1, 0x21, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_LONG, VEX_AVX2 }, /* vpmovsxbd */
    { 1, 0x22, 1, 8, VEX_OPERATION, 1, 1, 2, VEX_SHORT, VEX_AVX }, /* vpmovsxbq */
    { 1, 0x22, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_LONG, VEX_AVX2 }, /* vpmovsxbq */
    { 1, 0x23, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovsxwd */
    { 1, 0x23, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovsxwd */
    { 1, 0x24, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_SHORT, VEX_AVX }, /* vpmovsxwq */
    { 1, 0x24, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_LONG, VEX_AVX2 }, /* vpmovsxwq */
    { 1, 0x25, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovsxdq */
    { 1, 0x25, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovsxdq */
    { 1, 0x28, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmuldq */
    { 1, 0x28, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmuldq */
    { 1, 0x29, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpeqq */
    { 1, 0x29, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpeqq */
    { 1, 0x2a, 1, 8, VEX_MOVE, 1, 0, 16, VEX_ALIGNED | VEX_SHORT, VEX_AVX }, /* vmovntdqa */
    { 1, 0x2a, 1, 8, VEX_MOVE, 1, 0, 32, VEX_ALIGNED | VEX_LONG, VEX_AVX2 }, /* vmovntdqa */
    { 1, 0x2b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpackusdw */
    { 1, 0x2b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpackusdw */
    { 1, 0x2c, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmaskmovps */
    { 1, 0x2c, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmaskmovps */
    { 1, 0x2d, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmaskmovpd */
    { 1, 0x2d, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmaskmovpd */
    { 1, 0x2e, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_STORES | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmaskmovps */
    { 1, 0x2e, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_STORES | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmaskmovps */
    { 1, 0x2f, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_STORES | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vmaskmovpd */
    { 1, 0x2f, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_STORES | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vmaskmovpd */
    { 1, 0x30, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovzxbw */
    { 1, 0x30, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovzxbw */
    { 1, 0x31, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_SHORT, VEX_AVX }, /* vpmovzxbd */
    { 1, 0x31, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_LONG, VEX_AVX2 }, /* vpmovzxbd */
    { 1, 0x32, 1, 8, VEX_OPERATION, 1, 1, 2, VEX_SHORT, VEX_AVX }, /* vpmovzxbq */
    { 1, 0x32, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_LONG, VEX_AVX2 }, /* vpmovzxbq */
    { 1, 0x33, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovzxwd */
    { 1, 0x33, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovzxwd */
    { 1, 0x34, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_SHORT, VEX_AVX }, /* vpmovzxwq */
    { 1, 0x34, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_LONG, VEX_AVX2 }, /* vpmovzxwq */
    { 1, 0x35, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT, VEX_AVX }, /* vpmovzxdq */
    { 1, 0x35, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_LONG, VEX_AVX2 }, /* vpmovzxdq */
    { 1, 0x36, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpermd */
    { 1, 0x37, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpcmpgtq */
    { 1, 0x37, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpcmpgtq */
    { 1, 0x38, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminsb */
    { 1, 0x38, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminsb */
    { 1, 0x39, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminsd */
    { 1, 0x39, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminsd */
    { 1, 0x3a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminuw */
    { 1, 0x3a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminuw */
    { 1, 0x3b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpminud */
    { 1, 0x3b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpminud */
    { 1, 0x3c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxsb */
    { 1, 0x3c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxsb */
    { 1, 0x3d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxsd */
    { 1, 0x3d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxsd */
    { 1, 0x3e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxuw */
    { 1, 0x3e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxuw */
    { 1, 0x3f, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmaxud */
    { 1, 0x3f, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmaxud */
    { 1, 0x40, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpmulld */
    { 1, 0x40, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpmulld */
    { 1, 0x41, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AVX }, /* vphminposuw */
    { 1, 0x45, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpsrlvd */
    { 1, 0x45, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpsrlvd */
    { 1, 0x45, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpsrlvq */
    { 1, 0x45, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpsrlvq */
    { 1, 0x46, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpsravd */
    { 1, 0x46, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpsravd */
    { 1, 0x47, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpsllvd */
    { 1, 0x47, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpsllvd */
    { 1, 0x47, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpsllvq */
    { 1, 0x47, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpsllvq */
    { 1, 0x58, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastd */
    { 1, 0x58, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastd */
    { 1, 0x59, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastq */
    { 1, 0x59, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastq */
    { 1, 0x5a, 1, 8, VEX_OPERATION, 1, 0, 16, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vbroadcasti128 */
    { 1, 0x78, 1, 8, VEX_OPERATION, 1, 1, 1, VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastb */
    { 1, 0x78, 1, 8, VEX_OPERATION, 1, 1, 1, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastb */
    { 1, 0x79, 1, 8, VEX_OPERATION, 1, 1, 2, VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastw */
    { 1, 0x79, 1, 8, VEX_OPERATION, 1, 1, 2, VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpbroadcastw */
    { 1, 0x8c, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpmaskmovd */
    { 1, 0x8c, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpmaskmovd */
    { 1, 0x8c, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpmaskmovq */
    { 1, 0x8c, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpmaskmovq */
    { 1, 0x8e, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_STORES | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpmaskmovd */
    { 1, 0x8e, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_STORES | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpmaskmovd */
    { 1, 0x8e, 1, 8, VEX_MASKED, 1, 0, 16, VEX_VVVV | VEX_STORES | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpmaskmovq */
    { 1, 0x8e, 1, 8, VEX_MASKED, 1, 0, 32, VEX_VVVV | VEX_STORES | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpmaskmovq */
    { 1, 0x90, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpgatherdd */
    { 1, 0x90, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpgatherdd */
    { 1, 0x90, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpgatherdq */
    { 1, 0x90, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpgatherdq */
    { 1, 0x91, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpgatherqd */
    { 1, 0x91, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpgatherqd */
    { 1, 0x91, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vpgatherqq */
    { 1, 0x91, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpgatherqq */
    { 1, 0x92, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vgatherdps */
    { 1, 0x92, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vgatherdps */
    { 1, 0x92, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vgatherdpd */
    { 1, 0x92, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vgatherdpd */
    { 1, 0x93, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vgatherqps */
    { 1, 0x93, 1, 8, VEX_GATHER, 1, 0, 4, VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vgatherqps */
    { 1, 0x93, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_AVX2 }, /* vgatherqpd */
    { 1, 0x93, 1, 8, VEX_GATHER, 1, 0, 8, VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vgatherqpd */
    { 1, 0x96, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmaddsub132ps */
    { 1, 0x96, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmaddsub132ps */
    { 1, 0x96, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmaddsub132pd */
    { 1, 0x96, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmaddsub132pd */
    { 1, 0x97, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsubadd132ps */
    { 1, 0x97, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsubadd132ps */
    { 1, 0x97, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsubadd132pd */
    { 1, 0x97, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsubadd132pd */
    { 1, 0x98, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmadd132ps */
    { 1, 0x98, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmadd132ps */
    { 1, 0x98, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmadd132pd */
    { 1, 0x98, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmadd132pd */
    { 1, 0x99, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmadd132ss */
    { 1, 0x99, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmadd132sd */
    { 1, 0x9a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsub132ps */
    { 1, 0x9a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsub132ps */
    { 1, 0x9a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsub132pd */
    { 1, 0x9a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsub132pd */
    { 1, 0x9b, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmsub132ss */
    { 1, 0x9b, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmsub132sd */
    { 1, 0x9c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmadd132ps */
    { 1, 0x9c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmadd132ps */
    { 1, 0x9c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmadd132pd */
    { 1, 0x9c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmadd132pd */
    { 1, 0x9d, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmadd132ss */
    { 1, 0x9d, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmadd132sd */
    { 1, 0x9e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmsub132ps */
    { 1, 0x9e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmsub132ps */
    { 1, 0x9e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmsub132pd */
    { 1, 0x9e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmsub132pd */
    { 1, 0x9f, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmsub132ss */
    { 1, 0x9f, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmsub132sd */
    { 1, 0xa6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmaddsub213ps */
    { 1, 0xa6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmaddsub213ps */
    { 1, 0xa6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmaddsub213pd */
    { 1, 0xa6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmaddsub213pd */
    { 1, 0xa7, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsubadd213ps */
    { 1, 0xa7, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsubadd213ps */
    { 1, 0xa7, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsubadd213pd */
    { 1, 0xa7, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsubadd213pd */
    { 1, 0xa8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmadd213ps */
    { 1, 0xa8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmadd213ps */
    { 1, 0xa8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmadd213pd */
    { 1, 0xa8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmadd213pd */
    { 1, 0xa9, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmadd213ss */
    { 1, 0xa9, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmadd213sd */
    { 1, 0xaa, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsub213ps */
    { 1, 0xaa, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsub213ps */
    { 1, 0xaa, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsub213pd */
    { 1, 0xaa, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsub213pd */
    { 1, 0xab, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmsub213ss */
    { 1, 0xab, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmsub213sd */
    { 1, 0xac, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmadd213ps */
    { 1, 0xac, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmadd213ps */
    { 1, 0xac, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmadd213pd */
    { 1, 0xac, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmadd213pd */
    { 1, 0xad, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmadd213ss */
    { 1, 0xad, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmadd213sd */
    { 1, 0xae, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmsub213ps */
    { 1, 0xae, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmsub213ps */
    { 1, 0xae, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmsub213pd */
    { 1, 0xae, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmsub213pd */
    { 1, 0xaf, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmsub213ss */
    { 1, 0xaf, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmsub213sd */
    { 1, 0xb6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmaddsub231ps */
    { 1, 0xb6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmaddsub231ps */
    { 1, 0xb6, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmaddsub231pd */
    { 1, 0xb6, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmaddsub231pd */
    { 1, 0xb7, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsubadd231ps */
    { 1, 0xb7, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsubadd231ps */
    { 1, 0xb7, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsubadd231pd */
    { 1, 0xb7, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsubadd231pd */
    { 1, 0xb8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmadd231ps */
    { 1, 0xb8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmadd231ps */
    { 1, 0xb8, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmadd231pd */
    { 1, 0xb8, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmadd231pd */
    { 1, 0xb9, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmadd231ss */
    { 1, 0xb9, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmadd231sd */
    { 1, 0xba, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfmsub231ps */
    { 1, 0xba, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfmsub231ps */
    { 1, 0xba, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfmsub231pd */
    { 1, 0xba, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfmsub231pd */
    { 1, 0xbb, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfmsub231ss */
    { 1, 0xbb, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfmsub231sd */
    { 1, 0xbc, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmadd231ps */
    { 1, 0xbc, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmadd231ps */
    { 1, 0xbc, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmadd231pd */
    { 1, 0xbc, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmadd231pd */
    { 1, 0xbd, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmadd231ss */
    { 1, 0xbd, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmadd231sd */
    { 1, 0xbe, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_NARROW, VEX_FMA }, /* vfnmsub231ps */
    { 1, 0xbe, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_NARROW, VEX_FMA }, /* vfnmsub231ps */
    { 1, 0xbe, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_SHORT | VEX_WIDE, VEX_FMA }, /* vfnmsub231pd */
    { 1, 0xbe, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_LONG | VEX_WIDE, VEX_FMA }, /* vfnmsub231pd */
    { 1, 0xbf, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_NARROW, VEX_FMA }, /* vfnmsub231ss */
    { 1, 0xbf, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_VVVV | VEX_READS | VEX_WIDE, VEX_FMA }, /* vfnmsub231sd */
    { 1, 0xdb, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_SHORT, VEX_AES }, /* vaesimc */
    { 1, 0xdc, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AES }, /* vaesenc */
    { 1, 0xdc, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_VAES }, /* vaesenc */
    { 1, 0xdd, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AES }, /* vaesenclast */
    { 1, 0xdd, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_VAES }, /* vaesenclast */
    { 1, 0xde, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AES }, /* vaesdec */
    { 1, 0xde, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_VAES }, /* vaesdec */
    { 1, 0xdf, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_SHORT, VEX_AES }, /* vaesdeclast */
    { 1, 0xdf, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_LONG, VEX_VAES }, /* vaesdeclast */
    { 2, 0x00, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpermq */
    { 2, 0x01, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG | VEX_WIDE, VEX_AVX2 }, /* vpermpd */
    { 2, 0x02, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX2 }, /* vpblendd */
    { 2, 0x02, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpblendd */
    { 2, 0x04, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpermilps */
    { 2, 0x04, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vpermilps */
    { 2, 0x05, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpermilpd */
    { 2, 0x05, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vpermilpd */
    { 2, 0x06, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vperm2f128 */
    { 2, 0x08, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vroundps */
    { 2, 0x08, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_IMMEDIATE | VEX_LONG, VEX_AVX }, /* vroundps */
    { 2, 0x09, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vroundpd */
    { 2, 0x09, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_IMMEDIATE | VEX_LONG, VEX_AVX }, /* vroundpd */
    { 2, 0x0a, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV, VEX_AVX }, /* vroundss */
    { 2, 0x0b, 1, 8, VEX_OPERATION, 1, 1, 8, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV, VEX_AVX }, /* vroundsd */
    { 2, 0x0c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vblendps */
    { 2, 0x0c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vblendps */
    { 2, 0x0d, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vblendpd */
    { 2, 0x0d, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vblendpd */
    { 2, 0x0e, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpblendw */
    { 2, 0x0e, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpblendw */
    { 2, 0x0f, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vpalignr */
    { 2, 0x0f, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vpalignr */
    { 2, 0x14, 1, 8, VEX_STORE_GENERAL, 1, 1, 1, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpextrb */
    { 2, 0x14, 1, 8, VEX_STORE_GENERAL, 1, 1, 1, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpextrb */
    { 2, 0x15, 1, 8, VEX_STORE_GENERAL, 1, 1, 2, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpextrw */
    { 2, 0x15, 1, 8, VEX_STORE_GENERAL, 1, 1, 2, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpextrw */
    { 2, 0x16, 1, 8, VEX_STORE_GENERAL, 1, 1, 4, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpextrd */
    { 2, 0x16, 1, 8, VEX_STORE_GENERAL, 1, 1, 8, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpextrq */
    { 2, 0x17, 1, 8, VEX_STORE_GENERAL, 1, 1, 4, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vextractps */
    { 2, 0x17, 1, 8, VEX_STORE_GENERAL, 1, 1, 4, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vextractps */
    { 2, 0x18, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vinsertf128 */
    { 2, 0x19, 1, 8, VEX_STORE, 1, 1, 16, VEX_IMMEDIATE | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vextractf128 */
    { 2, 0x1d, 1, 8, VEX_STORE, 1, 1, 8, VEX_FLOAT | VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_F16C }, /* vcvtps2ph */
    { 2, 0x1d, 1, 8, VEX_STORE, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_LONG | VEX_NARROW, VEX_F16C }, /* vcvtps2ph */
    { 2, 0x20, 1, 8, VEX_FROM_GENERAL, 1, 1, 1, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpinsrb */
    { 2, 0x20, 1, 8, VEX_FROM_GENERAL, 1, 1, 1, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpinsrb */
    { 2, 0x21, 1, 8, VEX_OPERATION, 1, 1, 4, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vinsertps */
    { 2, 0x22, 1, 8, VEX_FROM_GENERAL, 1, 1, 4, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpinsrd */
    { 2, 0x22, 1, 8, VEX_FROM_GENERAL, 1, 1, 8, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpinsrq */
    { 2, 0x38, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vinserti128 */
    { 2, 0x39, 1, 8, VEX_STORE, 1, 1, 16, VEX_IMMEDIATE | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vextracti128 */
    { 2, 0x40, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vdpps */
    { 2, 0x40, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX }, /* vdpps */
    { 2, 0x41, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_FLOAT | VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vdppd */
    { 2, 0x42, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_AVX }, /* vmpsadbw */
    { 2, 0x42, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_AVX2 }, /* vmpsadbw */
    { 2, 0x44, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_VVVV | VEX_SHORT, VEX_PCLMULQDQ }, /* vpclmulqdq */
    { 2, 0x44, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG, VEX_VPCLMULQDQ }, /* vpclmulqdq */
    { 2, 0x46, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_IMMEDIATE | VEX_VVVV | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vperm2i128 */
    { 2, 0x4a, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_IS4 | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vblendvps */
    { 2, 0x4a, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_IS4 | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vblendvps */
    { 2, 0x4b, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_IS4 | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vblendvpd */
    { 2, 0x4b, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_IS4 | VEX_LONG | VEX_NARROW, VEX_AVX }, /* vblendvpd */
    { 2, 0x4c, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_VVVV | VEX_IS4 | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpblendvb */
    { 2, 0x4c, 1, 8, VEX_OPERATION, 1, 1, 32, VEX_VVVV | VEX_IS4 | VEX_LONG | VEX_NARROW, VEX_AVX2 }, /* vpblendvb */
    { 2, 0x60, 1, 8, VEX_MASK, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpcmpestrm */
    { 2, 0x60, 1, 8, VEX_MASK, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpcmpestrm64 */
    { 2, 0x61, 1, 8, VEX_INDEX, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_NARROW, VEX_AVX }, /* vpcmpestri */
    { 2, 0x61, 1, 8, VEX_INDEX, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT | VEX_WIDE, VEX_AVX }, /* vpcmpestri64 */
    { 2, 0x62, 1, 8, VEX_MASK, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vpcmpistrm */
    { 2, 0x63, 1, 8, VEX_INDEX, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AVX }, /* vpcmpistri */
    { 2, 0xdf, 1, 8, VEX_OPERATION, 1, 1, 16, VEX_IMMEDIATE | VEX_SHORT, VEX_AES }, /* vaeskeygenassist */
