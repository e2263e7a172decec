# SPDX-License-Identifier: GPL-2.0-or-later
"""What a predicted boot is made of: events with their digests, the RTMRs that they lead to, and what is not known."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from swtdx.attest.event_log import Event
from swtdx.attest.measure import MeasureError
from swtdx.attest.replay import Rtmrs, replay

EV_SEPARATOR, EV_EVENT_TAG, EV_PLATFORM_CONFIG_FLAGS, EV_IPL = 0x4, 0x6, 0xA, 0xD
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT = 0x8000_0001, 0x8000_0002
EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_GPT_EVENT, EV_EFI_ACTION = 0x8000_0003, 0x8000_0006, 0x8000_0007
EV_EFI_VARIABLE_AUTHORITY = 0x8000_00E0
EV_EFI_HANDOFF_TABLES = 0x8000_0009
EV_EFI_PLATFORM_FIRMWARE_BLOB2, EV_EFI_HANDOFF_TABLES2 = 0x8000_000A, 0x8000_000B

NO_DRIVER = "this firmware carries no driver that extends RTMRs (TdTcg2Dxe): they stay zero, whatever it boots"


class PredictionError(MeasureError):
    """These RTMRs cannot be told without a launch; the text is one sentence for a person that says why."""


class KernelRefusedError(PredictionError):
    """Secure Boot keeps the firmware from starting this kernel."""


@dataclass(frozen=True)
class BootPrediction:
    """What a boot extends, and what that leads to.

    The ``events`` are those of the log that the firmware keeps, with their digests; the data of those that tell
    addresses (TD HOB, CFV, kernel) are empty.
    """

    events: tuple[Event, ...]
    rtmrs: Rtmrs
    firmware_measures: bool
    """Whether this firmware extends RTMRs at all."""
    kernel_measures: bool
    """Whether this kernel's EFI stub extends RTMR2."""
    unknown: tuple[tuple[int, str], ...] = ()
    """(register, event) for what is extended and not known; such a register is not predicted."""
    remarks: tuple[str, ...] = ()
    """What is assumed, or will not happen."""

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """The events that are not known."""
        return tuple(text for _, text in self.unknown)

    @property
    def registers(self) -> tuple[int, ...]:
        """The RTMRs that are predicted."""
        opened = {register for register, _ in self.unknown}
        return tuple(register for register in (0, 1, 2) if register not in opened)

    @property
    def notes(self) -> list[str]:
        """What a person should know who compares."""
        if not self.firmware_measures:
            return [NO_DRIVER, *self.remarks]
        found = []
        for register in (0, 1, 2):
            texts = [text for at, text in self.unknown if at == register]
            if texts:
                found.append(f"RTMR{register} is not predicted: unknown {_are(texts)} {', '.join(texts)}")
        return [*found, *self.remarks]

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "rtmrs": [
                value.hex() if number in (*self.registers, 3) else None for number, value in enumerate(self.rtmrs)
            ],
            "unpredicted": list(self.unpredicted),
            "firmware_measures": self.firmware_measures,
            "kernel_measures": self.kernel_measures,
            "notes": self.notes,
            "events": [
                {key: value for key, value in event.as_json().items() if key != "offset"} for event in self.events
            ],
        }


def predicted(
    events: Sequence[Event],
    measures: bool,
    unknown: Sequence[tuple[int, str]] = (),
    remarks: Sequence[str] = (),
) -> BootPrediction:
    """Number events and replay them, in their order."""
    numbered = tuple(replace(event, number=number, offset=number) for number, event in enumerate(events))
    return BootPrediction(numbered, replay(numbered), True, measures, tuple(unknown), tuple(remarks))


def extension(rtmr: int, event_type: int, measured: bytes, data: bytes = b"", name: str = "") -> Event:
    """RTMR ``rtmr`` extended with the digest of ``measured``; its number comes later."""
    return Event(0, 0, rtmr, event_type, hashlib.sha384(measured).digest(), data, name)


def tagged(tag: int, what: bytes, measured: bytes) -> Event:
    """TCG_PCClientTaggedEvent: a tag, and a text that is not measured."""
    return extension(2, EV_EVENT_TAG, measured, struct.pack("<II", tag, len(what)) + what)


def variable(event_type: int, name: str, vendor: UUID, contents: bytes) -> Event:
    """UEFI_VARIABLE_DATA; of a boot variable only the contents are measured, of the others all of it."""
    data = vendor.bytes_le + struct.pack("<QQ", len(name), len(contents)) + name.encode("utf-16-le") + contents
    return extension(0, event_type, contents if event_type == EV_EFI_VARIABLE_BOOT else data, data)


def separator(rtmr: int) -> Event:
    """The four zeroes between two phases."""
    return extension(rtmr, EV_SEPARATOR, bytes(4), bytes(4))


def action(text: str) -> Event:
    """A step of the boot manager."""
    return extension(1, EV_EFI_ACTION, text.encode(), text.encode())


def application(digest: bytes, name: str) -> Event:
    """An executable that is loaded, by its Authenticode digest."""
    return Event(0, 0, 1, EV_EFI_BOOT_SERVICES_APPLICATION, digest, b"", name)


def _are(texts: Sequence[str]) -> str:
    return "is" if len(texts) == 1 else "are"
