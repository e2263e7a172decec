/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Instructions and events that store, or load, more than one item. A fault restarts an instruction, so that nothing of
 * it may have happened: where the items are not all in one page, each is asked for first, in the order in which it is
 * stored. A store of one item over two pages is TCG's affair.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

static void probe(CPUX86State *env, target_ulong address, unsigned bytes, MMUAccessType access, int mmu_index,
                  uintptr_t retaddr)
{
    while (bytes) {
        unsigned piece = MIN(bytes, -(address | TARGET_PAGE_MASK));

        probe_access(env, address, 0, access, mmu_index, retaddr); /* no bytes: no breakpoint is met */
        address += piece;
        bytes -= piece;
    }
}

/* #AC: with CR0.AM and EFLAGS.AC, accesses of CPL 3 are to be aligned (SDM volume 3, 6.15). */
static bool is_unaligned(CPUX86State *env, target_ulong address, unsigned bytes, int mmu_index)
{
    return (address & (bytes - 1)) && mmu_index == MMU_USER_IDX && (env->hflags & HF_AM_MASK) &&
           (env->eflags & AC_MASK);
}

void swtdx_check_alignment(CPUX86State *env, target_ulong address, unsigned bytes, int mmu_index, uintptr_t retaddr)
{
    if (is_unaligned(env, address, bytes, mmu_index)) {
        probe(env, address, bytes, MMU_DATA_LOAD, mmu_index, retaddr); /* page faults come first */
        raise_exception_err_ra(env, EXCP11_ALGN, 0, retaddr);
    }
}

/* An item of a stack. */
static void probe_item(CPUX86State *env, target_ulong address, unsigned bytes, MMUAccessType access, int mmu_index,
                       uintptr_t retaddr)
{
    probe(env, address, bytes, access, mmu_index, retaddr);
    swtdx_check_alignment(env, address, bytes, mmu_index, retaddr);
}

/* #SS for an address that is not canonical; other code does not reach it. */
static void check_stack_address(CPUX86State *env, target_ulong address, uintptr_t retaddr)
{
    if ((env->hflags & HF_LMA_MASK) && !swtdx_canonical(env, address)) {
        raise_exception_err_ra(env, EXCP0C_STACK, 0, retaddr);
    }
}

/* What RET and IRET look at before they pop, items of this size. */
void swtdx_check_pops(CPUX86State *env, target_ulong address, unsigned bytes, int mmu_index, uintptr_t retaddr)
{
    check_stack_address(env, address, retaddr);
    swtdx_check_alignment(env, address, bytes, mmu_index, retaddr);
}

static bool in_one_page(target_ulong address, unsigned bytes)
{
    return -(address | TARGET_PAGE_MASK) >= bytes;
}

/* Raise the fault that a store of these bytes would have. */
void swtdx_probe_store(CPUX86State *env, target_ulong address, unsigned bytes, uintptr_t retaddr)
{
    if (!in_one_page(address, bytes)) {
        probe(env, address, bytes, MMU_DATA_STORE, cpu_mmu_index(env, false), retaddr);
    }
}

void swtdx_probe_load(CPUX86State *env, target_ulong address, unsigned bytes, uintptr_t retaddr)
{
    if (!in_one_page(address, bytes)) {
        probe(env, address, bytes, MMU_DATA_LOAD, cpu_mmu_index(env, false), retaddr);
    }
}

/* The same for the bytes of a MASKMOVQ or MASKMOVDQU that are stored. */
void swtdx_probe_masked_store(CPUX86State *env, target_ulong address, const uint8_t *masks, unsigned bytes,
                              uintptr_t retaddr)
{
    unsigned i;

    for (i = 0; i < bytes && !in_one_page(address, bytes); i++) {
        if (masks[i] & 0x80) {
            probe(env, address + i, 1, MMU_DATA_STORE, cpu_mmu_index(env, false), retaddr);
        }
    }
}

