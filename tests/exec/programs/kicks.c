/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How vCPU threads are kicked: handlers, timers, immediate_exit, masks, queues, and being stopped. */
#include "kvm.h"
#include <dirent.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
#define SHOW(what, value) printf("%s: %d\n", what, (int)(value))
#define COUNT "\x31\xc0\x8e\xd8\xff\x06\x00\x20\xeb\xfa" /* xor ax, ax; mov ds, ax; again: inc word [0x2000]; jmp again */

static struct machine m;
static pthread_t runner;
static volatile sig_atomic_t handled, others, values[16], nvalues, on_stack;
static char stack[65536];

static void plain(int number)
{
    (void)number;
    handled++;
}

static void other(int number)
{
    (void)number;
    others++;
}

static void leaves(int number)
{
    (void)number;
    handled++;
    m.run->immediate_exit = 1;
}

static void notes(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    values[nvalues++ & 15] = info->si_value.sival_int;
    on_stack = (char *)&info > stack && (char *)&info < stack + sizeof(stack);
}

static void act(int number, void (*handler)(int), int flags)
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

    must(sigaction(number, &action, NULL), "sigaction");
}

/* Every so many milliseconds, or once. */
static void alarm_in(int milliseconds, int again)
{
    struct itimerval timer = { { 0, again * 1000 }, { 0, milliseconds * 1000 } };

    setitimer(ITIMER_REAL, &timer, NULL);
}

struct plan {
    long delay;
    void (*what)(void);
};

static void *carry_out(void *given)
{
    struct plan *plan = given;

    usleep(plan->delay);
    plan->what();
    return NULL;
}

static pthread_t later(long milliseconds, void (*what)(void))
{
    static struct plan plans[4];
    static int n;
    struct plan *plan = &plans[n++ & 3];
    pthread_t thread;
    sigset_t all, before;

    *plan = (struct plan){ milliseconds * 1000, what };
    runner = pthread_self();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_create(&thread, NULL, carry_out, plan);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return thread;
}

static void kick(void)
{
    pthread_kill(runner, SIGUSR1);
}

/* An interval timer: each EINTR has its signal, and the handler of that has run. */
static void itimer(void)
{
    int interrupted = 0, before, i;

    act(SIGALRM, plain, SA_RESTART);
    START(&m, 0x1000, SPIN);
    alarm_in(5, 5);
    for (i = 0; i < 60; i++) {
        before = handled;
        if (ioctl(m.vcpu, KVM_RUN, 0L) == 0 || errno != EINTR) {
            printf("not EINTR: %d, exit %u\n", errno, m.run->exit_reason);
        }
        interrupted += handled > before;
    }
    alarm_in(0, 0);
    SHOW("EINTR with a handler that has run", interrupted);
}

/* A POSIX timer of one thread's. */
static void thread_timer(void)
{
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2 };
    struct itimerspec when = { { 0, 4000000 }, { 0, 4000000 } };
    struct sigaction action = { .sa_sigaction = notes, .sa_flags = SA_SIGINFO };
    timer_t timer;
    int i, ended = 0;

    event.sigev_notify_thread_id = syscall(SYS_gettid);
    event.sigev_value.sival_int = 77;
    sigaction(SIGRTMIN + 2, &action, NULL);
    must(timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create");
    timer_settime(timer, 0, &when, NULL);
    START(&m, 0x1000, SPIN);
    for (i = 0; i < 40; i++) {
        ended += ioctl(m.vcpu, KVM_RUN, 0L) < 0 && errno == EINTR;
    }
    timer_delete(timer);
    SHOW("ended", ended);
    SHOW("each with its signal", nvalues >= 40);
    SHOW("value", values[0]);
}

static int write_to;

static void put(void)
{
    write(write_to, "x", 1);
}

