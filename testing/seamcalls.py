# SPDX-License-Identifier: GPL-2.0-or-later
"""What SEAMCALLs cost, made as the kernel makes them: through the processor, on a TD of our own.

The TD is made by KVM and not yet finalised; tables and pages at addresses where KVM has no memory slot are added by
hand and taken away again, so that KVM finds the TD as it left it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from swtdx.cpu.processor import SeamArgs
from swtdx.machine import MachineKernel
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.uapi.client import Kvm
from testing.td import close, fresh_td

PAGE = 4096
CHUNKS = range(0, PAGE, 256)
GPA = 0x40_0000_0000
PAGES = 512
MEASURED_BYTES = 128 + len(CHUNKS) * (128 + 256)
"""What one page that is added and extended puts into MRTD: 6,272 bytes."""


class Host:
    """SEAMCALLs on one TD by name: ``call("TDH.MEM.TRACK", rcx=...)``; raises RuntimeError for what fails."""

    def __init__(self, kernel: MachineKernel, tdr: int) -> None:
        self.kernel, self.tdr = kernel, tdr
        self.args = SeamArgs()
        self.seamcall = kernel.processor.seamcall

    def call(self, name: str, rcx: int, rdx: int, r8: int = 0, r9: int = 0) -> None:
        args = self.args
        args.rcx, args.rdx, args.r8, args.r9 = rcx, rdx, r8, r9
        status = self.seamcall(SEAMCALL_NUMBERS[name], args, 0)
        if status:
            raise RuntimeError(f"{name}: {status:#x}")

    def seconds(self, name: str, calls: list[tuple[int, int, int, int]]) -> float:
        """Of one of these calls, each (RCX, RDX, R8, R9)."""
        seamcall, args, number = self.seamcall, self.args, SEAMCALL_NUMBERS[name]
        failed = 0
        begin = time.perf_counter()
        for args.rcx, args.rdx, args.r8, args.r9 in calls:
            failed |= seamcall(number, args, 0)
        seconds = time.perf_counter() - begin
        if failed:
            raise RuntimeError(f"{name}: {failed:#x}")
        return seconds / len(calls)


@contextmanager
def host(device: Kvm, kernel: MachineKernel) -> Iterator[tuple[Host, list[int]]]:
    """A TD under construction with tables for 2 MiB at `GPA`: the host, and `PAGES` free pages."""
    before = set(kernel.module.tds)
    made = fresh_td(device, 16 * PAGE)
    (tdr,) = set(kernel.module.tds) - before
    host = Host(kernel, tdr)
    pages = [kernel.pages.alloc_page("bench") for _ in range(PAGES)]
    tables = [kernel.pages.alloc_page("bench") for _ in range(3)]
    try:
        for level, table in zip((3, 2, 1), tables, strict=True):
            host.call("TDH.MEM.SEPT.ADD", GPA >> 12 + 9 * level << 12 + 9 * level | level, tdr, table)
        yield host, pages
        for level in (1, 2, 3):
            host.call("TDH.MEM.SEPT.REMOVE", GPA >> 12 + 9 * level << 12 + 9 * level | level, tdr)
    finally:
        for page in (*pages, *tables):
            kernel.pages.free_page(page)
        close(*made)


def without_crypto(host: Host, pages: list[int]) -> dict[str, float]:
    """Seconds of one call of each of some leaf functions that neither hash nor make keys."""
    tdr, gpas = host.tdr, [GPA + PAGE * number for number in range(len(pages))]
    calls = {
        "TDH.PHYMEM.PAGE.RDMD": [(page, 0, 0, 0) for page in pages],
        "TDH.MEM.PAGE.AUG": [(gpa, tdr, page, 0) for gpa, page in zip(gpas, pages, strict=True)],
        "TDH.MEM.SEPT.RD": [(gpa, tdr, 0, 0) for gpa in gpas],
        "TDH.MEM.RANGE.BLOCK": [(gpa, tdr, 0, 0) for gpa in gpas],
        "TDH.MEM.TRACK": [(tdr, 0, 0, 0) for _ in gpas],
        "TDH.MEM.RANGE.UNBLOCK": [(gpa, tdr, 0, 0) for gpa in gpas],
        "TDH.MNG.RD": [(tdr, 0x1110000300000000, 0, 0) for _ in gpas],
        "TDH.MEM.PAGE.REMOVE": [(gpa, tdr, 0, 0) for gpa in gpas],
    }
    return {name: host.seconds(name, each) for name, each in calls.items()}


def measured_pages(host: Host, pages: list[int], source: int) -> float:
    """Seconds of this thread for PAGE.ADD and sixteen MR.EXTENDs of one page, without those of removing it."""
    seamcall, args, tdr = host.seamcall, host.args, host.tdr
    add, extend = SEAMCALL_NUMBERS["TDH.MEM.PAGE.ADD"], SEAMCALL_NUMBERS["TDH.MR.EXTEND"]
    gpas = [GPA + PAGE * number for number in range(len(pages))]
    failed = 0
    begin = time.thread_time()
    for gpa, page in zip(gpas, pages, strict=True):
        args.rcx, args.rdx, args.r8, args.r9 = gpa, tdr, page, source
        failed |= seamcall(add, args, 0)
        for chunk in range(gpa, gpa + PAGE, 256):
            args.rcx, args.rdx = chunk, tdr
            failed |= seamcall(extend, args, 0)
    seconds = time.thread_time() - begin
    if failed:
        raise RuntimeError(f"PAGE.ADD and MR.EXTEND: {failed:#x}")
    host.seconds("TDH.MEM.PAGE.REMOVE", [(gpa, tdr, 0, 0) for gpa in gpas])
    return seconds / len(pages)


def hashed() -> float:
    """Seconds of this thread for one SHA-384 over as many bytes as such a page puts into MRTD."""
    stream = os.urandom(MEASURED_BYTES)
    begin = time.thread_time()
    for _ in range(PAGES):
        hashlib.sha384(stream).digest()
    return (time.thread_time() - begin) / PAGES
