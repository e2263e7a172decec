/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the host's processor can compute, the host's processor computes: SSE instructions of a guest.
 *
 * An instruction becomes a stub: the guest's operands are loaded from its state (or from a copy of its memory, which
 * TCG has read before, with the guest's faults), the same instruction is executed with registers of ours, and the
 * result goes back. Floating-point instructions run with the guest's MXCSR. While it masks all exceptions, none can
 * happen: it is loaded by the first such instruction and stays until TCG is left or something else wants to know or
 * change it. (TCG itself does not compute with floating-point numbers.) Otherwise it is loaded for the one instruction,
 * and the host's processor raises the exception itself, as SIGFPE, before anything is stored; the flags that it leaves
 * are the guest's. The table (swtdx_host_table.h) says what operands an opcode has.
 *
 * Stubs are written through one mapping of their memory and executed through another: nothing is ever both.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include <cpuid.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "swtdx_internal.h"
#include "swtdx_host.h"

#define ARENA_BYTES (2u << 20)
#define MXCSR_FLAGS 0x3fu
#define MXCSR_MASKS 0x1f80u
#define MXCSR_USABLE 0xffffu
#define HOST_SUMMARY 0x80

static const struct host_instruction instructions[] = {
#include "swtdx_host_table.h"
};

static uint8_t by_opcode[3][256][4]; /* 1 + index in instructions[] */
static void **stubs[ARRAY_SIZE(instructions)][2]; /* by REX.W; [256] where there is an immediate, else [1] */
static uint8_t *writable, *executable;
static unsigned used;
static pthread_mutex_t arena_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

/* ---- code ---- */

void swtdx_host_emit(struct host_code *code, const char *bytes, unsigned length)
{
    memcpy(code->bytes + code->length, bytes, length);
    code->length += length;
}

#define EMIT(code, bytes) swtdx_host_emit(code, bytes, sizeof(bytes) - 1)

static void open_arena(void)
{
    void *writing = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    void *executing;

    if (writing == MAP_FAILED) {
        return;
    }
    executing = mremap(writing, 0, ARENA_BYTES, MREMAP_MAYMOVE); /* an old size of 0 maps shared memory once more */
    if (executing == MAP_FAILED || mprotect(executing, ARENA_BYTES, PROT_READ | PROT_EXEC)) {
        munmap(writing, ARENA_BYTES);
        return;
    }
    writable = writing;
    executable = executing;
}

void *swtdx_host_place(const struct host_code *code)
{
    void *place = NULL;

    pthread_mutex_lock(&arena_mutex);
    if (!writable) {
        open_arena();
    }
    if (writable && used + code->length <= ARENA_BYTES) {
        memcpy(writable + used, code->bytes, code->length);
        place = executable + used;
        used += (code->length + 15) & ~15u;
    }
    pthread_mutex_unlock(&arena_mutex);
    return place;
}

/* The opcode with these operands: reg and rm of ModRM. */
static void emit_instruction(struct host_code *code, const struct host_instruction *instruction, unsigned prefix,
                             unsigned opcode, unsigned reg, unsigned rm, unsigned immediate, bool wide)
{
    static const char prefixes[] = { 0, 0x66, (char)0xf3, (char)0xf2 };
    static const char maps[] = { 0, 0x38, 0x3a };
    char modrm = 0xc0 | reg << 3 | rm, byte = opcode, value = immediate;

    if (prefix) {
        swtdx_host_emit(code, &prefixes[prefix], 1);
    }
    if (wide) {
        EMIT(code, "\x48");
    }
    EMIT(code, "\x0f");
    if (instruction->map) {
        swtdx_host_emit(code, &maps[instruction->map], 1);
    }
    swtdx_host_emit(code, &byte, 1);
    swtdx_host_emit(code, &modrm, 1);
    if (instruction->flags & HOST_IMMEDIATE) {
        swtdx_host_emit(code, &value, 1);
    }
}

