/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Virtual CPUs that only wait for another one, and let the host's processor go meanwhile.
 *
 * Real processors have pause-loop exiting for those that execute PAUSE. Here one that has executed nothing but PAUSE
 * for PAUSE_WINDOW_NS naps. But not all that waits executes PAUSE: TDVF parks its processors in a bare loop around a
 * load. Such a loop is proved, so that one that works is never taken for it: registers that are what they were at the
 * end of an earlier slice, or at an earlier tick, are a suspicion. Then its blocks are executed one by one, and if all
 * registers come back without a store or an instruction that has another effect, it goes round like this until memory
 * changes or an interrupt comes.
 *
 * A nap ends with a kick, a notification, or by the clock; then the virtual CPU looks again, and each nap in a row is
 * twice as long as the one before.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/tb-hash.h"
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include "swtdx_internal.h"

#define SUSPICIOUS 2 /* ends of slices */
#define LOOK_BLOCKS 64
#define FIRST_NAP_NS 50000
#define LAST_NAP_NS 2000000
#define LAST_NAP_WITH_ROOM_NS 200000 /* while the host has a processor for each */
#define LAST_NAP_IN_TURNS_NS 16000000 /* a look takes the processor from another one, with all its registers */
#define PAUSE_GAP_NS 5000            /* who does more than this between two PAUSEs works */
#define PAUSE_WINDOW_NS 1000000

/* All that a block without side effects can change, and look at later. */
struct swtdx_registers {
    target_ulong gpr[CPU_NB_REGS], eip, eflags, cc_dst, cc_src, cc_src2;
    uint32_t cc_op, mxcsr, hflags;
    int32_t df;
    unsigned fpstt;
    uint16_t fpus, fpuc;
    uint8_t fptags[8];
    FPReg fpregs[8];
    ZMMReg vectors[CPU_NB_REGS];
};

void swtdx_look(CPUState *cs, TranslationBlock *block);

