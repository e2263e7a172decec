# SPDX-License-Identifier: GPL-2.0-or-later
"""Unified kernel images: what is in them, and what systemd-stub extends from it.

A UKI is systemd-stub with sections appended: kernel, initrd, command line and more (UAPI group, "Unified Kernel
Image").  The stub measures into PCRs 11 (the sections) and 12 (parameters), both of which the CC measurement protocol
maps to RTMR2 (systemd, src/boot/stub.c and src/fundamental/uki.c):

1. the number of a profile other than the first, if the load options begin with ``@N`` (not in 257);
2. of each section but .pcrsig, in a fixed order that is not that of the file, its name with a NUL, and its contents;
3. the load options, unless Secure Boot is on and the image has a command line of its own.

Then it makes one initrd of several and starts the kernel.  Until 257 the stub has the firmware load the kernel, which
extends RTMR1; since 258 it loads it by itself.  The kernel's own stub measures command line and initrd as ever.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

CC_PROTOCOL = bytes.fromhex("3d1a7596f472a641a794ed5d0e67ae6b")
"""EFI_CC_MEASUREMENT_PROTOCOL_GUID (UEFI 2.10, 38.2.2), as it lies in memory."""
_ORDER = (
    (".linux", 0), (".osrel", 0), (".cmdline", 0), (".initrd", 0), (".ucode", 256), (".splash", 0), (".dtb", 0),
    (".uname", 0), (".sbat", 0), (".pcrsig", 0), (".pcrpkey", 0), (".profile", 257), (".dtbauto", 257), (".hwids", 257),
    (".efifw", 258),
)  # fmt: skip
"""Sections in the order in which they are measured, and the release of systemd whose stub is the first to know them."""
_UNMEASURED = ".pcrsig"
_BY_HARDWARE = (".dtbauto", ".efifw")
"""Taken where the machine's identifiers match: not known without the machine."""
_PAYLOAD = frozenset({name for name, _ in _ORDER} - {".sbat"})
_VERSION = re.compile(rb"LoaderInfo: systemd-stub (\d+)")
_SECTION = struct.Struct("<8s4I")  # name, size in memory, address, size in the file, offset
_SECTION_SIZE = 40
_MAXIMUM_SECTIONS = 96
"""As many as the PE format's loaders take."""
_FIRST_WITHOUT_LOAD_IMAGE = 258
_FIRST_WITH_OS_RELEASE = 257
_FIRST_WITH_PROFILES = 257
_FIRST_WITH_PREVIOUS_INITRD = 258
_FIRST_WITH_CONSOLE = 262
_MEASURES_NO_PROFILE, _MEASURES_PROFILE = 257, 262
"""Stubs that were compared: the first measures the number of a profile into a TPM alone. Those between were not."""
_BOOT_SECRET = "LoaderBootSecret".encode("utf-16-le")
"""The variable that holds the secret."""
_PROFILE = re.compile(r"@(\d{1,9})(?: |\Z)")


class UkiError(ValueError):
    """A UKI whose boot is not predicted; the text is one sentence that continues its name."""


@dataclass(frozen=True)
class Section:
    """One section as it is in memory."""

    name: str
    contents: bytes


@dataclass(frozen=True)
class Uki:
    """A unified kernel image: the stub's release, whether it knows the CC protocol, and all sections in file order."""

    version: int
    measures: bool
    sections: tuple[Section, ...]
    adds_secret: bool = False
    """From a disk, the stub adds a secret of the machine to the initrd."""

    def profile(self, number: int) -> dict[str, bytes]:
        """Sections that count for a profile, by name; the first of a name counts. Raises `UkiError`.

        Each ``.profile`` begins a profile, whose sections replace those before the first one.
        """
        starts = [at for at, each in enumerate(self.sections) if each.name == ".profile"]
        if number and number >= len(starts):
            raise UkiError(f"has no profile @{number}")
        base = self.sections[: starts[0]] if starts else self.sections
        ends = [*starts[1:], len(self.sections)]
        own = self.sections[starts[number] : ends[number]] if starts else ()
        found: dict[str, bytes] = {}
        for each in (*own, *base):
            found.setdefault(each.name, each.contents)
        return found


@dataclass(frozen=True)
class Start:
    """What the stub does with the load options that it gets: what it measures, and what it starts."""

    measured: tuple[tuple[str, bytes], ...]
    """(description, what is measured), all into RTMR2."""
    kernel: bytes
    command_line: str
    initrd: bytes
    by_firmware: bool
    """The firmware loads the kernel, and measures it."""
    unknown: tuple[str, ...] = ()
    """What else is measured, and not known."""


def parse_uki(image: bytes) -> Uki | None:
    """Read an EFI executable; None if it is not a UKI.

    >>> parse_uki(b"MZ") is None
    True
    """
    sections = list(pe_sections(image))
    stub = b"".join(each.contents for each in sections if each.name not in _PAYLOAD)
    version = _VERSION.search(stub)
    if version is None or not any(each.name == ".linux" for each in sections):
        return None
    return Uki(int(version[1]), knows_protocol(stub), tuple(sections), _BOOT_SECRET in stub)


def knows_protocol(code: bytes) -> bool:
    """Whether code knows the CC measurement protocol: the two halves of its GUID are in it.

    >>> knows_protocol(CC_PROTOCOL), knows_protocol(b"")
    (True, False)
    """
    return CC_PROTOCOL[:8] in code and CC_PROTOCOL[8:] in code


