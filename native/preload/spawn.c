/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Other processes and threads: the library reaches every program that one of its programs executes, whatever becomes of
 * the environment in between. All of this may run between vfork() and exec(): no memory but the stack.
 */
#include "preload.h"
#include <alloca.h>
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PRELOAD "LD_PRELOAD="

static bool preloads_us(const char *entry)
{
    return strstr(entry, library) != NULL;
}

static size_t entries(char *const envp[])
{
    size_t n = 0;

    while (envp && envp[n]) {
        n++;
    }
    return n;
}

/* The environment with the library in LD_PRELOAD, in `room` of entries() + 2 pointers and `text`; or as it is. */
static char *const *with_library(char *const envp[], char **room, char *text, size_t size)
{
    char *theirs = "";
    size_t i, n = 0;

    if (!*library) {
        return envp;
    }
    for (i = 0; envp && envp[i]; i++) {
        if (strncmp(envp[i], PRELOAD, sizeof(PRELOAD) - 1)) {
            room[n++] = envp[i];
        } else if (preloads_us(envp[i])) {
            return envp;
        } else {
            theirs = envp[i] + sizeof(PRELOAD) - 1;
        }
    }
    if (snprintf(text, size, PRELOAD "%s%s%s", library, *theirs ? ":" : "", theirs) >= (int)size) {
        return envp;
    }
    room[n++] = text;
    room[n] = NULL;
    return room;
}

static bool host_kvm_is_in_reach(void)
{
    char allowed[8];

    return !RAW(SYS_faccessat, AT_FDCWD, "/dev/kvm", R_OK | W_OK) &&
           !(setting("host", allowed, sizeof(allowed)) && *allowed == '1');
}

/* The first bytes of a file, in `head`; their number, -1 if it cannot be read. Of what cannot be executed there are
 * none: a FIFO would wait for its writer. */
static long read_head(const char *path, unsigned char *head, size_t size)
{
    long got = 0, fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;

    if (fd < 0) {
        return -1;
    }
    if (!RAW(SYS_newfstatat, fd, "", &status, AT_EMPTY_PATH) && S_ISREG(status.st_mode)) {
        got = RAW(SYS_read, fd, head, size - 1);
    }
    RAW(SYS_close, fd);
    head[got < 0 ? 0 : got] = 0;
    return got < 0 ? -1 : got;
}

/* Whether the file is a Python of a version that the kernel cannot share, by the name that its links lead to. */
static bool other_python(const char *path)
{
    char link[64], target[PATH_MAX], wanted[16], *name;
    long length, fd = RAW(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC);

    if (fd < 0) {
        return false;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%ld", fd);
    length = RAW(SYS_readlinkat, AT_FDCWD, link, target, sizeof(target) - 1);
    RAW(SYS_close, fd);
    target[length < 0 ? 0 : length] = 0;
    name = strrchr(target, '/');
    if (!name || strncmp(name, "/python", 7) || !setting("version", wanted, sizeof(wanted))) {
        return false;
    }
    name += 7;
    length = strspn(name, "0123456789.");
    return memchr(name, '.', length) && (!name[length] || !strcmp(name + length, "t")) && strcmp(name, wanted);
}

/* glibc's loader, whatever its folder; that of another libc loads no library of ours. */
static bool is_our_loader(const char *path)
{
    const char *slash = strrchr(path, '/');

    return !strncmp(slash ? slash + 1 : path, "ld-linux", 8) || !strncmp(slash ? slash + 1 : path, "ld-lsb", 6);
}

/* Where in the file a virtual address is; 0 if nowhere. */
static uint64_t file_offset(const Elf64_Ehdr *header, uint64_t address)
{
    const Elf64_Phdr *segment = (const Elf64_Phdr *)((const char *)header + header->e_phoff);
    int i;

    for (i = 0; i < header->e_phnum; i++) {
        if (segment[i].p_type == PT_LOAD && address - segment[i].p_vaddr < segment[i].p_filesz) {
            return address - segment[i].p_vaddr + segment[i].p_offset;
        }
    }
    return 0;
}

/* Names that a program with a sanitizer has among its dynamic strings. */
static bool names_sanitizer(const char *text, size_t size)
{
    static const char names[][16] = { "__asan_init", "__tsan_init", "__msan_init", "__hwasan_init", "liblsan.so" };
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
        if (memmem(text, size, names[i], strlen(names[i]))) {
            return true;
        }
    }
    return false;
}

