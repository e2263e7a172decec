/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A guest_memfd that user space maps (Linux 6.18 and later): one set of pages for the guest and the program. */
#include "kvm.h"
#include <setjmp.h>
#include <sys/stat.h>

#define SHOW(what, value) printf("%s: %d\n", what, (int)(value))
#define PAGE 4096
#define PAGES 4
#define SIZE (PAGES * PAGE)
#define CAP_FLAGS 244
#define CREATE _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, 64)
#define SET_REGION2 _IOC(_IOC_WRITE, KVMIO, 0x49, 160)
#define MEM_GUEST_MEMFD (1u << 2)
#define FLAG_MMAP 1
#define FLAG_INIT_SHARED 2

struct region2 {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
    uint32_t guest_memfd, pad1;
    uint64_t pad2[14];
};

static sigjmp_buf after;

static void on_bus(int number)
{
    siglongjmp(after, number);
}

/* 1 if an access is SIGBUS. */
static int faults(volatile uint8_t *at)
{
    if (sigsetjmp(after, 1)) {
        return 1;
    }
    (void)*at;
    return 0;
}

static int create(int vm, uint64_t flags)
{
    uint64_t request[8] = { SIZE, flags };

    return ioctl(vm, CREATE, request);
}

static const char *mapped(int fd, int flags)
{
    void *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

    if (at == MAP_FAILED) {
        return strerror(errno);
    }
    munmap(at, SIZE);
    return "done";
}

static void refused(int vm)
{
    int both = must(create(vm, FLAG_MMAP | FLAG_INIT_SHARED), "both"), none = must(create(vm, 0), "none");
    void *large = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, both, 0);

    printf("private: %s, %s\n", mapped(both, MAP_PRIVATE), mapped(create(vm, FLAG_MMAP), MAP_PRIVATE));
    printf("one large page: %s\n", madvise(large, 2 * PAGE, 25) ? strerror(errno) : "done"); /* MADV_COLLAPSE */
    printf("without the flag: %s, %s\n", mapped(none, MAP_SHARED), mapped(none, MAP_PRIVATE));
}

int main(int argc, char **argv)
{
    struct machine m = new_machine(0);
    struct region2 region = { .slot = 1, .flags = MEM_GUEST_MEMFD, .guest_phys_addr = 0x20000, .memory_size = SIZE };
    struct stat status;
    uint8_t *memory, *place, *again;
    const char *result = "";
    int both, only, none, tries;

    if (argc > 1 && !strcmp(argv[1], "refused")) {
        refused(m.vm);
        return 0;
    }
    signal(SIGBUS, on_bus);
    SHOW("flags", ioctl(m.vm, KVM_CHECK_EXTENSION, CAP_FLAGS));
    both = must(create(m.vm, FLAG_MMAP | FLAG_INIT_SHARED), "both");
    only = must(create(m.vm, FLAG_MMAP), "only");
    none = must(create(m.vm, 0), "none");
    printf("shared: %s, %s, %s\n", mapped(both, MAP_SHARED), mapped(only, MAP_SHARED), mapped(none, MAP_SHARED));
    fstat(both, &status);
    SHOW("size", status.st_size);
    region.guest_memfd = both;
    must(ioctl(m.vm, SET_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");

    memory = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
    memory[5] = 0x5a;
    /* mov ax, 0x2000; mov ds, ax; mov al, [5]; inc al; mov [6], al; out 0x10, al */
    START(&m, 0x1000, "\xb8\x00\x20\x8e\xd8\xa0\x05\x00\xfe\xc0\xa2\x06\x00\xe6\x10\xf4");
    printf("run: %s\n", run(&m));
    SHOW("what the guest wrote", memory[6]);
    SHOW("beyond the end", faults(memory + SIZE));
    SHOW("its last page", faults(memory + SIZE - 1));

    place = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    again = mmap(place + PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, both, 0);
    SHOW("at the address asked for", again == place + PAGE);
    SHOW("the same page", again[6]);
    again = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, only, 0);
    SHOW("not shared first", faults(again));
    SHOW("nor at a place of the program's",
         faults(mmap(place + 2 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, only, 0)));

    SHOW("hole", fallocate(both, 3, 0, PAGE));
    SHOW("zeros", memory[5] + memory[6] + place[PAGE + 6]);

    /* A mapping keeps the file: parts of it, too. */
    memory[0x1005] = 0x41;
    close(both);
    munmap(memory, PAGE);
    munmap(memory + 3 * PAGE, 5 * PAGE);
    munmap(place, 2 * SIZE);
    START(&m, 0x1000, "\xb8\x00\x21\x8e\xd8\xa0\x05\x00\xfe\xc0\xa2\x06\x00\xe6\x10\xf4");
    printf("run: %s\n", run(&m));
    SHOW("what the guest wrote", memory[0x1006]);
    munmap(memory + PAGE, 2 * PAGE);
    for (tries = 0; tries < 1000;
         tries++) { /* a front end in another process sees the end of a mapping a little later */
        START(&m, 0x1000, "\xb8\x00\x21\x8e\xd8\xa0\x05\x00\xe6\x10\xf4");
        result = run(&m);
        if (strcmp(result, "exit 2")) {
            break;
        }
        usleep(10000);
    }
    printf("run without: %s\n", result);
    return 0;
}