/* SA_RESTART means other calls, never KVM_RUN. */
static void restart(void)
{
    int fds[2], flags;
    char byte;

    must(pipe(fds), "pipe");
    for (flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
        struct itimerval none = { 0 };
        pthread_t thread;

        handled = 0;
        act(SIGALRM, plain, flags);
        START(&m, 0x1000, SPIN);
        alarm_in(20, 0);
        printf("KVM_RUN: %s\n", run(&m));
        alarm_in(20, 100);
        fcntl(fds[0], F_SETFL, 0);
        if (flags) {
            write_to = fds[1];
            thread = later(80, put);
        }
        printf("read: %s\n", read(fds[0], &byte, 1) == 1 ? "a byte" : strerror(errno));
        setitimer(ITIMER_REAL, &none, NULL);
        if (flags) {
            pthread_join(thread, NULL);
        }
        SHOW("handled", handled >= 2);
    }
}

static int rounds;

static void kick_soon(void)
{
    double until = seconds() + rounds * 20e-6;

    while (seconds() < until) {
    }
    kick();
}

/* The way without a race: the handler sets immediate_exit, whenever it comes. */
static void immediate_handler(void)
{
    int late = 0;
    double start;

    act(SIGUSR1, leaves, 0);
    START(&m, 0x1000, SPIN);
    for (rounds = 0; rounds < 100; rounds++) {
        pthread_t thread;

        m.run->immediate_exit = handled = 0;
        runner = pthread_self();
        start = seconds();
        thread = later(0, kick_soon);
        while (ioctl(m.vcpu, KVM_RUN, 0L) == 0 || !handled) {
        }
        late += seconds() - start > 2;
        pthread_join(thread, NULL);
    }
    SHOW("rounds", rounds);
    SHOW("late", late);
    SHOW("still set: at once", ioctl(m.vcpu, KVM_RUN, 0L) < 0 && errno == EINTR);
}

static void set_it(void)
{
    m.run->immediate_exit = 1;
}

/* Another thread sets it: looked at when KVM_RUN begins, not while the guest runs. */
static void immediate_thread(void)
{
    double start = seconds();
    struct kvm_regs regs;

    act(SIGALRM, plain, 0);
    START(&m, 0x1000, SPIN);
    later(30, set_it);
    alarm_in(300, 0);
    printf("set while it runs: %s\n", run(&m));
    SHOW("by the signal", seconds() - start > 0.25 && handled == 1);
    m.run->exit_reason = 99;
    printf("the next one: %s\n", run(&m));
    m.run->immediate_exit = 0;
    START(&m, 0x1000, "\xe4\x10\xe6\x11\xf4"); /* in al, 0x10; out 0x11, al */
    printf("IN: %s\n", run(&m));
    ((uint8_t *)m.run)[m.run->io.data_offset] = 0x5a;
    m.run->immediate_exit = 1;
    printf("completes it: %s\n", run(&m));
    ioctl(m.vcpu, KVM_GET_REGS, &regs);
    printf("rip %llx, al %x\n", regs.rip, (unsigned)regs.rax & 0xff);
    m.run->immediate_exit = 0;
    printf("OUT: %s\n", run(&m));
}

/* KVM_SET_SIGNAL_MASK that shuts out what the thread lets in. */
static void mask_shuts_out(void)
{
    struct {
        struct kvm_signal_mask head;
        uint64_t set;
    } __attribute__((packed)) mask = { { .len = 8 }, 1ull << (SIGUSR1 - 1) };
    double start;

    act(SIGUSR1, other, 0);
    act(SIGALRM, plain, 0);
    mask.head.len = 4;
    SHOW("another length", ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask) < 0 ? -errno : 0);
    mask.head.len = 8;
    must(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
    START(&m, 0x1000, SPIN);
    start = seconds();
    later(30, kick);
    alarm_in(300, 0);
    printf("shut out: %s\n", run(&m));
    SHOW("by the other one", seconds() - start > 0.25);
    printf("handled: %d %d\n", handled, others);
    must(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, NULL), "KVM_SET_SIGNAL_MASK");
    later(30, kick);
    printf("without: %s\n", run(&m));
    printf("handled: %d %d\n", handled, others);
}

static void replace_it(void)
{
    act(SIGUSR1, other, 0);
    kick();
}

static void ignore_it(void)
{
    act(SIGUSR1, SIG_IGN, 0);
    kick();
    usleep(100000);
    act(SIGUSR1, plain, 0);
    kick();
}

