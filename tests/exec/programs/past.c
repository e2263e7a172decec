/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Opens /dev/kvm past the C library, in the way that its argument names, and says what it has got. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
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

/* The system calls of 32-bit programs, which a 64-bit one can make, too. */
static int by_int80(int number, int a, int b, int c)
{
    int result;

    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "r8", "r9", "r10", "r11", "memory");
    return result;
}

static int of_32_bits(void)
{
    char *path = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int fd, vm;

    strcpy(path, "/dev/kvm");
    fd = by_int80(5, (int)(long)path, O_RDWR, 0);
    vm = fd < 0 ? fd : by_int80(54, fd, 0xae01, 0);
    sleep(2);
    printf("still here, %s VM\n", vm < 0 ? "without a" : "with the machine's");
    return 0;
}

int opens_in_plugin(void)
{
    return open("/dev/kvm", O_RDWR);
}

/* A plugin that finds the C library's functions before ours. */
static int by_plugin(const char *path)
{
    void *plugin = dlopen(path, RTLD_NOW | RTLD_DEEPBIND);
    int (*opens)(void) = plugin ? dlsym(plugin, "opens_in_plugin") : 0;

    return opens ? opens() : -1000;
}

int main(int count, char **words)
{
    const char *way = words[1];
    int fd, vm;

    if (!strcmp(way, "int80")) {
        setbuf(stdout, 0);
        signal(SIGSEGV, (void (*)(int))_exit); /* a kernel without them: status 11 */
        return of_32_bits();
    }
    if (!strcmp(way, "node")) { /* one of its own, which is not watched */
        unlink(words[2]);
        if (mknod(words[2], S_IFCHR | 0600, makedev(10, 232))) {
            return 77;
        }
        fd = raw(SYS_openat, AT_FDCWD, (long)words[2], O_RDWR, 0, 0, 0);
        setbuf(stdout, 0);
        if (fd < 0) {
            return 77;
        }
        vm = raw(SYS_ioctl, fd, 0xae01, 0, 0, 0, 0);
        sleep(8);
        printf("still here, %s VM\n", vm < 0 ? "without a" : "with the machine's");
        return 0;
    }

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
         : !strcmp(way, "deepbind") ? by_plugin(words[2])
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
