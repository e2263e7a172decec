# SPDX-License-Identifier: GPL-2.0-or-later
"""RTMR0-2 of a TD whose firmware starts a Linux kernel that the VMM hands it, predicted without running anything.

What is modelled is edk2's build for TDs (OvmfPkg/IntelTdx, since edk2-stable202505) and Linux's EFI stub, on the board
of ``swtdx run``, in the order in which they measure:

======================  ========  =====================================================================================
who                     register  what
======================  ========  =====================================================================================
SEC                     RTMR0     the TD HOB, without its end; the CFV, which holds the variables; some items of fw_cfg
TdTcg2Dxe               RTMR0     SecureBoot, PK, KEK, db, dbx (dbt), and a separator
ACPI platform driver    RTMR0     the table loader's script, and each blob that it allocates, as fw_cfg gives them
image loader            RTMR0     under Secure Boot: the key of db that allows the kernel
image loader            RTMR1     the kernel, as an Authenticode digest
TdTcg2Dxe               both      at "ready to boot": BootOrder and Boot####; the call of an application, a separator
EFI stub                RTMR2     load options (UTF-16), initrd: if it knows the CC measurement protocol (Linux 6.9)
TdTcg2Dxe               RTMR1     ExitBootServices, called and done
======================  ========  =====================================================================================

RTMR3 stays zero: it is the guest's own.  Which firmware this is can be seen from what the image carries: without the
driver TdTcg2Dxe nothing is ever extended, and the prediction is zeroes.  edk2's generic build (OvmfPkgX64; Debian's
OVMF.fd of 2025.02 and 2026.08 were compared) does the same with other boot options, without fw_cfg where SEC does not
name it, and with an empty SecureBoot where it is built without Secure Boot.  Any other build with that driver extends
RTMR1 and RTMR2 by the same events, as these depend on the kernel alone; its RTMR0 is left open, with the events that
are not known.  What has no such driver is refused rather than guessed.  A newer firmware may yet measure something
else, and only a launch shows it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from swtdx.attest.authenticode import PeError, authenticode_digest
from swtdx.attest.boot_prediction import (
    EV_EFI_HANDOFF_TABLES,
    EV_EFI_HANDOFF_TABLES2,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_PLATFORM_CONFIG_FLAGS,
    BootPrediction,
    KernelRefusedError,
    PredictionError,
    action,
    application,
    extension,
    predicted,
    separator,
    variable,
)
from swtdx.attest.efi_start import Started, kernel_measures, started
from swtdx.attest.event_log import Event
from swtdx.attest.firmware_traits import HOB_EVENT, TD_TCG2_DXE, extends_rtmrs
from swtdx.attest.firmware_volume import FirmwareFile, files
from swtdx.attest.machine_files import BOARD_OF_RUN, MachineFiles
from swtdx.attest.measure import MeasureError, checked
from swtdx.attest.printable import printable
from swtdx.attest.replay import replay
from swtdx.attest.secure_boot import allowing_signature
from swtdx.attest.smbios_tables import SmbiosTablesError, measured_tables
from swtdx.attest.td_shim import measured_hob
from swtdx.attest.variable_store import GLOBAL, IMAGE_SECURITY, VariableStore, VariableStoreError, parse_variables
from swtdx.image.acpi_tables import LOADER_FILE
from swtdx.image.acpi_tables import build as build_acpi
from swtdx.image.fw_cfg_items import Key, standard_files, standard_items
from swtdx.image.initial_memory import InitialMemoryError, td_hob
from swtdx.image.linux_image import LinuxBoot
from swtdx.image.memory_map import MemoryMap
from swtdx.image.tdvf import SectionType, Tdvf, TdvfError, check_memory

BOOT_MANAGER_MENU = UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
_UI_APP = UUID("462caa21-7614-4503-836e-8ab6f4662331")
_SECURE_BOOT_CONFIG_DXE = UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21")
"""Carried by builds with Secure Boot, and by no others."""
_FW_CFG_EVENT = b"QEMU FW CFG"
"""What events of SEC are called; SEC's code has the text in it."""
_MEASURED_ITEMS: tuple[tuple[str, Key | None, int], ...] = (
    ("etc/extra-pci-roots", None, 8),
    ("BootMenu", Key.BOOT_MENU, 2),
    ("etc/boot-menu-wait", None, 2),
    ("etc/reserved-memory-end", None, 8),
    ("opt/ovmf/X-PciMmio64Mb", None, 0),
    ("bootorder", None, 0),
)
"""fw_cfg as SEC measures it: name, key if that is fixed, size it must have (0: any)."""
_SECURE_VARIABLES = (("PK", GLOBAL), ("KEK", GLOBAL), ("db", IMAGE_SECURITY), ("dbx", IMAGE_SECURITY))
_MENU_OPTION = 0x109  # active, hidden, an application
_SETUP_OPTION = 0x101  # not hidden
_HOB_END_SIZE = 8
_LOADER_COMMAND_SIZE, _LOADER_ALLOCATE = 128, 1


