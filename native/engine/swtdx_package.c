/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A package: the memory of one machine, and the engines that execute on it.
 *
 * With one engine virtual CPUs take turns on it (swtdx_turn.c). With several, each virtual CPU has one of its own, as
 * long as there are few enough, and all execute at once. An engine that a virtual CPU has left is given to the next
 * one; engines go with their package, so that a visit to all of them needs no lock.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include <sched.h>
#include <time.h>
#include "swtdx_internal.h"

#define TICK_NS 10000000

swtdx_package *swtdx_package_new(void *ram, uint64_t size, uint64_t tsc_ratio, uint32_t pkru_offset, bool parallel)
{
    swtdx_package *package = calloc(1, sizeof(*package));

    if (!package) {
        return NULL;
    }
    package->ram = ram;
    package->size = size;
    package->tsc_ratio = tsc_ratio;
    package->pkru_offset = pkru_offset;
    package->parallel = parallel;
    pthread_mutex_init(&package->mutex, NULL);
    package->engines[0] = swtdx_engine_new(package, 0);
    if (!package->engines[0] || (parallel && !swtdx_make_marks(package))) {
        swtdx_package_free(package);
        return NULL;
    }
    package->nengines = 1;
    return package;
}

void swtdx_package_free(swtdx_package *package)
{
    unsigned i;

    if (!package) {
        return;
    }
    if (package->has_ticker && package->ticker_process == getpid()) { /* a child of fork() has no such thread */
        __atomic_store_n(&package->closing, true, __ATOMIC_RELEASE);
        pthread_join(package->ticker, NULL);
    }
    for (i = 0; i < SWTDX_ENGINES; i++) {
        swtdx_engine_free(package->engines[i]);
    }
    swtdx_drop_marks(package);
    free(package->coverage);
    pthread_mutex_destroy(&package->mutex);
    free(package);
}

/* While more virtual CPUs execute than the host has processors, each stops for a moment every 10 ms: one that polls
 * for another one is found (swtdx_spin.c), and lets it run. */
