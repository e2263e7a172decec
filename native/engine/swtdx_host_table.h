/* SPDX-License-Identifier: GPL-2.0-or-later */
/* By native/host_table.py: map, opcode, prefix (none, 66, F3, F2), form, bytes, flags, feature */
    { 0, 0x12, 2, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE3 }, /* movsldup */
    { 0, 0x12, 3, HOST_VECTOR, 8, 0, HOST_SSE3 }, /* movddup */
    { 0, 0x14, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* unpcklps */
    { 0, 0x14, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* unpcklpd */
    { 0, 0x15, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* unpckhps */
    { 0, 0x15, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* unpckhpd */
    { 0, 0x16, 2, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE3 }, /* movshdup */
    { 0, 0x2a, 0, HOST_FROM_MMX, 8, HOST_FLOAT, HOST_SSE }, /* cvtpi2ps */
    { 0, 0x2a, 1, HOST_FROM_MMX, 8, HOST_FLOAT, HOST_SSE2 }, /* cvtpi2pd */
    { 0, 0x2a, 2, HOST_FROM_GENERAL, 4, HOST_FLOAT, HOST_SSE }, /* cvtsi2ss */
    { 0, 0x2a, 3, HOST_FROM_GENERAL, 4, HOST_FLOAT, HOST_SSE2 }, /* cvtsi2sd */
    { 0, 0x2c, 0, HOST_TO_MMX, 8, HOST_FLOAT, HOST_SSE }, /* cvttps2pi */
    { 0, 0x2c, 1, HOST_TO_MMX, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvttpd2pi */
    { 0, 0x2c, 2, HOST_TO_GENERAL, 4, HOST_FLOAT, HOST_SSE }, /* cvttss2si */
    { 0, 0x2c, 3, HOST_TO_GENERAL, 8, HOST_FLOAT, HOST_SSE2 }, /* cvttsd2si */
    { 0, 0x2d, 0, HOST_TO_MMX, 8, HOST_FLOAT, HOST_SSE }, /* cvtps2pi */
    { 0, 0x2d, 1, HOST_TO_MMX, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvtpd2pi */
    { 0, 0x2d, 2, HOST_TO_GENERAL, 4, HOST_FLOAT, HOST_SSE }, /* cvtss2si */
    { 0, 0x2d, 3, HOST_TO_GENERAL, 8, HOST_FLOAT, HOST_SSE2 }, /* cvtsd2si */
    { 0, 0x2e, 0, HOST_FLAGS, 4, HOST_FLOAT, HOST_SSE }, /* ucomiss */
    { 0, 0x2e, 1, HOST_FLAGS, 8, HOST_FLOAT, HOST_SSE2 }, /* ucomisd */
    { 0, 0x2f, 0, HOST_FLAGS, 4, HOST_FLOAT, HOST_SSE }, /* comiss */
    { 0, 0x2f, 1, HOST_FLAGS, 8, HOST_FLOAT, HOST_SSE2 }, /* comisd */
    { 0, 0x51, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* sqrtps */
    { 0, 0x51, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* sqrtpd */
    { 0, 0x51, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* sqrtss */
    { 0, 0x51, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* sqrtsd */
    { 0, 0x52, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* rsqrtps */
    { 0, 0x52, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* rsqrtss */
    { 0, 0x53, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* rcpps */
    { 0, 0x53, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* rcpss */
    { 0, 0x54, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* andps */
    { 0, 0x54, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* andpd */
    { 0, 0x55, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* andnps */
    { 0, 0x55, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* andnpd */
    { 0, 0x56, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* orps */
    { 0, 0x56, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* orpd */
    { 0, 0x57, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE }, /* xorps */
    { 0, 0x57, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* xorpd */
    { 0, 0x58, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* addps */
    { 0, 0x58, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* addpd */
    { 0, 0x58, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* addss */
    { 0, 0x58, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* addsd */
    { 0, 0x59, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* mulps */
    { 0, 0x59, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* mulpd */
    { 0, 0x59, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* mulss */
    { 0, 0x59, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* mulsd */
    { 0, 0x5a, 0, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* cvtps2pd */
    { 0, 0x5a, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvtpd2ps */
    { 0, 0x5a, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE2 }, /* cvtss2sd */
    { 0, 0x5a, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* cvtsd2ss */
    { 0, 0x5b, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvtdq2ps */
    { 0, 0x5b, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvtps2dq */
    { 0, 0x5b, 2, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvttps2dq */
    { 0, 0x5c, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* subps */
    { 0, 0x5c, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* subpd */
    { 0, 0x5c, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* subss */
    { 0, 0x5c, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* subsd */
    { 0, 0x5d, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* minps */
    { 0, 0x5d, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* minpd */
    { 0, 0x5d, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* minss */
    { 0, 0x5d, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* minsd */
    { 0, 0x5e, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* divps */
    { 0, 0x5e, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* divpd */
    { 0, 0x5e, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* divss */
    { 0, 0x5e, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* divsd */
    { 0, 0x5f, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE }, /* maxps */
    { 0, 0x5f, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* maxpd */
    { 0, 0x5f, 2, HOST_VECTOR, 4, HOST_FLOAT, HOST_SSE }, /* maxss */
    { 0, 0x5f, 3, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* maxsd */
    { 0, 0x60, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpcklbw */
    { 0, 0x61, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpcklwd */
    { 0, 0x62, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpckldq */
    { 0, 0x63, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* packsswb */
    { 0, 0x64, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpgtb */
    { 0, 0x65, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpgtw */
    { 0, 0x66, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpgtd */
    { 0, 0x67, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* packuswb */
    { 0, 0x68, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpckhbw */
    { 0, 0x69, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpckhwd */
    { 0, 0x6a, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpckhdq */
    { 0, 0x6b, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* packssdw */
    { 0, 0x6c, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpcklqdq */
    { 0, 0x6d, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* punpckhqdq */
    { 0, 0x70, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE2 }, /* pshufd */
    { 0, 0x70, 2, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE2 }, /* pshufhw */
    { 0, 0x70, 3, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE2 }, /* pshuflw */
    { 0, 0x74, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpeqb */
    { 0, 0x75, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpeqw */
    { 0, 0x76, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pcmpeqd */
    { 0, 0x7c, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* haddpd */
    { 0, 0x7c, 3, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* haddps */
    { 0, 0x7d, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* hsubpd */
    { 0, 0x7d, 3, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* hsubps */
    { 0, 0xc2, 0, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE }, /* cmpps */
    { 0, 0xc2, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE2 }, /* cmppd */
    { 0, 0xc2, 2, HOST_VECTOR, 4, HOST_FLOAT | HOST_IMMEDIATE, HOST_SSE }, /* cmpss */
    { 0, 0xc2, 3, HOST_VECTOR, 8, HOST_FLOAT | HOST_IMMEDIATE, HOST_SSE2 }, /* cmpsd */
    { 0, 0xc6, 0, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE }, /* shufps */
    { 0, 0xc6, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE2 }, /* shufpd */
    { 0, 0xd0, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* addsubpd */
    { 0, 0xd0, 3, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE3 }, /* addsubps */
    { 0, 0xd1, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psrlw */
    { 0, 0xd2, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psrld */
    { 0, 0xd3, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psrlq */
    { 0, 0xd4, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddq */
    { 0, 0xd5, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmullw */
    { 0, 0xd8, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubusb */
    { 0, 0xd9, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubusw */
    { 0, 0xda, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pminub */
    { 0, 0xdb, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pand */
    { 0, 0xdc, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddusb */
    { 0, 0xdd, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddusw */
    { 0, 0xde, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmaxub */
    { 0, 0xdf, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pandn */
    { 0, 0xe0, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pavgb */
    { 0, 0xe1, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psraw */
    { 0, 0xe2, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psrad */
    { 0, 0xe3, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pavgw */
    { 0, 0xe4, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmulhuw */
    { 0, 0xe5, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmulhw */
    { 0, 0xe6, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvttpd2dq */
    { 0, 0xe6, 2, HOST_VECTOR, 8, HOST_FLOAT, HOST_SSE2 }, /* cvtdq2pd */
    { 0, 0xe6, 3, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED, HOST_SSE2 }, /* cvtpd2dq */
    { 0, 0xe8, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubsb */
    { 0, 0xe9, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubsw */
    { 0, 0xea, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pminsw */
    { 0, 0xeb, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* por */
    { 0, 0xec, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddsb */
    { 0, 0xed, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddsw */
    { 0, 0xee, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmaxsw */
    { 0, 0xef, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pxor */
    { 0, 0xf1, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psllw */
    { 0, 0xf2, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pslld */
    { 0, 0xf3, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psllq */
    { 0, 0xf4, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmuludq */
    { 0, 0xf5, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* pmaddwd */
    { 0, 0xf6, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psadbw */
    { 0, 0xf8, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubb */
    { 0, 0xf9, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubw */
    { 0, 0xfa, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubd */
    { 0, 0xfb, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* psubq */
    { 0, 0xfc, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddb */
    { 0, 0xfd, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddw */
    { 0, 0xfe, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE2 }, /* paddd */
    { 1, 0x00, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pshufb */
    { 1, 0x00, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pshufb */
    { 1, 0x01, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phaddw */
    { 1, 0x01, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phaddw */
    { 1, 0x02, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phaddd */
    { 1, 0x02, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phaddd */
    { 1, 0x03, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phaddsw */
    { 1, 0x03, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phaddsw */
    { 1, 0x04, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pmaddubsw */
    { 1, 0x04, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pmaddubsw */
    { 1, 0x05, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phsubw */
    { 1, 0x05, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phsubw */
    { 1, 0x06, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phsubd */
    { 1, 0x06, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phsubd */
    { 1, 0x07, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* phsubsw */
    { 1, 0x07, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* phsubsw */
    { 1, 0x08, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* psignb */
    { 1, 0x08, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* psignb */
    { 1, 0x09, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* psignw */
    { 1, 0x09, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* psignw */
    { 1, 0x0a, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* psignd */
    { 1, 0x0a, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* psignd */
    { 1, 0x0b, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pmulhrsw */
    { 1, 0x0b, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pmulhrsw */
    { 1, 0x10, 1, HOST_XMM0, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pblendvb */
    { 1, 0x14, 1, HOST_XMM0, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* blendvps */
    { 1, 0x15, 1, HOST_XMM0, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* blendvpd */
    { 1, 0x17, 1, HOST_FLAGS, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* ptest */
    { 1, 0x1c, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pabsb */
    { 1, 0x1c, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pabsb */
    { 1, 0x1d, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pabsw */
    { 1, 0x1d, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pabsw */
    { 1, 0x1e, 0, HOST_MMX, 8, 0, HOST_SSSE3 }, /* pabsd */
    { 1, 0x1e, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSSE3 }, /* pabsd */
    { 1, 0x20, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovsxbw */
    { 1, 0x21, 1, HOST_VECTOR, 4, 0, HOST_SSE4_1 }, /* pmovsxbd */
    { 1, 0x22, 1, HOST_VECTOR, 2, 0, HOST_SSE4_1 }, /* pmovsxbq */
    { 1, 0x23, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovsxwd */
    { 1, 0x24, 1, HOST_VECTOR, 4, 0, HOST_SSE4_1 }, /* pmovsxwq */
    { 1, 0x25, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovsxdq */
    { 1, 0x28, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmuldq */
    { 1, 0x29, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pcmpeqq */
    { 1, 0x2b, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* packusdw */
    { 1, 0x30, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovzxbw */
    { 1, 0x31, 1, HOST_VECTOR, 4, 0, HOST_SSE4_1 }, /* pmovzxbd */
    { 1, 0x32, 1, HOST_VECTOR, 2, 0, HOST_SSE4_1 }, /* pmovzxbq */
    { 1, 0x33, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovzxwd */
    { 1, 0x34, 1, HOST_VECTOR, 4, 0, HOST_SSE4_1 }, /* pmovzxwq */
    { 1, 0x35, 1, HOST_VECTOR, 8, 0, HOST_SSE4_1 }, /* pmovzxdq */
    { 1, 0x37, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_2 }, /* pcmpgtq */
    { 1, 0x38, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pminsb */
    { 1, 0x39, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pminsd */
    { 1, 0x3a, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pminuw */
    { 1, 0x3b, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pminud */
    { 1, 0x3c, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmaxsb */
    { 1, 0x3d, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmaxsd */
    { 1, 0x3e, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmaxuw */
    { 1, 0x3f, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmaxud */
    { 1, 0x40, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* pmulld */
    { 1, 0x41, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SSE4_1 }, /* phminposuw */
    { 1, 0xc8, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SHA }, /* sha1nexte */
    { 1, 0xc9, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SHA }, /* sha1msg1 */
    { 1, 0xca, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SHA }, /* sha1msg2 */
    { 1, 0xcb, 0, HOST_XMM0, 16, HOST_ALIGNED, HOST_SHA }, /* sha256rnds2 */
    { 1, 0xcc, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SHA }, /* sha256msg1 */
    { 1, 0xcd, 0, HOST_VECTOR, 16, HOST_ALIGNED, HOST_SHA }, /* sha256msg2 */
    { 1, 0xdb, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_AES }, /* aesimc */
    { 1, 0xdc, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_AES }, /* aesenc */
    { 1, 0xdd, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_AES }, /* aesenclast */
    { 1, 0xde, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_AES }, /* aesdec */
    { 1, 0xdf, 1, HOST_VECTOR, 16, HOST_ALIGNED, HOST_AES }, /* aesdeclast */
    { 2, 0x08, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* roundps */
    { 2, 0x09, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* roundpd */
    { 2, 0x0a, 1, HOST_VECTOR, 4, HOST_FLOAT | HOST_IMMEDIATE, HOST_SSE4_1 }, /* roundss */
    { 2, 0x0b, 1, HOST_VECTOR, 8, HOST_FLOAT | HOST_IMMEDIATE, HOST_SSE4_1 }, /* roundsd */
    { 2, 0x0c, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* blendps */
    { 2, 0x0d, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* blendpd */
    { 2, 0x0e, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* pblendw */
    { 2, 0x0f, 0, HOST_MMX, 8, HOST_IMMEDIATE, HOST_SSSE3 }, /* palignr */
    { 2, 0x0f, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSSE3 }, /* palignr */
    { 2, 0x21, 1, HOST_VECTOR, 4, HOST_IMMEDIATE, HOST_SSE4_1 }, /* insertps */
    { 2, 0x40, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* dpps */
    { 2, 0x41, 1, HOST_VECTOR, 16, HOST_FLOAT | HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* dppd */
    { 2, 0x42, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SSE4_1 }, /* mpsadbw */
    { 2, 0x44, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_PCLMULQDQ }, /* pclmulqdq */
    { 2, 0x60, 1, HOST_MASK, 16, HOST_IMMEDIATE, HOST_SSE4_2 }, /* pcmpestrm */
    { 2, 0x61, 1, HOST_INDEX, 16, HOST_IMMEDIATE, HOST_SSE4_2 }, /* pcmpestri */
    { 2, 0x62, 1, HOST_MASK, 16, HOST_IMMEDIATE, HOST_SSE4_2 }, /* pcmpistrm */
    { 2, 0x63, 1, HOST_INDEX, 16, HOST_IMMEDIATE, HOST_SSE4_2 }, /* pcmpistri */
    { 2, 0xcc, 0, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_SHA }, /* sha1rnds4 */
    { 2, 0xdf, 1, HOST_VECTOR, 16, HOST_ALIGNED | HOST_IMMEDIATE, HOST_AES }, /* aeskeygenassist */
