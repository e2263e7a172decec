# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's whole life, in which one SEAMCALL or one allocation fails: nothing is lost, and the next TD lives.

For every leaf function the first, the second and the last call of the life is made to fail, as if the module were busy
and as if it refused; for every use of a page the first, the second and the last allocation. However far the client
comes, it closes everything. What the module would not give back at the end stays booked: the kernel must neither
free such a page nor use the HKID again (Linux leaks both and logs it).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import SeamArgs
from swtdx.linux.arch.x86.virt.vmx.tdx import seamcall as leaves
from swtdx.linux.err import err
from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from testing import guest
from testing.invariants import check, check_ownership
from testing.td import MeasuredTd

PAGE = guest.PAGE_SIZE
BUSY, REFUSED = 0x80000200_00000080, 0xC0000100_00000001
NAMES = {value: name.removeprefix("TDH_") for name, value in vars(leaves).items() if name.startswith("TDH_")}
ENDING = (
    "VP_FLUSH", "MNG_VPFLUSHDONE", "PHYMEM_CACHE_WB", "MNG_KEY_FREEID", "PHYMEM_PAGE_RECLAIM", "PHYMEM_PAGE_WBINVD",
)  # fmt: skip
"""Leaf functions by which pages and keys come back: if one fails, the kernel goes without (as Linux does)."""
KERNEL_ERRNOS = {errno.EIO, errno.EBUSY, errno.EINVAL, errno.EAGAIN, errno.ENOMEM, errno.EFAULT}


@dataclass
class Fault:
    """Stands between kernel and module, and in the kernel's page allocator: the ``number``-th of ``what`` fails."""

    kernel: MachineKernel
    calls: Counter[str] = field(default_factory=Counter)
    what: str = ""
    number: int = 0
    status: int = 0
    lasting: bool = False
    struck: bool = False

    def __post_init__(self) -> None:
        self.kernel.processor.load_seam_module(self)
        self._alloc = self.kernel.pages.alloc_page
        self.kernel.pages.alloc_page = self.alloc_page  # type: ignore[method-assign]

    def _strikes(self, name: str) -> bool:
        self.calls[name] += 1
        count = self.calls[name]
        strikes = name == self.what and (count == self.number or (self.lasting and count > self.number))
        self.struck |= strikes
        return strikes

    def seamcall(self, fn: int, args: SeamArgs, lp: int) -> int:
        return self.status if self._strikes(NAMES[fn & 0xFFFF]) else self.kernel.module.seamcall(fn, args, lp)

    def alloc_page(self, use: str) -> int:
        if self._strikes(f"page for {use}"):
            raise err(errno.ENOMEM, "no page: the test's doing")
        return self._alloc(use)

    def aim(self, what: str, number: int, status: int = 0, *, lasting: bool = False) -> None:
        """Let the ``number``-th of ``what`` fail, and if it is ``lasting`` all that follow."""
        self.calls.clear()
        self.what, self.number, self.status, self.lasting, self.struck = what, number, status, lasting, False


def life(device: Kvm) -> None:
    """Build a TD, let it run, take pages in, convert some, delete a slot, and end. Raises KvmError when it must."""
    with MeasuredTd(device) as td:
        td.seconds(guest.Workload.CPUID, 1)
        td.seconds(guest.Workload.ACCEPT, 3)
        if device.dialect is Dialect.UPSTREAM:
            td.vm.set_memory_attributes(guest.FRESH, 2 * PAGE, 0)
            td.vm.set_memory_attributes(guest.FRESH, 2 * PAGE, k.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        td.seconds(guest.Workload.ACCEPT, 2)
        td.vm.set_user_memory_region(0, 0, 0, 0)


def inventory(kernel: MachineKernel) -> tuple[Counter[str], int]:
    assert kernel.tdx is not None
    return kernel.pages.in_use, kernel.tdx.free_hkids


class Machine:
    """A booted machine with a fault to aim, and how often a life does what."""

    def __init__(self, dialect: Dialect) -> None:
        self.kernel = boot(dialect, Platform(memory_size=1 << 30))
        self.fault = Fault(self.kernel)
        self.device = Kvm(self.kernel)
        life(self.device)  # what the kernel allocates once and keeps
        self.fault.aim("nothing", 1)
        life(self.device)
        self.calls = Counter(self.fault.calls)

    def numbers(self, name: str) -> list[int]:
        """The calls that are made to fail."""
        last = self.calls[name]
        if name == "VP_ENTER":  # the tick makes some more, or fewer
            last //= 2
        return sorted({1, 2, last} & set(range(1, last + 1)))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "DATA_PAGES", 2)
    monkeypatch.setattr(guest, "FRESH_PAGES", 8)


@pytest.fixture(params=list(Dialect), ids=lambda dialect: dialect.value)
def machine(request: pytest.FixtureRequest, small: None) -> Iterator[Machine]:
    machine = Machine(request.param)
    yield machine
    machine.device.close()
    machine.kernel.shutdown()


@pytest.mark.parametrize("status", [BUSY, REFUSED], ids=["busy", "refused"])
def test_a_seamcall_fails(machine: Machine, status: int) -> None:
    for name in sorted(name for name in machine.calls if not name.startswith("page for") and name not in ENDING):
        for number in machine.numbers(name):
            before = inventory(machine.kernel)
            machine.fault.aim(name, number, status)
            what = f"{name} {number}: {_live(machine.device)}"
            assert machine.fault.struck, what
            assert inventory(machine.kernel) == before, what
            check(machine.kernel)
    life(machine.device)


@pytest.mark.parametrize("status", [BUSY, REFUSED], ids=["busy", "refused"])
@pytest.mark.parametrize("name", ENDING)
def test_the_end_of_a_td_fails(machine: Machine, name: str, status: int) -> None:
    """What the module keeps is lost until the next boot; nothing else is, and the kernel does not use it again."""
    for number in machine.numbers(name):
        machine.fault.aim(name, number, status)
        what = f"{name} {number}: {_live(machine.device)}"
        assert machine.fault.struck, what
        check_ownership(machine.kernel, what)
    machine.fault.aim("nothing", 1)
    life(machine.device)
    check_ownership(machine.kernel, name)


def test_a_page_cannot_be_had(machine: Machine) -> None:
    for name in sorted(name for name in machine.calls if name.startswith("page for")):
        for number in machine.numbers(name):
            before = inventory(machine.kernel)
            machine.fault.aim(name, number, lasting=True)  # a first touch asks again before it gives up
            outcome = _live(machine.device)
            assert machine.fault.struck
            assert outcome == "ENOMEM", (name, number, outcome)
            assert inventory(machine.kernel) == before, name
            check(machine.kernel)
    machine.fault.aim("nothing", 1)
    life(machine.device)


def _live(device: Kvm) -> str:
    """How the life ended: the errno's name, or what else."""
    try:
        life(device)
    except KvmError as error:
        if error.errno not in KERNEL_ERRNOS:
            raise
        return errno.errorcode[error.errno or 0]
    except RuntimeError as error:  # KVM_RUN returned, but not with the expected exit
        return str(error)
    return "as if nothing were"
