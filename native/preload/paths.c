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

/* ---- open ---- */

static int open_at(int dirfd, const char *path, int flags, mode_t mode)
{
    char shadow[PATH_MAX];

    if (unlikely(!plain(path)) && !(flags & O_PATH)) {
        switch (slow_path(dirfd, path, shadow)) {
        case PATH_KVM:
            return open_kvm(flags);
        case PATH_SHADOW:
            return NEXT(openat)(AT_FDCWD, shadow, flags, mode);
        case PATH_OTHER:
            break;
        }
    }
    return NEXT(openat)(dirfd, path, flags, mode);
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

static FILE *stream(const char *path, const char *mode, FILE *(*next)(const char *, const char *))
{
    char shadow[PATH_MAX];
    FILE *file;
    int fd, flags;

    if (unlikely(!plain(path))) {
        switch (slow_path(AT_FDCWD, path, shadow)) {
        case PATH_KVM:
            flags = strchr(mode, '+') ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;
            fd = open_kvm(flags | (strchr(mode, 'e') ? O_CLOEXEC : 0));
            file = fd < 0 ? NULL : fdopen(fd, mode);
            return file;
        case PATH_SHADOW:
            return next(shadow, mode);
        case PATH_OTHER:
            break;
        }
    }
    return next(path, mode);
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    return stream(path, mode, NEXT(fopen));
}
EXPORT FILE *fopen64(const char *path, const char *mode)
{
    return stream(path, mode, NEXT(fopen64));
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

#define LOOK(dirfd, path, on_kvm, on_shadow) \
    if (unlikely(!plain(path))) { \
        char shadow[PATH_MAX]; \
        enum path found = slow_path(dirfd, path, shadow); \
        if (found == PATH_KVM) { \
            return on_kvm; \
        } \
        if (found == PATH_SHADOW) { \
            return on_shadow; \
        } \
    }

EXPORT int stat(const char *path, struct stat *status)
{
    LOOK(AT_FDCWD, path, device_status(status), NEXT(stat)(shadow, status))
    return NEXT(stat)(path, status);
}

EXPORT int lstat(const char *path, struct stat *status)
{
    LOOK(AT_FDCWD, path, device_status(status), NEXT(stat)(shadow, status))
    return NEXT(lstat)(path, status);
}

EXPORT int fstatat(int dirfd, const char *path, struct stat *status, int flags)
{
    if (unlikely(is_device(dirfd)) && !inside && !*path && flags & AT_EMPTY_PATH) {
        return device_status(status);
    }
    LOOK(dirfd, path, device_status(status), NEXT(fstatat)(AT_FDCWD, shadow, status, 0))
    return NEXT(fstatat)(dirfd, path, status, flags);
}

EXPORT int fstat(int fd, struct stat *status)
{
    if (unlikely(is_device(fd)) && !inside) {
        return device_status(status);
    }
    return NEXT(fstat)(fd, status);
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
    LOOK(dirfd, path, device_statx(status), NEXT(statx)(AT_FDCWD, shadow, flags, mask, status))
    return NEXT(statx)(dirfd, path, flags, mask, status);
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
    LOOK(AT_FDCWD, path, device_access(mode), NEXT(access)(shadow, mode))
    return NEXT(access)(path, mode);
}

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
    LOOK(dirfd, path, device_access(mode), NEXT(faccessat)(AT_FDCWD, shadow, mode, flags))
    return NEXT(faccessat)(dirfd, path, mode, flags);
}

EXPORT int euidaccess(const char *path, int mode)
{
    LOOK(AT_FDCWD, path, device_access(mode), NEXT(euidaccess)(shadow, mode))
    return NEXT(euidaccess)(path, mode);
}

EXPORT int eaccess(const char *path, int mode)
{
    return euidaccess(path, mode);
}

/* ---- syscall(2), for what libc has no function for or programs write themselves ---- */

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
        case SYS_fallocate:
            return fallocate(a, b, c, d);
        }
    }
    result = raw(number, a, b, c, d, e, f);
    if (result < 0 && result > -4096) {
        errno = -result;
        return -1;
    }
    return result;
}
