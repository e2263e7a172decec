/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The second stage of address translation.
 *
 * TCG walks the guest's own page tables and calls here with each guest-physical address. A Trust Domain has two EPT
 * trees: addresses with the shared bit clear go through Secure EPT, those with it set through the shared EPT (with the
 * bit as part of the index, as the hardware does). Other virtual machines have one. The tables are the architectural
 * ones, in emulated physical memory, and are read here at every TLB miss: there is no other truth about what is mapped.
 *
 * Entry: bit 0 R, 1 W, 2 X, 7 leaf (PDE, PDPTE), 51:12 address, 63 suppress #VE (SDM volume 3, 29.3.2; the Secure EPT's
 * software bits, TDX module ABI specification).
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "swtdx_internal.h"

#define EPT_READ 1u
#define EPT_WRITE 2u
#define EPT_EXECUTE 4u
#define EPT_LEAF 0x80u

/* exit qualification of an EPT violation (SDM table 28-7) */
#define QUALIFICATION_PERMISSIONS_SHIFT 3
#define QUALIFICATION_GLA_VALID (1u << 7)
#define QUALIFICATION_FINAL (1u << 8)

enum { WALK_OK, WALK_VIOLATION, WALK_MISCONFIGURED };

static bool backed(swtdx_engine *engine, uint64_t hpa)
{
    return hpa < engine->size || swtdx_host_pointer(engine, hpa & SWTDX_HPA_MASK, 4096) != NULL;
}

/* Walk for gpa. On WALK_OK *entry is the HPA; otherwise it is the last entry read. *prot: permissions on the way. */
int swtdx_walk(swtdx_engine *engine, swtdx_cpu *cpu, uint64_t gpa, uint64_t *entry, uint32_t *prot, bool *shared)
{
    uint64_t eptp = cpu->eptp, table, value;
    uint32_t allowed = EPT_READ | EPT_WRITE | EPT_EXECUTE;
    int level;

    *shared = cpu->shared_bit && (gpa & cpu->shared_bit);
    *prot = 0;
    *entry = 1ull << 63;
    if (*shared) {
        eptp = cpu->shared_eptp;
        allowed &= ~EPT_EXECUTE; /* no code from shared memory in a Trust Domain */
    }
    if (!eptp) {
        return WALK_VIOLATION;
    }
    level = eptp >> 3 & 7;
    if (gpa >> (21 + 9 * level) || level > 4) {
        return WALK_VIOLATION;
    }
    table = eptp & SWTDX_HPA_MASK;
    for (;; level--) {
        uint64_t offset_mask = (1ull << (12 + 9 * level)) - 1;

        if (table >= engine->size) {
            return WALK_MISCONFIGURED;
        }
        memcpy(&value, engine->ram + table + 8 * (gpa >> (12 + 9 * level) & 511), 8);
        *entry = value;
        if (!(value & 7)) {
            return WALK_VIOLATION;
        }
        if ((value & 3) == EPT_WRITE) {
            return WALK_MISCONFIGURED;
        }
        allowed &= value;
        if (level == 0 || (level <= 2 && (value & EPT_LEAF))) {
            uint64_t hpa = (value & SWTDX_HPA_MASK & ~offset_mask) | (gpa & offset_mask);

            if (!backed(engine, hpa)) {
                return WALK_MISCONFIGURED;
            }
            *entry = hpa;
            *prot = allowed;
            return WALK_OK;
        }
        table = value & SWTDX_HPA_MASK;
    }
}

void swtdx_note_access(CPUState *cs, target_ulong gla)
{
    if (cs->uc->swtdx) {
        cs->uc->swtdx->access_gla = gla;
    }
}

/* Set bits in an entry of the guest's own page tables, at a physical address. False: it is not this entry any more. */
bool swtdx_set_page_bits(CPUState *cs, hwaddr address, uint64_t entry, uint32_t bits)
{
    CPUX86State *env = cs->env_ptr;
    bool wide = env->cr[4] & CR4_PAE_MASK;
    uint32_t narrow = entry;
    void *host;

    if (likely((entry & bits) == bits)) {
        return true;
    }
    host = swtdx_host_pointer(cs->uc->swtdx, address, wide ? 8 : 4);
    if (!host) {
        return true; /* a store to where there is no memory */
    }
    return wide ? __atomic_compare_exchange_n((uint64_t *)host, &entry, entry | bits, false, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST)
                : __atomic_compare_exchange_n((uint32_t *)host, &narrow, narrow | bits, false, __ATOMIC_SEQ_CST,
                                              __ATOMIC_SEQ_CST);
}

