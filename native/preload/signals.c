/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Signals, as a system call sees them.
 *
 * A signal ends KVM_RUN with EINTR, and its handler runs when KVM_RUN has ended. Our KVM_RUN is a function of the
 * process, so a handler would run in the middle of it, before anybody knows; it might even jump out. Therefore every
 * handler of the program is called by on_signal(). In KVM_RUN that one tells the processor to leave the guest, sends
 * the signal to its own thread again and blocks all signals; the program's handler runs once KVM_RUN has restored the
 * mask.
 *
 * Elsewhere in the kernel all signals are blocked, and only the faults of instructions can come: those of guest memory
 * that is gone are the engine's, which installs its handlers from inside.
 */
#include "preload.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct sigaction actions[_NSIG]; /* the program's, where on_signal() is installed in its place */
static struct sigaction engine[_NSIG];  /* for faults inside */
static uint8_t wrapped[_NSIG];
static uint32_t versions[_NSIG]; /* odd while an action changes */
static void (*interrupt_guest)(void);
static __thread bool in_run __attribute__((tls_model("initial-exec")));

static bool handles(const struct sigaction *action)
{
    return action->sa_flags & SA_SIGINFO || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

static struct sigaction action_of(int number)
{
    struct sigaction action;
    uint32_t version;

    do {
        version = __atomic_load_n(&versions[number], __ATOMIC_ACQUIRE);
        action = actions[number];
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while (version & 1 || version != __atomic_load_n(&versions[number], __ATOMIC_RELAXED));
    return action;
}

static void set_action(int number, const struct sigaction *action)
{
    uint64_t all = ~0ull, mask;
    uint32_t version;

    /* A handler of ours would wait for us without end. */
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof(mask));
    do {
        version = __atomic_load_n(&versions[number], __ATOMIC_RELAXED) & ~1u;
    } while (!__atomic_compare_exchange_n(&versions[number], &version, version + 1, false, __ATOMIC_ACQUIRE,
                                          __ATOMIC_RELAXED));
    actions[number] = *action;
    __atomic_store_n(&versions[number], version + 2, __ATOMIC_RELEASE);
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
}

static int send_here(int number, const siginfo_t *info)
{
    return RAW(SYS_rt_tgsigqueueinfo, RAW(SYS_getpid), RAW(SYS_gettid), number, info);
}

/* What would have happened without us. */
static void hand_on(int number, siginfo_t *info, void *context)
{
    struct sigaction action = action_of(number), none = { .sa_handler = SIG_DFL };

    if (handles(&action)) {
        if (action.sa_flags & SA_RESETHAND) {
            set_action(number, &none);
            NEXT(sigaction)(number, &none, NULL);
        }
        if (action.sa_flags & SA_SIGINFO) {
            action.sa_sigaction(number, info, context);
        } else {
            action.sa_handler(number);
        }
    } else if (action.sa_handler == SIG_DFL) {
        NEXT(sigaction)(number, &none, NULL);
        send_here(number, info); /* delivered when this returns */
    }
}

/*
 * Let the signal come again, before those of its number that wait behind it: real-time signals are queued. All signals
 * are blocked from here on. A mark and the signal go to the end of the thread's own queue; what is in front of the mark
 * then is moved behind the signal.
 */
static void send_again(int number, const siginfo_t *info)
{
    static const struct timespec now = { 0, 0 };
    uint64_t all = ~SYNCHRONOUS, one = 1ull << (number - 1);
    siginfo_t mark = { .si_signo = number, .si_code = SI_QUEUE }, other;
    bool marked;

    RAW(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, sizeof(all));
    mark.si_value.sival_ptr = &mark;
    marked = number >= 34 && !send_here(number, &mark);
    if (send_here(number, info)) { /* RLIMIT_SIGPENDING: such a one comes without its details */
        other = *info;
        other.si_code = SI_USER;
        send_here(number, &other);
    }
    while (marked && RAW(SYS_rt_sigtimedwait, &one, &other, &now, sizeof(one)) == number) {
        if (other.si_code == SI_QUEUE && other.si_value.sival_ptr == &mark) {
            return;
        }
        send_here(number, &other);
    }
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *user = context;
    int error = errno;

    if (inside && handles(&engine[number])) {
        engine[number].sa_sigaction(number, info, context);
    } else if (in_run && interrupt_guest) {
        send_again(number, info);
        memset(&user->uc_sigmask, 0xff, 8); /* this one and all others wait for the end of KVM_RUN */
        *(uint64_t *)&user->uc_sigmask &= ~SYNCHRONOUS;
        interrupt_guest();
    } else {
        hand_on(number, info, context);
    }
    errno = error;
}

static int install(int number, const struct sigaction *like)
{
    struct sigaction action = *like;

    action.sa_sigaction = on_signal;
    action.sa_flags = (like->sa_flags | SA_SIGINFO) & ~SA_RESETHAND;
    wrapped[number] = 1;
    return NEXT(sigaction)(number, &action, NULL);
}

/* The engine's handler for the faults of its thread, beside that of the program for its own. */
static int engine_action(int number, const struct sigaction *action, struct sigaction *old)
{
    struct sigaction current;

    if (old) {
        memset(old, 0, sizeof(*old)); /* whom it would hand a fault on to that is not its own: the default action */
    }
    if (!action) {
        return 0;
    }
    if (!wrapped[number]) {
        NEXT(sigaction)(number, NULL, &current);
        set_action(number, &current);
    }
    engine[number] = *action;
    return install(number, action);
}

EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    struct sigaction before;

    if (number <= 0 || number >= _NSIG || !*settings || borrowed()) {
        return NEXT(sigaction)(number, action, old);
    }
    if (inside) {
        return SYNCHRONOUS >> (number - 1) & 1 ? engine_action(number, action, old)
                                               : NEXT(sigaction)(number, action, old);
    }
    before = action_of(number);
    if (!action) {
        if (!wrapped[number]) {
            return NEXT(sigaction)(number, NULL, old);
        }
        if (old) {
            *old = before;
        }
        return 0;
    }
    if (!handles(action) && !handles(&engine[number])) {
        if (NEXT(sigaction)(number, action, wrapped[number] ? NULL : old)) {
            return -1;
        }
        if (wrapped[number] && old) {
            *old = before;
        }
        wrapped[number] = 0;
        return 0;
    }
    if (!wrapped[number] && NEXT(sigaction)(number, NULL, &before)) {
        return -1;
    }
    set_action(number, action); /* first: on_signal() may run at once */
    if (install(number, action)) {
        return -1;
    }
    if (old) {
        *old = before;
    }
    return 0;
}

