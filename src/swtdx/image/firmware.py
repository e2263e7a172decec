# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the firmware: which file, and why that one.

In this order: the file a person names; QEMU's firmware descriptors (docs/interop/firmware.json in QEMU: JSON files that
say what an image can do) with the feature ``intel-tdx``; the paths at which distributions put an OVMF built with TDX.
Descriptors are read from the user's, the administrator's and the distribution's folder; a file hides those of the same
name in later folders, an empty file hides without replacing, and what remains is taken in order of file name.

A candidate that turns out not to be a TDVF is passed over, and the reason is kept for the error text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swtdx.image.tdvf import MAXIMUM_IMAGE_SIZE, TdvfError, check_image_size, parse

NO_FIRMWARE = "none"
"""What stands for "no firmware" where a firmware is named."""

FEATURE = "intel-tdx"
_NAMED = "it was named"
_LONGEST_DESCRIPTOR = 1 << 20  # characters
ARCHITECTURE = "x86_64"

USUAL_PATHS = (
    Path("/usr/share/ovmf/OVMF.inteltdx.fd"),
    Path("/usr/share/ovmf/OVMF.inteltdx.ms.fd"),
    Path("/usr/share/OVMF/OVMF.inteltdx.fd"),
    Path("/usr/share/edk2/ovmf/OVMF.inteltdx.fd"),
    Path("/usr/share/edk2-ovmf/x64/OVMF.inteltdx.fd"),
    Path("/usr/share/edk2/x64/OVMF.inteltdx.4m.fd"),
    Path("/usr/share/qemu/OVMF.inteltdx.fd"),
    Path("/usr/share/ovmf/OVMF.fd"),
    Path("/usr/share/OVMF/OVMF.fd"),
    Path("/usr/share/edk2/ovmf/OVMF.fd"),
    Path("/usr/share/qemu/OVMF.fd"),
)


class FirmwareError(Exception):
    """No usable firmware; the text is one sentence for a person."""


@dataclass(frozen=True)
class Firmware:
    """A firmware image in memory, where it came from, and why it was chosen."""

    path: Path
    why: str
    image: bytes

    @property
    def described(self) -> str:
        """Path and reason, for a person."""
        return f"{self.path} (--firmware)" if self.why == _NAMED else f"{self.path}: {self.why}"


def find_firmware(
    named: Path | None = None,
    *,
    tdx: bool = True,
    usual_paths: Sequence[Path] = USUAL_PATHS,
    descriptor_folders: Sequence[Path] | None = None,
) -> Firmware:
    """The firmware to launch.

    ``named`` wins and is not second-guessed: what is wrong with it is an error.  With ``tdx`` false (ordinary VM) any
    image that fits below 4 GiB will do when named; the search is the same, so that both kinds run the same firmware.
    Raises `FirmwareError` or, for a named image, `TdvfError`.
    """
    if named is not None:
        image = _read(named)
        if tdx:
            parse(image, str(named))
        else:
            check_image_size(image, str(named))
        return Firmware(named, _NAMED, image)
    passed_over: list[str] = []
    for path, why in candidates(usual_paths, descriptor_folders):
        try:
            image = _read(path)
            parse(image, str(path))
        except (FirmwareError, TdvfError) as error:
            passed_over.append(str(error))
            continue
        return Firmware(path, why, image)
    reasons = f" ({'; '.join(passed_over)})" if passed_over else ""
    raise FirmwareError(
        f"no TDVF was found{reasons}: install a package that has one (Debian and Ubuntu: ovmf), "
        "or name one with --firmware"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that cannot be searched
        return False


def descriptor_search_folders(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """The three folders of QEMU's firmware descriptors, strongest first."""
    configuration = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "/"), ".config")
    return Path(configuration, "qemu/firmware"), Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")


def candidates(
    usual_paths: Sequence[Path] = USUAL_PATHS, descriptor_folders: Sequence[Path] | None = None
) -> Iterator[tuple[Path, str]]:
    """(path, why it is looked at) of every image that `find_firmware` would try, in its order; none is read."""
    folders = descriptor_search_folders() if descriptor_folders is None else descriptor_folders
    for descriptor, path in _described(folders):
        yield path, f"the firmware descriptor {descriptor} offers the feature {FEATURE}"
    for path in usual_paths:
        if _exists(path):
            yield path, "the first of the usual paths that holds a TDVF"


def _described(folders: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """(descriptor, image) of every descriptor that offers TDX, in their order."""
    by_name: dict[str, Path] = {}
    for folder in folders:
        try:
            found = sorted(folder.glob("*.json"))
        except OSError:
            continue
        for descriptor in found:
            by_name.setdefault(descriptor.name, descriptor)
    for _, descriptor in sorted(by_name.items()):
        try:
            with descriptor.open(encoding="utf-8") as file:
                text = file.read(_LONGEST_DESCRIPTOR)
            image = _image_of(json.loads(text)) if text.strip() else None
        except (OSError, ValueError, RecursionError):
            continue  # a broken descriptor describes nothing
        if image is not None:
            yield descriptor, image


def _image_of(description: Any) -> Path | None:
    """The image file of a descriptor, if it is for this architecture and offers TDX."""
    if not isinstance(description, dict) or FEATURE not in _list(description.get("features")):
        return None
    targets = _list(description.get("targets"))
    if not any(isinstance(target, dict) and target.get("architecture") == ARCHITECTURE for target in targets):
        return None
    mapping = description.get("mapping")
    if not isinstance(mapping, dict):
        return None
    if mapping.get("device") == "flash":
        mapping = mapping.get("executable")
    name = mapping.get("filename") if isinstance(mapping, dict) else None
    return Path(name) if isinstance(name, str) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # One byte more than can be used shows an oversized file without reading gigabytes of it.
            image = file.read(MAXIMUM_IMAGE_SIZE + 1)
            if len(image) > MAXIMUM_IMAGE_SIZE:
                size = os.fstat(file.fileno()).st_size
                long = f"{size} bytes long" if size else f"longer than {MAXIMUM_IMAGE_SIZE} bytes"
                raise FirmwareError(
                    f"{path} is {long}, but firmware must fit into the {MAXIMUM_IMAGE_SIZE >> 20} MiB below 4 GiB"
                )
            return image
    except OSError as error:
        raise FirmwareError(f"{path} cannot be read: {error.strerror or error}") from None
