/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * AVX, AVX2, FMA, F16C and what else has a VEX prefix, executed by the host's processor (swtdx_host.c says how).
 *
 * A stub loads the operands into YMM0 to YMM3, executes the instruction with these, and stores all 256 bits of the
 * result: that an instruction on XMM registers clears the upper half is the host's doing. r/m is a register, or a copy
 * of the guest's memory, so that as much is read as the instruction reads. General registers are in such a copy, too.
 * Elements that a mask selects are loaded and stored here one by one, with the guest's faults. Moves, which copy, are
 * translated inline (swtdx_vex_translate.h).
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/cpu_ldst.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"
#include "swtdx_vex.h"

static const struct vex_instruction instructions[] = {
#include "swtdx_vex_table.h"
};

static uint16_t first_of[3][256]; /* 1 + index of the first row for an opcode; the others follow it */
static void **stubs[ARRAY_SIZE(instructions)][2]; /* by r/m; [256] where there is an immediate, else [1] */
static pthread_once_t table_once = PTHREAD_ONCE_INIT;
static bool offered[VEX_VPCLMULQDQ + 1];

#define EMIT(code, bytes) swtdx_host_emit(code, bytes, sizeof(bytes) - 1)

/* ---- stubs ---- */

enum { REG = 0, RM = 1, VVVV = 2, IS4 = 3 }; /* the YMM register of each operand */

/* The instruction, with ModRM's fields given; in memory, r/m is [rsi]. */
static void emit_instruction(struct host_code *code, const struct vex_instruction *instruction, bool memory,
                             unsigned immediate)
{
    bool shift = instruction->form == VEX_SHIFT;
    unsigned reg = shift || instruction->group < 8 ? instruction->group : REG;
    unsigned vvvv = instruction->flags & VEX_VVVV ? VVVV : 0;
    char bytes[] = {
        0xc4,
        0xe0 | (instruction->map + 1),
        (instruction->flags & VEX_WIDE ? 0x80 : 0) | (~vvvv & 15) << 3 | (instruction->flags & VEX_LONG ? 4 : 0) |
            instruction->prefix,
        instruction->opcode,
        (memory ? 6 : 0xc0 | RM) | reg << 3,
        instruction->flags & VEX_IS4 ? IS4 << 4 : immediate,
    };

    swtdx_host_emit(code, bytes, instruction->flags & (VEX_IMMEDIATE | VEX_IS4) ? 6 : 5);
}

static void emit_loads(struct host_code *code, const struct vex_instruction *instruction, bool memory)
{
    bool reg = instruction->form != VEX_OPERATION && instruction->form != VEX_FROM_GENERAL &&
               instruction->form != VEX_TO_GENERAL && instruction->form != VEX_SHIFT;

    if (reg || (instruction->flags & VEX_READS)) {
        EMIT(code, "\xc5\xfe\x6f\x07"); /* vmovdqu ymm0, [rdi] */
    }
    if (!memory) {
        EMIT(code, "\xc5\xfe\x6f\x0e"); /* vmovdqu ymm1, [rsi] */
    }
    if ((instruction->flags & VEX_VVVV) && instruction->form != VEX_SHIFT) {
        EMIT(code, "\xc5\xfe\x6f\x12"); /* vmovdqu ymm2, [rdx] */
    }
    if (instruction->flags & VEX_IS4) {
        EMIT(code, "\xc5\xfe\x6f\x19"); /* vmovdqu ymm3, [rcx] */
    }
}

