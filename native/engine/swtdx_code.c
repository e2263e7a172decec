/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Translated code and writes from outside.
 *
 * A guest's own stores find translated code by page (see the patch "code tracking"). Its memory may also be written by
 * the process that owns it, with plain stores that are not announced: a VMM that loads a kernel, plants a breakpoint,
 * runs the next test. Real processors are coherent. Here each page of user memory with code in it is remembered as it
 * was when the code was translated, and compared when the owner lets the virtual CPU run again: the page of the next
 * instruction always, all the others every 20 ms or when told so. And each page when a translation of its address is
 * put into the TLB: so a page that was code, was given up, and was read from a disk again runs as it now is, since it
 * has been mapped again. What is left out: code changed elsewhere, behind a translation that the guest already uses,
 * and reached within 20 ms of running.
 *
 * RAM of the machine needs none of this: its writers (the TDX module, the kernel) announce their writes.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include <time.h>
#include "swtdx_internal.h"

#define CHECK_ALL_NS 20000000ull
#define INITIAL_SLOTS 1024

static struct swtdx_snapshot **slot_of(swtdx_engine *engine, uint8_t *host)
{
    size_t mask = engine->snapshot_slots - 1, at = ((uintptr_t)host >> 12) * 0x9e3779b97f4a7c15ull >> 20 & mask;

    while (engine->snapshots[at] && engine->snapshots[at]->host != host) {
        at = (at + 1) & mask;
    }
    return &engine->snapshots[at];
}

static bool grow(swtdx_engine *engine)
{
    struct swtdx_snapshot **old = engine->snapshots;
    size_t count = engine->snapshot_slots, at;

    engine->snapshot_slots = count ? count * 2 : INITIAL_SLOTS;
    engine->snapshots = calloc(engine->snapshot_slots, sizeof(*engine->snapshots));
    if (!engine->snapshots) {
        engine->snapshots = old;
        engine->snapshot_slots = count;
        return false;
    }
    for (at = 0; at < count; at++) {
        if (old[at]) {
            *slot_of(engine, old[at]->host) = old[at];
        }
    }
    free(old);
    return true;
}

/* The first block in this page is being translated (called by TCG, under the engine's turn). */
void swtdx_code_page(struct uc_struct *uc, void *page)
{
    swtdx_engine *engine = uc->swtdx;
    uint8_t *host = (uint8_t *)((uintptr_t)page & ~4095ull);
    struct swtdx_snapshot **slot;

    if (!engine || (host >= engine->ram && host < engine->ram + engine->size)) {
        return;
    }
    if (engine->nsnapshots * 2 >= engine->snapshot_slots && !grow(engine)) {
        return;
    }
    slot = slot_of(engine, host);
    if (!*slot) {
        if (!(*slot = malloc(sizeof(**slot)))) {
            return;
        }
        (*slot)->host = host;
        engine->nsnapshots++;
    }
    memcpy((*slot)->content, host, 4096);
    (*slot)->live = true;
}

void swtdx_drop_snapshots(swtdx_engine *engine)
{
    size_t at;

    for (at = 0; at < engine->snapshot_slots; at++) {
        free(engine->snapshots[at]);
        engine->snapshots[at] = NULL;
    }
    engine->nsnapshots = 0;
}

static void check_page(swtdx_engine *engine, struct swtdx_snapshot *snapshot)
{
    ram_addr_t ram_addr = (uintptr_t)snapshot->host;

    if (!snapshot->live || !memcmp(snapshot->content, snapshot->host, 4096)) {
        return;
    }
    tb_invalidate_phys_range(engine->uc, ram_addr, ram_addr + 4096);
    snapshot->live = false;
}

/* A translation to this page of user memory is being put into the TLB (under the engine's turn). */
void swtdx_check_code_page(swtdx_engine *engine, uint64_t hpa)
{
    uint8_t *host = swtdx_host_pointer(engine, hpa & ~4095ull, 4096);
    struct swtdx_snapshot *here = host && engine->nsnapshots ? *slot_of(engine, host) : NULL;

    if (unlikely(here)) {
        check_page(engine, here);
    }
}

void swtdx_check_code(swtdx_cpu *cpu, bool all)
{
    swtdx_engine *engine = cpu->engine;
    struct swtdx_segment cs;
    struct timespec now;
    uint64_t ns, gpa, hpa;
    uint32_t prot;
    size_t at;

    if (!engine->nsnapshots) {
        return;
    }
    swtdx_get_segment(cpu, R_CS, &cs);
    if (swtdx_guard(engine) || swtdx_translate_linear(cpu, cs.base + cpu->rip, &gpa) ||
        swtdx_translate_physical(cpu, gpa, &hpa, &prot)) {
        hpa = 0;
    }
    swtdx_unguard();
    clock_gettime(CLOCK_MONOTONIC, &now);
    ns = engine->package->counting ? swtdx_counted_ns(engine->package) : now.tv_sec * 1000000000ull + now.tv_nsec;
    swtdx_acquire(engine);
    if (!swtdx_guard(engine)) { /* the owner may have unmapped what we compare */
        uint8_t *host = swtdx_host_pointer(engine, hpa & ~4095ull, 4096);
        struct swtdx_snapshot *here = host && hpa >= engine->size ? *slot_of(engine, host) : NULL;

        if (here) {
            check_page(engine, here);
        }
        if (all || ns - engine->checked_ns > CHECK_ALL_NS) {
            for (at = 0; at < engine->snapshot_slots; at++) {
                if (engine->snapshots[at]) {
                    check_page(engine, engine->snapshots[at]);
                }
            }
            engine->checked_ns = ns;
        }
    }
    swtdx_unguard();
    swtdx_release(engine);
}
