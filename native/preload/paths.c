/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files by their names: /dev/kvm, and what programs read of a machine with TDX elsewhere (the module parameter of
 * kvm_intel, the flags in /proc/cpuinfo). Those lie as ordinary files under files/ beside the settings; a path that
 * resolves to one of their names is read there.
 *
 * /dev/kvm is there whether the machine has one or not, and everybody may use it.
 */
#include "preload.h"
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* The absolute name of a path, symbolic links in it resolved. */
static bool resolve(int dirfd, const char *path, char full[PATH_MAX])
{
    char parent[PATH_MAX], link[64], real[PATH_MAX];
    const char *base = strrchr(path, '/');
    long length = 0;

    if (*path != '/' && dirfd != AT_FDCWD) {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
        length = RAW(SYS_readlinkat, AT_FDCWD, link, parent, sizeof(parent) - 2);
        if (length <= 0) {
            return false;
        }
        parent[length++] = '/';
    }
    base = base ? base + 1 : path;
    if (length + strlen(path) >= sizeof(parent)) {
        return false;
    }
    memcpy(parent + length, path, base - path);
    length += base - path;
    parent[length] = 0;
    if (!realpath(length ? parent : ".", real)) {
        if (*path != '/' || strlen(path) >= PATH_MAX) { /* a name that the machine does not have may be ours still */
            return false;
        }
        strcpy(full, path);
        return true;
    }
    return snprintf(full, PATH_MAX, "%s/%s", strcmp(real, "/") ? real : "", base) < PATH_MAX;
}

enum path slow_path(int dirfd, const char *path, char shadow[PATH_MAX])
{
    char full[PATH_MAX];
    int error = errno;
    enum path found = PATH_OTHER;

    if (*settings && resolve(dirfd, path, full)) {
        if (!strcmp(full, "/dev/kvm")) {
            found = PATH_KVM;
        } else if (snprintf(shadow, PATH_MAX, "%s/files%s", settings, full) < PATH_MAX &&
                   !RAW(SYS_faccessat, AT_FDCWD, shadow, F_OK)) {
            found = PATH_SHADOW;
        }
    }
    errno = error;
    return found;
}

#define MOST_LINKS 8

/* What a symbolic link leads to, if that is ours. */
static __attribute__((noinline)) enum path follow(int dirfd, const char *path, char shadow[PATH_MAX])
{
    char full[PATH_MAX], target[PATH_MAX], next[PATH_MAX];
    enum path found;
    long length;
    int depth;

    for (depth = 0; depth < MOST_LINKS && resolve(dirfd, path, full); depth++) {
        length = RAW(SYS_readlinkat, AT_FDCWD, full, target, sizeof(target) - 1);
        if (length <= 0) {
            break;
        }
        target[length] = 0;
        length = *target == '/' ? 0 : strrchr(full, '/') + 1 - full;
        if (length + strlen(target) >= sizeof(next)) {
            break;
        }
        memcpy(next, full, length);
        strcpy(next + length, target);
        found = slow_path(AT_FDCWD, next, shadow);
        if (found != PATH_OTHER) {
            return found;
        }
        dirfd = AT_FDCWD;
        path = next;
    }
    return PATH_OTHER;
}

/*
 * A path that the machine's kernel has refused: it may be a symbolic link to what the machine does not have, or does
 * not give to this user. A link that it follows leads to the machine's /dev/kvm until the first ioctl (adopt()).
 */
static enum path refused(int dirfd, const char *path, char shadow[PATH_MAX])
{
    enum path found = PATH_OTHER;
    int error = errno;
    char byte;

    if (!inside && *settings && path && (error == ENOENT || error == EACCES || error == EPERM || error == ENXIO) &&
        RAW(SYS_readlinkat, dirfd, path, &byte, 1) > 0) {
        found = follow(dirfd, path, shadow);
    }
    errno = error;
    return found;
}

/* ---- open ---- */

static int open_ours(enum path which, const char *shadow, int flags, mode_t mode)
{
    if (which == PATH_KVM) {
        return flags & O_PATH ? name_kvm(flags) : open_kvm(flags);
    }
    return NEXT(openat)(AT_FDCWD, shadow, flags, mode);
}

