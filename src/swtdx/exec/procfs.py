# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc, by which both front ends know a process, its descriptors and its memory."""

from __future__ import annotations

import os


def without_proc() -> str:
    """Empty, or why /proc does not show this process, as a sentence: a sandbox may have another one, or none."""
    try:
        known_as = os.readlink("/proc/self")
    except OSError:
        return "there is no /proc for this process: mount one for its PID namespace (bwrap --proc /proc)"
    if known_as != str(os.getpid()):
        return "the /proc here is that of another PID namespace: mount one for this (bwrap --proc /proc)"
    return ""
