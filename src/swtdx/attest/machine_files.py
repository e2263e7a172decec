# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a machine by files: fw_cfg's contents with the ACPI tables, the TD HOB, UEFI variables.

A guest of QEMU shows its fw_cfg in ``/sys/firmware/qemu_fw_cfg/by_name``, each file as a folder with a file ``raw``; a
copy of that tree serves, and so does a plain tree of files with these names.  Variables come from a store
(OVMF_VARS.fd) or from the JSON of virt-firmware (``virt-fw-vars --output-json``) and of QEMU's ``uefi-vars`` device, in
place of those in the image's CFV.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from swtdx.attest.boot_prediction import PredictionError
from swtdx.attest.text_form import JsonError, json_of
from swtdx.attest.variable_store import VariableStore, VariableStoreError, parse_variables
from swtdx.image.acpi_tables import LOADER_FILE

MAXIMUM_FILE = 16 << 20
_MAXIMUM_FILES = 4096
_BOOT_MENU = "BootMenu"


@dataclass(frozen=True)
class MachineFiles:
    """A machine: None for what is as on the board of ``swtdx run``, or in the image."""

    fw_cfg: Mapping[str, bytes] | None = None
    hob: bytes | None = None
    variables: VariableStore | None = None
    cfv: bytes | None = None
    """What lies where the image has its CFV, if the store of variables is as large as that."""
    smbios: Mapping[str, bytes] | None = None
    """fw_cfg's files of SMBIOS tables, on the board of ``swtdx run``, which has none unless they are asked for."""

    @property
    def boot_menu(self) -> bytes:
        """fw_cfg's item for the boot menu, which is not a file: off, unless a file of that name says otherwise."""
        return (self.fw_cfg or {}).get(_BOOT_MENU, bytes(2))


BOARD_OF_RUN = MachineFiles()
"""The board of ``swtdx run``, with the image's own variables."""


def read_fw_cfg(folder: Path) -> dict[str, bytes]:
    """Files of fw_cfg by name. Raises OSError, and `PredictionError` for a folder that is not a copy of fw_cfg."""
    found: dict[str, bytes] = {}
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number > _MAXIMUM_FILES:
            raise PredictionError(f"{folder} has more than {_MAXIMUM_FILES} files: it is not a copy of fw_cfg")
        if not path.is_file() or ((path.parent / "raw").is_file() and path.name in ("key", "name", "size")):
            continue
        name = path.parent if path.name == "raw" else path
        with path.open("rb") as file:
            contents = file.read(MAXIMUM_FILE + 1)
        if len(contents) > MAXIMUM_FILE:
            raise PredictionError(f"{path} is longer than {MAXIMUM_FILE >> 20} MiB, which no file of fw_cfg is")
        found[str(name.relative_to(folder))] = contents
    if LOADER_FILE not in found:
        raise PredictionError(f"{folder} has no {LOADER_FILE}: it is not a copy of fw_cfg with ACPI tables")
    return found


def read_variables(data: bytes) -> VariableStore:
    """Variables in a store, an image with one, or JSON. Raises `swtdx.attest.variable_store.VariableStoreError`.

    >>> read_variables(b'{"version": 2, "variables": []}').variables
    {}
    """
    if data.lstrip()[:1] != b"{":
        return parse_variables(data)
    try:
        listed = json_of(data)["variables"]
        return VariableStore({(each["name"], UUID(each["guid"])): bytes.fromhex(each["data"]) for each in listed})
    except (JsonError, KeyError, TypeError, ValueError, AttributeError):
        raise VariableStoreError("it is JSON, but not a list of variables with name, guid and data") from None
