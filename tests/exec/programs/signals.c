/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Signals and KVM_RUN. Each case prints what it saw; times are only compared with generous limits. */
#include "kvm.h"
#include <setjmp.h>

static struct machine m;
static volatile sig_atomic_t handled, reason_seen, value_seen, code_seen;
static volatile double sent;
static pthread_t runner;
static sigjmp_buf back;

#define SHOW(what, value) printf("%s: %d\n", what, (int)(value))

static void plain(int number)
{
    (void)number;
    handled++;
    reason_seen = m.run->exit_reason;
}

static void detailed(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    handled++;
    value_seen = info->si_value.sival_int;
    code_seen = info->si_code;
}

static void jump(int number)
{
    siglongjmp(back, number);
}

static void *kick(void *delay)
{
    usleep((long)delay);
    sent = seconds();
    pthread_kill(runner, SIGUSR1);
    return NULL;
}

static void kick_later(long delay)
{
    pthread_t thread;

    runner = pthread_self();
    pthread_create(&thread, NULL, kick, (void *)delay);
    pthread_detach(thread);
}

static void ends_run(void)
{
    signal(SIGUSR1, plain); /* SA_RESTART: KVM_RUN is not restarted all the same */
    START(&m, 0x1000, SPIN);
    kick_later(50000);
    printf("spinning: %s\n", run(&m));
    SHOW("handled", handled);
    SHOW("KVM_RUN had ended when the handler ran", reason_seen == KVM_EXIT_INTR);
    SHOW("soon", seconds() - sent < 0.2);
    START(&m, 0x1000, OUT_HLT);
    printf("and continues: %s\n", run(&m));
}

static void in_hlt(void)
{
    signal(SIGUSR1, plain);
    START(&m, 0x1000, "\xf4\xf4");
    kick_later(50000);
    printf("in HLT: %s\n", run(&m));
    SHOW("handled", handled);
    SHOW("soon", seconds() - sent < 0.2);
}

static void with_details(void)
{
    struct sigaction action = { .sa_sigaction = detailed, .sa_flags = SA_SIGINFO }, old;
    union sigval value = { .sival_int = 1234 };
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value = value };
    struct itimerspec when = { .it_value = { 0, 50000000 } };

    sigaction(SIGRTMIN + 1, &action, NULL);
    sigaction(SIGRTMIN + 1, NULL, &old);
    SHOW("the program sees its own handler", old.sa_sigaction == detailed);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &when, NULL);
    START(&m, 0x1000, SPIN);
    printf("timer: %s\n", run(&m));
    SHOW("value", value_seen);
    SHOW("code", code_seen == SI_TIMER);
    sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 5 });
    SHOW("outside of KVM_RUN", value_seen);
    sigaction(SIGRTMIN + 1, &(struct sigaction){ .sa_handler = plain, .sa_flags = SA_RESETHAND }, &old);
    SHOW("the old one", old.sa_sigaction == detailed);
    raise(SIGRTMIN + 1);
    sigaction(SIGRTMIN + 1, NULL, &old);
    SHOW("reset after one signal", old.sa_handler == SIG_DFL);
}

static void ignored(void)
{
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, plain);
    START(&m, 0x1000, SPIN);
    kick_later(30000);
    alarm(1);
    signal(SIGALRM, plain);
    printf("ignored, then the alarm: %s\n", run(&m));
    SHOW("handled", handled);
    SHOW("SIGCHLD is ignored, too", 1);
    if (!fork()) {
        usleep(50000);
        _exit(0);
    }
    alarm(1);
    sent = seconds();
    START(&m, 0x1000, SPIN);
    printf("a child ends, then the alarm: %s\n", run(&m));
    SHOW("only the alarm", seconds() - sent > 0.8);
}

static void blocked(void)
{
    sigset_t set;

    signal(SIGUSR1, plain);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    START(&m, 0x1000, OUT_HLT);
    printf("pending and blocked: %s\n", run(&m));
    SHOW("handled", handled);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    SHOW("handled when unblocked", handled);
}

