/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine: its life, whose turn it is, and the run loop.
 *
 * A processor runs one virtual CPU at a time. A thread that waits when a slice is over asks the one inside to make room, which
 * it does between two translation blocks and without telling its caller. TCG is entered directly (cpu_exec), never
 * through uc_emu_start.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/tb-hash.h"
#include "exec/ram_addr.h"
#include "exec/memory.h"
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include "swtdx_internal.h"
#include "swtdx_host.h"

#define SLICE_NS 2000000
#define SPIN_SLICE_NS 20000
#define LINGER_NS 100000
#define WAIT_NS 200000
#ifndef CODE_BUFFER_BYTES
#define CODE_BUFFER_BYTES (256u << 20)
#endif

void *swtdx_host_page(struct uc_struct *uc, ram_addr_t ram_addr);

static __thread swtdx_engine *executing;
static struct sigaction previous_segv, previous_bus;
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;

/* ---- host faults: the caller unmapped memory that a guest uses ---- */

static void on_host_fault(int number, siginfo_t *info, void *context)
{
    struct sigaction *previous = number == SIGSEGV ? &previous_segv : &previous_bus;
    swtdx_engine *engine = executing;
    uint8_t *address = info->si_addr;
    size_t i;

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

/* Catch host faults until swtdx_unguard(); the macro, since its frame must live on. */
void swtdx_set_executing(swtdx_engine *engine)
{
    executing = engine;
}

bool swtdx_is_executing(void)
{
    return executing != NULL;
}

/* ---- life ---- */

/* What TCG executes is what src/swtdx/cpu/cpuid.py offers, and all else is #UD, whatever the model TCG was started with. */
static void offer_features(CPUX86State *env)
{
    memset(env->features, 0, sizeof(env->features));
    env->features[FEAT_1_EDX] = CPUID_FP87 | CPUID_VME | CPUID_DE | CPUID_PSE | CPUID_TSC | CPUID_MSR | CPUID_PAE | CPUID_MCE |
        CPUID_CX8 | CPUID_APIC | CPUID_SEP | CPUID_MTRR | CPUID_PGE | CPUID_MCA | CPUID_CMOV | CPUID_PAT | CPUID_PSE36 |
        CPUID_CLFLUSH | CPUID_MMX | CPUID_FXSR | CPUID_SSE | CPUID_SSE2 | CPUID_SS;
    env->features[FEAT_1_ECX] = CPUID_EXT_SSE3 | CPUID_EXT_PCLMULQDQ | CPUID_EXT_SSSE3 | CPUID_EXT_CX16 | CPUID_EXT_SSE41 |
        CPUID_EXT_SSE42 | CPUID_EXT_POPCNT | CPUID_EXT_MOVBE | CPUID_EXT_AES | CPUID_EXT_XSAVE | CPUID_EXT_RDRAND | CPUID_EXT_X2APIC;
    env->features[FEAT_7_0_EBX] = CPUID_7_0_EBX_FSGSBASE | CPUID_7_0_EBX_SMEP | CPUID_7_0_EBX_ERMS | CPUID_7_0_EBX_ADX |
        CPUID_7_0_EBX_SMAP | CPUID_7_0_EBX_CLFLUSHOPT | CPUID_7_0_EBX_CLWB | CPUID_7_0_EBX_RDSEED;
    env->features[FEAT_7_0_ECX] = CPUID_7_0_ECX_LA57 | CPUID_7_0_ECX_PKU;
    env->features[FEAT_8000_0001_EDX] = CPUID_EXT2_SYSCALL | CPUID_EXT2_NX | CPUID_EXT2_PDPE1GB | CPUID_EXT2_RDTSCP | CPUID_EXT2_LM;
    env->features[FEAT_8000_0001_ECX] = CPUID_EXT3_LAHF_LM | CPUID_EXT3_ABM;
    env->features[FEAT_XSAVE] = CPUID_XSAVE_XSAVEOPT | CPUID_XSAVE_XGETBV1;
    env->features[FEAT_XSAVE_COMP_LO] = XSTATE_FP_MASK | XSTATE_SSE_MASK | XSTATE_PKRU_MASK;
    env->cpuid_level = 0x24;
    env->cpuid_vendor1 = CPUID_VENDOR_INTEL_1;
    env->cpuid_vendor2 = CPUID_VENDOR_INTEL_2;
    env->cpuid_vendor3 = CPUID_VENDOR_INTEL_3;
}

/* Only SSE instructions demand an alignment of TCG: 16 bytes. */
static void QEMU_NORETURN unaligned_access(CPUState *cs, vaddr address, MMUAccessType kind, int mmu_index, uintptr_t retaddr)
{
    raise_exception_err_ra(cs->env_ptr, EXCP0D_GPF, 0, retaddr);
}

/* The state after reset (SDM volume 3, table 10-1): real mode at the reset vector. */
static void power_on(CPUX86State *env)
{
    int i;

    env->hflags = HF_ADDSEG_MASK | HF_GUEST_MASK; /* guest mode is entered once and never left */
    env->hflags2 = HF2_GIF_MASK;
    env->efer = 0;
    memset(env->regs, 0, sizeof(env->regs));
    memset(env->cr, 0, sizeof(env->cr));
    env->cr[0] = 0x60000010;
    env->eip = SWTDX_RESET_RIP;
    env->vm_vmcb = SWTDX_SCRATCH;
    for (i = 0; i < 6; i++) {
        env->segs[i] = (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK };
    }
    env->segs[R_CS] = (SegmentCache){ .selector = 0xf000, .base = 0xffff0000, .limit = 0xffff,
        .flags = DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_R_MASK | DESC_A_MASK };
    env->ldt = (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | 2 << DESC_TYPE_SHIFT };
    env->tr = (SegmentCache){ .limit = 0xffff, .flags = DESC_P_MASK | 11 << DESC_TYPE_SHIFT };
    env->gdt = env->idt = (SegmentCache){ .limit = 0xffff };
    env->a20_mask = ~0;
    env->dr[6] = DR6_FIXED_1;
    env->dr[7] = DR7_FIXED_1;
    env->xcr0 = XSTATE_FP_MASK;
    env->pat = 0x0007040600070406ull;
    env->old_exception = -1;
    cpu_load_eflags(env, 2, ~0);
    for (i = 0; i < 8; i++) {
        env->fptags[i] = 1;
    }
    cpu_set_fpuc(env, 0x37f);
    cpu_set_mxcsr(env, 0x1f80);
    x86_update_hflags(env);
}

swtdx_engine *swtdx_engine_new(void *ram, uint64_t size, uint64_t tsc_ratio)
{
    swtdx_engine *engine = calloc(1, sizeof(*engine));
    struct uc_struct *uc = NULL;
    CPUX86State *env;

    if (!engine || uc_open(UC_ARCH_X86, UC_MODE_64, &uc) != UC_ERR_OK) {
        free(engine);
        return NULL;
    }
    engine->uc = uc;
    engine->ram = ram;
    engine->size = size;
    engine->tsc_ratio = tsc_ratio;
    engine->scratch = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uc_ctl(uc, UC_CTL_WRITE(UC_CTL_CPU_MODEL, 1), UC_CPU_X86_EPYC_ROME);
    uc_ctl(uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), CODE_BUFFER_BYTES);
    if (engine->scratch == MAP_FAILED ||
        uc_mem_map_ptr(uc, 0, size, UC_PROT_ALL, ram) != UC_ERR_OK ||
        uc_mem_map_ptr(uc, SWTDX_SCRATCH, 4096, UC_PROT_READ | UC_PROT_WRITE, engine->scratch) != UC_ERR_OK) {
        uc_close(uc);
        free(engine);
        return NULL;
    }
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_cond_init(&engine->turn, NULL);
    env = uc->cpu->env_ptr;
    CPU_GET_CLASS(uc->cpu)->do_unaligned_access = unaligned_access;
    offer_features(env);
    power_on(env);
    engine->reset_state = malloc(offsetof(CPUX86State, end_reset_fields));
    memcpy(engine->reset_state, env, offsetof(CPUX86State, end_reset_fields));
    uc->nested_level = 1; /* one level of emulation, ours, for good */
    uc->swtdx = engine;
    pthread_once(&handlers_once, install_handlers);
    return engine;
}

