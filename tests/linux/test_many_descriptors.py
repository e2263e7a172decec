# SPDX-License-Identifier: GPL-2.0-or-later
"""Closing a descriptor takes the same work whether there are ten others or hundreds (close(2), fput).

Work is counted: lines executed for the table of files, and names of descriptors that are looked at.
"""

from __future__ import annotations

import mmap
import os
import sys
from types import FrameType
from typing import Any

import pytest

from swtdx.linux import files
from swtdx.uapi import kvm as k
from tests.linux.conftest import Bench, refused

FEW, MANY = 5, 60


class Work:
    """While this is entered: lines of `files` that are executed, and names in the lists of descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines = self.names = 0
        listed = os.listdir

        def counted(path: Any = ".") -> list[str]:
            found = listed(path)
            self.names += len(found)
            return found

        monkeypatch.setattr(os, "listdir", counted)

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != files.__file__:
            return None
        self.lines += event == "line"
        return self._line

    def __enter__(self) -> Work:
        self._before = sys.gettrace()
        sys.settrace(self._line)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def machines(bench: Bench, count: int) -> tuple[list[int], list[tuple[int, mmap.mmap]]]:
    """VMs, and of each a vCPU with what is mapped of it."""
    vms = [bench.vm(0) for _ in range(count)]
    vcpus = [bench.ioctl(vm, k.KVM_CREATE_VCPU, 0) for vm in vms]
    return vms, [(vcpu, bench.kernel.mmap(vcpu, 0x3000)) for vcpu in vcpus]


@pytest.mark.parametrize("mapped_last", [False, True], ids=["unmapped, closed", "closed, unmapped"])
def test_closing_takes_as_much_for_each_however_many_there_are(
    bench: Bench, mapped_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = []
    for count in (FEW, MANY):
        vms, vcpus = machines(bench, count)
        with Work(monkeypatch) as work:
            for vcpu, mapping in vcpus:
                if not mapped_last:
                    mapping.close()
                bench.kernel.close(vcpu)
                if mapped_last:
                    mapping.close()
            for vm in vms:
                bench.kernel.close(vm)
        assert not bench.kernel.vms
        assert work.names == 0
        each.append(work.lines / count)
    assert each[0] == each[1]


def test_a_dup_that_no_call_has_named_keeps_a_file_open(bench: Bench) -> None:
    """As on Linux, whose close(2) of one descriptor leaves the open file description to the others."""
    for count in range(2):
        (vm,), ((vcpu, mapping),) = machines(bench, 1)
        copy, copied_vm = os.dup(vcpu), os.dup(vm)
        if count:
            mapping.close()
        bench.kernel.close(vcpu)
        bench.kernel.close(vm)
        mapping.close()
        assert bench.ioctl(copy, k.KVM_GET_TSC_KHZ) > 0
        assert bench.ioctl(copied_vm, k.KVM_CHECK_EXTENSION, k.Cap.USER_MEMORY) == 1
        bench.kernel.close(copy)
        assert len(bench.kernel.vms) == 1
        bench.kernel.close(copied_vm)
        assert not bench.kernel.vms


def test_a_dup_is_found_when_what_was_opened_again_is_closed_last(bench: Bench) -> None:
    """KVM_GET_STATS_FD once more is another description of the same memory: a dup of the first one keeps it open."""
    vm = bench.vm(0)
    first = bench.ioctl(vm, k.KVM_GET_STATS_FD)
    again = bench.ioctl(vm, k.KVM_GET_STATS_FD)
    copy = os.dup(first)
    bench.kernel.close(vm)
    bench.kernel.close(first)
    bench.kernel.close(again)
    assert len(bench.kernel.vms) == 1
    bench.kernel.close(copy)
    assert not bench.kernel.vms


def test_a_descriptor_of_a_child_keeps_nothing(bench: Bench) -> None:
    """The files are the parent's: they end with its last descriptor, whatever was inherited."""
    vm = bench.vm(0)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    bench.kernel.close(vm)
    assert not bench.kernel.vms
    os.close(write)
    os.waitpid(child, 0)


def test_where_nothing_can_be_opened_the_descriptors_are_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = bench.vm(0)
    copy = os.dup(vm)
    opened = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_, **__: opened("/nowhere", os.O_RDONLY))
        bench.kernel.close(vm)
        assert len(bench.kernel.vms) == 1
        bench.kernel.close(copy)
    assert not bench.kernel.vms


def test_a_number_that_is_another_files_by_now_is_not_taken_for_the_last(bench: Bench) -> None:
    """The program closed it by itself; the dup that it made before is still the VM's."""
    vm = bench.vm(0)
    copy = os.dup(vm)
    os.close(vm)
    read, write = os.pipe()
    assert vm in (read, write)
    bench.kernel.close(vm)
    assert len(bench.kernel.vms) == 1
    os.close(read if vm == write else write)
    bench.kernel.close(copy)
    assert not bench.kernel.vms
    with refused(9):
        bench.kernel.close(copy)
