/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * /dev/kvm in a program that does not know that it is emulated: the calls that reach it, by symbol interposition.
 *
 * Descriptors of the emulated kernel are real ones (memfds), marked here by number. Only calls on those, ioctls of
 * KVM's type and opens of /dev/kvm leave the ordinary way. At the first of them libpython and the kernel are loaded
 * into the process. What must hold while a thread is in there:
 *
 *  - Its own calls of close(), mmap() and so on are not the program's: `inside` lets them through.
 *  - No handler of the program runs, as none runs in the middle of a system call: all signals are blocked, those of
 *    libc (cancellation, setuid) too, so that nothing unwinds or jumps out of the interpreter. signals.c says how
 *    KVM_RUN, which a signal must end, goes about it.
 *  - Threads that it starts inherit the blocked mask, and are inside for good.
 */
#include "preload.h"
#include <fcntl.h>
#include <link.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef KVM_CREATE_GUEST_MEMFD /* headers before Linux 6.8 */
#define KVM_CREATE_GUEST_MEMFD _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, 64)
#endif
#ifndef MADV_COLLAPSE /* headers before Linux 6.1 */
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_DONTNEED_LOCKED /* headers before glibc 2.36 */
#define MADV_DONTNEED_LOCKED 24
#endif
#define PAGE 4096ul
#define KVM_DEVICE makedev(10, 232)

__thread bool inside __attribute__((tls_model("initial-exec")));
static __thread uint64_t program_mask __attribute__((tls_model("initial-exec")));
uint8_t kinds[DESCRIPTORS];
static uint64_t inodes[DESCRIPTORS]; /* of what is marked: number and device */
static const struct swtdx_bridge *bridge;
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static bool failed;
static int owner; /* the process whose memory this is */
static int *same; /* 1, and 0 in a child that has a copy of the memory (MADV_WIPEONFORK) */
static uint64_t watch_start, watch_end;

static bool ours(int fd)
{
    return (unsigned)fd < DESCRIPTORS && __atomic_load_n(&kinds[fd], __ATOMIC_RELAXED) >= DEVICE;
}

static bool marked(int fd)
{
    return (unsigned)fd < DESCRIPTORS && __atomic_load_n(&kinds[fd], __ATOMIC_RELAXED) != NOT_OURS;
}

static uint64_t inode_of(int fd)
{
    struct stat status;

    return RAW(SYS_fstat, fd, &status) ? 0 : status.st_ino ^ (uint64_t)status.st_dev << 48;
}

static void mark(int fd, enum kind kind)
{
    if ((unsigned)fd < DESCRIPTORS) {
        if (kind != NOT_OURS) {
            inodes[fd] = inode_of(fd);
        }
        __atomic_store_n(&kinds[fd], kind, __ATOMIC_RELAXED);
    }
}

enum kind confirmed(int fd)
{
    if (likely(!marked(fd))) {
        return NOT_OURS;
    }
    if (inode_of(fd) == inodes[fd]) {
        return kinds[fd];
    }
    mark(fd, NOT_OURS);
    if (!inside && !borrowed()) {
        kernel(SWTDX_MMAP, fd, 0, 0, 0); /* which sees that the number is not its own, and lets go of what it was */
    }
    return NOT_OURS;
}

bool is_device(int fd)
{
    enum kind kind = confirmed(fd);

    return kind == DEVICE || kind == NAME;
}

static void belongs_here(void)
{
    owner = RAW(SYS_getpid);
    if (same) {
        *same = 1;
    }
}

/* A child that a system call of the program's own has made, without a word to us. What other threads of its
 * parent were doing is as it was: of a kernel that was started nothing is usable. */
static bool is_copy(void)
{
    static bool said;

    if (!same || *same) {
        return false;
    }
    if (!bridge) {
        pthread_mutex_init(&starting, NULL);
        belongs_here();
        return true;
    }
    if (!said) {
        said = true;
        say("swtdx: exec: process %ld was made by a system call of the program's own after it had opened /dev/kvm: "
            "its KVM calls fail. Use fork(), or 'swtdx exec --front-end notify'",
            RAW(SYS_getpid));
    }
    return false;
}

