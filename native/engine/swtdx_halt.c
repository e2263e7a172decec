/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest whose HLT does not exit: the activity state HLT (SDM volume 3, 25.4.2).
 *
 * The virtual CPU stays in its guest and leaves the processor to others. It sleeps on its bell, a futex, because a
 * signal handler must be able to wake it. What it waits for is set before the bell rings.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include <linux/futex.h>
#include <sys/syscall.h>
#include "swtdx_internal.h"

/* Wake it if it is halted, or naps. May be called by a signal handler. */
void swtdx_ring(swtdx_cpu *cpu)
{
    __atomic_fetch_add(&cpu->bell, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&cpu->activity, __ATOMIC_SEQ_CST) || __atomic_load_n(&cpu->naps, __ATOMIC_SEQ_CST)) {
        syscall(SYS_futex, &cpu->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

/* Whether it is to run again: an interrupt that the guest takes, or an exit that waits for the same (27.7.2). */
bool swtdx_wakes(swtdx_cpu *cpu, CPUState *cs)
{
    CPUX86State *env = cs->env_ptr;

    if ((env->eflags & IF_MASK) && (cpu->interrupt_window || (cs->interrupt_request & CPU_INTERRUPT_VIRQ))) {
        return true;
    }
    return cpu->nmi_window && !(env->hflags2 & HF2_NMI_MASK);
}

/* Sleep until there is a reason to look again. */
void swtdx_sleep_halted(swtdx_cpu *cpu)
{
    uint32_t bell;

    for (;;) {
        bell = __atomic_load_n(&cpu->bell, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&cpu->kicked, __ATOMIC_SEQ_CST) || __atomic_load_n(&cpu->notified, __ATOMIC_SEQ_CST)) {
            return;
        }
        syscall(SYS_futex, &cpu->bell, FUTEX_WAIT_PRIVATE, bell, NULL, NULL, 0);
    }
}
