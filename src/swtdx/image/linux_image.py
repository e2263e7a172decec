# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux kernel to start directly: the bzImage, its initrd and its command line, checked before anything is built.

A bzImage is the real-mode setup code, whose header describes how the rest is to be loaded, and behind it the
protected-mode kernel (Documentation/arch/x86/boot.rst).  The same file is a PE executable, the EFI stub: that is how
firmware starts it, after reading its two halves from fw_cfg and putting them together again.  Nothing here changes a
byte of it, since the firmware measures what it loads.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
_SETUP_SECTORS = 0x1F1
_BOOT_FLAG = 0x1FE
_MAGIC = 0x202
_VERSION = 0x206
_LOAD_FLAGS = 0x211
_INITRD_MAXIMUM = 0x22C
_ALIGNMENT = 0x230
_XLOAD_FLAGS = 0x236
_COMMAND_LINE_SIZE = 0x238
_PREFERRED_ADDRESS = 0x258
_INIT_SIZE = 0x260
_HEADER_END = 0x268

_LOADED_HIGH = 1
_XLF_KERNEL_64 = 1
MAXIMUM_LOAD_OPTIONS = 4096
"""Bytes of command line for an EFI executable that does not say how many it takes."""
_OLDEST_VERSION = 0x20C  # Linux 3.8: the first with a 64-bit entry point at a known place

MAXIMUM_FILE_SIZE = 1 << 30


class LinuxImageError(Exception):
    """Kernel, initrd or command line cannot be used; the text is one sentence for a person."""


@dataclass(frozen=True)
class BzImage:
    """A kernel: the whole file, and what its setup header says. Addresses and sizes in bytes."""

    name: str
    image: bytes
    setup_size: int
    version: int
    preferred_address: int
    alignment: int
    init_size: int
    initrd_maximum: int
    command_line_size: int
    entry_64: bool

    @property
    def setup(self) -> bytes:
        """The real-mode part, with the header."""
        return self.image[: self.setup_size]

    @property
    def kernel(self) -> bytes:
        """The protected-mode part."""
        return self.image[self.setup_size :]


@dataclass(frozen=True)
class LinuxBoot:
    """What is started: kernel, initrd (may be empty) and command line."""

    kernel: BzImage
    initrd: bytes = b""
    command_line: str = ""


def parse(image: bytes, name: str) -> BzImage:
    """Read the setup header. Raises `LinuxImageError` for what is not a bzImage, or cannot be started here.

    An EFI executable without that header (a unified kernel image, a boot loader) is taken too: firmware starts it.
    """
    if is_efi_executable(image):
        setup_size = (1 + (image[_SETUP_SECTORS] or 4)) * SECTOR  # as QEMU cuts a file that it does not know
        if len(image) <= setup_size:
            raise LinuxImageError(f"{name} is truncated: it has {len(image)} bytes")
        return BzImage(name, image, setup_size, 0, 0, 0, 0, 0, MAXIMUM_LOAD_OPTIONS, entry_64=False)
    _check_magic(image, name)

    def field(layout: str, at: int) -> int:
        return int(struct.unpack_from(layout, image, at)[0])

    version = field("<H", _VERSION)
    if version < _OLDEST_VERSION:
        raise LinuxImageError(
            f"{name} speaks boot protocol {version >> 8}.{version & 0xFF:02}, but 2.12 (Linux 3.8) is the oldest that "
            "can be started here"
        )
    if not image[_LOAD_FLAGS] & _LOADED_HIGH:
        raise LinuxImageError(f"{name} is a zImage, which loads low; a bzImage is needed")
    setup_size = (1 + (image[_SETUP_SECTORS] or 4)) * SECTOR
    if len(image) <= setup_size:
        raise LinuxImageError(f"{name} is truncated: it ends within its setup code")
    declared = field("<I", 0x1F4) * 16  # syssize, in paragraphs
    if len(image) - setup_size < declared - 15:
        raise LinuxImageError(
            f"{name} is truncated: {declared} bytes of kernel follow its setup code, the file has "
            f"{len(image) - setup_size}"
        )
    return BzImage(
        name=name,
        image=image,
        setup_size=setup_size,
        version=version,
        preferred_address=field("<Q", _PREFERRED_ADDRESS),
        alignment=field("<I", _ALIGNMENT),
        init_size=field("<I", _INIT_SIZE),
        initrd_maximum=field("<I", _INITRD_MAXIMUM),
        command_line_size=field("<I", _COMMAND_LINE_SIZE),
        entry_64=bool(field("<H", _XLOAD_FLAGS) & _XLF_KERNEL_64),
    )