/*
 * Conversions from and to MMX registers, done on vector registers, which leaves the x87 state alone: each has a twin
 * there that converts the same two elements. The other elements are zero and raise nothing.
 */
static void emit_mmx_conversion(struct host_code *code, const struct host_instruction *instruction)
{
    bool doubles = instruction->prefix, truncates = instruction->opcode == 0x2c;

    if (instruction->form == HOST_FROM_MMX) {
        EMIT(code, "\xf3\x0f\x7e\x0e"); /* movq xmm1, [rsi] */
        if (doubles) {
            EMIT(code, "\xf3\x0f\xe6\xc9\x0f\x11\x0f"); /* cvtdq2pd xmm1, xmm1; movups [rdi], xmm1 */
        } else {
            EMIT(code, "\x0f\x5b\xc9\x66\x0f\xd6\x0f"); /* cvtdq2ps xmm1, xmm1; movq [rdi], xmm1 */
        }
        return;
    }
    if (doubles) {
        EMIT(code, "\x0f\x10\x0e"); /* movups xmm1, [rsi] */
        swtdx_host_emit(code, truncates ? "\x66\x0f\xe6\xc9" : "\xf2\x0f\xe6\xc9", 4); /* cvt(t)pd2dq xmm1, xmm1 */
    } else {
        EMIT(code, "\xf3\x0f\x7e\x0e"); /* movq xmm1, [rsi] */
        swtdx_host_emit(code, truncates ? "\xf3\x0f\x5b\xc9" : "\x66\x0f\x5b\xc9", 4); /* cvt(t)ps2dq xmm1, xmm1 */
    }
    EMIT(code, "\x66\x0f\xd6\x0f"); /* movq [rdi], xmm1 */
}

static void emit_operation(struct host_code *code, const struct host_instruction *instruction, unsigned immediate,
                           bool wide)
{
    unsigned prefix = instruction->prefix, opcode = instruction->opcode;

    switch (instruction->form) {
    case HOST_VECTOR:
        EMIT(code, "\x0f\x10\x07\x0f\x10\x0e"); /* movups xmm0, [rdi]; movups xmm1, [rsi] */
        emit_instruction(code, instruction, prefix, opcode, 0, 1, immediate, false);
        EMIT(code, "\x0f\x11\x07"); /* movups [rdi], xmm0 */
        break;
    case HOST_XMM0:
        EMIT(code, "\x0f\x10\x17\x0f\x10\x0e\x41\x0f\x10\x00"); /* movups xmm2, [rdi]; xmm1, [rsi]; xmm0, [r8] */
        emit_instruction(code, instruction, prefix, opcode, 2, 1, immediate, false);
        EMIT(code, "\x0f\x11\x17"); /* movups [rdi], xmm2 */
        break;
    case HOST_FLAGS:
        EMIT(code, "\x0f\x10\x07\x0f\x10\x0e");
        emit_instruction(code, instruction, prefix, opcode, 0, 1, immediate, false);
        EMIT(code, "\x9c\x58"); /* pushfq; pop rax */
        break;
    case HOST_INDEX:
    case HOST_MASK:
        EMIT(code, "\x0f\x10\x07\x0f\x10\x0e\x48\x89\xd0\x48\x89\xca"); /* mov rax, rdx; mov rdx, rcx */
        emit_instruction(code, instruction, prefix, opcode, 0, 1, immediate, wide);
        EMIT(code, "\x9c\x58");
        if (instruction->form == HOST_INDEX) {
            EMIT(code, "\x48\xc1\xe1\x20\x48\x09\xc8"); /* shl rcx, 32; or rax, rcx */
        } else {
            EMIT(code, "\x41\x0f\x11\x00"); /* movups [r8], xmm0 */
        }
        break;
    case HOST_TO_GENERAL:
        EMIT(code, "\x0f\x10\x0e");
        emit_instruction(code, instruction, prefix, opcode, 0, 1, immediate, wide);
        break;
    case HOST_FROM_GENERAL:
        EMIT(code, "\x0f\x10\x07");
        emit_instruction(code, instruction, prefix, opcode, 0, 2, immediate, wide); /* xmm0, rdx */
        EMIT(code, "\x0f\x11\x07");
        break;
    case HOST_MMX:
        EMIT(code, "\x0f\x6f\x07\x0f\x6f\x0e"); /* movq mm0, [rdi]; movq mm1, [rsi] */
        emit_instruction(code, instruction, prefix, opcode, 0, 1, immediate, false);
        EMIT(code, "\x0f\x7f\x07\x0f\x77"); /* movq [rdi], mm0; emms */
        break;
    default:
        emit_mmx_conversion(code, instruction);
        break;
    }
    EMIT(code, "\xc3");
}

