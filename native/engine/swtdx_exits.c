/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What makes a guest exit, and what the exit says: VMX's rules at TCG's intercept points.
 *
 * Exits are fault-like: registers and RIP are those before the instruction, whose length is reported. TCG does not hand
 * the length of every intercepted instruction over, so it is taken from the code: prefixes and opcode.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "tcg/tcg.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

#define PREFIX_LIMIT 14
#define CACHE_LINE 64u
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CR0_DEFINED 0xe005003fu /* other bits of the lower half are ignored */
#define PHYSICAL_ADDRESS ((1ull << 52) - 1)

void swtdx_exit_now(CPUX86State *env, uint32_t reason, uintptr_t retaddr)
{
    CPUState *cs = env_cpu(env);
    swtdx_engine *engine = env->uc->swtdx;
    swtdx_cpu *cpu = engine->current;

    if (retaddr) {
        cpu_restore_state(cs, retaddr, true);
    }
    if (cpu->delivering.valid) { /* the event was on its way: it starts again at the next entry */
        cpu->event = cpu->delivering;
        cpu->delivering.valid = 0;
    }
    cpu->exit.reason = reason;
    engine->exited = true;
    env->old_exception = -1;
    cs->exception_index = EXCP_VMEXIT;
    cpu_loop_exit(cs);
}

/* TCG cannot translate the instruction at RIP: it needs more room than a block has. None is known. */
void swtdx_untranslatable(CPUX86State *env)
{
    raise_exception(env, EXCP06_ILLOP);
}

void swtdx_svm_exit(CPUX86State *env, uint32_t code, uintptr_t retaddr)
{
    /* TCG itself asks only for a shutdown: everything else goes through swtdx_intercept(). */
    swtdx_current(env)->delivering.valid = 0;
    swtdx_exit_now(env, SWTDX_EXIT_TRIPLE_FAULT, retaddr);
}

target_ulong swtdx_code_address(CPUX86State *env)
{
    target_ulong address = env->segs[R_CS].base + env->eip;

    return env->hflags & HF_CS64_MASK ? address : (uint32_t)address;
}

struct swtdx_prefixes swtdx_read_prefixes(CPUX86State *env)
{
    struct swtdx_prefixes result = { 0, -1, false, false };
    target_ulong address = swtdx_code_address(env);

    for (; result.length < PREFIX_LIMIT; result.length++) {
        uint8_t byte = cpu_ldub_code(env, address + result.length);

        /* clang-format off */
        switch (byte) {
        case 0x26: result.segment = R_ES; continue;
        case 0x2e: result.segment = R_CS; continue;
        case 0x36: result.segment = R_SS; continue;
        case 0x3e: result.segment = R_DS; continue;
        case 0x64: result.segment = R_FS; continue;
        case 0x65: result.segment = R_GS; continue;
        case 0x66: result.operand_size = true; continue;
        case 0x67: result.address_size = true; continue;
        case 0xf0: case 0xf2: case 0xf3: continue;
        }
        /* clang-format on */
        if ((byte & 0xf0) == 0x40 && (env->hflags & HF_CS64_MASK)) {
            continue;
        }
        break;
    }
    return result;
}

/* Exit at an instruction whose opcode (without prefixes) has this length. */
static void QEMU_NORETURN exit_instruction(CPUX86State *env, uint32_t reason, int opcode_length, uint64_t qualification,
                                           uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);

    if (retaddr) {
        cpu_restore_state(env_cpu(env), retaddr, true);
    }
    cpu->exit.qualification = qualification;
    cpu->exit.instruction_length = opcode_length + swtdx_read_prefixes(env).length;
    swtdx_exit_now(env, reason, 0);
}

/* Before a locked access (SDM volume 3, 27.2: the exit is a trap): a split one is executed alone, and its exit follows.
 * What is locked is write-back memory, so that no other access locks the bus. */
void helper_swtdx_bus_lock(CPUX86State *env, target_ulong address, uint32_t bytes)
{
    CPUState *cs = env_cpu(env);
    TranslationBlock *block;

    if (likely((address & (CACHE_LINE - 1)) + bytes <= CACHE_LINE)) {
        return;
    }
    block = tcg_tb_lookup(cs->uc->tcg_ctx, GETPC());
    if (block && block->icount != 1) {
        swtdx_alone(cs, GETPC());
    }
    env->uc->swtdx->bus_locked = true;
    cpu_exit(cs);
}

