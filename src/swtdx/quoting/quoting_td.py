# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD of a few bytes that asks for quotes: TDG.MR.REPORT over given REPORTDATA, then GetQuote, again and again.

Everything that a Linux guest does for a quote happens here, without a Linux: the TDX module makes the report, the guest
copies it into a shared buffer, and the TDVMCALL goes through KVM to the VMM's answer.
"""

from __future__ import annotations

import mmap
import struct
from typing import Self

from swtdx.attest.report import REPORT_SIZE
from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm
from swtdx.uapi.tdx_upstream import TDX_TD_ATTR_SEPT_VE_DISABLE
from swtdx.vmm import bare_guest
from swtdx.vmm.bare_td import BareTd
from swtdx.vmm.get_quote import HEADER, SUCCESS, UNAVAILABLE, VERSION, QuoteRefused, QuoteSource, QuoteUnavailable
from swtdx.vmm.tdvmcall import TdvmcallService
from swtdx.x86 import PAGE_SIZE

REPORTDATA_SIZE = 64
READY_PORT = 0x90
"""Where the guest says that it waits for REPORTDATA; what it reads there is not used."""
_REPORT = bare_guest.STACK - bare_guest.STACK_PAGES * PAGE_SIZE
"""Private memory for the report: the guest pushes nothing so deep."""
_WINDOW = 2 << 20
"""A page of 2 MiB that the guest maps on shared memory from 0 on."""
_SHARED_BIT = 1 << 47
_REPORTDATA = 0x10_0000
BUFFER = 0x10_1000
"""The guest's buffer for GetQuote, and before it a page with REPORTDATA: shared memory."""
BUFFER_SIZE = 8 * PAGE_SIZE


def _mov(register: int, value: int) -> bytes:
    """``mov r64, imm64``; register by its x86 number."""
    return bytes([0x48 | (register >> 3), 0xB8 | (register & 7)]) + struct.pack("<Q", value)


_RAX, _RCX, _RDX, _RSI, _RDI, _R8, _R10, _R11, _R12, _R13 = 0, 1, 2, 6, 7, 8, 10, 11, 12, 13
_TDCALL = b"\x66\x0f\x01\xcc"
_GET_QUOTE_REGISTERS = 0x3C00
"""R10 to R13 are passed."""


def code() -> bytes:
    """Return the guest's code. It begins with mapping shared memory at `_WINDOW`."""
    entry = _SHARED_BIT | 0x80 | 0x3  # a page of 2 MiB, writable and present
    directory = bare_guest.PAGE_TABLES + 2 * PAGE_SIZE
    shared = _WINDOW + BUFFER
    start = _mov(_RAX, entry) + b"\x48\xa3" + struct.pack("<Q", directory + 8)  # mov [directory + 8], rax
    round_ = (
        bare_guest.io_in(READY_PORT)
        + _mov(_RAX, 4) + _mov(_RCX, _REPORT) + _mov(_RDX, _SHARED_BIT | _REPORTDATA) + _mov(_R8, 0)
        + _TDCALL  # TDG.MR.REPORT
        + _mov(_RSI, _REPORT) + _mov(_RDI, shared + HEADER.size) + _mov(_RCX, REPORT_SIZE // 8)
        + b"\xfc\xf3\x48\xa5"  # cld; rep movsq
        + _mov(_RAX, 0) + _mov(_RCX, _GET_QUOTE_REGISTERS) + _mov(_R10, 0) + _mov(_R11, kvm.TDVMCALL_GET_QUOTE)
        + _mov(_R12, _SHARED_BIT | BUFFER) + _mov(_R13, BUFFER_SIZE)
        + _TDCALL
    )  # fmt: skip
    return start + bare_guest.forever(round_)


class _Memory:
    """The shared half of the guest's memory, of one piece from address 0 on."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping

    def contains(self, gpa: int, length: int) -> bool:
        return gpa + length <= len(self._mapping)

    def read(self, gpa: int, length: int) -> bytes:
        return self._mapping[gpa : gpa + length]

    def write(self, gpa: int, data: bytes) -> None:
        self._mapping[gpa : gpa + len(data)] = data


class QuotingTd:
    """A TD whose quotes come from ``source``. A context manager.

    It has SEPT_VE_DISABLE, without which verifiers refuse a TD. ``td`` is its `BareTd`, which is built, measured and
    run. The upstream dialect only.
    """

    def __init__(self, device: Kvm, source: QuoteSource) -> None:
        self.td = BareTd(device, code(), attributes=TDX_TD_ATTR_SEPT_VE_DISABLE)
        try:
            self.td.vm.set_memory_attributes(_REPORTDATA, BUFFER + BUFFER_SIZE - _REPORTDATA, 0)
            self._shared = self.td.memory[0]
            calls = self.td.vm.tdx_capabilities().user_tdvmcalls
            self._service = TdvmcallService(_Memory(self._shared), calls, lambda message: None, source)
            self._run_to(kvm.Exit.IO)
        except BaseException:
            self.td.close()
            raise

    def quote(self, reportdata: bytes = b"") -> bytes:
        """Return a quote with this REPORTDATA (up to 64 bytes, filled with zeros).

        Raises QuoteUnavailable and QuoteRefused, as the guest reads it; ValueError for too much REPORTDATA.
        """
        if len(reportdata) > REPORTDATA_SIZE:
            raise ValueError(f"REPORTDATA has {REPORTDATA_SIZE} bytes, not {len(reportdata)}")
        self._shared[_REPORTDATA : _REPORTDATA + REPORTDATA_SIZE] = reportdata.ljust(REPORTDATA_SIZE, b"\0")
        self._shared[BUFFER : BUFFER + BUFFER_SIZE] = HEADER.pack(VERSION, 0, REPORT_SIZE, 0).ljust(BUFFER_SIZE, b"\0")
        self._run_to(kvm.Exit.IO)
        _, status, _, length = HEADER.unpack_from(self._shared, BUFFER)
        if status == UNAVAILABLE:
            raise QuoteUnavailable("the guest is told that there is no quote generation service")
        if status != SUCCESS:
            raise QuoteRefused(f"the guest reads the status {status:#x}")
        start = BUFFER + HEADER.size
        return bytes(self._shared[start : start + length])

    def _run_to(self, wanted: kvm.Exit) -> None:
        while (exit_ := self.td.run()) is not wanted:
            if exit_ is not kvm.Exit.TDX:
                raise QuoteRefused(f"the guest left with {exit_.name}")
            self._service.answer(self.td.vcpu.kvm_run, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the TD down."""
        self._service.close()
        self.td.close()
