/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Debug exceptions: breakpoints in DR0-3 and single steps (SDM volume 3, chapter 18), and when they are VM exits.
 *
 * Instruction breakpoints are TCG's own: a block with one in it stops before that instruction. Data breakpoints are
 * ours, for Unicorn has taken TCG's out: pages in which one lies are marked in the TLB, an access there is compared
 * with DR0-3, and since a data breakpoint is a trap, the instruction is executed alone, in a block of its own, and #DB
 * follows it.
 *
 * A #DB that exits says in the qualification what it was for and leaves DR6 as it is; that of the guest is in DR6.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "tcg/tcg.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

#define BREAKPOINTS 4
#define DR6_BREAKPOINTS 0xfull
#define QUALIFICATION_MASK (DR6_BREAKPOINTS | DR6_BD | DR6_BS)

enum { TYPE_EXECUTE = 0, TYPE_WRITE = 1, TYPE_IO = 2, TYPE_ACCESS = 3 };

static bool enabled(const CPUX86State *env, int n)
{
    return env->dr[7] >> (2 * n) & 3;
}

static int type_of(const CPUX86State *env, int n)
{
    return env->dr[7] >> (DR7_TYPE_SHIFT + 4 * n) & 3;
}

static bool on_data(const CPUX86State *env, int n)
{
    return enabled(env, n) && (type_of(env, n) == TYPE_WRITE || type_of(env, n) == TYPE_ACCESS);
}

/* Where it lies: DR7's length is 1, 2, 8 or 4 bytes, and DRn is aligned to it. */
static target_ulong start_of(const CPUX86State *env, int n, target_ulong *last)
{
    static const uint8_t lengths[] = { 1, 2, 8, 4 };
    target_ulong length = lengths[env->dr[7] >> (DR7_LEN_SHIFT + 4 * n) & 3], start = env->dr[n] & ~(length - 1);

    *last = start + length - 1;
    return start;
}

/* BP_MEM_* of the accesses to this range that must come to swtdx_data_access(); asked when the TLB is filled. */
int swtdx_watched(CPUState *cs, vaddr addr, vaddr len)
{
    CPUX86State *env = cs->env_ptr;
    target_ulong start, last;
    int n, flags = 0;

    if (likely(!(env->dr[7] & 0xff))) {
        return 0;
    }
    for (n = 0; n < BREAKPOINTS; n++) {
        if (on_data(env, n)) {
            start = start_of(env, n, &last);
            if (start <= addr + (len - 1) && addr <= last) {
                flags |= type_of(env, n) == TYPE_WRITE ? BP_MEM_WRITE : BP_MEM_ACCESS;
            }
        }
    }
    return flags;
}

void swtdx_data_access(CPUState *cs, vaddr addr, vaddr len, int flags, uintptr_t retaddr)
{
    CPUX86State *env = cs->env_ptr;
    struct swtdx_engine *engine = cs->uc->swtdx;
    TranslationBlock *block;
    target_ulong start, last;
    uint32_t hits = 0;
    int n;

    for (n = 0; n < BREAKPOINTS; n++) {
        if (on_data(env, n) && (flags & BP_MEM_WRITE || type_of(env, n) == TYPE_ACCESS)) {
            start = start_of(env, n, &last);
            hits |= (start <= addr + (len - 1) && addr <= last) << n;
        }
    }
    if (!hits) {
        return;
    }
    block = retaddr ? tcg_tb_lookup(cs->uc->tcg_ctx, retaddr) : NULL;
    if (block && block->icount != 1) {
        swtdx_alone(cs, retaddr);
    }
    engine->data_hits |= hits;
    cs->interrupt_request |= CPU_INTERRUPT_DEBUG; /* #DB before the next block */
    cpu_neg(cs)->icount_decr.u16.high = -1;
}

/* #DB for these reasons (as in DR6), and for data accesses of the same instruction. Does not return. */
void swtdx_raise_debug(CPUX86State *env, uint64_t reasons)
{
    CPUState *cs = env_cpu(env);
    struct swtdx_engine *engine = cs->uc->swtdx;

    reasons |= engine->data_hits;
    engine->data_hits = 0;
    cs->interrupt_request &= ~CPU_INTERRUPT_DEBUG;
    engine->debug_reasons = reasons & QUALIFICATION_MASK;
    if (!(engine->current->exception_bitmap >> EXCP01_DB & 1)) {
        env->dr[6] = (env->dr[6] & ~DR6_BREAKPOINTS) | engine->debug_reasons;
        env->dr[7] &= ~(target_ulong)DR7_GD;
    }
    raise_exception(env, EXCP01_DB);
}

/* Whether #DB for a data access waits: MOV SS or POP SS made it, and #DB follows the next instruction (SDM volume
 * 3, 6.8.3). */
bool swtdx_debug_waits(CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;

    return env->hflags & HF_MOV_SS_MASK;
}

/* VMX keeps such a #DB in the field "pending debug exceptions" while the guest is out. */
void swtdx_load_pending_debug(swtdx_cpu *cpu)
{
    CPUState *cs = cpu->engine->uc->cpu;
    CPUX86State *env = cs->env_ptr;
    uint32_t hits = 0;
    int n;

    for (n = 0; n < BREAKPOINTS && cpu->pending_debug; n++) { /* but those that were taken out meanwhile */
        hits |= cpu->pending_debug & on_data(env, n) << n;
    }
    cpu->engine->data_hits = hits;
    cpu->pending_debug = 0;
    if (hits) {
        cs->interrupt_request |= CPU_INTERRUPT_DEBUG;
    } else {
        cs->interrupt_request &= ~CPU_INTERRUPT_DEBUG;
    }
}

void swtdx_save_pending_debug(swtdx_cpu *cpu)
{
    CPUState *cs = cpu->engine->uc->cpu;

    if ((cs->interrupt_request & CPU_INTERRUPT_DEBUG) && swtdx_debug_waits(cs)) {
        cpu->pending_debug = cpu->engine->data_hits;
    }
}

/* INT1: a #DB without a reason, after the instruction. */
void helper_swtdx_int1(CPUX86State *env)
{
    swtdx_raise_debug(env, 0);
}

/* TCG stopped for a breakpoint: before an instruction, or after a data access. */
void swtdx_debug_stop(CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;
    target_ulong pc = env->segs[R_CS].base + env->eip;
    uint32_t hits = 0;
    int n;

    for (n = 0; n < BREAKPOINTS; n++) {
        hits |= (enabled(env, n) && type_of(env, n) == TYPE_EXECUTE && env->dr[n] == pc) << n;
    }
    if (hits || cs->uc->swtdx->data_hits) {
        swtdx_raise_debug(env, hits);
    }
}
