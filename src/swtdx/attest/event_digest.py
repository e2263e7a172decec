# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an event's digest is that of its data, where the two belong together.

RTMRs vouch for digests only.  What a log says beside them is anybody's, unless the digest is of the data themselves;
which it is, and of what part, is a matter of the event's type (TCG PC Client Platform Firmware Profile, "event types";
GRUB measures what follows the colon; dstack's agent hashes type, name and payload).  Of other events, as of a kernel's
image, the log does not carry what was measured: there nothing can be told.
"""

from __future__ import annotations

import hashlib

from swtdx.attest.event_words import EV_DSTACK_RUNTIME

_WHOLE = {0x04, 0x05, 0x80000001, 0x80000006, 0x80000007, 0x800000E0}
"""Separator, action, variable of a driver's configuration, GPT, EFI action, variable as authority."""
_EV_IPL = 0x0D
_EV_EFI_VARIABLE_BOOT = 0x80000002
_GRUB = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")


def data_measured(event_type: int, data: bytes, digest: bytes, name: str = "") -> bool | None:
    """True: the digest is of the data; False: it should be and is not; None: it is of something else.

    >>> data_measured(0x80000007, b"x", hashlib.sha384(b"x").digest()), data_measured(4, bytes(4), bytes(48))
    (True, False)
    >>> data_measured(0x80000003, b"a device path", bytes(48)) is None
    True
    """
    candidates = _measured(event_type, data, name)
    if not candidates:
        return None
    return any(hashlib.sha384(each).digest() == digest for each in candidates)


def _measured(event_type: int, data: bytes, name: str) -> list[bytes]:
    """What the digest may be of; empty where the data do not tell."""
    if event_type in _WHOLE:
        return [data]
    if event_type == _EV_EFI_VARIABLE_BOOT and len(data) >= 32:  # edk2 measures the contents, older ones all
        return [data[32 + 2 * int.from_bytes(data[16:24], "little") :], data]
    if event_type == EV_DSTACK_RUNTIME and name:
        return [event_type.to_bytes(4, "little") + b":" + name.encode() + b":" + data]
    if event_type == _EV_IPL:
        return [data[len(prefix) :].rstrip(b"\0") for prefix in _GRUB if data.startswith(prefix)]
    return []
