/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counted instructions, for a run that can be repeated.
 *
 * Each instruction counts when it begins, also one that faults or exits and begins again later. So the count does not
 * depend on how code is cut into blocks, which follows from kicks, debuggers and the cache. A block stores how many of
 * its instructions have begun before each that may leave it or look at the time; the next block subtracts that. It is
 * not entered if it is longer than what is left until count_end; then one that is short enough is (cpu_loop_exec_tb).
 *
 * The translator emits nothing of this unless told to.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "qemu/timer.h"
#include "tcg/tcg.h"
#include "swtdx_internal.h"

/* How many instructions may begin until count_end. */
static int64_t left(const swtdx_engine *engine)
{
    return engine->uc->cpu->icount_budget - engine->uc->cpu->swtdx_begun;
}

void swtdx_start_counting(swtdx_package *package, uint64_t tsc_ratio, uint64_t seed)
{
    swtdx_engine *engine = package->engines[0];

    swtdx_acquire(engine);
    package->counting = true;
    package->random_state = seed;
    engine->tsc_ratio = tsc_ratio;
    engine->uc->tcg_ctx->swtdx_counting = true;
    engine->uc->cpu->icount_budget = engine->uc->cpu->swtdx_begun = 0;
    engine->count_end = 0;
    engine->passed = UINT64_MAX;
    tb_flush(engine->uc->cpu);
    swtdx_release(engine);
}

uint64_t swtdx_count(const swtdx_package *package)
{
    const swtdx_engine *engine = package->engines[0];

    return engine->count_end - left(engine);
}

void swtdx_set_count_end(swtdx_package *package, uint64_t end)
{
    swtdx_engine *engine = package->engines[0];

    engine->uc->cpu->icount_budget += end - engine->count_end;
    engine->count_end = end;
}

uint64_t swtdx_counted_ns(const swtdx_package *package)
{
    return swtdx_count(package) * SWTDX_INSTRUCTION_NS + package->jumped_ns;
}

void swtdx_jump(swtdx_package *package, uint64_t ns)
{
    package->jumped_ns += ns;
}

bool swtdx_count_is_over(const swtdx_engine *engine)
{
    return engine->package->counting && left(engine) <= 0;
}

/* RDRAND and RDSEED: SplitMix64. The numbers are to be the same each time; they need not be hard to guess. */
bool swtdx_counted_random(CPUX86State *env, target_ulong *number)
{
    swtdx_engine *engine = env->uc->swtdx;
    uint64_t z;

    if (!engine || !engine->package->counting) {
        return false;
    }
    z = engine->package->random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    *number = z ^ z >> 31;
    return true;
}

/* Execute the instruction in progress once more, in a block of its own. It has been counted when it began. */
void swtdx_alone(CPUState *cs, uintptr_t retaddr)
{
    cs->icount_budget += cs->uc->tcg_ctx->swtdx_counting;
    cs->cflags_next_tb = 1 | curr_cflags();
    cpu_loop_exit_restore(cs, retaddr);
}

/* How long the TLB has been used little decides its size, its size what it forgets, and that which accessed bits are
 * set again. */
int64_t swtdx_tlb_time(struct uc_struct *uc)
{
    swtdx_engine *engine = uc->swtdx;

    return engine && engine->package->counting ? (int64_t)swtdx_counted_ns(engine->package) : get_clock_realtime();
}

/*
 * Stops of a debugger, of which the guest can see nothing: neither its memory nor its debug registers change. A block
 * asks before such an instruction whether the count is another one than at the last stop.
 */
bool swtdx_set_stops(swtdx_package *package, const uint64_t *addresses, size_t count)
{
    swtdx_engine *engine = package->engines[0];
    uint64_t *stops = count ? malloc(count * sizeof(*stops)) : NULL;

    if (count && !stops) {
        return false;
    }
    swtdx_acquire(engine);
    free(engine->stops);
    engine->stops = stops;
    engine->nstops = count;
    if (count) {
        memcpy(stops, addresses, count * sizeof(*stops));
    }
    tb_flush(engine->uc->cpu);
    swtdx_release(engine);
    return true;
}

bool swtdx_stops_at(struct uc_struct *uc, target_ulong address)
{
    const swtdx_engine *engine = uc->swtdx;
    size_t at;

    for (at = 0; engine && at < engine->nstops; at++) {
        if (engine->stops[at] == address) {
            return true;
        }
    }
    return false;
}

void helper_swtdx_stop(CPUX86State *env)
{
    swtdx_engine *engine = env->uc->swtdx;
    uint64_t count = swtdx_count(engine->package);

    if (engine->passed != count) {
        engine->passed = count;
        if (engine->passes_stops) {
            return;
        }
        engine->stopped = true;
        swtdx_exit_now(env, SWTDX_EXIT_EXTERNAL_INTERRUPT, GETPC());
    }
}

bool swtdx_take_stop(swtdx_package *package)
{
    bool stopped = package->engines[0]->stopped;

    package->engines[0]->stopped = false;
    return stopped;
}

void swtdx_pass_stops(swtdx_package *package, bool pass)
{
    package->engines[0]->passes_stops = pass;
}

uint64_t swtdx_last_stop(const swtdx_package *package)
{
    return package->engines[0]->passed;
}

void swtdx_counted_state(const swtdx_package *package, uint64_t state[3])
{
    state[0] = swtdx_count(package);
    state[1] = package->jumped_ns;
    state[2] = package->random_state;
}

/* Go back, or forward, to the time at which that was read. */
void swtdx_set_counted_state(swtdx_package *package, const uint64_t state[3])
{
    swtdx_engine *engine = package->engines[0];

    engine->count_end = state[0];
    engine->uc->cpu->icount_budget = engine->uc->cpu->swtdx_begun = 0;
    package->jumped_ns = state[1];
    package->random_state = state[2];
    engine->passed = UINT64_MAX;
    engine->stopped = false;
}