/* The stubs of one instruction, one for each immediate; NULL when there is no memory for their table. */
void **swtdx_host_slots(void ***place, unsigned count)
{
    void **table = __atomic_load_n(place, __ATOMIC_ACQUIRE);

    if (!table) {
        void **fresh = calloc(count, sizeof(*fresh));

        if (!fresh) {
            return NULL;
        }
        if (!__atomic_compare_exchange_n(place, &table, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            free(fresh); /* another thread was faster */
        } else {
            table = fresh;
        }
    }
    return table;
}

host_stub *swtdx_host_code(const struct host_instruction *instruction, unsigned immediate, bool wide)
{
    bool has_immediate = instruction->flags & HOST_IMMEDIATE;
    unsigned index = has_immediate ? immediate & 0xff : 0;
    struct host_code code = { .length = 0 };
    void **table = swtdx_host_slots(&stubs[instruction - instructions][wide], has_immediate ? 256 : 1), *stub;

    if (!table) {
        return NULL;
    }
    stub = __atomic_load_n(&table[index], __ATOMIC_ACQUIRE);
    if (!stub) {
        emit_operation(&code, instruction, immediate, wide);
        stub = swtdx_host_place(&code);
        __atomic_store_n(&table[index], stub, __ATOMIC_RELEASE);
    }
    return stub;
}

/* ---- the table ---- */

bool swtdx_host_has_sha(void)
{
    uint32_t eax, ebx, ecx, edx;

    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx >> 29 & 1); /* GCC 12 has no name for it */
}

static bool host_has(unsigned feature)
{
    /* clang-format off */
    switch (feature) {
    case HOST_SSE: case HOST_SSE2: return true;
    case HOST_SSE3: return __builtin_cpu_supports("sse3");
    case HOST_SSSE3: return __builtin_cpu_supports("ssse3");
    case HOST_SSE4_1: return __builtin_cpu_supports("sse4.1");
    case HOST_SSE4_2: return __builtin_cpu_supports("sse4.2");
    case HOST_AES: return __builtin_cpu_supports("aes");
    case HOST_PCLMULQDQ: return __builtin_cpu_supports("pclmul");
    default: return swtdx_host_has_sha();
    }
    /* clang-format on */
}

static void index_table(void)
{
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(instructions); i++) {
        const struct host_instruction *instruction = &instructions[i];

        if (host_has(instruction->feature)) {
            by_opcode[instruction->map][instruction->opcode][instruction->prefix] = i + 1;
        }
    }
}

QEMU_BUILD_BUG_ON(ARRAY_SIZE(instructions) >= 255);

const struct host_instruction *swtdx_host_instruction(unsigned map, unsigned opcode, unsigned prefix)
{
    unsigned index;

    pthread_once(&table_once, index_table);
    index = by_opcode[map][opcode][prefix];
    return index ? &instructions[index - 1] : NULL;
}

/* ---- whose floating-point control is loaded ---- */

static inline uint32_t get_mxcsr(void)
{
    uint32_t value;

    asm volatile("stmxcsr %0" : "=m"(value) : : "memory");
    return value;
}

static inline void put_mxcsr(uint32_t value)
{
    asm volatile("ldmxcsr %0" : : "m"(value) : "memory");
}