/* sigaction() by another thread while KVM_RUN is under way. */
static void replaced(void)
{
    double start;

    act(SIGUSR1, plain, 0);
    START(&m, 0x1000, SPIN);
    later(30, replace_it);
    printf("another handler: %s\n", run(&m));
    printf("handled: %d %d\n", handled, others);
    start = seconds();
    later(30, ignore_it);
    printf("ignored, then handled: %s\n", run(&m));
    SHOW("not by the first", seconds() - start > 0.1);
    printf("handled: %d %d\n", handled, others);
}

static void to_process(void)
{
    kill(getpid(), SIGUSR2);
}

/* Blocked everywhere and read from a descriptor: no business of KVM_RUN's. */
static void descriptor(void)
{
    struct signalfd_siginfo info = { 0 };
    double start = seconds();
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    fd = must(signalfd(-1, &set, SFD_CLOEXEC), "signalfd");
    act(SIGALRM, plain, 0);
    act(SIGUSR2, other, 0);
    START(&m, 0x1000, SPIN);
    later(30, to_process);
    alarm_in(300, 0);
    printf("spinning: %s\n", run(&m));
    SHOW("by the alarm", seconds() - start > 0.25);
    SHOW("read", read(fd, &info, sizeof(info)));
    printf("signal %u of this process: %d, code %d\n", info.ssi_signo, info.ssi_pid == (unsigned)getpid(), info.ssi_code);
    SHOW("handled", others);
    later(30, to_process);
    SHOW("sigwaitinfo", sigwaitinfo(&set, NULL));
}

static void five(void)
{
    int i;

    for (i = 1; i <= 5; i++) {
        pthread_sigqueue(runner, SIGRTMIN + 3, (union sigval){ .sival_int = i });
    }
}

static void five_to_all(void)
{
    int i;

    for (i = 1; i <= 5; i++) {
        sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = i });
    }
}