def pe_sections(image: bytes) -> Iterator[Section]:
    """Sections of an executable as they lie in memory; nothing for other data, and those cut off left out."""
    pe = int.from_bytes(image[0x3C:0x40], "little")
    if image[:2] != b"MZ" or image[pe : pe + 4] != b"PE\0\0":
        return
    count, optional = (int.from_bytes(image[pe + at : pe + at + 2], "little") for at in (6, 20))
    symbols, number = struct.unpack_from("<II", image.ljust(pe + 20, b"\0"), pe + 12)
    strings = symbols + 18 * number if symbols else 0  # names of more than eight characters: "/" and an offset in here
    at = pe + 24 + optional
    for header in range(at, at + min(count, _MAXIMUM_SECTIONS) * _SECTION_SIZE, _SECTION_SIZE):
        if header + _SECTION_SIZE > len(image):
            return
        name, size, _, stored, start = _SECTION.unpack_from(image, header)
        contents = image[start : start + min(size, stored)]
        if len(contents) == min(size, stored) and size - len(contents) <= len(image):
            yield Section(_name(image, name.rstrip(b"\0"), strings), contents + bytes(size - len(contents)))


def _name(image: bytes, name: bytes, strings: int) -> str:
    if strings and name[:1] == b"/" and name[1:].isdigit():
        at = strings + int(name[1:])
        name = image[at : at + 64].split(b"\0")[0]
    return name.decode("latin-1")


def start(uki: Uki, options: str, previous: bytes = b"", secure_boot: bool = False) -> Start:
    """What the stub does, started with load ``options`` in a TD; ``previous`` is an initrd that is installed already.

    Raises `UkiError` for a boot that fails, or that is not known.
    """
    chosen = _PROFILE.match(options) if uki.version >= _FIRST_WITH_PROFILES else None
    number = int(chosen[1]) if chosen else 0
    if chosen:
        options = options[chosen.end() :]
    known = {name for name, since in _ORDER if uki.version >= since}
    sections = {name: contents for name, contents in uki.profile(number).items() if name in known}
    measured = []
    unknown = [f"{name}: chosen by the machine's identifiers" for name in _BY_HARDWARE if name in sections]
    if number and uki.version >= _MEASURES_PROFILE:
        measured.append((str(number), str(number).encode("utf-16-le") + bytes(2)))
    elif number and uki.version > _MEASURES_NO_PROFILE:
        unknown.append(f"the number of the profile, which the stub of systemd {uki.version} may measure")
    for name, _ in _ORDER:
        if name in sections and name not in (_UNMEASURED, *_BY_HARDWARE):
            measured += [(name, name.encode() + b"\0"), (name, sections[name])]
    given = settled(options)
    built_in = settled(sections.get(".cmdline", b"").split(b"\0")[0].decode("utf-8", "replace"))
    if secure_boot and given:  # a TD is a confidential VM: only a command line from the image counts
        given = ""
    if given:
        measured.append((given, given.encode("utf-16-le") + bytes(2)))
    command_line = given or built_in
    if previous and uki.version < _FIRST_WITH_PREVIOUS_INITRD:
        raise UkiError(f"has the stub of systemd {uki.version}, which does not start beside another initrd")
    parts = [sections.get(".ucode", b""), previous, sections.get(".initrd", b""), *_embedded(uki, sections)]
    parts = [part for part in parts if part]
    initrd = parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)
    by_firmware = uki.version < _FIRST_WITHOUT_LOAD_IMAGE
    return Start(tuple(measured), sections[".linux"], command_line, initrd, by_firmware, tuple(unknown))


def settled(text: str) -> str:
    """Return a command line as the stub settles it: control characters become spaces, those at the ends go.

    >>> settled(" quiet\\tro\\n")
    'quiet ro'
    """
    return "".join(" " if each <= " " or each == "\x7f" else each for each in text).strip(" ")


def adds_console(uki: Uki, command_line: str) -> bool:
    """Whether the stub appends ``console=`` for the console that it finds, which it does not measure.

    >>> adds_console(Uki(257, True, ()), "")
    False
    """
    return uki.version >= _FIRST_WITH_CONSOLE and not any(
        word.startswith("console=") for word in command_line.split(" ")
    )


def _embedded(uki: Uki, sections: dict[str, bytes]) -> Iterator[bytes]:
    """Archives in which the stub hands sections on, each with one file in /.extra."""
    files = [(".pcrsig", "tpm2-pcr-signature.json"), (".pcrpkey", "tpm2-pcr-public-key.pem")]
    if uki.version >= _FIRST_WITH_OS_RELEASE:
        files += [(".osrel", "os-release"), (".profile", "profile")]
    for name, file in files:
        if name in sections:
            yield _archive(file, sections[name])


def _archive(name: str, contents: bytes) -> bytes:
    """A cpio archive in the "new ASCII" format with ``/.extra`` and a file in it."""
    return (
        _entry(1, 0o040555, ".extra", b"")
        + _entry(2, 0o100444, f".extra/{name}", contents)
        + _header(0, 0, 0, "TRAILER!!!")
    )


def _entry(inode: int, mode: int, name: str, contents: bytes) -> bytes:
    return _header(inode, mode, len(contents), name) + contents + bytes(-len(contents) % 4)


def _header(inode: int, mode: int, size: int, name: str) -> bytes:
    fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
    digits = "%08X" if name == "TRAILER!!!" else "%08x"
    header = b"070701" + "".join(digits % each for each in fields).encode() + name.encode() + b"\0"
    return header + bytes(-len(header) % 4)
