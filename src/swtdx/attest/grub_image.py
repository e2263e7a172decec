# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in GRUB's EFI executable: its prefix, a configuration of its own, the names of its modules, its version.

The section ``mods`` holds objects (include/grub/kernel.h, grub_module_info64); a module is an ELF object, whose name is
in its section ``.modname``.  The version is in the SBAT entries.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from swtdx.attest.uki import pe_sections

_MODULES_MAGIC = b"mimg"
_OBJECT_ELF, _OBJECT_CONFIG, _OBJECT_PREFIX = 0, 2, 3
_VERSION = re.compile(rb"\ngrub,\d+,[^,\n]*,[^,\n]*,(\d{1,4})\.(\d{1,4})")
_FIRST_TO_MEASURE = (2, 14)


@dataclass(frozen=True)
class GrubImage:
    """GRUB's executable."""

    prefix: str
    configuration: str
    modules: frozenset[str]
    version: tuple[int, int] | None

    @property
    def measures(self) -> bool:
        """Whether it measures in a TD: since 2.14 the module ``tpm`` does so without a TPM, too."""
        return "tpm" in self.modules and (self.version is None or self.version >= _FIRST_TO_MEASURE)

    @property
    def ends_options(self) -> bool:
        """Whether the kernel's load options end with a zero, as they do since 2.14."""
        return self.version is None or self.version >= _FIRST_TO_MEASURE

    @property
    def loads_by_itself(self) -> bool:
        """Whether it loads kernels without the firmware, which then measures none: distributions' patch before 2.14."""
        return "peimage" in self.modules and not self.ends_options


def parse_grub(image: bytes) -> GrubImage | None:
    """Read an EFI executable; None if it is not GRUB.

    >>> parse_grub(b"MZ") is None
    True
    """
    sections = {each.name: each.contents for each in pe_sections(image)}
    mods = sections.get("mods", b"")
    if mods[:4] != _MODULES_MAGIC or len(mods) < 24:
        return None
    at, size = struct.unpack_from("<QQ", mods, 8)
    prefix = configuration = ""
    modules = set()
    while at + 8 <= min(size, len(mods)):
        kind, length = struct.unpack_from("<II", mods, at)
        if length < 8 or at + length > len(mods):
            break
        contents = mods[at + 8 : at + length]
        if kind == _OBJECT_PREFIX:
            prefix = _text(contents)
        elif kind == _OBJECT_CONFIG:
            configuration = _text(contents)
        elif kind == _OBJECT_ELF:
            modules.add(_module_name(contents))
        at += length
    version = _VERSION.search(sections.get(".sbat", b""))
    numbers = (int(version[1]), int(version[2])) if version else None
    return GrubImage(prefix, configuration, frozenset(modules), numbers)


def _text(contents: bytes) -> str:
    return contents.split(b"\0")[0].decode("utf-8", "replace")


def _module_name(elf: bytes) -> str:
    if elf[:4] != b"\x7fELF" or len(elf) < 64:
        return ""
    table, size, count, names = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HHH", elf, 0x3A)
    headers = [elf[table + size * at : table + size * at + 64] for at in range(min(count, 512))]
    if size != 64 or names >= len(headers) or any(len(each) < 64 for each in headers):
        return ""
    strings = struct.unpack_from("<Q", headers[names], 24)[0]
    for each in headers:
        name = strings + struct.unpack_from("<I", each)[0]
        if elf[name : name + 9] == b".modname\0":
            start, length = struct.unpack_from("<QQ", each, 24)
            return _text(elf[start : start + length])
    return ""