/* KVM_SET_SIGNAL_MASK lets a signal in for the time of KVM_RUN; it ends that and stays pending, whatever its action. */
static void kvm_mask(int with_handler)
{
    struct {
        struct kvm_signal_mask head;
        uint64_t set;
    } __attribute__((packed)) mask = { { .len = 8 }, 0 };
    struct timespec now = { 0, 0 };
    sigset_t set;

    if (with_handler) {
        signal(SIGUSR1, plain);
    }
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    must(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
    START(&m, 0x1000, SPIN);
    kick_later(50000);
    printf("let in by KVM_SET_SIGNAL_MASK: %s\n", run(&m));
    SHOW("handled", handled);
    SHOW("still pending", sigtimedwait(&set, NULL, &now) == SIGUSR1);
    START(&m, 0x1000, OUT_HLT);
    printf("taken: %s\n", run(&m));
    raise(SIGUSR1);
    START(&m, 0x1000, OUT_HLT);
    printf("pending before KVM_RUN: %s\n", run(&m));
    sigtimedwait(&set, NULL, &now);
    mask.set = 1ull << (SIGUSR1 - 1);
    must(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
    raise(SIGUSR1);
    START(&m, 0x1000, OUT_HLT);
    printf("blocked by the mask: %s\n", run(&m));
    sigtimedwait(&set, NULL, &now);
    must(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, NULL), "KVM_SET_SIGNAL_MASK");
}

static void jumps(void)
{
    int i;

    signal(SIGUSR1, jump);
    for (i = 0; i < 20; i++) {
        if (!sigsetjmp(back, 1)) {
            START(&m, 0x1000, SPIN);
            kick_later(10000);
            run(&m);
            printf("no jump\n");
        }
    }
    START(&m, 0x1000, OUT_HLT);
    printf("after 20 jumps: %s\n", run(&m));
}

static void *cancelled(void *unused)
{
    (void)unused;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    START(&m, 0x1000, SPIN);
    for (;;) {
        run(&m);
        pthread_testcancel();
    }
    return NULL;
}

static void cancellation(void)
{
    pthread_t thread;
    void *result;

    pthread_create(&thread, NULL, cancelled, NULL);
    usleep(100000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    SHOW("cancelled", result == PTHREAD_CANCELED);
    START(&m, 0x1000, OUT_HLT);
    printf("then: %s\n", run(&m));
}

static void immediate_exit(void)
{
    START(&m, 0x1000, OUT_HLT);
    m.run->immediate_exit = 1;
    printf("immediate_exit: %s\n", run(&m));
    m.run->immediate_exit = 0;
    printf("without: %s\n", run(&m));
}

/* Signals without end, of another thread, while a guest makes exits: none is lost, no exit is. On a busy machine they
 * may all come between two KVM_RUNs: then there are more. */
static volatile int interrupted;

static void *storm(void *rounds)
{
    long i;

    for (i = 0; i < (long)rounds || (!interrupted && i < 100 * (long)rounds); i++) {
        pthread_kill(runner, SIGUSR1);
        usleep(300);
    }
    return (void *)i;
}

static void storms(void)
{
    pthread_t thread;
    int exits = 0;
    void *sent;

    signal(SIGUSR1, plain);
    runner = pthread_self();
    START(&m, 0x1000, "\x40\xe6\x10\xeb\xfb"); /* inc ax; out 0x10, al; jmp back */
    pthread_create(&thread, NULL, storm, (void *)500);
    while (pthread_tryjoin_np(thread, &sent)) {
        if (ioctl(m.vcpu, KVM_RUN, 0L) == 0) {
            exits += m.run->exit_reason == KVM_EXIT_IO;
            uint8_t value = ((uint8_t *)m.run)[m.run->io.data_offset];
            if (value != (uint8_t)exits) {
                printf("an exit was lost: %d after %d\n", value, exits);
                return;
            }
        } else {
            interrupted++;
        }
    }
    SHOW("exits", exits > 100);
    SHOW("interrupted", interrupted > 0);
    SHOW("every signal was handled", handled > 0 && handled <= (long)sent);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    setbuf(stdout, NULL);
    m = new_machine(!strcmp(what, "hlt"));
    if (!strcmp(what, "spin")) {
        ends_run();
    } else if (!strcmp(what, "hlt")) {
        in_hlt();
    } else if (!strcmp(what, "details")) {
        with_details();
    } else if (!strcmp(what, "ignored")) {
        ignored();
    } else if (!strcmp(what, "blocked")) {
        blocked();
    } else if (!strcmp(what, "kvm-mask")) {
        kvm_mask(1);
    } else if (!strcmp(what, "kvm-mask-default")) {
        kvm_mask(0);
    } else if (!strcmp(what, "jump")) {
        jumps();
    } else if (!strcmp(what, "cancel")) {
        cancellation();
    } else if (!strcmp(what, "immediate")) {
        immediate_exit();
    } else if (!strcmp(what, "storm")) {
        storms();
    }
    return 0;
}
