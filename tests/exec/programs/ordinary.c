/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ordinary system calls on KVM's descriptors: a line for each call, with what it gives for /dev/kvm, a VM, a vCPU, a
 * guest_memfd and statistics. An argument names a set of calls.
 */
#include "kvm.h"
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/poll.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_CREATE_GUEST_MEMFD _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, 64)
#endif
#ifndef KVM_GET_STATS_FD
#define KVM_GET_STATS_FD _IO(KVMIO, 0xce)
#endif
#define KINDS 5

static char buffer[4096];
static struct iovec piece = { buffer, 16 };
static int pipes[2], file, other_epoll;

static const char *name_of(int number)
{
    static char text[32];

    switch (number) {
    case EPERM:
        return "EPERM";
    case ENXIO:
        return "ENXIO";
    case EBADF:
        return "EBADF";
    case EAGAIN:
        return "EAGAIN";
    case EACCES:
        return "EACCES";
    case EFAULT:
        return "EFAULT";
    case ENODEV:
        return "ENODEV";
    case ENOTDIR:
        return "ENOTDIR";
    case EISDIR:
        return "EISDIR";
    case EINVAL:
        return "EINVAL";
    case ENOTTY:
        return "ENOTTY";
    case ESPIPE:
        return "ESPIPE";
    case ENODATA:
        return "ENODATA";
    case ENOTSOCK:
        return "ENOTSOCK";
    case EOPNOTSUPP:
        return "EOPNOTSUPP";
    case ENOSYS:
        return "ENOSYS";
    case EIO:
        return "EIO";
    case ELOOP:
        return "ELOOP";
    case EXDEV:
        return "EXDEV";
    case EFBIG:
        return "EFBIG";
    case ENOENT:
        return "ENOENT";
    case EBUSY:
        return "EBUSY";
    }
    snprintf(text, sizeof(text), "errno-%d", number);
    return text;
}

typedef long call_fn(int fd);
#define CALL(name, expression) \
    static long call_##name(int fd) \
    { \
        return (expression); \
    }