void swtdx_engine_free(swtdx_engine *engine)
{
    if (engine) {
        swtdx_acquire(engine);
        engine->uc->nested_level = 0;
        engine->uc->swtdx = NULL;
        uc_close(engine->uc);
        munmap(engine->scratch, 4096);
        swtdx_drop_snapshots(engine);
        free(engine->snapshots);
        free(engine->regions);
        free(engine->reset_state);
        pthread_cond_destroy(&engine->turn);
        free(engine);
    }
}

/* ---- physical memory ---- */

int swtdx_map(swtdx_engine *engine, uint64_t hpa, void *host, uint64_t length)
{
    struct swtdx_region *regions;
    size_t at;
    int result = -1;

    swtdx_acquire(engine);
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
    swtdx_release(engine);
    return result;
}

int swtdx_unmap(swtdx_engine *engine, uint64_t hpa, uint64_t length)
{
    size_t at;
    int result = -1;

    swtdx_acquire(engine);
    for (at = 0; at < engine->nregions; at++) {
        if (engine->regions[at].hpa == hpa && engine->regions[at].length == length) {
            tb_flush(engine->uc->cpu);
            swtdx_drop_snapshots(engine);
            uc_mem_unmap(engine->uc, hpa, length);
            memmove(engine->regions + at, engine->regions + at + 1, (engine->nregions - at - 1) * sizeof(*engine->regions));
            engine->nregions--;
            result = 0;
            break;
        }
    }
    swtdx_release(engine);
    return result;
}