bool swtdx_has_error_code(unsigned vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static void intercept_exception(CPUX86State *env, unsigned vector, unsigned type, uint32_t error_code,
                                uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);
    bool error = type == SWTDX_EVENT_HARDWARE_EXCEPTION && swtdx_has_error_code(vector);
    uint32_t reason = SWTDX_EXIT_EXCEPTION_NMI;

    if (!(cpu->exception_bitmap >> vector & 1)) {
        return;
    }
    cpu->exit.interruption_info = 1u << 31 | error << 11 | type << 8 | vector;
    cpu->exit.interruption_error = error ? error_code : 0;
    cpu->exit.instruction_length = type == SWTDX_EVENT_SOFTWARE_EXCEPTION ? 1 : 0;
    cpu->exit.qualification = 0;
    if (vector == EXCP0E_PAGE) { /* TCG leaves CR2 alone when the fault is intercepted */
        memcpy(&cpu->exit.qualification, env->uc->swtdx->scratch + 0x80, 8);
    } else if (vector == EXCP01_DB) {
        cpu->exit.qualification = env->uc->swtdx->debug_reasons;
        reason |= env->uc->swtdx->bus_locked ? SWTDX_BUS_LOCK_DETECTED : 0; /* both are traps of one instruction */
    }
    swtdx_exit_now(env, reason, retaddr);
}

/*
 * MOV to or from a debug register. DR7.GD comes before the exit (SDM volume 3, 27.1.1). Qualification: register 2:0 (as
 * the instruction names it), 4 from, 11:8 GPR.
 */
static void check_dr_access(CPUX86State *env, int number, bool from, uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);
    struct swtdx_prefixes prefixes;
    uint8_t modrm, rex = 0;
    int gpr;

    if (env->dr[7] & DR7_GD && !cpu->dr_exiting) {
        cpu_restore_state(env_cpu(env), retaddr, true);
        swtdx_raise_debug(env, DR6_BD);
    }
    if (!cpu->dr_exiting && (from || number < 4)) {
        return;
    }
    cpu_restore_state(env_cpu(env), retaddr, true);
    prefixes = swtdx_read_prefixes(env);
    if (prefixes.length && (env->hflags & HF_CS64_MASK)) {
        rex = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length - 1);
        rex = (rex & 0xf0) == 0x40 ? rex : 0;
    }
    modrm = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length + 2);
    gpr = (modrm & 7) | (rex & 1) << 3;
    if (cpu->dr_exiting) {
        exit_instruction(env, SWTDX_EXIT_DR_ACCESS, 3, number | from << 4 | gpr << 8, 0);
    }
    if ((env->hflags & HF_CS64_MASK) && env->regs[gpr] >> 32 && (number >= 6 || !(env->cr[4] & CR4_DE_MASK))) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, 0); /* DR6 and DR7 have 32 bits; 4 and 5 stand for them */
    }
}

