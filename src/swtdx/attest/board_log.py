# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMR0-2 of a direct kernel boot on a board of another make: from an event log that the board has once written.

What a board's own tables measure to cannot be computed without the board.  But a log of one boot has it: the digests of
TD HOB, fw_cfg and ACPI tables.  So of the log is kept what comes from the machine, and what comes from the files given
is put in its place: the CFV and the variables in it, the kernel, the load options and the initrd.

The machine must be the same (memory, vCPUs, devices, VMM) and the firmware of the same build; its boot options are the
log's.  A VMM that patches a kernel's setup header before the firmware reads it, as QEMU did before 10.0, makes another
digest than that of the file: it shows when the same files are given that the log was written with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from swtdx.attest.boot_prediction import (
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_GPT_EVENT,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EVENT_TAG,
    EV_IPL,
    BootPrediction,
    PredictionError,
    predicted,
)
from swtdx.attest.direct_boot import (
    after_the_call,
    cfv_extension,
    kernel_extensions,
    secure_boot_policy,
    started_variables,
)
from swtdx.attest.disk_boot import DiskBoot, chain_extensions, follows_a_disk
from swtdx.attest.efi_start import TAG_INITRD, TAG_LOAD_OPTIONS, Started
from swtdx.attest.event_log import Event
from swtdx.attest.measure import checked
from swtdx.attest.variable_store import VariableStore
from swtdx.image.linux_image import LinuxBoot
from swtdx.image.tdvf import SectionType, Tdvf

_EXIT_BOOT_SERVICES = b"Exit Boot Services"  # the invocation, or a first one that fails
_OF_LOADERS = (EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_VARIABLE_AUTHORITY)
_WITH_DATA = (EV_EVENT_TAG, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_PLATFORM_FIRMWARE_BLOB2)
_OF_THE_STUB = (TAG_INITRD, TAG_LOAD_OPTIONS)


def predict_from_log(image: bytes, linux: LinuxBoot, log: Sequence[Event], name: str = "the image") -> BootPrediction:
    """RTMRs of a TD built from ``image`` that starts ``linux`` on the machine that has written ``log``.

    What the guest has extended into RTMR3 is left out. Raises `swtdx.image.tdvf.TdvfError` for an image that cannot
    start as a TD, `PredictionError` for a log that is not of a direct kernel boot, or an image that is not modelled.
    """
    tdvf = checked(image, name)
    variables = started_variables(tdvf)
    events = [event for event in log if event.extends and event.rtmr != 3]
    kernels = [event for event in events if event.event_type == EV_EFI_BOOT_SERVICES_APPLICATION]
    inner = bool(kernels[1:]) and _of_a_uki(events)  # until systemd 257 the firmware loads a UKI's kernel, too
    if len(kernels) != 1 + inner or kernels[0].rtmr != 1 or follows_a_disk(events):
        raise PredictionError(
            f"the event log is not that of a direct kernel boot: it starts {len(kernels)} EFI applications, not one"
        )
    rest = after_the_call(linux, variables)
    return _merged(tdvf, variables, events, list(kernel_extensions(linux, variables, name)), rest)


def predict_disk_from_log(
    image: bytes, boot: DiskBoot, log: Sequence[Event], name: str = "the image"
) -> BootPrediction:
    """The same for a boot from a disk; the partition table is the log's, unless ``boot`` has the disk.

    Raises as `predict_from_log` does, for a log that is not of a boot from a disk.
    """
    tdvf = checked(image, name)
    variables = started_variables(tdvf)
    events = [event for event in log if event.extends and event.rtmr != 3]
    if not follows_a_disk(events):
        raise PredictionError("the event log is not that of a boot from a disk: give --kernel, as that one was booted")
    rest = chain_extensions(boot, variables, name)
    if boot.disk is None:
        rest = replace(rest, unknown=tuple(each for each in rest.unknown if "EV_EFI_GPT_EVENT" not in each[1]))
    else:
        events = [event for event in events if event.event_type != EV_EFI_GPT_EVENT]
    return _merged(tdvf, variables, events, [], rest)


def _merged(
    tdvf: Tdvf, variables: VariableStore, events: list[Event], loaded: list[Event], rest: Started
) -> BootPrediction:
    """The machine's events of a log, with those of the files given in place of what they were then."""
    cfv = cfv_extension(tdvf)
    for event in events:
        if event.event_type in _WITH_DATA and len(event.data) < 4:
            raise PredictionError(f"event {event.number} of the log has no data: which event is which cannot be told")
        if event.event_type == EV_EFI_PLATFORM_FIRMWARE_BLOB2 and _blob_size(event) != _cfv_size(tdvf):
            raise PredictionError(
                f"the log is of another build of the firmware: its CFV has {_blob_size(event)} bytes, that of "
                f"{tdvf.name} {_cfv_size(tdvf)}"
            )
    policy = {_variable_name(event): event for event in secure_boot_policy(variables)}
    first = next(event for event in events if event.event_type == EV_EFI_BOOT_SERVICES_APPLICATION)
    made: list[Event] = []
    stub = list(rest.events[: len(rest.events) - len(rest.end)])  # the end is the firmware's, and in the log
    for event in events:
        if event is first:
            made += loaded
        elif event.event_type == EV_EFI_PLATFORM_FIRMWARE_BLOB2:
            made.append(cfv)
        elif event.event_type == EV_EFI_VARIABLE_DRIVER_CONFIG and event.rtmr == 0:
            made.append(_same_form(event, policy.get(_variable_name(event), event)))
        elif event.event_type in _OF_LOADERS or _of_the_stub(event):
            continue
        else:
            if event.data.startswith(_EXIT_BOOT_SERVICES):
                made += stub
                stub = []
            made.append(event)
    return predicted([*made, *stub], rest.measures, rest.unknown, rest.remarks)


def _blob_size(event: Event) -> int:
    """EFI_PLATFORM_FIRMWARE_BLOB2 ends with base and length."""
    return int.from_bytes(event.data[-8:], "little")


def _cfv_size(tdvf: Tdvf) -> int:
    return next(section.raw_size for section in tdvf.sections if section.type is SectionType.CFV)


def _variable_name(event: Event) -> bytes:
    """Vendor and name; for an event of another kind, something else."""
    return event.data[:16] + event.data[32 : 32 + 2 * int.from_bytes(event.data[16:24], "little")]


def _same_form(told: Event, policy: Event) -> Event:
    """Firmware built without Secure Boot has no variable SecureBoot, and measures it as empty."""
    without_secure_boot = told.data[24:32] == bytes(8) and told.data[32:] == "SecureBoot".encode("utf-16-le")
    return told if without_secure_boot else policy


def _of_the_stub(event: Event) -> bool:
    """Whether Linux's EFI stub or systemd-stub has measured it."""
    tag = int.from_bytes(event.data[:4], "little")
    return event.rtmr == 2 and (
        event.event_type == EV_IPL or (event.event_type == EV_EVENT_TAG and tag in _OF_THE_STUB)
    )


def _of_a_uki(events: Sequence[Event]) -> bool:
    section = ".linux".encode("utf-16-le")
    return any(event.event_type == EV_IPL and event.data.startswith(section) for event in events)
