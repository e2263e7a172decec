/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The thread that receives what seccomp stops, for swtdx.exec.notify.
 *
 * Until a call is received, a signal tears the program out of it, and the program sees EINTR from calls that never fail
 * so (munmap, fstat). Python cannot receive soon enough: its threads wait for each other. So a thread in C receives at
 * once and does nothing that waits. It answers most calls itself, since most files and most memory are not ours: "let
 * the machine's kernel do it". The rest goes to Python's threads, one of which wakes up for each.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#define NAMES 64
#define RANGES 4096

struct call {
    struct call *next;
    struct seccomp_notif notification;
};

struct range {
    uint64_t start, end;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static struct call *first, **last = &first;
static bool finished;
static int listener = -1;

/* What is ours. Written by Python under the lock, read by the thread under it. */
static char names[NAMES][256];
static int nnames;
static struct range ranges[RANGES];
static int nranges; /* RANGES + 1: too many, all memory may be ours */
static bool links;      /* a link to one of the names is ours, too */
static uint64_t device; /* of our memfds; 0: there are none yet */

/* ---- whether a call can be about something of ours ---- */

/* The path at a program's address; false if there is none. */
static bool read_path(pid_t pid, uint64_t address, char *path, size_t size)
{
    size_t have = 0;

    while (have < size) {
        size_t piece = 256 - (address + have) % 256; /* never across the end of a page */
        struct iovec local = { path + have, piece < size - have ? piece : size - have };
        struct iovec remote = { (void *)(address + have), local.iov_len };

        if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)local.iov_len) {
            return false;
        }
        if (memchr(path + have, 0, local.iov_len)) {
            return true;
        }
        have += local.iov_len;
    }
    return false;
}

static bool is_name(char *path)
{
    size_t length = strlen(path);
    const char *name;
    int i;

    while (length && path[length - 1] == '/') {
        path[--length] = 0;
    }
    name = strrchr(path, '/');
    name = name ? name + 1 : path;
    for (i = 0; i < nnames; i++) {
        if (!strcmp(name, names[i])) {
            return true;
        }
    }
    return false;
}

#define MOST_LINKS 8

/* Whether a path of the program's is a symbolic link to one of the names. `path` is used up. */
static bool is_link(pid_t pid, int directory, char *path)
{
    char at[64 + 2 * 4096], target[4096], *base;
    ssize_t length;
    int depth;

    if (*path == '/') {
        snprintf(at, sizeof(at), "/proc/%d/root%s", pid, path);
    } else if (directory == AT_FDCWD) {
        snprintf(at, sizeof(at), "/proc/%d/cwd/%s", pid, path);
    } else {
        snprintf(at, sizeof(at), "/proc/%d/fd/%d/%s", pid, directory, path);
    }
    for (depth = 0; depth < MOST_LINKS; depth++) {
        length = readlink(at, target, sizeof(target) - 1);
        if (length <= 0) {
            return false;
        }
        target[length] = 0;
        if (is_name(target)) {
            return true;
        }
        base = *target == '/' ? at : strrchr(at, '/') + 1;
        if (*target == '/') {
            base += sprintf(at, "/proc/%d/root", pid);
        }
        if (base - at + strlen(target) >= sizeof(at)) {
            return false;
        }
        strcpy(base, target);
    }
    return false;
}

static bool is_memory(uint64_t start, uint64_t length)
{
    uint64_t end = start + length < start ? UINT64_MAX : start + length;
    int i;

    for (i = 0; i < nranges && i < RANGES; i++) {
        if (ranges[i].start < end && start < ranges[i].end) {
            return true;
        }
    }
    return nranges > RANGES;
}

/* AT_STATX_DONT_SYNC: a file system that programs serve may wait for us. */
static bool is_descriptor(pid_t pid, int fd)
{
    char path[64];
    struct statx status;

    if (!device) {
        return false;
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    return !statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_INO, &status) &&
           makedev(status.stx_dev_major, status.stx_dev_minor) == device;
}

static bool is_path(const struct seccomp_notif *n, int argument, bool may_be_descriptor)
{
    char path[4096];

    if (may_be_descriptor && !n->data.args[argument]) {
        return is_descriptor(n->pid, n->data.args[0]);
    }
    if (!read_path(n->pid, n->data.args[argument], path, sizeof(path))) {
        return false;
    }
    if (may_be_descriptor && !path[0]) {
        return is_descriptor(n->pid, n->data.args[0]);
    }
    return is_name(path) || (links && is_link(n->pid, argument ? (int)n->data.args[0] : AT_FDCWD, path));
}

/* clone3(): whether the child gets a copy of the memory, and runs at once. */
static bool copies_memory(const struct seccomp_notif *n)
{
    uint64_t flags = CLONE_VM;
    struct iovec local = { &flags, sizeof(flags) };
    struct iovec remote = { (void *)n->data.args[0], sizeof(flags) }; /* struct clone_args begins with them */

    process_vm_readv(n->pid, &local, 1, &remote, 1, 0);
    return !(flags & (CLONE_VM | CLONE_VFORK));
}

