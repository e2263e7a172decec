/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The emulated logical processor, as seen from outside.
 *
 * A package is the memory of a machine and one engine, or several: Unicorn (QEMU's TCG) with its translated code, its
 * TLB and its view of physical memory. A swtdx_cpu is the state of one virtual CPU in VMX non-root operation:
 * registers, the VM-execution controls that we implement, and the exit information. An engine runs one at a time and
 * keeps the registers of the last one loaded, so that resuming the same virtual CPU costs nothing; another one costs a
 * copy and a TLB flush.
 *
 * All of this may be called from any thread; swtdx_run() blocks until the processor is free. swtdx_kick() and
 * swtdx_notify() are the only calls that make sense while another thread is inside swtdx_run() on the same virtual CPU.
 */
#ifndef SWTDX_H
#define SWTDX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* VMX basic exit reasons (Intel SDM volume 3, appendix C) that this processor produces. */
enum swtdx_exit_reason {
    SWTDX_EXIT_EXCEPTION_NMI = 0,
    SWTDX_EXIT_EXTERNAL_INTERRUPT = 1,
    SWTDX_EXIT_TRIPLE_FAULT = 2,
    SWTDX_EXIT_INTERRUPT_WINDOW = 7,
    SWTDX_EXIT_NMI_WINDOW = 8,
    SWTDX_EXIT_CPUID = 10,
    SWTDX_EXIT_HLT = 12,
    SWTDX_EXIT_INVD = 13,
    SWTDX_EXIT_RDPMC = 15,
    SWTDX_EXIT_RDTSC = 16,
    SWTDX_EXIT_VMCALL = 18,
    SWTDX_EXIT_CR_ACCESS = 28,
    SWTDX_EXIT_DR_ACCESS = 29,
    SWTDX_EXIT_IO = 30,
    SWTDX_EXIT_RDMSR = 31,
    SWTDX_EXIT_WRMSR = 32,
    SWTDX_EXIT_MWAIT = 36,
    SWTDX_EXIT_MONITOR = 39,
    SWTDX_EXIT_VIRTUALIZED_EOI = 45,
    SWTDX_EXIT_EPT_VIOLATION = 48,
    SWTDX_EXIT_EPT_MISCONFIG = 49,
    SWTDX_EXIT_WBINVD = 54,
    SWTDX_EXIT_XSETBV = 55,
    SWTDX_EXIT_BUS_LOCK = 74,
    SWTDX_EXIT_TDCALL = 77,
    /* Not VMX: the pages behind a mapping of user memory are gone (the caller unmapped them). */
    SWTDX_EXIT_HOST_FAULT = 0x10000,
};

#define SWTDX_BUS_LOCK_DETECTED (1u << 26) /* in the exit reason: another exit follows a bus lock */

/* VM-entry interruption types (SDM volume 3, 25.8.3). */
enum swtdx_event_type {
    SWTDX_EVENT_EXTERNAL = 0,
    SWTDX_EVENT_NMI = 2,
    SWTDX_EVENT_HARDWARE_EXCEPTION = 3,
    SWTDX_EVENT_SOFTWARE_INTERRUPT = 4,
    SWTDX_EVENT_PRIVILEGED_SOFTWARE_EXCEPTION = 5,
    SWTDX_EVENT_SOFTWARE_EXCEPTION = 6,
};

struct swtdx_event {
    uint8_t valid, vector, type, has_error;
    uint32_t error_code, instruction_length;
};

struct swtdx_exit {
    uint32_t reason, instruction_length;
    uint64_t qualification, linear_address, physical_address;
    uint32_t instruction_info, interruption_info, interruption_error;
    /* An EPT violation in the shared half whose last entry lets the processor turn it into #VE. */
    uint32_t ve_convertible;
    uint32_t trap_flag; /* RFLAGS.TF: an instruction that the hypervisor carries out is a single step */
};

typedef struct swtdx_engine swtdx_engine;
typedef struct swtdx_package swtdx_package;

#define SWTDX_SPIN_STATES 8

typedef struct swtdx_cpu {
    uint64_t gpr[16]; /* RAX RCX RDX RBX RSP RBP RSI RDI R8..R15: current whenever swtdx_run() is not inside */
    uint64_t rip;
    /* VM-execution controls */
    uint64_t eptp, shared_eptp, shared_bit;
    uint64_t cr0_mask, cr0_shadow, cr4_mask, cr4_shadow;
    uint64_t tsc_offset, tsc_multiplier; /* 48 fraction bits */
    uint64_t posted_interrupt_descriptor;
    uint32_t exception_bitmap;
    uint8_t tdx, apicv, rdtsc_exiting, interrupt_window, nmi_window, no_ept, dr_exiting, no_hlt_exiting;
    uint8_t bus_lock_exiting;
    uint8_t msr_bitmap[4096]; /* read low, read high, write low, write high; a set bit exits */
    uint8_t vapic[4096];      /* the virtual-APIC page */
    /* VM-entry event; an event whose delivery faulted in EPT stays here and is delivered at the next entry */
    struct swtdx_event event;
    struct swtdx_exit exit;
    uint32_t activity; /* 0 active, 1 HLT: until an event, or an interrupt that the guest takes */
    /* private */
    swtdx_engine *engine;
    void *saved;
    volatile uint32_t kicked, notified, bell; /* bell: a halted one sleeps on it (swtdx_halt.c) */
    uint64_t exit_rip;
    uint32_t pending_debug; /* data breakpoints that MOV SS has hit, while the next instruction is not executed */
    struct swtdx_event delivering;
    uint64_t spin_states[SWTDX_SPIN_STATES]; /* hashes of the registers at the ends of slices since the last exit */
    uint64_t waiting_since; /* ns; not 0 while it wants to run, even if it is called out of the queue in between */
    uint32_t next_spin_state;
    uint32_t spins; /* ends of slices in a row at which it was where it had been before: it may wait for another one */
    volatile uint32_t naps; /* it waits for another one, and sleeps on its bell just now (swtdx_spin.c) */
    uint32_t nap_ns; /* how long the last nap was to be; 0: it does not wait */
    bool pauses; /* it has executed nothing but PAUSE for a while */
    uint64_t pause_rip, pause_since, paused_at;
} swtdx_cpu;

/* Register numbers for swtdx_get()/swtdx_set(). */
enum swtdx_register {
    SWTDX_RFLAGS = 0,
    SWTDX_CR0 = 0x100, /* + number: 0, 2, 3, 4, 8 */
    SWTDX_DR0 = 0x200, /* + number: 0..3, 6, 7 */
    SWTDX_XCR0 = 0x300,
    SWTDX_PKRU,
    SWTDX_INTERRUPTIBILITY, /* VMX format: bit 0 STI, bit 1 MOV SS, bit 3 NMI */
};

/* Segments: ES CS SS DS FS GS LDTR TR GDTR IDTR = 0..9; access rights in VMX format. */
struct swtdx_segment {
    uint64_t base;
    uint32_t limit, access_rights;
    uint16_t selector;
};

/* tsc_ratio: ticks of the processor's time-stamp counter for each of the host's, in units of 2^-48 */
/* pkru_offset: where PKRU is in the standard form of the XSAVE area */
/* parallel: virtual CPUs execute at the same time, each on an engine of its own */
swtdx_package *swtdx_package_new(void *ram, uint64_t size, uint64_t tsc_ratio, uint32_t pkru_offset, bool parallel);
/* What the host's processor adds to x86-64-v2: bits of enum swtdx_feature. */
enum swtdx_feature {
    SWTDX_AVX,
    SWTDX_AVX2,
    SWTDX_FMA,
    SWTDX_F16C,
    SWTDX_VAES,
    SWTDX_VPCLMULQDQ,
    SWTDX_SHA,
};
uint32_t swtdx_host_features(void);
void swtdx_package_free(swtdx_package *package);
/* Make length bytes at host appear at physical address hpa (outside RAM); 0 or -1. */
int swtdx_map(swtdx_package *package, uint64_t hpa, void *host, uint64_t length);
int swtdx_unmap(swtdx_package *package, uint64_t hpa, uint64_t length);
/* Software wrote to (or gave away) this physical memory: forget code translated from it. */
void swtdx_forget_code(swtdx_package *package, uint64_t hpa, uint64_t length);
/* User memory may have been written by its owner since the virtual CPU last ran: drop translated code that no longer is
 * what lies there. Looks at the page of the next instruction every time, at all pages every 20 ms or if ``all``. */
void swtdx_check_code(swtdx_cpu *cpu, bool all);
/* INVEPT: no virtual CPU uses a translation that it has cached before. Waits for one that runs to look up. */
void swtdx_invept(swtdx_package *package);
/* The same for one that does not run, before its next entry. */
void swtdx_invept_one(swtdx_cpu *cpu);
/* Memory integrity: a byte for each page of RAM, non-zero if its content was written under a foreign key; count of
 * those. A guest that touches one takes a machine check. The array must outlive the engine. */
void swtdx_set_poison(swtdx_package *package, const uint8_t *pages, uint64_t count);
uint64_t swtdx_walks(const swtdx_package *package);
uint64_t swtdx_host_tsc(void);
/* Copy memory of this process that may be unmapped, with three cheap system calls where process_vm_readv(2) pins pages.
 * False: it was not done, or in part. The range is bad, or a fault would end the process (no engine was created yet, or
 * the process has its own handler, or blocks the signal); process_vm_readv(2) can tell. */
bool swtdx_read_user(void *buffer, const void *user, uint64_t length);
bool swtdx_write_user(void *user, const void *buffer, uint64_t length);
/* What is added to the processor's time-stamp counter, in its own ticks: the time of a machine that was restored goes
 * on from where it was. Not while a virtual CPU runs. */
void swtdx_set_tsc_bias(swtdx_package *package, uint64_t bias);

/* Coverage (swtdx_coverage.c). swtdx_cover(): from now on the blocks that are translated are noted; false: no memory.
 * swtdx_covered() takes the addresses of up to `most`; it returns how many these are. */
bool swtdx_cover(swtdx_package *package);
size_t swtdx_covered(swtdx_package *package, uint64_t *blocks, size_t most);

/* Count instructions from now on, and have time follow from the count: SWTDX_INSTRUCTION_NS for each. For one virtual
 * CPU, before it runs. tsc_ratio: ticks of the time-stamp counter for each nanosecond, in units of 2^-48.
 * seed: from which the numbers of RDRAND and RDSEED follow. */
#define SWTDX_INSTRUCTION_NS 4
void swtdx_start_counting(swtdx_package *package, uint64_t tsc_ratio, uint64_t seed);
/* How many instructions have begun. */
uint64_t swtdx_count(const swtdx_package *package);
/* The virtual CPU leaves its guest as if kicked when the count is this. Not while it runs. */
void swtdx_set_count_end(swtdx_package *package, uint64_t end);
/* The time by the count, with what it was set forward by. */
uint64_t swtdx_counted_ns(const swtdx_package *package);
void swtdx_jump(swtdx_package *package, uint64_t ns);
/* A debugger's stops, of which the guest sees nothing: the virtual CPU leaves as if kicked before it begins an
 * instruction at one of these linear addresses, once for each count. false: no memory. Not while it runs. */
bool swtdx_set_stops(swtdx_package *package, const uint64_t *addresses, size_t count);
/* Whether there was such a stop since the last question. */
bool swtdx_take_stop(swtdx_package *package);
/* Only note the stops, as one who looks for the last of them wants, or stop again. Not while it runs. */
void swtdx_pass_stops(swtdx_package *package, bool pass);
/* The count at the last stop that was made or noted; all ones: none. */
uint64_t swtdx_last_stop(const swtdx_package *package);
/* Count, time set forward, state of the random numbers: to go back to. Not while it runs. */
void swtdx_counted_state(const swtdx_package *package, uint64_t state[3]);
void swtdx_set_counted_state(swtdx_package *package, const uint64_t state[3]);

swtdx_cpu *swtdx_cpu_new(swtdx_package *package);
void swtdx_cpu_free(swtdx_cpu *cpu);
uint32_t swtdx_run(swtdx_cpu *cpu);
void swtdx_kick(swtdx_cpu *cpu);
void swtdx_notify(swtdx_cpu *cpu);

/* Signals. swtdx_signal() may be called by a signal handler: the virtual CPU that the thread runs, or will run, leaves
 * its guest as if kicked, until swtdx_clear_signal(). */
void swtdx_signal(void);
int swtdx_signal_pending(void);
void swtdx_clear_signal(void);

/* State that is not in the struct. Not while the virtual CPU runs. */
uint64_t swtdx_get(swtdx_cpu *cpu, uint32_t reg);
void swtdx_set(swtdx_cpu *cpu, uint32_t reg, uint64_t value);
void swtdx_get_segment(swtdx_cpu *cpu, uint32_t index, struct swtdx_segment *segment);
void swtdx_set_segment(swtdx_cpu *cpu, uint32_t index, const struct swtdx_segment *segment);
bool swtdx_get_msr(swtdx_cpu *cpu, uint32_t index, uint64_t *value);
bool swtdx_set_msr(swtdx_cpu *cpu, uint32_t index, uint64_t value);
void swtdx_get_fxsave(swtdx_cpu *cpu, uint8_t image[512]);
void swtdx_set_fxsave(swtdx_cpu *cpu, const uint8_t image[512]);
/* The upper halves of the YMM registers. */
void swtdx_get_ymm(swtdx_cpu *cpu, uint8_t image[256]);
void swtdx_set_ymm(swtdx_cpu *cpu, const uint8_t image[256]);
/* All of a virtual CPU's state, to be kept and given back to it or to another one: numbers, no pointers, so that bytes
 * from a file can do no harm. swtdx_set_state() is for what swtdx_get_state() gave; false: it cannot be. */
size_t swtdx_state_size(void);
void swtdx_get_state(swtdx_cpu *cpu, void *state);
bool swtdx_set_state(swtdx_cpu *cpu, const void *state);
/* Translate a linear address with the guest's page tables, without side effects: 0, or -1 if it is not mapped. */
int swtdx_translate_linear(swtdx_cpu *cpu, uint64_t gla, uint64_t *gpa);
/* Translate a guest-physical address; -1 if EPT has nothing there. prot gets R 1, W 2, X 4. */
int swtdx_translate_physical(swtdx_cpu *cpu, uint64_t gpa, uint64_t *hpa, uint32_t *prot);
/* Copy physical memory; false where there is none. */
bool swtdx_read(swtdx_package *package, uint64_t hpa, void *buffer, uint64_t length);
/* Evaluate pending virtual interrupts: the vector that would be delivered next, or -1. */
int swtdx_pending_interrupt(swtdx_cpu *cpu);

#endif