/* length and contents */
CALL(ftruncate_0, ftruncate(fd, 0))
CALL(ftruncate_page, ftruncate(fd, 4096))
CALL(ftruncate_negative, ftruncate(fd, -1))
CALL(fsync, fsync(fd))
CALL(fdatasync, fdatasync(fd))
CALL(sync_file_range, sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE))
CALL(lseek_set, lseek(fd, 5, SEEK_SET))
CALL(lseek_current, lseek(fd, 0, SEEK_CUR))
CALL(lseek_end, lseek(fd, 0, SEEK_END))
CALL(lseek_data, lseek(fd, 0, SEEK_DATA))
CALL(lseek_unknown, lseek(fd, 0, 77))
CALL(fadvise, -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
CALL(readahead, readahead(fd, 0, 4096))
CALL(fallocate, fallocate(fd, 0, 0, 4096))
CALL(fallocate_negative, fallocate(fd, 0, -1, 4096))
CALL(fallocate_unknown, fallocate(fd, 0x8000, 0, 4096))
CALL(posix_fallocate, -posix_fallocate(fd, 0, 4096))
CALL(read, read(fd, buffer, 0))
CALL(pread, pread(fd, buffer, 0, 0))
CALL(write, write(fd, buffer, 8))
CALL(pwrite, pwrite(fd, buffer, 8, 0))
CALL(readv, readv(fd, &piece, 0))
CALL(writev, writev(fd, &piece, 1))
CALL(tee, tee(fd, pipes[1], 16, 0))
CALL(vmsplice, vmsplice(fd, &piece, 1, 0))
CALL(sendfile_to, sendfile(fd, file, NULL, 16))
CALL(splice_to, splice(pipes[0], NULL, fd, NULL, 8, 0))
CALL(copy_to, copy_file_range(file, NULL, fd, NULL, 16, 0))
static long by_clone(int fd)
{
    return ioctl(fd, FICLONE, file);
}

/* memory */
static long mapped(int fd, int protection, int flags, off_t offset)
{
    void *at = mmap(NULL, 4096, protection, flags, fd, offset);

    if (at == MAP_FAILED) {
        return -1;
    }
    munmap(at, 4096);
    return 0;
}
CALL(mmap_shared, mapped(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0))
CALL(mmap_validated, mapped(fd, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, 0))
CALL(mmap_private, mapped(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0))
CALL(mmap_read, mapped(fd, PROT_READ, MAP_SHARED, 0))
CALL(mmap_code, mapped(fd, PROT_READ | PROT_EXEC, MAP_SHARED, 0))
CALL(mmap_uneven, mapped(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 1))

/* what the file is */
CALL(fchdir, fchdir(fd))
CALL(getdents, syscall(SYS_getdents64, fd, buffer, sizeof(buffer)))
CALL(linkat, linkat(fd, "", AT_FDCWD, "/proc/swtdx", AT_EMPTY_PATH))
CALL(fexecve, syscall(322, fd, "", NULL, NULL, AT_EMPTY_PATH))

static long type(int fd)
{
    struct stat status;

    return fstat(fd, &status) ? -1 : (status.st_mode & S_IFMT) >> 12;
}

static long size(int fd)
{
    struct stat status;

    return fstat(fd, &status) ? -1 : status.st_size;
}

/* what the file system knows of it */
static long status_of(int fd, int what)
{
    struct stat s;

    if (fstat(fd, &s)) {
        return -1;
    }
    switch (what) {
    case 0:
        return s.st_mode & (S_IFMT | S_IRWXU); /* who else may open the device is the machine's business */
    case 1:
        return s.st_nlink;
    case 2:
        return s.st_blksize;
    case 3:
        return s.st_blocks;
    }
    return s.st_rdev;
}
CALL(mode, status_of(fd, 0))
CALL(links, status_of(fd, 1))
CALL(block_size, status_of(fd, 2))
CALL(blocks, status_of(fd, 3))
CALL(device, status_of(fd, 4))
CALL(statx_mode, ({
         struct statx s;
         statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &s) ? -1 : s.stx_mode &(S_IFMT | S_IRWXU);
     }))
CALL(fstatat_mode, ({
         struct stat s;
         fstatat(fd, "", &s, AT_EMPTY_PATH) ? -1 : s.st_mode &(S_IFMT | S_IRWXU);
     }))
CALL(statx_links, ({
         struct statx s;
         statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &s) ? -1 : s.stx_nlink;
     }))
CALL(fstatfs, ({
         struct statfs s;
         fstatfs(fd, &s) ? -1 : s.f_type;
     }))
CALL(fchmod, ({
         struct stat s;
         fstat(fd, &s) ? -1 : fchmod(fd, s.st_mode & 07777); /* the machine's device stays as it is */
     }))
CALL(fchown, fchown(fd, -1, -1))
CALL(futimens, futimens(fd, NULL))
CALL(fsetxattr, fsetxattr(fd, "user.a", "b", 1, 0))
CALL(fgetxattr, fgetxattr(fd, "user.a", buffer, 16))
CALL(flistxattr, flistxattr(fd, buffer, sizeof(buffer)))
CALL(fremovexattr, fremovexattr(fd, "user.a"))
CALL(handle, ({
         char h[160] = { 128 };
         int id;
         name_to_handle_at(fd, "", (void *)h, &id, AT_EMPTY_PATH);
     }))
CALL(syncfs, syncfs(fd))

