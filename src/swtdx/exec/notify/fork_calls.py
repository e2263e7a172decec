# SPDX-License-Identifier: GPL-2.0-or-later
"""fork(2): a child gets memory of its own, also where its parent's guests run.

What was moved is a shared mapping of a memfd, so the machine's kernel would give the child the parent's memory itself.
Such a fork is made in the program's name while all of its threads stand still, and the child, before it executes
anything, gets private memory with the same contents there. Linux copies page by page, at the first write; this copies
at once. Where no memory was moved nothing is done; vfork(2) and threads are not stopped (`seccomp`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.exec.notify.seccomp import Notification, Sys
from swtdx.exec.notify.server import Server

if TYPE_CHECKING:
    from swtdx.exec.notify.address_space import ProgramMm
    from swtdx.exec.notify.ptrace import Borrowed


class ForkCalls:
    """Serves them for ``server``."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.handlers |= dict.fromkeys((Sys.FORK, Sys.CLONE, Sys.CLONE3), self._fork)

    def _fork(self, notification: Notification) -> None:
        if self._server.machine is None:
            return
        try:
            task = self._server.tasks.get(notification.pid)
        except OSError:
            return
        mm = task.mm
        if not mm.has_moved:
            return
        try:
            answered = self._server.in_its_name(
                notification, task, -1, lambda its, _: self._make(notification, mm, its), alone=True
            )
        except OSError as error:
            self._server.teller.say(f"process {mm.owner}: its child shares the guest's memory: {error.strerror}")
            return
        raise answered

    def _make(self, notification: Notification, mm: ProgramMm, its: Borrowed) -> None:
        its.thread.follow_forks(follow=True)
        try:
            its.result = its.call(notification.nr, *notification.args)
        except OSError as error:
            its.result = -(error.errno or errno.EIO)
        child = its.thread.take_child()
        its.thread.follow_forks(follow=False)
        if child is None:
            return
        self._server.borrowed.add(child.tid)
        try:
            with child.borrowed(its.mask) as the_childs:
                the_childs.result = 0
                mm.part_from(child.tid, the_childs.call)
        except OSError as error:
            self._server.teller.say(f"process {child.tid} shares the guest's memory with its parent: {error.strerror}")
        finally:
            self._server.borrowed.discard(child.tid)
            child.detach()
