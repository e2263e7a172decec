# SPDX-License-Identifier: GPL-2.0-or-later
"""How Linux packs an ioctl request into 32 bits (asm-generic/ioctl.h).

From the low end: 8 bits of sequence number, 8 bits of type (0xAE for KVM), 14 bits of argument size, 2 of direction as
seen from user space. Two requests may differ in direction or size alone (0xAEA3 is KVM_GET_TSC_KHZ, 0x4068AEA3 is
KVM_ENABLE_CAP), so a dispatcher must look at the whole number. The encoded size is that of the fixed part of a
structure, and for KVM_MEMORY_ENCRYPT_OP it is not even that: it never says how many bytes the pointer leads to.
"""

from __future__ import annotations

import ctypes

IOC_NONE, IOC_WRITE, IOC_READ = 0, 1, 2

Argument = type[ctypes.Structure] | type[ctypes.Union] | type["ctypes._SimpleCData[int]"]


class Request(int):
    """An ioctl request number; the properties take its 32 bits apart.

    >>> request = IOWR(0xAE, 0xBA, ctypes.c_ulong)
    >>> hex(request), request.direction, hex(request.type), hex(request.number), request.size
    ('0xc008aeba', 3, '0xae', '0xba', 8)
    """

    argument: Argument | None = None
    """What it was declared with, None for an integer. Not part of the number: for traces and for documentation."""

    @property
    def direction(self) -> int:
        """IOC_NONE, or IOC_WRITE (user to kernel) and IOC_READ (kernel to user) or'ed."""
        return int(self) >> 30 & 0x3

    @property
    def size(self) -> int:
        """Bytes of the argument's fixed part; 0 for a request whose argument is an integer."""
        return int(self) >> 16 & 0x3FFF

    @property
    def type(self) -> int:
        """The subsystem's letter; 0xAE for KVM."""
        return int(self) >> 8 & 0xFF

    @property
    def number(self) -> int:
        """Sequence number within the type."""
        return int(self) & 0xFF


def _ioc(direction: int, type_: int, number: int, argument: Argument | None = None) -> Request:
    size = ctypes.sizeof(argument) if argument is not None else 0
    request = Request(direction << 30 | size << 16 | type_ << 8 | number)
    request.argument = argument
    return request


def IO(type_: int, number: int) -> Request:
    """``_IO``: no pointer; the argument, if any, is the integer itself."""
    return _ioc(IOC_NONE, type_, number)


def IOR(type_: int, number: int, argument: Argument) -> Request:
    """``_IOR``: the kernel writes the argument (in KVM a few, such as KVM_SET_IRQCHIP, are historically reversed)."""
    return _ioc(IOC_READ, type_, number, argument)


def IOW(type_: int, number: int, argument: Argument) -> Request:
    """``_IOW``: the kernel reads the argument."""
    return _ioc(IOC_WRITE, type_, number, argument)


def IOWR(type_: int, number: int, argument: Argument) -> Request:
    """``_IOWR``: the kernel reads and writes the argument."""
    return _ioc(IOC_READ | IOC_WRITE, type_, number, argument)
