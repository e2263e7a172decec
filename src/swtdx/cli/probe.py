# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx probe``: what this machine offers for running Trust Domains, and on which kernel one can be run.

Nothing is assumed: the real /dev/kvm is opened and asked, the embedded kernel is booted in either dialect and asked by
the same ioctls, and every firmware image that ``swtdx run`` would try is read and its TDVF metadata examined.
"""

from __future__ import annotations

import json as json_format
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

import swtdx
from swtdx.attest.inspection import inspect_image
from swtdx.cli.colour import printed
from swtdx.cli.verdict import Failure, Verdict
from swtdx.image.firmware import candidates
from swtdx.image.tdvf import MAXIMUM_IMAGE_SIZE
from swtdx.uapi.asm_kvm import VmType
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import survey
from swtdx.uapi.host_tdx import HostFacts, host_facts
from swtdx.uapi.release import NEWEST_RELEASE, KernelRelease

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx probe[/cyan] - a summary

[cyan]swtdx probe --json | jq -r .td.kernel[/cyan] - "host" or "emulated", for a script

[cyan]swtdx probe --quiet && swtdx run[/cyan]

[bold]Exit status[/bold]

0 a TD can be run, on the real or on the embedded kernel; 1 wrong usage; 2 on neither
"""

_DEPENDENCIES = ("typer", "rich", "cryptography", "iced-x86", "dcap-qvl")


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="probe", epilog=EPILOG)(probe)


def probe(
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, in place of the lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; only the exit status counts.")] = False,
) -> None:
    """Show what this machine offers: /dev/kvm and its VM types, TDX or why not, firmware images, versions."""
    if json and quiet:
        raise Failure("--json and --quiet exclude each other", Verdict.USAGE)
    found = findings()
    if json:
        print(json_format.dumps(found, indent=2))
    elif not quiet:
        printed(f"{label:<9}{text}".rstrip() for label, text in _lines(found))
    raise typer.Exit(Verdict.OK if found["td"]["kernel"] else Verdict.FAILED)


def findings(root: Path = Path("/")) -> dict[str, Any]:
    """Return all that is said, ready for JSON."""
    facts = host_facts(root)
    host, embedded, images = _host(facts), _embedded(), _firmware()
    kernel = "host" if host["tdx"] else "emulated" if embedded["tdx"] else None
    return {
        "td": {"kernel": kernel, "firmware": next((image["path"] for image in images if image["can_start"]), None)},
        "host": host,
        "embedded": embedded,
        "firmware": images,
        "versions": _versions(),
    }


def _host(facts: HostFacts) -> dict[str, Any]:
    offer = survey()
    obstacles = []
    if not offer.tdx:
        obstacles = facts.obstacles()
        if not obstacles and offer.usable:
            obstacles.append("the kernel could not bring the TDX module up: dmesg says more (virt/tdx, kvm_intel)")
    return {
        "release": facts.release,
        "processor": facts.model,
        "virtual_machine": facts.in_guest,
        "usable": offer.usable,
        "errno": offer.errno,
        "api_version": offer.api_version,
        "vm_types": _vm_types(offer.vm_types) if offer.usable else [],
        "tdx": offer.tdx,
        "dialect": offer.dialect.value if offer.dialect else None,
        "text": str(offer),
        "no_tdx_because": obstacles,
    }


def _vm_types(bits: int) -> list[str]:
    """Names of the VM types offered; a kernel that answers 0 does not know the question, and makes default VMs."""
    names = {member.value: member.name.lower() for member in VmType}
    return [names.get(bit, str(bit)) for bit in range(32) if (bits or 1) >> bit & 1]


