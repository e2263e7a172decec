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
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static bool quiet(void)
{
    char value[8];

    return setting("quiet", value, sizeof(value)) && *value == '1';
}

/* Whether a file is an executable that does not load us: a static one, or one for another libc. */
static bool out_of_reach(const char *path)
{
    union {
        unsigned char bytes[4096];
        Elf64_Ehdr header;
    } file;
    const Elf64_Phdr *segment;
    long fd, got;
    int i;

    fd = RAW(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    got = RAW(SYS_read, fd, &file, sizeof(file) - 1);
    RAW(SYS_close, fd);
    if (got < (long)sizeof(file.header) || memcmp(file.bytes, ELFMAG, SELFMAG) || file.header.e_machine != EM_X86_64) {
        return false;
    }
    file.bytes[got] = 0;
    for (i = 0; i < file.header.e_phnum; i++) {
        uint64_t at = file.header.e_phoff + i * sizeof(*segment);

        if (at + sizeof(*segment) > (uint64_t)got) {
            return false;
        }
        segment = (const Elf64_Phdr *)(file.bytes + at);
        if (segment->p_type == PT_INTERP) {
            return segment->p_offset < (uint64_t)got && strstr((const char *)file.bytes + segment->p_offset, "ld-musl");
        }
    }
    return !strstr(path, "/ld-linux"); /* the loader itself: what it loads can be reached */
}

/*
 * A program that does not load us sees the machine's own /dev/kvm, where there is one for it. That must not happen in
 * silence. False if the program must not be executed: the library is gone, as in a chroot(), so nothing would load us.
 */
static bool may_execute(const char *path)
{
    if (!*library || !host_kvm_is_in_reach()) {
        return true;
    }
    if (RAW(SYS_faccessat, AT_FDCWD, library, R_OK)) {
        say("swtdx: exec: %s cannot be read here, so %s would get this machine's own /dev/kvm: not executed. Make the "
            "file available, or run 'swtdx exec --allow-host-kvm'", library, path);
        return false;
    }
    if (out_of_reach(path) && !quiet()) {
        say("swtdx: exec: %s is linked statically or for another libc: if it opens /dev/kvm, it gets this machine's own, "
            "not the emulated one", path);
    }
    return true;
}

static int execute(const char *path, char *const argv[], char *const envp[])
{
    char **room = alloca((entries(envp) + 2) * sizeof(*room)), text[2 * PATH_MAX];

    if (!may_execute(path)) {
        errno = EACCES;
        return -1;
    }
    return NEXT(execve)(path, argv, (char **)with_library(envp, room, text, sizeof(text)));
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
    return execute(path, argv, envp);
}

EXPORT int execv(const char *path, char *const argv[])
{
    return execute(path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
    char **room = alloca((entries(envp) + 2) * sizeof(*room)), text[2 * PATH_MAX];

    if (!may_execute(file)) {
        errno = EACCES;
        return -1;
    }
    return NEXT(execvpe)(file, argv, (char **)with_library(envp, room, text, sizeof(text)));
}

EXPORT int execvp(const char *file, char *const argv[])
{
    return execvpe(file, argv, environ);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
    char **room = alloca((entries(envp) + 2) * sizeof(*room)), text[2 * PATH_MAX];

    return NEXT(fexecve)(fd, argv, (char **)with_library(envp, room, text, sizeof(text)));
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
    char **room = alloca((entries(envp) + 2) * sizeof(*room)), text[2 * PATH_MAX];
    long result = RAW(SYS_execveat, dirfd, path, argv, with_library(envp, room, text, sizeof(text)), flags);

    errno = -result;
    return -1;
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
    end_of_list \
    va_end(list);

EXPORT int execl(const char *path, const char *first, ...)
{
    LISTED(first, )
    return execute(path, argv, environ);
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
    return execute(path, argv, envp);
}

typedef int spawn_fn(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                     char *const[]);

static int spawn(spawn_fn *next, pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
    char **room = alloca((entries(envp) + 2) * sizeof(*room)), text[2 * PATH_MAX];

    if (!may_execute(file)) {
        return EACCES;
    }
    return next(pid, file, actions, attributes, argv, with_library(envp, room, text, sizeof(text)));
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

/* ---- threads of the kernel: in it for good, and no signal is for them ---- */

struct beginning {
    void *(*function)(void *);
    void *argument;
};

static void *begin_inside(void *given)
{
    struct beginning beginning = *(struct beginning *)given;

    free(given);
    inside = true;
    return beginning.function(beginning.argument);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument)
{
    struct beginning *beginning;
    int result;

    if (!inside) {
        return NEXT(pthread_create)(thread, attributes, function, argument);
    }
    beginning = malloc(sizeof(*beginning));
    if (!beginning) {
        return EAGAIN;
    }
    *beginning = (struct beginning){ function, argument };
    result = NEXT(pthread_create)(thread, attributes, begin_inside, beginning); /* it inherits the blocked signals */
    if (result) {
        free(beginning);
    }
    return result;
}
