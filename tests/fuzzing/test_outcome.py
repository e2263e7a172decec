# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel says when something is wrong is recognised, and the same thing said twice is one kind of crash."""

from __future__ import annotations

import pytest

from swtdx.fuzzing.outcome import ended as by_end
from swtdx.fuzzing.outcome import is_over, said
from swtdx.vmm.outcome import End, Outcome

OOPS = b"""[    2.100000] pci 0000:00:02.0: BAR 1
[    2.200000] Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP
[    2.210000] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted 6.12.95
[    2.220000] RIP: 0010:vp_modern_map_capability+0x1f/0x90
[    2.230000] ---[ end trace 0000000000000000 ]---
"""
# By the sources of Linux: lib/dump_stack, arch/x86/kernel/dumpstack.c, mm/kasan/report.c, kernel/panic.c, lib/bug.c
LINES = {
    b"BUG: KASAN: slab-out-of-bounds in virtqueue_get_buf_ctx_split+0x1/0x2": "kasan",
    b"kernel BUG at drivers/virtio/virtio_ring.c:123!": "bug",
    b"BUG: unable to handle page fault for address: ffffc90000000000": "oops",
    b"BUG: kernel NULL pointer dereference, address: 0000000000000008": "oops",
    b"BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]": "bug",
    b"Oops: VE fault: 0000 [#1] PREEMPT SMP NOPTI": "oops",
    b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b": "panic",
    b"[    1.000000][    T1] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2": "warning",
}


@pytest.mark.parametrize("line", LINES)
def test_each_kind_is_recognised(line: bytes) -> None:
    found = said(b"[    0.5] all is well\n" + line + b"\r\n")
    assert found is not None
    assert found.kind == LINES[line]
    assert found.is_crash == (LINES[line] != "warning")
    assert said(b"echo " + line + b"\n") is None
    assert said(line) is None  # half a line


def test_the_first_crash_counts_with_the_function_where_it_was() -> None:
    found = said(OOPS + b"[    2.3] Kernel panic - not syncing: Fatal exception\n")
    assert found is not None
    assert (found.kind, found.where) == ("oops", "vp_modern_map_capability")
    other = said(OOPS.replace(b"dead", b"beef").replace(b"2.2", b"9.7"))
    assert other is not None
    assert other.signature == found.signature
    assert other.name == found.name
    elsewhere = said(OOPS.replace(b"vp_modern_map", b"vp_legacy_map"))
    assert elsewhere is not None
    assert elsewhere.signature != found.signature


def test_the_last_line_of_a_report_is_known() -> None:
    assert is_over(OOPS)
    assert is_over(b"---[ end Kernel panic - not syncing: x ]---\n")
    assert not is_over(OOPS[:200])


@pytest.mark.parametrize(
    ("end", "text", "kind"),
    [
        (End.CRASH, "vCPU 0 shut down: a triple fault", "triple fault"),
        (End.CRASH, "vCPU 0 accessed 0x1000 as private memory, which the guest does not have there", "crash"),
        (End.FATAL_ERROR, "the guest reported a fatal error", "fatal"),
        (End.INTERNAL_ERROR, "internal error: KeyError(1)", "swtdx"),
        (End.POWER_OFF, "the guest powered off", None),
    ],
)
def test_the_end_of_a_run_says_by_itself_what_is_wrong(end: End, text: str, kind: str | None) -> None:
    found = by_end(Outcome(end, text), b"", 0x1000)
    assert (found.kind if found else None) == kind
