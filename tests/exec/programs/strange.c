/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Strange things that programs do with KVM's descriptors and processes: what Linux does then, by both front ends. */
#include "kvm.h"
#include "rights.h"
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define SHOW(what, value) printf("%s: %ld\n", what, (long)(value))
#define RIP(n) (0x1000 + 16 * (n))

static const char *self;

static const char *at(struct machine *m, int number)
{
    start_at(m, RIP(number), OUT_HLT, 3);
    return run(m);
}

/* A system call that no library sees. */
static long unseen(long number, long a, long b, long c)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

/* ---- numbers that are used again ---- */

static int closes(void *number)
{
    return unseen(SYS_close, *(int *)number, 0, 0);
}

/* Ordinary files under a number that was KVM's. */
static void is_ordinary(const char *how, int number)
{
    int file = memfd_create("file", 0), text;
    struct stat status;
    char bytes[8];

    text = open("/proc/self/status", O_RDONLY);
    printf("%s: %d %d %d %d %d", how, file == number, (int)write(file, "abc", 3), fsync(file), ftruncate(file, 100),
           (int)lseek(file, 1, SEEK_SET));
    must(fstat(file, &status), "fstat");
    printf(" %d %d", (int)status.st_size, S_ISREG(status.st_mode));
    printf(" %d", dup2(text, file) == file ? (int)read(file, bytes, 8) : -1);
    printf(" %d\n", ioctl(file, 0x5401, bytes) ? errno : 0);
    close(file);
    close(text);
}

static void reuses(void)
{
    static char stack[1 << 16] __attribute__((aligned(16)));
    struct machine m = new_machine(0);
    int number, child;

    number = ioctl(m.kvm, KVM_CREATE_VM, 0L);
    unseen(SYS_close, number, 0, 0);
    is_ordinary("closed unseen", number);
    number = ioctl(m.kvm, KVM_CREATE_VM, 0L);
    fclose(fdopen(number, "r+"));
    is_ordinary("closed as a stream", number);
    number = open("/dev/kvm", O_RDWR);
    unseen(SYS_close_range, number, number, 0);
    is_ordinary("closed as a range", number);
    number = ioctl(m.kvm, KVM_CREATE_VM, 0L);
    child = clone(closes, stack + sizeof(stack), CLONE_FILES | SIGCHLD, &number);
    waitpid(child, NULL, 0);
    is_ordinary("closed by another process", number);
    printf("the same VM: %s\n", at(&m, 0));
}

/* ---- executing and forking ---- */

static void *stays_in(void *machine)
{
    START((struct machine *)machine, 0x1000, SPIN);
    ioctl(((struct machine *)machine)->vcpu, KVM_RUN, 0L);
    return NULL;
}

static void *executes(void *unused)
{
    usleep(20000);
    execl(self, self, "works", NULL);
    return NULL;
}

/* A thread executes a program while others are in guests. */
static void execs(void)
{
    static struct machine machines[3];
    pthread_t thread;
    int i;

    for (i = 0; i < 3; i++) {
        machines[i] = new_machine(0);
        pthread_create(&thread, NULL, stays_in, &machines[i]);
    }
    fflush(stdout);
    pthread_create(&thread, NULL, executes, NULL);
    pthread_join(thread, NULL);
}

static int works(void)
{
    struct machine m = new_machine(0);

    printf("works: %s\n", at(&m, 0));
    return 0;
}

static void vforks(void)
{
    struct machine m = new_machine(0);
    int i, status;

    for (i = 0; i < 3; i++) {
        pid_t child = vfork();

        if (!child) {
            execl(self, self, "works", NULL);
            _exit(9);
        }
        waitpid(child, &status, 0);
        SHOW("child", WEXITSTATUS(status));
        printf("the same VM: %s\n", at(&m, i));
    }
}

static void *forks(void *unused)
{
    long bad = 0;
    int i;

    for (i = 0; i < 5; i++) {
        int status;
        pid_t child = fork();

        if (!child) {
            _exit(usable(open("/dev/kvm", O_RDWR)));
        }
        waitpid(child, &status, 0);
        bad += WEXITSTATUS(status) != 12;
    }
    return (void *)bad;
}

