# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVMCALLs that KVM passes on to the VMM (KVM_EXIT_TDX), and the guest's last words (Intel GHCI 1.5, 344426).

Quotes come from a `QuoteSource`, which the caller chooses (see `swtdx.vmm.get_quote`).  Without one the guest reads
from the status in its buffer that there is no service, as with QEMU when no quote generation socket is configured.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swtdx.uapi import kvm
from swtdx.vmm.board.ioapic import MSI_ADDRESS_BASE, Msi
from swtdx.vmm.get_quote import GetQuote, QuoteSource, SharedMemory
from swtdx.vmm.memory import GuestMemory
from swtdx.x86 import PAGE_SIZE

SUPPORTED_R11 = 1 << 1  # GetTdVmCallInfo leaf 1: SetupEventNotifyInterrupt; GetQuote has no bit of its own


@dataclass
class EventNotification:
    """The interrupt that the guest has set up (SetupEventNotifyInterrupt): APIC id and vector."""

    target: tuple[int, int] | None = None


class TdvmcallService:
    """Answers. ``user_tdvmcalls`` is what KVM says that a VMM may claim to serve (KVM_TDX_CAPABILITIES)."""

    def __init__(
        self,
        memory: SharedMemory,
        user_tdvmcalls: tuple[int, int],
        signal_msi: Callable[[Msi], object],
        quotes: QuoteSource | None = None,
        say: Callable[[str], object] = lambda text: None,
        event: EventNotification | None = None,
    ) -> None:
        self._get_quote = GetQuote(memory, quotes, self._notify_guest, say)
        self._r11 = user_tdvmcalls[0] & SUPPORTED_R11
        self._signal_msi = signal_msi
        self._event = event or EventNotification()

    def answer(self, run: kvm.kvm_run, apic_id: int) -> None:
        """Fill in the answer to the TDVMCALL of a KVM_EXIT_TDX."""
        call = run.tdx
        if call.nr == kvm.TDVMCALL_GET_TD_VM_CALL_INFO:
            info = call.get_tdvmcall_info
            info.ret = kvm.TDVMCALL_STATUS_SUCCESS
            info.r11, info.r12, info.r13, info.r14 = (self._r11 if info.leaf == 1 else 0), 0, 0, 0
        elif call.nr == kvm.TDVMCALL_GET_QUOTE:
            call.get_quote.ret = self._get_quote.request(call.get_quote.gpa, call.get_quote.size)
        elif call.nr == kvm.TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT:
            self._event.target = (apic_id, call.setup_event_notify.vector)
            call.setup_event_notify.ret = kvm.TDVMCALL_STATUS_SUCCESS
        else:
            call.unknown.ret = kvm.TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED

    @property
    def busy(self) -> bool:
        """Whether a quote is under way."""
        return self._get_quote.busy

    def close(self) -> None:
        """Write nothing to the guest's memory from here on."""
        self._get_quote.close()

    def _notify_guest(self) -> None:
        """Signal the interrupt that the guest has set up, to the vCPU on which it did."""
        if self._event.target is not None:
            apic_id, vector = self._event.target
            self._signal_msi((MSI_ADDRESS_BASE | (apic_id & 0xFF) << 12 | (apic_id >> 8) << 40, vector))


# Registers that carry the message of ReportFatalError, in order, by x86 register number (as KVM passes them).
_MESSAGE_REGISTERS = (14, 15, 3, 7, 6, 8, 9, 2)
_R12, _R13 = 12, 13
_GPA_VALID = 1 << 63
_SHARED_BITS = 1 << 47 | 1 << 51  # one of them, by the TD's address width; private addresses of ours have neither


@dataclass(frozen=True)
class FatalError:
    """What a guest said with ReportFatalError. ``gpa`` is the page with more of it, if any."""

    code: int
    message: str
    gpa: int | None

    def __str__(self) -> str:
        message = f': "{self.message}"' if self.message else ""
        return f"the guest reported the fatal error {self.code:#x}{message}"


def decode_fatal_error(registers: Sequence[int], memory: GuestMemory) -> FatalError:
    """Decode KVM_SYSTEM_EVENT_TDX_FATAL; ``registers`` are the 16 in x86 order."""
    text = struct.pack("<8Q", *(registers[number] for number in _MESSAGE_REGISTERS))
    gpa = registers[_R13] & ~_SHARED_BITS if registers[_R12] & _GPA_VALID else None
    message = _printable(text)
    if gpa is not None and memory.contains(gpa, PAGE_SIZE):
        message += _printable(memory.read(gpa, PAGE_SIZE))
    return FatalError(registers[_R12] & 0xFFFF_FFFF, message, gpa)


def _printable(data: bytes) -> str:
    text = data.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
