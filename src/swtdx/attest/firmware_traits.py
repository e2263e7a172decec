# SPDX-License-Identifier: GPL-2.0-or-later
"""What a firmware image will do once it runs, as far as that shows in the file: measure, and enforce Secure Boot.

edk2 measures in TDs with the driver TdTcg2Dxe, and before that in SEC or PEI, whose code then has the name of the TD
HOB's event in it.  An edk2 image, which shows in its DXE core, without both never extends an RTMR; of others (as
td-shim, which has its own code for measuring) nothing is known.  Secure Boot depends on the variables in the image's
CFV.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from swtdx.attest.firmware_volume import FirmwareFile, files
from swtdx.attest.variable_store import VariableStoreError, parse_variables
from swtdx.image.tdvf import Section, SectionType

TD_TCG2_DXE = UUID("f062221e-c607-44c2-b0b4-c3886331d351")
DXE_CORE = UUID("d6a2cb7f-6a18-4e2f-b43b-9920a733700a")
TDX_DXE = UUID("e750224e-7bce-40af-b5bb-47e3611eb5c2")
"""edk2's driver for TDs, which each build that knows TDX has had since edk2-stable202205."""
SMBIOS_MEASUREMENT_DXE = UUID("d27fed59-abb4-4fed-bead-2a878c7e4a7e")
HOB_EVENT = b"TdxTable"


@dataclass(frozen=True)
class FirmwareTraits:
    """None: unknown. Of RTMRs and TDs: not edk2; of Secure Boot: no variables could be read."""

    extends_rtmrs: bool | None
    secure_boot: bool | None
    for_tds: bool | None = None


def extends_rtmrs(carried: Sequence[FirmwareFile]) -> bool | None:
    """Whether firmware that consists of these files ever extends an RTMR; None: no telling."""
    if any(each.name == TD_TCG2_DXE or HOB_EVENT in each.executable for each in carried):
        return True
    return False if any(each.name == DXE_CORE for each in carried) else None


def for_tds(carried: Sequence[FirmwareFile]) -> bool | None:
    """Whether firmware that consists of these files was built for TDs; None: unknown.

    OvmfPkg's reset vector brings TDX metadata into builds without TDX too, such as OvmfPkg/AmdSev. Such a build has no
    code that accepts memory, and touches memory that is still pending: KVM stops its TD with EIO, on hardware too.
    """
    if not any(each.name == DXE_CORE for each in carried):
        return None
    return any(each.name == TDX_DXE for each in carried)


def firmware_traits(image: bytes, sections: Iterable[Section]) -> FirmwareTraits:
    """Look into an image with these TDVF sections. Raises nothing.

    >>> firmware_traits(bytes(4096), [])
    FirmwareTraits(extends_rtmrs=None, secure_boot=None, for_tds=None)
    """
    secure_boot = None
    for section in sections:
        if section.type is SectionType.CFV:
            start = section.data_offset
            try:
                secure_boot = parse_variables(image[start : start + section.raw_size]).secure_boot
            except VariableStoreError:
                continue
    carried = list(files(image))
    return FirmwareTraits(extends_rtmrs(carried), secure_boot, for_tds(carried))