def is_efi_executable(image: bytes) -> bool:
    """Whether it is a PE executable that is not a bzImage.

    >>> is_efi_executable(b"MZ"), is_efi_executable(b"")
    (False, False)
    """
    if image[:2] != b"MZ" or len(image) < _HEADER_END or image[_MAGIC : _MAGIC + 4] == b"HdrS":
        return False
    at = int.from_bytes(image[0x3C:0x40], "little")
    return image[at : at + 4] == b"PE\0\0"


def load(kernel: Path, initrd: Path | None, command_line: str, memory_size: int) -> LinuxBoot:
    """Read the files and check that they fit a machine with ``memory_size`` bytes. Raises `LinuxImageError`."""
    image = parse(_read(kernel, "kernel", memory_size), str(kernel))
    contents = _read(initrd, "initrd", memory_size) if initrd is not None else b""
    length = len(command_line.encode())
    if length > image.command_line_size:
        raise LinuxImageError(
            f"the command line is {length} bytes long, and {kernel} takes at most {image.command_line_size}"
        )
    if "\0" in command_line:
        raise LinuxImageError("the command line has a zero byte in it")
    needed = image.init_size + len(contents) + len(image.image)
    if needed >= memory_size:
        raise LinuxImageError(
            f"{kernel} and its initrd need {needed >> 20} MiB to start, and the guest has {memory_size >> 20} MiB: "
            "give it more memory"
        )
    return LinuxBoot(image, contents, command_line)


def _read(path: Path, what: str, memory_size: int) -> bytes:
    """The whole file, which is shorter than the guest's memory: the file may have no end. Raises `LinuxImageError`."""
    limit = min(memory_size, MAXIMUM_FILE_SIZE)
    try:
        if path.is_dir():
            raise LinuxImageError(f"the {what} {path} is a folder")
        with path.open("rb") as file:
            contents = file.read(_HEADER_END)
            if what == "kernel" and not contents.startswith(b"MZ"):
                _check_magic(contents, str(path))
            if len(contents) == _HEADER_END:
                contents += file.read(limit - min(limit, _HEADER_END))
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise LinuxImageError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if not contents:
        raise LinuxImageError(f"the {what} {path} is empty")
    if len(contents) >= limit:
        long = f"{size} bytes long, which is more" if size else "longer"
        of = f"the guest's memory ({memory_size} bytes)" if limit == memory_size else f"{limit >> 30} GiB"
        raise LinuxImageError(f"the {what} {path} is {long} than {of}")
    return contents


def _check_magic(start: bytes, name: str) -> None:
    if (
        len(start) < _HEADER_END
        or start[_MAGIC : _MAGIC + 4] != b"HdrS"
        or start[_BOOT_FLAG : _BOOT_FLAG + 2] != b"U\xaa"
    ):
        if start[:4] == b"\x7fELF":
            raise LinuxImageError(
                f"{name} is an ELF file (vmlinux): give arch/x86/boot/bzImage of the same build, or a vmlinuz"
            )
        raise LinuxImageError(
            f"{name} is not a bzImage, nor another EFI executable: it lacks the setup header of a Linux kernel for x86"
        )