/* Called by TCG for each guest-physical address; prot is NULL for the guest's own page tables. Returns or exits. */
hwaddr swtdx_translate(CPUState *cs, hwaddr gpa, int access, int *prot)
{
    CPUX86State *env = cs->env_ptr;
    swtdx_engine *engine = cs->uc->swtdx;
    swtdx_cpu *cpu = engine->current;
    uint64_t entry;
    uint32_t allowed, wanted;
    bool shared;
    int result;

    engine->walks++;
    if (unlikely(cpu->no_ept)) { /* identity: a processor test without tables */
        return gpa;
    }
    /* A walk of the guest's tables is read and, for the accessed and dirty bits, written. */
    wanted = !prot                      ? EPT_READ | EPT_WRITE
             : access == MMU_DATA_STORE ? EPT_WRITE
             : access == MMU_INST_FETCH ? EPT_EXECUTE
                                        : EPT_READ;
    result = swtdx_walk(engine, cpu, gpa, &entry, &allowed, &shared);
    if (likely(result == WALK_OK && !(wanted & ~allowed))) {
        if (unlikely(engine->poisoned_pages) && entry < engine->size && engine->poisoned_pages[entry >> 12]) {
            cpu->exit.physical_address = gpa;
            cpu->exit.linear_address = engine->access_gla;
            cpu->exit.interruption_info = 1u << 31 | SWTDX_EVENT_HARDWARE_EXCEPTION << 8 | EXCP12_MCHK;
            swtdx_exit_now(env, SWTDX_EXIT_EXCEPTION_NMI, env->retaddr);
        }
        if (prot) {
            *prot &= (allowed & EPT_READ ? PAGE_READ : 0) | (allowed & EPT_WRITE ? PAGE_WRITE : 0) |
                     (allowed & EPT_EXECUTE ? PAGE_EXEC : 0);
            if (entry >= engine->size && engine->nsnapshots) {
                swtdx_check_code_page(engine, entry);
            }
        }
        return entry;
    }
    cpu->exit.physical_address = gpa;
    cpu->exit.linear_address = engine->access_gla;
    cpu->exit.ve_convertible = result == WALK_VIOLATION && shared && !(entry >> 63);
    cpu->exit.qualification = wanted | (result == WALK_OK ? allowed << QUALIFICATION_PERMISSIONS_SHIFT : 0) |
                              QUALIFICATION_GLA_VALID | (prot ? QUALIFICATION_FINAL : 0);
    swtdx_exit_now(env, result == WALK_MISCONFIGURED ? SWTDX_EXIT_EPT_MISCONFIG : SWTDX_EXIT_EPT_VIOLATION,
                   env->retaddr);
}

int swtdx_translate_physical(swtdx_cpu *cpu, uint64_t gpa, uint64_t *hpa, uint32_t *prot)
{
    bool shared;
    int result;

    pthread_rwlock_rdlock(&cpu->engine->regions_lock);
    result = swtdx_walk(cpu->engine, cpu, gpa, hpa, prot, &shared);
    pthread_rwlock_unlock(&cpu->engine->regions_lock);
    return result == WALK_OK ? 0 : -1;
}

static int load_guest(swtdx_cpu *cpu, uint64_t gpa, void *value, size_t size)
{
    uint64_t hpa;
    uint32_t prot;

    return !swtdx_translate_physical(cpu, gpa, &hpa, &prot) && swtdx_read_one(cpu->engine, hpa, value, size) ? 0 : -1;
}

int swtdx_translate_linear(swtdx_cpu *cpu, uint64_t gla, uint64_t *gpa)
{
    uint64_t cr0 = swtdx_get(cpu, SWTDX_CR0), cr3 = swtdx_get(cpu, SWTDX_CR0 + 3), cr4 = swtdx_get(cpu, SWTDX_CR0 + 4);
    uint64_t efer = 0, entry, table;
    int level, width = 9, size = 8;

    swtdx_get_msr(cpu, 0xc0000080, &efer);
    if (!(cr0 & CR0_PG_MASK)) {
        *gpa = efer & MSR_EFER_LMA ? gla : (uint32_t)gla;
        return 0;
    }
    if (efer & MSR_EFER_LMA) {
        level = cr4 & CR4_LA57_MASK ? 4 : 3;
        table = cr3 & SWTDX_HPA_MASK;
    } else if (cr4 & CR4_PAE_MASK) {
        if (load_guest(cpu, (cr3 & 0xffffffe0) + 8 * (gla >> 30 & 3), &entry, 8) || !(entry & 1)) {
            return -1;
        }
        level = 1;
        table = entry & SWTDX_HPA_MASK;
    } else {
        level = 1, width = 10, size = 4;
        table = cr3 & 0xfffff000;
    }
    for (;; level--) {
        int shift = 12 + width * level;
        uint64_t mask = (1ull << shift) - 1;

        entry = 0;
        if (load_guest(cpu, table + size * (gla >> shift & ((1 << width) - 1)), &entry, size) || !(entry & 1)) {
            return -1;
        }
        if (level == 0 || (level <= 2 && (entry & 0x80))) {
            *gpa = (entry & SWTDX_HPA_MASK & ~mask) | (gla & mask);
            return 0;
        }
        table = entry & SWTDX_HPA_MASK;
    }
}

void *swtdx_host_pointer(swtdx_engine *engine, uint64_t hpa, uint64_t length)
{
    size_t low = 0, high = engine->nregions;

    if (hpa < engine->size) {
        return length <= engine->size - hpa ? engine->ram + hpa : NULL;
    }
    while (low < high) {
        size_t middle = (low + high) / 2;
        struct swtdx_region *region = &engine->regions[middle];

        if (hpa < region->hpa) {
            high = middle;
        } else if (hpa - region->hpa >= region->length) {
            low = middle + 1;
        } else {
            return length <= region->length - (hpa - region->hpa) ? region->host + (hpa - region->hpa) : NULL;
        }
    }
    return NULL;
}