static void *tick(void *opaque)
{
    swtdx_package *package = opaque;
    struct timespec pause = { .tv_nsec = TICK_NS };
    cpu_set_t available;
    unsigned i, running, count;

    while (!__atomic_load_n(&package->closing, __ATOMIC_ACQUIRE)) {
        count = __atomic_load_n(&package->nengines, __ATOMIC_ACQUIRE);
        for (i = running = 0; i < count; i++) {
            running += package->engines[i]->running != NULL || package->engines[i]->naps;
        }
        package->crowded = sched_getaffinity(0, sizeof(available), &available) || running > CPU_COUNT(&available);
        for (i = 0; package->crowded && i < count; i++) {
            if (package->engines[i]->running) {
                package->engines[i]->preempt = 1;
                cpu_exit(package->engines[i]->uc->cpu);
            }
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* Called by the translator: whether other virtual CPUs may execute at the same time. */
bool swtdx_in_parallel(struct uc_struct *uc)
{
    swtdx_engine *engine = uc->swtdx;

    return engine && __atomic_load_n(&engine->package->nengines, __ATOMIC_RELAXED) > 1;
}

/* Called with the package's lock held. One more engine with all that is mapped; NULL if there is no memory. */
static swtdx_engine *add_engine(swtdx_package *package)
{
    swtdx_engine *first = package->engines[0], *engine = swtdx_engine_new(package, package->nengines);
    size_t i;

    for (i = 0; engine && i < first->nregions; i++) {
        if (swtdx_map_one(engine, first->regions[i].hpa, first->regions[i].host, first->regions[i].length)) {
            swtdx_engine_free(engine);
            return NULL;
        }
    }
    if (engine && !swtdx_cover_one(engine)) {
        swtdx_engine_free(engine);
        return NULL;
    }
    if (engine) {
        engine->poisoned_pages = first->poisoned_pages;
        package->engines[package->nengines] = engine;
        __atomic_store_n(&package->nengines, package->nengines + 1, __ATOMIC_RELEASE);
        if (package->nengines == 2) { /* the first one has code for one that is alone */
            swtdx_forget_all_code(first);
        }
        if (!package->has_ticker) {
            package->ticker_process = getpid();
            package->has_ticker = !pthread_create(&package->ticker, NULL, tick, package);
        }
    }
    return engine;
}

/* The engine for a new virtual CPU: a free one, a new one, or the one with the fewest. */
swtdx_engine *swtdx_take_engine(swtdx_package *package)
{
    swtdx_engine *best, *engine;
    unsigned i;

    pthread_mutex_lock(&package->mutex);
    best = package->engines[0];
    for (i = 1; i < package->nengines; i++) {
        if (package->engines[i]->users < best->users) {
            best = package->engines[i];
        }
    }
    if (package->parallel && best->users && package->nengines < SWTDX_ENGINES && (engine = add_engine(package))) {
        best = engine;
    }
    best->users++;
    package->ncpus++;
    pthread_mutex_unlock(&package->mutex);
    return best;
}

void swtdx_leave_engine(swtdx_engine *engine)
{
    pthread_mutex_lock(&engine->package->mutex);
    engine->users--;
    engine->package->ncpus--;
    pthread_mutex_unlock(&engine->package->mutex);
}

int swtdx_map(swtdx_package *package, uint64_t hpa, void *host, uint64_t length)
{
    int result = 0;
    unsigned i;

    pthread_mutex_lock(&package->mutex);
    for (i = 0; i < package->nengines && !result; i++) {
        result = swtdx_map_one(package->engines[i], hpa, host, length);
    }
    if (result) {
        for (i--; i--;) {
            swtdx_unmap_one(package->engines[i], hpa, length);
        }
    }
    pthread_mutex_unlock(&package->mutex);
    return result;
}

int swtdx_unmap(swtdx_package *package, uint64_t hpa, uint64_t length)
{
    int result = 0;
    unsigned i;

    pthread_mutex_lock(&package->mutex);
    for (i = 0; i < package->nengines; i++) {
        result |= swtdx_unmap_one(package->engines[i], hpa, length);
    }
    pthread_mutex_unlock(&package->mutex);
    return result;
}

/* What must have happened by the time that this returns: each guest that runs has reached the end of a block, and has
 * dropped its translations. Memory that was taken away is put to another use then. */
void swtdx_invept(swtdx_package *package)
{
    unsigned i, count = __atomic_load_n(&package->nengines, __ATOMIC_ACQUIRE);
    uint32_t wanted[SWTDX_ENGINES];

    for (i = 0; i < count; i++) {
        wanted[i] = swtdx_ask_to_flush(package->engines[i]);
    }
    for (i = 0; i < count; i++) {
        swtdx_wait_for_flush(package->engines[i], wanted[i]);
    }
}

void swtdx_set_poison(swtdx_package *package, const uint8_t *pages, uint64_t count)
{
    unsigned i;

    pthread_mutex_lock(&package->mutex);
    for (i = 0; i < package->nengines; i++) {
        package->engines[i]->poisoned_pages = count ? pages : NULL;
    }
    pthread_mutex_unlock(&package->mutex);
    swtdx_invept(package);
}

void swtdx_set_tsc_bias(swtdx_package *package, uint64_t bias)
{
    package->tsc_bias = bias;
}

uint64_t swtdx_walks(const swtdx_package *package)
{
    uint64_t walks = 0;
    unsigned i;

    for (i = 0; i < package->nengines; i++) {
        walks += package->engines[i]->walks;
    }
    return walks;
}

bool swtdx_read(swtdx_package *package, uint64_t hpa, void *buffer, uint64_t length)
{
    return swtdx_read_one(package->engines[0], hpa, buffer, length);
}
