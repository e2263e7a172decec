/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `storm SEED KICKS TDS`: signals at random moments for threads in KVM_RUN (a guest that computes, a guest that halts),
 * KVM_SET_USER_MEMORY_REGION, KVM_PRE_FAULT_MEMORY and KVM_TDX_INIT_MEM_REGION. Each call must answer as Linux does, each
 * kick must end a KVM_RUN, and all must make progress.
 */
#include "tdx.h"
#include <stdatomic.h>

#define PRE_FAULT_MEMORY 0xc040aed5
#define COUNT "\x31\xc0\x8e\xd8\xff\x06\x00\x20\xeb\xfa" /* xor ax, ax; mov ds, ax; again: inc word [0x2000]; jmp again */
#define STI_HLT "\xfb\xf4\xeb\xfd"
#define PAGES 16
#define PATIENCE 60

enum { COMPUTES, HALTS, SLOTS, FAULTS, BUILDS, THREADS };

static const char *const names[] = { "computes", "halts", "slots", "faults", "builds" };
static struct machine machines[2];
static pthread_t threads[THREADS];
static atomic_int finished[THREADS], calls[THREADS], interrupted[THREADS], bad, stop;
static __thread struct kvm_run *mine;
static int tds;

static void kicked(int number)
{
    (void)number;
    if (mine) {
        mine->immediate_exit = 1; /* as VMMs do: a signal that comes between two KVM_RUNs is not lost */
    }
}

static void wrong(int thread, const char *what, long value)
{
    if (bad++ < 10) {
        printf("%s: %s %ld\n", names[thread], what, value);
    }
}

static void *runs(void *given)
{
    int thread = (intptr_t)given;
    struct machine *m = &machines[thread];

    mine = m->run;
    while (!stop) {
        int result = ioctl(m->vcpu, KVM_RUN, 0L);

        if (result == 0 || errno != EINTR) {
            wrong(thread, "KVM_RUN: errno or exit", result ? errno : m->run->exit_reason);
        }
        m->run->immediate_exit = 0;
        interrupted[thread]++;
        calls[thread]++;
    }
    finished[thread] = 1;
    return NULL;
}

