/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Code that one virtual CPU executes and another one writes.
 *
 * Each engine has translations of its own. A mark for each page of memory says which engines have some of it; it is
 * set before the bytes are read, and then the TLBs of the other engines lose their right to store there without
 * looking. An engine that has stored to such a page takes the marks away and sends the others a letter with the page:
 * they forget what they have translated of it before they execute another block. So one that sees, in another block,
 * what was stored after the code sees the code.
 *
 * A store that was past its look at the TLB when the mark was set may still be on its way when the bytes are read. Its
 * engine gets a letter, too, and sends the page on at the end of its block, when the store is made.
 */
#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include "swtdx_internal.h"

bool swtdx_reset_dirty(CPUState *cs, ram_addr_t start, ram_addr_t length);
bool swtdx_announce_code(struct uc_struct *uc, ram_addr_t ram_addr);
bool swtdx_others_have_code(struct uc_struct *uc, ram_addr_t ram_addr);
void swtdx_written(struct uc_struct *uc, void *host, unsigned size);

#define LEVEL_BITS 12
#define LEVEL_SIZE (1u << LEVEL_BITS)
#define PAGE_SHIFT_BITS 12
#define SEND_ON 1ull /* in a letter: the page may have been written, tell those who have code there */
#define TOO_MANY UINT_MAX

/* Marks are in a tree by the address in this process, of three levels: so different mappings of a page share them. */
typedef uint64_t mark_leaf[LEVEL_SIZE];

bool swtdx_make_marks(swtdx_package *package)
{
    package->marks = calloc(LEVEL_SIZE, sizeof(void *));
    return package->marks != NULL;
}

void swtdx_drop_marks(swtdx_package *package)
{
    unsigned i, j;

    for (i = 0; package->marks && i < LEVEL_SIZE; i++) {
        for (j = 0; package->marks[i] && j < LEVEL_SIZE; j++) {
            free(((void **)package->marks[i])[j]);
        }
        free(package->marks[i]);
    }
    free(package->marks);
}