OPEN_IN_OTHER_BUILDS = (
    "EV_EFI_VARIABLE_BOOT (BootOrder and Boot####: the boot options that the firmware finds)",
    "EV_EFI_HANDOFF_TABLES2 (the TD HOB, which other builds measure in another form or place)",
    "EV_PLATFORM_CONFIG_FLAGS (which items of fw_cfg it measures)",
)
"""Of RTMR0, in builds other than the one that is modelled."""


@dataclass(frozen=True)
class BootOption:
    """An application in the firmware that the boot manager lists."""

    file: FirmwareFile
    title: str
    attributes: int

    def contents(self) -> bytes:
        assert self.file.volume is not None
        return load_option(self.title, path_in_firmware(self.file.volume, self.file.name), self.attributes)


@dataclass(frozen=True)
class Firmware:
    """Firmware that extends RTMRs, with the machine that it is in."""

    tdvf: Tdvf
    layout: MemoryMap
    carried: Sequence[FirmwareFile]
    options: list[BootOption] | None
    """None for another build than those that are modelled whole."""
    variables: VariableStore


def predict_direct_boot(
    image: bytes,
    linux: LinuxBoot,
    memory_size: int,
    cpus: int = 1,
    name: str = "the image",
    machine: MachineFiles = BOARD_OF_RUN,
) -> BootPrediction:
    """RTMRs of a TD built from the firmware ``image`` that starts ``linux`` on the board of ``swtdx run``.

    ``memory_size`` in bytes. Raises `swtdx.image.tdvf.TdvfError` for an image that cannot start as a TD on such a
    machine, `PredictionError` where what would be measured is not known.
    """
    firmware = extending_firmware(image, memory_size, name, machine)
    if firmware is None:
        measures = kernel_measures(linux.kernel.image)
        return BootPrediction((), replay([]), firmware_measures=False, kernel_measures=measures)
    options, variables = firmware.options, firmware.variables
    if options is None:
        return _of_another_build(linux, variables, name)
    boot_variables = [each.contents() for each in options]
    if variables.get("BootOrder") is not None:
        boot_variables = _stored_options(variables, boot_variables, name)
    events = [
        *machine_extensions(firmware, cpus, machine),
        *kernel_extensions(linux, variables, name),
        *ready_to_boot(boot_variables, smbios_extension(firmware, machine)),
    ]
    rest = after_the_call(linux, variables)
    unknown = [*smbios_unknown(firmware, machine), *rest.unknown]
    return predicted([*events, *rest.events], rest.measures, unknown, rest.remarks)


def extending_firmware(image: bytes, memory_size: int, name: str, machine: MachineFiles) -> Firmware | None:
    """Read the firmware; None if it extends no RTMRs.

    Raises `swtdx.image.tdvf.TdvfError` for an image that cannot start as a TD on such a machine, `PredictionError` for
    one whose measurements are not known.
    """
    tdvf = checked(image, name)
    layout = MemoryMap(memory_size, len(image))
    check_memory(tdvf, layout.ram)
    carried = list(files(image))
    if extends_rtmrs(carried) is False:
        return None
    options = boot_options(carried)
    if options is None:
        check_known_driver(carried, name)
    return Firmware(tdvf, layout, carried, options, machine.variables or started_variables(tdvf))


