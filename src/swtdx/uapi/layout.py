# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary in which the headers' structures are written down as ctypes.

Fixed-width names as in linux/types.h (``__u8`` is ``u8`` here); structures carry the header's own names. x86-64 ctypes
aligns as the System V ABI does, so no structure needs ``_pack_``. A C flexible array member is a zero-length array in
ctypes; `with_entries` gives the same structure with room for a number of entries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

u8 = ctypes.c_uint8
u16 = ctypes.c_uint16
u32 = ctypes.c_uint32
u64 = ctypes.c_uint64
s16 = ctypes.c_int16
s32 = ctypes.c_int32
s64 = ctypes.c_int64

S = TypeVar("S", bound=ctypes.Structure)


@lru_cache(maxsize=1024)
def with_entries(structure: type[S], count: int) -> type[S]:
    """The class of ``structure`` with ``count`` elements in the flexible array at its end.

    The array may also be that of a structure which is itself the last member (``kvm_tdx_init_vm.cpuid.entries``). The
    result has the same name, members and offsets, yet is a class of its own: ``isinstance`` does not see the kinship.
    Raises TypeError if there is no flexible array.

    >>> class list8(ctypes.Structure):
    ...     _fields_ = [("n", u32), ("values", u8 * 0)]
    >>> ctypes.sizeof(list8), ctypes.sizeof(with_entries(list8, 8))
    (4, 12)
    """
    fields: list[Any] = list(structure._fields_)
    name: str = fields[-1][0]
    last: Any = fields[-1][1]
    if issubclass(last, ctypes.Structure):
        fields[-1] = (name, with_entries(last, count))
    elif issubclass(last, ctypes.Array) and last._length_ == 0:
        fields[-1] = (name, last._type_ * count)
    else:
        raise TypeError(f"{structure.__name__} does not end in a flexible array")
    namespace: dict[str, Any] = {"_fields_": fields, "__doc__": structure.__doc__, "__module__": structure.__module__}
    if hasattr(structure, "_anonymous_"):
        namespace["_anonymous_"] = structure._anonymous_
    made: type[S] = type(structure.__name__, structure.__bases__, namespace)
    return made


def filled(structure: type[S], entries: Iterable[Any], **members: int) -> S:
    """An instance of ``structure`` whose flexible array holds ``entries``; ``members`` sets what stands before it.

    Counting members (``nent``, ``nmsrs``, ``nr``...) are the caller's to name.

    >>> class list8(ctypes.Structure):
    ...     _fields_ = [("n", u32), ("values", u8 * 0)]
    >>> bytes(filled(list8, [7, 9], n=2))
    b'\\x02\\x00\\x00\\x00\\x07\\t\\x00\\x00'
    """
    elements = list(entries)
    made: S = with_entries(structure, len(elements))(**members)
    array: Any = made
    while isinstance(array, ctypes.Structure):
        array = getattr(array, array._fields_[-1][0])
    for position, element in enumerate(elements):
        array[position] = element
    return made


def address_of(memory: Any) -> int:
    """The address of a ctypes object or of a writable buffer (``mmap``, ``bytearray``): what a pointer member takes.

    The memory must outlive every use of the address; nothing here keeps it alive.
    """
    if isinstance(memory, (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._SimpleCData)):
        return ctypes.addressof(memory)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