static bool is_ours(const struct seccomp_notif *n)
{
    const __u64 *args = n->data.args;

    switch (n->data.nr) {
    case SYS_open:
    case SYS_creat:
    case SYS_stat:
    case SYS_lstat:
    case SYS_access:
        return is_path(n, 0, false);
    case SYS_openat:
    case SYS_openat2:
    case SYS_faccessat:
    case SYS_faccessat2:
        return is_path(n, 1, false);
    case SYS_newfstatat:
    case SYS_statx:
        return is_path(n, 1, true);
    case SYS_fstat:
    case SYS_fallocate:
    case SYS_ftruncate:
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_sync_file_range:
    case SYS_readahead:
    case SYS_fcntl:
        return is_descriptor(n->pid, args[0]);
    case SYS_munmap:
    case SYS_mprotect:
    case SYS_pkey_mprotect:
    case SYS_madvise:
        return is_memory(args[0], args[1]);
    case SYS_mremap:
        return is_memory(args[0], args[1] > args[2] ? args[1] : args[2]) || is_memory(args[4], args[2]);
    case SYS_mmap:
        return ((args[3] & MAP_FIXED) && is_memory(args[0], args[1])) ||
               (!(args[3] & MAP_ANONYMOUS) && (args[3] & MAP_SHARED) && is_descriptor(n->pid, args[4]));
    case SYS_fork:
    case SYS_clone:
        return device;
    case SYS_clone3:
        return device && copies_memory(n);
    default:
        return true;
    }
}

/* ---- the thread ---- */

static bool nobody_left(void)
{
    struct pollfd poll_listener = { .fd = listener };

    return poll(&poll_listener, 1, 0) == 1 && (poll_listener.revents & (POLLHUP | POLLNVAL));
}

static void *receive(void *unused)
{
    struct call *call = NULL;

    for (;;) {
        bool ours;

        while (!call && !(call = malloc(sizeof(*call)))) {
            poll(NULL, 0, 1);
        }
        memset(call, 0, sizeof(*call));
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call->notification) < 0) {
            if (nobody_left()) {
                break;
            }
            continue;
        }
        pthread_mutex_lock(&lock);
        ours = is_ours(&call->notification);
        if (ours) {
            *last = call;
            last = &call->next;
            call = NULL;
            pthread_cond_signal(&more);
        }
        pthread_mutex_unlock(&lock);
        if (!ours) {
            struct seccomp_notif_resp response = { .id = call->notification.id,
                                                   .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };

            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
        }
    }
    free(call);
    pthread_mutex_lock(&lock);
    finished = true;
    pthread_cond_broadcast(&more);
    pthread_mutex_unlock(&lock);
    return unused;
}

/* ---- for Python ---- */

static PyObject *start(PyObject *self, PyObject *args)
{
    pthread_t thread;
    sigset_t all, before;
    int error;

    (void)self;
    if (!PyArg_ParseTuple(args, "i", &listener)) {
        return NULL;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, NULL, receive, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_detach(thread);
    Py_RETURN_NONE;
}

static PyObject *take(PyObject *self, PyObject *args)
{
    struct call *call;
    Py_buffer into;
    bool took = false;

    (void)self;
    if (!PyArg_ParseTuple(args, "w*", &into)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&lock);
    while (!first && !finished) {
        pthread_cond_wait(&more, &lock);
    }
    call = first;
    if (call) {
        first = call->next;
        if (!first) {
            last = &first;
        }
    }
    pthread_mutex_unlock(&lock);
    Py_END_ALLOW_THREADS
    if (call && into.len == sizeof(call->notification)) {
        memcpy(into.buf, &call->notification, sizeof(call->notification));
        took = true;
    }
    free(call);
    PyBuffer_Release(&into);
    return PyBool_FromLong(took);
}

static PyObject *set_names(PyObject *self, PyObject *args)
{
    PyObject *list;
    Py_ssize_t i;

    (void)self;
    if (!PyArg_ParseTuple(args, "O!", &PyList_Type, &list)) {
        return NULL;
    }
    if (PyList_Size(list) > NAMES) {
        PyErr_SetString(PyExc_ValueError, "too many names");
        return NULL;
    }
    for (i = 0; i < PyList_Size(list); i++) {
        const char *name = PyBytes_AsString(PyList_GetItem(list, i));

        if (!name) {
            return NULL;
        }
        pthread_mutex_lock(&lock);
        snprintf(names[i], sizeof(names[i]), "%s", name);
        nnames = i + 1;
        pthread_mutex_unlock(&lock);
    }
    Py_RETURN_NONE;
}

static PyObject *follow_links(PyObject *self, PyObject *follow)
{
    (void)self;
    pthread_mutex_lock(&lock);
    links = PyObject_IsTrue(follow) > 0;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *set_memory(PyObject *self, PyObject *args)
{
    Py_buffer pairs;
    int count;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &pairs)) {
        return NULL;
    }
    count = pairs.len / sizeof(struct range);
    pthread_mutex_lock(&lock);
    nranges = count > RANGES ? RANGES + 1 : count;
    memcpy(ranges, pairs.buf, sizeof(struct range) * (count > RANGES ? RANGES : count));
    pthread_mutex_unlock(&lock);
    PyBuffer_Release(&pairs);
    Py_RETURN_NONE;
}

static PyObject *set_device(PyObject *self, PyObject *args)
{
    unsigned long long number;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &number)) {
        return NULL;
    }
    pthread_mutex_lock(&lock);
    device = number;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    { "start", start, METH_VARARGS, "Receive from this listener from now on, in a thread of our own." },
    { "take", take, METH_VARARGS, "Wait for a call that may be ours, into a buffer. False: no program is left." },
    { "set_names", set_names, METH_VARARGS, "The last components of paths that are ours." },
    { "follow_links", follow_links, METH_O, "Whether symbolic links to those are ours, too." },
    { "set_memory", set_memory, METH_VARARGS, "Ranges of memory that guests use: pairs of 64-bit addresses." },
    { "set_device", set_device, METH_VARARGS, "The device number of the memfds that are ours." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_receiver",
    "The thread that receives what seccomp stops.",
    -1,
    methods,
    NULL,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__receiver(void)
{
    return PyModule_Create(&module);
}
