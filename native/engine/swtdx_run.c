/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The run loop: kicks and signals, events to deliver, and one pass through TCG after the other until the guest exits.
 *
 * TCG is entered directly (cpu_exec), never through uc_emu_start. It comes back for an exit, or between two translation
 * blocks: for a kick, a notification, or a thread that waits for its turn (swtdx_turn.c).
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include "swtdx_internal.h"
#include "swtdx_host.h"

void swtdx_kick(swtdx_cpu *cpu)
{
    __atomic_store_n(&cpu->kicked, 1, __ATOMIC_SEQ_CST);
    swtdx_ring(cpu);
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
        swtdx_ring(cpu);
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
    swtdx_ring(cpu);
    if (cpu->engine->running == cpu) {
        cpu_exit(cpu->engine->uc->cpu);
    }
}

static bool escalates(unsigned vector)
{
    return vector == 0 || vector == 8 || (vector >= 10 && vector <= 14);
}

/* INT3 and INTO are software exceptions, INT n is a software interrupt, also INT 3 (SDM table 26-15). */
static uint8_t type_of_own(CPUX86State *env, int vector)
{
    if (!env->exception_is_int) {
        return SWTDX_EVENT_HARDWARE_EXCEPTION;
    }
    return (vector == EXCP03_INT3 || vector == EXCP04_INTO) && env->exception_next_eip - env->eip == 1
               ? SWTDX_EVENT_SOFTWARE_EXCEPTION
               : SWTDX_EVENT_SOFTWARE_INTERRUPT;
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
    if (vector != EXCP01_DB) { /* a trap, behind the access; else the instruction has not locked anything after all */
        engine->bus_locked = false;
    }
    if (!cpu->delivering.valid || cpu->delivering.vector != vector) {
        /* the guest's own exception: remembered only so that it can start again if its delivery faults in EPT */
        cpu->delivering = (struct swtdx_event){
            .valid = 1,
            .vector = vector,
            .error_code = env->error_code,
            .type = type_of_own(env, vector),
            .has_error = !env->exception_is_int && swtdx_has_error_code(vector),
            .instruction_length = env->exception_is_int ? env->exception_next_eip - env->eip : 0,
        };
    }
    if (unlikely(cpu->kicked || engine->preempt)) {
        /* Here, not only between blocks: a delivery that causes the next one never reaches a block. pass() sees why. */
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
    env->hflags &= ~HF_SHADOW_MASK; /* the handler's first instruction is not in it */
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
    env->hflags &= ~HF_SHADOW_MASK;
    cpu->delivering = *event;
    event->valid = 0;
}

enum outcome { EXITED, PREEMPTED, YIELDED, HALTED, WAITS };

/* Run TCG until the guest exits or another thread is to have the processor. */
static enum outcome pass(swtdx_engine *engine, swtdx_cpu *cpu)
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
        uint32_t pending = cs->interrupt_request & CPU_INTERRUPT_DEBUG;
        bool trap = pending && !swtdx_debug_waits(cs);

        cs->halted = 0;
        cs->exit_request = trap; /* the #DB of the last instruction comes first, then back here */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        /* Before the look at kicks: an interrupt that was posted after one (an NMI's) is not delivered before its exit.
         */
        cpu->notified = 0;
        swtdx_sync_posted(cpu);
        if (!trap && __atomic_exchange_n(&cpu->kicked, 0, __ATOMIC_SEQ_CST)) {
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            return EXITED;
        }
        if (unlikely(!trap && swtdx_count_is_over(engine))) {
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            return EXITED;
        }
        if (!trap && engine->preempt) {
            return PREEMPTED;
        }
        if (engine->flush_done != engine->flush_wanted) {
            uint32_t wanted = engine->flush_wanted;

            tlb_flush(cs);
            __atomic_store_n(&engine->flush_done, wanted, __ATOMIC_RELEASE);
        }
        if (__atomic_load_n(&engine->nletters, __ATOMIC_ACQUIRE)) {
            swtdx_read_letters(engine);
        }
        if (cpu->event.valid) {
            cpu->activity = 0;
            arm_event(cs, cpu);
        }
        swtdx_evaluate_interrupts(cpu, cs);
        if (unlikely(cpu->activity)) {
            if (!trap && !swtdx_wakes(cpu, cs)) {
                return HALTED;
            }
            cpu->activity = 0;
        }
        cs->interrupt_request = pending | (cs->interrupt_request & CPU_INTERRUPT_VIRQ) |
                                (cpu->interrupt_window ? CPU_INTERRUPT_HARD : 0) |
                                (cpu->nmi_window ? CPU_INTERRUPT_NMI : 0);
        engine->paused = false;
        swtdx_begin_look(engine, cpu);
        swtdx_enter_translator(engine);
        cpu_exec(uc, cs);
        swtdx_leave_translator(engine);
        cs->swtdx_look = 0;
        if (engine->exited) {
            return EXITED;
        }
        if (unlikely(engine->bus_locked)) {
            cpu->exit.reason = SWTDX_EXIT_BUS_LOCK;
            return EXITED;
        }
        if (uc->invalid_error) { /* an address without memory behind it, past every check: never seen, never ignored */
            uc->invalid_error = UC_ERR_OK;
            cpu->exit.physical_address = uc->invalid_addr;
            cpu->exit.reason = SWTDX_EXIT_EPT_MISCONFIG;
            return EXITED;
        }
        if (unlikely(cs->halted)) { /* a HLT that does not exit: an interrupt may have come meanwhile */
            cpu->activity = 1;
            env->exception_is_int = 0;
            continue;
        }
        if (unlikely(engine->waits || (engine->paused && swtdx_paused(engine, cpu)))) {
            return WAITS;
        }
        if (engine->package->crowded) {
            sched_yield();
        }
        if (swtdx_others_wait(engine)) { /* back without an exit: a PAUSE, or a notification */
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
        env->hflags &= ~HF_SHADOW_MASK;
    }
    env->intercept_exceptions = cpu->exception_bitmap;
    env->hflags = (env->hflags & ~HF_BUS_LOCK_MASK) | (cpu->bus_lock_exiting ? HF_BUS_LOCK_MASK : 0);
    memset(&cpu->exit, 0, sizeof(cpu->exit));
    engine->exited = engine->bus_locked = false;
    swtdx_load_pending_debug(cpu);
    cs->exception_index = -1;
    engine->running = cpu;
    swtdx_enter_float(env);
    if (!swtdx_guard(engine)) {
        outcome = pass(engine, cpu);
    } else {
        /* Registers are as of some instruction of the faulting block: the guest cannot go on, and its owner is told. */
        swtdx_drop_mxcsr(env);
        if (engine->exclusive) {
            swtdx_end_exclusive(cs);
        }
        swtdx_leave_translator(engine);
        cpu->delivering.valid = 0;
        cs->exception_index = -1;
        tb_flush(cs);
        tlb_flush(cs);
        cpu->exit.reason = SWTDX_EXIT_HOST_FAULT;
        outcome = EXITED;
    }
    swtdx_leave_float(env);
    swtdx_unguard();
    swtdx_save_pending_debug(cpu);
    engine->running = NULL;
    memcpy(cpu->gpr, env->regs, sizeof(cpu->gpr));
    cpu->rip = cpu->exit_rip = env->eip;
    cpu->exit.trap_flag = env->eflags & TF_MASK;
    swtdx_detect_spin(engine, cpu,
                      outcome == HALTED || (outcome == EXITED && cpu->exit.reason != SWTDX_EXIT_EXTERNAL_INTERRUPT));
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
        if (!swtdx_acquire_to_run(engine, cpu)) {
            memset(&cpu->exit, 0, sizeof(cpu->exit));
            cpu->exit.reason = SWTDX_EXIT_EXTERNAL_INTERRUPT;
            break;
        }
        outcome = run_once(engine, cpu);
        swtdx_end_turn(engine, outcome == EXITED || outcome == PREEMPTED);
        if (outcome == HALTED) {
            swtdx_sleep_halted(cpu);
        } else if (outcome == WAITS) {
            swtdx_nap(cpu);
        }
    } while (outcome != EXITED);
    entered = NULL;
    return cpu->exit.reason;
}