def _embedded() -> dict[str, Any]:
    """Boot it, in both dialects, and ask. An engine that is not built is a finding and not an error."""
    try:
        from swtdx.cpu.platform import MODULE_VERSIONS, PUBLISHED_MODULE_VERSIONS
        from swtdx.machine import boot
    except ImportError as error:
        why = f"the native engine cannot be loaded: {error}"
        nothing: dict[str, Any] = {
            name: [] for name in ("kernel_releases", "dialects", "tdx_modules", "tdx_modules_by_number")
        }
        return {"tdx": False, "tdx_module": None, "no_tdx_because": [why], **nothing}
    dialects, reasons, module = [], [], None
    for dialect in Dialect:
        kernel = boot(dialect)
        try:
            offer = survey(kernel)
            module = kernel.processor.platform.module_version
            if offer.dialect is dialect:
                dialects.append(dialect.value)
            else:
                reasons.append(f"{dialect.value}: {kernel.last_reason or offer}")
        finally:
            kernel.shutdown()
    return {
        "tdx": bool(dialects),
        "kernel_releases": [name.value for name in KernelRelease if name.dialect_name in dialects],
        "dialects": sorted(dialects),
        "tdx_module": module,
        "tdx_modules": list(MODULE_VERSIONS),
        "tdx_modules_by_number": list(PUBLISHED_MODULE_VERSIONS),
        "no_tdx_because": reasons,
    }


def _firmware() -> list[dict[str, Any]]:
    images = []
    for path, why in candidates():
        image: dict[str, Any] = {"path": str(path), "why": why, "can_start": False, "sha256": None, "broken": []}
        try:
            with path.open("rb") as file:
                inspection = inspect_image(file.read(MAXIMUM_IMAGE_SIZE + 1), str(path))
        except OSError as error:
            image["broken"] = [f"{path} cannot be read: {error.strerror or error}"]
        else:
            image["can_start"], image["sha256"] = inspection.can_start, inspection.sha256
            image["broken"] = [str(fault) for fault in inspection.broken]
        images.append(image)
    return images


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"swtdx": swtdx.__version__, "python": platform.python_version()}
    for name in _DEPENDENCIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of each line; an empty label carries on the one before."""
    host, embedded = found["host"], found["embedded"]
    where = ", a virtual machine" if host["virtual_machine"] else ""
    yield "machine", f"Linux {host['release']}, {host['processor'] or 'unknown processor'}{where}"
    yield "host", host["text"]
    if host["vm_types"]:
        yield "", f"VM types: {', '.join(host['vm_types'])}"
    for reason in host["no_tdx_because"]:
        yield "", f"no TDs: {reason}"
    if host["errno"] == 13:  # EACCES
        yield "", f"/dev/kvm: it usually takes the group kvm (uid is {os.geteuid()})"
    if embedded["tdx"]:
        modules = " or ".join(embedded["tdx_modules"])
        named = ", ".join(embedded["tdx_modules_by_number"])
        yield "embedded", f"makes VMs and TDs, TDX module {modules} emulated"
        yield "", f"TDX modules by number and TDX_FEATURES0 only, else as 1.5.06 (MAXGPA_VIRT from 1.5.08): {named}"
        releases = ", ".join(embedded["kernel_releases"])
        yield "", f"kernel releases: {releases}; without --kernel-release {NEWEST_RELEASE.value}"
    for reason in embedded["no_tdx_because"]:
        yield "embedded", f"no TDs: {reason}"
    for image in found["firmware"]:
        if image["can_start"]:
            yield "firmware", f"{image['path']}: can start as a TD"
        else:
            yield "firmware", f"{image['path']}: cannot start as a TD: {image['broken'][0]}"
    if not found["firmware"]:
        yield "firmware", "none found: install a package that has one (Debian and Ubuntu: ovmf)"
    yield "versions", ", ".join(f"{name} {number or 'missing'}" for name, number in found["versions"].items())
    yield "TD", _conclusion(found["td"])


def _conclusion(td: dict[str, Any]) -> str:
    if td["kernel"] is None:
        return "no: neither kernel makes TDs"
    where = "this machine's own kernel" if td["kernel"] == "host" else "the embedded kernel"
    if td["firmware"] is None:
        return f"yes, on {where}, but swtdx run needs a firmware: name one with --firmware"
    return f"yes, on {where}: swtdx run{' --kvm host' if td['kernel'] == 'host' else ''}"
