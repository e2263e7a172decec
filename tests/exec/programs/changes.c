/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory that changes under a live slot, in every way in which a program can change it. A line for each: what the guest
 * reads at its first byte afterwards, or why KVM_RUN fails. */
#include "kvm.h"
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#define PAGE 4096
#define SLOT 0x10000UL
#define MOVED 0x4000UL /* what the guest reads, of the slot */
#define SHOW(what, value) printf("%s: %ld\n", what, (long)(value))
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static struct machine m;
static uint8_t *code; /* in a slot of its own, which does not change */

static void slot(int number, uint64_t gpa, void *memory, uint64_t size)
{
    struct kvm_userspace_memory_region region = { .slot = number, .guest_phys_addr = gpa, .memory_size = size,
                                                  .userspace_addr = (uintptr_t)memory };

    must(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

/* mov ds, 0x1000; mov al, [0x4000]; out 0x10, al; hlt: reads at 0x14000, the second slot's 0x4000. */
#define READS "\xb8\x00\x10\x8e\xd8\xa0\x00\x40\xe6\x10\xf4"
/* mov ds, 0x1000; mov al, 0x77; mov [0x4000], al; out 0x10, al; hlt */
#define WRITES "\xb8\x00\x10\x8e\xd8\xb0\x77\xa2\x00\x40\xe6\x10\xf4"

static const char *does(const char *what, size_t length)
{
    static char text[64];
    static int turn;
    const char *how;

    m.memory = code;
    start_at(&m, 0x100 + (turn++ % 64) * 16, what, length);
    how = run(&m);
    if (strcmp(how, "exit 2")) {
        if (!strcmp(how, "exit 6")) { /* a kernel that emulates real mode sees device memory there: let it go on */
            m.run->immediate_exit = 1;
            ioctl(m.vcpu, KVM_RUN, 0L);
            m.run->immediate_exit = 0;
        }
        return strstr(how, "Bad address") || !strcmp(how, "exit 6") ? "refused" : how;
    }
    snprintf(text, sizeof(text), "%d", *((uint8_t *)m.run + m.run->io.data_offset));
    return text;
}

static void reads(const char *when)
{
    printf("%s: %s\n", when, does(READS, sizeof(READS) - 1));
}

static void writes(const char *when, uint8_t *memory)
{
    const char *how = does(WRITES, sizeof(WRITES) - 1);

    printf("%s: %s, %d\n", when, how, memory ? memory[MOVED] : -1);
}

static uint8_t *fresh(int flags, int fd)
{
    uint8_t *memory = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, flags, fd, 0);

    static int before;

    memory[MOVED] = 5;
    if (before++) {
        slot(1, 0x10000, NULL, 0);
    }
    slot(1, 0x10000, memory, SLOT);
    return memory;
}

#define PRIVATE_MEMORY fresh(MAP_PRIVATE | MAP_ANONYMOUS, -1)

static void unmapped(void)
{
    uint8_t *memory = PRIVATE_MEMORY;

    reads("before");
    munmap(memory + MOVED, PAGE);
    reads("a page unmapped");
    *(uint8_t *)mmap(memory + MOVED, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) = 6;
    reads("mapped again");
    munmap(memory, SLOT);
    reads("all unmapped");
    mmap(memory, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memory[MOVED] = 7;
    reads("all mapped again, shared");
    mmap(memory + MOVED, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    reads("replaced");
    syscall(SYS_munmap, memory + MOVED, PAGE);
    reads("unmapped by a system call");
}

static void advised(void)
{
    uint8_t *memory = PRIVATE_MEMORY, *shared;

    reads("before");
    madvise(memory, SLOT, MADV_DONTNEED);
    reads("MADV_DONTNEED");
    memory[MOVED] = 8;
    reads("written again");
    madvise(memory, SLOT, MADV_FREE);
    memory[MOVED] = 9;
    reads("MADV_FREE, written again");
    madvise(memory, SLOT, MADV_COLD);
    madvise(memory, SLOT, MADV_PAGEOUT);
    reads("MADV_COLD, MADV_PAGEOUT");
    madvise(memory, SLOT, MADV_POPULATE_WRITE);
    madvise(memory, SLOT, MADV_WILLNEED);
    madvise(memory, SLOT, MADV_RANDOM);
    madvise(memory, SLOT, MADV_DONTDUMP);
    reads("populated");
    madvise(memory, SLOT, MADV_DONTNEED_LOCKED);
    reads("MADV_DONTNEED_LOCKED");
    shared = fresh(MAP_SHARED | MAP_ANONYMOUS, -1);
    reads("shared");
    madvise(shared, SLOT, MADV_DONTNEED);
    reads("shared, MADV_DONTNEED");
    madvise(shared, SLOT, MADV_REMOVE);
    reads("shared, MADV_REMOVE");
    writes("written by the guest", shared);
}

/* A kernel without guard regions prints nothing. */
static void guarded(void)
{
    uint8_t *memory = PRIVATE_MEMORY;

    if (!madvise(memory + MOVED, PAGE, 102)) { /* MADV_GUARD_INSTALL */
        reads("guarded");
        madvise(memory + MOVED, PAGE, 103);
        reads("not any more");
    }
}

/* A guard region that is there before its slot is: the program keeps it, and the guest meets it. */
static void guarded_before(void)
{
    const int kinds[] = { MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS };
    int i, pipes[2];

    must(pipe(pipes), "pipe");
    for (i = 0; i < 2; i++) {
        uint8_t *memory = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, kinds[i], -1, 0);

        memset(memory, 5, SLOT);
        if (madvise(memory + MOVED, PAGE, 102)) { /* shared memory: since Linux 6.15 */
            continue;
        }
        slot(1, 0x10000, memory, SLOT);
        printf("kind %d\n", i);
        reads("guarded");
        SHOW("by a system call", write(pipes[1], memory + MOVED, 1) < 0 ? -errno : 0);
        SHOW("before it", memory[MOVED - 1]);
        SHOW("behind it", memory[MOVED + PAGE]);
        memory[0] = 6;
        reads("guarded still");
        madvise(memory + MOVED, PAGE, 103);
        reads("not any more");
        writes("written by the guest", memory);
        slot(1, 0x10000, NULL, 0);
    }
}

static int faults;

static void *answer_a_fault(void *page)
{
    struct uffdio_copy copy = { .src = (uintptr_t)page, .len = PAGE };
    struct uffd_msg event;

    if (read(faults, &event, sizeof(event)) == sizeof(event)) {
        copy.dst = event.arg.pagefault.address & -PAGE;
        ioctl(faults, UFFDIO_COPY, &copy);
    }
    return NULL;
}

/* A page that user space brings when the guest touches it. A kernel that does not allow it prints nothing. */
static void faulted(void)
{
    struct uffdio_api api = { .api = UFFD_API };
    uint8_t *memory = PRIVATE_MEMORY, *page = malloc(PAGE);
    struct uffdio_register range = { { (uintptr_t)memory + MOVED, PAGE }, UFFDIO_REGISTER_MODE_MISSING };
    pthread_t thread;

    memset(page, 33, PAGE);
    madvise(memory + MOVED, PAGE, MADV_DONTNEED);
    faults = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &range)) {
        return;
    }
    pthread_create(&thread, NULL, answer_a_fault, page);
    reads("brought");
}

