# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found in a machine that runs: a guest that hands over a bit too many, and one that is right.

What a guest may hand over and take is the GHCI specification's; how Linux up to 7.1 errs is in `ve_guest`.
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.platform import Platform
from swtdx.lint.from_trace import lint
from swtdx.lint.report import Finding, Findings
from swtdx.machine import boot
from swtdx.trace.event import Event
from swtdx.uapi.client import Kvm
from swtdx.uapi.kvm import Exit
from swtdx.vmm import bare_guest
from swtdx.vmm.bare_td import BareTd
from tests.lint import ve_guest

SMALL = Platform(memory_size=1 << 30)


def looked_at(code: bytes, *, notes: bool = False, trace: list[Event] | None = None) -> tuple[Findings, dict[int, int]]:
    """Let a TD run to `ve_guest.DONE`; what was found, and the last value written to each port."""
    findings, written = Findings(notes=notes), dict[int, int]()
    kernel = boot(platform=SMALL, lint=findings, trace=None if trace is None else trace.append)
    try:
        with Kvm(kernel) as device, BareTd(device, code) as td:
            while True:
                assert td.run() is Exit.IO
                io = td.vcpu.kvm_run.io
                if io.direction:
                    written[io.port] = int.from_bytes(td.vcpu.io_data(), "little")
                else:
                    td.vcpu.set_io_data(b"\x5a" * io.size)
                if io.port == ve_guest.DONE:
                    break
    finally:
        kernel.flush_trace()
        kernel.shutdown()
    return findings, written


def kinds(findings: Findings) -> dict[tuple[str, str], Finding]:
    return {(found.rule, found.what): found for found in findings.all()}


def test_a_handler_that_is_a_bit_too_generous_is_found_on_both_sides() -> None:
    findings, _ = looked_at(ve_guest.code(extra=1))
    found = kinds(findings)
    bits = {1: 0x100, 2: 0x10000, 4: 1 << 32}
    for size, text in ((1, "1 byte"), (2, "2 bytes"), (4, "4 bytes")):
        out = found.pop(("operand-bits", f"Instruction.IO, write of {text}: R15"))
        into = found.pop(("answer-bits", f"Instruction.IO, read of {text}: R11 to RAX"))
        for each in (out, into):
            assert (each.bits, each.operand, each.count) == (bits[size], bits[size] - 1, 1)
            assert each.bits | each.operand == 2 * bits[size] - 1  # the mask, GENMASK(8 * size, 0)
            assert bare_guest.CODE < next(iter(each.places)) < each.tdcall < bare_guest.CODE + 0x200
        assert out.instruction.startswith("out dx,")
        assert into.instruction.startswith("in ")
    assert found == {}


def test_a_handler_that_is_right_is_silent_and_notices_nothing() -> None:
    findings, _ = looked_at(ve_guest.code(extra=0), notes=True)
    assert findings.all() == []
    assert (findings.calls, findings.answers) == (7, 3)


def test_the_guest_gets_what_the_host_has_answered() -> None:
    """With every other bit set, a guest that is right reads the same: it writes it back."""
    body = f"""
    mov edx, {ve_guest.IN_PORT}
    movabs rax, 0x1122334400000000
    in al, dx
    mov edx, {ve_guest.OUT_PORT}
    out dx, eax
    """
    _, written = looked_at(ve_guest.code(extra=0, body=body))
    assert written[ve_guest.OUT_PORT] == 0x5A


def test_an_instruction_is_looked_at_four_times() -> None:
    body = f"""
    mov ebx, 20
    mov edx, {ve_guest.IN_PORT}
9:  in al, dx
    dec ebx
    jnz 9b
    """
    findings, _ = looked_at(ve_guest.code(extra=0, body=body))
    assert (findings.calls, findings.answers) == (21, 4)


def test_a_call_without_a_ve_names_its_tdcall() -> None:
    value = bare_guest.io_out(0x80, 0x1FF)
    findings, _ = looked_at(value + bare_guest.io_out(ve_guest.DONE, 1))
    (found,) = findings.all()
    assert (found.rule, found.bits, found.operand) == ("operand-bits", 0x100, 0xFF)
    assert list(found.places) == [bare_guest.CODE + len(value) - 4]  # TDCALL is the last instruction


@pytest.mark.parametrize("extra", [0, 1])
def test_a_trace_shows_what_is_handed_over(extra: int) -> None:
    trace: list[Event] = []
    live, _ = looked_at(ve_guest.code(extra), trace=trace)
    findings = Findings()
    lint(trace, findings)
    wanted = {key for key in kinds(live) if key[0] == "operand-bits"}
    assert set(kinds(findings)) == wanted
    assert len(wanted) == 3 * extra
    for key in wanted:
        assert kinds(findings)[key].places == kinds(live)[key].places
    assert findings.calls == live.calls == 7


def test_private_contents_of_memory_that_is_made_shared_are_a_note() -> None:
    """The second page of the code is MapGPA'd away: it is not zero."""
    code = ve_guest.code(0, "").ljust(0x1000, b"\xcc") + b"secret".ljust(0x1000, b"\x01")
    shared = bare_guest.CODE + 0x1000 | 1 << 47
    call = (
        b"\x31\xc0\xb9\x00\xfc\x00\x00\x45\x31\xd2\x41\xbb\x01\x00\x01\x00"
        + b"\x49\xbc" + struct.pack("<Q", shared)
        + b"\x41\xbd" + struct.pack("<I", 0x1000)
        + b"\x45\x31\xf6\x45\x31\xff\x66\x0f\x01\xcc"
    )  # fmt: skip
    code = (call + bare_guest.io_out(ve_guest.DONE, 1)).ljust(0x1000, b"\xcc") + code[0x1000:]
    findings, _ = looked_at(code, notes=True)
    (found,) = findings.all()
    assert (found.rule, found.severity, found.example) == (
        "private-contents", "note", f"1 of 1 pages at {shared:#x}",
    )  # fmt: skip
