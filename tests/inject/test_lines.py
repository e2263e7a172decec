# SPDX-License-Identifier: GPL-2.0-or-later
"""Which calls are struck, and what a machine with injections does.

The expectations follow from the meaning of the conditions, and from what Linux 7.2 does with a status or an errno.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

from swtdx.cpu.platform import Platform
from swtdx.inject.line import Armed
from swtdx.inject.parse import parse
from swtdx.machine import FaultyKernel, MachineKernel, boot, open_kernel
from swtdx.trace.event import Event, Seamcall
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from testing import guest
from testing.td import MeasuredTd

SMALL = Platform(memory_size=1 << 30)
PAGE_AUG = "TDH.MEM.PAGE.AUG"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "DATA_PAGES", 2)
    monkeypatch.setattr(guest, "FRESH_PAGES", 8)


@pytest.fixture
def machines() -> Iterator[list[MachineKernel]]:
    made: list[MachineKernel] = []
    yield made
    for kernel in made:
        kernel.shutdown()


def struck(text: str, calls: int) -> list[int]:
    armed = Armed(parse(text))
    return [number for number in range(1, calls + 1) if armed.strikes()]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("", [1, 2, 3, 4, 5, 6]),
        ("@3", [3]),
        ("@2-4", [2, 3, 4]),
        ("@5+", [5, 6]),
        ("every 3", [3, 6]),
        ("@4+ every 2", [4, 6]),
    ],
)
def test_which_calls_are_struck(when: str, expected: list[int]) -> None:
    assert struck(f"{PAGE_AUG}: OPERAND_BUSY {when}", 6) == expected


def test_a_probability_is_the_same_each_time_and_follows_its_seed() -> None:
    first = struck(f"{PAGE_AUG}: OPERAND_BUSY 10% seed 1", 2000)
    assert first == struck(f"{PAGE_AUG}: OPERAND_BUSY 10% seed 1", 2000)
    assert first != struck(f"{PAGE_AUG}: OPERAND_BUSY 10% seed 2", 2000)
    assert 140 < len(first) < 260  # 200 expected, 13 the deviation


def test_calls_elsewhere_are_not_counted() -> None:
    armed = Armed(parse(f"{PAGE_AUG}: OPERAND_BUSY @2 gpa 0x2000-0x4000"))
    pages = [0x1000, 0x2000, 0x5000, 0x3000, 0x4000]
    assert [page for page in pages if armed.strikes(range(page, page + 0x1000))] == [0x3000]
    assert (armed.calls, armed.struck) == (2, 1)
    assert not armed.strikes(None)


def test_a_large_page_touches_all_of_its_addresses() -> None:
    armed = Armed(parse(f"{PAGE_AUG}: OPERAND_BUSY gpa 0x212000"))
    assert armed.strikes(range(0x200000, 0x400000))


def lives(machines: list[MachineKernel], *inject: str, trace: list[Event] | None = None) -> tuple[MachineKernel, str]:
    """Boot with faults and let a TD accept five pages; how it ended."""
    kernel = boot(platform=SMALL, inject=inject, trace=None if trace is None else trace.append)
    machines.append(kernel)
    try:
        with Kvm(kernel) as device, MeasuredTd(device) as td:
            td.seconds(guest.Workload.ACCEPT, 5)
    except KvmError as error:
        return kernel, errno.errorcode[error.errno or 0]
    except RuntimeError as error:  # another exit than the workload's
        return kernel, str(error)
    return kernel, "lived"


def test_a_busy_module_is_asked_again(machines: list[MachineKernel]) -> None:
    trace: list[Event] = []
    kernel, ended = lives(machines, f"{PAGE_AUG}: OPERAND_BUSY @3", trace=trace)
    assert ended == "lived"
    assert kernel.injections() == [
        {
            "injection": f"{PAGE_AUG}: OPERAND_BUSY @3",
            "calls": 6,
            "struck": 1,
            "text": f"{PAGE_AUG}: OPERAND_BUSY @3: 1 of 6 calls failed",
        }
    ]
    texts = [event.text for event in trace if isinstance(event, Seamcall) and event.name == PAGE_AUG]
    assert texts == ["SUCCESS"] * 2 + ["OPERAND_BUSY|RDX"] + ["SUCCESS"] * 3  # one failure, then the page again


def test_the_untraced_machine_does_the_same(machines: list[MachineKernel]) -> None:
    kernel, ended = lives(machines, f"{PAGE_AUG}: OPERAND_BUSY @3")
    assert (ended, kernel.injections()[0]["calls"]) == ("lived", 6)  # no short cut past the SEAMCALL line


def test_a_status_that_should_not_be_kills_the_vm(machines: list[MachineKernel]) -> None:
    kernel, ended = lives(machines, f"{PAGE_AUG}: EPT_ENTRY_STATE_INCORRECT @2")
    assert ended == "EIO"
    assert kernel.last_refusal.leaf == PAGE_AUG
    assert kernel.last_refusal.status == 0xC0000B0D_00000001


def test_an_address(machines: list[MachineKernel]) -> None:
    page = guest.FRESH + 3 * guest.PAGE_SIZE
    kernel, ended = lives(machines, f"{PAGE_AUG}: OPERAND_BUSY @1 gpa {page:#x}")
    assert (ended, kernel.injections()[0]["calls"]) == ("lived", 2)


def test_the_module_cannot_be_brought_up(machines: list[MachineKernel]) -> None:
    kernel = boot(platform=SMALL, inject=["TDH.SYS.CONFIG: INVALID_TDMR"])
    machines.append(kernel)
    assert kernel.tdx is None
    assert "TDH.SYS.CONFIG" in kernel.last_reason


def test_an_ioctl_fails_before_it_begins(machines: list[MachineKernel]) -> None:
    kernel = boot(platform=SMALL, inject=["KVM_CREATE_VM: EMFILE @2"])
    machines.append(kernel)
    with Kvm(kernel) as device:
        device.create_vm().close()
        with pytest.raises(KvmError) as caught:
            device.create_vm()
        assert caught.value.errno == errno.EMFILE
        assert kernel.last_reason == "injected: KVM_CREATE_VM: EMFILE @2"
        device.create_vm().close()


def test_a_sub_command_fails_and_others_do_not(machines: list[MachineKernel]) -> None:
    kernel, ended = lives(machines, "KVM_TDX_FINALIZE_VM: EBUSY")
    assert (ended, kernel.injections()[0]["struck"]) == ("EBUSY", 1)


def test_an_ioctl_at_an_address(machines: list[MachineKernel]) -> None:
    kernel = boot(platform=SMALL, inject=["KVM_SET_USER_MEMORY_REGION: ENOMEM gpa 0x100000-0x200000"])
    machines.append(kernel)
    memory = mmap.mmap(-1, 0x4000)
    with Kvm(kernel) as device, device.create_vm() as vm:
        vm.set_user_memory_region(0, 0xFC000, 0x4000, memory)
        with pytest.raises(KvmError) as caught:
            vm.set_user_memory_region(1, 0x100000, 0x4000, memory)
        assert caught.value.errno == errno.ENOMEM
        with pytest.raises(OSError) as bad:  # nothing to read there: no address, and the ioctl's own error
            kernel.ioctl(vm.fd, int(k.KVM_SET_USER_MEMORY_REGION), 8)
        assert bad.value.errno == errno.EFAULT


def test_a_machine_without_injections_has_nothing_of_it(machines: list[MachineKernel]) -> None:
    kernel = boot(platform=SMALL)
    machines.append(kernel)
    assert type(kernel) is MachineKernel
    assert kernel.processor._module is kernel.module
    assert kernel.processor.first_touches is not None


def test_faults_of_one_line_leave_the_other_alone(machines: list[MachineKernel]) -> None:
    kernel = boot(platform=SMALL, inject=["KVM_RUN: EINTR @1"])
    machines.append(kernel)
    assert type(kernel) is FaultyKernel
    assert kernel.processor._module is kernel.module


def test_the_hosts_kernel_takes_none() -> None:
    with pytest.raises(ValueError, match="emulated kernel"):
        open_kernel("host", inject=["KVM_RUN: EINTR"])


def test_what_is_not_an_injection_boots_nothing() -> None:
    with pytest.raises(ValueError, match="did you mean KVM_RUN"):
        boot(platform=SMALL, inject=["KVM_RUNN: EINTR"])