static void protected(void)
{
    uint8_t *memory = PRIVATE_MEMORY;

    reads("before");
    mprotect(memory, SLOT, PROT_NONE);
    reads("PROT_NONE");
    mprotect(memory, SLOT, PROT_READ);
    reads("PROT_READ");
    writes("PROT_READ, a write", memory);
    mprotect(memory, SLOT, PROT_READ | PROT_WRITE);
    writes("PROT_WRITE", memory);
    mprotect(memory + MOVED, PAGE, PROT_NONE);
    reads("one page PROT_NONE");
    mprotect(memory + MOVED, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    reads("executable");
    syscall(SYS_mprotect, memory, SLOT, PROT_NONE);
    reads("PROT_NONE by a system call");
}

static void moved(void)
{
    uint8_t *memory = PRIVATE_MEMORY, *place, *to;

    reads("before");
    place = mmap(NULL, 2 * SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    to = mremap(memory, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    SHOW("moved", to == place && to[MOVED] == 5);
    reads("moved away");
    to = mremap(place, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, memory);
    SHOW("moved", to == memory);
    reads("moved back");
    memory[MOVED] = 6;
    reads("written");
    mremap(memory, SLOT, MOVED, 0);
    reads("shrunk");
    munmap(memory, SLOT);
    memory = PRIVATE_MEMORY;
    place = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    place[0] = 11;
    mremap(place, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + MOVED);
    reads("another page moved there");
}

static void of_file(void)
{
    int fd = memfd_create("ram", 0);
    uint8_t byte = 12, *memory;

    ftruncate(fd, SLOT);
    memory = fresh(MAP_SHARED, fd);
    reads("before");
    pwrite(fd, &byte, 1, MOVED);
    reads("written to the file");
    fallocate(fd, 3, MOVED, PAGE); /* FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
    reads("a hole punched");
    memory[MOVED] = 13;
    reads("filled");
    ftruncate(fd, MOVED);
    reads("truncated");
    ftruncate(fd, SLOT);
    reads("extended again");
    writes("written by the guest", memory);
    pread(fd, &byte, 1, MOVED);
    SHOW("seen in the file", byte);
    fallocate(fd, 3, 0, SLOT);
    reads("all of it punched out");
    ftruncate(fd, 0);
    reads("empty");
    writes("a write to nothing", NULL);
}

static void forked(void)
{
    uint8_t *memory = PRIVATE_MEMORY;
    int ends[2], back[2], pid;
    char byte;

    pipe(ends);
    pipe(back);
    reads("before");
    fflush(stdout);
    pid = fork();
    if (!pid) {
        memory[MOVED] = 99;
        write(back[1], "", 1);
        read(ends[0], &byte, 1);
        _exit(memory[MOVED] == 99 ? 7 : 1);
    }
    read(back[0], &byte, 1);
    reads("the child has written");
    writes("written by the guest", memory);
    memory[MOVED] = 21;
    reads("written by the parent");
    write(ends[1], "", 1);
    waitpid(pid, &pid, 0);
    SHOW("the child", WEXITSTATUS(pid));
    reads("and when it has ended");
}

static void collapsed(void)
{
    uint64_t size = 8UL << 20, huge = 2UL << 20;
    uint8_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *memory = (uint8_t *)(((uintptr_t)area + huge - 1) & -huge);

    madvise(memory, 2 * huge, MADV_NOHUGEPAGE);
    memset(memory, 31, 2 * huge);
    slot(1, 0x10000, memory, 2 * huge);
    reads("small pages");
    madvise(memory, 2 * huge, MADV_HUGEPAGE);
    madvise(memory, 2 * huge, MADV_COLLAPSE);
    reads("collapsed");
    writes("written by the guest", memory);
    mprotect(memory + PAGE, PAGE, PROT_READ);
    reads("split");
    munmap(memory + MOVED, PAGE);
    reads("a page of it unmapped");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    m = new_machine(0);
    code = m.memory;
    if (!strcmp(what, "unmapped")) {
        unmapped();
    } else if (!strcmp(what, "advised")) {
        advised();
    } else if (!strcmp(what, "guarded")) {
        guarded();
    } else if (!strcmp(what, "guarded-before")) {
        guarded_before();
    } else if (!strcmp(what, "userfaultfd")) {
        faulted();
    } else if (!strcmp(what, "protected")) {
        protected();
    } else if (!strcmp(what, "moved")) {
        moved();
    } else if (!strcmp(what, "of-file")) {
        of_file();
    } else if (!strcmp(what, "forked")) {
        forked();
    } else if (!strcmp(what, "collapsed")) {
        collapsed();
    }
    return 0;
}