void swtdx_intercept(CPUX86State *env, uint32_t type, uint64_t param, uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);

    if (type >= SVM_EXIT_READ_DR0 && type < SVM_EXIT_READ_DR0 + 32) { /* 16 for reads, 16 for writes */
        check_dr_access(env, type & 7, type < SVM_EXIT_WRITE_DR0, retaddr);
        return;
    }
    if (type >= SVM_EXIT_EXCP_BASE && type < SVM_EXIT_EXCP_BASE + 32) {
        intercept_exception(env, type - SVM_EXIT_EXCP_BASE, SWTDX_EVENT_HARDWARE_EXCEPTION, param, retaddr);
        return;
    }
    switch (type) {
    case SVM_EXIT_SWINT:
        if (param == EXCP03_INT3 || param == EXCP04_INTO) {
            intercept_exception(env, param, SWTDX_EVENT_SOFTWARE_EXCEPTION, 0, retaddr);
        }
        break;
    case SVM_EXIT_CPUID:
        exit_instruction(env, SWTDX_EXIT_CPUID, 2, 0, retaddr);
    case SVM_EXIT_HLT:
        if (cpu->no_hlt_exiting && !(env->eflags & TF_MASK)) {
            break; /* TCG halts; but it would lose the #DB of a single step: that is the kernel's */
        }
        exit_instruction(env, SWTDX_EXIT_HLT, 1, 0, retaddr);
    case SVM_EXIT_INVD:
        exit_instruction(env, SWTDX_EXIT_INVD, 2, 0, retaddr);
    case SVM_EXIT_WBINVD:
        exit_instruction(env, SWTDX_EXIT_WBINVD, 2, 0, retaddr);
    case SVM_EXIT_RDPMC:
        exit_instruction(env, SWTDX_EXIT_RDPMC, 2, 0, retaddr);
    case SVM_EXIT_MONITOR:
        exit_instruction(env, SWTDX_EXIT_MONITOR, 3, 0, retaddr);
    case SVM_EXIT_MWAIT:
        exit_instruction(env, SWTDX_EXIT_MWAIT, 3, 0, retaddr);
    case SVM_EXIT_RDTSC:
        if (cpu->rdtsc_exiting) {
            exit_instruction(env, SWTDX_EXIT_RDTSC, 2, 0, retaddr);
        }
        break;
    case SVM_EXIT_PAUSE: /* it leaves TCG, not the guest */
        env->uc->swtdx->paused = true;
        break;
    case SWTDX_VMCALL:
        exit_instruction(env, SWTDX_EXIT_VMCALL, 3, 0, retaddr);
    case SWTDX_XSETBV:
        if (!(env->cr[4] & CR4_OSXSAVE_MASK)) { /* before the exit */
            raise_exception_err_ra(env, EXCP06_ILLOP, 0, retaddr);
        }
        exit_instruction(env, SWTDX_EXIT_XSETBV, 3, 0, retaddr);
    case SWTDX_TDCALL:
        if (!cpu->tdx) {
            break; /* #UD outside SEAM non-root operation */
        }
        if (!(env->hflags & HF_CS64_MASK) || (env->hflags & HF_CPL_MASK)) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        if (retaddr) {
            cpu_restore_state(env_cpu(env), retaddr, true);
        }
        cpu->exit.instruction_length = 3 + swtdx_read_prefixes(env).length;
        cpu->exit.qualification = 0;
        swtdx_exit_now(env, SWTDX_EXIT_TDCALL, 0);
    case SVM_EXIT_INTR:
        swtdx_exit_now(env, SWTDX_EXIT_INTERRUPT_WINDOW, retaddr);
    case SVM_EXIT_NMI:
        swtdx_exit_now(env, SWTDX_EXIT_NMI_WINDOW, retaddr);
    }
}

/* param is SVM's: bit 0 IN, 2 string, 3 REP, 6:4 size in bytes (one-hot). */
void swtdx_intercept_io(CPUX86State *env, uint32_t port, uint32_t param, uint32_t length, uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);
    bool in = param & 1, string = param & 4;
    struct swtdx_prefixes prefixes;
    uint8_t opcode;

    cpu_restore_state(env_cpu(env), retaddr, true);
    prefixes = swtdx_read_prefixes(env);
    opcode = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length);
    cpu->exit.qualification = ((param >> 4 & 7) - 1) | in << 3 | string << 4 | (string && (param & 8)) << 5 |
                              (opcode >= 0xe4 && opcode <= 0xe7) << 6 | (uint64_t)(port & 0xffff) << 16;
    cpu->exit.instruction_length = length;
    if (string) {
        bool wide = env->hflags & HF_CS64_MASK, dword = env->hflags & HF_CS32_MASK;
        int size = wide ? (prefixes.address_size ? 1 : 2) : dword != prefixes.address_size;
        int segment = in ? R_ES : prefixes.segment < 0 ? R_DS : prefixes.segment;
        target_ulong offset = env->regs[in ? R_EDI : R_ESI];

        offset = size == 2 ? offset : size == 1 ? (uint32_t)offset : (uint16_t)offset;
        cpu->exit.instruction_info = size << 7 | segment << 15;
        cpu->exit.linear_address = offset + (wide && segment < R_FS ? 0 : env->segs[segment].base);
    }
    swtdx_exit_now(env, SWTDX_EXIT_IO, 0);
}