static int open_at(int dirfd, const char *path, int flags, mode_t mode)
{
    char shadow[PATH_MAX];
    enum path found;
    int fd;

    if (unlikely(!plain(path)) && (found = slow_path(dirfd, path, shadow)) != PATH_OTHER) {
        return open_ours(found, shadow, flags, mode);
    }
    fd = NEXT(openat)(dirfd, path, flags, mode);
    if (unlikely(fd < 0) && !(flags & O_NOFOLLOW) && (found = refused(dirfd, path, shadow)) != PATH_OTHER) {
        return open_ours(found, shadow, flags, mode);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list list)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

#define OPEN(name) \
    EXPORT int name(const char *path, int flags, ...) \
    { \
        va_list list; \
        mode_t mode; \
        va_start(list, flags); \
        mode = mode_of(flags, list); \
        va_end(list); \
        return open_at(AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(name) \
    EXPORT int name(int dirfd, const char *path, int flags, ...) \
    { \
        va_list list; \
        mode_t mode; \
        va_start(list, flags); \
        mode = mode_of(flags, list); \
        va_end(list); \
        return open_at(dirfd, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
/* What open() becomes in a program compiled with _FORTIFY_SOURCE; our copies of those programs' symbols. */
EXPORT int __open_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags, 0);
}
EXPORT int __open64_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags, 0);
}
EXPORT int __openat_2(int dirfd, const char *path, int flags)
{
    return open_at(dirfd, path, flags, 0);
}
EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
    return open_at(dirfd, path, flags, 0);
}

static FILE *stream_of_kvm(const char *mode)
{
    int fd, flags = strchr(mode, '+') ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;

    fd = open_kvm(flags | (strchr(mode, 'e') ? O_CLOEXEC : 0));
    return fd < 0 ? NULL : fdopen(fd, mode);
}

static FILE *stream(const char *path, const char *mode, FILE *(*next)(const char *, const char *))
{
    enum path found = PATH_OTHER;
    char shadow[PATH_MAX];
    FILE *file;

    if (unlikely(!plain(path))) {
        found = slow_path(AT_FDCWD, path, shadow);
    }
    if (found == PATH_OTHER) {
        file = next(path, mode);
        if (file || (found = refused(AT_FDCWD, path, shadow)) == PATH_OTHER) {
            return file;
        }
    }
    return found == PATH_KVM ? stream_of_kvm(mode) : next(shadow, mode);
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    return stream(path, mode, NEXT(fopen));
}
EXPORT FILE *fopen64(const char *path, const char *mode)
{
    return stream(path, mode, NEXT(fopen64));
}

/* The stream keeps its descriptor's number, as with any file. */
static FILE *reopen(const char *path, const char *mode, FILE *old, FILE *(*next)(const char *, const char *, FILE *))
{
    enum path found = PATH_OTHER;
    char shadow[PATH_MAX];
    FILE *file;
    int fd;

    if (path && unlikely(!plain(path))) {
        found = slow_path(AT_FDCWD, path, shadow);
    }
    if (found != PATH_KVM) {
        return next(found == PATH_SHADOW ? shadow : path, mode, old);
    }
    fd = open_kvm(O_RDWR | O_CLOEXEC);
    file = next("/dev/null", mode, old);
    if (fd >= 0 && file && dup3(fd, fileno(file), strchr(mode, 'e') ? O_CLOEXEC : 0) < 0) {
        fclose(file);
        file = NULL;
    }
    if (fd >= 0) {
        close(fd);
    } else if (file) {
        fclose(file);
        file = NULL;
    }
    return file;
}

EXPORT FILE *freopen(const char *path, const char *mode, FILE *old)
{
    return reopen(path, mode, old, NEXT(freopen));
}
EXPORT FILE *freopen64(const char *path, const char *mode, FILE *old)
{
    return reopen(path, mode, old, NEXT(freopen64));
}

EXPORT int creat(const char *path, mode_t mode)
{
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode)
{
    return creat(path, mode);
}

/* ---- stat and access ---- */

static int device_status(struct stat *status)
{
    int error = errno;

    if (NEXT(stat)("/dev/kvm", status)) { /* the machine has none */
        memset(status, 0, sizeof(*status));
        status->st_nlink = 1;
        status->st_blksize = 4096;
        status->st_ino = 232;
    }
    status->st_mode = S_IFCHR | 0666;
    status->st_rdev = makedev(10, 232);
    errno = error;
    return 0;
}

