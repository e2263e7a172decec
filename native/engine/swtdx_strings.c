/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * REP STOS and REP MOVS in 64-bit code. Kernels clear and copy pages by them, byte by byte where CPUID has ERMS, which
 * a TD always has. All elements that lie in one page are done at once, if the TLB has that page without a condition:
 * the same comparison as that of the code that is generated for a store. Where it has not, nothing is done here, and
 * the translated code takes one element, which brings the page into the TLB, faults, exits or meets a
 * breakpoint.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"
#include "swtdx_internal.h"

/* Where the byte at that address lies in this process, or NULL. */
static uint8_t *direct(CPUX86State *env, target_ulong address, bool store)
{
    CPUTLBEntry *entry = tlb_entry(env, cpu_mmu_index(env, false), address);
    target_ulong known = store ? tlb_addr_write(entry) : entry->addr_read;

    return known == (address & TARGET_PAGE_MASK) ? (uint8_t *)((uintptr_t)address + entry->addend) : NULL;
}

/* How many of the elements begin and end in the page of that address. */
static target_ulong in_page(target_ulong count, target_ulong address, unsigned shift)
{
    return MIN(count, -(address | TARGET_PAGE_MASK) >> shift);
}

void helper_swtdx_rep_stos(CPUX86State *env, uint32_t shift)
{
    target_ulong address = env->regs[R_EDI], value = env->regs[R_EAX];
    target_ulong i, count = in_page(env->regs[R_ECX], address, shift);
    uint8_t *host;

    if (env->df != 1 || !count || !(host = direct(env, address, true))) {
        return;
    }
    if (shift == MO_8 || !value) {
        memset(host, value, count << shift);
    } else {
        for (i = 0; i < count; i++) {
            memcpy(host + (i << shift), &value, 1 << shift);
        }
    }
    env->regs[R_EDI] += count << shift;
    env->regs[R_ECX] -= count;
}

void helper_swtdx_rep_movs(CPUX86State *env, uint32_t shift)
{
    target_ulong from = env->regs[R_ESI], to = env->regs[R_EDI];
    target_ulong count = in_page(in_page(env->regs[R_ECX], from, shift), to, shift);
    uint8_t *source, *target;

    if (env->df != 1 || !count || !(source = direct(env, from, false)) || !(target = direct(env, to, true))) {
        return;
    }
    /* Elements that are stored may be loaded again: not in the same step. The two addresses may be of one page. */
    if (target > source && target < source + (count << shift)) {
        count = (target - source) >> shift;
    }
    memmove(target, source, count << shift);
    env->regs[R_ESI] += count << shift;
    env->regs[R_EDI] += count << shift;
    env->regs[R_ECX] -= count;
}