/* locks, which a process takes on its own files */
static long locked(int fd, int command, int type)
{
    struct flock l = { .l_type = type, .l_whence = SEEK_SET };

    return fcntl(fd, command, &l) ? -1 : command == F_GETLK ? l.l_type : 0;
}
CALL(flock_shared, flock(fd, LOCK_SH))
CALL(flock_none, flock(fd, LOCK_UN))
CALL(lock_read, locked(fd, F_SETLK, F_RDLCK))
CALL(lock_write, locked(fd, F_SETLK, F_WRLCK))
CALL(lock_test, locked(fd, F_GETLK, F_WRLCK))
CALL(lockf, lockf(fd, F_TEST, 0))

/* names, and descriptors that come back from elsewhere */
static long named(int fd)
{
    char path[64], name[128];
    long length;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    length = readlink(path, name, sizeof(name));
    printf(" %.*s", (int)length, name);
    return readlinkat(AT_FDCWD, path, name, 8); /* cut short */
}

static long uses(int fd, int from)
{
    long same = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, from, fd);

    if (fd < 0 || same) {
        return same;
    }
    same = ioctl(fd, KVM_CHECK_EXTENSION, 7L);
    close(fd);
    return same < 0 ? -errno : same > 0;
}

static long passed(int fd)
{
    char room[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
    struct iovec v = { &byte, 1 };
    struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    int pair[2], got;

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    *(int *)CMSG_DATA(c) = fd;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || sendmsg(pair[0], &m, 0) != 1 || recvmsg(pair[1], &m, 0) != 1) {
        return -1;
    }
    got = *(int *)CMSG_DATA(CMSG_FIRSTHDR(&m));
    close(pair[0]);
    close(pair[1]);
    return uses(got, fd);
}
CALL(fetched, uses(syscall(438, syscall(434, getpid(), 0), fd, 0), fd)) /* pidfd_getfd, pidfd_open */
CALL(duplicate, uses(fcntl(fd, F_DUPFD, 100), fd))

/* flags, seals and leases */
CALL(F_GETFL, fcntl(fd, F_GETFL) & O_ACCMODE)
CALL(F_SETFL_nonblock, fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
CALL(F_SETFL_append, fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_APPEND))
CALL(F_ADD_SEALS, fcntl(fd, F_ADD_SEALS, F_SEAL_GROW))
CALL(F_GET_SEALS, fcntl(fd, F_GET_SEALS))
CALL(F_SETPIPE_SZ, fcntl(fd, F_SETPIPE_SZ, 4096))
CALL(F_GETPIPE_SZ, fcntl(fd, F_GETPIPE_SZ))
CALL(F_GETFD, fcntl(fd, F_GETFD))
CALL(F_SETFL_direct, fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT))
CALL(F_SETFL_async, fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC))
CALL(F_SETOWN, fcntl(fd, F_SETOWN, getpid()))
CALL(F_SETSIG, fcntl(fd, F_SETSIG, SIGUSR1))
CALL(F_SETLEASE, fcntl(fd, F_SETLEASE, F_RDLCK))
CALL(F_GETLEASE, fcntl(fd, F_GETLEASE))
CALL(F_NOTIFY, fcntl(fd, F_NOTIFY, DN_MODIFY))
CALL(F_unknown, fcntl(fd, 9999))

/* ioctls of the VFS's, and of others */
static long with_int(int fd, unsigned long request)
{
    int value = 0;

    return ioctl(fd, request, &value);
}
CALL(FIONBIO, with_int(fd, FIONBIO))
CALL(FIOASYNC, with_int(fd, FIOASYNC))
CALL(FIOASYNC_on, ({
         int one = 1;
         ioctl(fd, FIOASYNC, &one);
     }))
CALL(FIOCLEX, ioctl(fd, FIOCLEX))
CALL(FIONREAD, with_int(fd, FIONREAD))
CALL(FIGETBSZ, with_int(fd, FIGETBSZ))
CALL(FIOQSIZE, ioctl(fd, 0x5460, buffer))
CALL(FIBMAP, with_int(fd, FIBMAP))
CALL(FS_IOC_GETFLAGS, ioctl(fd, FS_IOC_GETFLAGS, buffer))
CALL(FS_IOC_FIEMAP, ioctl(fd, _IOC(_IOC_READ | _IOC_WRITE, 'f', 11, 32), buffer))
CALL(FICLONE, by_clone(fd))
CALL(TCGETS, ioctl(fd, 0x5401, buffer))
CALL(TIOCGWINSZ, ioctl(fd, 0x5413, buffer))
CALL(SIOCGIFNAME, ioctl(fd, 0x8910, buffer))
CALL(unknown, ioctl(fd, 0xaeff, 0L))