/* Whether this is the child of a vfork(), which runs in its parent's memory with descriptors of its own. */
bool borrowed(void)
{
    return RAW(SYS_getpid) != owner && !is_copy();
}

/* ---- entering ---- */

/* What a thread was like outside. */
struct outside {
    uint64_t mask;
    int cancel_state, cancel_type;
};

static struct outside enter(void)
{
    uint64_t all = ~SYNCHRONOUS;
    struct outside outside;

    inside = true;
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &outside.mask, sizeof(all));
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &outside.cancel_state);
    pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &outside.cancel_type);
    return outside;
}

/* Handlers that waited run when the mask is restored, and their calls are the program's. A thread that may be cancelled
 * at any place may end in the last line, when it is outside. */
static void leave(struct outside outside)
{
    pthread_setcancelstate(outside.cancel_state, NULL);
    inside = false;
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &outside.mask, NULL, sizeof(outside.mask));
    if (unlikely(outside.cancel_type != PTHREAD_CANCEL_DEFERRED)) {
        pthread_setcanceltype(outside.cancel_type, NULL);
    }
}

/* A call into the kernel that is there. */
long kernel(enum swtdx_call call, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    struct outside outside = enter();
    long result;

    program_mask = outside.mask;
    result = bridge->call(call, a, b, c, d);
    leave(outside);
    return result;
}

static void from_inside(void (*function)(void *), void *argument)
{
    struct outside outside = enter();

    function(argument);
    leave(outside);
}

int answer(long result)
{
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}

static void open_for_run(const uint64_t *sigset)
{
    open_signals(program_mask, sigset);
}

static void watch(uint64_t start, uint64_t end)
{
    __atomic_store_n(&watch_start, start, __ATOMIC_RELAXED);
    __atomic_store_n(&watch_end, end, __ATOMIC_RELAXED);
}

/* ---- starting ---- */

void before_fork(void)
{
    if (bridge && !inside) {
        inside = true;
        bridge->fork(SWTDX_FORK_PREPARE);
    }
}

void after_fork(bool child)
{
    if (child) {
        belongs_here();
    }
    if (bridge) {
        bridge->fork(child ? SWTDX_FORK_CHILD : SWTDX_FORK_PARENT);
        inside = false;
    }
}

static void after_fork_in_parent(void)
{
    after_fork(false);
}

static void after_fork_in_child(void)
{
    after_fork(true);
}

/* fork() by syscall(2), with no other stack for the child. */
long forked(long number, long a, long b, long c, long d, long e)
{
    long result;

    before_fork();
    result = raw(number, a, b, c, d, e, 0);
    after_fork(!result);
    return result;
}

__attribute__((constructor)) static void begin(void)
{
    long page = RAW(SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page > 0 && !RAW(SYS_madvise, page, PAGE, MADV_WIPEONFORK)) {
        same = (int *)page;
    }
    belongs_here();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

__attribute__((destructor)) static void finish(void)
{
    if (bridge && !borrowed()) {
        kernel(SWTDX_FINISH, 0, 0, 0, 0);
    }
}

/* The C library's name of an object that holds a Python, say /usr/lib/libpython3.11.so.1.0. */
static int is_libpython(struct dl_phdr_info *object, size_t size, void *found)
{
    const char *slash = strrchr(object->dlpi_name, '/');

    (void)size;
    if (slash && !strncmp(slash, "/libpython3.", 12)) { /* and not libpython3.so, which holds nothing */
        *(const char **)found = object->dlpi_name;
        return strncmp(slash, "/libpython3.so", 14);
    }
    return 0;
}

/*
 * The Python that the program has: its executable's, its library's, or one that it loaded for itself alone. That one is
 * made global, for two Pythons in one process would use each other's functions. NULL if it has none.
 */
static const char *program_python(void)
{
    const char *(*version)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "Py_GetVersion");
    const char *path = NULL;
    void *object;

    if (!version && dl_iterate_phdr(is_libpython, &path)) {
        object = dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
        version = object ? (const char *(*)(void))dlsym(object, "Py_GetVersion") : NULL;
    }
    return version ? version() : NULL;
}