static void emit_results(struct host_code *code, const struct vex_instruction *instruction, bool memory)
{
    switch (instruction->form) {
    case VEX_OPERATION:
    case VEX_FROM_GENERAL:
        EMIT(code, "\xc5\xfe\x7f\x07"); /* vmovdqu [rdi], ymm0 */
        break;
    case VEX_SHIFT:
        EMIT(code, "\xc5\xfe\x7f\x12"); /* vmovdqu [rdx], ymm2 */
        break;
    case VEX_STORE:
        if (!memory) {
            EMIT(code, "\xc5\xfe\x7f\x0e"); /* vmovdqu [rsi], ymm1 */
        }
        break;
    case VEX_FLAGS:
        EMIT(code, "\x9c\x58"); /* pushfq; pop rax */
        break;
    case VEX_INDEX:
        EMIT(code, "\x9c\x58\x48\xc1\xe1\x20\x48\x09\xc8"); /* shl rcx, 32; or rax, rcx */
        break;
    case VEX_MASK:
        EMIT(code, "\x9c\x58\xc4\xc1\x7e\x7f\x00"); /* vmovdqu [r8], ymm0 */
        break;
    default:
        break;
    }
    EMIT(code, "\xc5\xf8\x77\xc3"); /* vzeroupper; ret */
}

host_stub *swtdx_vex_code(const struct vex_instruction *instruction, bool memory, unsigned immediate)
{
    bool has_immediate = instruction->flags & VEX_IMMEDIATE;
    struct host_code code = { .length = 0 };
    void **table = swtdx_host_slots(&stubs[instruction - instructions][memory], has_immediate ? 256 : 1), *stub;
    unsigned index = has_immediate ? immediate & 0xff : 0;

    if (!table) {
        return NULL;
    }
    stub = __atomic_load_n(&table[index], __ATOMIC_ACQUIRE);
    if (!stub) {
        emit_loads(&code, instruction, memory);
        if (instruction->form == VEX_INDEX || instruction->form == VEX_MASK) {
            EMIT(&code, "\x48\x89\xd0\x48\x89\xca"); /* mov rax, rdx; mov rdx, rcx */
        }
        emit_instruction(&code, instruction, memory, immediate);
        emit_results(&code, instruction, memory);
        stub = swtdx_host_place(&code);
        __atomic_store_n(&table[index], stub, __ATOMIC_RELEASE);
    }
    return stub;
}

/* ---- the table ---- */

static void index_table(void)
{
    unsigned i;

    offered[VEX_AVX] = __builtin_cpu_supports("avx");
    offered[VEX_AVX2] = __builtin_cpu_supports("avx2");
    offered[VEX_FMA] = __builtin_cpu_supports("fma");
    offered[VEX_F16C] = __builtin_cpu_supports("f16c");
    offered[VEX_AES] = offered[VEX_AVX] && __builtin_cpu_supports("aes");
    offered[VEX_PCLMULQDQ] = offered[VEX_AVX] && __builtin_cpu_supports("pclmul");
    offered[VEX_VAES] = offered[VEX_AVX2] && __builtin_cpu_supports("vaes");
    offered[VEX_VPCLMULQDQ] = offered[VEX_AVX2] && __builtin_cpu_supports("vpclmulqdq");
    for (i = ARRAY_SIZE(instructions); i-- > 0;) {
        first_of[instructions[i].map][instructions[i].opcode] = 1 + i;
    }
}

bool swtdx_vex_offers(unsigned feature)
{
    pthread_once(&table_once, index_table);
    return offered[feature];
}

uint32_t swtdx_host_features(void)
{
    return swtdx_vex_offers(VEX_AVX) << SWTDX_AVX | swtdx_vex_offers(VEX_AVX2) << SWTDX_AVX2 |
           swtdx_vex_offers(VEX_FMA) << SWTDX_FMA | swtdx_vex_offers(VEX_F16C) << SWTDX_F16C |
           swtdx_vex_offers(VEX_VAES) << SWTDX_VAES | swtdx_vex_offers(VEX_VPCLMULQDQ) << SWTDX_VPCLMULQDQ |
           swtdx_host_has_sha() << SWTDX_SHA;
}

static bool fits(const struct vex_instruction *row, unsigned prefix, bool wide, bool is_long, unsigned modrm,
                 bool code64)
{
    bool general = row->form == VEX_TO_GENERAL || row->form == VEX_FROM_GENERAL || row->form == VEX_STORE_GENERAL;

    if (general && !code64) {
        wide = false;
    }
    return row->prefix == prefix && offered[row->feature] && (row->group == 8 || row->group == (modrm >> 3 & 7)) &&
           !(row->flags & (wide ? VEX_NARROW : VEX_WIDE)) && !(row->flags & (is_long ? VEX_SHORT : VEX_LONG)) &&
           (modrm < 0xc0 ? row->memory : row->registers);
}