static sighandler_t set_handler(int number, sighandler_t handler, int flags)
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = flags }, old;

    if (!(flags & SA_NODEFER)) {
        sigaddset(&action.sa_mask, number);
    }
    return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

EXPORT sighandler_t signal(int number, sighandler_t handler)
{
    return set_handler(number, handler, SA_RESTART);
}

EXPORT sighandler_t bsd_signal(int number, sighandler_t handler)
{
    return signal(number, handler);
}

EXPORT sighandler_t ssignal(int number, sighandler_t handler)
{
    return signal(number, handler);
}

EXPORT sighandler_t sysv_signal(int number, sighandler_t handler)
{
    return set_handler(number, handler, SA_RESETHAND | SA_NODEFER);
}

EXPORT sighandler_t __sysv_signal(int number, sighandler_t handler)
{
    return sysv_signal(number, handler);
}

/* ---- handlers that were installed by system calls of the program's own ---- */

/* struct sigaction as the kernel has it. */
struct kernel_action {
    void *handler;
    uint64_t flags;
    void *restorer;
    uint64_t mask;
};
#define SA_RESTORER 0x04000000

static struct sigaction from_kernel(const struct kernel_action *given)
{
    struct sigaction action = { .sa_flags = given->flags & ~SA_RESTORER };

    action.sa_sigaction = (void (*)(int, siginfo_t *, void *))given->handler;
    memcpy(&action.sa_mask, &given->mask, sizeof(given->mask));
    return action;
}

/* rt_sigaction by syscall(2). */
long raw_action(int number, const void *action, void *old, size_t size)
{
    struct kernel_action *to = old;
    struct sigaction ours, before;

    if (size != 8 || number <= 0 || number >= _NSIG || number == 32 || number == 33) { /* libc's own, or an error */
        long result = RAW(SYS_rt_sigaction, number, action, old, size);

        errno = result < 0 ? -result : errno;
        return result < 0 ? -1 : result;
    }
    if (action) {
        ours = from_kernel(action);
    }
    if (sigaction(number, action ? &ours : NULL, &before)) {
        return -1;
    }
    if (to) {
        *to = (struct kernel_action){ (void *)before.sa_sigaction, before.sa_flags, NULL, 0 };
        memcpy(&to->mask, &before.sa_mask, sizeof(to->mask));
    }
    return 0;
}

/* Put on_signal() around the handlers that got past sigaction(): asked once for each thread that runs a guest. */
static void find_handlers(void)
{
    struct kernel_action found;
    struct sigaction action;
    int number;

    for (number = 1; number < _NSIG; number++) {
        if (number == 32 || number == 33 || RAW(SYS_rt_sigaction, number, NULL, &found, 8) ||
            (uintptr_t)found.handler <= 1 || found.handler == (void *)on_signal) {
            continue;
        }
        action = from_kernel(&found);
        set_action(number, &action);
        install(number, &action);
    }
}

