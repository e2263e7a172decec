# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CAP_SYNC_REGS: registers, control registers and events in kvm_run (linux/Documentation/virt/kvm/api.rst, 7.5)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import DONE, UD, LongModeVm
from tests.linux.conftest import refused

ALL = k.KVM_SYNC_X86_REGS | k.KVM_SYNC_X86_SREGS | k.KVM_SYNC_X86_EVENTS


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm:
        assert kvm.check_extension(k.Cap.SYNC_REGS) == ALL
        with LongModeVm(kvm) as made:
            yield made


def synced(guest: LongModeVm) -> k.kvm_sync_regs:
    return k.kvm_sync_regs.from_buffer(guest.vcpu.kvm_run, k.kvm_run.s.offset)


def test_every_way_out_stores_what_was_asked_for(guest: LongModeVm) -> None:
    run = guest.vcpu.kvm_run
    guest.start(b"\xe4\x10")  # in al, 0x10
    run.kvm_valid_regs = ALL
    assert guest.step() is k.Exit.IO
    assert bytes(synced(guest).regs) == bytes(guest.vcpu.get_regs())
    assert bytes(synced(guest).sregs) == bytes(guest.vcpu.get_sregs())
    assert bytes(synced(guest).events) == bytes(guest.vcpu.get_vcpu_events())
    guest.vcpu.set_io_data(b"\x2a")
    run.immediate_exit = 1
    with refused(errno.EINTR):
        guest.vcpu.run()
    assert synced(guest).regs.rax & 0xFF == 0x2A, "also where the guest is not entered"


def test_events_that_are_marked_dirty_are_loaded(guest: LongModeVm) -> None:
    run = guest.vcpu.kvm_run
    guest.load(b"\x90" + DONE)
    events = synced(guest).events
    events.flags = 0
    events.exception.injected, events.exception.nr, events.exception.has_error_code = 1, UD, 0
    run.kvm_dirty_regs = k.KVM_SYNC_X86_EVENTS
    assert guest.outcome() == UD
    assert run.kvm_dirty_regs == 0


@pytest.mark.parametrize("vector", [2, 32, 255])
def test_events_that_are_refused(guest: LongModeVm, vector: int) -> None:
    guest.load(DONE)
    events = synced(guest).events
    events.flags, events.exception.injected, events.exception.nr = 0, 1, vector
    guest.vcpu.kvm_run.kvm_dirty_regs = k.KVM_SYNC_X86_EVENTS
    with refused(errno.EINVAL):
        guest.vcpu.run()


def test_sets_that_do_not_exist(guest: LongModeVm) -> None:
    for member in ("kvm_valid_regs", "kvm_dirty_regs"):
        setattr(guest.vcpu.kvm_run, member, 1 << 31)
        with refused(errno.EINVAL):
            guest.vcpu.run()
        setattr(guest.vcpu.kvm_run, member, 0)


def test_control_registers_that_are_refused(guest: LongModeVm) -> None:
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 &= ~0x20  # long mode without PAE
    synced(guest).sregs = sregs
    guest.vcpu.kvm_run.kvm_dirty_regs = k.KVM_SYNC_X86_SREGS
    with refused(errno.EINVAL):
        guest.vcpu.run()
