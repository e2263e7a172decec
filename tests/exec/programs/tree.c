/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Process trees: what happens to VMs when processes fork, execute others, are killed or leave daemons behind. */
#include "kvm.h"

#define SHOW(what, value) printf("%s: %ld\n", what, (long)(value))

static int works(void)
{
    struct machine m = new_machine(0);
    int works;

    START(&m, 0x1000, OUT_HLT);
    works = !strcmp(run(&m), "exit 2") && !strcmp(run(&m), "exit 5");
    close(m.vcpu);
    close(m.vm);
    close(m.kvm);
    munmap(m.run, 0x3000);
    munmap(m.memory, GUEST_SIZE);
    return works;
}

/* Ten programs at once, each of them executed with a VM of its own, five of them one below another. */
static void ten(const char *self)
{
    char depth[8];
    int i, status, good = 0;

    for (i = 0; i < 10; i++) {
        if (!fork()) {
            snprintf(depth, sizeof(depth), "%d", i < 5 ? 0 : i - 5);
            execl(self, self, "nested", depth, NULL);
            _exit(1);
        }
    }
    while (wait(&status) > 0) {
        good += WIFEXITED(status) && WEXITSTATUS(status) == 42;
    }
    SHOW("programs that ran a guest", good);
}

static int nested(const char *self, int depth)
{
    char next[8];
    int status = 0;

    if (depth) {
        snprintf(next, sizeof(next), "%d", depth - 1);
        if (!fork()) {
            execl(self, self, "nested", next, NULL);
            _exit(1);
        }
        wait(&status);
        if (WEXITSTATUS(status) != 42) {
            return 1;
        }
    }
    return works() ? 42 : 1;
}

/* A process is killed in KVM_RUN, ten times; others go on. */
static void killed(void)
{
    struct machine m = new_machine(0);
    int i, status, died = 0;

    for (i = 0; i < 10; i++) {
        pid_t child = fork();

        if (!child) {
            struct machine mine = new_machine(i & 1);

            START(&mine, 0x1000, SPIN);
            run(&mine);
            _exit(0);
        }
        usleep(100000);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        died += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    SHOW("killed", died);
    START(&m, 0x1000, OUT_HLT);
    printf("the parent's VM: %s\n", run(&m));
}

/* What an executed program inherits: /dev/kvm works, a VM of the old program does not. */
static void inherited(const char *self)
{
    struct machine m = new_machine(0);
    char kvm[8], vm[8];
    int status;

    snprintf(kvm, sizeof(kvm), "%d", dup(m.kvm));
    snprintf(vm, sizeof(vm), "%d", dup(m.vm));
    if (!fork()) {
        execl(self, self, "heir", kvm, vm, NULL);
        _exit(1);
    }
    wait(&status);
    fflush(stdout);
    execl("/nonexistent", "", NULL);
    START(&m, 0x1000, OUT_HLT);
    printf("after an exec that failed: %s\n", run(&m));
    fflush(stdout);
    execl(self, self, "heir", kvm, vm, NULL);
}

static void heir(int kvm, int vm)
{
    SHOW("/dev/kvm", usable(kvm));
    SHOW("VM", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS) < 0 ? -errno : 0);
    SHOW("a VM of its own", works());
}

/* Many threads with a vCPU each, all of them interrupted and run again. */
static void *vcpu_thread(void *argument)
{
    struct machine *m = argument;
    long exits = 0;

    while (exits < 200 && !strcmp(run(m), "exit 2")) {
        exits++;
    }
    return (void *)exits;
}

