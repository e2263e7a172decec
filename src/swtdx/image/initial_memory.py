# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD starts with: the contents of each TDVF section, and a record of what was added of them.

A section's contents come from the file; those of the TD HOB are made for the machine.  Nothing here calls the kernel:
a launch adds what these functions give, and a verifier can predict with them what a launch would add.

The record keeps a SHA-384 for each measured page.  With it two launches can be compared page by page, when neither the
firmware nor the machine is there any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swtdx.image import hob
from swtdx.image.tdvf import Section, SectionType, Tdvf
from swtdx.units import PAGE_SIZE


class InitialMemoryError(Exception):
    """A section cannot be filled on this machine; the text is one sentence for a person."""


def section_contents(tdvf: Tdvf, section: Section, ram: Sequence[tuple[int, int]]) -> bytes:
    """What goes into a section, of its memory size: bytes of the file, the TD HOB, or zeroes.

    ``ram``: the machine's RAM as ascending (GPA, length). Raises `InitialMemoryError` if the HOB does not fit.
    """
    return bytes(unpadded_contents(tdvf, section, ram)).ljust(section.memory_size, b"\0")


def unpadded_contents(tdvf: Tdvf, section: Section, ram: Sequence[tuple[int, int]]) -> bytes | memoryview:
    """The same without the zeroes behind it, of which a section may have very many."""
    return td_hob(tdvf, section, ram) if section.type is SectionType.TD_HOB else tdvf.raw_contents(section)


def td_hob(tdvf: Tdvf, section: Section, ram: Sequence[tuple[int, int]]) -> bytes:
    """The TD HOB for a machine with this RAM. Raises `InitialMemoryError` if it does not fit into ``section``."""
    accepted = [(one.address, one.memory_size) for one in tdvf.sections if one.added]
    try:
        return hob.build(section.address, section.memory_size, ram, accepted)
    except hob.HobError as error:
        raise InitialMemoryError(f"{tdvf.name}: {section}: {error}") from None


@dataclass(frozen=True)
class AddedRegion:
    """One section as it was added: ``pages`` pages at ``gpa``.

    ``page_digests`` has the SHA-384 of each page's contents if they were measured, else it is empty: what is not
    measured does not count.
    """

    index: int
    type: str
    gpa: int
    pages: int
    measured: bool
    page_digests: tuple[bytes, ...]

    @classmethod
    def of(cls, section: Section, contents: bytes | memoryview) -> AddedRegion:
        """``contents``: those of the section, with or without the zeroes up to its memory size."""
        pages = section.memory_size // PAGE_SIZE
        digests: list[bytes] = []
        if section.measured:
            for start in range(0, len(contents), PAGE_SIZE):
                page = bytes(contents[start : start + PAGE_SIZE]).ljust(PAGE_SIZE, b"\0")
                digests.append(hashlib.sha384(page).digest())
            digests += [hashlib.sha384(bytes(PAGE_SIZE)).digest()] * (pages - len(digests))
        return cls(section.index, section.type.name, section.address, pages, section.measured, tuple(digests))

    def as_json(self) -> dict[str, Any]:
        """For the record of a launch."""
        return {
            "section": self.index,
            "type": self.type,
            "gpa": self.gpa,
            "pages": self.pages,
            "measured": self.measured,
            "sha384": [digest.hex() for digest in self.page_digests],
        }
