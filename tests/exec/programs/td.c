/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VMM for TDs, as small as it gets: `td FILE` builds a TD from the regions in FILE (address, length, contents), runs it
 * and prints what it writes to port 0x80, until it writes to port 0xf4. As Linux 6.16 has it; its headers may be older.
 */
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
    static struct { uint64_t attrs, xfam, info[4], reserved[250]; struct cpuid cpuid; } have = { .cpuid.nent = ENTRIES };
    static struct { uint64_t attributes, xfam, digests[18], reserved[12]; struct cpuid cpuid; } init = { .xfam = 3 };
    unsigned i, j;

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

int main(int argc, char **argv)
{
    static struct cpuid cpuid = { .nent = ENTRIES };
    struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
    struct { uint64_t size, flags, reserved[6]; } gmem = { MEMORY + 4096 };
    uint64_t region[2];
    struct kvm_run *run;
    int kvm, vm, vcpu, memfd, regions = 0;
    FILE *file = fopen(argv[1], "r");
    unsigned i;

    kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open");
    vm = must(ioctl(kvm, KVM_CREATE_VM, (long)TDX_VM), "KVM_CREATE_VM");
    must(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_ENABLE_CAP");
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    init_vm(kvm, vm, &cpuid);
    memfd = must(ioctl(vm, CREATE_GUEST_MEMFD, &gmem), "KVM_CREATE_GUEST_MEMFD");
    slot(vm, 0, 0, MEMORY, memfd, 0);
    slot(vm, 1, RESET_PAGE, 4096, memfd, MEMORY);
    vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0L), "KVM_CREATE_VCPU");
    for (i = 0; i < cpuid.nent; i++) {
        if (cpuid.entries[i].function == 1) {
            cpuid.entries[i].ecx |= 1 << 21;
        }
    }
    must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    tdx(vcpu, INIT_VCPU, 0, 0, "KVM_TDX_INIT_VCPU");
    while (fread(region, sizeof(region), 1, file) == 1) {
        uint8_t *contents = mmap(NULL, region[1], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint64_t memory[3] = { (uintptr_t)contents, region[0], region[1] / 4096 };

        fread(contents, region[1], 1, file);
        tdx(vcpu, INIT_MEM_REGION, 1, (uintptr_t)memory, "KVM_TDX_INIT_MEM_REGION");
        regions += memory[2] == 0;
    }
    printf("regions: %d\n", regions);
    tdx(vm, FINALIZE_VM, 0, 0, "KVM_TDX_FINALIZE_VM");
    run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    printf("the TD says: ");
    for (;;) {
        must(ioctl(vcpu, KVM_RUN, 0L), "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO || run->io.port == 0xf4) {
            break;
        }
        putchar(((char *)run)[run->io.data_offset]);
    }
    printf("\nexit: %u\n", run->exit_reason);
    printf("private memory punched out: %d\n", fallocate(memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, MEMORY));
    printf("beyond what there is: %d\n", fallocate(memfd, 0, 0, 1) < 0 ? -errno : 0);
    return 0;
}