const struct vex_instruction *swtdx_vex_instruction(unsigned map, unsigned opcode, unsigned prefix, bool wide,
                                                    bool is_long, unsigned modrm, bool code64)
{
    unsigned i;

    pthread_once(&table_once, index_table);
    i = first_of[map][opcode];
    if (i) {
        for (i--; i < ARRAY_SIZE(instructions) && instructions[i].map == map && instructions[i].opcode == opcode; i++) {
            if (fits(&instructions[i], prefix, wide, is_long, modrm, code64)) {
                return &instructions[i];
            }
        }
    }
    return NULL;
}

/* ---- what translated code calls ---- */

/* operands: the places of reg, r/m, vvvv and the fourth register in env, 16 bits each. */
static inline void *operand(CPUX86State *env, uint64_t operands, unsigned number)
{
    return (char *)env + (operands >> 16 * number & 0xffff);
}

void helper_swtdx_vex(CPUX86State *env, uint64_t operands, void *stub)
{
    ((host_stub *)stub)(operand(env, operands, REG), operand(env, operands, RM),
                        (uintptr_t)operand(env, operands, VVVV), (uintptr_t)operand(env, operands, IS4), NULL);
}

uint64_t helper_swtdx_vex_value(CPUX86State *env, uint64_t operands, void *stub)
{
    return ((host_stub *)stub)(operand(env, operands, REG), operand(env, operands, RM), env->regs[R_EAX],
                               env->regs[R_EDX], env->xmm_regs);
}

uint64_t helper_swtdx_vex_float(CPUX86State *env, uint64_t operands, void *stub)
{
    return swtdx_run_float(env, operand(env, operands, REG), operand(env, operands, RM),
                           (uintptr_t)operand(env, operands, VVVV), stub, GETPC());
}

/* ---- elements ---- */

/* Raise the fault that a store would have, before any of it is made. */
static void probe_range(CPUX86State *env, target_ulong address, unsigned bytes, uintptr_t retaddr)
{
    int mmu_index = cpu_mmu_index(env, false);
    unsigned first = MIN(-(address | TARGET_PAGE_MASK), bytes);

    probe_write(env, address, first, mmu_index, retaddr);
    if (first < bytes) {
        probe_write(env, address + first, bytes - first, mmu_index, retaddr);
    }
}

static unsigned field(uint32_t what, unsigned at, unsigned bits)
{
    return what >> at & ((1u << bits) - 1);
}

static bool selected(const ZMMReg *mask, unsigned i, bool quad)
{
    return quad ? mask->ZMM_Q(i) >> 63 : mask->ZMM_L(i) >> 31;
}

static unsigned elements_of(uint32_t what, unsigned bytes)
{
    return (field(what, VEX_YMM, 1) ? 32 : 16) / bytes;
}

void helper_swtdx_masked_load(CPUX86State *env, target_ulong address, uint32_t what)
{
    bool quad = field(what, VEX_QUAD_ELEMENTS, 1), narrow = field(what, VEX_LINEAR_32, 1);
    const ZMMReg mask = env->xmm_regs[field(what, VEX_SELECTION, 4)];
    unsigned bytes = quad ? 8 : 4, i;
    uintptr_t retaddr = GETPC();
    uint64_t result[4] = { 0 };

    for (i = 0; i < elements_of(what, bytes); i++) {
        target_ulong at = address + i * bytes;

        if (narrow) {
            at = (uint32_t)at;
        }
        if (!selected(&mask, i, quad)) {
            continue;
        }
        if (quad) {
            result[i] = cpu_ldq_data_ra(env, at, retaddr);
        } else {
            result[i / 2] |= (uint64_t)cpu_ldl_data_ra(env, at, retaddr) << i % 2 * 32;
        }
    }
    memcpy(&env->xmm_regs[field(what, VEX_DESTINATION, 4)], result, sizeof(result));
}