/* Whether a sanitizer's runtime is linked: it must be loaded first, and would take the kernel's memory for the
 * program's. `head` has the program headers. */
static bool sanitized(const char *path, const unsigned char *head, const Elf64_Phdr *dynamic)
{
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)head;
    uint64_t table = 0, size = 0, at;
    Elf64_Dyn entries[256];
    bool found = false;
    char text[4096];
    long got, fd;
    int i;

    fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    got = RAW(SYS_pread64, fd, entries, sizeof(entries), dynamic->p_offset);
    for (i = 0; i < got / (long)sizeof(*entries) && entries[i].d_tag != DT_NULL; i++) {
        if (entries[i].d_tag == DT_STRTAB) {
            table = file_offset(header, entries[i].d_un.d_ptr);
        } else if (entries[i].d_tag == DT_STRSZ) {
            size = entries[i].d_un.d_val;
        }
    }
    for (at = 0; table && at < size && !found; at += sizeof(text) - 16) { /* a name may lie across two pieces */
        got = RAW(SYS_pread64, fd, text, size - at < sizeof(text) ? size - at : sizeof(text), table + at);
        if (got <= 0) {
            break;
        }
        found = names_sanitizer(text, got);
    }
    RAW(SYS_close, fd);
    return found;
}

/* Whether an executable does not load us, or must not: a static one, one for another libc, Go's, a Python of another
 * version, one with a sanitizer. */
static bool elf_out_of_reach(const char *path, const unsigned char *head, long read)
{
    size_t got = read;
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)head;
    const Elf64_Phdr *dynamic = NULL;
    bool interpreted = false;
    int i;

    if (read < 0) { /* it may be executed and not read */
        return host_kvm_is_in_reach();
    }
    if (got < sizeof(*header) || memcmp(head, ELFMAG, SELFMAG)) {
        return false;
    }
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64) { /* its loader ignores us */
        return host_kvm_is_in_reach();
    }
    for (i = 0; i < header->e_phnum; i++) {
        uint64_t at = header->e_phoff + i * sizeof(Elf64_Phdr);
        const Elf64_Phdr *segment = (const Elf64_Phdr *)(head + at);

        if (at + sizeof(*segment) > got) {
            return false;
        }
        if (segment->p_type == PT_INTERP) {
            if (segment->p_offset >= got || !is_our_loader((const char *)head + segment->p_offset)) {
                return segment->p_offset < got;
            }
            interpreted = true;
        }
        if (segment->p_type == PT_DYNAMIC) {
            dynamic = segment;
        }
        if (segment->p_type == PT_NOTE && segment->p_offset + 16 <= got &&
            !memcmp(head + segment->p_offset + 12, "Go\0", 4)) {
            return true;
        }
    }
    if (!interpreted) {
        return !is_our_loader(path); /* the loader itself: what it loads is in reach */
    }
    return other_python(path) || (dynamic && sanitized(path, head, dynamic));
}