/* waiting */
CALL(poll, ({
         struct pollfd p = { fd, POLLIN | POLLOUT };
         poll(&p, 1, 0) < 0 ? -1 : p.revents;
     }))
CALL(select, ({
         fd_set s;
         struct timeval t = { 0 };
         FD_ZERO(&s);
         FD_SET(fd, &s);
         select(fd + 1, &s, NULL, NULL, &t);
     }))
CALL(epoll, ({
         struct epoll_event e = { EPOLLIN };
         epoll_ctl(other_epoll, EPOLL_CTL_ADD, fd, &e);
     }))
CALL(epoll_wait, ({
         struct epoll_event e;
         epoll_wait(fd, &e, 1, 0);
     }))
CALL(inotify, inotify_add_watch(fd, "/tmp", IN_CREATE))
CALL(signalfd, ({
         sigset_t s;
         sigemptyset(&s);
         signalfd(fd, &s, 0);
     }))
CALL(timerfd, ({
         struct itimerspec t;
         timerfd_gettime(fd, &t);
     }))
CALL(send, send(fd, buffer, 1, 0))
CALL(recv, recv(fd, buffer, 1, MSG_DONTWAIT))
CALL(bind, bind(fd, (struct sockaddr *)buffer, 16))

/* io_uring, one operation at a time, and AIO */
static struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *done;
} ring;

