/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine's files and the patched lines of TCG know of each other. Include after "cpu.h". */
#ifndef SWTDX_INTERNAL_H
#define SWTDX_INTERNAL_H

#include <pthread.h>
#include <setjmp.h>
#include "uc_priv.h"
#include "swtdx.h"

/* Intercepts that SVM has no code for, handed to gen_svm_check_intercept() (outside the range of SVM's codes). */
#define SWTDX_TDCALL 0x800
#define SWTDX_VMCALL 0x801
#define SWTDX_XSETBV 0x802

/* Prefixes as the translator has them (PREFIX_* of translate.c). */
#define SWTDX_PREFIX_REPZ 0x01
#define SWTDX_PREFIX_REPNZ 0x02
#define SWTDX_PREFIX_DATA 0x08

#define SWTDX_HPA_MASK 0x000ffffffffff000ull
#define SWTDX_RESET_RIP 0xfff0
/* The physical page behind env->vm_vmcb, which TCG writes to; no EPT entry can name it. */
#define SWTDX_SCRATCH (1ull << 51)

struct swtdx_region {
    uint64_t hpa, length;
    uint8_t *host;
};

/* A page of user memory with translated code in it, as it was when the first block was translated. */
struct swtdx_snapshot {
    uint8_t *host;
    bool live; /* nothing has been forgotten of it since */
    uint8_t content[4096];
};

struct swtdx_waiter {
    struct swtdx_waiter *next;
    uint64_t since;
};

#define SWTDX_ENGINES 64 /* of a package: bits of a mark (swtdx_shared_code.c) */
#define SWTDX_LETTERS 512

struct swtdx_package {
    uint8_t *ram;
    uint64_t size, tsc_ratio;
    uint64_t tsc_bias; /* ticks of the processor's counter that are added to the host's, scaled */
    uint64_t jumped_ns, random_state; /* see swtdx_count.c */
    uint32_t pkru_offset;
    bool parallel;
    bool counting;
    pthread_mutex_t mutex; /* of what is mapped, and of who has which engine */
    swtdx_engine *engines[SWTDX_ENGINES];
    unsigned nengines, ncpus;
    void **marks;
    pthread_t ticker;
    pid_t ticker_process;
    bool has_ticker, closing;
    struct swtdx_coverage *coverage; /* NULL unless it is wanted */
    volatile bool crowded; /* more virtual CPUs execute than there are processors */
};

struct swtdx_engine {
    struct uc_struct *uc;
    swtdx_package *package;
    unsigned number, users; /* in the package, and how many virtual CPUs it is for */
    pthread_spinlock_t letters_lock;
    unsigned nletters;
    uint64_t letters[SWTDX_LETTERS];
    uint8_t *ram, *scratch;
    uint64_t size, tsc_ratio;
    uint32_t pkru_offset; /* in the standard form of the XSAVE area */
    struct swtdx_region *regions; /* user memory, sorted by hpa */
    size_t nregions;
    pthread_rwlock_t regions_lock; /* for those who look without having the turn; who changes them has both */
    struct swtdx_snapshot **snapshots; /* open hash by host address, a power of two of slots */
    size_t nsnapshots, snapshot_slots;
    uint64_t checked_ns;
    /* whose turn it is; see swtdx_turn.c */
    pthread_mutex_t mutex;
    pthread_cond_t turn;
    bool busy;
    struct swtdx_waiter *waiters;  /* those who want to run a guest, the longest first */
    unsigned short_waiters;
    swtdx_cpu *slice_owner;        /* whose slice it is, while slice_end has not come */
    uint64_t slice_end, linger_end;
    volatile uint32_t preempt;
    swtdx_cpu *current; /* whose state is in env */
    swtdx_cpu *volatile running;
    struct swtdx_engine *next_engine; /* of all in this process; see swtdx_exclusive.c */
    volatile uint32_t in_translator;
    bool exclusive;
    void *reset_state;
    volatile uint32_t flush_wanted, flush_done;
    uint64_t access_gla, walks;
    uint64_t count_end; /* where the count is when CPUState.icount_budget is used up */
    uint64_t *stops;    /* linear addresses of instructions to stop before */
    size_t nstops;
    uint64_t passed; /* the count at the last of them, which is not met again */
    bool stopped, passes_stops;
    const uint8_t *poisoned_pages; /* a byte a page of RAM, NULL while there are none */
    bool exited;
    bool paused; /* left TCG for a PAUSE */
    volatile bool naps; /* its virtual CPU does; for the tick */
    bool waits;  /* left TCG for a loop that only waits; see swtdx_spin.c */
    struct swtdx_registers *looked_at;
    bool bus_locked;        /* the instruction in progress locks two cache lines: an exit follows it */
    uint32_t data_hits;     /* data breakpoints that the instruction in progress has met, one bit each */
    uint64_t debug_reasons; /* of the #DB in progress, as in DR6 */
    sigjmp_buf host_fault;
};

