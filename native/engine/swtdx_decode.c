/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rules of instruction decoding that TCG's translator leaves out.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
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

/* RET, CALL, JMP, Jcc and LOOP with a displacement: their operands have 64 bits in 64-bit code (SDM volume 2,
 * 2.2.1.6). */
bool swtdx_is_near_branch(int b)
{
    /* clang-format off */
    switch (b) {
    case 0x70 ... 0x7f: case 0x180 ... 0x18f: case 0xc2: case 0xc3: case 0xe0 ... 0xe3: case 0xe8: case 0xe9: case 0xeb:
        return true;
    default:
        return false;
    }
    /* clang-format on */
}

/* ---- which references are to the stack ---- */

#define STACK_REACH 32 /* bytes on both sides of the stack pointer that PUSH, CALL, RET and their like reach */

/* Does the instruction push or pop? opcode: as in swtdx_may_lock(). */
static bool uses_stack(unsigned opcode, unsigned modrm)
{
    unsigned operation = modrm >> 3 & 7;

    /* clang-format off */
    switch (opcode) {
    case 0x50 ... 0x5f: case 0x68: case 0x6a: case 0x8f: case 0x9a: case 0x9c: case 0x9d:
    case 0xc2: case 0xc3: case 0xc8: case 0xc9: case 0xca: case 0xcb: case 0xcf: case 0xe8:
    case 0x1a0: case 0x1a1: case 0x1a8: case 0x1a9:
        return true;
    case 0xff: /* CALL, far CALL, PUSH */
        return operation == 2 || operation == 3 || operation == 6;
    default:
        return false;
    }
    /* clang-format on */
}

static bool has_modrm(unsigned opcode)
{
    /* clang-format off */
    switch (opcode) {
    case 0x00 ... 0x3f:
        return (opcode & 7) < 4;
    case 0x63: case 0x69: case 0x6b: case 0x80 ... 0x8f: case 0xc0: case 0xc1: case 0xc6: case 0xc7:
    case 0xd0 ... 0xd3: case 0xd8 ... 0xdf: case 0xf6: case 0xf7: case 0xfe: case 0xff:
        return true;
    case 0x104 ... 0x10c: case 0x10e: case 0x130 ... 0x137: case 0x177: case 0x180 ... 0x18f:
    case 0x1a0 ... 0x1a2: case 0x1a8 ... 0x1aa: case 0x1c8 ... 0x1cf:
        return false;
    default:
        return opcode >= 0x100;
    }
    /* clang-format on */
}

/* Is RSP or RBP the base of the memory operand? code: the address of ModRM. */
static bool has_stack_base(CPUX86State *env, target_ulong code, bool extended)
{
    uint8_t modrm = cpu_ldub_code(env, code), mode = modrm >> 6, base = modrm & 7;

    if (mode == 3 || extended) {
        return false;
    }
    if (base == 4) { /* a SIB byte has it */
        base = cpu_ldub_code(env, code + 1) & 7;
        return base == R_ESP || (base == R_EBP && mode);
    }
    return base == R_EBP && mode;
}

/*
 * Is this reference of 64-bit code, which faults since its address is not canonical, one to the stack? It is #SS then,
 * else #GP (SDM volume 1, 3.3.7.1). FS and GS make it none.
 */
bool swtdx_refers_to_stack(CPUX86State *env, target_ulong address, uintptr_t retaddr)
{
    struct swtdx_prefixes prefixes;
    target_ulong code, pointer;
    unsigned opcode, modrm;
    bool extended = false;

    if (!retaddr || !(env->hflags & HF_CS64_MASK) || !cpu_restore_state(env_cpu(env), retaddr, true)) {
        return false;
    }
    prefixes = swtdx_read_prefixes(env);
    code = swtdx_code_address(env) + prefixes.length;
    opcode = cpu_ldub_code(env, code++);
    if (prefixes.length) { /* REX is the last one */
        uint8_t rex = cpu_ldub_code(env, code - 2);

        extended = (rex & 0xf0) == 0x40 && (rex & 1);
    }
    if (opcode == 0xc5 || opcode == 0xc4) { /* VEX: all of its opcodes behave like those behind 0F 38 here */
        extended = opcode == 0xc4 && !(cpu_ldub_code(env, code) & 0x20);
        code += opcode == 0xc5 ? 2 : 3;
        opcode = 0x138;
    } else if (opcode == 0x0f) {
        opcode = 0x100 | cpu_ldub_code(env, code++);
        code += opcode == 0x138 || opcode == 0x13a;
    }
    modrm = cpu_ldub_code(env, code);
    pointer = opcode == 0xc9 ? env->regs[R_EBP] : env->regs[R_ESP]; /* LEAVE */
    if (uses_stack(opcode, modrm) && address - pointer + STACK_REACH < 2 * STACK_REACH) {
        return true;
    }
    return has_modrm(opcode) && prefixes.segment != R_FS && prefixes.segment != R_GS &&
           has_stack_base(env, code, extended);
}
