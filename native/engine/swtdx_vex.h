/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VEX instructions that the host's processor executes for a guest: see swtdx_vex.c. */
#ifndef SWTDX_VEX_H
#define SWTDX_VEX_H

#include "swtdx_host.h"

enum vex_form {
    VEX_OPERATION,    /* reg, [vvvv,] r/m [, immediate or register in it] */
    VEX_SHIFT,        /* vvvv, r/m, immediate */
    VEX_STORE,        /* r/m, [vvvv,] reg */
    VEX_TO_GENERAL,   /* r32 or r64 in reg, r/m */
    VEX_FROM_GENERAL, /* reg, [vvvv,] r/m32 or r/m64 */
    VEX_STORE_GENERAL, /* r/m32 or r/m64, reg */
    VEX_FLAGS,        /* RFLAGS from reg, r/m */
    VEX_INDEX,        /* RCX and RFLAGS from reg, r/m */
    VEX_MASK,         /* XMM0 and RFLAGS from reg, r/m */
    VEX_MOVE,         /* a whole register, without change */
    VEX_MASKED,       /* the elements that vvvv selects */
    VEX_MASKED_BYTES,
    VEX_GATHER,
    VEX_ZERO_UPPER,
    VEX_ZERO_ALL,
    VEX_LOAD_MXCSR,
    VEX_STORE_MXCSR,
};

enum {
    VEX_FLOAT = 1,       /* looks at MXCSR */
    VEX_ALIGNED = 2,     /* memory must be */
    VEX_IMMEDIATE = 4,
    VEX_VVVV = 8,        /* VEX.vvvv is an operand; else it must be 1111b */
    VEX_IS4 = 0x10,      /* the immediate names a register */
    VEX_READS = 0x20,    /* the destination is a source, too */
    VEX_STORES = 0x40,   /* of VEX_MOVE and VEX_MASKED: r/m is the destination */
    VEX_LONG = 0x80,     /* VEX.L must be 1 */
    VEX_SHORT = 0x100,   /* VEX.L must be 0 */
    VEX_WIDE = 0x200,    /* VEX.W must be 1 */
    VEX_NARROW = 0x400,  /* VEX.W must be 0 */
};

enum { VEX_AVX, VEX_AVX2, VEX_FMA, VEX_F16C, VEX_AES, VEX_PCLMULQDQ, VEX_VAES, VEX_VPCLMULQDQ };

/* Whether the host's processor and its kernel have one of these. */
bool swtdx_vex_offers(unsigned feature);

struct vex_instruction {
    uint8_t map, opcode, prefix; /* 0F, 0F38, 0F3A; none, 66, F3, F2 */
    uint8_t group;               /* what ModRM's reg must be, or 8 */
    uint8_t form;
    bool memory, registers;      /* what r/m may be */
    uint8_t bytes;               /* of memory */
    uint16_t flags;
    uint8_t feature;
};

/*
 * The instruction with these properties, or NULL where the host has none or it is not of this table. modrm is the byte
 * behind the opcode; code64 tells 64-bit mode, in which alone VEX.W makes an operand a 64-bit general register.
 */
const struct vex_instruction *swtdx_vex_instruction(unsigned map, unsigned opcode, unsigned prefix, bool wide,
                                                    bool is_long, unsigned modrm, bool code64);

/* The code that executes it, with r/m in memory or in a register; NULL when there is no memory for it. */
host_stub *swtdx_vex_code(const struct vex_instruction *instruction, bool memory, unsigned immediate);

/* What a helper for masked or gathered elements must know, packed into one number. */
enum {
    VEX_DESTINATION = 0, /* 4 bits each */
    VEX_SELECTION = 4,
    VEX_INDICES = 8,
    VEX_SCALE = 12,         /* 2 bits */
    VEX_QUAD_ELEMENTS = 14, /* 1 bit each */
    VEX_QUAD_INDICES = 15,
    VEX_YMM = 16,
    VEX_ADDRESS_32 = 17, /* the offset has 32 bits */
    VEX_LINEAR_32 = 18,  /* and the sum with the segment's base */
    VEX_SEGMENT = 19,    /* 3 bits: 7 is none */
};

#endif