/* The answer about a path that is ours by name, or by a link that the machine's kernel cannot follow: else its own. */
#define LOOK(dirfd, path, follows, on_other, on_kvm, on_shadow) \
    { \
        enum path found = PATH_OTHER; \
        char shadow[PATH_MAX]; \
        int result = -1; \
        if (unlikely(!plain(path))) { \
            found = slow_path(dirfd, path, shadow); \
        } \
        if (found == PATH_OTHER) { \
            result = on_other; \
            if (unlikely(result) && (follows)) { \
                found = refused(dirfd, path, shadow); \
            } \
        } \
        return found == PATH_KVM ? on_kvm : found == PATH_SHADOW ? on_shadow : result; \
    }

EXPORT int stat(const char *path, struct stat *status)
{
    LOOK(AT_FDCWD, path, true, NEXT(stat)(path, status), device_status(status), NEXT(stat)(shadow, status));
}

EXPORT int lstat(const char *path, struct stat *status)
{
    LOOK(AT_FDCWD, path, false, NEXT(lstat)(path, status), device_status(status), NEXT(stat)(shadow, status));
}

/* KVM's other files have an inode without a type or a size; a guest_memfd has both. */
static bool is_anonymous(int fd)
{
    return kind_of(fd) == OURS || kind_of(fd) == STATISTICS || kind_of(fd) == MEMORY;
}

static void make_anonymous(int fd, struct stat *status)
{
    bool typed = kind_of(fd) == MEMORY;

    status->st_mode = (typed ? S_IFREG : 0) | S_IRUSR | S_IWUSR;
    status->st_size = typed ? status->st_size : 0;
    status->st_nlink = 1;
    status->st_blocks = 0;
}

EXPORT int fstatat(int dirfd, const char *path, struct stat *status, int flags)
{
    if (unlikely(is_device(dirfd) || is_anonymous(dirfd)) && !inside && !*path && flags & AT_EMPTY_PATH) {
        return fstat(dirfd, status);
    }
    LOOK(dirfd, path, !(flags & AT_SYMLINK_NOFOLLOW), NEXT(fstatat)(dirfd, path, status, flags), device_status(status),
         NEXT(fstatat)(AT_FDCWD, shadow, status, 0));
}

EXPORT int fstat(int fd, struct stat *status)
{
    int result;

    if (unlikely(is_device(fd)) && !inside) {
        return device_status(status);
    }
    result = NEXT(fstat)(fd, status);
    if (unlikely(is_anonymous(fd)) && !result) {
        make_anonymous(fd, status);
    }
    return result;
}

/* struct stat64 is struct stat on x86-64; the functions differ by name only. */
EXPORT int stat64(const char *path, struct stat64 *status)
{
    return stat(path, (struct stat *)status);
}
EXPORT int lstat64(const char *path, struct stat64 *status)
{
    return lstat(path, (struct stat *)status);
}
EXPORT int fstat64(int fd, struct stat64 *status)
{
    return fstat(fd, (struct stat *)status);
}
EXPORT int fstatat64(int dirfd, const char *path, struct stat64 *status, int flags)
{
    return fstatat(dirfd, path, (struct stat *)status, flags);
}

static int device_statx(struct statx *to)
{
    struct stat status;

    device_status(&status);
    memset(to, 0, sizeof(*to));
    to->stx_mask = STATX_BASIC_STATS;
    to->stx_mode = status.st_mode;
    to->stx_nlink = status.st_nlink;
    to->stx_uid = status.st_uid;
    to->stx_gid = status.st_gid;
    to->stx_ino = status.st_ino;
    to->stx_blksize = status.st_blksize;
    to->stx_dev_major = major(status.st_dev);
    to->stx_dev_minor = minor(status.st_dev);
    to->stx_rdev_major = 10;
    to->stx_rdev_minor = 232;
    return 0;
}

EXPORT int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *status)
{
    if (unlikely(is_device(dirfd)) && !inside && !*path && flags & AT_EMPTY_PATH) {
        return device_statx(status);
    }
    if (unlikely(is_anonymous(dirfd)) && !*path && flags & AT_EMPTY_PATH) {
        int result = NEXT(statx)(dirfd, path, flags, mask, status);

        if (!result) {
            status->stx_mode = (kind_of(dirfd) == MEMORY ? S_IFREG : 0) | S_IRUSR | S_IWUSR;
            status->stx_size = kind_of(dirfd) == MEMORY ? status->stx_size : 0;
            status->stx_nlink = 1;
            status->stx_blocks = 0;
        }
        return result;
    }
    LOOK(dirfd, path, !(flags & AT_SYMLINK_NOFOLLOW), NEXT(statx)(dirfd, path, flags, mask, status),
         device_statx(status), NEXT(statx)(AT_FDCWD, shadow, flags, mask, status));
}

