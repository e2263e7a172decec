/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Programs that are not considerate: what Linux lets them do must not reach the inside of what emulates it. */
#include "kvm.h"
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define SHOW(what, value) printf("%s: %ld\n", what, (long)(value))
#define FILES 100

/* At another address each time: a vCPU that is set back to its OUT continues behind it. */
static const char *exits_once(struct machine *m)
{
    static uint64_t rip = 0x2000;
    uint64_t at = 0x1000 + __atomic_add_fetch(&rip, 16, __ATOMIC_RELAXED) % 0x8000;

    start_at(m, at, OUT_HLT, 3);
    return run(m);
}

/* Whether the files that the program opens now are its own: nothing else writes or closes them. */
static int files[FILES];

static void open_files(void)
{
    int i;

    for (i = 0; i < FILES; i++) {
        files[i] = must(memfd_create("mine", 0), "memfd_create");
        must(write(files[i], "mine", 5), "write");
    }
}

static int untouched(void)
{
    char text[16];
    int i, good = 0;

    for (i = 0; i < FILES; i++) {
        memset(text, 0, sizeof(text));
        good +=
            pread(files[i], text, sizeof(text), 0) == 5 && !strcmp(text, "mine") && lseek(files[i], 0, SEEK_CUR) == 5;
    }
    return good;
}

static void goes_on(struct machine *m)
{
    struct machine another;

    open_files();
    printf("the same VM: %s\n", exits_once(m));
    another = new_machine(1);
    printf("another one: %s\n", exits_once(&another));
    close(another.vcpu);
    close(another.vm);
    close(another.kvm);
    munmap(another.run, 0x3000);
    printf("the same one again: %s\n", exits_once(m));
    close(m->vcpu);
    close(m->vm);
    close(m->kvm);
    munmap(m->run, 0x3000);
    another = new_machine(1);
    printf("one that is made afterwards: %s\n", exits_once(&another));
    SHOW("files that are as they were", untouched());
}

static void closes_all(void)
{
    struct machine m = new_machine(0);
    int fd;

    for (fd = 3; fd < 4096; fd++) {
        if (fd != m.kvm && fd != m.vm && fd != m.vcpu) {
            close(fd);
        }
    }
    goes_on(&m);
}

static void closes_ranges(void)
{
    struct machine m = new_machine(0);
    int last = m.vcpu;

    SHOW("in order", m.kvm < m.vm && m.vm < m.vcpu);
    close_range(3, m.kvm - 1, 0);
    close_range(m.kvm + 1, m.vm - 1, 0);
    close_range(m.vm + 1, m.vcpu - 1, 0);
    SHOW("closed", close_range(m.vcpu + 1, ~0u, 0));
    goes_on(&m);
}

static void replaces_all(void)
{
    struct machine m = new_machine(0);
    int fd, null = open("/dev/null", O_RDWR);

    for (fd = 3; fd < 200; fd++) {
        if (fd != m.kvm && fd != m.vm && fd != m.vcpu && fd != null) {
            must(dup2(null, fd), "dup2");
        }
    }
    for (fd = 3; fd < 200; fd++) {
        if (fd != m.kvm && fd != m.vm && fd != m.vcpu) {
            close(fd);
        }
    }
    goes_on(&m);
}

/* As few descriptors as the machine needs: three for it. */
static void few(void)
{
    struct rlimit limit;
    struct machine m;
    int next = dup(0);

    close(next);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = next + 3;
    setrlimit(RLIMIT_NOFILE, &limit);
    m = new_machine(0);
    printf("with three: %s\n", exits_once(&m));
    SHOW("the limit is mine", !getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur == next + 3);
    SHOW("a fourth", open("/dev/kvm", O_RDWR) < 0 ? -errno : 0);
    close(m.vcpu);
    SHOW("a third again", ioctl(m.vm, KVM_CREATE_VCPU, 1L) >= 0);
    SHOW("a vCPU too many", ioctl(m.vm, KVM_CREATE_VCPU, 2L) < 0 ? -errno : 0);
    SHOW("a VM too many", ioctl(m.kvm, KVM_CREATE_VM, 0L) < 0 ? -errno : 0);
}

