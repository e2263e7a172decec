/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a TD is built, for the test programs: as Linux 6.16 has it; a machine's headers may be older. */
#include "kvm.h"

#define CREATE_GUEST_MEMFD 0xc040aed4
#define SET_USER_MEMORY_REGION2 0x40a0ae49
#define SET_MEMORY_ATTRIBUTES 0x4020aed2
#define MEMORY_ENCRYPT_OP 0xc008aeba
#define TDX_VM 5
#define PRIVATE 8
#define GUEST_MEMFD 4
#define RESET_PAGE 0xfffff000
#define MEMORY 0x200000
#define ENTRIES 256

enum { CAPABILITIES, INIT_VM, INIT_VCPU, INIT_MEM_REGION, FINALIZE_VM };

struct cpuid {
    uint32_t nent, padding;
    struct kvm_cpuid_entry2 entries[ENTRIES];
};

static void tdx(int fd, uint32_t id, uint32_t flags, uint64_t data, const char *what)
{
    struct { uint32_t id, flags; uint64_t data, hw_error; } command = { id, flags, data, 0 };
    int result = ioctl(fd, MEMORY_ENCRYPT_OP, &command);

    if (result < 0 && command.hw_error) {
        printf("status %#lx: ", (long)command.hw_error);
    }
    must(result, what);
}

static void slot(int vm, int number, uint64_t gpa, uint64_t size, int memfd, uint64_t offset)
{
    struct { uint32_t slot, flags; uint64_t gpa, size, user, offset; uint32_t memfd, pad1; uint64_t pad2[14]; } region = {
        number, GUEST_MEMFD, gpa, size, 0, offset, memfd };
    struct { uint64_t address, size, attributes, flags; } attributes = { gpa, size, PRIVATE, 0 };

    region.user = (uintptr_t)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(ioctl(vm, SET_USER_MEMORY_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");
    must(ioctl(vm, SET_MEMORY_ATTRIBUTES, &attributes), "KVM_SET_MEMORY_ATTRIBUTES");
}

/* What the module lets one choose of what KVM supports. */
static void init_vm(int kvm, int vm, struct cpuid *supported)
{
    static struct { uint64_t attrs, xfam, info[4], reserved[250]; struct cpuid cpuid; } have;
    static struct { uint64_t attributes, xfam, digests[18], reserved[12]; struct cpuid cpuid; } init;
    unsigned i, j;

    init.xfam = 3;
    init.cpuid.nent = 0;
    have.cpuid.nent = ENTRIES;

    tdx(vm, CAPABILITIES, 0, (uintptr_t)&have, "KVM_TDX_CAPABILITIES");
    for (i = 0; i < have.cpuid.nent; i++) {
        struct kvm_cpuid_entry2 *mask = &have.cpuid.entries[i], *entry = &init.cpuid.entries[init.cpuid.nent];

        for (j = 0; j < supported->nent; j++) {
            struct kvm_cpuid_entry2 *leaf = &supported->entries[j];

            if (leaf->function == mask->function && (!(leaf->flags & 1) || leaf->index == mask->index)) {
                *entry = *leaf;
                entry->index = mask->index;
                entry->eax &= mask->eax;
                entry->ebx &= mask->ebx;
                entry->ecx &= mask->ecx;
                entry->edx &= mask->edx;
                if (mask->function == 0x80000008) {
                    entry->eax = (entry->eax & ~0xff0000) | 48 << 16;
                }
                init.cpuid.nent++;
                break;
            }
        }
    }
    tdx(vm, INIT_VM, 0, (uintptr_t)&init, "KVM_TDX_INIT_VM");
}

/* A TD whose first vCPU is initialised, with private memory at 0 and for the reset vector. */
struct td {
    int vm, vcpu, memfd;
};

static struct td new_td(int kvm)
{
    static struct cpuid cpuid;
    struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
    struct { uint64_t size, flags, reserved[6]; } gmem = { MEMORY + 4096 };
    struct td td;
    unsigned i;

    td.vm = must(ioctl(kvm, KVM_CREATE_VM, (long)TDX_VM), "KVM_CREATE_VM");
    must(ioctl(td.vm, KVM_ENABLE_CAP, &split), "KVM_ENABLE_CAP");
    cpuid.nent = ENTRIES;
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    init_vm(kvm, td.vm, &cpuid);
    td.memfd = must(ioctl(td.vm, CREATE_GUEST_MEMFD, &gmem), "KVM_CREATE_GUEST_MEMFD");
    slot(td.vm, 0, 0, MEMORY, td.memfd, 0);
    slot(td.vm, 1, RESET_PAGE, 4096, td.memfd, MEMORY);
    td.vcpu = must(ioctl(td.vm, KVM_CREATE_VCPU, 0L), "KVM_CREATE_VCPU");
    for (i = 0; i < cpuid.nent; i++) {
        if (cpuid.entries[i].function == 1) {
            cpuid.entries[i].ecx |= 1 << 21;
        }
    }
    must(ioctl(td.vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    tdx(td.vcpu, INIT_VCPU, 0, 0, "KVM_TDX_INIT_VCPU");
    return td;
}