def machine_extensions(firmware: Firmware, cpus: int, machine: MachineFiles) -> Iterator[Event]:
    """What the firmware extends into RTMR0 before it looks for something to boot. Raises `PredictionError`."""
    tdvf, layout, carried = firmware.tdvf, firmware.layout, firmware.carried
    acpi = machine.fw_cfg
    numbered: Mapping[int, bytes] = {Key.BOOT_MENU: machine.boot_menu}
    if acpi is None:
        acpi = {**standard_files(layout), **build_acpi(layout, cpus, level_interrupts=False).files()}  # as for a TD
        numbered = standard_items(layout, cpus)
    fw_cfg = acpi if _mentions(carried, _FW_CFG_EVENT) else None
    hob = machine.hob
    try:
        measured = td_hob(tdvf, tdvf.hob, layout.ram) if hob is None else measured_hob(hob)
    except InitialMemoryError as error:
        raise PredictionError(str(error)) from None
    yield extension(0, EV_EFI_HANDOFF_TABLES2, measured[:-_HOB_END_SIZE], name="TD HOB")
    cfv = cfv_extension(tdvf)
    yield cfv if machine.cfv is None else extension(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, machine.cfv, name="CFV")
    if fw_cfg is not None:
        yield from _fw_cfg(fw_cfg, numbered)
    yield from secure_boot_policy(firmware.variables, any(each.name == _SECURE_BOOT_CONFIG_DXE for each in carried))
    yield from _acpi(acpi)


def smbios_extension(firmware: Firmware, machine: MachineFiles) -> Event | None:
    """The SMBIOS tables; None if there are none, or they are not known (`smbios_unknown`)."""
    try:
        tables = measured_tables(machine.fw_cfg or machine.smbios or {}, firmware.carried)
    except SmbiosTablesError:
        return None
    return None if tables is None else extension(0, EV_EFI_HANDOFF_TABLES, tables, name="SMBIOS tables")


def smbios_unknown(firmware: Firmware, machine: MachineFiles) -> list[tuple[int, str]]:
    """The SMBIOS tables, where what is measured of them is not known."""
    try:
        measured_tables(machine.fw_cfg or machine.smbios or {}, firmware.carried)
    except SmbiosTablesError as error:
        return [(0, f"EV_EFI_HANDOFF_TABLES (SMBIOS: {error})")]
    return []


def _of_another_build(linux: LinuxBoot, variables: VariableStore, name: str) -> BootPrediction:
    """RTMR1 and RTMR2, which any build of edk2 with TdTcg2Dxe extends by the same events."""
    kernel = [each for each in kernel_extensions(linux, variables, name) if each.rtmr == 1]
    rest = after_the_call(linux, variables)
    unknown = [*((0, text) for text in OPEN_IN_OTHER_BUILDS), *rest.unknown]
    return predicted([*kernel, *calling(), *rest.events], rest.measures, unknown, rest.remarks)


def after_the_call(linux: LinuxBoot, variables: VariableStore) -> Started:
    """From the start of the kernel's EFI stub to the end of boot services; edk2 composes the load options.

    Raises `PredictionError` for a UKI that is not known.
    """
    options = (b"initrd=initrd " if linux.initrd else b"") + linux.command_line.encode()
    return started(linux.kernel.image, linux.kernel.name, options, linux.initrd, variables.secure_boot)


def calling() -> Iterator[Event]:
    """The firmware is ready to boot, and calls the kernel."""
    yield action("Calling EFI Application from Boot Option")
    yield separator(1)


def kernel_refusal(image: bytes, linux: LinuxBoot, name: str) -> str | None:
    """Why the firmware ``image`` called ``name`` will not start this kernel; None if it will, or if that is not known.

    What is looked at are Secure Boot's variables, whatever the kind of VM and of firmware.
    """
    try:
        variables = started_variables(checked(image, name))
        if variables.secure_boot:
            list(kernel_extensions(linux, variables, name))
    except KernelRefusedError as error:
        return str(error)
    except (MeasureError, TdvfError):
        pass
    return None