static __thread sigjmp_buf *float_trap;
static __thread uint32_t trapped_mxcsr;
static __thread bool traps_arrive; /* SIGFPE is known to arrive in on_float_trap(), until TCG is left */

/* TCG is about to run a guest: note what this process has in the registers that floating-point instructions obey. */
void swtdx_enter_float(CPUX86State *env)
{
    uint16_t status;

    float_trap = NULL;
    traps_arrive = false;
    env->swtdx_mxcsr = get_mxcsr();
    env->swtdx_mxcsr_loaded = false;
    asm volatile("fnstcw %0" : "=m"(env->swtdx_control));
    if (env->swtdx_control != HOST_CONTROL) {
        asm volatile("fldcw %0" : : "m"((uint16_t){ HOST_CONTROL }));
    }
    asm volatile("fnstsw %0" : "=a"(status));
    env->swtdx_status = status;
}

/* The guest's MXCSR is in env again, and the process's in the processor. */
void swtdx_unload_mxcsr(CPUX86State *env)
{
    if (env->swtdx_mxcsr_loaded) {
        env->swtdx_mxcsr_loaded = false;
        env->mxcsr = get_mxcsr();
        put_mxcsr(env->swtdx_mxcsr);
    }
}

/* Where a jump out of a signal handler lands: the handler began with registers of its own, and the guest's are lost. */
void swtdx_drop_mxcsr(CPUX86State *env)
{
    env->swtdx_mxcsr_loaded = false;
}

/* TCG is left: from here on this process computes with what it had, and nothing of the guest's can trap. */
void swtdx_leave_float(CPUX86State *env)
{
    uint16_t control, status;

    float_trap = NULL;
    swtdx_unload_mxcsr(env);
    put_mxcsr(env->swtdx_mxcsr);
    asm volatile("fnstsw %0\n\tfnstcw %1" : "=a"(status), "=m"(control));
    if (status & HOST_SUMMARY) {
        asm volatile("fnclex");
    }
    if (control != env->swtdx_control) {
        asm volatile("fldcw %0" : : "m"(env->swtdx_control));
    }
}

/* ---- exceptions that the guest has unmasked ---- */

static struct sigaction previous_fpe;

/*
 * A floating-point exception outside of run_unmasked() is a fault of ours. It must not end the process: while a guest
 * runs, mask it and go on.
 */
static void on_float_trap(int number, siginfo_t *info, void *context)
{
    struct _libc_fpstate *registers = ((ucontext_t *)context)->uc_mcontext.fpregs;

    if (float_trap) {
        trapped_mxcsr = registers->mxcsr;
        siglongjmp(*float_trap, 1);
    }
    if (swtdx_is_executing() && info->si_code > 0 && info->si_code != FPE_INTDIV && info->si_code != FPE_INTOVF) {
        registers->mxcsr = (registers->mxcsr | MXCSR_MASKS) & ~MXCSR_FLAGS;
        registers->cwd |= MXCSR_FLAGS;
        registers->swd &= ~(HOST_SUMMARY | 0x8000 | MXCSR_FLAGS);
        return;
    }
    if (previous_fpe.sa_flags & SA_SIGINFO) {
        previous_fpe.sa_sigaction(number, info, context);
    } else if (previous_fpe.sa_handler != SIG_DFL && previous_fpe.sa_handler != SIG_IGN) {
        previous_fpe.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* returning repeats the fault, now fatally */
    }
}

/*
 * See to it that SIGFPE arrives in on_float_trap(): another library may have put its handler in place of ours, or
 * blocked the signal, since the last time. Only guests that unmask exceptions pay for it.
 */
void swtdx_catch_float_traps(void)
{
    struct sigaction action = { .sa_sigaction = on_float_trap, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK },
                     current;
    sigset_t floats;

    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&arena_mutex);
    if (!sigaction(SIGFPE, NULL, &current) &&
        (!(current.sa_flags & SA_SIGINFO) || current.sa_sigaction != on_float_trap)) {
        previous_fpe = current;
        sigaction(SIGFPE, &action, NULL);
    }
    pthread_mutex_unlock(&arena_mutex);
    sigemptyset(&floats);
    sigaddset(&floats, SIGFPE);
    pthread_sigmask(SIG_UNBLOCK, &floats, NULL);
}