void *swtdx_host_page(struct uc_struct *uc, ram_addr_t ram_addr)
{
    return (void *)(uintptr_t)ram_addr;
}

void swtdx_forget_code(swtdx_engine *engine, uint64_t hpa, uint64_t length)
{
    void *host = swtdx_host_pointer(engine, hpa, length);
    ram_addr_t ram_addr = (uintptr_t)host;

    if (host) {
        swtdx_acquire(engine);
        tb_invalidate_phys_range(engine->uc, ram_addr, ram_addr + length);
        swtdx_release(engine);
    }
}

void swtdx_invept(swtdx_engine *engine)
{
    __atomic_fetch_add(&engine->flush_wanted, 1, __ATOMIC_ACQ_REL);
    if (engine->running) {
        cpu_exit(engine->uc->cpu);
    }
}

uint64_t swtdx_walks(const swtdx_engine *engine)
{
    return engine->walks;
}

uint64_t swtdx_host_tsc(void)
{
    return cpu_get_host_ticks();
}

void swtdx_set_poison(swtdx_engine *engine, const uint8_t *pages, uint64_t count)
{
    engine->poisoned_pages = count ? pages : NULL;
    swtdx_invept(engine);
}

/* ---- whose turn ----
 *
 * The processor is free or busy; threads that find it busy queue up. A virtual CPU that gets it begins a slice. When it
 * exits before the slice is over it usually comes back at once (its caller has dealt with the exit), so it keeps the
 * slice: others leave the processor alone for LINGER_NS. It gives the slice up when it has used it, or on PAUSE, which a
 * guest executes while it waits for another one.
 *
 * Not all that waits executes PAUSE: TDVF parks its processors in a bare loop around a load. A virtual CPU whose
 * registers at the end of a slice are what they were at the end of an earlier one, without an exit or a block that stores
 * in between, is taken for such a one: until they differ it gets SPIN_SLICE_NS at a time, which is enough to look, and soon leaves as if an
 * interrupt had come for the host, which can let it sleep. (Real KVM has pause-loop exiting for the same reason; with as
 * many processors as virtual CPUs it does not matter there.)
 */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void wait_a_little(swtdx_engine *engine, uint64_t ns)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ns;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++, until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&engine->turn, &engine->mutex, &until);
}

