# SPDX-License-Identifier: GPL-2.0-or-later
"""``--gdb``: what it needs of a machine, said before anything is built, and the server beside the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swtdx.cli.parameters import InputError
from swtdx.uapi.abilities import debuggable

if TYPE_CHECKING:
    from swtdx.vmm.execution import Execution
    from swtdx.vmm.gdb.replayed import Timeline
    from swtdx.vmm.gdb.server import GdbServer
    from swtdx.vmm.gdb.target import Target
    from swtdx.vmm.launch import Machine, TdParameters
    from swtdx.vmm.run import Run

_PRODUCTION = (
    "--gdb: the TDX module does not let a debugger into a production TD (TDH.MEM.RD answers TD_NON_DEBUG, TDH.VP.RD "
    "METADATA_FIELD_NOT_READABLE); add --debug-td for a TD with ATTRIBUTES.DEBUG, which its TDREPORT shows, "
    "or --vm-type default for an ordinary VM"
)
_NO_DOOR = (
    "--gdb: KVM has no ioctl for TDH.MEM.RD and TDH.VP.RD, so the TDs of --kvm host cannot be debugged; "
    "the embedded kernel's can (omit --kvm), and ordinary VMs (--vm-type default)"
)


def check(address: str | None, wait: bool, td: TdParameters | None, kernel: str) -> None:
    """Refuse an address or a machine that a debugger cannot use. Raises InputError."""
    if address is None:
        if wait:
            raise InputError("--gdb-wait needs --gdb ADDRESS, where the debugger connects")
        return
    from swtdx.vmm.gdb.server import AddressError, parse_address

    try:
        parse_address(address)
    except AddressError as error:
        raise InputError(f"--gdb: {error}") from None
    if td is not None and not td.is_debug:
        raise InputError(_PRODUCTION)
    if td is not None and kernel == "host":
        raise InputError(_NO_DOOR)


@contextmanager
def listening(address: str | None, say: Callable[[str], object]) -> Iterator[GdbServer | None]:
    """Yield a server that listens already, and serves nothing yet; None without an address. Raises InputError."""
    if address is None:
        yield None
        return
    from swtdx.vmm.gdb.server import AddressError, GdbServer, parse_address

    try:
        server = GdbServer(parse_address(address), say)
    except AddressError as error:
        raise InputError(f"--gdb: {error}") from None
    with server:
        yield server


def serve(
    server: GdbServer, machine: Machine, run: Run, execution: Execution, timeline: Timeline | None = None
) -> None:
    """Let clients at the machine; ``timeline``: at a replay."""
    server.serve(machine, run, execution, _target(machine), timeline)


def _target(machine: Machine) -> Target:
    if machine.plan.td is None:
        from swtdx.vmm.gdb.vm_target import VmTarget

        return VmTarget(machine)
    kernel = debuggable(machine.vm.kernel)
    if kernel is None:
        raise InputError(_NO_DOOR)
    from swtdx.vmm.gdb.td_target import TdTarget

    return TdTarget(machine, kernel.debug_td(machine.vm.fd))
