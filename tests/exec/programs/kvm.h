/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the test programs share: plain clients of /dev/kvm. Each runs on the emulated kernel and on a real one alike. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define GUEST_SIZE 0x10000

struct machine {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    uint8_t *memory;
};

static int must(int result, const char *what)
{
    if (result < 0) {
        printf("%s: %s\n", what, strerror(errno));
        fflush(stdout);
        exit(1);
    }
    return result;
}

/* A real-mode guest whose memory is HLT. */
static struct machine new_machine(int irqchip)
{
    struct machine m = { .kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open") };
    struct kvm_userspace_memory_region region = { .memory_size = GUEST_SIZE };

    m.vm = must(ioctl(m.kvm, KVM_CREATE_VM, 0L), "KVM_CREATE_VM");
    if (irqchip) {
        must(ioctl(m.vm, KVM_CREATE_IRQCHIP, 0L), "KVM_CREATE_IRQCHIP");
    }
    m.memory = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(m.memory, 0xf4, GUEST_SIZE);
    region.userspace_addr = (uintptr_t)m.memory;
    must(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    m.vcpu = must(ioctl(m.vm, KVM_CREATE_VCPU, 0L), "KVM_CREATE_VCPU");
    m.run = mmap(NULL, ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
    return m;
}

static void start_at(struct machine *m, uint64_t rip, const void *code, size_t length)
{
    struct kvm_regs regs = { .rip = rip, .rflags = 2 };
    struct kvm_sregs sregs;

    memcpy(m->memory + rip, code, length);
    must(ioctl(m->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    must(ioctl(m->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    must(ioctl(m->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}
#define START(m, rip, code) start_at(m, rip, code, sizeof(code) - 1)

static const char *run(struct machine *m)
{
    static __thread char text[64];

    if (ioctl(m->vcpu, KVM_RUN, 0L) < 0) {
        snprintf(text, sizeof(text), "%s, exit %u", errno == EINTR ? "EINTR" : strerror(errno), m->run->exit_reason);
    } else {
        snprintf(text, sizeof(text), "exit %u", m->run->exit_reason);
    }
    return text;
}

static inline int usable(int kvm)
{
    int version = ioctl(kvm, KVM_GET_API_VERSION, 0L);

    return version < 0 ? -errno : version;
}

static inline double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

#define SPIN "\xeb\xfe"
#define OUT_HLT "\xe6\x10\xf4"
