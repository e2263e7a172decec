/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The line between a program's calls and the emulated kernel.
 *
 * Two shared objects meet here. _preload is in every process under `swtdx exec`; it knows libc and nothing of Python,
 * so that a program which never opens /dev/kvm pays nothing. _bridge is loaded at the first open of /dev/kvm, after
 * libpython; it is compiled against one version of Python. What crosses is what crosses the system-call line: integers
 * and addresses.
 */
#ifndef SWTDX_GATE_H
#define SWTDX_GATE_H

#include <stdint.h>

/* A call for the kernel. The result is what the system call would return: not negative, or -errno. */
enum swtdx_call {
    SWTDX_OPEN,      /* flags */
    SWTDX_IOCTL,     /* fd, request, argument */
    SWTDX_MMAP,      /* fd, length, offset; the result is an address, readable and writable */
    SWTDX_UNMAP,     /* an address that SWTDX_MMAP gave: no byte of it is in use any more */
    SWTDX_CLOSE,     /* fd */
    SWTDX_FALLOCATE, /* fd, mode, offset, length */
    SWTDX_ADOPT,     /* fd: a /dev/kvm that came from another process; 0 if it is one, and is ours from now on */
    SWTDX_CHANGED,   /* address, length, enum swtdx_change: the program changes its memory (MMU notifiers) */
    SWTDX_PREPARE,   /* the program may not see its files any more: load what is loaded late */
    SWTDX_SETTLE,    /* the program may be replaced by another one */
    SWTDX_FINISH,    /* the process exits */
    SWTDX_CALLS,
};

enum swtdx_change { SWTDX_CHANGE_START, SWTDX_CHANGE_END, SWTDX_CHANGE_CONTENTS };
enum swtdx_fork { SWTDX_FORK_PREPARE, SWTDX_FORK_PARENT, SWTDX_FORK_CHILD };

/* What the bridge offers to the preloaded library. */
struct swtdx_bridge {
    long (*call)(enum swtdx_call call, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
    void (*fork)(enum swtdx_fork when);
};

/* What the preloaded library offers to the bridge. */
struct swtdx_program {
    const char *settings;          /* the directory that holds the settings of this run */
    void (*open_signals)(const uint64_t *sigset); /* begin what a signal ends; NULL: under the program's own mask */
    void (*close_signals)(void);
    void (*set_interrupt)(void (*function)(void)); /* what to call in a signal handler to end it */
    void (*from_inside)(void (*function)(void *), void *argument); /* call it as a call of the kernel's own */
    void (*watch)(uint64_t start, uint64_t end); /* report changes of mappings in this hull; 0, 0: of none */
};

/* Exported by _bridge. NULL, with a sentence on standard error, when the kernel cannot be started. */
typedef const struct swtdx_bridge *swtdx_bridge_start_fn(const struct swtdx_program *program);
#define SWTDX_BRIDGE_START "swtdx_bridge_start"

#endif