static bool msr_exits(swtdx_cpu *cpu, uint32_t index, bool write)
{
    unsigned half = index >> 13, offset = write ? 2048 : 0;

    if (half != 0 && half != 0xc0000000u >> 13) {
        return true;
    }
    offset += (half ? 1024 : 0) + (index >> 3 & 1023);
    return cpu->msr_bitmap[offset] >> (index & 7) & 1;
}

/* MSRs that TCG's own helpers implement. */
static bool tcg_has_msr(uint32_t index)
{
    /* clang-format off */
    switch (index) {
    case MSR_IA32_SYSENTER_CS: case MSR_IA32_SYSENTER_ESP: case MSR_IA32_SYSENTER_EIP: case MSR_EFER: case MSR_STAR:
    case MSR_PAT: case MSR_LSTAR: case MSR_CSTAR: case MSR_FMASK: case MSR_FSBASE: case MSR_GSBASE:
    case MSR_KERNELGSBASE: case MSR_TSC_AUX: case MSR_IA32_MISC_ENABLE:
        return true;
    default:
        return false;
    }
    /* clang-format on */
}

/* MSRs that hold a linear address: WRMSR takes a canonical one only. */
static bool holds_address(uint32_t index)
{
    /* clang-format off */
    switch (index) {
    case MSR_IA32_SYSENTER_ESP: case MSR_IA32_SYSENTER_EIP: case MSR_LSTAR: case MSR_CSTAR: case MSR_FSBASE:
    case MSR_GSBASE: case MSR_KERNELGSBASE:
        return true;
    default:
        return false;
    }
    /* clang-format on */
}

static void set_edx_eax(CPUX86State *env, uint64_t value)
{
    env->regs[R_EAX] = (uint32_t)value;
    env->regs[R_EDX] = value >> 32;
}

bool swtdx_rdmsr(CPUX86State *env, uintptr_t retaddr)
{
    uint32_t index = env->regs[R_ECX];
    swtdx_cpu *cpu;
    uint64_t value;

    if (!env->uc->swtdx) {
        return false;
    }
    cpu = swtdx_current(env);
    if (msr_exits(cpu, index, false)) {
        exit_instruction(env, SWTDX_EXIT_RDMSR, 2, 0, retaddr);
    }
    if (tcg_has_msr(index)) {
        return false;
    }
    if (index == 0x10) {
        set_edx_eax(env, swtdx_guest_tsc(env, cpu_get_tsc(env)));
        return true;
    }
    if (swtdx_apic_read(cpu, index, &value) || swtdx_get_msr(cpu, index, &value)) {
        set_edx_eax(env, value);
        return true;
    }
    raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    return true;
}

bool swtdx_wrmsr(CPUX86State *env, uintptr_t retaddr)
{
    uint32_t index = env->regs[R_ECX];
    uint64_t value = (uint32_t)env->regs[R_EAX] | env->regs[R_EDX] << 32;
    swtdx_cpu *cpu;

    if (!env->uc->swtdx) {
        return false;
    }
    cpu = swtdx_current(env);
    if (msr_exits(cpu, index, true)) {
        exit_instruction(env, SWTDX_EXIT_WRMSR, 2, 0, retaddr);
    }
    /* at the width that the processor has, whatever the guest's paging */
    if (holds_address(index) && !swtdx_canonical_base(value)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    }
    if (tcg_has_msr(index)) {
        return false;
    }
    if (index == 0x49 || index == 0x10b) { /* PRED_CMD, FLUSH_CMD: commands, with nothing to predict or flush */
        return true;
    }
    if (swtdx_apic_write(env, cpu, index, value, retaddr) || (index != 0x10 && swtdx_set_msr(cpu, index, value))) {
        return true;
    }
    raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
    return true;
}

