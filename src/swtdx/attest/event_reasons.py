# SPDX-License-Identifier: GPL-2.0-or-later
"""The usual reason why an event differs between two boots, by register, type and words."""

from __future__ import annotations

import re
from typing import NamedTuple

from swtdx.attest.event import Event


class _Row(NamedTuple):
    register: int
    event_type: int | None
    words: str
    """A regular expression that the event's words begin with."""
    reason: str


_ROWS = tuple(
    _Row(*row)
    for row in (
        (0, 0x8000_000B, "TdxTable|TD HOB", "the TD HOB: another size of guest memory, or another VMM"),
        (0, 0x8000_0009, "", "SMBIOS tables: another machine, or another release of the VMM"),
        (0, 0x8000_000B, "", "SMBIOS tables: another machine, or another release of the VMM"),
        (0, 0x8000_000A, "", "the CFV: other variables in the firmware's image"),
        (0, 0xA, "ACPI DATA|etc/", "ACPI tables: vCPUs, memory, devices, or another release of the VMM"),
        (0, 0xA, "fw_cfg", "an option of the VMM, which the firmware reads from fw_cfg"),
        (0, 0x8000_0001, "SbatLevel", "another shim"),
        (0, 0x8000_0001, "", "Secure Boot's keys, or whether it is on"),
        (0, 0x8000_0002, "", "boot options: another disk, or an option that the guest has added"),
        (0, 0x8000_00E0, "", "the key that allows the loader: another certificate, or another signature"),
        (0, 0x4, "", "firmware from before edk2 commit efaf893, which measured it twice"),
        (1, 0x8000_0003, "", "another kernel, shim or boot loader; QEMU before 10.0 patches the kernel's header"),
        (1, 0x8000_0006, "", "another partition table"),
        (1, 0x8000_0007, "Exit Boot Services Returned with Failure", "the kernel had to ask twice"),
        (1, 0x8000_0007, "", "another boot: of a disk, of a kernel that the VMM hands over, or with the shell"),
        (2, 0x6, "LOADED_IMAGE::LoadOptions", "the kernel's command line, an initrd= in front of it included"),
        (2, 0x6, "Linux initrd", "another initial RAM disk"),
        (2, 0xD, "kernel_cmdline", "the kernel's command line"),
        (2, 0xD, r"grub_cmd|\(|/", "GRUB's configuration, another menu entry, or a file that it reads"),
        (2, 0xD, "MokList|Shim|Sbat", "another shim, or keys that were enrolled"),
        (2, 0xD, r"\.\w+", "another unified kernel image"),
        (2, 0xD, "", "load options, or a file that a boot loader reads"),
        (3, None, "", "the guest's own agent, or IMA"),
    )
)


def usual_reason(event: Event) -> str | None:
    """Why this event usually differs; None if there is no usual reason.

    >>> usual_reason(Event(0, 0, 1, 0x80000006, bytes(48), b""))
    'another partition table'
    """
    text = event.words
    for row in _ROWS:
        if row.register == event.rtmr and row.event_type in (None, event.event_type) and re.match(row.words, text):
            return row.reason
    return None
