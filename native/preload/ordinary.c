/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ordinary calls on KVM's descriptors, which refuse most of them. Behind our numbers are memfds, which would do them: a
 * program would see a length, a position and contents where Linux has none.
 *
 * What is refused how follows from the operations that KVM's files have (kvm_chardev_ops, kvm_vm_fops, kvm_vcpu_fops,
 * kvm_gmem_fops, kvm_vm_stats_fops) and from inodes without a type.
 */
#include "preload.h"
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PAGE 4096ul
#define SEEK_MOST 4 /* SEEK_MAX of linux/fs.h */

/* ---- contents ---- */

ssize_t __read_chk(int fd, void *to, size_t size, size_t room); /* what read() is with _FORTIFY_SOURCE */

/* Of KVM's files only statistics can be read, and none can be written, whatever the size: the error, 0 for none. VMs
 * and vCPUs have no position either, where the device has one. */
static int no_transfer(int fd, bool reads, bool at)
{
    enum kind kind = kind_of(fd);

    if (kind == NOT_OURS || (reads && kind == STATISTICS)) {
        return 0;
    }
    if (kind == STATISTICS && !at) {
        return -EBADF; /* open for reading only */
    }
    return at && kind != DEVICE ? -ESPIPE : -EINVAL;
}

#define TRANSFER(name, reads, positional, parameters, ...) \
    EXPORT ssize_t name parameters \
    { \
        int error = no_transfer(fd, reads, positional); \
        return error ? answer(error) : NEXT(name)(__VA_ARGS__); \
    }

TRANSFER(read, true, false, (int fd, void *to, size_t size), fd, to, size)
TRANSFER(__read_chk, true, false, (int fd, void *to, size_t size, size_t room), fd, to, size, room)
TRANSFER(readv, true, false, (int fd, const struct iovec *to, int count), fd, to, count)
TRANSFER(pread, true, true, (int fd, void *to, size_t size, off_t at), fd, to, size, at)
TRANSFER(pread64, true, true, (int fd, void *to, size_t size, off64_t at), fd, to, size, at)
TRANSFER(write, false, false, (int fd, const void *from, size_t size), fd, from, size)
TRANSFER(writev, false, false, (int fd, const struct iovec *from, int count), fd, from, count)
TRANSFER(pwrite, false, true, (int fd, const void *from, size_t size, off_t at), fd, from, size, at)
TRANSFER(pwrite64, false, true, (int fd, const void *from, size_t size, off64_t at), fd, from, size, at)
TRANSFER(preadv, true, true, (int fd, const struct iovec *to, int count, off_t at), fd, to, count, at)
TRANSFER(preadv64, true, true, (int fd, const struct iovec *to, int count, off64_t at), fd, to, count, at)
TRANSFER(pwritev, false, true, (int fd, const struct iovec *from, int count, off_t at), fd, from, count, at)
TRANSFER(pwritev64, false, true, (int fd, const struct iovec *from, int count, off64_t at), fd, from, count, at)

/* These take -1 for the file's own position. */
#define TRANSFER_ANYWHERE(name, reads, offset) \
    TRANSFER(name, reads, at != -1, (int fd, const struct iovec *buffers, int count, offset at, int flags), fd, \
             buffers, count, at, flags)

TRANSFER_ANYWHERE(preadv2, true, off_t)
TRANSFER_ANYWHERE(preadv64v2, true, off64_t)
TRANSFER_ANYWHERE(pwritev2, false, off_t)
TRANSFER_ANYWHERE(pwritev64v2, false, off64_t)

/* From one file to another: KVM's have none of the operations that the kernel would use for it. */
static int no_copy(int in, bool at, int out)
{
    if (kind_of(in) == NOT_OURS && kind_of(out) == NOT_OURS) {
        return 0;
    }
    if (kind_of(out) == STATISTICS) {
        return -EBADF;
    }
    return at && (kind_of(in) == OURS || kind_of(in) == MEMORY) ? -ESPIPE : -EINVAL;
}

EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t size)
{
    int error = no_copy(in, at, out);

    return error ? answer(error) : NEXT(sendfile)(out, in, at, size);
}

EXPORT ssize_t sendfile64(int out, int in, off64_t *at, size_t size)
{
    return sendfile(out, in, at, size);
}

EXPORT ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    int error = no_copy(in, false, out);

    return error ? answer(error) : NEXT(splice)(in, in_at, out, out_at, size, flags);
}

/* A guest_memfd counts as a file, of a file system of its own. */
static bool is_regular(int fd)
{
    struct stat status;

    return kind_of(fd) == MEMORY || (kind_of(fd) == NOT_OURS && !fstat(fd, &status) && S_ISREG(status.st_mode));
}

EXPORT ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    bool ours = kind_of(in) != NOT_OURS || kind_of(out) != NOT_OURS;
    int error = !ours ? 0 : is_regular(in) && is_regular(out) ? -EXDEV : -EINVAL;

    return error ? answer(error) : NEXT(copy_file_range)(in, in_at, out, out_at, size, flags);
}

