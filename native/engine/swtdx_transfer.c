/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fast system calls (SDM volume 2: SYSCALL, SYSRET, SYSENTER, SYSEXIT), in Intel's form: SYSCALL and SYSRET exist in
 * 64-bit mode only, SYSENTER and SYSEXIT in every protected mode, and no return leads to an address that is not
 * canonical.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

#define CODE_FLAGS (DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_R_MASK | DESC_A_MASK)
#define STACK_FLAGS (DESC_G_MASK | DESC_B_MASK | DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK)
#define USER_FLAGS (3 << DESC_DPL_SHIFT)
#define SYSRET_FLAGS 0x3c7fd7u /* what RFLAGS takes from R11 */

/* Whether bits 63:47 (63:56 with five-level paging) are equal. */
bool swtdx_canonical(CPUX86State *env, uint64_t address)
{
    unsigned unused = env->cr[4] & CR4_LA57_MASK ? 7 : 16;

    return (int64_t)(address << unused) >> unused == (int64_t)address;
}

/*
 * What a descriptor table's base, the base of TR and LDTR, and MSRs may hold: the width is the processor's, 57 bits,
 * whatever the guest's paging (SDM volume 3, 4.5.2).
 */
bool swtdx_canonical_base(uint64_t address)
{
    return (int64_t)(address << 7) >> 7 == (int64_t)address;
}

void helper_swtdx_check_base(CPUX86State *env, target_ulong base)
{
    if (!swtdx_canonical_base(base)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}

static void load_flat(CPUX86State *env, int selector, uint32_t code_flags, uint32_t privilege)
{
    cpu_x86_load_seg_cache(env, R_CS, (selector & 0xfffc) | privilege, 0, 0xffffffff,
                           CODE_FLAGS | code_flags | privilege << DESC_DPL_SHIFT);
    cpu_x86_load_seg_cache(env, R_SS, ((selector + 8) & 0xfffc) | privilege, 0, 0xffffffff,
                           STACK_FLAGS | privilege << DESC_DPL_SHIFT);
}

static void QEMU_NORETURN protection_fault(CPUX86State *env, uintptr_t retaddr)
{
    raise_exception_err_ra(env, EXCP0D_GPF, 0, retaddr);
}

void swtdx_syscall(CPUX86State *env, int instruction_length, uintptr_t retaddr)
{
    uint32_t flags;

    if (!(env->efer & MSR_EFER_SCE) || !(env->hflags & HF_CS64_MASK)) {
        raise_exception_err_ra(env, EXCP06_ILLOP, 0, retaddr);
    }
    flags = cpu_compute_eflags(env);
    env->regs[R_ECX] = env->eip + instruction_length;
    env->regs[11] = flags & ~RF_MASK;
    flags &= ~(env->fmask | RF_MASK | VM_MASK);
    cpu_load_eflags(env, flags, ~(CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK));
    load_flat(env, env->star >> 32 & 0xffff, DESC_L_MASK, 0);
    env->eip = env->lstar;
}

void swtdx_sysret(CPUX86State *env, bool wide, uintptr_t retaddr)
{
    uint32_t selector = env->star >> 48;

    if (!(env->efer & MSR_EFER_SCE) || !(env->hflags & HF_CS64_MASK)) {
        raise_exception_err_ra(env, EXCP06_ILLOP, 0, retaddr);
    }
    if ((env->hflags & HF_CPL_MASK) || (wide && !swtdx_canonical(env, env->regs[R_ECX]))) {
        protection_fault(env, retaddr);
    }
    cpu_load_eflags(env, env->regs[11] & SYSRET_FLAGS, (uint32_t)~(CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK));
    env->eip = wide ? env->regs[R_ECX] : (uint32_t)env->regs[R_ECX];
    cpu_x86_load_seg_cache(env, R_CS, ((selector + (wide ? 16 : 0)) & 0xfffc) | 3, 0, 0xffffffff,
                           CODE_FLAGS | USER_FLAGS | (wide ? DESC_L_MASK : DESC_B_MASK));
    cpu_x86_load_seg_cache(env, R_SS, ((selector + 8) & 0xfffc) | 3, 0, 0xffffffff, STACK_FLAGS | USER_FLAGS);
}

void swtdx_sysenter(CPUX86State *env, uintptr_t retaddr)
{
    bool wide = env->hflags & HF_LMA_MASK;

    if (!(env->cr[0] & CR0_PE_MASK) || !(env->sysenter_cs & 0xfffc)) {
        protection_fault(env, retaddr);
    }
    env->eflags &= ~(VM_MASK | IF_MASK | RF_MASK);
    load_flat(env, env->sysenter_cs, wide ? DESC_L_MASK : DESC_B_MASK, 0);
    env->regs[R_ESP] = wide ? env->sysenter_esp : (uint32_t)env->sysenter_esp;
    env->eip = wide ? env->sysenter_eip : (uint32_t)env->sysenter_eip;
}

void swtdx_sysexit(CPUX86State *env, bool wide, uintptr_t retaddr)
{
    if (!(env->cr[0] & CR0_PE_MASK) || !(env->sysenter_cs & 0xfffc) || (env->hflags & HF_CPL_MASK) ||
        (wide && !(swtdx_canonical(env, env->regs[R_ECX]) && swtdx_canonical(env, env->regs[R_EDX])))) {
        protection_fault(env, retaddr);
    }
    load_flat(env, env->sysenter_cs + (wide ? 32 : 16), wide ? DESC_L_MASK : DESC_B_MASK, 3);
    env->regs[R_ESP] = wide ? env->regs[R_ECX] : (uint32_t)env->regs[R_ECX];
    env->eip = wide ? env->regs[R_EDX] : (uint32_t)env->regs[R_EDX];
}