static inline swtdx_cpu *swtdx_current(CPUX86State *env)
{
    return env->uc->swtdx->current;
}

/* Where an item of a stack is. mask: of the stack pointer, all ones in 64-bit mode, which knows no bases. */
static inline target_ulong swtdx_stack_address(target_ulong base, target_ulong sp, target_ulong mask)
{
    return mask == (target_ulong)-1 ? sp : (uint32_t)(base + (sp & mask));
}

static inline bool swtdx_others_wait(const swtdx_engine *engine)
{
    return __atomic_load_n(&engine->waiters, __ATOMIC_RELAXED) != NULL;
}

/* Until swtdx_unguard(), a fault on user memory comes back here as non-zero. A macro: setjmp's frame must stay live. */
void swtdx_set_executing(swtdx_engine *engine);
bool swtdx_is_executing(void);
void swtdx_catch_host_faults(void);
#define swtdx_guard(engine) (swtdx_set_executing(engine), sigsetjmp((engine)->host_fault, 0))
#define swtdx_unguard() swtdx_set_executing(NULL)

/* called from the patched places */
void swtdx_syscall(CPUX86State *env, int instruction_length, uintptr_t retaddr);
void swtdx_sysret(CPUX86State *env, bool wide, uintptr_t retaddr);
void swtdx_sysenter(CPUX86State *env, uintptr_t retaddr);
void swtdx_sysexit(CPUX86State *env, bool wide, uintptr_t retaddr);
void swtdx_intercept(CPUX86State *env, uint32_t type, uint64_t param, uintptr_t retaddr);
void swtdx_intercept_io(CPUX86State *env, uint32_t port, uint32_t param, uint32_t length, uintptr_t retaddr);
void swtdx_svm_exit(CPUX86State *env, uint32_t code, uintptr_t retaddr) QEMU_NORETURN;
bool swtdx_rdmsr(CPUX86State *env, uintptr_t retaddr);
bool swtdx_wrmsr(CPUX86State *env, uintptr_t retaddr);
target_ulong swtdx_read_cr(CPUX86State *env, int reg, uintptr_t retaddr);
target_ulong swtdx_write_cr(CPUX86State *env, int reg, target_ulong value, uintptr_t retaddr);
uint64_t swtdx_guest_tsc(CPUX86State *env, uint64_t host);
bool swtdx_count_is_over(const swtdx_engine *engine);
bool swtdx_counted_random(CPUX86State *env, target_ulong *number);
int64_t swtdx_tlb_time(struct uc_struct *uc);
bool swtdx_stops_at(struct uc_struct *uc, target_ulong address);
void swtdx_alone(CPUState *cs, uintptr_t retaddr) QEMU_NORETURN;
hwaddr swtdx_translate(CPUState *cs, hwaddr gpa, int access, int *prot);
bool swtdx_refers_to_stack(CPUX86State *env, target_ulong address, uintptr_t retaddr);
void swtdx_note_access(CPUState *cs, target_ulong gla);
bool swtdx_set_page_bits(CPUState *cs, hwaddr address, uint64_t entry, uint32_t bits);
void swtdx_begin_exclusive(CPUState *cs);
void swtdx_end_exclusive(CPUState *cs);
int swtdx_acknowledge_interrupt(CPUX86State *env);
void swtdx_delivered(CPUX86State *env);
bool swtdx_exception(CPUState *cs);
int swtdx_watched(CPUState *cs, vaddr addr, vaddr len);
void swtdx_data_access(CPUState *cs, vaddr addr, vaddr len, int flags, uintptr_t retaddr);
void swtdx_debug_stop(CPUState *cs);
bool swtdx_debug_waits(CPUState *cs);
uint32_t swtdx_pkru_offset(CPUX86State *env);
void swtdx_probe_store(CPUX86State *env, target_ulong address, unsigned bytes, uintptr_t retaddr);
void swtdx_unaligned_access(CPUState *cs, vaddr address, MMUAccessType access, int mmu_index,
                            uintptr_t retaddr) QEMU_NORETURN;
void swtdx_check_pops(CPUX86State *env, target_ulong address, unsigned bytes, int mmu_index, uintptr_t retaddr);
void swtdx_check_far_target(CPUX86State *env, uint32_t low, uint32_t high, target_ulong target, uintptr_t retaddr);
void swtdx_check_real_target(CPUX86State *env, uint32_t target, uintptr_t retaddr);
void swtdx_check_branch(CPUX86State *env, uintptr_t retaddr);
void swtdx_check_stack(CPUX86State *env, uint32_t limit, uint32_t high, target_ulong sp, unsigned size, unsigned items,
                       int error, uintptr_t retaddr);
void swtdx_check_alignment(CPUX86State *env, target_ulong address, unsigned bytes, int mmu_index, uintptr_t retaddr);
void swtdx_probe_load(CPUX86State *env, target_ulong address, unsigned bytes, uintptr_t retaddr);
void swtdx_probe_masked_store(CPUX86State *env, target_ulong address, const uint8_t *masks, unsigned bytes,
                              uintptr_t retaddr);
