# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel and which TDX module to emulate: the options that every command which opens a kernel shares."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from swtdx.cli import declaration as typer
from swtdx.uapi.release import NEWEST_RELEASE, SHORT_FORMS, KernelRelease

if TYPE_CHECKING:
    from swtdx.lying.lie import Lie


class DialectChoice(StrEnum):
    """Which ioctl interface."""

    upstream = "upstream"
    v10 = "v10"


class ModuleVersionChoice(StrEnum):
    """Which TDX module, of `swtdx.cpu.platform`."""

    v1_5 = "1.5.06"
    v1_0 = "1.0"
    v1_5_01 = "1.5.01"
    v1_5_05 = "1.5.05"
    v1_5_08 = "1.5.08"
    v1_5_09 = "1.5.09"
    v1_5_13 = "1.5.13"
    v1_5_16 = "1.5.16"
    v1_5_20 = "1.5.20"
    v1_5_24 = "1.5.24"
    v1_5_28 = "1.5.28"
    v1_5_34 = "1.5.34"


KernelReleaseOption = Annotated[
    KernelRelease | None,
    typer.Option(
        metavar="RELEASE",
        help=f"The host's kernel to emulate: {', '.join(KernelRelease)}. v10 is the patch series of November 2022, "
        "next 7.3 with patches under review (KVM_TDX_TERMINATE_VM, private pages of 2 MiB). "
        f"Not given: {NEWEST_RELEASE.value}, the newest released one.",
        show_default=False,
    ),
]
DialectOption = Annotated[
    DialectChoice | None,
    typer.Option(
        help=f"Short for --kernel-release {SHORT_FORMS['upstream'].value} or {SHORT_FORMS['v10'].value}.",
        show_default=False,
    ),
]
ModuleVersionOption = Annotated[
    ModuleVersionChoice,
    typer.Option(
        metavar="VERSION",
        help=f"The TDX module of the emulated machine: {', '.join(ModuleVersionChoice)}. 1.5.06 and 1.0 (which goes "
        "with v10) are reproduced. Of the others the number and TDX_FEATURES0 are, and from 1.5.08 on the guest's "
        "address width (MAXGPA); in all else they act as 1.5.06.",
    ),
]

CpuFeaturesOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="What the emulated processor has besides x86-64-v2: x86-64-v2, x86-64-v3, or names (avx, avx2, fma, f16c, "
        "bmi1, bmi2, vaes, vpclmulqdq, sha, xsavec, xsaves). Not given: all that the processor here can execute.",
    ),
]

InjectOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="'CALL: ANSWER [WHEN]'",
        help="Make a SEAMCALL or an ioctl fail, as in 'TDH.MEM.PAGE.AUG: OPERAND_BUSY @3' or 'KVM_RUN: EINTR every "
        "100'. When: @3, @3-5, @3+, every N, 1%, seed N, gpa FROM-TO. May be repeated.",
    ),
]


def checked_injections(texts: list[str] | None) -> tuple[str, ...]:
    """Return what ``--inject`` asks for. Raises InputError for what is not a valid injection."""
    if not texts:
        return ()
    from swtdx.cli.parameters import InputError
    from swtdx.inject import InjectionError
    from swtdx.inject.parse import parse_all

    try:
        parse_all(texts)
    except InjectionError as error:
        raise InputError(f"--inject {error}") from None
    return tuple(texts)


def checked_lies(texts: list[str] | None, file: Path | None, option: str = "--lies-from") -> tuple[Lie, ...]:
    """Return what ``--lie`` and ``--lies-from`` ask for. Raises InputError for what is not a valid lie."""
    if not texts and file is None:
        return ()
    from swtdx.cli.parameters import InputError
    from swtdx.lying.lie import LieError, parse

    found: list[Lie] = []
    try:
        for text in texts or ():
            found.append(parse(text))
    except LieError as error:
        raise InputError(f"--lie {error}") from None
    if file is None:
        return tuple(found)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"{option} {file} cannot be read: {why}") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                found.append(parse(line))
            except LieError as error:
                raise InputError(f"{option} {file}: line {number}: {error}") from None
    return tuple(found)


def chosen_features(text: str | None) -> frozenset[str] | None:
    """Return what ``--cpu-features`` names. Raises InputError."""
    from swtdx.cli.parameters import InputError
    from swtdx.cpu.platform import features_of

    try:
        return None if text is None else features_of(text)
    except ValueError as error:
        raise InputError(f"--cpu-features: {error}") from None


def chosen_release(release: KernelRelease | None, dialect: DialectChoice | None) -> KernelRelease:
    """Return the release that the two options ask for. Raises InputError where they contradict each other."""
    from swtdx.cli.parameters import InputError

    if release is None:
        return SHORT_FORMS[(dialect or DialectChoice.upstream).value]
    if dialect is not None and release.dialect_name != dialect.value:
        raise InputError(
            f"--kernel-release {release.value} and --dialect {dialect.value} contradict each other: omit --dialect"
        )
    return release


def module_refusal(release: KernelRelease, module: ModuleVersionChoice) -> str | None:
    """Why that kernel does not use that TDX module, with the line that its log has; None where it does."""
    if module is ModuleVersionChoice.v1_0 and release is not KernelRelease.V10:
        return (
            f"--module-version 1.0 has no TDH.SYS.RD, which {release.words} needs for TDs (its log: virt/tdx: module "
            "initialization failed (-5)): add --kernel-release v10"
        )
    if module is ModuleVersionChoice.v1_5_01 and release is not KernelRelease.V10:
        return (
            f"--module-version 1.5.01 lacks TOPOLOGY_ENUM, which {release.words} needs for TDs (kvm_intel turns TDX "
            "off without a line in the log): use 1.5.05 or later"
        )
    return None