/* ---- length and position ---- */

static int no_call(int fd)
{
    return kind_of(fd) == NOT_OURS ? 0 : -EINVAL;
}

#define REFUSED(name, error, type, parameters, ...) \
    EXPORT type name parameters \
    { \
        int refused = error; \
        return refused ? answer(refused) : NEXT(name)(__VA_ARGS__); \
    }

REFUSED(ftruncate, no_call(fd), int, (int fd, off_t length), fd, length)
REFUSED(ftruncate64, no_call(fd), int, (int fd, off64_t length), fd, length)
REFUSED(fsync, no_call(fd), int, (int fd), fd)
REFUSED(fdatasync, no_call(fd), int, (int fd), fd)
REFUSED(readahead, no_call(fd), ssize_t, (int fd, off64_t at, size_t size), fd, at, size)
REFUSED(sync_file_range, no_call(fd) && kind_of(fd) != MEMORY ? -ESPIPE : 0, int,
        (int fd, off64_t at, off64_t size, unsigned flags), fd, at, size, flags)

/* libc's fallocate() for it is not ours. Where there is none it would read. */
EXPORT int posix_fallocate(int fd, off_t offset, off_t length)
{
    int before = errno, error;

    if (kind_of(fd) == NOT_OURS) {
        return NEXT(posix_fallocate)(fd, offset, length);
    }
    error = fallocate(fd, 0, offset, length) ? errno : 0;
    errno = before;
    return error == EOPNOTSUPP ? ESPIPE : error;
}

EXPORT int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return posix_fallocate(fd, offset, length);
}

/* noop_llseek(): the position stays where it is. A guest_memfd has none. */
EXPORT off_t lseek(int fd, off_t offset, int whence)
{
    enum kind kind = kind_of(fd);

    if (kind == NOT_OURS) {
        return NEXT(lseek)(fd, offset, whence);
    }
    if ((unsigned)whence > SEEK_MOST) {
        return answer(-EINVAL);
    }
    return kind == MEMORY ? answer(-ESPIPE) : RAW(SYS_lseek, fd, 0, SEEK_CUR);
}

EXPORT off64_t lseek64(int fd, off64_t offset, int whence)
{
    return lseek(fd, offset, whence);
}

/* ---- the file ---- */

int no_command(int fd, int command, long argument)
{
    enum kind kind = kind_of(fd);

    if (command == F_SETFL && argument & O_DIRECT) {
        return kind == NOT_OURS ? 0 : -EINVAL;
    }
    if (kind == NOT_OURS || (command != F_ADD_SEALS && command != F_GET_SEALS && command != F_SETLEASE)) {
        return 0;
    }
    if (command == F_SETLEASE) {
        return kind == MEMORY ? 0 : -EINVAL;
    }
    return kind == STATISTICS && command == F_ADD_SEALS ? -EPERM : -EINVAL;
}

/* Anonymous inodes have nothing that could be changed (anon_inode_setattr, kvm_gmem_setattr). The device's node is the
 * machine's. */
static int no_change(int fd)
{
    enum kind kind = kind_of(fd);

    return kind == MEMORY ? -EINVAL : kind == OURS || kind == STATISTICS ? -EOPNOTSUPP : 0;
}

REFUSED(fchmod, no_change(fd), int, (int fd, mode_t mode), fd, mode)
REFUSED(fchown, no_change(fd), int, (int fd, uid_t owner, gid_t group), fd, owner, group)
REFUSED(futimens, no_change(fd), int, (int fd, const struct timespec times[2]), fd, times)
REFUSED(futimes, no_change(fd), int, (int fd, const struct timeval times[2]), fd, times)

/* Extended attributes of users belong to files and directories only (xattr_permission); a guest_memfd's inode has no
 * operation for any. */
static int no_attribute(int fd, const char *name, int error)
{
    enum kind kind = kind_of(fd);

    if (kind == NOT_OURS || (kind == DEVICE && name && strncmp(name, "user.", 5))) {
        return 0;
    }
    return kind == MEMORY || (name && strncmp(name, "user.", 5)) ? -EOPNOTSUPP : error;
}

REFUSED(fsetxattr, no_attribute(fd, name, -EPERM), int,
        (int fd, const char *name, const void *value, size_t size, int flags), fd, name, value, size, flags)
REFUSED(fremovexattr, no_attribute(fd, name, -EPERM), int, (int fd, const char *name), fd, name)
REFUSED(fgetxattr, no_attribute(fd, name, -ENODATA), ssize_t, (int fd, const char *name, void *value, size_t size), fd,
        name, value, size)

EXPORT ssize_t flistxattr(int fd, char *list, size_t size)
{
    return kind_of(fd) != NOT_OURS && kind_of(fd) != DEVICE ? 0 : NEXT(flistxattr)(fd, list, size);
}