/* Threads fork while another one runs a guest; each child opens /dev/kvm. */
static void storms(void)
{
    struct machine m = new_machine(0);
    pthread_t threads[3];
    long bad = 0;
    int i;

    for (i = 0; i < 3; i++) {
        pthread_create(&threads[i], NULL, forks, NULL);
    }
    for (i = 0; i < 100; i++) {
        bad += strcmp(at(&m, i), "exit 2") != 0;
    }
    for (i = 0; i < 3; i++) {
        void *result;

        pthread_join(threads[i], &result);
        bad += (long)result;
    }
    SHOW("wrong", bad);
}

/* ---- descriptors of others ---- */

static long refused(int fd, unsigned long request)
{
    return ioctl(fd, request, 0L) < 0 ? -errno : 0;
}

/* A child with a VM of its own gets the parent's VM and vCPU, and sends its own. */
static void rights(void)
{
    int pair[2], status, vm;
    pid_t child;

    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
    child = fork();
    if (!child) {
        struct machine own = new_machine(0);

        send_fd(pair[1], own.vm);
        vm = receive_fd(pair[1]);
        SHOW("the parent's VM", refused(vm, KVM_CREATE_VCPU));
        SHOW("the parent's vCPU", refused(receive_fd(pair[1]), KVM_RUN));
        SHOW("the parent's device", usable(receive_fd(pair[1])));
        printf("the child's own: %s\n", at(&own, 0));
        fflush(stdout);
        _exit(0);
    } else {
        struct machine m = new_machine(0);

        send_fd(pair[0], m.vm);
        send_fd(pair[0], m.vcpu);
        send_fd(pair[0], m.kvm);
        vm = receive_fd(pair[0]);
        waitpid(child, &status, 0);
        SHOW("the child's VM", refused(vm, KVM_CREATE_VCPU));
        printf("the parent's own: %s\n", at(&m, 0));
    }
}

/* The number of a vCPU is replaced while its guest runs. */
static void *replaces(void *machine)
{
    usleep(30000);
    SHOW("replaced", dup2(STDERR_FILENO, ((struct machine *)machine)->vcpu) == ((struct machine *)machine)->vcpu);
    ((volatile uint8_t *)((struct machine *)machine)->memory)[0x2000] = 1;
    return NULL;
}

static void replaced(void)
{
    struct machine m = new_machine(0);
    pthread_t thread;

    m.memory[0x2000] = 0;
    START(&m, 0x1000, "\xa0\x00\x20\x84\xc0\x74\xf9\xf4"); /* again: mov al, [0x2000]; test al, al; jz again; hlt */
    pthread_create(&thread, NULL, replaces, &m);
    printf("in its guest: %s\n", run(&m));
    pthread_join(thread, NULL);
    SHOW("afterwards", refused(m.vcpu, KVM_RUN));
    SHOW("another vCPU", ioctl(m.vm, KVM_CREATE_VCPU, 1L) >= 0);
}

/* A daemon with a VM is killed: soon there is no such process. */
static void orphans(void)
{
    int pair[2], i;
    pid_t daemon = 0;

    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
    for (i = 0; i < 2; i++) {
        pid_t child = fork();
        double begun;

        if (!child) {
            if (!fork()) {
                struct machine m = new_machine(i);

                daemon = getpid();
                must(write(pair[1], &daemon, sizeof(daemon)), "write");
                START(&m, 0x1000, SPIN);
                ioctl(m.vcpu, KVM_RUN, 0L);
            }
            _exit(0);
        }
        waitpid(child, NULL, 0);
        must(read(pair[0], &daemon, sizeof(daemon)), "read");
        usleep(100000);
        kill(daemon, SIGKILL);
        for (begun = seconds(); !kill(daemon, 0) && seconds() - begun < 10; usleep(10000)) {
        }
        SHOW("gone", kill(daemon, 0) && errno == ESRCH);
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*function)(void);
    } cases[] = { { "reuses", reuses }, { "execs", execs },   { "vforks", vforks },
                  { "storms", storms }, { "rights", rights }, { "replaced", replaced },
                  { "orphans", orphans } };
    size_t i;

    self = argv[0];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(argv[1], "works")) {
        return works();
    }
    for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].function();
            return 0;
        }
    }
    return 2;
}
