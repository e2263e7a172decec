# SPDX-License-Identifier: GPL-2.0-or-later
"""What an EFI executable extends from its start to the end of boot services: Linux's EFI stub, and systemd-stub.

Linux (drivers/firmware/efi/libstub/efi-stub-helper.c) measures its load options and the initrd that it gets by the
firmware's LoadFile2, if it knows the CC measurement protocol.  A unified kernel image starts with systemd-stub
(`swtdx.attest.uki`), which starts the kernel in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swtdx.attest.authenticode import PeError, authenticode_digest
from swtdx.attest.boot_prediction import EV_IPL, PredictionError, action, application, extension, tagged
from swtdx.attest.event_log import Event
from swtdx.attest.uki import Uki, UkiError, adds_console, knows_protocol, parse_uki, start
from swtdx.image.linux_image import is_efi_executable

TAG_INITRD, TAG_LOAD_OPTIONS = 0x8F3B_22EC, 0x8F3B_22ED
OLD_KERNEL = "this kernel's EFI stub does not measure (Linux 6.9 is the first that does): RTMR2 stays zero"
OLD_INNER_KERNEL = "the kernel in this UKI does not measure (Linux 6.9 is the first that does)"
OLD_STUB = "the systemd-stub of this UKI does not measure into RTMRs (systemd 256 is among the first that do)"
_CONSOLE = (
    "LOADED_IMAGE::LoadOptions (systemd-stub {} appends console= for the console that it finds, unless the command "
    "line has one)"
)
_END = (action("Exit Boot Services Invocation"), action("Exit Boot Services Returned with Success"))


@dataclass(frozen=True)
class Started:
    """The extensions of an executable that ends boot services."""

    events: tuple[Event, ...]
    measures: bool
    """Whether its kernel extends RTMR2."""
    unknown: tuple[tuple[int, str], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def end(self) -> tuple[Event, ...]:
        """The end of boot services, with which the events end; nothing where less is predicted."""
        return _END if self.events[-len(_END) :] == _END else ()


def started(
    image: bytes, name: str, options: bytes, initrd: bytes, secure_boot: bool = False, *, ends: bool = True
) -> Started:
    """What ``image`` extends, started with load ``options`` (bytes, which firmware widens) and ``initrd`` by LoadFile2.

    ``ends``: the load options have a zero behind them. Raises `PredictionError` for an executable that is not known.
    """
    uki = parse_uki(image)
    if uki is None and is_efi_executable(image):
        unknown = f"what {name} extends, which is neither a Linux kernel nor a UKI"
        return Started((), False, tuple((register, unknown) for register in (0, 1, 2)))
    if uki is None:
        if not kernel_measures(image):
            return Started(_END, False, (), (OLD_KERNEL,))
        return Started((*linux_stub(options, initrd, ends), *_END), True)
    try:
        return _started_uki(uki, name, options, initrd, secure_boot)
    except UkiError as error:
        raise PredictionError(f"{name} {error}") from None


def _started_uki(uki: Uki, name: str, options: bytes, initrd: bytes, secure_boot: bool) -> Started:
    given = start(uki, options.decode("latin-1"), initrd, secure_boot)
    remarks = [] if uki.measures else [OLD_STUB]
    events = []
    if uki.measures:
        for text, measured in given.measured:
            events.append(extension(2, EV_IPL, measured, text.encode("utf-16-le") + bytes(2)))
    if given.by_firmware:
        try:
            events.append(application(authenticode_digest(given.kernel), f"the kernel in {name}"))
        except PeError as error:
            raise PredictionError(f"the kernel in {name} {error}") from None
    unknown = [(2, f"EV_IPL ({each})") for each in given.unknown]
    measures = kernel_measures(given.kernel)
    if not measures:
        remarks.append(OLD_INNER_KERNEL)
    else:
        if adds_console(uki, given.command_line):
            unknown.append((2, _CONSOLE.format(uki.version)))
        events += linux_stub(given.command_line, given.initrd)
    return Started((*events, *_END), measures or uki.measures, tuple(unknown), tuple(remarks))


def linux_stub(options: bytes | str, initrd: bytes, ends: bool = True) -> Iterator[Event]:
    """Load options in UTF-16, with a zero behind if they have one, and the initrd unless ``noinitrd`` is among them."""
    text = options.decode("latin-1") if isinstance(options, bytes) else options
    if text:
        yield tagged(TAG_LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0", text.encode("utf-16-le") + bytes(2 * ends))
    if initrd and "noinitrd" not in text.split():
        yield tagged(TAG_INITRD, b"Linux initrd\0", initrd)


def kernel_measures(kernel: bytes) -> bool:
    """Whether a kernel's EFI stub knows the CC measurement protocol."""
    return knows_protocol(kernel)