static void *slots(void *given)
{
    struct kvm_userspace_memory_region region = { .slot = 7, .guest_phys_addr = 1 << 24 };

    region.userspace_addr = (uintptr_t)mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (!stop) {
        region.memory_size = region.memory_size ? 0 : 1 << 20;
        if (ioctl(machines[calls[SLOTS] & 1].vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) {
            wrong(SLOTS, "KVM_SET_USER_MEMORY_REGION: errno", errno);
        }
        if (!region.memory_size) {
            calls[SLOTS]++;
        }
    }
    finished[SLOTS] = 1;
    return NULL;
}

/* What is left of a range is passed back; an error only where nothing was done. */
static void *faults(void *given)
{
    struct machine m = new_machine(0);

    while (!stop) {
        struct { uint64_t gpa, size, flags, padding[5]; } range = { .size = GUEST_SIZE }, before;

        while (range.size) {
            int result;

            before = range;
            result = ioctl(m.vcpu, PRE_FAULT_MEMORY, &range);
            interrupted[FAULTS] += result < 0;
            if (result < 0 && (errno != EINTR || range.size != before.size)) {
                wrong(FAULTS, "KVM_PRE_FAULT_MEMORY: errno", errno);
                break;
            }
            if (range.gpa + range.size != GUEST_SIZE || range.size % 4096 || (result == 0 && range.size == before.size)) {
                wrong(FAULTS, "KVM_PRE_FAULT_MEMORY: left", range.size);
                break;
            }
        }
        calls[FAULTS]++;
    }
    finished[FAULTS] = 1;
    return NULL;
}

/* TDs, one after another, each with the same pages: the measurement is the same, however often a call was repeated. */
static void *builds(void *given)
{
    int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open"), i;
    uint8_t *contents = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (i = 0; i < PAGES * 4096; i++) {
        contents[i] = i / 4096 + i;
    }
    while (calls[BUILDS] < tds) {
        struct td td = new_td(kvm);
        uint64_t region[3] = { (uintptr_t)contents, 0, PAGES }, before;

        do {
            struct { uint32_t id, flags; uint64_t data, hw_error; } command = { INIT_MEM_REGION, 1, (uintptr_t)region, 0 };
            int result;

            before = region[2];
            result = ioctl(td.vcpu, MEMORY_ENCRYPT_OP, &command);
            interrupted[BUILDS] += result < 0;
            if ((result < 0) != (region[2] > 0) || (result < 0 && errno != EINTR) || command.hw_error) {
                wrong(BUILDS, "KVM_TDX_INIT_MEM_REGION: errno", result < 0 ? errno : 0);
            }
            if (region[2] > before || region[1] != (PAGES - region[2]) * 4096 || region[0] != (uintptr_t)contents + region[1]) {
                wrong(BUILDS, "KVM_TDX_INIT_MEM_REGION: left", region[2]);
            }
        } while (region[2] && !bad);
        tdx(td.vm, FINALIZE_VM, 0, 0, "KVM_TDX_FINALIZE_VM");
        close(td.vcpu);
        close(td.vm);
        close(td.memfd);
        calls[BUILDS]++;
    }
    finished[BUILDS] = 1;
    return NULL;
}

/* Until the count has moved on from ``value``. */
static int moves(atomic_int *count, int value)
{
    double end = seconds() + PATIENCE;

    while (*count == value && seconds() < end) {
        usleep(500);
    }
    return *count != value;
}

int main(int argc, char **argv)
{
    void *(*const what[])(void *) = { runs, runs, slots, faults, builds };
    unsigned seed = atoi(argv[1]), kicks = atoi(argv[2]), n;
    struct sigaction action = { .sa_handler = kicked, .sa_flags = SA_RESTART }; /* KVM_RUN is EINTR all the same */
    int i, last, lost = 0;

    tds = atoi(argv[3]);
    sigaction(SIGUSR1, &action, NULL);
    machines[COMPUTES] = new_machine(0);
    machines[HALTS] = new_machine(1);
    START(&machines[COMPUTES], 0x1000, COUNT);
    START(&machines[HALTS], 0x1000, STI_HLT);
    for (i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, what[i], (void *)(intptr_t)i);
    }
    for (n = 0; n < kicks && !bad && !lost; n++) {
        i = rand_r(&seed) % THREADS;
        usleep(rand_r(&seed) % 3000);
        last = calls[i];
        if (!finished[i]) {
            pthread_kill(threads[i], SIGUSR1);
        }
        if (i <= HALTS && !moves(&calls[i], last)) {
            lost = 1;
            printf("%s: a kick is lost\n", names[i]);
        }
    }
    for (i = SLOTS; i <= FAULTS && !lost; i++) {
        lost |= !moves(&calls[i], calls[i]); /* they go on without signals */
    }
    for (i = 0; !finished[BUILDS] && i < 10 * PATIENCE && !bad; i++) {
        usleep(100000);
    }
    stop = 1;
    for (i = 0; i <= HALTS; i++) {
        while (!finished[i]) {
            pthread_kill(threads[i], SIGUSR1);
            usleep(5000);
        }
    }
    printf("kicks: %u\nwrong: %d\nlost: %d\nTDs: %d\nthe guest counted: %d\n", n, bad, lost, calls[BUILDS],
           *(volatile uint16_t *)(machines[COMPUTES].memory + 0x2000) != 0);
    fprintf(stderr, "interrupted:");
    for (i = 0; i < THREADS; i++) {
        fprintf(stderr, " %s %d of %d", names[i], interrupted[i], calls[i]);
    }
    fprintf(stderr, "\n");
    return bad || lost;
}
