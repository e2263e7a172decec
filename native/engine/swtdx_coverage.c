/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Coverage: the address of each block that is translated.
 *
 * TCG translates a block when the guest first reaches it, and keeps it. So who asks after each of many short runs from
 * one snapshot learns what no run before has reached, and execution costs nothing more. A block that had to be
 * forgotten is told again. The very first block of an engine is not told: Unicorn's hook is for a block after another.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "swtdx_internal.h"

#define MOST_BLOCKS (1u << 20) /* between two questions; what comes then is not told */

struct swtdx_coverage {
    pthread_spinlock_t lock;
    size_t count;
    uint64_t blocks[MOST_BLOCKS];
};

/* TCG has translated a block (under the engine's turn). */
static void translated(struct uc_struct *uc, uc_tb *block, uc_tb *before, void *opaque)
{
    struct swtdx_coverage *coverage = opaque;

    (void)uc;
    (void)before;
    pthread_spin_lock(&coverage->lock);
    if (coverage->count < MOST_BLOCKS) {
        coverage->blocks[coverage->count++] = block->pc;
    }
    pthread_spin_unlock(&coverage->lock);
}

bool swtdx_cover_one(swtdx_engine *engine)
{
    struct swtdx_coverage *coverage = engine->package->coverage;
    uc_hook hook;
    bool done;

    if (!coverage) {
        return true;
    }
    swtdx_acquire(engine);
    done = uc_hook_add(engine->uc, &hook, UC_HOOK_EDGE_GENERATED, translated, coverage, 1, 0) == UC_ERR_OK;
    swtdx_release(engine);
    return done;
}

bool swtdx_cover(swtdx_package *package)
{
    struct swtdx_coverage *coverage;
    bool done = true;
    unsigned i;

    pthread_mutex_lock(&package->mutex);
    if (!package->coverage) {
        coverage = calloc(1, sizeof(*coverage));
        done = coverage && !pthread_spin_init(&coverage->lock, PTHREAD_PROCESS_PRIVATE);
        if (done) {
            package->coverage = coverage;
        } else {
            free(coverage);
        }
        for (i = 0; done && i < package->nengines; i++) {
            done = swtdx_cover_one(package->engines[i]);
        }
    }
    pthread_mutex_unlock(&package->mutex);
    return done;
}

size_t swtdx_covered(swtdx_package *package, uint64_t *blocks, size_t most)
{
    struct swtdx_coverage *coverage = package->coverage;
    size_t count;

    if (!coverage) {
        return 0;
    }
    pthread_spin_lock(&coverage->lock);
    count = coverage->count < most ? coverage->count : most;
    memcpy(blocks, coverage->blocks + coverage->count - count, count * sizeof(*blocks));
    coverage->count -= count;
    pthread_spin_unlock(&coverage->lock);
    return count;
}
