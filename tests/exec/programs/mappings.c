/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mappings of vCPUs, and of the memory of a guest while it lives. */
#include "kvm.h"

#define SHOW(what, value) printf("%s: %d\n", what, (int)(value))

static void vcpu_mappings(void)
{
    struct machine m = new_machine(0);
    size_t size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0L);
    uint8_t *place = mmap(NULL, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_run *fixed = mmap(place + size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m.vcpu, 0);
    struct kvm_run *again = mmap(NULL, size, PROT_READ, MAP_SHARED, m.vcpu, 0);

    SHOW("at the address asked for", (uint8_t *)fixed == place + size);
    START(&m, 0x1000, OUT_HLT);
    run(&m);
    SHOW("the fixed one shows the exit", fixed->exit_reason);
    SHOW("a second one shows it", again->exit_reason);
    SHOW("port", *((uint16_t *)&fixed->io.port));
    SHOW("munmap", munmap(m.run, size));
    SHOW("munmap twice", munmap(m.run, size));
    m.run = fixed;
    START(&m, 0x1100, OUT_HLT);
    run(&m);
    SHOW("exit after munmap of one", fixed->exit_reason);
    SHOW("a part of it", munmap((uint8_t *)again + 4096, 4096));
    SHOW("the other part", again->exit_reason);
    SHOW("the rest", munmap(again, 4096));
    SHOW("replaced", mmap(fixed, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == fixed);
    SHOW("by zeroes", fixed->exit_reason);
    SHOW("the neighbours are as they were", munmap(place, 4 * size));
}

/* A mapping keeps the vCPU: with all descriptors closed the VM is there until munmap(). */
static void kept(void)
{
    struct machine m = new_machine(0);
    int i;

    START(&m, 0x1000, OUT_HLT);
    run(&m);
    close(m.vcpu);
    close(m.vm);
    close(m.kvm);
    SHOW("readable after close", m.run->exit_reason);
    SHOW("munmap", munmap(m.run, 0x3000));
    for (i = 0; i < 40; i++) { /* and nothing stays behind */
        m = new_machine(0);
        START(&m, 0x1000, OUT_HLT);
        run(&m);
        munmap(m.run, 0x3000);
        close(m.vcpu);
        close(m.vm);
        close(m.kvm);
        munmap(m.memory, GUEST_SIZE);
    }
    SHOW("the next descriptor is a low one", open("/dev/null", O_RDONLY) < 32);
}

/* The page of coalesced MMIO is the VM's: each vCPU's mapping shows it. */
static void coalesced(void)
{
    struct machine m = new_machine(0);
    struct kvm_coalesced_mmio_zone zone = { .addr = 0x80000, .size = 0x1000 };
    int offset = ioctl(m.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);
    int second = must(ioctl(m.vm, KVM_CREATE_VCPU, 1L), "KVM_CREATE_VCPU");
    uint8_t *other = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
    uint8_t *fixed = mmap(NULL, 0x3000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_coalesced_mmio_ring *ring;

    must(ioctl(m.vm, KVM_REGISTER_COALESCED_MMIO, &zone), "KVM_REGISTER_COALESCED_MMIO");
    START(&m, 0x1000, "\xb8\x00\x80\x8e\xd8\xc6\x06\x00\x00\x5a\xe6\x10\xf4"); /* mov ds, 0x8000; movb [0], 0x5a; out */
    printf("exit: %s\n", run(&m));
    ring = (void *)(other + offset * 4096);
    SHOW("entries in the second vCPU's page", ring->last);
    SHOW("the byte", ring->coalesced_mmio[0].data[0]);
    fixed = mmap(fixed, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, second, 0);
    ring = (void *)(fixed + offset * 4096);
    SHOW("entries where it was mapped at a fixed address", ring->last);
}

/* A guest runs from memory that is replaced, made read-only, given back and unmapped under its slot. */
static void notified(void)
{
    struct machine m = new_machine(0);
    struct kvm_regs regs;

    START(&m, 0x1000, "\xb0\x01\xe6\x10\xf4");
    run(&m);
    ioctl(m.vcpu, KVM_GET_REGS, &regs);
    SHOW("first", regs.rax & 0xff);
    mmap(m.memory, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    START(&m, 0x1000, "\xb0\x02\xe6\x10\xf4");
    run(&m);
    ioctl(m.vcpu, KVM_GET_REGS, &regs);
    SHOW("replaced", regs.rax & 0xff);
    madvise(m.memory, GUEST_SIZE, MADV_REMOVE);
    START(&m, 0x1000, "\xb0\x03\xe6\x10\xf4");
    run(&m);
    ioctl(m.vcpu, KVM_GET_REGS, &regs);
    SHOW("given back", regs.rax & 0xff);
    START(&m, 0x1000, "\xa2\x00\x20\xe6\x10\xf4"); /* mov [0x2000], al */
    mprotect(m.memory + 0x2000, 0x1000, PROT_READ);
    printf("write to what is read-only now: %s\n", run(&m));
    mprotect(m.memory + 0x2000, 0x1000, PROT_READ | PROT_WRITE);
    START(&m, 0x1000, "\xa2\x00\x20\xe6\x10\xf4");
    printf("writable again: %s\n", run(&m));
    munmap(m.memory + 0x1000, 0x1000);
    regs.rip = 0x1000;
    ioctl(m.vcpu, KVM_SET_REGS, &regs);
    printf("unmapped: %s\n", run(&m));
    mmap(m.memory + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    START(&m, 0x1000, "\xb0\x04\xe6\x10\xf4");
    printf("mapped again: %s\n", run(&m));
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (!strcmp(what, "vcpu")) {
        vcpu_mappings();
    } else if (!strcmp(what, "kept")) {
        kept();
    } else if (!strcmp(what, "coalesced")) {
        coalesced();
    } else if (!strcmp(what, "notified")) {
        notified();
    }
    return 0;
}