def _stored_options(variables: VariableStore, brought: Sequence[bytes], name: str) -> list[bytes]:
    """The options of a store (predicted if they are Boot0000 and on), and those of the firmware not among them.

    The firmware adds an option that it brings behind the others, unless there is an equal one.
    Raises `PredictionError`.
    """
    order = variables.get("BootOrder") or b""
    numbers = [int.from_bytes(order[at : at + 2], "little") for at in range(0, len(order), 2)]
    found = [variables.get(f"Boot{number:04X}") for number in numbers]
    if numbers != list(range(len(numbers))) or None in found or len(order) % 2:
        raise PredictionError(f"the variables of {name} have boot options that are not Boot0000 and on, in that order")
    stored = [each for each in found if each is not None]
    return stored + [each for each in brought if each not in stored]


def _fw_cfg(named: Mapping[str, bytes], numbered: Mapping[int, bytes]) -> Iterator[Event]:
    """``named`` and ``numbered``: fw_cfg's files and items, of which SEC measures some."""
    for item, key, size in _MEASURED_ITEMS:
        contents = named.get(item, b"") if key is None else numbered.get(key, b"")
        if contents and size in (0, len(contents)):
            told = _FW_CFG_EVENT + b"\0" + item.encode().ljust(56, b"\0")
            yield extension(0, EV_PLATFORM_CONFIG_FLAGS, contents, told)


def cfv_extension(tdvf: Tdvf) -> Event:
    """The volume of variables as the image has it."""
    section = next(section for section in tdvf.sections if section.type is SectionType.CFV)
    return extension(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, bytes(tdvf.raw_contents(section)), name="CFV")


def secure_boot_policy(variables: VariableStore, built_in: bool = True) -> Iterator[Event]:
    """The variables that decide on Secure Boot, and the separator behind them.

    A build without Secure Boot has no variable SecureBoot, and measures it as empty.
    """
    state = bytes([variables.secure_boot]) if built_in else b""
    yield variable(EV_EFI_VARIABLE_DRIVER_CONFIG, "SecureBoot", GLOBAL, state)
    for name, vendor in _SECURE_VARIABLES:
        yield variable(EV_EFI_VARIABLE_DRIVER_CONFIG, name, vendor, variables.get(name, vendor) or b"")
    timestamps = variables.get("dbt", IMAGE_SECURITY)
    if timestamps is not None:
        yield variable(EV_EFI_VARIABLE_DRIVER_CONFIG, "dbt", IMAGE_SECURITY, timestamps)
    yield separator(0)


def _acpi(acpi: Mapping[str, bytes]) -> Iterator[Event]:
    """The loader's script, then what its commands allocate (QEMU, hw/acpi/bios-linker-loader.c).

    Raises `PredictionError` for files that the script names and that are not there.
    """
    script = acpi[LOADER_FILE]
    yield extension(0, EV_PLATFORM_CONFIG_FLAGS, script, b"ACPI DATA", LOADER_FILE)
    for at in range(0, len(script) - _LOADER_COMMAND_SIZE + 1, _LOADER_COMMAND_SIZE):
        command, file = struct.unpack_from("<I56s", script, at)
        if command == _LOADER_ALLOCATE:
            blob = file.split(b"\0")[0].decode("ascii", "replace")
            if blob not in acpi:
                raise PredictionError(f"fw_cfg has no {printable(blob)}, which its table loader allocates")
            yield extension(0, EV_PLATFORM_CONFIG_FLAGS, acpi[blob], b"ACPI DATA", blob)


def kernel_extensions(linux: LinuxBoot, variables: VariableStore, firmware: str) -> Iterator[Event]:
    """The kernel, as the image loader measures it; under Secure Boot first the key by which it may start.

    Raises `PredictionError` for a kernel without an EFI stub, or one that the firmware refuses.
    """
    yield from loading(linux.kernel.image, linux.kernel.name, variables, firmware, "kernel")


