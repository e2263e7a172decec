/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Physical memory: the user memory behind it, what the engine remembers of it, and faults on it.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include <sched.h>
#include <signal.h>
#include <sys/uio.h>
#include "swtdx_internal.h"
#include "swtdx_host.h"

void *swtdx_host_page(struct uc_struct *uc, ram_addr_t ram_addr);

static __thread swtdx_engine *executing;
static __thread struct user_copy { /* what this thread copies just now */
    sigjmp_buf back;
    const uint8_t *start;
    uint64_t length;
} *copying;
static struct sigaction previous_segv, previous_bus;
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;

/* ---- mappings ---- */

int swtdx_map_one(swtdx_engine *engine, uint64_t hpa, void *host, uint64_t length)
{
    struct swtdx_region *regions;
    size_t at;
    int result = -1;

    swtdx_acquire(engine);
    pthread_rwlock_wrlock(&engine->regions_lock);
    regions = realloc(engine->regions, (engine->nregions + 1) * sizeof(*regions));
    if (regions) {
        engine->regions = regions;
        if (uc_mem_map_ptr(engine->uc, hpa, length, UC_PROT_ALL, host) == UC_ERR_OK) {
            for (at = engine->nregions; at && regions[at - 1].hpa > hpa; at--) {
                regions[at] = regions[at - 1];
            }
            regions[at] = (struct swtdx_region){ hpa, length, host };
            engine->nregions++;
            result = 0;
        }
    }
    pthread_rwlock_unlock(&engine->regions_lock);
    swtdx_release(engine);
    return result;
}

int swtdx_unmap_one(swtdx_engine *engine, uint64_t hpa, uint64_t length)
{
    size_t at;
    int result = -1;

    swtdx_acquire(engine);
    pthread_rwlock_wrlock(&engine->regions_lock);
    for (at = 0; at < engine->nregions; at++) {
        if (engine->regions[at].hpa == hpa && engine->regions[at].length == length) {
            tb_flush(engine->uc->cpu);
            swtdx_drop_snapshots(engine);
            uc_mem_unmap(engine->uc, hpa, length);
            memmove(engine->regions + at, engine->regions + at + 1,
                    (engine->nregions - at - 1) * sizeof(*engine->regions));
            engine->nregions--;
            result = 0;
            break;
        }
    }
    pthread_rwlock_unlock(&engine->regions_lock);
    swtdx_release(engine);
    return result;
}

void *swtdx_host_page(struct uc_struct *uc, ram_addr_t ram_addr)
{
    return (void *)(uintptr_t)ram_addr;
}

void swtdx_forget_code_one(swtdx_engine *engine, uint64_t hpa, uint64_t length)
{
    ram_addr_t ram_addr;
    void *host;

    swtdx_acquire(engine);
    host = swtdx_host_pointer(engine, hpa, length);
    ram_addr = (uintptr_t)host;
    if (host) {
        tb_invalidate_phys_range(engine->uc, ram_addr, ram_addr + length);
    }
    swtdx_release(engine);
}

/* Copy from user memory or to it. False: its owner has unmapped it, or does not allow this. */
static bool copy_user_memory(void *to, const void *from, uint64_t length, const void *user)
{
    struct user_copy copy = { .start = user, .length = length };
    volatile bool done = false;

    if (!sigsetjmp(copy.back, 0)) {
        copying = &copy;
        /* Not memcpy: the handler reads what is written above, and a sanitizer knows nothing of these addresses. */
        asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
        done = true;
    }
    copying = NULL;
    return done;
}

bool swtdx_read_one(swtdx_engine *engine, uint64_t hpa, void *buffer, uint64_t length)
{
    bool done = true;
    void *host;

    pthread_rwlock_rdlock(&engine->regions_lock);
    host = swtdx_host_pointer(engine, hpa, length);
    if (!host) {
        done = false;
    } else if (hpa < engine->size) {
        memcpy(buffer, host, length);
    } else if (executing == engine) { /* faults on it are caught here: no system call for each entry of a page table */
        done = copy_user_memory(buffer, host, length, host);
    } else { /* its owner may unmap it meanwhile */
        struct iovec to = { buffer, length }, from = { host, length };
        ssize_t count = process_vm_readv(getpid(), &to, 1, &from, 1, 0);

        if (count < 0 && errno != EFAULT) { /* not allowed here */
            memcpy(buffer, host, length);
        } else {
            done = count == (ssize_t)length;
        }
    }
    pthread_rwlock_unlock(&engine->regions_lock);
    return done;
}

uint32_t swtdx_ask_to_flush(swtdx_engine *engine)
{
    uint32_t wanted = __atomic_add_fetch(&engine->flush_wanted, 1, __ATOMIC_SEQ_CST);

    if (engine->running) {
        cpu_exit(engine->uc->cpu);
    }
    return wanted;
}

void swtdx_wait_for_flush(swtdx_engine *engine, uint32_t wanted)
{
    unsigned looks = 0;

    while (engine->running && (int32_t)(wanted - __atomic_load_n(&engine->flush_done, __ATOMIC_ACQUIRE)) > 0) {
        if (looks++ < 100) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}

void swtdx_invept_one(swtdx_cpu *cpu)
{
    __atomic_add_fetch(&cpu->engine->flush_wanted, 1, __ATOMIC_SEQ_CST);
}

uint64_t swtdx_host_tsc(void)
{
    return cpu_get_host_ticks();
}

/* ---- host faults: the caller unmapped memory that a guest uses ---- */

static void on_host_fault(int number, siginfo_t *info, void *context)
{
    struct sigaction *previous = number == SIGSEGV ? &previous_segv : &previous_bus;
    swtdx_engine *engine = executing;
    uint8_t *address = info->si_addr;
    size_t i;

    if (copying && address >= copying->start && address < copying->start + copying->length) {
        siglongjmp(copying->back, 1);
    }
    for (i = 0; engine && i < engine->nregions; i++) {
        if (address >= engine->regions[i].host && address < engine->regions[i].host + engine->regions[i].length) {
            siglongjmp(engine->host_fault, 1);
        }
    }
    if (previous->sa_flags & SA_SIGINFO) {
        previous->sa_sigaction(number, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* returning repeats the fault, now fatally */
    }
}

static void install_handlers(void)
{
    struct sigaction action = { .sa_sigaction = on_host_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };

    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_segv);
    sigaction(SIGBUS, &action, &previous_bus);
    swtdx_catch_float_traps();
}

/* Whether a fault of this thread comes to us: the process may have put its own handler there, or block the signal. */
static bool catches_faults(void)
{
    struct sigaction segv, bus;
    sigset_t blocked;

    return !sigaction(SIGSEGV, NULL, &segv) && segv.sa_sigaction == on_host_fault && !sigaction(SIGBUS, NULL, &bus) &&
           bus.sa_sigaction == on_host_fault && !pthread_sigmask(SIG_BLOCK, NULL, &blocked) &&
           !sigismember(&blocked, SIGSEGV) && !sigismember(&blocked, SIGBUS);
}

bool swtdx_read_user(void *buffer, const void *user, uint64_t length)
{
    return catches_faults() && copy_user_memory(buffer, user, length, user);
}

bool swtdx_write_user(void *user, const void *buffer, uint64_t length)
{
    return catches_faults() && copy_user_memory(user, buffer, length, user);
}

void swtdx_set_executing(swtdx_engine *engine)
{
    executing = engine;
}

bool swtdx_is_executing(void)
{
    return executing != NULL;
}

void swtdx_catch_host_faults(void)
{
    pthread_once(&handlers_once, install_handlers);
}