target_ulong swtdx_read_cr(CPUX86State *env, int reg, uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);

    switch (reg) {
    case 0:
        return (env->cr[0] & ~cpu->cr0_mask) | (cpu->cr0_shadow & cpu->cr0_mask);
    case 4:
        return (env->cr[4] & ~cpu->cr4_mask) | (cpu->cr4_shadow & cpu->cr4_mask);
    case 8:
        return cpu->vapic[0x80] >> 4;
    default:
        return env->cr[reg];
    }
}

static void QEMU_NORETURN exit_cr_write(CPUX86State *env, int reg, target_ulong value, uintptr_t retaddr)
{
    struct swtdx_prefixes prefixes;
    uint64_t qualification = reg;
    uint8_t opcode, modrm, rex = 0;

    if (retaddr) {
        cpu_restore_state(env_cpu(env), retaddr, true);
    }
    prefixes = swtdx_read_prefixes(env);
    if (prefixes.length && (env->hflags & HF_CS64_MASK)) {
        rex = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length - 1);
        rex = (rex & 0xf0) == 0x40 ? rex : 0;
    }
    opcode = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length + 1);
    modrm = cpu_ldub_code(env, swtdx_code_address(env) + prefixes.length + 2);
    if (opcode == 0x01) { /* LMSW */
        qualification |= 3 << 4 | (uint64_t)(value & 0xffff) << 16 | (modrm >> 6 != 3) << 6;
    } else {
        qualification |= ((modrm & 7) | (rex & 1) << 3) << 8;
    }
    exit_instruction(env, SWTDX_EXIT_CR_ACCESS, 3, qualification, 0);
}

target_ulong swtdx_write_cr(CPUX86State *env, int reg, target_ulong value, uintptr_t retaddr)
{
    swtdx_cpu *cpu = swtdx_current(env);

    switch (reg) {
    case 0:
        if ((value ^ cpu->cr0_shadow) & cpu->cr0_mask) {
            exit_cr_write(env, reg, value, retaddr);
        }
        if (value & ~(uint64_t)env->cr[0] & CR0_PG_MASK && (env->efer & MSR_EFER_LME) &&
            (env->segs[R_CS].flags & DESC_L_MASK)) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        if (!(value & CR0_PG_MASK) && (env->hflags & HF_CS64_MASK)) { /* paging stays on in 64-bit mode */
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        if (value >> 32 || ((value & CR0_PG_MASK) && !(value & CR0_PE_MASK)) ||
            ((value & CR0_NW) && !(value & CR0_CD)) ||
            ((value & CR0_PG_MASK) && !(env->cr[0] & CR0_PG_MASK) && (env->efer & MSR_EFER_LME) &&
             !(env->cr[4] & CR4_PAE_MASK))) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        return (value & ~cpu->cr0_mask & CR0_DEFINED) | (env->cr[0] & cpu->cr0_mask) | CR0_ET_MASK;
    case 4:
        if ((value ^ cpu->cr4_shadow) & cpu->cr4_mask) {
            exit_cr_write(env, reg, value, retaddr);
        }
        if ((env->efer & MSR_EFER_LMA) && (!(value & CR4_PAE_MASK) || ((value ^ env->cr[4]) & CR4_LA57_MASK))) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        return (value & ~cpu->cr4_mask) | (env->cr[4] & cpu->cr4_mask);
    case 3:
        if (value & ~PHYSICAL_ADDRESS) { /* no PCID, so that bit 63 is reserved, too */
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        return value;
    case 8:
        if (value > 15) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
        }
        cpu->vapic[0x80] = value << 4;
        swtdx_evaluate_interrupts(cpu, env_cpu(env));
        return value;
    default:
        return value;
    }
}

uint64_t swtdx_guest_tsc(CPUX86State *env, uint64_t host)
{
    swtdx_cpu *cpu;

    if (!env->uc->swtdx) {
        return host + env->tsc_offset;
    }
    cpu = swtdx_current(env);
    if (unlikely(cpu->engine->package->counting)) {
        host = swtdx_counted_ns(cpu->engine->package);
    }
    host = (unsigned __int128)host * cpu->engine->tsc_ratio >> 48; /* the processor's own counter */
    host += cpu->engine->package->tsc_bias;
    return (uint64_t)((unsigned __int128)host * cpu->tsc_multiplier >> 48) + cpu->tsc_offset;
}
