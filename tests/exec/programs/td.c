/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VMM for TDs, as small as it gets: `td FILE` builds a TD from the regions in FILE (address, length, contents), runs it
 * and prints what it writes to port 0x80, until it writes to port 0xf4.
 */
#include "tdx.h"

int main(int argc, char **argv)
{
    uint64_t region[2];
    struct kvm_run *run;
    struct td td;
    int kvm, regions = 0;
    FILE *file = fopen(argv[1], "r");

    kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open");
    td = new_td(kvm);
    while (fread(region, sizeof(region), 1, file) == 1) {
        uint8_t *contents = mmap(NULL, region[1], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint64_t memory[3] = { (uintptr_t)contents, region[0], region[1] / 4096 };

        fread(contents, region[1], 1, file);
        tdx(td.vcpu, INIT_MEM_REGION, 1, (uintptr_t)memory, "KVM_TDX_INIT_MEM_REGION");
        regions += memory[2] == 0;
    }
    printf("regions: %d\n", regions);
    tdx(td.vm, FINALIZE_VM, 0, 0, "KVM_TDX_FINALIZE_VM");
    run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, td.vcpu, 0);
    printf("the TD says: ");
    for (;;) {
        must(ioctl(td.vcpu, KVM_RUN, 0L), "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO || run->io.port == 0xf4) {
            break;
        }
        putchar(((char *)run)[run->io.data_offset]);
    }
    printf("\nexit: %u\n", run->exit_reason);
    printf("private memory punched out: %d\n", fallocate(td.memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, MEMORY));
    printf("beyond what there is: %d\n", fallocate(td.memfd, 0, 0, 1) < 0 ? -errno : 0);
    return 0;
}
