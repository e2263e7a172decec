# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``script/parallel-boots`` takes for a complaint of the guest's kernel: lines that Linux prints."""

from __future__ import annotations

import hashlib

import pytest

from testing.parallel_boots import HASHED, judge

DONE = f"""
[    0.5] smpboot: x86: Booting SMP configuration:
Linux 6.12.1 in user space after 0.9 s, on 2 CPUs, as a Trust Domain.
work done:       2 {hashlib.sha256(bytes(HASHED)).hexdigest()}  -
"""
COMPLAINTS = (
    "[   21.1] rcu: INFO: rcu_sched self-detected stall on CPU",
    "[   24.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [swapper/1:0]",
    "[    0.2] WARNING: CPU: 0 PID: 1 at kernel/smp.c:807 smp_call_function_many_cond+0x1",
    "[    0.2] BUG: unable to handle page fault for address: 0000000000001000",
    "[    0.2] Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "[    0.2] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
    "[    9.2] smpboot: CPU1 failed to report alive state",
    "[  120.1] INFO: task kworker/0:1 blocked for more than 120 seconds.",
    "[    2.1] traps: true[77] trap invalid opcode ip:41 sp:7f error:0 in busybox[400000+1000]",
    "[    2.1] true[77]: segfault at 0 ip 0 sp 7ff error 14",
    "[    2.1] clocksource: Marking clocksource 'tsc' as unstable because the skew is too large:",
    "[    1.0] Kernel panic - not syncing: Fatal exception",
)


def test_a_boot_with_all_processors_and_right_results_is_right() -> None:
    assert judge(DONE, 2, 0) == ()


@pytest.mark.parametrize("line", COMPLAINTS)
def test_a_complaint_of_the_kernel_is_trouble(line: str) -> None:
    assert judge(DONE + line, 2, 0) == (line,)


def test_a_missing_processor_a_wrong_hash_and_a_status_are_trouble() -> None:
    assert any("2 virtual CPUs" in each for each in judge(DONE.replace("2 CPUs", "1 CPU"), 2, 0))
    assert any("came out wrong" in each for each in judge(DONE.replace("  -", "0  -"), 2, 0))
    assert any("came out wrong" in each for each in judge("on 2 CPUs, as a Trust Domain.", 2, 0))
    assert judge(DONE, 2, 3) == ("exit status 3",)