/* ---- cancellation ---- */

#define SIGCANCEL 32 /* glibc's own */

/* A thread that has been in KVM_RUN. */
struct runner {
    struct runner *next;
    pthread_t thread;
    pid_t tid; /* 0: the thread has ended */
};

static struct runner *runners;
static __thread struct runner *me __attribute__((tls_model("initial-exec")));
static pthread_key_t thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void ended(void *runner)
{
    __atomic_store_n(&((struct runner *)runner)->tid, 0, __ATOMIC_RELEASE);
}

static void *wait_for_cancellation(void *unused)
{
    for (;;) {
        pause();
    }
    return unused;
}

/* glibc installs its handler at the first pthread_cancel(): make it do so, and put ours around it. It takes no
 * sigaction() for this signal, so the kernel's structure is filled by hand. */
static void wrap_cancellation(void)
{
    struct kernel_action cancels = { 0 };
    struct sigaction action = { .sa_flags = SA_SIGINFO };
    pthread_t thread;

    pthread_key_create(&thread_end, ended);
    if (!dlopen("libgcc_s.so.1", RTLD_NOW) || /* without it pthread_cancel() ends the program */
        NEXT(pthread_create)(&thread, NULL, wait_for_cancellation, NULL)) {
        return;
    }
    NEXT(pthread_cancel)(thread);
    pthread_join(thread, NULL);
    if (!RAW(SYS_rt_sigaction, SIGCANCEL, NULL, &cancels, 8) && (uintptr_t)cancels.handler > 1) {
        action.sa_sigaction = (void (*)(int, siginfo_t *, void *))cancels.handler;
        set_action(SIGCANCEL, &action);
        cancels.handler = on_signal;
        cancels.flags |= SA_SIGINFO;
        RAW(SYS_rt_sigaction, SIGCANCEL, &cancels, NULL, 8);
    }
}

void prepare_cancellation(void)
{
    pthread_once(&once, wrap_cancellation);
}

static void introduce(void)
{
    struct runner *runner = malloc(sizeof(*runner));

    find_handlers();
    if (!runner) {
        return;
    }
    *runner = (struct runner){ __atomic_load_n(&runners, __ATOMIC_RELAXED), pthread_self(), RAW(SYS_gettid) };
    while (!__atomic_compare_exchange_n(&runners, &runner->next, runner, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
    me = runner;
    pthread_setspecific(thread_end, runner);
}

/*
 * In the kernel cancellation is disabled, and glibc sends no signal to a thread that has it disabled. One in KVM_RUN
 * gets it from here: KVM_RUN ends with EINTR, and the thread is cancelled when it has left the kernel.
 */
EXPORT int pthread_cancel(pthread_t thread)
{
    int result = NEXT(pthread_cancel)(thread), tid;
    struct runner *runner;

    for (runner = __atomic_load_n(&runners, __ATOMIC_ACQUIRE); runner && !result; runner = runner->next) {
        tid = __atomic_load_n(&runner->tid, __ATOMIC_ACQUIRE);
        if (tid && pthread_equal(runner->thread, thread)) {
            RAW(SYS_tgkill, RAW(SYS_getpid), tid, SIGCANCEL);
        }
    }
    return result;
}

/* ---- around KVM_RUN, for the kernel ---- */

void set_interrupt(void (*function)(void))
{
    interrupt_guest = function;
}

/*
 * Let signals come as the program has it, or as KVM_SET_SIGNAL_MASK says. A signal that only the latter lets in ends
 * KVM_RUN and then stays pending, whatever its action is: also one without a handler needs ours.
 */
void open_signals(uint64_t mask, const uint64_t *sigset)
{
    uint64_t allowed = sigset ? mask & ~*sigset & ~SYNCHRONOUS : 0;
    struct sigaction action;
    int number;

    if (unlikely(!me)) {
        introduce();
    }
    for (; allowed; allowed &= allowed - 1) {
        number = __builtin_ctzll(allowed) + 1;
        if (!wrapped[number] && number != SIGKILL && number != SIGSTOP && !NEXT(sigaction)(number, NULL, &action) &&
            !handles(&action) && action.sa_handler == SIG_DFL && number != SIGCHLD && number != SIGURG &&
            number != SIGWINCH && number != SIGCONT) {
            set_action(number, &action);
            install(number, &action);
        }
    }
    in_run = true;
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, sigset ? sigset : &mask, NULL, sizeof(mask));
}

void close_signals(void)
{
    uint64_t all = ~SYNCHRONOUS;

    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof(all));
    in_run = false;
}
