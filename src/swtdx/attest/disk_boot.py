# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMR0-2 of a TD whose firmware starts a loader from a disk: shim, GRUB with its configuration, a UKI, a kernel.

The firmware measures boot options and "Calling EFI Application" before it loads the loader; with a GPT on the disk then
the partition table, then the loader (edk2, EfiBootManagerBoot and DxeTpm2MeasureBootLib).  Each loader that follows is
measured by the one that starts it.  With the drivers of disks in use, edk2's builds since 2025.05 (2026.08 was
compared) refuse a kernel's first request to end boot services, because it changes the memory map; the failure is
measured.

Boot options depend on the machine's devices: they are known for the board of ``swtdx run`` with one disk, and else
taken from an event log (`swtdx.attest.board_log`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from swtdx.attest.authenticode import PeError, authenticode_digest
from swtdx.attest.boot_prediction import (
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_GPT_EVENT,
    BootPrediction,
    PredictionError,
    action,
    application,
    extension,
    predicted,
)
from swtdx.attest.direct_boot import (
    BOOT_MANAGER_MENU,
    OPEN_IN_OTHER_BUILDS,
    calling,
    extending_firmware,
    load_option,
    loading,
    machine_extensions,
    path_in_firmware,
    ready_to_boot,
    smbios_extension,
    smbios_unknown,
)
from swtdx.attest.efi_start import Started, started
from swtdx.attest.event_log import Event
from swtdx.attest.grub_boot import Reader, Verify, carry_out
from swtdx.attest.grub_image import GrubImage, parse_grub
from swtdx.attest.machine_files import BOARD_OF_RUN, MachineFiles
from swtdx.attest.replay import replay
from swtdx.attest.shim_loader import parse_shim, shim_authority, shim_extensions
from swtdx.attest.uki import parse_uki
from swtdx.attest.variable_store import VariableStore

_SECTOR = 512
_SIGNATURE = b"EFI PART"
_ENTRY_SIZE = 128
_MAXIMUM_ENTRIES = 1024
_ACTIVE, _APPLICATION = 1, 0x101  # LOAD_OPTION_ACTIVE, and with it LOAD_OPTION_CATEGORY_APP
_FAILURE = "Exit Boot Services Returned with Failure"
_SHELL = UUID("7c04a583-9e3e-4f1c-ad65-e05268d0b4d1")
_ONE_DISK = "RTMR0 is that of the board of swtdx run with one disk; --event-log gives another machine's"
_OPTIONS = "EV_EFI_VARIABLE_BOOT (BootOrder and Boot####: the devices of the machine)"
_SECRET = "Linux initrd (this systemd-stub adds a secret of the machine, if the firmware has random numbers)"


class DiskError(PredictionError):
    """The disk's partition table cannot be read."""


@dataclass(frozen=True)
class Image:
    """One executable of the chain."""

    name: str
    contents: bytes


@dataclass(frozen=True)
class DiskBoot:
    """What is started from a disk: executables in their order, the files that GRUB sees, the disk's first sectors.

    ``read`` gives GRUB's files, ``devices`` are the names of GRUB's devices, that of the loader first.
    """

    chain: tuple[Image, ...]
    read: Reader | None = None
    devices: tuple[str, ...] = ("hd0,gpt1",)
    disk: bytes | None = None


def predict_disk_boot(
    image: bytes,
    boot: DiskBoot,
    memory_size: int,
    cpus: int = 1,
    name: str = "the image",
    machine: MachineFiles = BOARD_OF_RUN,
) -> BootPrediction:
    """RTMRs of a TD built from the firmware ``image`` that boots from a disk, on the board of ``swtdx run``.

    Raises `swtdx.image.tdvf.TdvfError` for an image that cannot start as a TD, `PredictionError` where what would be
    measured is not known.
    """
    firmware = extending_firmware(image, memory_size, name, machine)
    if firmware is None:
        return BootPrediction((), replay([]), firmware_measures=False, kernel_measures=False)
    options, variables, carried = firmware.options, firmware.variables, firmware.carried
    rest = chain_extensions(boot, variables, name)
    if options is None:
        unknown = [*((0, text) for text in OPEN_IN_OTHER_BUILDS), *rest.unknown]
        return predicted([*calling(), *rest.events], rest.measures, unknown, rest.remarks)
    if variables.get("BootOrder") is not None:
        raise PredictionError(f"the CFV of {name} has boot options of its own, which is not predicted")
    other_board = [(0, _OPTIONS)] if machine.fw_cfg is not None else []
    shell = next((each.volume for each in carried if each.name == _SHELL), None)
    new = any(each.name == BOOT_MANAGER_MENU for each in carried)  # 2025.05 and later
    every = [*(each.contents() for each in options), *disk_options(shell, _APPLICATION if new else _ACTIVE)]
    if new:
        rest = _asked_twice(rest)
    ready = ready_to_boot(every, smbios_extension(firmware, machine))
    events = [*machine_extensions(firmware, cpus, machine), *ready, *rest.events]
    remarks = rest.remarks if other_board else (_ONE_DISK, *rest.remarks)
    unknown = [*other_board, *smbios_unknown(firmware, machine), *rest.unknown]
    return predicted(events, rest.measures, unknown, remarks)


def gpt_event(disk: bytes) -> Event | None:
    """UEFI_GPT_DATA: the header, how many partitions there are, and these. None for a disk without a GPT.

    Raises `DiskError`.

    >>> gpt_event(bytes(510) + b"\\x55\\xaa" + bytes(512)) is None
    True
    """
    header = disk[_SECTOR : _SECTOR + 92]
    if header[:8] != _SIGNATURE:
        if disk[510:512] != b"\x55\xaa":
            raise DiskError("the disk has no partition table: it is not an image of a disk, or not a raw one")
        return None
    if len(header) < 92:
        raise DiskError("the partition table of the disk is cut off or damaged")
    (start,), (count, size) = struct.unpack_from("<Q", header, 72), struct.unpack_from("<II", header, 80)
    if size < _ENTRY_SIZE or count > _MAXIMUM_ENTRIES or start * _SECTOR + count * size > len(disk):
        raise DiskError("the partition table of the disk is cut off or damaged")
    every = [disk[start * _SECTOR + at * size :][:size] for at in range(count)]
    used = [entry for entry in every if any(entry[:16])]
    data = header + struct.pack("<Q", len(used)) + b"".join(used)
    return extension(1, EV_EFI_GPT_EVENT, data, data)


def chain_extensions(boot: DiskBoot, variables: VariableStore, firmware: str) -> Started:
    """From the disk's partition table to the end of boot services.

    Raises `PredictionError` for executables that are not known, or would not start.
    """
    if not boot.chain:
        raise PredictionError("no executable is given that the firmware could start")
    events: list[Event] = []
    unknown: list[tuple[int, str]] = []
    table = gpt_event(boot.disk) if boot.disk is not None else None
    first = boot.chain[0]
    *allowed, loaded = loading(first.contents, first.name, variables, firmware, first.name)
    if boot.disk is None:
        unknown.append((1, "EV_EFI_GPT_EVENT (the partition table of the disk; --disk FILE gives it)"))
    events += [*allowed, *([table] if table is not None else []), loaded]
    rest = _go_on(boot, 0, variables)
    return replace(rest, events=(*events, *rest.events), unknown=(*unknown, *rest.unknown))


def _go_on(boot: DiskBoot, at: int, variables: VariableStore, verify: Verify | None = None) -> Started:
    """What the executable at this place of the chain extends, and all that follows."""
    image = boot.chain[at]
    shim = parse_shim(image.contents)
    if shim is not None:
        if at + 1 >= len(boot.chain):
            text = f"what {image.name}, which is shim, starts: give the loader with another --boot"
            every = tuple((register, text) for register in (0, 1, 2))
            return Started(tuple(shim_extensions(shim, variables)), True, every)
        following = boot.chain[at + 1]
        authority = list(shim_authority(shim, following.contents, following.name, variables))
        events = [*shim_extensions(shim, variables), *authority, _loaded(following)]

        def verify(image: bytes, name: str) -> list[Event]:
            """Shim measures a kernel, then the certificate that allows it, if it has not measured that yet."""
            more = shim_authority(shim, image, name, variables)
            return [_loaded(Image(name, image)), *(each for each in more if each not in authority)]

        rest = _go_on(boot, at + 1, variables, verify if variables.secure_boot else None)
        return replace(rest, events=(*events, *rest.events))
    grub = parse_grub(image.contents)
    if grub is not None:
        return _grub(boot, image, grub, variables, verify)
    if at + 1 < len(boot.chain):
        raise PredictionError(f"{image.name} is neither shim nor GRUB, and no loader can follow it")
    last = started(image.contents, image.name, b"", b"", variables.secure_boot)
    uki = parse_uki(image.contents)
    remarks = list(last.remarks)
    if uki is not None:
        remarks.append(f"{image.name} is taken to have no add-ons, credentials or extensions beside it on the disk")
        if uki.adds_secret:
            return replace(last, unknown=(*last.unknown, (2, _SECRET)), remarks=tuple(remarks))
    return replace(last, remarks=tuple(remarks))


def _grub(boot: DiskBoot, image: Image, grub: GrubImage, variables: VariableStore, verify: Verify | None) -> Started:
    if boot.read is None:
        text = f"EV_IPL (what GRUB reads: --grub-root FOLDER gives its files), and what follows {image.name}"
        return Started((), True, ((1, text), (2, text)))
    found = carry_out(grub, boot.read, boot.devices, verify)
    unknown = [(register, text) for text in found.unknown for register in (1, 2)]
    if found.loaded is None:
        return Started(tuple(found.events), True, tuple(unknown), tuple(found.remarks))
    kernel = found.loaded
    if variables.secure_boot and verify is None:
        unknown.append((1, f"EV_EFI_BOOT_SERVICES_APPLICATION ({kernel.kernel_name}, under Secure Boot without shim)"))
    start = [] if grub.loads_by_itself or verify is not None else [_loaded(Image(kernel.kernel_name, kernel.kernel))]
    options = kernel.options.encode("utf-8", "surrogateescape")
    last = started(
        kernel.kernel, kernel.kernel_name, options, kernel.initrd, variables.secure_boot, ends=grub.ends_options
    )
    return Started(
        (*found.events, *start, *last.events),
        last.measures,
        (*unknown, *last.unknown),
        (*found.remarks, *last.remarks),
    )


def _asked_twice(last: Started) -> Started:
    """The end of boot services, which fails once."""
    if not last.end:
        return last
    return replace(last, events=(*last.events[: -len(last.end)], action(_FAILURE), *last.end))


def _loaded(image: Image) -> Event:
    try:
        return application(authenticode_digest(image.contents), image.name)
    except PeError as error:
        raise PredictionError(f"{image.name} {error}") from None


def follows_a_disk(events: Sequence[Event]) -> bool:
    """Whether a log is of a boot from a disk: the firmware calls an application before it has loaded one."""
    for event in events:
        if event.event_type == EV_EFI_BOOT_SERVICES_APPLICATION:
            return False
        if event.rtmr == 1 and event.data.startswith(b"Calling EFI Application"):
            return True
    return False


def disk_options(shell_volume: UUID | None, shell_attributes: int) -> Iterator[bytes]:
    """Boot options that the firmware adds on the board of ``swtdx run`` with one disk: the disk, and its shell."""
    disk = b"\x02\x01\x0c\x00\xd0\x41\x03\x0a\0\0\0\0" + b"\x01\x01\x06\0\0\x01" + b"\x7f\xff\x04\0"
    by_the_boot_manager = UUID("8108ac4e-9f11-4d59-850e-e21a522c59b2").bytes_le  # mBmAutoCreateBootOptionGuid
    yield load_option("UEFI Misc Device", disk, _ACTIVE) + by_the_boot_manager
    if shell_volume is not None:
        yield load_option("EFI Internal Shell", path_in_firmware(shell_volume, _SHELL), shell_attributes)
