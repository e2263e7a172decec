# SPDX-License-Identifier: GPL-2.0-or-later
"""UEFI variables as a firmware image brings them along, in the volume that a TDVF calls its CFV.

edk2's store of authenticated variables (MdeModulePkg, AuthenticatedVariableFormat.h): the volume's header, the store's
header, then one record after the other, each with a state byte whose bits are cleared as it is written and deleted.  A
TD cannot write the flash that its host would keep, so these are the variables that every boot starts with.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from swtdx.attest.firmware_volume import volumes

NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
"""File system of a volume that holds variables."""
AUTHENTICATED_STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")

_STORE = struct.Struct("<16sIBBHI")  # signature, size, format, state, reserved
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")  # start, state, ..., name size, data size, vendor
_FORMATTED, _HEALTHY = 0x5A, 0xFE
_START = 0x55AA
_ADDED = 0x3F
_ADDED_BEING_REPLACED = 0x3E


class VariableStoreError(ValueError):
    """There is no store of variables, or it is not whole; the text is one sentence."""


@dataclass(frozen=True)
class VariableStore:
    """The variables of a store, by (name, vendor)."""

    variables: dict[tuple[str, UUID], bytes]

    def get(self, name: str, vendor: UUID = GLOBAL) -> bytes | None:
        """The variable's contents, if there is one."""
        return self.variables.get((name, vendor))

    @property
    def secure_boot(self) -> bool:
        """Whether firmware that starts with these variables enforces Secure Boot.

        It does once there is a platform key, unless ``SecureBootEnable`` says otherwise (edk2, AuthVariableLib).
        """
        enabled = self.get("SecureBootEnable", SECURE_BOOT_ENABLE)
        return bool(self.get("PK")) and (enabled is None or enabled[:1] == b"\1")


def parse_variables(volume: bytes) -> VariableStore:
    """Read a CFV. Raises `VariableStoreError`.

    >>> parse_variables(bytes(64))
    Traceback (most recent call last):
    ...
    swtdx.attest.variable_store.VariableStoreError: it holds no volume of variables
    """
    found = [each for each in volumes(volume) if UUID(bytes_le=bytes(each[16:32])) == NV_DATA]
    if not found:
        raise VariableStoreError("it holds no volume of variables")
    start = int.from_bytes(found[0][48:50], "little")
    store = found[0][start:]
    if len(store) < _STORE.size:
        raise VariableStoreError("its volume of variables is truncated")
    signature, size, formatted, state, _, _ = _STORE.unpack_from(store)
    if UUID(bytes_le=signature) != AUTHENTICATED_STORE:
        raise VariableStoreError("its variables are not of the authenticated kind")
    if (formatted, state) != (_FORMATTED, _HEALTHY) or not _STORE.size <= size <= len(store):
        raise VariableStoreError("its store of variables is not formatted, or damaged")
    return VariableStore(_variables(store[:size]))


def _variables(store: memoryview) -> dict[tuple[str, UUID], bytes]:
    settled: dict[tuple[str, UUID], bytes] = {}
    replaced: dict[tuple[str, UUID], bytes] = {}
    at = _STORE.size
    while (at := -(-at // 4) * 4) + _VARIABLE.size <= len(store):
        start, state, _, _, _, _, _, name_size, data_size, vendor = _VARIABLE.unpack_from(store, at)
        if start != _START:
            break
        at += _VARIABLE.size
        if name_size + data_size > len(store) - at:
            raise VariableStoreError(f"its variable at offset {at - _VARIABLE.size:#x} of the store is truncated")
        name = bytes(store[at : at + name_size]).decode("utf-16-le", "replace").rstrip("\0")
        key, data = (name, UUID(bytes_le=vendor)), bytes(store[at + name_size : at + name_size + data_size])
        at += name_size + data_size
        if state == _ADDED:
            settled[key] = data
        elif state == _ADDED_BEING_REPLACED:
            replaced[key] = data
    return {**replaced, **settled}
