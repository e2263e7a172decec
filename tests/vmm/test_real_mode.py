# SPDX-License-Identifier: GPL-2.0-or-later
"""A firmware of a few real-mode instructions on whole machines: the same test on the real /dev/kvm and on the emulated.

The image starts at the reset vector, greets on COM1, reads PCI configuration space through the board and powers off.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.image.firmware import Firmware
from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from swtdx.uapi.kernel import Kernel
from swtdx.vmm.launch import Plan, launch
from swtdx.vmm.outcome import End
from swtdx.vmm.run import Run

SIZE = 0x10000


def out_byte(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al"""
    return b"\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes((value,)) + b"\xee"


def image() -> bytes:
    code = b"".join(out_byte(0x3F8, byte) for byte in b"hello\n")
    code += b"\xba\xf8\x0c\x66\xb8\x00\x00\x00\x80\x66\xef"  # mov dx, 0xcf8; mov eax, 0x80000000; out dx, eax
    code += b"\xba\xfe\x0c\xed"  # mov dx, 0xcfe; in ax, dx: the host bridge's device id
    code += b"\xba\xf8\x03\xee\x88\xe0\xee"  # mov dx, 0x3f8; out dx, al; mov al, ah; out dx, al
    code += b"\xba\x04\x06\xb8\x00\x20\xef"  # mov dx, 0x604; mov ax, 0x2000; out dx, ax
    code += b"\xf4\xeb\xfd"  # hlt, again
    start = SIZE - 0x100
    built = bytearray(b"\xf4" * SIZE)
    built[start : start + len(code)] = code
    jump = (start - (0xFFF0 + 3)) & 0xFFFF
    built[0xFFF0:0xFFF3] = b"\xe9" + jump.to_bytes(2, "little")
    return bytes(built)


@pytest.fixture(params=["host", "emulated"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "host":
        request.getfixturevalue("host_kvm")
    return open_kernel(request.param)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_few_real_mode_instructions(kernel: Kernel, cpus: int) -> None:
    printed = bytearray()
    plan = Plan(Firmware(Path("real-mode.bin"), "a test made it", image()), 16 << 20, cpus, None, printed.extend)
    with Kvm(kernel) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        try:
            outcome = run.wait(30)
        finally:
            run.stop()
    assert outcome is not None, "nothing came of it in half a minute"
    assert outcome.end is End.POWER_OFF, outcome.text
    assert printed == b"hello\n\xc0\x29"
    assert run.port_exits[0x3F8] == 8


@pytest.mark.parametrize("port", [0xF4, 0x501])
def test_the_guest_chooses_the_exit_status_by_the_debug_exit_port(port: int) -> None:
    code = b"\xba" + port.to_bytes(2, "little") + b"\x66\xb8\x15\x00\x00\x00\x66\xef\xf4"  # mov eax, 0x15; out dx, eax
    built = bytearray(b"\xf4" * SIZE)
    built[: len(code)] = code
    built[0xFFF0:0xFFF3] = b"\xe9" + (-0xFFF3 & 0xFFFF).to_bytes(2, "little")
    plan = Plan(Firmware(Path("x.bin"), "a test made it", bytes(built)), 16 << 20, 1, None, debug_exit=port)
    with Kvm(open_kernel("emulated")) as device, launch(device, plan) as machine:
        run = Run(machine)
        run.start()
        outcome = run.wait(30)
        run.stop()
    assert outcome is not None
    assert (outcome.end, outcome.status) == (End.DEBUG_EXIT, 0x15 * 2 + 1)
