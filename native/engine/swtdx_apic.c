/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * APIC virtualization (SDM volume 3, chapter 30): the virtual-APIC page, posted interrupts, virtual-interrupt delivery.
 *
 * Software (the kernel) sets bits in the posted-interrupt descriptor; the processor moves them to the virtual IRR, and
 * delivers the highest vector through the guest's IDT when its priority class exceeds the processor priority and the
 * guest takes interrupts. TPR, EOI and self-IPI never exit. The page has the layout of the xAPIC register page.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu-all.h"
#include "swtdx_internal.h"

#define VAPIC_TPR 0x80
#define VAPIC_PPR 0xa0
#define VAPIC_ISR 0x100
#define VAPIC_TMR 0x180
#define VAPIC_IRR 0x200
#define PID_ON 32 /* byte of the outstanding-notification bit */

#define X2APIC_FIRST 0x800
#define X2APIC_TPR 0x808
#define X2APIC_EOI 0x80b
#define X2APIC_SELF_IPI 0x83f
#define X2APIC_LAST 0x8ff

static uint32_t *bank(swtdx_cpu *cpu, unsigned base, unsigned vector)
{
    return (uint32_t *)(cpu->vapic + base + (vector >> 5) * 16);
}

int swtdx_highest(const uint8_t *vapic, unsigned base)
{
    int word;

    for (word = 7; word >= 0; word--) {
        uint32_t bits;

        memcpy(&bits, vapic + base + word * 16, 4);
        if (bits) {
            return word * 32 + 31 - __builtin_clz(bits);
        }
    }
    return -1;
}

/* TDX and x2APIC guests stop only between blocks: make the current one the last before interrupts are looked at. */
void swtdx_request_block_end(CPUState *cs)
{
    cpu_neg(cs)->icount_decr.u16.high = -1;
}

void swtdx_sync_posted(swtdx_cpu *cpu)
{
    uint8_t *descriptor;
    int word;

    if (!cpu->posted_interrupt_descriptor ||
        !(descriptor = swtdx_host_pointer(cpu->engine, cpu->posted_interrupt_descriptor, 64)) ||
        !(__atomic_fetch_and(descriptor + PID_ON, (uint8_t)~1, __ATOMIC_ACQ_REL) & 1)) {
        return;
    }
    for (word = 0; word < 8; word++) {
        uint32_t bits = __atomic_exchange_n((uint32_t *)descriptor + word, 0, __ATOMIC_ACQ_REL);

        *bank(cpu, VAPIC_IRR, word * 32) |= bits;
    }
}

static int deliverable(swtdx_cpu *cpu)
{
    int in_service = swtdx_highest(cpu->vapic, VAPIC_ISR), requested = swtdx_highest(cpu->vapic, VAPIC_IRR);
    unsigned tpr = cpu->vapic[VAPIC_TPR], service_class = in_service < 0 ? 0 : in_service & 0xf0;
    unsigned ppr = (tpr & 0xf0) >= service_class ? tpr : service_class;

    cpu->vapic[VAPIC_PPR] = ppr;
    return requested >= 16 && (requested & 0xf0) > (ppr & 0xf0) ? requested : -1;
}

int swtdx_pending_interrupt(swtdx_cpu *cpu)
{
    swtdx_sync_posted(cpu);
    return deliverable(cpu);
}

void swtdx_evaluate_interrupts(swtdx_cpu *cpu, CPUState *cs)
{
    if (!cpu->apicv) {
        return;
    }
    if (deliverable(cpu) >= 0) {
        cs->interrupt_request |= CPU_INTERRUPT_VIRQ;
        swtdx_request_block_end(cs);
    } else {
        cs->interrupt_request &= ~CPU_INTERRUPT_VIRQ;
    }
}

/* The guest takes an interrupt now: which? */
int swtdx_acknowledge_interrupt(CPUX86State *env)
{
    swtdx_cpu *cpu = swtdx_current(env);
    CPUState *cs = env_cpu(env);
    int vector = deliverable(cpu);

    cs->interrupt_request &= ~CPU_INTERRUPT_VIRQ;
    if (vector < 0) {
        return -1;
    }
    *bank(cpu, VAPIC_IRR, vector) &= ~(1u << (vector & 31));
    *bank(cpu, VAPIC_ISR, vector) |= 1u << (vector & 31);
    cpu->delivering = (struct swtdx_event){ .valid = 1, .vector = vector, .type = SWTDX_EVENT_EXTERNAL };
    return vector;
}

void swtdx_delivered(CPUX86State *env)
{
    swtdx_cpu *cpu = swtdx_current(env);

    cpu->delivering.valid = 0;
    swtdx_evaluate_interrupts(cpu, env_cpu(env));
}

static void end_of_interrupt(CPUX86State *env, swtdx_cpu *cpu, uintptr_t retaddr)
{
    int vector = swtdx_highest(cpu->vapic, VAPIC_ISR);

    if (vector < 0) {
        return;
    }
    *bank(cpu, VAPIC_ISR, vector) &= ~(1u << (vector & 31));
    swtdx_evaluate_interrupts(cpu, env_cpu(env));
    if (*bank(cpu, VAPIC_TMR, vector) & 1u << (vector & 31)) {
        /* A level-triggered source wants to know. The exit is trap-like: the instruction is complete. */
        cpu_restore_state(env_cpu(env), retaddr, true);
        env->eip += 2;
        cpu->exit.qualification = vector;
        swtdx_exit_now(env, SWTDX_EXIT_VIRTUALIZED_EOI, 0);
    }
}

/* x2APIC registers that the MSR bitmap leaves to the processor. False: there is no such register. */
bool swtdx_apic_read(swtdx_cpu *cpu, uint32_t index, uint64_t *value)
{
    uint32_t word;

    if (index < X2APIC_FIRST || index > X2APIC_LAST || !cpu->apicv || index == X2APIC_EOI || index == X2APIC_SELF_IPI) {
        return false;
    }
    deliverable(cpu); /* brings PPR up to date */
    memcpy(&word, cpu->vapic + (index - X2APIC_FIRST) * 16, 4);
    *value = word;
    return true;
}

bool swtdx_apic_write(CPUX86State *env, swtdx_cpu *cpu, uint32_t index, uint64_t value, uintptr_t retaddr)
{
    if (!cpu->apicv) {
        return false;
    }
    switch (index) {
    case X2APIC_TPR:
        if (value > 0xff) {
            return false;
        }
        cpu->vapic[VAPIC_TPR] = value;
        swtdx_evaluate_interrupts(cpu, env_cpu(env));
        return true;
    case X2APIC_EOI:
        if (value) {
            return false;
        }
        end_of_interrupt(env, cpu, retaddr);
        return true;
    case X2APIC_SELF_IPI:
        if (value > 0xff) {
            return false;
        }
        /* KVM sets the bit of a vector below 16, too, which no priority lets through */
        *bank(cpu, VAPIC_IRR, value) |= 1u << (value & 31);
        swtdx_evaluate_interrupts(cpu, env_cpu(env));
        return true;
    default:
        return false;
    }
}
