/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a program pays under `swtdx exec`: one line for each figure, name, tab, value, tab, unit. */
#define _GNU_SOURCE
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
#include <time.h>
#include <unistd.h>

static struct kvm_run *run;
static int vcpu;
static double sent;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void report(const char *name, double value, const char *unit)
{
    printf("%s\t%.3f\t%s\n", name, value, unit);
    fflush(stdout);
}

static void start_at(uint64_t rip)
{
    struct kvm_regs regs = { .rip = rip, .rflags = 2 };
    struct kvm_sregs sregs;

    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &sregs);
    ioctl(vcpu, KVM_SET_REGS, &regs);
}

static void nothing(int number)
{
    (void)number;
}

static void *kicker(void *target)
{
    usleep(30000);
    sent = now();
    pthread_kill(*(pthread_t *)target, SIGUSR1);
    return NULL;
}

/* The worst of ten: from pthread_kill() to the return of KVM_RUN. */
static double kick(uint64_t rip)
{
    pthread_t self = pthread_self(), thread;
    double worst = 0, took;
    int i;

    for (i = 0; i < 10; i++) {
        start_at(rip);
        pthread_create(&thread, NULL, kicker, &self);
        ioctl(vcpu, KVM_RUN, 0L);
        took = now() - sent;
        pthread_join(thread, NULL);
        worst = took > worst ? took : worst;
    }
    return worst;
}

int main(int argc, char **argv)
{
    int i, n = argc > 1 ? atoi(argv[1]) : 2000, kvm, vm;
    struct kvm_userspace_memory_region region = { .memory_size = 0x10000 };
    struct sigaction action = { .sa_handler = nothing };
    uint8_t *memory;
    double begun = now();

    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    report("first open of /dev/kvm", (now() - begun) / 1e3, "ms");
    for (begun = now(), i = 0; i < n; i++) {
        ioctl(kvm, KVM_GET_API_VERSION, 0L);
    }
    report("null ioctl", (now() - begun) / n, "us");
    vm = ioctl(kvm, KVM_CREATE_VM, 0L);
    ioctl(vm, KVM_CREATE_IRQCHIP, 0L);
    memory = mmap(NULL, region.memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory + 0x1000, "\xe6\x80\xeb\xfc", 4); /* out; again */
    memcpy(memory + 0x2000, "\xeb\xfe", 2);         /* spin */
    memcpy(memory + 0x3000, "\xfb\xf4\xeb\xfd", 4); /* sti; hlt; again */
    region.userspace_addr = (uintptr_t)memory;
    begun = now();
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    report("a slot in private memory", now() - begun, "us");
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0L);
    run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    start_at(0x1000);
    for (begun = now(), i = 0; i < n && run->exit_reason != KVM_EXIT_FAIL_ENTRY; i++) {
        ioctl(vcpu, KVM_RUN, 0L);
    }
    report("OUT exit", (now() - begun) / n, "us");
    sigaction(SIGUSR1, &action, NULL);
    report("kick while the guest spins, worst of 10", kick(0x2000) / 1e3, "ms");
    report("kick in HLT, worst of 10", kick(0x3000) / 1e3, "ms");
    for (begun = now(), i = 0; i < n; i++) {
        close(open("/dev/null", O_RDONLY));
    }
    report("open and close of another file", (now() - begun) / n, "us");
    for (begun = now(), i = 0; i < n; i++) {
        munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
    }
    report("mmap and munmap of other memory", (now() - begun) / n, "us");
    return 0;
}
