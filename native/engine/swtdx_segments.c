/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What TCG leaves out of segmentation: limits and types of segments in 16- and 32-bit code, and the targets of near
 * branches (SDM volume 3, 5.3 to 5.5; volume 2, CALL, JMP, Jcc, LOOP, RET). 64-bit code has no limits.
 *
 * A segment that is flat needs no check. Flags of the translated block say which ones are not: see HF_LIMITS_MASK.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

#define EVERYWHERE 0xffffffffu

static bool is_protected(CPUX86State *env)
{
    return (env->cr[0] & CR0_PE_MASK) && !(env->eflags & VM_MASK);
}

/* Data that can be read and written at every address. */
static bool is_flat(const SegmentCache *segment)
{
    const uint32_t kind = DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_E_MASK | DESC_W_MASK;

    return segment->limit == EVERYWHERE && (segment->flags & kind) == (DESC_P_MASK | DESC_S_MASK | DESC_W_MASK);
}

/* The flags of HF_LIMITS_MASK that are right for the loaded segments. */
uint32_t swtdx_limited_segments(CPUX86State *env)
{
    const SegmentCache *segs = env->segs, *code = &segs[R_CS];
    uint32_t flags = 0;

    if (env->hflags & HF_CS64_MASK) {
        return 0;
    }
    if (code->limit != EVERYWHERE) {
        flags |= HF_CODE_LIMIT_MASK;
    }
    if (flags || !(code->flags & DESC_R_MASK) || !is_flat(&segs[R_DS]) || !is_flat(&segs[R_ES]) ||
        !is_flat(&segs[R_SS])) {
        flags |= HF_DATA_LIMIT_MASK;
    }
    return flags | (is_flat(&segs[R_FS]) ? 0 : HF_FS_LIMIT_MASK) | (is_flat(&segs[R_GS]) ? 0 : HF_GS_LIMIT_MASK);
}

/* Are these bytes within the limit? An expand-down segment has its bytes above it. */
static bool is_within(const SegmentCache *segment, uint32_t first, uint32_t bytes)
{
    uint32_t end = first + bytes - 1;

    if (end < first) {
        return segment->limit == EVERYWHERE; /* over the end of a flat segment: processors differ */
    }
    if ((segment->flags & (DESC_CS_MASK | DESC_E_MASK)) == DESC_E_MASK) {
        return first > segment->limit && end <= (segment->flags & DESC_B_MASK ? EVERYWHERE : 0xffff);
    }
    return end <= segment->limit;
}

static bool may_access(const SegmentCache *segment, bool store)
{
    bool code = segment->flags & DESC_CS_MASK;

    if (!(segment->flags & DESC_P_MASK)) {
        return false; /* null */
    }
    return store ? !code && (segment->flags & DESC_W_MASK) : !code || (segment->flags & DESC_R_MASK);
}

/* access: the segment in bits 2:0, whether it is a store in bit 3, and how many bytes above. */
void helper_swtdx_check_segment(CPUX86State *env, target_ulong linear, uint32_t access)
{
    unsigned number = access & 7;
    const SegmentCache *segment = &env->segs[number];

    if (!is_within(segment, linear - segment->base, access >> 4) ||
        (is_protected(env) && !may_access(segment, access & 8))) {
        raise_exception_err_ra(env, number == R_SS ? EXCP0C_STACK : EXCP0D_GPF, 0, GETPC());
    }
}

/*
 * #SS unless this many items, from where sp points upwards, are in the stack: each of them, since a stack pointer of 16
 * bits may wrap between two. high: the upper half of a descriptor, or a segment's flags.
 */
void swtdx_check_stack(CPUX86State *env, uint32_t limit, uint32_t high, target_ulong sp, unsigned size, unsigned items,
                       int error, uintptr_t retaddr)
{
    SegmentCache stack = { .limit = limit, .flags = high };
    uint32_t mask = high & DESC_B_MASK ? EVERYWHERE : 0xffff;
    unsigned i;

    if ((env->hflags & HF_CS64_MASK) || is_flat(&stack)) {
        return;
    }
    for (i = 0; i < items; i++) {
        if (!is_within(&stack, (sp + size * i) & mask, size)) {
            raise_exception_err_ra(env, EXCP0C_STACK, error, retaddr);
        }
    }
}

/* ---- where branches lead ---- */

static bool may_reach(CPUX86State *env, target_ulong target)
{
    return env->hflags & HF_CS64_MASK ? swtdx_canonical(env, target) : (uint32_t)target <= env->segs[R_CS].limit;
}

/* #GP(0) before a branch that would leave the code segment, or lead to an address that is not canonical. */
void helper_swtdx_check_target(CPUX86State *env, target_ulong target)
{
    if (!may_reach(env, target)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}

/* The same for a far transfer to the code segment of this descriptor. */
void swtdx_check_far_target(CPUX86State *env, uint32_t low, uint32_t high, target_ulong target, uintptr_t retaddr)
{
    uint32_t limit = (low & 0xffff) | (high & 0xf0000);

    if (high & DESC_G_MASK) {
        limit = limit << 12 | 0xfff;
    }
    if ((env->hflags & HF_LMA_MASK) && (high & DESC_L_MASK) ? !swtdx_canonical(env, target) : target > limit) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
}

/* The same for a far transfer in real mode, which keeps the limit. */
void swtdx_check_real_target(CPUX86State *env, uint32_t target, uintptr_t retaddr)
{
    if (target > env->segs[R_CS].limit) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
}

/* What RET has taken from the stack, which is no longer true for any instruction but RET. */
static unsigned popped(CPUX86State *env)
{
    target_ulong code = swtdx_code_address(env) + swtdx_read_prefixes(env).length;

    switch (cpu_ldub_code(env, code)) {
    case 0xc2:
        return 8 + cpu_lduw_code(env, code + 1);
    case 0xc3:
        return 8;
    default:
        return 0;
    }
}

/*
 * No block is at RIP, where JMP or RET in 64-bit code lead. If that address is not canonical, the instruction has not
 * happened. Asked here, the question costs nothing where there is a block: it has been fetched from its address.
 */
void swtdx_check_branch(CPUX86State *env, uintptr_t retaddr)
{
    if ((env->hflags & HF_CS64_MASK) && !swtdx_canonical(env, env->eip)) {
        cpu_restore_state(env_cpu(env), retaddr, true);
        env->regs[R_ESP] -= popped(env);
        raise_exception_err_ra(env, EXCP0D_GPF, 0, 0);
    }
}

/*
 * Code is fetched beyond the segment's limit: #GP(0) for the instruction that is. last: the offset of the block's last
 * byte. A block of several instructions is left for one of a single instruction, until that is the one.
 */
void helper_swtdx_check_code(CPUX86State *env, uint32_t last, uint32_t instructions)
{
    CPUState *cs = env_cpu(env);

    if (last <= env->segs[R_CS].limit) {
        return;
    }
    if (instructions == 1) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    cpu_restore_state(cs, GETPC(), true);
    cs->cflags_next_tb = 1 | curr_cflags();
    cpu_loop_exit_noexc(cs);
}