static int status_of(int pid)
{
    int status = -1;

    must(waitpid(pid, &status, __WALL), "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int works(void *unused)
{
    struct machine m = new_machine(0);

    return strcmp(exits_once(&m), "exit 2") ? 1 : 7;
}

/* KVM has a thread in the process, so that the end of the first one is not the process's. */
static int works_and_exits(void *unused)
{
    _exit(works(unused));
}

/* Children by system calls of the program's own. */
static void clones(int before)
{
    struct clone_args arguments = { .exit_signal = SIGCHLD };
    char *stack = malloc(1 << 18);
    struct machine m = { 0 };
    int pid;

    if (before) {
        m = new_machine(0);
        exits_once(&m);
    }
    fflush(stdout);
    pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (!pid) {
        _exit(works(NULL));
    }
    SHOW("clone", status_of(pid));
    pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
    if (!pid) {
        _exit(works(NULL));
    }
    SHOW("clone3", status_of(pid));
    SHOW("clone of libc", status_of(clone(works_and_exits, stack + (1 << 18), SIGCHLD, NULL)));
    pid = syscall(SYS_fork);
    if (!pid) {
        _exit(works(NULL));
    }
    SHOW("fork", status_of(pid));
    if (!before) {
        m = new_machine(0);
    }
    printf("the parent: %s\n", exits_once(&m));
}

/* A child made by an instruction of the program's own. */
static void clones_itself(int later)
{
    long pid;

    if (later) {
        works(NULL);
    }

    fflush(stdout);
    __asm__ volatile("syscall" : "=a"(pid) : "a"(SYS_fork) : "rcx", "r11", "memory");
    if (!pid) {
        _exit(works(NULL));
    }
    SHOW("the child", status_of(pid));
    SHOW("the parent", works(NULL));
}

static int whose(void)
{
    int types = ioctl(open("/dev/kvm", O_RDWR), KVM_CHECK_EXTENSION, 235L); /* KVM_CAP_VM_TYPES */

    return types < 0 ? 1 : types & 0x20 ? 9 : 7; /* TDX is the emulated one's */
}

static void leaves_environment(const char *self)
{
    char command[4096], line[64] = "";
    FILE *pipe;

    snprintf(command, sizeof(command), "%s whose", self);
    clearenv();
    SHOW("system", WEXITSTATUS(system(command)));
    pipe = popen(command, "r");
    SHOW("popen", WEXITSTATUS(pclose(pipe)));
}

static volatile int handled;

static void note(int number)
{
    handled++;
}

struct raw_action {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
};

__asm__("give_back: mov $15, %eax\n syscall\n");
extern void give_back(void);

static void handle_raw(int by_libc)
{
    struct raw_action action = { note, 0x04000000, give_back, 0 };
    long result;
    register long size __asm__("r10") = 8;

    if (by_libc) {
        syscall(SYS_rt_sigaction, SIGALRM, &action, NULL, 8L);
    } else {
        __asm__ volatile("syscall"
                         : "=a"(result)
                         : "a"(SYS_rt_sigaction), "D"(SIGALRM), "S"(&action), "d"(0), "r"(size)
                         : "rcx", "r11", "memory");
    }
}

/* A handler that libc knows nothing of ends KVM_RUN like any other. */
static void raw_handler(int by_libc)
{
    struct itimerval soon = { .it_value = { 0, 50000 } };
    struct machine m = new_machine(0);

    handle_raw(by_libc);
    START(&m, 0x1000, SPIN);
    setitimer(ITIMER_REAL, &soon, NULL);
    printf("spinning: %s\n", run(&m));
    SHOW("handled", handled);
}

/* Threads run guests, others fork, and the children are usable. */
static volatile int stop;

static void *spins(void *unused)
{
    struct machine m = new_machine(0);
    long exits = 0;

    while (!stop) {
        exits += !strcmp(exits_once(&m), "exit 2");
    }
    return (void *)exits;
}

static void *forks(void *unused)
{
    long i, good = 0;

    for (i = 0; i < 10; i++) {
        int pid = fork();

        if (!pid) {
            _exit(i % 5 ? 7 : works(NULL));
        }
        good += status_of(pid) == 7;
    }
    return (void *)good;
}

static void storm(void)
{
    pthread_t runner[3], forker[2];
    long result, exits = 0, forked = 0;
    int i;

    new_machine(0);
    for (i = 0; i < 3; i++) {
        pthread_create(&runner[i], NULL, spins, NULL);
    }
    for (i = 0; i < 2; i++) {
        pthread_create(&forker[i], NULL, forks, NULL);
    }
    for (i = 0; i < 2; i++) {
        pthread_join(forker[i], (void **)&result);
        forked += result;
    }
    stop = 1;
    for (i = 0; i < 3; i++) {
        pthread_join(runner[i], (void **)&result);
        exits += result > 0;
    }
    SHOW("children", forked);
    SHOW("guests that ran", exits);
}

/* mov ax, 0x8000; mov ds, ax; mov [0], al: MMIO, which is emulated. */
#define MMIO "\xb8\x00\x80\x8e\xd8\xa2\x00\x00\xf4"

static void changes_root(const char *folder)
{
    struct machine m = new_machine(0), later;

    must(chroot(folder), "chroot");
    must(chdir("/"), "chdir");
    printf("the same VM: %s\n", exits_once(&m));
    START(&m, 0xc000, MMIO);
    printf("MMIO: %s\n", run(&m));
    m.vm = must(ioctl(m.kvm, KVM_CREATE_VM, 0L), "KVM_CREATE_VM");
    SHOW("another vCPU", ioctl(m.vm, KVM_CREATE_VCPU, 0L) >= 0);
}

static void other_user(void)
{
    struct machine m = new_machine(0);

    must(setresgid(65534, 65534, 65534), "setresgid");
    must(setresuid(65534, 65534, 65534), "setresuid");
    printf("the same VM: %s\n", exits_once(&m));
    START(&m, 0xc000, MMIO);
    printf("MMIO: %s\n", run(&m));
    m.vm = must(ioctl(m.kvm, KVM_CREATE_VM, 0L), "KVM_CREATE_VM");
    SHOW("another vCPU", ioctl(m.vm, KVM_CREATE_VCPU, 0L) >= 0);
}

static void namespaces(void)
{
    struct machine m;

    must(unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare");
    m = new_machine(0);
    printf("in a user namespace: %s\n", exits_once(&m));
}

/* No standard streams: the descriptors have low numbers, and nothing is written to them. */
static void no_streams(void)
{
    int out = fcntl(1, F_DUPFD, 100);
    struct machine m;
    char text[64];

    close(0);
    close(1);
    close(2);
    m = new_machine(0);
    snprintf(text, sizeof(text), "numbers: %d %d %d\n", m.kvm, m.vm, m.vcpu);
    write(out, text, strlen(text));
    ioctl(m.vcpu, KVM_SET_MP_STATE, 0L); /* fails */
    ioctl(m.vm, KVM_CREATE_VCPU, 0L); /* fails */
    snprintf(text, sizeof(text), "then: %s\n", exits_once(&m));
    write(out, text, strlen(text));
}

static int again(const char *folder, int fd)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/%d", folder, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* An open /dev/kvm has a name, which opens it once more; the first then is closed, and others come and go. */
static void reopens(void)
{
    int first = open("/dev/kvm", O_RDWR | O_CLOEXEC), second = again("/proc/self/fd", first), third, vm, i;

    close(first);
    close(open("/dev/kvm", O_RDWR));
    SHOW("by /proc/self/fd", usable(second));
    third = again("/dev/fd", second);
    close(second);
    for (i = 0; i < 20; i++) {
        close(open("/dev/kvm", O_RDWR));
    }
    SHOW("by /dev/fd", usable(third));
    vm = ioctl(third, KVM_CREATE_VM, 0L);
    close(third);
    close(open("/dev/kvm", O_RDWR));
    SHOW("its VM", vm >= 0 && ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    close(vm);
    SHOW("and no more", usable(third));
}

/* The last of several descriptors for a thing keeps it, whichever was the first. */
static void keeps_one(void)
{
    struct machine m = new_machine(0);
    int kvm = dup(m.kvm), vm = fcntl(m.vm, F_DUPFD_CLOEXEC, 100), vcpu = dup2(m.vcpu, 120), raw;

    close(m.kvm);
    SHOW("/dev/kvm", usable(kvm));
    close(m.vm);
    SHOW("VM", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS) > 0);
    close(m.vcpu);
    m.vcpu = vcpu;
    printf("vCPU: %s\n", exits_once(&m));
    raw = syscall(SYS_fcntl, vm, F_DUPFD, 130);
    close(vm);
    SHOW("VM by a system call", ioctl(raw, KVM_CREATE_VCPU, 1L) > 0);
    dup3(kvm, 140, O_CLOEXEC);
    close(kvm);
    SHOW("/dev/kvm once more", usable(140));
    close(140);
    SHOW("and no more", usable(140));
}

static struct machine of_leader;

static void *without_leader(void *leader)
{
    struct machine another;

    pthread_join(*(pthread_t *)leader, NULL);
    START(&of_leader, 0x1000, OUT_HLT);
    printf("the same VM: %s\n", run(&of_leader));
    another = new_machine(1);
    START(&another, 0x2000, OUT_HLT);
    printf("another one: %s\n", run(&another));
    exit(0);
}

/* The first thread ends before the others: /proc/self and the process's number lead to nothing then. */
static void ends_first(void)
{
    static pthread_t leader;
    pthread_t other;

    of_leader = new_machine(0);
    leader = pthread_self();
    pthread_create(&other, NULL, without_leader, &leader);
    pthread_exit(NULL);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    setbuf(stdout, NULL);
    if (!strcmp(what, "closes-all")) {
        closes_all();
    } else if (!strcmp(what, "closes-ranges")) {
        closes_ranges();
    } else if (!strcmp(what, "replaces-all")) {
        replaces_all();
    } else if (!strcmp(what, "few")) {
        few();
    } else if (!strcmp(what, "clones")) {
        clones(0);
    } else if (!strcmp(what, "clones-later")) {
        clones(1);
    } else if (!strcmp(what, "clones-itself")) {
        clones_itself(0);
    } else if (!strcmp(what, "clones-itself-later")) {
        clones_itself(1);
    } else if (!strcmp(what, "environment")) {
        leaves_environment(argv[0]);
    } else if (!strcmp(what, "works")) {
        return works(NULL);
    } else if (!strcmp(what, "whose")) {
        return whose();
    } else if (!strcmp(what, "raw-handler")) {
        raw_handler(0);
    } else if (!strcmp(what, "raw-handler-by-libc")) {
        raw_handler(1);
    } else if (!strcmp(what, "storm")) {
        storm();
    } else if (!strcmp(what, "chroot")) {
        changes_root(argv[2]);
    } else if (!strcmp(what, "user")) {
        other_user();
    } else if (!strcmp(what, "namespaces")) {
        namespaces();
    } else if (!strcmp(what, "keeps-one")) {
        keeps_one();
    } else if (!strcmp(what, "reopens")) {
        reopens();
    } else if (!strcmp(what, "ends-first")) {
        ends_first();
    } else if (!strcmp(what, "streams")) {
        no_streams();
    }
    return 0;
}