/* The processor for something short: a register, a mapping. Ahead of those who want to run a guest. */
void swtdx_acquire(swtdx_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->short_waiters++;
    while (engine->busy) {
        engine->preempt = 1;
        cpu_exit(engine->uc->cpu);
        wait_a_little(engine, WAIT_NS);
    }
    engine->short_waiters--;
    engine->busy = true;
    pthread_mutex_unlock(&engine->mutex);
}

/* The processor to run this virtual CPU. False: it is asked to leave, so it need not enter. */
static bool acquire_to_run(swtdx_engine *engine, swtdx_cpu *cpu)
{
    bool admitted = true;

    pthread_mutex_lock(&engine->mutex);
    if (engine->busy || (engine->waiters && engine->slice_owner != cpu)) {
        uint64_t now = now_ns();
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
            wait_a_little(engine, now < engine->slice_end && engine->slice_end - now < WAIT_NS ? engine->slice_end - now : WAIT_NS);
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

static void release(swtdx_engine *engine, bool keep_slice)
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
    release(engine, true);
}

/* Whether the block at which it stopped, and continues, only reads: the last one that TCG ran from there. */
static bool only_looks(CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;
    target_ulong pc = env->segs[R_CS].base + env->eip;
    TranslationBlock *block = cs->tb_jmp_cache[tb_jmp_cache_hash_func(env->uc, pc)];

    return block && block->pc == pc && !block->swtdx_stores;
}

/* At the end of a stay: does this virtual CPU get anywhere? */
static void note_progress(swtdx_engine *engine, swtdx_cpu *cpu, bool exited)
{
    uint64_t place = cpu->rip;
    unsigned i;

    if (exited || !only_looks(engine->uc->cpu)) {
        cpu->spins = 0;
        memset(cpu->places, 0, sizeof(cpu->places));
        return;
    }
    for (i = 0; i < 16; i++) { /* FNV-1a over words */
        place = (place ^ cpu->gpr[i]) * 0x100000001b3ull;
    }
    for (i = 0; i < SWTDX_PLACES; i++) {
        if (cpu->places[i] == place) {
            cpu->spins++;
            return;
        }
    }
    cpu->spins = 0;
    cpu->places[cpu->next_place++ % SWTDX_PLACES] = place;
}

static bool others_wait(const swtdx_engine *engine)
{
    return __atomic_load_n(&engine->waiters, __ATOMIC_RELAXED) != NULL;
}

/* ---- running ---- */

void swtdx_kick(swtdx_cpu *cpu)
{
    __atomic_store_n(&cpu->kicked, 1, __ATOMIC_SEQ_CST);
    if (cpu->engine->running == cpu) {
        cpu_exit(cpu->engine->uc->cpu);
    } else {
        pthread_cond_broadcast(&cpu->engine->turn); /* it may stand in the queue; a lost wake-up costs WAIT_NS */
    }
}

/* initial-exec: the first access to other thread-local storage may allocate, which a signal handler must not do. */
static __thread swtdx_cpu *volatile entered __attribute__((tls_model("initial-exec")));
static __thread volatile sig_atomic_t signalled __attribute__((tls_model("initial-exec")));

void swtdx_signal(void)
{
    swtdx_cpu *cpu = entered;

    signalled = 1;
    if (cpu) { /* one that stands in the queue looks at this every WAIT_NS */
        __atomic_store_n(&cpu->kicked, 1, __ATOMIC_SEQ_CST);
        if (cpu->engine->running == cpu) {
            cpu_exit(cpu->engine->uc->cpu);
        }
    }
}

int swtdx_signal_pending(void)
{
    return signalled;
}

void swtdx_clear_signal(void)
{
    signalled = 0;
}

void swtdx_notify(swtdx_cpu *cpu)
{
    __atomic_store_n(&cpu->notified, 1, __ATOMIC_SEQ_CST);
    if (cpu->engine->running == cpu) {
        cpu_exit(cpu->engine->uc->cpu);
    }
}

static bool escalates(unsigned vector)
{
    return vector == 0 || vector == 8 || (vector >= 10 && vector <= 14);
}

/* Called by TCG's loop with an exception to deliver. True: leave, it was a VM exit, or the delivery has to wait. May
 * long-jump out again. */
bool swtdx_exception(CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;
    swtdx_engine *engine = cs->uc->swtdx;
    swtdx_cpu *cpu = engine->current;
    int vector = cs->exception_index;

    if (vector >= EXCP_VMEXIT) {
        cs->exception_index = -1;
        return true;
    }
    if (!cpu->delivering.valid || cpu->delivering.vector != vector) {
        /* the guest's own exception: remembered only so that it can start again if its delivery faults in EPT */
        cpu->delivering = (struct swtdx_event){
            .valid = 1, .vector = vector, .error_code = env->error_code,
            .type = env->exception_is_int ? SWTDX_EVENT_SOFTWARE_INTERRUPT : SWTDX_EVENT_HARDWARE_EXCEPTION,
            .has_error = !env->exception_is_int && swtdx_has_error_code(vector),
            .instruction_length = env->exception_is_int ? env->exception_next_eip - env->eip : 0,
        };
    }
    if (unlikely(cpu->kicked || engine->preempt)) {
        /* Here, not only between blocks: a delivery that causes the next one never reaches a block. stay() sees why. */
        cpu->event = cpu->delivering;
        cpu->delivering.valid = 0;
        cs->exception_index = -1;
        return true;
    }
    if (cpu->delivering.type == SWTDX_EVENT_EXTERNAL || cpu->delivering.type == SWTDX_EVENT_NMI) {
        if (cpu->delivering.type == SWTDX_EVENT_NMI) {
            env->hflags2 |= HF2_NMI_MASK;
        }
        do_interrupt_x86_hardirq(env, vector, 1);
        env->old_exception = -1;
    } else {
        CPU_GET_CLASS(cs)->do_interrupt(cs);
    }
    cpu->delivering.valid = 0;
    cs->exception_index = -1;
    return false;
}

static void arm_event(CPUState *cs, swtdx_cpu *cpu)
{
    CPUX86State *env = cs->env_ptr;
    struct swtdx_event *event = &cpu->event;
    bool software = event->type >= SWTDX_EVENT_SOFTWARE_INTERRUPT;

    cs->exception_index = event->vector;
    env->error_code = event->has_error ? event->error_code : 0;
    env->exception_is_int = software;
    env->exception_next_eip = env->eip + event->instruction_length;
    env->old_exception = event->type == SWTDX_EVENT_HARDWARE_EXCEPTION && escalates(event->vector) ? event->vector : -1;
    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    cpu->delivering = *event;
    event->valid = 0;
}

enum outcome { EXITED, PREEMPTED, YIELDED };

/* One stay inside. */
static enum outcome stay(swtdx_engine *engine, swtdx_cpu *cpu)
{
    struct uc_struct *uc = engine->uc;
    CPUState *cs = uc->cpu;
    CPUX86State *env = cs->env_ptr;

    uc->invalid_error = UC_ERR_OK;
    uc->size_recur_mem = 0;
    uc->stop_request = uc->quit_request = false;
    cs->stop = cs->stopped = false;
    cs->created = true;
    for (;;) {
        uint32_t trap = cs->interrupt_request & CPU_INTERRUPT_DEBUG;

        cs->halted = 0;
        cs->exit_request = trap != 0; /* the #DB of the last instruction comes first, then back here */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (!trap && __atomic_exchange_n(&cpu->kicked, 0, __ATOMIC_SEQ_CST)) {
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            return EXITED;
        }
        if (!trap && engine->preempt) {
            return PREEMPTED;
        }
        if (engine->flush_done != engine->flush_wanted) {
            engine->flush_done = engine->flush_wanted;
            tlb_flush(cs);
        }
        if (cpu->event.valid) {
            arm_event(cs, cpu);
        }
        cpu->notified = 0;
        swtdx_sync_posted(cpu);
        swtdx_evaluate_interrupts(cpu, cs);
        cs->interrupt_request = trap | (cs->interrupt_request & CPU_INTERRUPT_VIRQ) | (cpu->interrupt_window ? CPU_INTERRUPT_HARD : 0) |
                                (cpu->nmi_window ? CPU_INTERRUPT_NMI : 0);
        cpu_exec(uc, cs);
        if (engine->exited) {
            return EXITED;
        }
        if (uc->invalid_error) { /* an address without memory behind it, past every check: never seen, never ignored */
            uc->invalid_error = UC_ERR_OK;
            cpu->exit.physical_address = uc->invalid_addr;
            cpu->exit.reason = SWTDX_EXIT_EPT_MISCONFIG;
            return EXITED;
        }
        if (others_wait(engine)) { /* back without an exit: a PAUSE, or a notification */
            return YIELDED;
        }
        env->exception_is_int = 0;
    }
}

static enum outcome run_once(swtdx_engine *engine, swtdx_cpu *cpu)
{
    CPUState *cs = engine->uc->cpu;
    CPUX86State *env = cs->env_ptr;
    enum outcome outcome;

    swtdx_make_current(engine, cpu);
    memcpy(env->regs, cpu->gpr, sizeof(cpu->gpr));
    env->eip = cpu->rip;
    if (cpu->rip != cpu->exit_rip) { /* an instruction was skipped: the shadow of STI or MOV SS is over */
        env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    }
    env->intercept_exceptions = cpu->exception_bitmap;
    memset(&cpu->exit, 0, sizeof(cpu->exit));
    engine->exited = false;
    engine->data_hits = 0;
    cs->interrupt_request &= ~CPU_INTERRUPT_DEBUG;
    cs->exception_index = -1;
    engine->running = cpu;
    swtdx_enter_float(env);
    if (!swtdx_guard(engine)) {
        outcome = stay(engine, cpu);
    } else { /* registers are as of some instruction of the faulting block: the machine is beyond repair, its owner told */
        swtdx_drop_mxcsr(env);
        cpu->delivering.valid = 0;
        cs->exception_index = -1;
        tb_flush(cs);
        tlb_flush(cs);
        cpu->exit.reason = SWTDX_EXIT_HOST_FAULT;
        outcome = EXITED;
    }
    swtdx_leave_float(env);
    swtdx_unguard();
    engine->running = NULL;
    memcpy(cpu->gpr, env->regs, sizeof(cpu->gpr));
    cpu->rip = cpu->exit_rip = env->eip;
    note_progress(engine, cpu, outcome == EXITED && cpu->exit.reason != SWTDX_EXIT_EXTERNAL_INTERRUPT);
    return outcome;
}

uint32_t swtdx_run(swtdx_cpu *cpu)
{
    static __thread bool exact_timers;
    swtdx_engine *engine = cpu->engine;
    enum outcome outcome;

    if (!exact_timers) { /* those who wait for a turn wait in tens of microseconds; Linux adds 50 unless told */
        exact_timers = true;
        prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    }

    entered = cpu;
    if (signalled) { /* it came before the line above: it has kicked no thread */
        __atomic_store_n(&cpu->kicked, 1, __ATOMIC_SEQ_CST);
    }
    do {
        if (!acquire_to_run(engine, cpu)) {
            memset(&cpu->exit, 0, sizeof(cpu->exit));
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            break;
        }
        outcome = run_once(engine, cpu);
        release(engine, outcome != YIELDED);
        if (outcome != EXITED && cpu->spins >= SWTDX_PATIENCE && others_wait(engine)) {
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            break;
        }
    } while (outcome != EXITED);
    entered = NULL;
    return cpu->exit.reason;
}