void swtdx_probe_pushes(CPUX86State *env, target_ulong base, target_ulong sp, target_ulong mask, unsigned size,
                        unsigned count, int mmu_index, uintptr_t retaddr);
void swtdx_load_pending_debug(swtdx_cpu *cpu);
void swtdx_save_pending_debug(swtdx_cpu *cpu);
void swtdx_raise_debug(CPUX86State *env, uint64_t reasons) QEMU_NORETURN;
void swtdx_untranslatable(CPUX86State *env) QEMU_NORETURN;
void swtdx_fpu_pointers(CPUX86State *env, bool wide, uint32_t pointers[4]);
void swtdx_set_fpu_pointers(CPUX86State *env, bool wide, const uint32_t pointers[4]);
bool swtdx_canonical_base(uint64_t address);
bool swtdx_may_lock(int b, uint8_t modrm);
bool swtdx_in_parallel(struct uc_struct *uc);
bool swtdx_is_near_branch(int b);
bool swtdx_undefined(int b, int prefixes);

/* between the engine's own files */
struct swtdx_prefixes {
    int length;
    int segment; /* of an override, else -1 */
    bool operand_size, address_size;
};
struct swtdx_prefixes swtdx_read_prefixes(CPUX86State *env);
target_ulong swtdx_code_address(CPUX86State *env);
bool swtdx_canonical(CPUX86State *env, uint64_t address);
void swtdx_exit_now(CPUX86State *env, uint32_t reason, uintptr_t retaddr) QEMU_NORETURN;
void swtdx_make_current(swtdx_engine *engine, swtdx_cpu *cpu);
bool swtdx_cover_one(swtdx_engine *engine);
void swtdx_acquire(swtdx_engine *engine);
void swtdx_release(swtdx_engine *engine);
bool swtdx_acquire_to_run(swtdx_engine *engine, swtdx_cpu *cpu);
void swtdx_ring(swtdx_cpu *cpu);
bool swtdx_wakes(swtdx_cpu *cpu, CPUState *cs);
void swtdx_sleep_halted(swtdx_cpu *cpu);
void swtdx_end_turn(swtdx_engine *engine, bool keep_slice);
swtdx_engine *swtdx_engine_new(swtdx_package *package, unsigned number);
void swtdx_engine_free(swtdx_engine *engine);
swtdx_engine *swtdx_take_engine(swtdx_package *package);
void swtdx_leave_engine(swtdx_engine *engine);
int swtdx_map_one(swtdx_engine *engine, uint64_t hpa, void *host, uint64_t length);
int swtdx_unmap_one(swtdx_engine *engine, uint64_t hpa, uint64_t length);
void swtdx_forget_code_one(swtdx_engine *engine, uint64_t hpa, uint64_t length);
bool swtdx_read_one(swtdx_engine *engine, uint64_t hpa, void *buffer, uint64_t length);
uint32_t swtdx_ask_to_flush(swtdx_engine *engine);
void swtdx_wait_for_flush(swtdx_engine *engine, uint32_t wanted);
bool swtdx_make_marks(swtdx_package *package);
void swtdx_drop_marks(swtdx_package *package);
void swtdx_read_letters(swtdx_engine *engine);
void swtdx_forget_all_code(swtdx_engine *engine);
void swtdx_enter_translator(swtdx_engine *engine);
void swtdx_leave_translator(swtdx_engine *engine);
void swtdx_join(swtdx_engine *engine);
void swtdx_part(swtdx_engine *engine);
void swtdx_detect_spin(swtdx_engine *engine, swtdx_cpu *cpu, bool exited);
void swtdx_begin_look(swtdx_engine *engine, swtdx_cpu *cpu);
bool swtdx_paused(swtdx_engine *engine, swtdx_cpu *cpu);
void swtdx_nap(swtdx_cpu *cpu);
void *swtdx_host_pointer(swtdx_engine *engine, uint64_t hpa, uint64_t length);
int swtdx_walk(swtdx_engine *engine, swtdx_cpu *cpu, uint64_t gpa, uint64_t *entry, uint32_t *prot, bool *shared);
void swtdx_evaluate_interrupts(swtdx_cpu *cpu, CPUState *cs);
void swtdx_sync_posted(swtdx_cpu *cpu);
bool swtdx_apic_read(swtdx_cpu *cpu, uint32_t index, uint64_t *value);
bool swtdx_apic_write(CPUX86State *env, swtdx_cpu *cpu, uint32_t index, uint64_t value, uintptr_t retaddr);
void swtdx_code_page(struct uc_struct *uc, void *host);
void swtdx_check_code_page(swtdx_engine *engine, uint64_t hpa);
void swtdx_drop_snapshots(swtdx_engine *engine);
bool swtdx_has_error_code(unsigned vector);
int swtdx_highest(const uint8_t *vapic, unsigned base);
void swtdx_request_block_end(CPUState *cs);

#endif
