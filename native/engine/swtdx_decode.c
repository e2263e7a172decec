/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rules of instruction decoding that TCG's translator leaves out.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "swtdx_internal.h"

/* May this instruction have a LOCK prefix? b is the opcode, with 0x100 behind 0F. (SDM volume 2, LOCK) */
bool swtdx_may_lock(int b, uint8_t modrm)
{
    unsigned operation = modrm >> 3 & 7;

    if (modrm >> 6 == 3) {
        return false; /* none with a register as destination, and all that are allowed have a ModRM byte */
    }
    /* clang-format off */
    switch (b) {
    case 0x00: case 0x01: case 0x08: case 0x09: case 0x10: case 0x11: case 0x18: case 0x19:
    case 0x20: case 0x21: case 0x28: case 0x29: case 0x30: case 0x31: /* ADD OR ADC SBB AND SUB XOR */
    case 0x86: case 0x87: /* XCHG */
    case 0x1ab: case 0x1b3: case 0x1bb: /* BTS BTR BTC */
    case 0x1b0: case 0x1b1: case 0x1c0: case 0x1c1: /* CMPXCHG XADD */
        return true;
    case 0x80: case 0x81: case 0x82: case 0x83: /* the first, but for CMP */
        return operation != 7;
    case 0xf6: case 0xf7: /* NOT NEG */
        return operation == 2 || operation == 3;
    case 0xfe: case 0xff: /* INC DEC */
        return operation <= 1;
    case 0x1ba: /* BTS BTR BTC with a number */
        return operation >= 5;
    case 0x1c7: /* CMPXCHG8B CMPXCHG16B */
        return operation == 1;
    default:
        return false;
    }
    /* clang-format on */
}

/* SSE4a: EXTRQ and INSERTQ (66 or F2 0F 78, 79), MOVNTSS and MOVNTSD (F3 or F2 0F 2B). */
bool swtdx_undefined(int b, int prefixes)
{
    switch (b) {
    case 0x12b:
        return prefixes & (SWTDX_PREFIX_REPZ | SWTDX_PREFIX_REPNZ);
    case 0x178:
    case 0x179:
        return prefixes & (SWTDX_PREFIX_REPNZ | SWTDX_PREFIX_DATA);
    default:
        return false;
    }
}