/* Raise the fault that this many pushes would have. mask: of the stack pointer. */
void swtdx_probe_pushes(CPUX86State *env, target_ulong base, target_ulong sp, target_ulong mask, unsigned size,
                        unsigned count, int mmu_index, uintptr_t retaddr)
{
    target_ulong last = swtdx_stack_address(base, sp - size * count, mask);
    unsigned i;

    check_stack_address(env, last, retaddr);
    /* a stack pointer that wraps has its last item above its first one */
    if (in_one_page(last, size * count) && swtdx_stack_address(base, sp - size, mask) >= last &&
        !is_unaligned(env, last, size, mmu_index)) {
        return;
    }
    for (i = 1; i <= count; i++) {
        probe_item(env, swtdx_stack_address(base, sp - size * i, mask), size, MMU_DATA_STORE, mmu_index, retaddr);
    }
}

/* The alignment hook of TCG's accesses: SSE's of 16 bytes, and all of CPL 3 where they are #AC. */
void swtdx_unaligned_access(CPUState *cs, vaddr address, MMUAccessType access, int mmu_index, uintptr_t retaddr)
{
    if (cs->swtdx_alignment < 4) {
        probe_access(cs->env_ptr, address, 0, access, mmu_index, retaddr); /* page faults come first */
        raise_exception_err_ra(cs->env_ptr, EXCP11_ALGN, 0, retaddr);
    }
    raise_exception_err_ra(cs->env_ptr, EXCP0D_GPF, 0, retaddr);
}

/* ---- what translated code calls ---- */

void helper_swtdx_probe_store(CPUX86State *env, target_ulong address, uint32_t bytes)
{
    swtdx_probe_store(env, address, bytes, GETPC());
}

static target_ulong stack_mask(CPUX86State *env)
{
    return env->hflags & HF_CS64_MASK ? (target_ulong)-1 : env->segs[R_SS].flags & DESC_B_MASK ? 0xffffffff : 0xffff;
}

void helper_swtdx_probe_pusha(CPUX86State *env, uint32_t size)
{
    swtdx_probe_pushes(env, env->segs[R_SS].base, env->regs[R_ESP], stack_mask(env), size, 8, cpu_mmu_index(env, false),
                       GETPC());
}

/* POPA loads seven registers: none may have changed when one faults. */
void helper_swtdx_probe_popa(CPUX86State *env, uint32_t size)
{
    target_ulong base = env->segs[R_SS].base, mask = stack_mask(env);
    unsigned i;

    for (i = 0; i < 8; i++) {
        if (i != 7 - R_ESP) {
            probe_item(env, swtdx_stack_address(base, env->regs[R_ESP] + size * i, mask), size, MMU_DATA_LOAD,
                       cpu_mmu_index(env, false), GETPC());
        }
    }
}

/*
 * ENTER pushes RBP, copies level - 1 frame pointers, pushes the new one, and faults where a write by way of the new
 * stack pointer would fault, although it does not write there (SDM volume 2, ENTER).
 */
void helper_swtdx_probe_enter(CPUX86State *env, uint32_t size, uint32_t bytes, uint32_t level)
{
    target_ulong base = env->segs[R_SS].base, sp = env->regs[R_ESP], mask = stack_mask(env);
    int mmu_index = cpu_mmu_index(env, false);
    unsigned i;

    probe_item(env, swtdx_stack_address(base, sp - size, mask), size, MMU_DATA_STORE, mmu_index, GETPC());
    for (i = 1; i <= level; i++) {
        if (i < level) {
            probe_item(env, swtdx_stack_address(base, env->regs[R_EBP] - size * i, mask), size, MMU_DATA_LOAD,
                       mmu_index, GETPC());
        }
        probe_item(env, swtdx_stack_address(base, sp - size * (i + 1), mask), size, MMU_DATA_STORE, mmu_index, GETPC());
    }
    probe(env, swtdx_stack_address(base, sp - size * (level + 1) - bytes, mask), 1, MMU_DATA_STORE, mmu_index, GETPC());
}

void helper_swtdx_check_alignment(CPUX86State *env, target_ulong address, uint32_t bits)
{
    swtdx_check_alignment(env, address, 1 << bits, MMU_USER_IDX, GETPC());
}