static int set_up_ring(void)
{
    struct io_uring_params p = { 0 };
    char *sq, *cq;

    ring.fd = syscall(SYS_io_uring_setup, 4, &p);
    if (ring.fd < 0) {
        return -1;
    }
    sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
    ring.entries = mmap(NULL, p.sq_entries * 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
    ring.sq_tail = (unsigned *)(sq + p.sq_off.tail);
    ring.sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(sq + p.sq_off.array);
    ring.cq_head = (unsigned *)(cq + p.cq_off.head);
    ring.cq_tail = (unsigned *)(cq + p.cq_off.tail);
    ring.cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    ring.done = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 0;
}

static long ringed(int operation, int fd, uint64_t address, unsigned length, unsigned rest)
{
    unsigned at = *ring.sq_tail & *ring.sq_mask;
    struct io_uring_sqe *entry = &ring.entries[at];
    long result;

    memset(entry, 0, sizeof(*entry));
    entry->opcode = operation;
    entry->fd = fd;
    entry->addr = address;
    entry->len = length;
    entry->rw_flags = rest;
    ring.sq_array[at] = at;
    __atomic_store_n(ring.sq_tail, *ring.sq_tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
        return -1;
    }
    result = ring.done[*ring.cq_head & *ring.cq_mask].res;
    __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
    return result;
}

static long negative(long result)
{
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}
CALL(ring_read, negative(ringed(IORING_OP_READ, fd, (uintptr_t)buffer, 16, 0)))
CALL(ring_readv, negative(ringed(IORING_OP_READV, fd, (uintptr_t)&piece, 1, 0)))
CALL(ring_write, negative(ringed(IORING_OP_WRITE, fd, (uintptr_t)buffer, 8, 0)))
CALL(ring_fsync, negative(ringed(IORING_OP_FSYNC, fd, 0, 0, 0)))
CALL(ring_fallocate, negative(ringed(IORING_OP_FALLOCATE, fd, 4096, 0, 0)))
CALL(ring_poll, negative(ringed(IORING_OP_POLL_ADD, fd, 0, 0, POLLIN | POLLOUT)))
CALL(ring_send, negative(ringed(IORING_OP_SEND, fd, (uintptr_t)buffer, 1, 0)))

static long aio(int fd, int operation)
{
    struct iocb request = { .aio_fildes = fd,
                            .aio_lio_opcode = operation,
                            .aio_buf = (uintptr_t)buffer,
                            .aio_nbytes = 8 },
                *list = &request;
    aio_context_t context = 0;
    long result;

    if (syscall(SYS_io_setup, 1, &context)) {
        return -1;
    }
    result = syscall(SYS_io_submit, context, 1, &list);
    syscall(SYS_io_destroy, context);
    return result;
}
CALL(aio_read, aio(fd, IOCB_CMD_PREAD))
CALL(aio_write, aio(fd, IOCB_CMD_PWRITE))
CALL(aio_fsync, aio(fd, IOCB_CMD_FSYNC))

static const struct {
    const char *set, *name;
    call_fn *call;
} calls[] = {
#define ROW(set, name) { #set, #name, call_##name }
    ROW(contents, ftruncate_0),
    ROW(contents, ftruncate_page),
    ROW(contents, ftruncate_negative),
    ROW(contents, fsync),
    ROW(contents, fdatasync),
    ROW(contents, sync_file_range),
    ROW(contents, fadvise),
    ROW(contents, readahead),
    ROW(contents, fallocate),
    ROW(contents, fallocate_negative),
    ROW(contents, fallocate_unknown),
    ROW(contents, posix_fallocate),
    ROW(position, lseek_set),
    ROW(position, lseek_current),
    ROW(position, lseek_end),
    ROW(position, lseek_data),
    ROW(position, lseek_unknown),
    ROW(transfers, read),
    ROW(transfers, pread),
    ROW(transfers, write),
    ROW(transfers, pwrite),
    ROW(transfers, readv),
    ROW(transfers, writev),
    ROW(transfers, tee),
    ROW(transfers, vmsplice),
    ROW(transfers, sendfile_to),
    ROW(transfers, splice_to),
    ROW(transfers, copy_to),
    ROW(memory, mmap_shared),
    ROW(memory, mmap_validated),
    ROW(memory, mmap_private),
    ROW(memory, mmap_read),
    ROW(memory, mmap_code),
    ROW(memory, mmap_uneven),

    ROW(file, fchdir),
    ROW(file, getdents),
    ROW(file, linkat),
    ROW(file, fexecve),
    { "file", "type", type },
    { "file", "size", size },
    ROW(metadata, mode),
    ROW(metadata, links),
    ROW(metadata, block_size),
    ROW(metadata, blocks),
    ROW(metadata, device),
    ROW(metadata, statx_mode),
    ROW(metadata, fstatat_mode),
    ROW(metadata, statx_links),
    ROW(metadata, fstatfs),
    ROW(metadata, fchmod),
    ROW(metadata, fchown),
    ROW(metadata, futimens),
    ROW(metadata, fsetxattr),
    ROW(metadata, fgetxattr),
    ROW(metadata, flistxattr),
    ROW(metadata, fremovexattr),
    ROW(metadata, handle),
    ROW(metadata, syncfs),
    ROW(locks, flock_shared),
    ROW(locks, flock_none),
    ROW(locks, lock_read),
    ROW(locks, lock_write),
    ROW(locks, lock_test),
    ROW(locks, lockf),
    { "passing", "named", named },
    { "passing", "passed", passed },
    ROW(passing, fetched),
    ROW(passing, duplicate),
    ROW(flags, F_GETFD),
    ROW(flags, F_GETFL),
    ROW(flags, F_SETFL_nonblock),
    ROW(flags, F_SETFL_append),
    ROW(flags, F_SETFL_direct),
    ROW(flags, F_SETFL_async),
    ROW(flags, F_SETOWN),
    ROW(flags, F_SETSIG),
    ROW(flags, F_ADD_SEALS),
    ROW(flags, F_GET_SEALS),
    ROW(flags, F_SETPIPE_SZ),
    ROW(flags, F_GETPIPE_SZ),
    ROW(flags, F_SETLEASE),
    ROW(flags, F_GETLEASE),
    ROW(flags, F_NOTIFY),
    ROW(flags, F_unknown),
    ROW(ioctls, FIONBIO),
    ROW(ioctls, FIOASYNC),
    ROW(ioctls, FIOASYNC_on),
    ROW(ioctls, FIOCLEX),
    ROW(ioctls, FIONREAD),
    ROW(ioctls, FIGETBSZ),
    ROW(ioctls, FIOQSIZE),
    ROW(ioctls, FIBMAP),
    ROW(ioctls, FS_IOC_GETFLAGS),
    ROW(ioctls, FS_IOC_FIEMAP),
    ROW(ioctls, FICLONE),
    ROW(ioctls, TCGETS),
    ROW(ioctls, TIOCGWINSZ),
    ROW(ioctls, SIOCGIFNAME),
    ROW(ioctls, unknown),
    ROW(waiting, poll),
    ROW(waiting, select),
    ROW(waiting, epoll),
    ROW(waiting, epoll_wait),
    ROW(waiting, inotify),
    ROW(waiting, signalfd),
    ROW(waiting, timerfd),
    ROW(waiting, send),
    ROW(waiting, recv),
    ROW(waiting, bind),
    ROW(ring, ring_read),
    ROW(ring, ring_readv),
    ROW(ring, ring_write),
    ROW(ring, ring_fsync),
    ROW(ring, ring_fallocate),
    ROW(ring, ring_poll),
    ROW(ring, ring_send),
    ROW(aio, aio_read),
    ROW(aio, aio_write),
    ROW(aio, aio_fsync),
};

static int made(const char *set)
{
    struct machine m = new_machine(0);
    uint64_t memfd[8] = { 2 * 4096 };
    int fds[KINDS] = { m.kvm, m.vm, m.vcpu, -1, -1 }, found = 0, kind;
    size_t i;

    fds[3] = ioctl(m.vm, KVM_CREATE_GUEST_MEMFD, memfd);
    fds[4] = ioctl(m.vm, KVM_GET_STATS_FD, 0L);
    if (pipe(pipes) || write(pipes[1], "something to read", 17) != 17 || (file = memfd_create("file", 0)) < 0 ||
        write(file, buffer, 64) != 64 || lseek(file, 0, SEEK_SET) || (other_epoll = epoll_create1(0)) < 0) {
        return 2;
    }
    if (!strcmp(set, "shorten")) {
        char path[64];
        int shortened = 0;

        for (kind = 2; kind < KINDS; kind++) {
            snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[kind]);
            shortened += !ftruncate(fds[kind], 0) || !ftruncate(open(path, O_RDWR), 0) || !truncate(path, 0);
        }
        printf("shortened: %d\n", shortened);
        found = 1;
    }
    if (!strcmp(set, "ring") && set_up_ring()) {
        printf("no io_uring\n");
        return 0;
    }
    for (i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
        if (strcmp(set, calls[i].set)) {
            continue;
        }
        found = 1;
        printf("%s", calls[i].name);
        for (kind = 0; kind < KINDS; kind++) {
            long result;

            if (fds[kind] < 0) {
                printf(" -");
                continue;
            }
            errno = 0;
            result = calls[i].call(fds[kind]);
            if (result < -1) { /* these return the error */
                errno = -result;
                result = -1;
            }
            result == -1 ? printf(" %s", name_of(errno)) : printf(" %ld", result);
            fflush(stdout);
        }
        printf("\n");
    }
    printf("then: %s\n", run(&m));
    return found ? 0 : 2;
}

int main(int count, char **arguments)
{
    return made(count > 1 ? arguments[1] : "contents");
}