/* libpython of the version that the bridge was built for: the program's own, or one to be loaded. */
static bool load_python(void)
{
    char wanted[16], path[PATH_MAX];
    const char *has;
    size_t length;

    if (!setting("version", wanted, sizeof(wanted)) || !setting("libpython", path, sizeof(path))) {
        say("swtdx: exec: %s/settings cannot be read here: open /dev/kvm before chroot(), or make the folder available "
            "to this user and in this file system",
            settings);
        return false;
    }
    length = strlen(wanted);
    has = program_python();
    if (!has) {
        if (dlopen(path, RTLD_NOW | RTLD_GLOBAL)) { /* global: Python's own extension modules look there for it */
            return true;
        }
        say("swtdx: exec: %s", dlerror());
        return false;
    }
    if (!strncmp(has, wanted, length) && (has[length] == '.' || has[length] == '+') && !strstr(has, "free-threading")) {
        return true;
    }
    say("swtdx: exec: this program runs Python %.*s%s, but swtdx is installed for Python %s: start it with 'swtdx exec "
        "--front-end notify', or install swtdx for the program's Python",
        (int)strcspn(has, " "), has, strstr(has, "free-threading") ? " without a global lock" : "", wanted);
    return false;
}

static const struct swtdx_bridge *start(void)
{
    static const struct swtdx_program program = { settings,      open_for_run, close_signals,
                                                  set_interrupt, from_inside,  watch };
    swtdx_bridge_start_fn *begin;
    char path[PATH_MAX];
    void *object;

    if (!load_python() || !setting("bridge", path, sizeof(path))) {
        return NULL;
    }
    prepare_cancellation(); /* it loads a library, which the program may not find later */
    object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    begin = object ? (swtdx_bridge_start_fn *)dlsym(object, SWTDX_BRIDGE_START) : NULL;
    if (!begin) {
        say("swtdx: exec: %s", dlerror());
        return NULL;
    }
    return begin(&program);
}

/* Whether there is a kernel, started if need be. */
static bool running(void)
{
    const struct swtdx_bridge *found;
    struct outside outside;

    if (__atomic_load_n(&bridge, __ATOMIC_ACQUIRE)) {
        return true;
    }
    outside = enter();
    pthread_mutex_lock(&starting);
    if (!bridge && !failed) {
        found = start();
        failed = !found;
        __atomic_store_n(&bridge, found, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&starting);
    leave(outside);
    return bridge != NULL;
}

/* Let the kernel, if there is one, make ready for what the program is about to do. */
void tell(enum swtdx_call call)
{
    int error = errno;

    if (bridge && !inside && !borrowed()) {
        kernel(call, 0, 0, 0, 0);
    }
    errno = error;
}

/* The program is about to change its root directory, its user or its namespaces. */
static void prepare(void)
{
    tell(SWTDX_PREPARE);
}

#define PREPARED(name, parameters, ...) \
    EXPORT int name parameters \
    { \
        prepare(); \
        return NEXT(name)(__VA_ARGS__); \
    }

PREPARED(chroot, (const char *path), path)
PREPARED(setuid, (uid_t uid), uid)
PREPARED(seteuid, (uid_t uid), uid)
PREPARED(setreuid, (uid_t real, uid_t effective), real, effective)
PREPARED(setresuid, (uid_t real, uid_t effective, uid_t saved), real, effective, saved)
PREPARED(unshare, (int flags), flags)
PREPARED(setns, (int fd, int kind), fd, kind)

/* ---- descriptors ---- */

int open_kvm(int flags)
{
    long fd;

    if (flags & O_DIRECTORY) {
        return answer(-ENOTDIR);
    }
    if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        return answer(-EEXIST);
    }
    if (!running()) {
        return answer(-ENODEV); /* what is wrong has been said */
    }
    if (borrowed()) {
        return answer(-EIO);
    }
    fd = kernel(SWTDX_OPEN, flags, 0, 0, 0);
    if (fd >= 0) {
        mark(fd, DEVICE);
    }
    return answer(fd);
}