/* Nothing is stored when one of the elements faults. */
void helper_swtdx_masked_store(CPUX86State *env, target_ulong address, uint32_t what)
{
    bool quad = field(what, VEX_QUAD_ELEMENTS, 1), narrow = field(what, VEX_LINEAR_32, 1);
    const ZMMReg *source = &env->xmm_regs[field(what, VEX_DESTINATION, 4)];
    const ZMMReg *mask = &env->xmm_regs[field(what, VEX_SELECTION, 4)];
    unsigned bytes = quad ? 8 : 4, pass, i;
    uintptr_t retaddr = GETPC();

    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < elements_of(what, bytes); i++) {
            target_ulong at = address + i * bytes;

            if (narrow) {
                at = (uint32_t)at;
            }
            if (!selected(mask, i, quad)) {
                continue;
            }
            if (!pass) {
                probe_range(env, at, bytes, retaddr);
            } else if (quad) {
                cpu_stq_data_ra(env, at, source->ZMM_Q(i), retaddr);
            } else {
                cpu_stl_data_ra(env, at, source->ZMM_L(i), retaddr);
            }
        }
    }
}

/*
 * Each element that has arrived is in the destination and out of the mask, so that an instruction that faulted
 * continues where it was (SDM volume 2, VPGATHERDD).
 */
void helper_swtdx_gather(CPUX86State *env, target_ulong base, uint32_t what)
{
    bool quad = field(what, VEX_QUAD_ELEMENTS, 1), quad_indices = field(what, VEX_QUAD_INDICES, 1);
    ZMMReg *destination = &env->xmm_regs[field(what, VEX_DESTINATION, 4)];
    ZMMReg *mask = &env->xmm_regs[field(what, VEX_SELECTION, 4)];
    const ZMMReg *indices = &env->xmm_regs[field(what, VEX_INDICES, 4)];
    unsigned bytes = quad ? 8 : 4, count = elements_of(what, quad || quad_indices ? 8 : 4);
    unsigned segment = field(what, VEX_SEGMENT, 3), i;
    uintptr_t retaddr = GETPC();

    for (i = 0; i < count; i++) {
        int64_t index = quad_indices ? (int64_t)indices->ZMM_Q(i) : (int32_t)indices->ZMM_L(i);
        target_ulong at = base + ((uint64_t)index << field(what, VEX_SCALE, 2));

        if (field(what, VEX_ADDRESS_32, 1)) {
            at = (uint32_t)at;
        }
        if (segment != 7) {
            at += env->segs[segment].base;
        }
        if (field(what, VEX_LINEAR_32, 1)) {
            at = (uint32_t)at;
        }
        if (!selected(mask, i, quad)) {
            continue;
        }
        if (quad) {
            destination->ZMM_Q(i) = cpu_ldq_data_ra(env, at, retaddr);
            mask->ZMM_Q(i) = 0;
        } else {
            destination->ZMM_L(i) = cpu_ldl_data_ra(env, at, retaddr);
            mask->ZMM_L(i) = 0;
        }
    }
    memset(mask, 0, 32);
    memset((char *)destination + count * bytes, 0, 32 - count * bytes);
}

/* The same for translated code: also before a result changes MXCSR. */
void helper_swtdx_probe_range(CPUX86State *env, target_ulong address, uint32_t bytes)
{
    probe_range(env, address, bytes, GETPC());
}

/* VZEROUPPER and VZEROALL: in 32-bit mode of the first eight registers. */
void helper_swtdx_zero(CPUX86State *env, uint32_t kept_bytes)
{
    unsigned registers = env->hflags & HF_CS64_MASK ? 16 : 8, i;

    for (i = 0; i < registers; i++) {
        memset((char *)&env->xmm_regs[i] + kept_bytes, 0, 32 - kept_bytes);
    }
}
