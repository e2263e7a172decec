/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that does all it can to upset its server: wild pointers and numbers, descriptors closed under running
 * calls, memory taken away, threads and processes killed. After each round it waits for a line, and then shows that a
 * guest still runs. */
#include "kvm.h"
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static __thread uint64_t seed;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint8_t *scratch;
static volatile int fds[64];

static uint64_t wild(void)
{
    switch (random64() % 8) {
    case 0:
        return 0;
    case 1:
        return random64();
    case 2:
        return (uintptr_t)scratch + random64() % 0x20000 - 0x2000; /* in it, and around */
    case 3:
        return (uintptr_t)scratch + random64() % 0x10000;
    case 4:
        return 1UL << random64() % 64;
    case 5:
        return random64() % 16;
    case 6:
        return -random64() % 4096;
    default:
        return (uintptr_t)scratch;
    }
}

static int some_fd(void)
{
    int fd = random64() % 4 ? fds[random64() % 64] : (int)wild();

    return fd < 0 || fd > 2 ? fd : -1; /* the standard ones are not its own */
}

static void keep(int fd)
{
    if (fd > 2) {
        int at = random64() % 64, old = fds[at];

        fds[at] = fd;
        if (old > 2) {
            close(old);
        }
    }
}

static void one(int with_run)
{
    static const char *const paths[] = { "/dev/kvm", "/dev/../dev/kvm", "/dev/kvm/", "/dev/null", "kvm", "", "/dev/kvm\0x" };
    uint64_t request = 0xae00 | random64() % 256 | (random64() % 4 ? (random64() % 4) << 30 : 0) |
        (random64() % 2 ? (random64() % 512) << 16 : 0);
    void *where;
    int i;

    switch (random64() % 16) {
    case 0:
        keep(open(paths[random64() % 7], random64() % 2 ? O_RDWR : (int)random64() & 0x3fffff & ~(O_CREAT | O_TRUNC)));
        return;
    case 1:
        keep(syscall(SYS_openat, some_fd(), wild(), 0, 0));
        return;
    case 2:
        keep(ioctl(some_fd(), KVM_CREATE_VM, random64() % 3 ? 0L : random64() % 8));
        return;
    case 3:
        keep(ioctl(some_fd(), KVM_CREATE_VCPU, random64() % 3 ? random64() % 4 : wild()));
        return;
    case 4: {
        struct kvm_userspace_memory_region region = { random64() % 4, random64() % 3 ? 0 : wild(), wild() & ~0xfffUL,
                                                      wild() & ~0xfffUL, wild() & ~0xfffUL };

        if (region.userspace_addr < (uintptr_t)scratch - 0x2000 || region.userspace_addr > (uintptr_t)scratch + 0x20000) {
            region.memory_size &= 0xffff; /* or it would be all there is, and then some */
        }
        ioctl(some_fd(), KVM_SET_USER_MEMORY_REGION, random64() % 4 ? (uint64_t)&region : wild());
        return;
    }
    case 5:
        close(some_fd());
        return;
    case 6:
        keep(dup(some_fd()));
        return;
    case 7:
        where = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, some_fd(), random64() % 2 ? 0 : wild() & ~0xfffUL);
        if (where != MAP_FAILED) {
            munmap(where, random64() % 2 ? 0x3000 : 0x1000);
        }
        return;
    case 8:
        mmap(scratch + (random64() % 16) * 0x1000, 0x1000 << random64() % 3, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        return;
    case 9:
        madvise(scratch + (random64() % 16) * 0x1000, 0x1000, random64() % 12);
        return;
    case 10:
        ftruncate(some_fd(), wild());
        fallocate(some_fd(), random64() % 4, wild(), wild());
        return;
    case 11:
        syscall(SYS_newfstatat, some_fd(), random64() % 2 ? (uint64_t)"" : wild(), wild(), 0x1000);
        syscall(SYS_fstat, some_fd(), wild());
        return;
    case 12:
        if (with_run) {
            ioctl(some_fd(), KVM_RUN, 0L);
        }
        return;
    case 13:
        pwrite(some_fd(), scratch, random64() % 0x4000, wild());
        pread(some_fd(), scratch, random64() % 0x4000, wild());
        return;
    default:
        for (i = 0; i < 4; i++) {
            if ((request & 0xff) != 0x80 || with_run) {
                keep(ioctl(some_fd(), request, wild()));
            }
        }
    }
}

static void *hostile(void *argument)
{
    int i;

    seed = (uintptr_t)argument * 0x9e3779b97f4a7c15 + 1;
    for (i = 0; i < 300; i++) {
        one(0);
    }
    return NULL;
}

/* A child: its threads do what they like, KVM_RUN among it, until it is killed. */
static void *reckless(void *argument)
{
    seed = (uintptr_t)argument * 0x9e3779b97f4a7c15 + 7;
    for (;;) {
        one(1);
    }
    return NULL;
}

static void round_of(int number)
{
    pthread_t thread[3];
    pid_t child;
    long i;

    scratch = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (i = 0; i < 3; i++) {
        pthread_create(&thread[i], NULL, hostile, (void *)(number * 16 + i));
    }
    for (i = 0; i < 3; i++) {
        pthread_join(thread[i], NULL);
    }
    child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (i = 0; i < 2; i++) {
            pthread_create(&thread[0], NULL, reckless, (void *)(number * 16 + i));
        }
        reckless((void *)(number * 16 + 9));
    }
    usleep(700000);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (i = 0; i < 64; i++) {
        if (fds[i] > 2) {
            close(fds[i]);
        }
        fds[i] = 0;
    }
    munmap(scratch, 0x10000);
}

int main(int argc, char **argv)
{
    int i, rounds = atoi(argv[1]);
    char line[16];

    signal(SIGBUS, SIG_IGN);
    setbuf(stdout, NULL);
    for (i = 0; i < rounds; i++) {
        struct machine m;
        int status, child = fork();

        if (!child) {
            round_of(i + 1);
            _exit(0);
        }
        waitpid(child, &status, 0);
        if (!WIFEXITED(status)) {
            printf("(killed by %d) ", WTERMSIG(status));
        }
        m = new_machine(0);
        START(&m, 0x1000, OUT_HLT);
        printf("%s\n", run(&m));
        close(m.vcpu);
        close(m.vm);
        close(m.kvm);
        munmap(m.run, 0x3000);
        munmap(m.memory, GUEST_SIZE);
        fgets(line, sizeof(line), stdin);
    }
    return 0;
}