static long drop(int fd);

/* O_PATH: a descriptor that is a name. What is opened by it, below /proc/self/fd, is adopted at its first ioctl. */
int name_kvm(int flags)
{
    char link[64];
    int fd = open_kvm((flags & O_DIRECTORY) | O_RDWR | O_CLOEXEC);
    long name;

    if (fd < 0) {
        return fd;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    name = RAW(SYS_openat, AT_FDCWD, link, O_PATH | (flags & O_CLOEXEC));
    drop(fd);
    if (name >= 0) {
        mark(name, NAME);
    }
    return answer(name);
}

/* An ioctl of KVM's type on a descriptor that we have not given out: one of ours that came another way, the machine's,
 * or none of KVM's. The kernel's answer: 0 when it is ours from now on, and marked; ENOTTY to let the system answer. */
static long adopt(int fd)
{
    char link[64], name[64] = "/memfd:/dev/kvm", allowed[8];
    struct stat status;
    long length, result;

    if (RAW(SYS_fstat, fd, &status) || RAW(SYS_fcntl, fd, F_GETFL) & O_PATH) {
        return -ENOTTY;
    }
    if (S_ISCHR(status.st_mode) && status.st_rdev == KVM_DEVICE) {
        if (setting("host", allowed, sizeof(allowed)) && !strcmp(allowed, "1")) {
            return -ENOTTY;
        }
    } else {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        length = RAW(SYS_readlinkat, AT_FDCWD, link, name, sizeof(name) - 1);
        name[length < 0 ? 0 : length] = 0;
        if (strncmp(name, "/memfd:/dev/kvm", 15) && strncmp(name, "/memfd:anon_inode:", 18)) {
            return -ENOTTY;
        }
    }
    if (!running()) {
        return -ENODEV;
    }
    result = kernel(SWTDX_ADOPT, fd, 0, 0, 0);
    if (result >= 0) {
        mark(fd, strncmp(name, "/memfd:/dev/kvm", 15) ? OURS : DEVICE);
    }
    return result;
}

static bool creates_descriptor(unsigned long request)
{
    return request == KVM_CREATE_VM || request == KVM_CREATE_VCPU || request == KVM_CREATE_GUEST_MEMFD ||
           request == KVM_GET_STATS_FD;
}

int kvm_ioctl(int fd, unsigned long request, unsigned long argument)
{
    long result = 0;

    if (!ours(fd)) {
        result = adopt(fd);
        if (result == -ENOTTY) {
            return answer(RAW(SYS_ioctl, fd, request, argument));
        }
        if (result < 0) {
            return answer(result);
        }
    }
    if (borrowed()) {
        return answer(-EIO);
    }
    result = kernel(SWTDX_IOCTL, fd, (uint32_t)request, argument, 0);
    if (result >= 0 && creates_descriptor(request)) {
        mark(result, request == KVM_GET_STATS_FD ? STATISTICS : request == KVM_CREATE_GUEST_MEMFD ? MEMORY : OURS);
    }
    return answer(result);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    unsigned long argument;
    va_list list;

    va_start(list, request);
    argument = va_arg(list, unsigned long);
    va_end(list);
    if (!inside && _IOC_TYPE(request) == KVMIO) {
        return kvm_ioctl(fd, request, argument);
    }
    if (unlikely(kind_of(fd) != NOT_OURS)) {
        return vfs_ioctl(fd, request, argument);
    }
    return answer(RAW(SYS_ioctl, fd, request, argument));
}

/* Before the number of one of ours goes away, by whatever call. */
static long drop(int fd)
{
    bool named = kinds[fd] == NAME;

    if (borrowed()) {
        return RAW(SYS_close, fd);
    }
    mark(fd, NOT_OURS);
    if (named) {
        return RAW(SYS_close, fd);
    }
    return kernel(SWTDX_CLOSE, fd, 0, 0, 0);
}

EXPORT int close(int fd)
{
    if (unlikely(marked(fd)) && !inside) {
        return answer(drop(fd));
    }
    return NEXT(close)(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    unsigned fd;

    if (bridge && !inside && !(flags & CLOSE_RANGE_CLOEXEC) && !borrowed()) {
        for (fd = first; fd <= last && fd < DESCRIPTORS; fd++) {
            if (marked(fd)) {
                drop(fd);
            }
        }
    }
    return answer(RAW(SYS_close_range, first, last, flags));
}

EXPORT void closefrom(int first)
{
    close_range(first < 0 ? 0 : first, ~0u, 0);
}

static int duplicated(int from, int to)
{
    if (to >= 0 && marked(from) && !inside) {
        mark(to, kinds[from]);
    }
    return to;
}

EXPORT int dup(int fd)
{
    return duplicated(fd, answer(RAW(SYS_dup, fd)));
}

EXPORT int dup3(int from, int to, int flags)
{
    if (unlikely(marked(to)) && !inside && from != to && RAW(SYS_fcntl, from, F_GETFD) >= 0) {
        drop(to);
    }
    return duplicated(from, answer(RAW(SYS_dup3, from, to, flags)));
}

EXPORT int dup2(int from, int to)
{
    if (from == to) {
        return RAW(SYS_fcntl, from, F_GETFD) < 0 ? answer(-EBADF) : to;
    }
    return dup3(from, to, 0);
}

static int duplicated_by(int command, int fd, int result)
{
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, result) : result;
}

EXPORT int fcntl64(int fd, int command, ...)
{
    va_list list;
    void *argument;
    int error;

    va_start(list, command);
    argument = va_arg(list, void *);
    va_end(list);
    if ((error = no_command(fd, command, (long)argument))) {
        return answer(error);
    }
    return duplicated_by(command, fd, NEXT(fcntl64)(fd, command, argument));
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list list;
    void *argument;
    int error;

    va_start(list, command);
    argument = va_arg(list, void *);
    va_end(list);
    if ((error = no_command(fd, command, (long)argument))) {
        return answer(error);
    }
    return duplicated_by(command, fd, NEXT(fcntl)(fd, command, argument));
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (unlikely(ours(fd)) && !inside) {
        return answer(borrowed() ? -EIO : kernel(SWTDX_FALLOCATE, fd, mode, offset, length));
    }
    return NEXT(fallocate)(fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return fallocate(fd, mode, offset, length);
}

/* ---- mappings ---- */

#define MAPPINGS 4096

/* A part of a mapping of a vCPU or guest_memfd. The kernel keeps the file until the last page of it is unmapped. */
static struct mapping {
    uintptr_t start, end; /* as the program sees it; start == end: unused */
    uintptr_t object; /* as the kernel made it: elsewhere if the program wanted it at an address of its own */
    size_t size; /* all that the kernel made */
    bool moved;
} mappings[MAPPINGS];
static int mapping_count; /* entries before it may be in use */
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;
static __thread uintptr_t kept __attribute__((tls_model("initial-exec")));

/* With the lock held. */
static bool add_mapping(struct mapping added)
{
    int i;

    for (i = 0; i < MAPPINGS; i++) {
        if (mappings[i].start == mappings[i].end) {
            mappings[i] = added;
            if (i >= mapping_count) {
                __atomic_store_n(&mapping_count, i + 1, __ATOMIC_RELEASE);
            }
            return true;
        }
    }
    return false;
}

static bool remember(uintptr_t start, uintptr_t object, size_t size)
{
    bool done;

    pthread_mutex_lock(&mappings_lock);
    done = add_mapping((struct mapping){ start, start + size, object, size, start != object });
    pthread_mutex_unlock(&mappings_lock);
    return done;
}

/* With the lock held: take [start, end) out of a part. True if nothing of the mapping is left. */
static bool cut(struct mapping *part, uintptr_t start, uintptr_t end)
{
    struct mapping rest = *part;
    int i;

    if (part->start == part->end || part->end <= start || end <= part->start) {
        return false;
    }
    rest.start = end;
    if (start > part->start) {
        if (end < part->end && !add_mapping(rest)) {
            return false; /* no room for the rest: it is kept whole, and its file for longer */
        }
        part->end = start;
        return false;
    }
    if (end < part->end) {
        part->start = end;
        return false;
    }
    part->end = part->start;
    for (i = 0; i < mapping_count; i++) {
        if (mappings[i].start != mappings[i].end && mappings[i].object == part->object) {
            return false;
        }
    }
    return true;
}

/* The kernel lets a mapping go. The pages stay: the program is about to unmap or replace them itself, and in between
 * no caller may be given their addresses. */
static void let_go(const struct mapping *mapping)
{
    kept = mapping->object;
    kernel(SWTDX_UNMAP, mapping->object, 0, 0, 0);
    kept = 0;
    if (mapping->moved) {
        RAW(SYS_munmap, mapping->object, mapping->size);
    }
}

/* The program unmaps or replaces a range. */
static void forget(uintptr_t start, size_t length)
{
    uintptr_t end = (start + length + PAGE - 1) & -PAGE;
    struct mapping gone;
    bool last;
    int i;

    for (i = 0; i < mapping_count; i++) {
        pthread_mutex_lock(&mappings_lock);
        last = cut(&mappings[i], start, end);
        gone = mappings[i];
        pthread_mutex_unlock(&mappings_lock);
        if (last) {
            let_go(&gone);
        }
    }
}

static bool in_kernel_memory(const void *address, size_t length)
{
    uintptr_t start = (uintptr_t)address;

    return !inside && unlikely(start < watch_end && start + length > watch_start) && !borrowed();
}

static void notify(const void *address, size_t length, enum swtdx_change change)
{
    int error = errno;

    kernel(SWTDX_CHANGED, (uintptr_t)address, length, change, 0);
    errno = error;
}

/* Around a change of mappings. The answer of the first is for the second: what is watched may change in between. */
static bool changing(const void *address, size_t length)
{
    if (!in_kernel_memory(address, length)) {
        return false;
    }
    notify(address, length, SWTDX_CHANGE_START);
    return true;
}

static void changed(bool notified, const void *address, size_t length)
{
    if (unlikely(notified)) {
        notify(address, length, SWTDX_CHANGE_END);
    }
}

static void unmapping(const void *address, size_t length)
{
    if (__atomic_load_n(&mapping_count, __ATOMIC_ACQUIRE) && !inside && !borrowed()) {
        forget((uintptr_t)address, length);
    }
}

/* Move what the kernel has mapped to where the program wants it; page by page where the ring is a mapping of its own.
 */
static bool move(uintptr_t object, uintptr_t to, size_t length)
{
    bool whole = RAW(SYS_mremap, object, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == (long)to;
    size_t at;

    for (at = 0; at < length && !whole; at += PAGE) {
        if (RAW(SYS_mremap, object + at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + at) != (long)(to + at)) {
            return false;
        }
    }
    RAW(SYS_mmap, object, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return true;
}

static long map_kvm(uintptr_t address, size_t length, int protection, int flags, int fd, off_t offset)
{
    int fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    size_t size = (length + PAGE - 1) & -PAGE;
    uintptr_t start;
    long object, place = 0;
    int error;

    if (borrowed()) {
        return -EIO;
    }
    if ((error = no_mapping(fd, protection, flags, offset))) {
        return error;
    }
    object = kernel(SWTDX_MMAP, fd, size, offset, flags);
    if (object < 0) {
        return object;
    }
    start = object;
    if (fixed) {
        place = RAW(SYS_mmap, address, size, PROT_NONE, fixed | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        start = address;
        if (place >= 0 && !move(object, start, size)) {
            place = -ENOMEM;
        }
    }
    if (place < 0 || !remember(start, object, size)) {
        kernel(SWTDX_UNMAP, object, 0, 0, 0);
        return place < 0 ? place : -ENOMEM;
    }
    if (protection != (PROT_READ | PROT_WRITE)) {
        RAW(SYS_mprotect, start, size, protection);
    }
    return start;
}

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    bool notified = false;
    void *result;

    if (!inside && unlikely(flags & MAP_FIXED)) {
        unmapping(address, length);
        notified = changing(address, length);
    }
    if (!inside && unlikely(ours(fd)) && !(flags & MAP_ANONYMOUS)) {
        long start = map_kvm((uintptr_t)address, length, protection, flags, fd, offset);

        if (start != -ENOTTY) {
            changed(notified, address, length);
            errno = start < 0 ? -start : errno;
            return start < 0 ? MAP_FAILED : (void *)start;
        }
    }
    result = NEXT(mmap)(address, length, protection, flags, fd, offset);
    changed(notified, address, length);
    return result;
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}

EXPORT int munmap(void *address, size_t length)
{
    bool notified;
    int result;

    if (inside && (uintptr_t)address == kept) {
        return 0;
    }
    unmapping(address, length);
    notified = changing(address, length);
    result = NEXT(munmap)(address, length);
    changed(notified, address, length);
    return result;
}

EXPORT void *mremap(void *address, size_t old_length, size_t new_length, int flags, ...)
{
    bool notified = changing(address, old_length), notified_to = false;
    void *to, *result;
    va_list list;

    va_start(list, flags);
    to = va_arg(list, void *);
    va_end(list);
    if (flags & MREMAP_FIXED) {
        notified_to = changing(to, new_length);
    }
    result = NEXT(mremap)(address, old_length, new_length, flags, to);
    changed(notified, address, old_length);
    changed(notified_to, to, new_length);
    return result;
}

EXPORT int mprotect(void *address, size_t length, int protection)
{
    bool notified = changing(address, length);
    int result = NEXT(mprotect)(address, length, protection);

    changed(notified, address, length);
    return result;
}

/* Whether a vCPU or guest_memfd is mapped in the range. */
static bool maps_kvm(uintptr_t start, size_t length)
{
    bool found = false;
    int i;

    pthread_mutex_lock(&mappings_lock);
    for (i = 0; i < mapping_count && !found; i++) {
        found = mappings[i].start < start + length && start < mappings[i].end;
    }
    pthread_mutex_unlock(&mappings_lock);
    return found;
}

EXPORT int madvise(void *address, size_t length, int advice)
{
    int result;

    if (unlikely(advice == MADV_COLLAPSE) && !inside && !borrowed() && maps_kvm((uintptr_t)address, length)) {
        return answer(-EINVAL); /* of tmpfs the pages could be made one; those of a guest_memfd cannot */
    }
    result = NEXT(madvise)(address, length, advice);
    if ((advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE || advice == MADV_DONTNEED_LOCKED) &&
        in_kernel_memory(address, length)) {
        notify(address, length, SWTDX_CHANGE_CONTENTS);
    }
    return result;
}

/* The machine's memory is sparse: to lock all of it would be to populate all of it. */
EXPORT int mlockall(int flags)
{
    return NEXT(mlockall)(*settings ? flags | MCL_ONFAULT : flags);
}