/* Queued signals come in their order, on the stack that the program has for them. */
static void queue(void)
{
    struct sigaction action = { .sa_sigaction = notes, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
    int round;

    must(sigaltstack(&alternate, NULL), "sigaltstack");
    sigaction(SIGRTMIN + 3, &action, NULL);
    START(&m, 0x1000, SPIN);
    for (round = 0; round < 2; round++) {
        nvalues = 0;
        later(30, round ? five_to_all : five);
        printf("queued: %s\n", run(&m));
        while (nvalues < 5) {
            usleep(1000);
        }
        printf("values: %d %d %d %d %d, on its stack: %d\n", values[0], values[1], values[2], values[3], values[4], on_stack);
    }
}

static int advances(volatile uint16_t *counter)
{
    uint16_t before = *counter;
    int i;

    for (i = 0; i < 200 && *counter == before; i++) {
        usleep(1000);
    }
    return *counter != before;
}

static volatile int *seen;
static volatile uint16_t *counter;

static void show_counter(void)
{
    for (;;) {
        seen[0] = *counter;
        usleep(500);
    }
}

static void stopped(void)
{
    int child, status, i;

    seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    child = fork();
    if (!child) {
        m = new_machine(0);
        START(&m, 0x1000, COUNT);
        counter = (volatile uint16_t *)(m.memory + 0x2000);
        later(0, show_counter);
        while (seen[1] < 4) {
            if (ioctl(m.vcpu, KVM_RUN, 0L) == 0 || errno != EINTR) {
                printf("not EINTR: %d, exit %u\n", errno, m.run->exit_reason);
                _exit(1);
            }
            seen[1]++;
        }
        _exit(0);
    }
    counter = (volatile uint16_t *)seen;
    for (i = 0; i < 100 && !advances(counter); i++) {
    }
    for (i = 0; i < 3; i++) {
        kill(child, i == 1 ? SIGTSTP : SIGSTOP);
        waitpid(child, &status, WUNTRACED);
        SHOW("stopped", WIFSTOPPED(status) && WSTOPSIG(status) == (i == 1 ? SIGTSTP : SIGSTOP));
        SHOW("the guest too", !advances(counter));
        kill(child, SIGCONT);
        waitpid(child, &status, WCONTINUED);
        SHOW("continued", WIFCONTINUED(status));
        SHOW("the guest too", advances(counter));
        SHOW("KVM_RUNs that were EINTR", seen[1]);
    }
    kill(child, SIGTERM);
    waitpid(child, &status, 0);
    SHOW("its end", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
}

/* What the default action of each kind does to a process whose vCPU runs. */
static void defaults(void)
{
    const int numbers[] = { SIGUSR1, SIGALRM, SIGABRT, SIGKILL, SIGRTMIN, SIGPIPE };
    int child, status, i, pipes[2];
    char byte;

    for (i = 0; i < (int)(sizeof(numbers) / sizeof(*numbers)); i++) {
        must(pipe(pipes), "pipe");
        child = fork();
        if (!child) {
            m = new_machine(0);
            START(&m, 0x1000, SPIN);
            write(pipes[1], "x", 1);
            run(&m);
            _exit(0);
        }
        read(pipes[0], &byte, 1);
        usleep(20000);
        kill(child, numbers[i]);
        waitpid(child, &status, 0);
        printf("%d: %d\n", i, WIFSIGNALED(status) && WTERMSIG(status) == numbers[i]);
    }
}

static volatile int left[2];
static struct machine two[2];

static void *runs(void *which)
{
    long i = (long)which;

    while (ioctl(two[i].vcpu, KVM_RUN, 0L) == 0) {
    }
    left[i] = errno;
    return NULL;
}

/* A kick is for one thread. */
static void others_go_on(void)
{
    pthread_t threads[2];
    long i;

    act(SIGUSR1, plain, 0);
    for (i = 0; i < 2; i++) {
        two[i] = new_machine(0);
        START(&two[i], 0x1000, SPIN);
        pthread_create(&threads[i], NULL, runs, (void *)i);
    }
    usleep(100000);
    pthread_kill(threads[1], SIGUSR1);
    pthread_join(threads[1], NULL);
    usleep(50000);
    printf("EINTR: %d, the other one: %d, handled: %d\n", left[1] == EINTR, left[0], handled);
    pthread_kill(threads[0], SIGUSR1);
    pthread_join(threads[0], NULL);
    printf("EINTR: %d, handled: %d\n", left[0] == EINTR, handled);
}

/* A signal for the process is for one of the program's threads: how many there are that would take it. */
static void takers(void)
{
    struct dirent *entry;
    DIR *tasks;
    char path[64], text[4096], *at;
    int n = 0, fd;

    act(SIGALRM, plain, 0);
    START(&m, 0x1000, SPIN);
    alarm_in(200, 0);
    run(&m);
    tasks = opendir("/proc/self/task");
    while ((entry = readdir(tasks))) {
        if (*entry->d_name == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
        fd = open(path, O_RDONLY);
        memset(text, 0, sizeof(text));
        if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && (at = strstr(text, "SigBlk:"))) {
            n += !(strtoull(at + 7, NULL, 16) >> (SIGUSR2 - 1) & 1);
        }
        close(fd);
    }
    SHOW("threads that take SIGUSR2", n);
}

static const struct {
    const char *name;
    void (*what)(void);
} cases[] = {
    { "itimer", itimer },
    { "thread-timer", thread_timer },
    { "restart", restart },
    { "immediate-handler", immediate_handler },
    { "immediate-thread", immediate_thread },
    { "mask-shuts-out", mask_shuts_out },
    { "replaced", replaced },
    { "descriptor", descriptor },
    { "queue", queue },
    { "stopped", stopped },
    { "defaults", defaults },
    { "others", others_go_on },
    { "takers", takers },
};

int main(int argc, char **argv)
{
    unsigned i;

    setbuf(stdout, NULL);
    for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        if (argc > 1 && !strcmp(argv[1], cases[i].name)) {
            if (cases[i].what != stopped && cases[i].what != defaults) {
                m = new_machine(0);
            }
            cases[i].what();
            return 0;
        }
    }
    return 2;
}