def loading(image: bytes, name: str, variables: VariableStore, firmware: str, title: str) -> Iterator[Event]:
    """An executable that the firmware loads: under Secure Boot the key by which it may start, then its digest.

    Raises `PredictionError` for what is not an executable, or one that the firmware refuses.
    """
    try:
        digest = authenticode_digest(image)
        if variables.secure_boot:
            db, dbx = (variables.get(each, IMAGE_SECURITY) or b"" for each in ("db", "dbx"))
            key = allowing_signature(image, db, dbx)
            if key is None:
                raise KernelRefusedError(
                    f"{firmware} enforces Secure Boot, and {name} is not signed by a key of its db: it will not "
                    "start (virt-fw-vars --add-db makes an image that knows your key, --delete PK one that starts all)"
                )
            yield variable(EV_EFI_VARIABLE_AUTHORITY, "db", IMAGE_SECURITY, key)
    except PeError as error:
        raise PredictionError(
            f"{name} {error}: it has no EFI stub, and what a TD's firmware does with it is not predicted"
        ) from None
    yield application(digest, title)


def load_option(title: str, path: bytes, attributes: int) -> bytes:
    """EFI_LOAD_OPTION: attributes, the size of the device path, the title, the path (UEFI, "Load Options")."""
    return struct.pack("<IH", attributes, len(path)) + (title + "\0").encode("utf-16-le") + path


def path_in_firmware(volume: UUID, name: UUID) -> bytes:
    """Device path of a file: nodes for the volume and the file, and the end (UEFI, 10.3.5.6 and 10.3.5.7)."""
    return b"\x04\x07\x14\0" + volume.bytes_le + b"\x04\x06\x14\0" + name.bytes_le + b"\x7f\xff\x04\0"


def ready_to_boot(options: Sequence[bytes], smbios: Event | None = None) -> Iterator[Event]:
    """SMBIOS tables, the boot options there are, and the call of an application."""
    order = b"".join(number.to_bytes(2, "little") for number in range(len(options)))
    if smbios is not None:
        yield smbios
    yield variable(EV_EFI_VARIABLE_BOOT, "BootOrder", GLOBAL, order)
    for number, each in enumerate(options):
        yield variable(EV_EFI_VARIABLE_BOOT, f"Boot{number:04X}", GLOBAL, each)
    yield from calling()


# --- what the image tells ---------------------------------------------------------------------------------------------


def _mentions(carried: Sequence[FirmwareFile], text: bytes) -> bool:
    return any(text in each.executable for each in carried)


def boot_options(carried: Sequence[FirmwareFile]) -> list[BootOption] | None:
    """The firmware's boot options; None for firmware of another make than is modelled whole.

    A build has edk2's boot manager menu, or UiApp as its menu, or (since 2025.05) both, the second to set it up.
    """
    driver = next((each for each in carried if each.name == TD_TCG2_DXE), None)
    if driver is None or driver.volume is None or not _mentions(carried, HOB_EVENT):
        return None
    beside = {each.name: each for each in carried if each.volume == driver.volume}
    menu, setup = beside.get(BOOT_MANAGER_MENU), beside.get(_UI_APP)
    if menu is None:
        return None if setup is None else [BootOption(setup, setup.title, _MENU_OPTION)]
    if not _mentions(carried, _FW_CFG_EVENT):
        return None  # of before 2025.05, when no build that was compared had this menu
    options = [BootOption(menu, menu.title, _MENU_OPTION)]
    return options if setup is None else [*options, BootOption(setup, "EFI Firmware Setup", _SETUP_OPTION)]


def check_known_driver(carried: Sequence[FirmwareFile], name: str) -> None:
    """Raise `PredictionError` for firmware that does not measure by edk2's driver."""
    if not any(each.name == TD_TCG2_DXE for each in carried):
        raise PredictionError(
            f"{name} is another make of firmware than edk2's builds with TdTcg2Dxe, and only what these extend is "
            "predicted; swtdx run shows what this one does, and --event-log takes it from a log"
        )


def started_variables(tdvf: Tdvf) -> VariableStore:
    """The variables that the firmware starts with. Raises `PredictionError`."""
    found = [section for section in tdvf.sections if section.type is SectionType.CFV]
    if len(found) != 1:
        raise PredictionError(f"{tdvf.name} has {len(found)} CFV sections, and what they do is predicted for one only")
    try:
        variables = parse_variables(bytes(tdvf.raw_contents(found[0])))
    except VariableStoreError as error:
        raise PredictionError(f"the CFV of {tdvf.name} cannot be read: {error}") from None
    return variables
