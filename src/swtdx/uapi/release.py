# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the kernels that can be emulated. What each does is the kernel's business (`swtdx.linux.release`).

>>> KernelRelease.named("7.3").words, KernelRelease.named("v10").dialect_name
('Linux 7.3', 'v10')
"""

from __future__ import annotations

from enum import StrEnum


class KernelRelease(StrEnum):
    """The kernels, oldest first."""

    V10 = "v10"
    V6_16 = "6.16"
    V6_18 = "6.18"
    V6_19 = "6.19"
    V7_1 = "7.1"
    V7_2 = "7.2"
    V7_3 = "7.3"
    NEXT = "next"

    @classmethod
    def _missing_(cls, value: object) -> KernelRelease | None:
        """In files that were kept before it was released, a release has the name of its candidate."""
        return cls.V7_3 if value == "7.3-rc" else None

    @classmethod
    def named(cls, name: str) -> KernelRelease:
        """Return the release called ``name``. Raises ValueError, with the names that there are."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"kernel release {name} is not available; there are {', '.join(cls)}") from None

    @property
    def dialect_name(self) -> str:
        """The value of the `swtdx.uapi.dialect.Dialect` of its TDX sub-commands."""
        return "v10" if self is KernelRelease.V10 else "upstream"

    @property
    def words(self) -> str:
        """What to call it in a sentence."""
        if self is KernelRelease.V10:
            return "Linux with the v10 series"
        return "Linux with the series under review" if self is KernelRelease.NEXT else f"Linux {self.value}"


NEWEST_RELEASE = KernelRelease.V7_3
"""The newest kernel that is released; what is emulated where nothing else is asked for."""
SHORT_FORMS = {"upstream": NEWEST_RELEASE, "v10": KernelRelease.V10}
"""Which release a dialect alone stands for."""
