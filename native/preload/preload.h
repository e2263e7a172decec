/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the preloaded library share. Nothing of it is visible to the program but the functions of libc. */
#ifndef SWTDX_PRELOAD_H
#define SWTDX_PRELOAD_H

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include "gate.h"

/* Faults of the instruction that runs: they cannot wait, blocked they kill. */
#define SYNCHRONOUS \
    (1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1) | 1ull << (SIGFPE - 1) | 1ull << (SIGILL - 1) | \
     1ull << (SIGTRAP - 1) | 1ull << (SIGSYS - 1))

#define EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The function that the program would have called without us. */
#define NEXT(name) \
    ({ \
        static __typeof__(&name) next_; \
        if (unlikely(!next_)) { \
            next_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        } \
        next_; \
    })

/* A system call that nothing intercepts: not libc's cancellation, not its refusal to block its own signals, not us. */
static inline long raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define RAW_(n, a, b, c, d, e, f, ...) raw(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define RAW(...) RAW_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* preload.c: a thread of ours, or of the program while it is in the kernel; its calls go to the system untouched. */
extern __thread bool inside __attribute__((tls_model("initial-exec")));
long kernel(enum swtdx_call call, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
void tell(enum swtdx_call call);
int open_kvm(int flags);
int name_kvm(int flags);
bool is_device(int fd);
bool borrowed(void);
void before_fork(void);
void after_fork(bool child);
long forked(long number, long a, long b, long c, long d, long e);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

int kvm_ioctl(int fd, unsigned long request, unsigned long argument);
int answer(long result);

/* What a descriptor is. NAME: /dev/kvm by O_PATH, no more than its name; OURS: a VM or vCPU; MEMORY: a guest_memfd. */
enum kind { NOT_OURS, NAME, DEVICE, OURS, MEMORY, STATISTICS };
#define DESCRIPTORS (1 << 20)
extern uint8_t kinds[DESCRIPTORS];

/* What the number is, if the file is still the one that was marked: programs close by other ways than close(), too. */
enum kind confirmed(int fd);

/* As a call of the program's sees it: NOT_OURS is left to the system. */
static inline enum kind kind_of(int fd)
{
    enum kind kind = (unsigned)fd < DESCRIPTORS ? __atomic_load_n(&kinds[fd], __ATOMIC_RELAXED) : NOT_OURS;

    return likely(kind < DEVICE) || inside ? NOT_OURS : confirmed(fd);
}

/* ordinary.c: -errno where Linux refuses the call, 0 to go on. */
int no_command(int fd, int command, long argument);
int no_mapping(int fd, int protection, int flags, off_t offset);
int vfs_ioctl(int fd, unsigned long request, unsigned long argument);

/* settings.c: where the library is, and what the command wrote beside it. */
extern char settings[PATH_MAX]; /* the directory; empty if there is none */
extern char library[PATH_MAX];  /* this object, as LD_PRELOAD names it */
bool setting(const char *name, char *value, size_t size);

/* signals.c */
void set_interrupt(void (*function)(void));
void open_signals(uint64_t mask, const uint64_t *sigset);
void close_signals(void);
void prepare_cancellation(void);
long raw_action(int number, const void *action, void *old, size_t size);

/* paths.c */
enum path { PATH_OTHER, PATH_KVM, PATH_SHADOW };
enum path slow_path(int dirfd, const char *path, char shadow[PATH_MAX]);

/* Whether a path deserves a closer look: only a handful of last components do. */
static inline bool plain(const char *path)
{
    const char *base = path, *at;

    if (inside || !path) {
        return true;
    }
    for (at = path; *at; at++) {
        if (*at == '/') {
            base = at + 1;
        }
    }
    /* clang-format off */
    switch (*base) {
    case 'k': return !(base[1] == 'v' && base[2] == 'm');          /* kvm, kvm_intel */
    case 'p': return __builtin_strcmp(base, "parameters") != 0;
    case 't': return __builtin_strcmp(base, "tdx") != 0;
    case 'n': return __builtin_strcmp(base, "nested") != 0;
    case 'c': return __builtin_strcmp(base, "cpuinfo") != 0;
    default: return true;
    }
    /* clang-format on */
}

#endif
