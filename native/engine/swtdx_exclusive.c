/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One virtual CPU alone.
 *
 * A locked instruction whose bytes lie in two pages is one operation of the host's processor where the pages are
 * neighbours in this process. Where they are not, all other virtual CPUs of the process stand still meanwhile, between
 * two blocks.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include "swtdx_internal.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* of the one that is alone, and of the list */
static swtdx_engine *engines;
static volatile uint32_t alone; /* a futex, for those who stand still */

/* Note an engine that begins to exist, or that goes. */
void swtdx_join(swtdx_engine *engine)
{
    pthread_mutex_lock(&mutex);
    engine->next_engine = engines;
    engines = engine;
    pthread_mutex_unlock(&mutex);
}

void swtdx_part(swtdx_engine *engine)
{
    swtdx_engine **link;

    pthread_mutex_lock(&mutex);
    for (link = &engines; *link != engine; link = &(*link)->next_engine) {
    }
    *link = engine->next_engine;
    pthread_mutex_unlock(&mutex);
}

/* Round TCG's loop. */
void swtdx_enter_translator(swtdx_engine *engine)
{
    for (;;) {
        __atomic_store_n(&engine->in_translator, 1, __ATOMIC_SEQ_CST);
        if (likely(!__atomic_load_n(&alone, __ATOMIC_SEQ_CST))) {
            return;
        }
        __atomic_store_n(&engine->in_translator, 0, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &alone, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    }
}

void swtdx_leave_translator(swtdx_engine *engine)
{
    __atomic_store_n(&engine->in_translator, 0, __ATOMIC_RELEASE);
}

/* Between these two, called by a helper, no other virtual CPU executes. No guest's fault may come in between. */
void swtdx_begin_exclusive(CPUState *cs)
{
    swtdx_engine *engine = cs->uc->swtdx, *other;

    swtdx_leave_translator(engine); /* two that want to be alone must not wait for each other */
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&alone, 1, __ATOMIC_SEQ_CST);
    for (other = engines; other; other = other->next_engine) {
        while (other != engine && __atomic_load_n(&other->in_translator, __ATOMIC_SEQ_CST)) {
            cpu_exit(other->uc->cpu);
            sched_yield();
        }
    }
    engine->exclusive = true;
}

void swtdx_end_exclusive(CPUState *cs)
{
    swtdx_engine *engine = cs->uc->swtdx;

    engine->exclusive = false;
    __atomic_store_n(&alone, 0, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &alone, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    pthread_mutex_unlock(&mutex);
    swtdx_enter_translator(engine);
}
