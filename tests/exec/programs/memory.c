/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory of every kind that a program can have: what the guest reads and writes is what the program has. */
#include "kvm.h"
#include <spawn.h>
#include <sys/syscall.h>

#define PAGE 4096
#define SLOT 0x4000UL
#define SHOW(what, value) printf("%s: %ld\n", what, (long)(value))

static uint8_t in_bss[SLOT] __attribute__((aligned(PAGE)));
static uint8_t in_data[SLOT] __attribute__((aligned(PAGE))) = { 1, 2, 3 };

/* mov al, [0x1000]; mov [0x2000], al; hlt: copies a byte. At 0 of the slot. */
#define COPY "\xa0\x00\x10\xa2\x00\x20\xf4"

static struct machine bare(void)
{
    struct machine m = { .kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open") };

    m.vm = must(ioctl(m.kvm, KVM_CREATE_VM, 0L), "KVM_CREATE_VM");
    m.vcpu = must(ioctl(m.vm, KVM_CREATE_VCPU, 0L), "KVM_CREATE_VCPU");
    m.run = mmap(NULL, ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
    return m;
}

static int slot(struct machine *m, int number, uint64_t gpa, void *memory, uint64_t size)
{
    struct kvm_userspace_memory_region region = { .slot = number, .guest_phys_addr = gpa, .memory_size = size,
                                                  .userspace_addr = (uintptr_t)memory };

    m->memory = memory;
    return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

/* The program has written a byte before the slot was made, and another one since; the guest copies each. */
static void copies(const char *what, uint8_t *memory)
{
    struct machine m = bare();

    memory[0x1000] = 17;
    memory[0x3000] = 99;
    must(slot(&m, 0, 0, memory, SLOT), "KVM_SET_USER_MEMORY_REGION");
    START(&m, 0, COPY);
    run(&m);
    printf("%s: %d %d", what, memory[0x2000], memory[0x3000]);
    memory[0x1000] = 42;
    START(&m, 0, COPY);
    run(&m);
    printf(" %d\n", memory[0x2000]);
}

static void kinds(void)
{
    uint8_t on_stack[SLOT + PAGE], *heap = malloc(SLOT + PAGE), *area;
    int fd = memfd_create("ram", 0);
    FILE *file = tmpfile();

#define ALIGNED(p) ((uint8_t *)(((uintptr_t)(p) + PAGE - 1) & -(uintptr_t)PAGE))
    copies("bss", in_bss);
    copies("data", in_data);
    SHOW("the rest of data", in_data[0] == 0xa0 && in_data[1] == 0 && in_data[2] == 0x10);
    copies("stack", ALIGNED(on_stack));
    copies("heap", ALIGNED(heap));
    copies("anonymous", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    copies("shared", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    madvise(area, SLOT, MADV_HUGEPAGE);
    madvise(area, SLOT, MADV_DONTFORK);
    mlock(area, PAGE);
    copies("advised", area);
    ftruncate(fd, 2 * SLOT);
    copies("memfd", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, SLOT));
    pread(fd, &area[0], 1, SLOT + 0x2000);
    SHOW("seen in the file", area[0]);
    area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    copies("memfd without its descriptor", area);
    ftruncate(fileno(file), SLOT);
    pwrite(fileno(file), "\x07", 1, 0x1001);
    area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file), 0);
    copies("private copy of a file", area);
    SHOW("what was in the file", area[0x1001]);
    pread(fileno(file), &area[0], 1, 0x2000);
    SHOW("the file has nothing of it", area[0]);
}

/* One slot of several mappings, with different protections and a hole. */
static void patchwork(void)
{
    struct machine m = bare();
    uint8_t *area = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = memfd_create("ram", 0);

    ftruncate(fd, PAGE);
    mmap(area + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    memset(area + 3 * PAGE, 5, PAGE);
    mprotect(area + 3 * PAGE, PAGE, PROT_READ);
    munmap(area + 4 * PAGE, PAGE);
    must(slot(&m, 0, 0, area, 6 * PAGE), "KVM_SET_USER_MEMORY_REGION");
    area[PAGE] = 23;
    START(&m, 0, COPY);
    printf("from the file's page: %s", run(&m));
    printf(", %d\n", area[2 * PAGE]);
    START(&m, 0, "\xa0\x00\x30\xa2\x00\x20\xf4"); /* mov al, [0x3000] */
    printf("from the read-only page: %s", run(&m));
    printf(", %d\n", area[2 * PAGE]);
    START(&m, 0, "\xa2\x00\x30\xf4");
    SHOW("refused to the read-only page", strcmp(run(&m), "exit 5") != 0); /* how depends on the processor */
    START(&m, 0, "\xa2\x00\x40\xf4");
    SHOW("refused to the hole", strcmp(run(&m), "exit 5") != 0);
    mmap(area + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    START(&m, 0, "\xb0\x09\xa2\x00\x40\xf4");
    printf("filled: %s", run(&m));
    printf(", %d\n", area[4 * PAGE]);
}

/* A slot whose memory is mapped afterwards, and one that is deleted and made again elsewhere. */
static void late(void)
{
    struct machine m = bare();
    uint8_t *area = mmap(NULL, SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    munmap(area, SLOT);
    must(slot(&m, 0, 0, area, SLOT), "KVM_SET_USER_MEMORY_REGION");
    mmap(area, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    area[0x1000] = 3;
    START(&m, 0, COPY);
    printf("mapped after the slot: %s", run(&m));
    printf(", %d\n", area[0x2000]);
    must(slot(&m, 0, 0, area, 0), "delete");
    must(slot(&m, 0, 0, in_bss, SLOT), "KVM_SET_USER_MEMORY_REGION");
    in_bss[0x1000] = 4;
    START(&m, 0, COPY);
    printf("another one: %s", run(&m));
    printf(", %d\n", in_bss[0x2000]);
    SHOW("the old one is as it was", area[0x2000]);
    must(slot(&m, 1, 0x10000, area, SLOT), "KVM_SET_USER_MEMORY_REGION");
    area[0x1000] = 6;
    SHOW("the old one again", area[0x2000]);
}

/* Threads write while the slot is made: no write is lost. */
static volatile int stop;
static uint64_t *counters;

static void *count(void *which)
{
    uint64_t mine = 0;

    while (!stop) {
        counters[(long)which * 512] = ++mine;
    }
    return (void *)mine;
}

static void threads(void)
{
    struct machine m = bare();
    pthread_t thread[4];
    uint8_t *area;
    int i, round, lost = 0;

    for (round = 0; round < 10; round++) {
        area = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        counters = (uint64_t *)area;
        stop = 0;
        for (i = 0; i < 4; i++) {
            pthread_create(&thread[i], NULL, count, (void *)(long)i);
        }
        usleep(2000);
        must(slot(&m, 0, 0, area, 0x10000), "KVM_SET_USER_MEMORY_REGION");
        usleep(2000);
        stop = 1;
        for (i = 0; i < 4; i++) {
            void *written;

            pthread_join(thread[i], &written);
            lost += counters[i * 512] != (uint64_t)written;
        }
        must(slot(&m, 0, 0, area, 0), "delete");
        munmap(area, 0x10000);
    }
    SHOW("lost writes", lost);
}

/* A large sparse area costs what is in it. */
static void sparse(void)
{
    struct machine m = bare();
    uint64_t size = 3UL << 30;
    uint8_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char line[256];
    long kilobytes = 0;
    double begun = seconds();
    FILE *status;

    memset(area + size - PAGE, 7, PAGE);
    must(slot(&m, 0, 0, area, size), "KVM_SET_USER_MEMORY_REGION");
    SHOW("soon", seconds() - begun < 20);
    SHOW("its last byte", area[size - 1]);
    area[0x1000] = 8;
    START(&m, 0, COPY);
    printf("%s", run(&m));
    printf(", %d\n", area[0x2000]);
    status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof(line), status)) {
        sscanf(line, "VmRSS: %ld", &kilobytes);
    }
    SHOW("small", kilobytes < 65536);
}

/* Private memory that is discarded reads as zeros, also to the guest. */
static void discarded(void)
{
    struct machine m = bare();
    uint8_t *area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    area[0x1000] = 5;
    must(slot(&m, 0, 0, area, SLOT), "KVM_SET_USER_MEMORY_REGION");
    START(&m, 0, COPY);
    run(&m);
    SHOW("before", area[0x2000]);
    madvise(area + 0x1000, PAGE, MADV_DONTNEED);
    SHOW("discarded", area[0x1000]);
    START(&m, 0, COPY);
    run(&m);
    SHOW("to the guest", area[0x2000]);
    area[0x1000] = 6;
    START(&m, 0, COPY);
    run(&m);
    SHOW("written again", area[0x2000]);
}

/* Memory after fork(): the guest continues in the parent's, and the child has what was there, both for themselves. */
static void forks(const char *what, uint8_t *memory)
{
    struct machine m = bare();
    int status, go[2], pid;

    must(slot(&m, 0, 0, memory, SLOT), "KVM_SET_USER_MEMORY_REGION");
    memory[0x1000] = 1;
    START(&m, 0, COPY);
    run(&m);
    pipe(go);
    fflush(stdout);
    pid = fork();
    if (!pid) {
        char ready;

        read(go[0], &ready, 1);
        printf("%s, the child: %d", what, memory[0x2000]);
        memory[0x1000] = 7;
        memory[0x3000] = 8;
        printf(" %d\n", memory[0x3000]);
        fflush(stdout);
        _exit(0);
    }
    memory[0x1000] = 2;
    START(&m, 0, COPY);
    run(&m);
    memory[0x3000] = 5;
    write(go[1], "", 1);
    waitpid(pid, &status, 0);
    START(&m, 0, COPY);
    run(&m);
    printf("%s, the parent: %d %d\n", what, memory[0x2000], memory[0x3000]);
    close(go[0]);
    close(go[1]);
}

/* What the child has of memory that it is not to inherit, or not with its contents; and that it blocks what it should. */
static void advised_for_fork(int advice, const char *what)
{
    uint8_t *area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct machine m = bare();
    sigset_t set;
    int ends[2], pid, got;

    madvise(area, SLOT, advice);
    must(slot(&m, 0, 0, area, SLOT), "KVM_SET_USER_MEMORY_REGION");
    area[0x1000] = 9;
    START(&m, 0, COPY);
    run(&m);
    pipe(ends);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_SETMASK, &set, NULL);
    fflush(stdout);
    pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (!pid) {
        got = write(ends[1], area + 0x2000, 1);
        sigprocmask(SIG_SETMASK, NULL, &set);
        printf("%s: %d %d, blocked: %d %d\n", what, got, got == 1 ? area[0x2000] : -1, sigismember(&set, SIGUSR1),
               sigismember(&set, SIGUSR2));
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    SHOW("the parent has it", area[0x2000]);
}

static void forked(void)
{
    FILE *file = tmpfile();

    ftruncate(fileno(file), SLOT);
    forks("private", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    forks("bss", in_bss);
    forks("private copy of a file", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file), 0));
    forks("shared", mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    advised_for_fork(MADV_DONTFORK, "MADV_DONTFORK");
    advised_for_fork(MADV_WIPEONFORK, "MADV_WIPEONFORK");
}

/* A thread and a child made by posix_spawn() are no copies: guest and program go on with the same memory. */
static void *hands_over(void *memory)
{
    ((uint8_t *)memory)[0x1000] = 3;
    return NULL;
}

static void cloned(void)
{
    uint8_t *area = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *arguments[] = { "/proc/self/exe", "nothing", NULL };
    struct machine m = bare();
    pthread_t thread;
    int pid, status;

    must(slot(&m, 0, 0, area, SLOT), "KVM_SET_USER_MEMORY_REGION");
    area[0x1000] = 1;
    START(&m, 0, COPY);
    run(&m);
    pthread_create(&thread, NULL, hands_over, area);
    pthread_join(thread, NULL);
    START(&m, 0, COPY);
    run(&m);
    SHOW("a thread's", area[0x2000]);
    must(-posix_spawn(&pid, arguments[0], NULL, NULL, arguments, environ), "posix_spawn");
    waitpid(pid, &status, 0);
    SHOW("spawned", status);
    area[0x1000] = 4;
    START(&m, 0, COPY);
    run(&m);
    SHOW("the program's", area[0x2000]);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (!strcmp(what, "kinds")) {
        kinds();
    } else if (!strcmp(what, "patchwork")) {
        patchwork();
    } else if (!strcmp(what, "late")) {
        late();
    } else if (!strcmp(what, "threads")) {
        threads();
    } else if (!strcmp(what, "sparse")) {
        sparse();
    } else if (!strcmp(what, "discarded")) {
        discarded();
    } else if (!strcmp(what, "forked")) {
        forked();
    } else if (!strcmp(what, "cloned")) {
        cloned();
    }
    return 0;
}
