# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is watched: nothing is missing from the trace, and nothing is different for being watched.

What must be there follows from the interface: TDH.MEM.PAGE.ADD once and TDH.MR.EXTEND 16 times for each measured page
(chunks of 256 bytes), TDG.VP.VMCALL once for each port access of the guest, KVM_RUN once for each exit to user space.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from swtdx.cpu._engine import GuestContext
from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot, open_kernel
from swtdx.seam.module import TdxModule
from swtdx.trace.event import Event
from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import address_of
from testing import guest
from testing.td import MeasuredTd, fresh_td, staged

SMALL = Platform(memory_size=2 << 30)
PAGES = 2048 + 4 + 1 + 1  # data, page tables, code, reset
Events = list[dict[str, Any]]


class Trace(Events):
    """The events as a file has them."""

    def take(self, event: Event) -> None:
        self.append(event.as_json())


@pytest.fixture(params=list(Dialect), ids=lambda dialect: dialect.value)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


def of(events: Events, kind: str, name: str) -> Events:
    return [event for event in events if event["kind"] == kind and event["name"] == name]


def test_every_call_and_exit_of_a_td_is_there(dialect: Dialect) -> None:
    events = Trace()
    with Kvm(open_kernel("emulated", dialect, SMALL, trace=events.take)) as device, MeasuredTd(device) as td:
        launched = len(events)
        td.seconds(guest.Workload.IO_EXIT, 25)
        td.seconds(guest.Workload.CPUID, 10)
    assert {event["kind"] for event in events} == {"ioctl", "syscall", "seamcall", "exit", "tdcall"}
    added = of(events, "seamcall", "TDH.MEM.PAGE.ADD")
    assert len({event["args"]["gpa"] for event in added}) == len(added) == PAGES
    assert all(event["text"] == "SUCCESS" and event["args"]["level"] == 0 for event in added)
    assert len(of(events, "seamcall", "TDH.MNG.CREATE")) == len(of(events, "seamcall", "TDH.MNG.KEY.FREEID")) == 1
    assert of(events[:launched], "seamcall", "TDH.VP.INIT")

    running = events[launched:]
    ports = Counter(
        (event["args"]["port"], event["args"]["write"])
        for event in of(running, "tdcall", "TDG.VP.VMCALL")
        if event["args"]["function"] == "Instruction.IO"
    )
    assert ports[f"{guest.Port.EXIT:#x}", "0x1"] == 25
    assert ports[f"{guest.Port.DONE:#x}", "0x1"] == 2
    # The last exit of the launch is told when the guest is entered again.
    assert ports[f"{guest.Port.WORKLOAD:#x}", "0x0"] == 3
    assert len(of(running, "exit", "CPUID")) == 10
    runs = of(running, "ioctl", "KVM_RUN")
    assert len(runs) == sum(ports.values()) - 1
    assert all(event["on"] == "vCPU 0" for event in runs)
    (written,) = {event["out"]["data"] for event in runs if event["out"]["port"] == f"{guest.Port.EXIT:#x}"}
    assert written == "0x55"  # what the guest's code writes
    answers = [event["out"]["data"] for event in of(running, "tdcall", "TDG.VP.VMCALL") if "data" in event["out"]]
    assert f"{guest.Workload.IO_EXIT:#x}" in answers  # what the VMM answered to the guest's port read


def test_measured_pages_are_extended_in_sixteen_chunks(dialect: Dialect) -> None:
    events = Trace()
    with Kvm(open_kernel("emulated", dialect, SMALL, trace=events.take)) as device:
        vm, vcpu, memfd = fresh_td(device, 64 << 12)
        source = staged(b"\xa5" * 3 * 4096)
        vm.tdx_init_mem_region(address_of(source), 0x8000, 3, measure=True)
        vcpu.close()
        vm.close()
        if memfd >= 0:
            device.kernel.close(memfd)
    chunks = [int(event["args"]["gpa"], 16) for event in of(events, "seamcall", "TDH.MR.EXTEND")]
    assert sorted(chunks) == list(range(0x8000, 0xB000, 256))
    (call,) = (event for event in events if event.get("args", {}).get("command") == "KVM_TDX_INIT_MEM_REGION")
    assert call["args"]["data"] == {"source_addr": f"{address_of(source):#x}", "gpa": "0x8000", "nr_pages": "0x3"}
    assert call["args"]["flags"] == "0x1"  # KVM_TDX_MEASURE_MEMORY_REGION
    assert call["out"]["data"]["nr_pages"] == "0x0"  # the kernel writes back what is left
    assert call["on"] == ("vCPU 0" if dialect is Dialect.UPSTREAM else "VM")


def test_times_nest_as_the_calls_do() -> None:
    events = Trace()
    with Kvm(open_kernel("emulated", platform=SMALL, trace=events.take)) as device, MeasuredTd(device) as td:
        td.seconds(guest.Workload.IO_EXIT, 5)
    inner = outer = 0
    for event in of(events, "ioctl", "KVM_RUN"):
        begin, end = event["t"], event["t"] + event["dur"]
        entries = [e for e in of(events, "seamcall", "TDH.VP.ENTER") if begin <= e["t"] <= end]
        assert all(e["t"] + e["dur"] <= end for e in entries)
        inner += len(entries)
        outer += 1
    assert inner == len(of(events, "seamcall", "TDH.VP.ENTER")) >= outer > 0


def test_watching_changes_no_measurement(dialect: Dialect) -> None:
    digests = []
    for trace in (None, list[Event]().append):
        kernel = open_kernel("emulated", dialect, SMALL, trace=trace)
        with Kvm(kernel) as device, MeasuredTd(device) as td:
            digests.append(kernel.inspect_td(td.vm.fd)["mrtd"])  # type: ignore[attr-defined]
    assert digests[0] == digests[1]
    assert int(digests[0], 16)


def test_a_machine_that_is_not_watched_has_nothing_in_its_way() -> None:
    kernel = open_kernel("emulated", platform=SMALL)
    assert type(kernel) is MachineKernel
    assert kernel.processor.context_class is GuestContext
    assert type(kernel.processor._module) is TdxModule
    assert kernel.kvm_x86_ops == boot(platform=SMALL).kvm_x86_ops


def test_failures_are_told_with_errno_and_hw_error() -> None:
    events = Trace()
    kernel = open_kernel("emulated", platform=SMALL, trace=events.take)
    with Kvm(kernel) as device, device.create_td() as td:
        with pytest.raises(KvmError):
            td.tdx_finalize()
        with pytest.raises(OSError, match="Bad address"):
            kernel.ioctl(td.fd, kvm.KVM_MEMORY_ENCRYPT_OP, 0x10)
        with pytest.raises(OSError, match="Bad address"):
            kernel.ioctl(td.fd, kvm.KVM_SET_MEMORY_ATTRIBUTES, 1 << 63)
    early, wild, attributes = [event for event in events if "errno" in event]
    assert (early["errno"], early["args"]["command"]) == ("EINVAL", "KVM_TDX_FINALIZE_VM")
    assert early["out"] == {"hw_error": "0x0"}
    assert (wild["errno"], wild["args"]) == ("EFAULT", {"arg": "0x10 (not readable)"})
    assert (attributes["errno"], attributes["name"]) == ("EFAULT", "KVM_SET_MEMORY_ATTRIBUTES")