static uint64_t run_unmasked(CPUX86State *env, void *destination, void *source, uint64_t a, host_stub *stub,
                             uintptr_t retaddr)
{
    sigjmp_buf trap;
    uint64_t result;

    if (!traps_arrive) { /* system calls, which take far longer than an instruction */
        swtdx_catch_float_traps();
        traps_arrive = true;
    }
    if (sigsetjmp(trap, 0)) {
        float_trap = NULL;
        put_mxcsr(env->swtdx_mxcsr);
        env->mxcsr = trapped_mxcsr & MXCSR_USABLE;
        raise_exception_ra(env, env->cr[4] & CR4_OSXMMEXCPT_MASK ? 19 : EXCP06_ILLOP, retaddr);
    }
    float_trap = &trap;
    put_mxcsr(env->mxcsr);
    result = stub(destination, source, a, 0, env->xmm_regs);
    env->mxcsr = get_mxcsr();
    put_mxcsr(env->swtdx_mxcsr);
    float_trap = NULL;
    return result;
}

/* The first floating-point instruction since the guest's MXCSR was in env. */
static uint64_t __attribute__((noinline)) run_float_first(CPUX86State *env, void *destination, void *source, uint64_t a,
                                                          host_stub *stub, uintptr_t retaddr)
{
    if ((env->mxcsr & MXCSR_MASKS) != MXCSR_MASKS) {
        return run_unmasked(env, destination, source, a, stub, retaddr);
    }
    env->swtdx_mxcsr_loaded = true;
    put_mxcsr(env->mxcsr);
    return stub(destination, source, a, 0, env->xmm_regs);
}

static inline uint64_t run_float(CPUX86State *env, void *destination, void *source, uint64_t a, host_stub *stub,
                                 uintptr_t retaddr)
{
    if (likely(env->swtdx_mxcsr_loaded)) {
        return stub(destination, source, a, 0, env->xmm_regs);
    }
    return run_float_first(env, destination, source, a, stub, retaddr);
}

/* For instructions of swtdx_vex.c. */
uint64_t swtdx_run_float(CPUX86State *env, void *destination, void *source, uint64_t a, host_stub *stub,
                         uintptr_t retaddr)
{
    return run_float(env, destination, source, a, stub, retaddr);
}

/* ---- what translated code calls ---- */

void helper_swtdx_host(CPUX86State *env, void *destination, void *source, void *stub)
{
    ((host_stub *)stub)(destination, source, 0, 0, env->xmm_regs);
}

uint64_t helper_swtdx_host_value(CPUX86State *env, void *destination, void *source, void *stub)
{
    return ((host_stub *)stub)(destination, source, env->regs[R_EAX], env->regs[R_EDX], env->xmm_regs);
}

void helper_swtdx_float(CPUX86State *env, void *destination, void *source, void *stub)
{
    run_float(env, destination, source, 0, stub, GETPC());
}

void helper_swtdx_float_from(CPUX86State *env, void *destination, uint64_t value, void *stub)
{
    run_float(env, destination, destination, value, stub, GETPC());
}

uint64_t helper_swtdx_float_value(CPUX86State *env, void *destination, void *source, void *stub)
{
    return run_float(env, destination, source, 0, stub, GETPC());
}

/* env->mxcsr is about to be read. */
void helper_swtdx_sync_mxcsr(CPUX86State *env)
{
    if (env->swtdx_mxcsr_loaded) {
        env->mxcsr = get_mxcsr();
    }
}

/* LDMXCSR: bits that the processor does not have are #GP. */
void helper_swtdx_ldmxcsr(CPUX86State *env, uint32_t value)
{
    if (value & ~MXCSR_USABLE) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    cpu_set_mxcsr(env, value);
}
