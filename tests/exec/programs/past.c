/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Opens /dev/kvm past the C library, in the way that its argument names, and says what it has got. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static int by_io_uring(void)
{
    struct io_uring_params params = { 0 };
    int ring = raw(SYS_io_uring_setup, 1, (long)&params, 0, 0, 0, 0);
    struct io_uring_sqe *entry;
    struct io_uring_cqe *done;
    char *rings, *completions;

    if (ring < 0) {
        return -1000;
    }
    rings = mmap(0, params.sq_off.array + 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    completions = mmap(0, params.cq_off.cqes + 2 * sizeof(*done), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    entry = mmap(0, sizeof(*entry), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    *entry = (struct io_uring_sqe){ .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)"/dev/kvm", .open_flags = O_RDWR };
    *(uint32_t *)(rings + params.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    raw(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
    done = (struct io_uring_cqe *)(completions + params.cq_off.cqes);
    return done->res;
}

static int by_another_libc(void)
{
    void *libc = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    int (*opens)(const char *, int) = libc ? dlsym(libc, "open") : 0;

    return opens ? opens("/dev/kvm", O_RDWR) : -1000;
}

int main(int count, char **words)
{
    const char *way = words[1];
    int fd, vm;

    setbuf(stdout, 0);
    if (!strcmp(way, "execve")) {
        char *arguments[] = { words[2], "raw", 0 }, *none[] = { 0 };

        raw(SYS_execve, (long)words[2], (long)arguments, (long)none, 0, 0, 0);
        return 1;
    }
    if (!strcmp(way, "daemon")) {
        if (raw(SYS_fork, 0, 0, 0, 0, 0, 0)) {
            sleep(1);
            return 0;
        }
        raw(SYS_setsid, 0, 0, 0, 0, 0, 0);
        way = "raw";
    }
    fd = !strcmp(way, "io_uring") ? by_io_uring() : !strcmp(way, "dlmopen") ? by_another_libc()
         : raw(SYS_openat, AT_FDCWD, (long)"/dev/kvm", O_RDWR, 0, 0, 0);
    if (fd == -1000) {
        puts("unavailable");
        return 77;
    }
    if (fd < 0) {
        puts("refused");
        return 0;
    }
    if (!strcmp(way, "adopted")) {
        printf("%d %d\n", ioctl(fd, 0xae00, 0), ioctl(fd, 0xae01, 0) > 0);
        usleep(1200000);
        return 0;
    }
    vm = raw(SYS_ioctl, fd, 0xae01, 0, 0, 0, 0);
    sleep(2);
    printf("still here, %s VM\n", vm < 0 ? "without a" : "with the machine's");
    return 0;
}
