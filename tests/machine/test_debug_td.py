# SPDX-License-Identifier: GPL-2.0-or-later
"""ATTRIBUTES.DEBUG: who offers it, and the door to the debug SEAMCALLs, which the module alone opens or keeps shut."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swtdx.image.firmware import Firmware
from swtdx.machine import MachineKernel, boot
from swtdx.seam.status import StatusCode
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.launch import LaunchError, Machine, Plan, TdParameters, launch
from tests.vmm.gdb_guest import BASE, MEMORY, build

RIP = 0x0024_0003_0000_681E
RESET_VECTOR = 0xFFFF_FFF0


@contextmanager
def td(kernel: MachineKernel, *, debug: bool) -> Iterator[Machine]:
    firmware = Firmware(Path("debugged.fd"), "a test made it", build(td=True).image)
    with Kvm(kernel) as device, launch(device, Plan(firmware, MEMORY, 1, TdParameters(debug=debug))) as machine:
        yield machine


@pytest.fixture(params=list(Dialect), ids=lambda dialect: dialect.value)
def kernel(request: pytest.FixtureRequest) -> MachineKernel:
    return boot(request.param, debug_tds=True)


def test_the_door_of_a_debug_td_reads_and_writes_memory_and_registers(kernel: MachineKernel) -> None:
    with td(kernel, debug=True) as machine:
        door, fd = kernel.debug_td(machine.vm.fd), machine.vcpus[0].fd
        image = build(td=True).image
        assert door.mem_rd(BASE + 0x4000) == int.from_bytes(image[0x4000:0x4008], "little")
        door.mem_wr(BASE + 0x4000, 0x1122334455667788)
        assert door.mem_rd(BASE + 0x4000) == 0x1122334455667788
        assert door.vp_rd(fd, RIP) == RESET_VECTOR
        door.vp_wr(fd, RIP, 0x1000, (1 << 64) - 1)
        assert door.vp_rd(fd, RIP) == 0x1000
        with pytest.raises(OSError, match=r"TDH\.MEM\.RD: 0xc0") as refused:
            door.mem_rd(0x40_0000)  # never added
        assert refused.value.errno == errno.EIO


def test_the_saved_state_of_a_debug_td_is_writable_but_for_its_header(kernel: MachineKernel) -> None:
    """md_vp_element_tdvps_wr_handle: XBUFF is, in 8-byte elements; the XSAVE header is not the host's."""
    xbuff = 0x1220_0003_0000_0000
    full = (1 << 64) - 1
    with td(kernel, debug=True) as machine:
        door, fd = kernel.debug_td(machine.vm.fd), machine.vcpus[0].fd
        avx = door.vp_rd(fd, xbuff + 65) & 4  # XCOMP_BV
        for element in (4, 6, 18, 20, 51, *((72, 103) if avx else ())):
            door.vp_wr(fd, xbuff + element, 0x1111_2222_0000_3333 + element, 0xFFFF_FFFF_FFFF)
            assert door.vp_rd(fd, xbuff + element) == 0x2222_0000_3333 + element
        header = [door.vp_rd(fd, xbuff + element) for element in range(64, 72)]
        for element in range(64, 72):
            with pytest.raises(OSError, match=f"{StatusCode.METADATA_FIELD_NOT_WRITABLE:#x}"):
                door.vp_wr(fd, xbuff + element, 0, full)
        assert [door.vp_rd(fd, xbuff + element) for element in range(64, 72)] == header
        with pytest.raises(OSError, match=f"{StatusCode.METADATA_FIELD_VALUE_NOT_VALID:#x}"):
            door.vp_wr(fd, xbuff + 3, 0x10000, 0xFFFF_FFFF)  # MXCSR
        door.vp_wr(fd, xbuff + 3, 0x1FA0, 0xFFFF_FFFF)
        assert door.vp_rd(fd, xbuff + 3) & 0xFFFF_FFFF == 0x1FA0


def test_of_a_production_td_the_module_refuses_everything(kernel: MachineKernel) -> None:
    with td(kernel, debug=False) as machine:
        door, fd = kernel.debug_td(machine.vm.fd), machine.vcpus[0].fd
        for call, status, name in (
            (lambda: door.mem_rd(BASE), StatusCode.TD_NON_DEBUG, "TD_NON_DEBUG"),
            (lambda: door.mem_wr(BASE, 0), StatusCode.TD_NON_DEBUG, "TD_NON_DEBUG"),
            (lambda: door.vp_rd(fd, RIP), StatusCode.METADATA_FIELD_NOT_READABLE, "NOT_READABLE"),
            (lambda: door.vp_wr(fd, RIP, 0, 1), StatusCode.METADATA_FIELD_NOT_WRITABLE, "NOT_WRITABLE"),
        ):
            with pytest.raises(OSError, match=name) as refused:
                call()
            assert refused.value.errno == errno.EACCES
            assert refused.value.status >> 32 == status >> 32  # type: ignore[attr-defined]


def test_mrtd_does_not_tell_a_debug_td_and_its_attributes_do(kernel: MachineKernel) -> None:
    seen = {}
    for debug in (False, True):
        with td(kernel, debug=debug) as machine:
            attributes = next(iter(kernel.module.tds.values())).attributes
            seen[debug] = (kernel.inspect_td(machine.vm.fd)["mrtd"], attributes & 1)
    assert seen[False][0] == seen[True][0]
    assert (seen[False][1], seen[True][1]) == (0, 1)


def test_linux_offers_no_debug_tds() -> None:
    kernel = boot(Dialect.UPSTREAM)
    with pytest.raises(LaunchError, match=r"does not offer \(0x1\)"), td(kernel, debug=True):
        pass


def test_the_registers_of_a_debug_td_are_behind_no_ioctl(kernel: MachineKernel) -> None:
    with td(kernel, debug=True) as machine, pytest.raises(KvmError) as refused:
        machine.vcpus[0].get_regs()
    assert refused.value.errno == errno.EINVAL


def test_the_door_is_for_tds() -> None:
    kernel = boot(debug_tds=True)
    with Kvm(kernel) as device, device.create_vm() as vm:
        with pytest.raises(OSError, match="not a TD"):
            kernel.debug_td(vm.fd)
        with pytest.raises(OSError) as refused:
            kernel.debug_td(device.fd)
        assert refused.value.errno == errno.EBADF