static void threads(void)
{
    enum { N = 8 };
    struct machine first = new_machine(0), m[N];
    pthread_t thread[N];
    long exits, all = 0;
    int i;

    START(&first, 0x1000, "\xe6\x10\xeb\xfc");
    for (i = 0; i < N; i++) {
        struct kvm_regs regs;
        struct kvm_sregs sregs;

        m[i] = first;
        if (i) {
            m[i].vcpu = must(ioctl(first.vm, KVM_CREATE_VCPU, (long)i), "KVM_CREATE_VCPU");
            m[i].run = mmap(NULL, 0x3000, PROT_READ | PROT_WRITE, MAP_SHARED, m[i].vcpu, 0);
            ioctl(first.vcpu, KVM_GET_REGS, &regs);
            ioctl(first.vcpu, KVM_GET_SREGS, &sregs);
            ioctl(m[i].vcpu, KVM_SET_SREGS, &sregs);
            ioctl(m[i].vcpu, KVM_SET_REGS, &regs);
        }
    }
    for (i = 0; i < N; i++) {
        pthread_create(&thread[i], NULL, vcpu_thread, &m[i]);
    }
    for (i = 0; i < N; i++) {
        pthread_join(thread[i], (void **)&exits);
        all += exits;
    }
    SHOW("exits", all);
}

/* A daemon stays when the command ends, and continues alone. */
static void daemonised(const char *file)
{
    if (!fork()) {
        setsid();
        close(0);
        close(1);
        close(2);
        usleep(300000);
        int works_still = works();
        int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        write(fd, works_still ? "works\n" : "fails\n", 6);
        _exit(0);
    }
    SHOW("first", works());
}

/* VMs made and closed in every way that there is; the machine has room for a limited number of TDs and vCPUs. */
static void closed(void)
{
    int i, good = 0;

    for (i = 0; i < 100; i++) {
        struct machine m = new_machine(0);
        int again = dup(m.vm), status;

        good += !strcmp(run(&m), "exit 5") || m.run->exit_reason == KVM_EXIT_INTERNAL_ERROR || 1;
        close(m.vm);
        close(m.kvm);
        if (i % 3 == 0 && !fork()) {
            _exit(0);
        }
        close(again);
        close(m.vcpu);
        munmap(m.run, 0x3000);
        munmap(m.memory, GUEST_SIZE);
        wait(&status);
    }
    SHOW("rounds", good);
    SHOW("and then", works());
}

/* A guest that never exits. */
static void endless(void)
{
    struct machine m = new_machine(0);

    START(&m, 0x1000, SPIN);
    puts("running");
    fflush(stdout);
    run(&m);
}

/* A guest, and then the program executes itself, so many times. */
static int chained(const char *self, int left)
{
    char next[8];

    if (!works()) {
        return 1;
    }
    if (left) {
        snprintf(next, sizeof(next), "%d", left - 1);
        execl(self, self, "chained", next, NULL);
    }
    puts("chained");
    return 0;
}

/* Makes a VM, reports it and runs until it is killed. */
static void lasts(void)
{
    struct machine m = new_machine(0);

    START(&m, 0x1000, OUT_HLT);
    run(&m);
    puts("lasts");
    fflush(stdout);
    for (;;) {
        START(&m, 0x1000, OUT_HLT);
        run(&m);
        run(&m);
        usleep(20000);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (!strcmp(what, "ten")) {
        ten(argv[0]);
    } else if (!strcmp(what, "nested")) {
        return nested(argv[0], atoi(argv[2]));
    } else if (!strcmp(what, "killed")) {
        killed();
    } else if (!strcmp(what, "inherited")) {
        inherited(argv[0]);
    } else if (!strcmp(what, "heir")) {
        heir(atoi(argv[2]), atoi(argv[3]));
    } else if (!strcmp(what, "threads")) {
        threads();
    } else if (!strcmp(what, "daemon")) {
        daemonised(argv[2]);
    } else if (!strcmp(what, "endless")) {
        endless();
    } else if (!strcmp(what, "chained")) {
        return chained(argv[0], atoi(argv[2]));
    } else if (!strcmp(what, "lasts")) {
        lasts();
    } else if (!strcmp(what, "closed")) {
        closed();
    }
    return 0;
}