EXPORT int name_to_handle_at(int dirfd, const char *path, struct file_handle *handle, int *mount, int flags)
{
    bool ours = kind_of(dirfd) != NOT_OURS && kind_of(dirfd) != DEVICE && path && !*path && flags & AT_EMPTY_PATH;

    return ours ? answer(-EOPNOTSUPP) : NEXT(name_to_handle_at)(dirfd, path, handle, mount, flags);
}

/* simple_statfs() of the file system of anonymous inodes. */
EXPORT int fstatfs(int fd, struct statfs *status)
{
    int result = NEXT(fstatfs)(fd, status);

    if (!result && kind_of(fd) != NOT_OURS && kind_of(fd) != DEVICE) {
        *status = (struct statfs){ .f_type = ANON_INODE_FS_MAGIC,
                                   .f_fsid = status->f_fsid,
                                   .f_bsize = PAGE,
                                   .f_frsize = PAGE,
                                   .f_namelen = NAME_MAX,
                                   .f_flags = status->f_flags };
    }
    return result;
}

EXPORT int fstatfs64(int fd, struct statfs64 *status)
{
    return fstatfs(fd, (struct statfs *)status); /* the same on x86-64 */
}

/* ---- the name below /proc/self/fd ---- */

#define BEFORE "/memfd:"
#define BEHIND " (deleted)"
#define LENGTH(text) (sizeof(text) - 1)

/* What the link says of one of ours is a memfd's name. `length` bytes are at `to`, of at most `room`. */
static ssize_t renamed(int dirfd, const char *path, char *to, ssize_t length, size_t room)
{
    char whole[PATH_MAX];
    ssize_t size;

    if (likely(length <= 0 || *to != '/') || inside || strncmp(to, BEFORE, MIN((size_t)length, LENGTH(BEFORE)))) {
        return length;
    }
    size = RAW(SYS_readlinkat, dirfd, path, whole, sizeof(whole) - 1);
    if (size < (ssize_t)LENGTH(BEFORE BEHIND)) {
        return length;
    }
    whole[size] = 0;
    if (strncmp(whole, BEFORE "anon_inode:", LENGTH(BEFORE "anon_inode:")) && strcmp(whole, BEFORE "/dev/kvm" BEHIND)) {
        return length;
    }
    size -= LENGTH(BEFORE BEHIND);
    if (size > (ssize_t)room) {
        size = room;
    }
    memcpy(to, whole + LENGTH(BEFORE), size);
    return size;
}

EXPORT ssize_t readlink(const char *path, char *to, size_t room)
{
    return renamed(AT_FDCWD, path, to, NEXT(readlink)(path, to, room), room);
}

EXPORT ssize_t readlinkat(int dirfd, const char *path, char *to, size_t room)
{
    return renamed(dirfd, path, to, NEXT(readlinkat)(dirfd, path, to, room), room);
}

ssize_t __readlink_chk(const char *path, char *to, size_t size, size_t room); /* with _FORTIFY_SOURCE */
ssize_t __readlinkat_chk(int dirfd, const char *path, char *to, size_t size, size_t room);

EXPORT ssize_t __readlink_chk(const char *path, char *to, size_t size, size_t room)
{
    return renamed(AT_FDCWD, path, to, NEXT(__readlink_chk)(path, to, size, room), size);
}

EXPORT ssize_t __readlinkat_chk(int dirfd, const char *path, char *to, size_t size, size_t room)
{
    return renamed(dirfd, path, to, NEXT(__readlinkat_chk)(dirfd, path, to, size, room), size);
}

/* Before the file is asked: the order is that of mmap(2). */
int no_mapping(int fd, int protection, int flags, off_t offset)
{
    enum kind kind = kind_of(fd);

    if (offset % PAGE) {
        return -EINVAL;
    }
    if (kind == STATISTICS && (flags & MAP_SHARED) && (protection & PROT_WRITE)) {
        return -EACCES;
    }
    return kind != DEVICE && (protection & PROT_EXEC) ? -EPERM : 0; /* anonymous inodes hold no code */
}

/* do_vfs_ioctl(): what it does not answer itself is KVM's to answer. */
int vfs_ioctl(int fd, unsigned long request, unsigned long argument)
{
    switch (request) {
    case FIOCLEX:
    case FIONCLEX:
    case FIONBIO:
    case FIOASYNC:
    case FIGETBSZ:
    case FIFREEZE:
    case FITHAW:
    case FIDEDUPERANGE:
        return answer(RAW(SYS_ioctl, fd, request, argument));
    case FIOQSIZE:
        return answer(-ENOTTY);
    case FS_IOC_FIEMAP:
        return answer(-EOPNOTSUPP);
    case FICLONE:
    case FICLONERANGE:
        return answer(-EXDEV);
    }
    return kvm_ioctl(fd, request, argument);
}