static void note_registers(struct swtdx_registers *kept, const CPUX86State *env)
{
    memset(kept, 0, sizeof(*kept));
    memcpy(kept->gpr, env->regs, sizeof(kept->gpr));
    kept->eip = env->eip;
    kept->eflags = env->eflags;
    kept->cc_dst = env->cc_dst;
    kept->cc_src = env->cc_src;
    kept->cc_src2 = env->cc_src2;
    kept->cc_op = env->cc_op;
    kept->mxcsr = env->mxcsr;
    kept->hflags = env->hflags;
    kept->df = env->df;
    kept->fpstt = env->fpstt;
    kept->fpus = env->fpus;
    kept->fpuc = env->fpuc;
    memcpy(kept->fptags, env->fptags, sizeof(kept->fptags));
    memcpy(kept->fpregs, env->fpregs, sizeof(kept->fpregs));
    memcpy(kept->vectors, env->xmm_regs, sizeof(kept->vectors));
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static bool has_company(const swtdx_engine *engine)
{
    return __atomic_load_n(&engine->package->ncpus, __ATOMIC_RELAXED) > 1 && !engine->package->counting;
}

/* Whether the block at which it stopped, and continues, is known to store. After a flush of the TLB it is not known. */
static bool is_storing_block(CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;
    target_ulong pc = env->segs[R_CS].base + env->eip;
    TranslationBlock *block = cs->tb_jmp_cache[tb_jmp_cache_hash_func(env->uc, pc)];

    return block && block->pc == pc && block->swtdx_stores;
}

static void does_not_wait(swtdx_cpu *cpu)
{
    cpu->spins = cpu->nap_ns = 0;
    cpu->pauses = false;
    memset(cpu->spin_states, 0, sizeof(cpu->spin_states));
}

/* At the end of a pass: count how often this virtual CPU was here before, without an exit or a store in between. */
void swtdx_detect_spin(swtdx_engine *engine, swtdx_cpu *cpu, bool exited)
{
    uint64_t place = cpu->rip;
    unsigned i;

    if (exited) {
        cpu->pause_since = 0;
        does_not_wait(cpu);
        return;
    }
    if (engine->waits || (cpu->pauses && now_ns() - cpu->paused_at <= PAUSE_GAP_NS)) {
        return;
    }
    if (cpu->pauses || is_storing_block(engine->uc->cpu)) {
        does_not_wait(cpu);
        return;
    }
    for (i = 0; i < 16; i++) { /* FNV-1a over words */
        place = (place ^ cpu->gpr[i]) * 0x100000001b3ull;
    }
    for (i = 0; i < SWTDX_SPIN_STATES; i++) {
        if (cpu->spin_states[i] == place) {
            cpu->spins++;
            return;
        }
    }
    does_not_wait(cpu);
    cpu->spin_states[cpu->next_spin_state++ % SWTDX_SPIN_STATES] = place;
}

/* Before TCG is entered: execute block by block if this may be a loop that waits. */
void swtdx_begin_look(swtdx_engine *engine, swtdx_cpu *cpu)
{
    CPUState *cs = engine->uc->cpu;

    engine->waits = false;
    cs->swtdx_look = 0;
    if (unlikely(cpu->spins >= SUSPICIOUS) && !cpu->pauses && has_company(engine)) {
        if (!engine->looked_at) {
            engine->looked_at = malloc(sizeof(*engine->looked_at));
        }
        if (engine->looked_at) {
            note_registers(engine->looked_at, cs->env_ptr);
            cs->swtdx_look = LOOK_BLOCKS;
        }
    }
}

/* Called by TCG's loop before a block is executed, while it looks. */
void swtdx_look(CPUState *cs, TranslationBlock *block)
{
    swtdx_engine *engine = cs->uc->swtdx;
    CPUX86State *env = cs->env_ptr;
    struct swtdx_registers now;
    unsigned done = LOOK_BLOCKS - cs->swtdx_look;

    if (done && env->eip == engine->looked_at->eip) {
        note_registers(&now, env);
        if (!memcmp(&now, engine->looked_at, sizeof(now))) {
            engine->waits = true;
            cs->swtdx_look = 0;
            cs->exit_request = 1;
            return;
        }
    }
    if (block->swtdx_stores || !--cs->swtdx_look) { /* it works, or its loop is too long for this */
        cs->swtdx_look = 0;
        does_not_wait(engine->current);
        return;
    }
    if (!(done & (done - 1))) { /* the loop may begin behind where it stopped */
        note_registers(engine->looked_at, env);
    }
}

/* It has executed PAUSE. True: it does nothing else. */
bool swtdx_paused(swtdx_engine *engine, swtdx_cpu *cpu)
{
    CPUX86State *env = engine->uc->cpu->env_ptr;
    uint64_t now;

    if (!has_company(engine)) {
        return false;
    }
    now = now_ns();
    if (!cpu->pause_since || cpu->pause_rip != env->eip || now - cpu->paused_at > PAUSE_GAP_NS) {
        cpu->pause_since = now;
        cpu->pause_rip = env->eip;
        cpu->pauses = false;
        cpu->nap_ns = 0;
    }
    cpu->paused_at = now;
    cpu->pauses = now - cpu->pause_since >= PAUSE_WINDOW_NS;
    return cpu->pauses;
}

/* It waits: sleep a little, unless there is something to do. */
void swtdx_nap(swtdx_cpu *cpu)
{
    swtdx_package *package = cpu->engine->package;
    uint64_t most = !package->parallel ? LAST_NAP_IN_TURNS_NS : package->crowded ? LAST_NAP_NS : LAST_NAP_WITH_ROOM_NS;
    uint32_t bell = __atomic_load_n(&cpu->bell, __ATOMIC_SEQ_CST);
    struct timespec pause;

    cpu->nap_ns = MIN(cpu->nap_ns ? 2 * cpu->nap_ns : FIRST_NAP_NS, most);
    pause = (struct timespec){ .tv_nsec = cpu->nap_ns };
    __atomic_store_n(&cpu->naps, 1, __ATOMIC_SEQ_CST);
    cpu->engine->naps = true;
    if (!__atomic_load_n(&cpu->kicked, __ATOMIC_SEQ_CST) && !__atomic_load_n(&cpu->notified, __ATOMIC_SEQ_CST)) {
        syscall(SYS_futex, &cpu->bell, FUTEX_WAIT_PRIVATE, bell, &pause, NULL, 0);
    }
    cpu->engine->naps = false;
    __atomic_store_n(&cpu->naps, 0, __ATOMIC_SEQ_CST);
    if (cpu->pauses) {
        cpu->paused_at = now_ns();
    }
}
