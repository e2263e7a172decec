# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers in an XSAVE area, of the standard or the compacted form (SDM volume 1, 13.4)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from swtdx.vmm.gdb.registers import AVX, PKEYS, X87_CONTROL, X87_STACK, XMM, YMM_HIGH, full_tag_word
from swtdx.vmm.gdb.target import AccessError
from swtdx.x86 import XFeature

HEADER, EXTENDED = 512, 576
OFFERED = {XFeature.AVX: AVX, XFeature.PKRU: PKEYS}
"""Components whose registers gdb is told of, and the feature that describes them."""
_SIZES = {2: 256, 3: 64, 4: 64, 5: 64, 6: 512, 7: 1024, 9: 8}
"""Of components, by number, in bytes: none of them asks for alignment in the compacted form."""
_LEGACY: dict[str, tuple[XFeature, int, int]] = {  # where, and how many bytes (SDM volume 1, table 10-2)
    "fctrl": (XFeature.X87, 0, 2),
    "fstat": (XFeature.X87, 2, 2),
    "fop": (XFeature.X87, 6, 2),
    "fioff": (XFeature.X87, 8, 4),
    "fiseg": (XFeature.X87, 12, 2),
    "fooff": (XFeature.X87, 16, 4),
    "foseg": (XFeature.X87, 20, 2),
    "mxcsr": (XFeature.SSE, 24, 4),
    **{name: (XFeature.X87, 32 + 16 * number, 10) for number, name in enumerate(X87_STACK)},
    **{name: (XFeature.SSE, 160 + 16 * number, 16) for number, name in enumerate(XMM)},
}
_EXTENDED: dict[str, tuple[XFeature, int, int]] = {  # from the component's beginning
    **{name: (XFeature.AVX, 16 * number, 16) for number, name in enumerate(YMM_HIGH)},
    "pkru": (XFeature.PKRU, 0, 4),
}
_READ_ONLY = frozenset(X87_CONTROL) - {"fctrl", "fstat", "fop"}


def compacted_offsets(xcomp_bv: int) -> dict[XFeature, int]:
    """Where the components of an area of the compacted form lie (SDM volume 1, 13.4.3)."""
    offsets, offset = {}, EXTENDED
    for number, size in _SIZES.items():
        if xcomp_bv >> number & 1:
            if 1 << number in OFFERED:
                offsets[XFeature(1 << number)] = offset
            offset += size
    return offsets


def offered(offsets: Mapping[XFeature, int]) -> frozenset[str]:
    """The features of the target description that go with components."""
    return frozenset(OFFERED[component] for component in offsets)


def end(offsets: Mapping[XFeature, int]) -> int:
    """The first byte behind all components."""
    return max([EXTENDED, *(offset + _SIZES[component.bit_length() - 1] for component, offset in offsets.items())])


class SaveArea:
    """An area, and where its extended components lie."""

    def __init__(self, image: bytearray, offsets: Mapping[XFeature, int]) -> None:
        self.image = image
        self._places = dict(_LEGACY)
        for name, (component, offset, size) in _EXTENDED.items():
            if component in offsets:
                self._places[name] = component, offsets[component] + offset, size

    def registers(self) -> dict[str, int]:
        """All registers; extended ones of a component that is not in use have their initial value, which is 0."""
        in_use = int.from_bytes(self.image[HEADER : HEADER + 8], "little")
        values = {}
        for name, (component, offset, size) in self._places.items():
            held = offset < HEADER or in_use & component
            values[name] = int.from_bytes(self.image[offset : offset + size], "little") if held else 0
        stack = tuple(values[name] for name in X87_STACK)
        return values | {"ftag": full_tag_word(self.image[4], values["fstat"], stack)}

    def set_register(self, name: str, value: int) -> range:
        """Change a register, and return the numbers of the 8-byte words that hold it. Raises AccessError."""
        if name in _READ_ONLY or name not in self._places:
            raise AccessError(f"{name} cannot be set")
        component, offset, size = self._places[name]
        self.image[offset : offset + size] = value.to_bytes(size, "little")
        in_use = int.from_bytes(self.image[HEADER : HEADER + 8], "little")
        struct.pack_into("<Q", self.image, HEADER, in_use | component)
        return range(offset // 8, (offset + size + 7) // 8)

    def word(self, number: int) -> int:
        """One of the area's 8-byte words."""
        return int.from_bytes(self.image[8 * number : 8 * number + 8], "little")