/* Whether a file gives its user more rights; then its loader drops us. Asked where the machine has a /dev/kvm. */
static bool gains_rights(const char *path)
{
    struct stat status;

    if (RAW(SYS_faccessat, AT_FDCWD, "/dev/kvm", F_OK) || RAW(SYS_newfstatat, AT_FDCWD, path, &status, 0)) {
        return false;
    }
    return ((status.st_mode & S_ISUID) && status.st_uid != geteuid()) ||
           ((status.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && status.st_gid != getegid()) ||
           (geteuid() && RAW(SYS_getxattr, path, "security.capability", NULL, 0) > 0);
}

#define HEAD 4096
#define MOST_SCRIPTS 4 /* the kernel's limit of interpreters of interpreters */

static bool out_of_reach(const char *path)
{
    unsigned char head[HEAD] __attribute__((aligned(8)));
    char interpreter[PATH_MAX];
    size_t from, length;
    long got;
    int depth;

    for (depth = 0; depth <= MOST_SCRIPTS; depth++) {
        got = read_head(path, head, sizeof(head));
        if (got < 3 || memcmp(head, "#!", 2)) {
            return gains_rights(path) || elf_out_of_reach(path, head, got);
        }
        from = 2 + strspn((char *)head + 2, " \t");
        length = strcspn((char *)head + from, " \t\n");
        if (length >= sizeof(interpreter)) {
            return false;
        }
        memcpy(interpreter, head + from, length);
        interpreter[length] = 0;
        path = interpreter;
    }
    return false;
}

/* A program that does not find us sees the machine's own /dev/kvm, where there is one for it: refused. */
static bool library_is_here(const char *path)
{
    if (!RAW(SYS_faccessat, AT_FDCWD, library, R_OK)) {
        return true;
    }
    if (host_kvm_is_in_reach()) {
        say("swtdx: exec: %s cannot be read here, so %s would get this machine's own /dev/kvm: not executed. Make the "
            "file available to this user and in this file system, or run 'swtdx exec --allow-host-kvm'",
            library, path);
        return false;
    }
    if (!RAW(SYS_faccessat, AT_FDCWD, path, X_OK)) {
        say("swtdx: exec: %s cannot be read here, so %s has no /dev/kvm: make the file available to this user and in "
            "this file system",
            library, path);
    }
    return true;
}

/* Of `file`, a name without a slash, the file that execvp() finds. As the name is if there is none. */
static const char *search(const char *file, char *path, size_t size)
{
    const char *from = getenv("PATH"), *end;

    if (strchr(file, '/')) {
        return file;
    }
    for (from = from ? from : "/bin:/usr/bin"; from; from = *end ? end + 1 : NULL) {
        end = strchrnul(from, ':');
        if (snprintf(path, size, "%.*s%s%s", (int)(end - from), from, end == from ? "" : "/", file) < (int)size &&
            !RAW(SYS_faccessat, AT_FDCWD, path, X_OK)) {
            return path;
        }
    }
    return file;
}

/* A program as it is to be executed. All of it is the caller's: nothing is allocated. */
struct execution {
    const char *path;
    char *const *argv;
    char *const *envp;
    char **room_argv, **room_envp; /* for entries() of the program's, and BEFORE or 2 more */
    char text[2 * PATH_MAX], found[PATH_MAX], python[PATH_MAX];
};

enum { BEFORE = 8 }; /* words in front of the program's arguments */
#define ROOM(execution, argv, envp) \
    (execution)->room_argv = alloca((entries(argv) + BEFORE + 1) * sizeof(char *)); \
    (execution)->room_envp = alloca((entries(envp) + 2) * sizeof(char *));

/* The environment without the library: what has it would answer for the server. */
static char *const *without_library(char *const envp[], struct execution *to)
{
    const char *from, *end;
    size_t i, n = 0, used;

    for (i = 0; envp && envp[i]; i++) {
        if (strncmp(envp[i], PRELOAD, sizeof(PRELOAD) - 1)) {
            to->room_envp[n++] = envp[i];
            continue;
        }
        used = 0;
        for (from = envp[i] + sizeof(PRELOAD) - 1; *from; from = *end ? end + 1 : end) {
            size_t length = (end = from + strcspn(from, ": ")) - from;

            if (length && (length != strlen(library) || memcmp(from, library, length)) &&
                used + length + sizeof(PRELOAD) + 1 < sizeof(to->text)) {
                used += sprintf(to->text + used, "%s%.*s", used ? ":" : PRELOAD, (int)length, from);
            }
        }
        if (used) {
            to->room_envp[n++] = to->text;
        }
    }
    to->room_envp[n] = NULL;
    return to->room_envp;
}

/* What is out of reach is executed below a server of the second front end, which the command's Python becomes; or that
 * says why it cannot be. */
static void hand_over(struct execution *to, char *const argv[], char *const envp[])
{
    size_t i, n = 0;

    to->room_argv[n++] = to->python;
    to->room_argv[n++] = "-I";
    to->room_argv[n++] = "-m";
    to->room_argv[n++] = "swtdx.exec.below";
    to->room_argv[n++] = settings;
    to->room_argv[n++] = (char *)to->path;
    for (i = 0; argv && argv[i]; i++) {
        to->room_argv[n++] = argv[i];
    }
    to->room_argv[n] = NULL;
    to->argv = to->room_argv;
    to->envp = without_library(envp, to);
    to->path = to->python;
}

/* False if the program must not be executed; why has been said. */
static bool prepare(struct execution *to, const char *file, char *const argv[], char *const envp[])
{
    char allowed[8];

    to->path = search(file, to->found, sizeof(to->found));
    to->argv = argv;
    to->envp = envp;
    if (!*library) {
        return true;
    }
    if (!library_is_here(to->path)) {
        return false;
    }
    if (!RAW(SYS_faccessat, AT_FDCWD, to->path, X_OK) && out_of_reach(to->path) &&
        !(setting("host", allowed, sizeof(allowed)) && *allowed == '1')) {
        if (!setting("python", to->python, sizeof(to->python)) || RAW(SYS_faccessat, AT_FDCWD, to->python, X_OK)) {
            say("swtdx: exec: %s cannot be served here, and would get this machine's own /dev/kvm: not executed",
                to->path);
            return false;
        }
        hand_over(to, argv, envp);
        return true;
    }
    to->envp = with_library(envp, to->room_envp, to->text, sizeof(to->text));
    return true;
}

typedef int execute_fn(const char *, char *const[], char *const[]);

static int execute(execute_fn *next, const char *path, char *const argv[], char *const envp[])
{
    struct execution to;

    ROOM(&to, argv, envp);
    if (!prepare(&to, path, argv, envp)) {
        errno = EACCES;
        return -1;
    }
    tell(SWTDX_SETTLE);
    return next(to.path, to.argv, to.envp);
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
    return execute(NEXT(execve), path, argv, envp);
}

EXPORT int execv(const char *path, char *const argv[])
{
    return execute(NEXT(execve), path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
    return execute(NEXT(execvpe), file, argv, envp);
}

EXPORT int execvp(const char *file, char *const argv[])
{
    return execvpe(file, argv, environ);
}

/* A file that has a name below /proc for as long as it is open; the server is this process, and it inherits that. */
static int execute_at(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
    char name[PATH_MAX + 64];
    struct execution to;

    if (flags & AT_EMPTY_PATH && !*path) {
        snprintf(name, sizeof(name), "/proc/self/fd/%d", dirfd);
    } else if (*path == '/' || dirfd == AT_FDCWD) {
        snprintf(name, sizeof(name), "%s", path);
    } else {
        snprintf(name, sizeof(name), "/proc/self/fd/%d/%s", dirfd, path);
    }
    ROOM(&to, argv, envp);
    if (!prepare(&to, name, argv, envp)) {
        errno = EACCES;
        return -1;
    }
    tell(SWTDX_SETTLE);
    if (to.path == to.python) {
        RAW(SYS_fcntl, dirfd, F_SETFD, 0);
        return NEXT(execve)(to.path, to.argv, to.envp);
    }
    errno = -RAW(SYS_execveat, dirfd, path, argv, to.envp, flags);
    return -1;
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
    return execute_at(fd, "", argv, envp, AT_EMPTY_PATH);
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
    return execute_at(dirfd, path, argv, envp, flags);
}

/* The list of arguments of execl() and its kin, on the stack. */
#define LISTED(first, end_of_list) \
    va_list list; \
    size_t n = 1, i; \
    char **argv; \
    va_start(list, first); \
    while (va_arg(list, char *)) { \
        n++; \
    } \
    va_end(list); \
    argv = alloca((n + 1) * sizeof(*argv)); \
    argv[0] = (char *)first; \
    va_start(list, first); \
    for (i = 1; i <= n; i++) { \
        argv[i] = va_arg(list, char *); \
    } \
    end_of_list va_end(list);

EXPORT int execl(const char *path, const char *first, ...)
{
    LISTED(first, )
    return execve(path, argv, environ);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
    LISTED(first, )
    return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *first, ...)
{
    char *const *envp;
    LISTED(first, envp = va_arg(list, char *const *);)
    return execve(path, argv, envp);
}

typedef int spawn_fn(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                     char *const[], char *const[]);

static int spawn(spawn_fn *next, pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
    struct execution to;

    ROOM(&to, argv, envp);
    if (!prepare(&to, file, argv, envp)) {
        return EACCES;
    }
    return next(pid, to.path, actions, attributes, to.argv, to.envp);
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                       const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
    return spawn(NEXT(posix_spawn), pid, path, actions, attributes, argv, envp);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
    return spawn(NEXT(posix_spawnp), pid, file, actions, attributes, argv, envp);
}

/* ---- what libc executes by itself: with the environment of the process ---- */

/* A program that has cleared its environment gets the library back into it, as one with an environment of its own does
 * in the calls above. */
static void keep_library(void)
{
    const char *theirs = getenv("LD_PRELOAD");
    char text[2 * PATH_MAX];

    if (*library && !inside && !borrowed() && (!theirs || !preloads_us(theirs)) &&
        snprintf(text, sizeof(text), "%s%s%s", library, theirs && *theirs ? ":" : "", theirs ? theirs : "") <
            (int)sizeof(text)) {
        setenv("LD_PRELOAD", text, true);
    }
}

EXPORT int system(const char *command)
{
    keep_library();
    return NEXT(system)(command);
}

EXPORT FILE *popen(const char *command, const char *mode)
{
    keep_library();
    return NEXT(popen)(command, mode);
}

/* ---- clone(): a child with memory of its own, and a stack that its parent chose ---- */

struct beginning {
    void *(*function)(void *);
    int (*main)(void *);
    void *argument;
};

static int begin_copied(void *given)
{
    struct beginning beginning = *(struct beginning *)given;

    after_fork(true);
    return beginning.main(beginning.argument);
}

EXPORT int clone(int (*function)(void *), void *stack, int flags, void *argument, ...)
{
    struct beginning beginning = { .main = function, .argument = argument };
    void *more[3]; /* the parent's and the child's number, thread-local storage */
    va_list list;
    int i, result;

    va_start(list, argument);
    for (i = 0; i < 3; i++) {
        more[i] = va_arg(list, void *);
    }
    va_end(list);
    if (flags & CLONE_VM) {
        return NEXT(clone)(function, stack, flags, argument, more[0], more[1], more[2]);
    }
    before_fork();
    result = NEXT(clone)(begin_copied, stack, flags, &beginning, more[0], more[1], more[2]);
    after_fork(false);
    return result;
}

/* ---- threads of the kernel: in it for good, and no signal is for them ---- */

static void *begin_inside(void *given)
{
    struct beginning beginning = *(struct beginning *)given;

    free(given);
    inside = true;
    return beginning.function(beginning.argument);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *),
                          void *argument)
{
    struct beginning *beginning;
    uint64_t all = ~SYNCHRONOUS, mask;
    int result;

    if (!inside) {
        return NEXT(pthread_create)(thread, attributes, function, argument);
    }
    beginning = malloc(sizeof(*beginning));
    if (!beginning) {
        return EAGAIN;
    }
    *beginning = (struct beginning){ .function = function, .argument = argument };
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask,
        sizeof(mask)); /* in KVM_RUN they may come, and it inherits that */
    result = NEXT(pthread_create)(thread, attributes, begin_inside, beginning);
    RAW(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
    if (result) {
        free(beginning);
    }
    return result;
}