static void *child(void **slot, size_t size, bool make)
{
    void *here = __atomic_load_n(slot, __ATOMIC_ACQUIRE), *made;

    if (!here && make) {
        made = calloc(LEVEL_SIZE, size);
        if (!made) {
            return NULL;
        }
        if (__atomic_compare_exchange_n(slot, &here, made, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            return made;
        }
        free(made);
    }
    return here;
}

static uint64_t *mark_of(swtdx_package *package, uintptr_t host, bool make)
{
    uintptr_t page = host >> PAGE_SHIFT_BITS;
    void **middle = child(&package->marks[page >> 2 * LEVEL_BITS & (LEVEL_SIZE - 1)], sizeof(void *), make);
    uint64_t *leaf = middle ? child(&middle[page >> LEVEL_BITS & (LEVEL_SIZE - 1)], sizeof(uint64_t), make) : NULL;

    return leaf ? &leaf[page & (LEVEL_SIZE - 1)] : NULL;
}

static void send(swtdx_engine *engine, uint64_t letter)
{
    pthread_spin_lock(&engine->letters_lock);
    if (engine->nletters < SWTDX_LETTERS) {
        engine->letters[engine->nletters++] = letter;
    } else {
        engine->nletters = TOO_MANY;
    }
    pthread_spin_unlock(&engine->letters_lock);
    cpu_exit(engine->uc->cpu);
}

/* Let an engine translate everything again, before its next block. */
void swtdx_forget_all_code(swtdx_engine *engine)
{
    pthread_spin_lock(&engine->letters_lock);
    engine->nletters = TOO_MANY;
    pthread_spin_unlock(&engine->letters_lock);
    cpu_exit(engine->uc->cpu);
}

/* The bytes at this address have been written: tell all engines that have code in their page, but for one. */
static void tell(swtdx_package *package, uintptr_t host, const swtdx_engine *writer)
{
    uint64_t *mark, others, keep = writer ? 1ull << writer->number : 0;

    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the store comes before the look */
    mark = mark_of(package, host, false);
    if (!mark || !(__atomic_load_n(mark, __ATOMIC_RELAXED) & ~keep)) {
        return;
    }
    for (others = __atomic_fetch_and(mark, keep, __ATOMIC_SEQ_CST) & ~keep; others; others &= others - 1) {
        send(package->engines[ctz64(others)], host & TARGET_PAGE_MASK);
    }
}

/* Called by TCG: a store to a page that may hold code has been made. */
void swtdx_written(struct uc_struct *uc, void *host, unsigned size)
{
    swtdx_engine *engine = uc->swtdx;

    if (engine->package->parallel) {
        tell(engine->package, (uintptr_t)host, engine);
        if (((uintptr_t)host & ~TARGET_PAGE_MASK) + size > TARGET_PAGE_SIZE) {
            tell(engine->package, (uintptr_t)host + size - 1, engine);
        }
    }
}

bool swtdx_others_have_code(struct uc_struct *uc, ram_addr_t ram_addr)
{
    swtdx_engine *engine = uc->swtdx;
    uint64_t *mark;

    if (!engine || !engine->package->parallel) {
        return false;
    }
    mark = mark_of(engine->package, ram_addr, false);
    return mark && __atomic_load_n(mark, __ATOMIC_SEQ_CST) & ~(1ull << engine->number);
}

/* Called by TCG before it reads code of a page. True: it was not known that it has some there. */
bool swtdx_announce_code(struct uc_struct *uc, ram_addr_t ram_addr)
{
    swtdx_engine *engine = uc->swtdx;
    swtdx_package *package;
    uint64_t *mark, own;
    unsigned i, count;

    if (!engine || !engine->package->parallel) {
        return false;
    }
    package = engine->package;
    own = 1ull << engine->number;
    mark = mark_of(package, ram_addr, true);
    if (!mark || (__atomic_load_n(mark, __ATOMIC_RELAXED) & own)) {
        return false;
    }
    __atomic_fetch_or(mark, own, __ATOMIC_SEQ_CST);
    count = __atomic_load_n(&package->nengines, __ATOMIC_ACQUIRE);
    for (i = 0; i < count; i++) {
        swtdx_engine *other = package->engines[i];

        if (other != engine && swtdx_reset_dirty(other->uc->cpu, ram_addr & TARGET_PAGE_MASK, TARGET_PAGE_SIZE) &&
            other->running) {
            send(other, (ram_addr & TARGET_PAGE_MASK) | SEND_ON);
        }
    }
    return true;
}

/* Before the guest executes another block. */
void swtdx_read_letters(swtdx_engine *engine)
{
    uint64_t letters[SWTDX_LETTERS];
    unsigned i, count;

    pthread_spin_lock(&engine->letters_lock);
    count = engine->nletters;
    if (count != TOO_MANY) {
        memcpy(letters, engine->letters, count * sizeof(letters[0]));
    }
    engine->nletters = 0;
    pthread_spin_unlock(&engine->letters_lock);
    if (count == TOO_MANY) {
        tb_flush(engine->uc->cpu);
        return;
    }
    for (i = 0; i < count; i++) {
        ram_addr_t page = letters[i] & TARGET_PAGE_MASK;

        if (letters[i] & SEND_ON) {
            tell(engine->package, page, engine);
        } else {
            tb_invalidate_phys_range(engine->uc, page, page + TARGET_PAGE_SIZE);
        }
    }
}

/* Software outside has written physical memory. */
void swtdx_forget_code(swtdx_package *package, uint64_t hpa, uint64_t length)
{
    swtdx_engine *first = package->engines[0];
    uintptr_t host, end;

    if (!package->parallel) {
        swtdx_forget_code_one(first, hpa, length);
        return;
    }
    pthread_rwlock_rdlock(&first->regions_lock);
    host = (uintptr_t)swtdx_host_pointer(first, hpa, length);
    pthread_rwlock_unlock(&first->regions_lock);
    for (end = host + length; host && host < end; host = (host | ~TARGET_PAGE_MASK) + 1) {
        tell(package, host, NULL);
    }
}
