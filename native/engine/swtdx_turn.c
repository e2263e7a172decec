/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whose turn it is.
 *
 * The processor is free or busy; threads that find it busy queue up. A virtual CPU that gets it begins a slice. When it
 * exits before the slice is over it usually comes back at once (its caller has dealt with the exit), so it keeps the
 * slice: others leave the processor alone for LINGER_NS. It gives the slice up when it has used it, or on PAUSE, which
 * a guest executes while it waits for another one.
 *
 * One that was found to wait for another one (swtdx_spin.c) gets SPIN_SLICE_NS at a time, which is enough to look.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include <time.h>
#include "swtdx_internal.h"

#define SLICE_NS 2000000
#define SPIN_SLICE_NS 20000
#define LINGER_NS 100000
#define WAIT_NS 200000

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void wait_for_turn(swtdx_engine *engine, uint64_t ns)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ns;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++, until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&engine->turn, &engine->mutex, &until);
}

/* Take the processor for something short: a register, a mapping. Comes before those that want to run a guest. */
void swtdx_acquire(swtdx_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->short_waiters++;
    while (engine->busy) {
        engine->preempt = 1;
        cpu_exit(engine->uc->cpu);
        wait_for_turn(engine, WAIT_NS);
    }
    engine->short_waiters--;
    engine->busy = true;
    pthread_mutex_unlock(&engine->mutex);
}

/* Take the processor to run this virtual CPU. False: it was kicked while it waited, so it need not enter. */
bool swtdx_acquire_to_run(swtdx_engine *engine, swtdx_cpu *cpu)
{
    bool admitted = true;

    pthread_mutex_lock(&engine->mutex);
    if (engine->busy || (engine->waiters && engine->slice_owner != cpu)) {
        uint64_t now = now_ns(), left;
        struct swtdx_waiter self, **link = &engine->waiters;

        if (!cpu->waiting_since) {
            cpu->waiting_since = now;
        }
        self.since = cpu->waiting_since;
        while (*link && (*link)->since <= self.since) {
            link = &(*link)->next;
        }
        self.next = *link;
        *link = &self;
        for (;;) {
            if (__atomic_exchange_n(&cpu->kicked, 0, __ATOMIC_SEQ_CST)) {
                admitted = false;
                break;
            }
            now = now_ns();
            if (!engine->busy && engine->waiters == &self &&
                (!engine->slice_owner || engine->slice_owner == cpu || now >= engine->linger_end)) {
                break;
            }
            if (engine->busy && now >= engine->slice_end && !engine->preempt) {
                engine->preempt = 1;
                cpu_exit(engine->uc->cpu);
            }
            left = now < engine->slice_end ? engine->slice_end - now : WAIT_NS;
            wait_for_turn(engine, MIN(left, WAIT_NS));
        }
        for (link = &engine->waiters; *link != &self; link = &(*link)->next) {
        }
        *link = self.next;
    }
    if (admitted) {
        cpu->waiting_since = 0;
        engine->busy = true;
        if (engine->slice_owner != cpu) {
            engine->slice_owner = cpu;
            engine->slice_end = now_ns() + (cpu->spins ? SPIN_SLICE_NS : SLICE_NS);
        }
    }
    pthread_mutex_unlock(&engine->mutex);
    return admitted;
}

void swtdx_end_turn(swtdx_engine *engine, bool keep_slice)
{
    pthread_mutex_lock(&engine->mutex);
    engine->busy = false;
    engine->preempt = 0;
    if (engine->waiters) {
        uint64_t now = now_ns();

        if (keep_slice && now < engine->slice_end) {
            engine->linger_end = now + LINGER_NS; /* those who wait look again by themselves */
        } else {
            engine->slice_owner = NULL;
        }
    }
    if (engine->short_waiters || !engine->slice_owner) {
        pthread_cond_broadcast(&engine->turn);
    }
    pthread_mutex_unlock(&engine->mutex);
}

void swtdx_release(swtdx_engine *engine)
{
    swtdx_end_turn(engine, true);
}