static int device_access(int mode)
{
    if (mode & X_OK) {
        errno = EACCES;
        return -1;
    }
    return 0;
}

EXPORT int access(const char *path, int mode)
{
    LOOK(AT_FDCWD, path, true, NEXT(access)(path, mode), device_access(mode), NEXT(access)(shadow, mode));
}

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
    LOOK(dirfd, path, !(flags & AT_SYMLINK_NOFOLLOW), NEXT(faccessat)(dirfd, path, mode, flags), device_access(mode),
         NEXT(faccessat)(AT_FDCWD, shadow, mode, flags));
}

EXPORT int euidaccess(const char *path, int mode)
{
    LOOK(AT_FDCWD, path, true, NEXT(euidaccess)(path, mode), device_access(mode), NEXT(euidaccess)(shadow, mode));
}

EXPORT int eaccess(const char *path, int mode)
{
    return euidaccess(path, mode);
}

/* ---- syscall(2), for what libc has no function for or programs write themselves ---- */

/* Whether clone() or clone3() makes a child with a copy of the memory, on the same stack. */
static bool copies(long number, long a, long b)
{
    const uint64_t *arguments = (const uint64_t *)a; /* struct clone_args: flags first, the stack is its sixth word */

    return number == SYS_fork || (number == SYS_clone && !(a & CLONE_VM) && !b) ||
           (number == SYS_clone3 && (size_t)b >= 6 * sizeof(*arguments) && !(arguments[0] & CLONE_VM) && !arguments[5]);
}

EXPORT long syscall(long number, ...)
{
    long a, b, c, d, e, f, result;
    char shadow[PATH_MAX];
    va_list list;

    va_start(list, number);
    a = va_arg(list, long);
    b = va_arg(list, long);
    c = va_arg(list, long);
    d = va_arg(list, long);
    e = va_arg(list, long);
    f = va_arg(list, long);
    va_end(list);
    if (!inside) {
        switch (number) {
        case SYS_rt_sigaction:
            return raw_action(a, (const void *)b, (void *)c, d);
        case SYS_open:
            return open_at(AT_FDCWD, (const char *)a, b, c);
        case SYS_openat:
            return open_at(a, (const char *)b, c, d);
        case SYS_openat2: /* struct open_how: flags, mode, resolve */
            if (!plain((const char *)b) && slow_path(a, (const char *)b, shadow) != PATH_OTHER) {
                return open_at(a, (const char *)b, ((uint64_t *)c)[0], ((uint64_t *)c)[1]);
            }
            break;
        case SYS_close:
            return close(a);
        case SYS_ioctl:
            return ioctl(a, b, c);
        case SYS_dup:
            return dup(a);
        case SYS_dup2:
            return dup2(a, b);
        case SYS_dup3:
            return dup3(a, b, c);
        case SYS_mmap:
            return (long)mmap((void *)a, b, c, d, e, f);
        case SYS_munmap:
            return munmap((void *)a, b);
        case SYS_mremap:
            return (long)mremap((void *)a, b, c, d, (void *)e);
        case SYS_mprotect:
            return mprotect((void *)a, b, c);
        case SYS_madvise:
            return madvise((void *)a, b, c);
        case SYS_mlockall:
            return mlockall(a);
        case SYS_fcntl:
            return fcntl(a, b, c);
        case SYS_close_range:
            return close_range(a, b, c);
        case SYS_fallocate:
            return fallocate(a, b, c, d);
        case SYS_ftruncate:
            return ftruncate(a, b);
        case SYS_fsync:
            return fsync(a);
        case SYS_fdatasync:
            return fdatasync(a);
        case SYS_lseek:
            return lseek(a, b, c);
        case SYS_read:
            if (kind_of(a) != NOT_OURS) {
                return read(a, (void *)b, c);
            }
            break;
        case SYS_write:
            if (kind_of(a) != NOT_OURS) {
                return write(a, (const void *)b, c);
            }
            break;
        }
    }
    result = !inside && copies(number, a, b) ? forked(number, a, b, c, d, e) : raw(number, a, b, c, d, e, f);
    if (result < 0 && result > -4096) {
        errno = -result;
        return -1;
    }
    return result;
}
