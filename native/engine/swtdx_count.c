/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counted instructions, for a run that can be repeated.
 *
 * A block counts each instruction when it begins, also one that faults or exits and begins again later. So the count
 * does not depend on how code is cut into blocks, which follows from kicks, debuggers and the cache. A block is not
 * entered if it is longer than what is left until count_end; then one that is short enough is (cpu_loop_exec_tb).
 *
 * The translator emits nothing of this unless told to.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "tcg/tcg.h"
#include "swtdx_internal.h"

void swtdx_start_counting(swtdx_package *package, uint64_t tsc_ratio, uint64_t seed)
{
    swtdx_engine *engine = package->engines[0];

    swtdx_acquire(engine);
    package->counting = true;
    package->random_state = seed;
    engine->tsc_ratio = tsc_ratio;
    engine->uc->tcg_ctx->swtdx_counting = true;
    engine->uc->cpu->icount_budget = 0;
    engine->count_end = 0;
    tb_flush(engine->uc->cpu);
    swtdx_release(engine);
}

uint64_t swtdx_count(const swtdx_package *package)
{
    const swtdx_engine *engine = package->engines[0];

    return engine->count_end - engine->uc->cpu->icount_budget;
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
    return engine->package->counting && engine->uc->cpu->icount_budget <= 0;
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
