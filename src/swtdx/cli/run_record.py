# SPDX-License-Identifier: GPL-2.0-or-later
"""How a run went: a table for a person, a record for a program.

The record (``--json``) keeps everything: what was run and why, the measurements as the VMM predicts them and as the TDX
module holds them, the outcome, exits by reason and port, times, and the whole console.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import swtdx
from swtdx.cli.voice import Voice
from swtdx.image.mrtd import Order
from swtdx.uapi.abilities import injections, inspectable, stated_release
from swtdx.uapi.release import KernelRelease
from swtdx.units import readable_size
from swtdx.vmm.launch import Machine, Plan
from swtdx.vmm.outcome import Outcome
from swtdx.vmm.run import Run

_SHOWN_EXITS = 6
_RBP_NOTE = (
    "this firmware passes RBP in TDVMCALLs. Linux 6.16 and later create TDs with NO_RBP_MOD, where the TDX module "
    "refuses that: there it ends in a triple fault (--no-rbp-mod shows it). Fixed in edk2-stable202405."
)
_LABEL_WIDTH = 9
_LEAST_ROOM = 48


def measurements(machine: Machine) -> dict[str, Any]:
    """MRTD and RTMRs, as far as they can be known from outside the TD.

    A TD's registers are its own; only an emulated kernel has the window ``inspect_td`` through which to look at them.
    MRTD can be predicted from the calls that built the TD, in either order in which a kernel makes them.
    """
    predicted = {order: digest.hex() for order, digest in machine.mrtd.items()}
    result: dict[str, Any] = {
        "mrtd": predicted.get(Order.PER_PAGE),
        "mrtd_source": "predicted",
        "mrtd_order": Order.PER_PAGE.value,
        "mrtd_predicted": {order.name.lower(): digest for order, digest in predicted.items()},
        "rtmr": None,
    }
    kernel = inspectable(machine.vm.kernel)
    if kernel is not None:
        seen = kernel.inspect_td(machine.vm.fd)
        result["mrtd"], result["mrtd_source"] = seen["mrtd"], "TDX module"
        orders = [order.value for order, digest in predicted.items() if digest == seen["mrtd"]]
        result["mrtd_order"] = orders[0] if orders else None
        result["rtmr"] = list(seen["rtmr"])
        result["rtmr_events"] = seen["rtmr_events"]
        result["passes_rbp"] = seen["passes_rbp"]
        result["unread_ve"] = seen.get("unread_ve", [])
        result["module_version"] = seen["module_version"]
        if machine.plan.linux is not None:
            result["rtmr_predicted"] = _held_against_prediction(machine.plan, seen["rtmr_events"])
    return result


def _held_against_prediction(plan: Plan, extensions: list[tuple[int, str]]) -> dict[str, Any]:
    """Return what ``swtdx measure --kernel`` says of this boot, and whether it came so."""
    from swtdx.attest.boot_agreement import agreement
    from swtdx.attest.boot_prediction import PredictionError
    from swtdx.attest.direct_boot import predict_direct_boot
    from swtdx.attest.machine_files import MachineFiles
    from swtdx.image.memory_map import MemoryMap

    assert plan.linux is not None
    firmware = plan.firmware
    try:
        layout = MemoryMap(plan.memory_size, len(firmware.image))
        smbios = None if plan.smbios is None else plan.smbios.files(layout, plan.cpus)
        prediction = predict_direct_boot(
            firmware.image,
            plan.linux,
            plan.memory_size,
            plan.cpus,
            name=str(firmware.path),
            machine=MachineFiles(smbios=smbios),
        )
    except PredictionError as error:
        return {"rtmr": None, "complete": None, "contradicted": None, "text": f"not predicted: {error}"}
    found = agreement(prediction, [(register, bytes.fromhex(digest)) for register, digest in extensions])
    return {
        "rtmr": prediction.as_json()["rtmrs"],
        "complete": found.complete,
        "contradicted": found.contradicted,
        "text": str(found),
    }


def record(machine: Machine, run: Run, outcome: Outcome, seconds: dict[str, float], console: bytes) -> dict[str, Any]:
    """Everything about a run, ready for JSON."""
    plan = machine.plan
    kept: dict[str, Any] = {
        "swtdx": swtdx.__version__,
        "kernel": machine.vm.kernel.name,
        "vm_type": "tdx" if plan.td else "default",
        "kernel_release": stated_release(machine.vm.kernel),
        "dialect": machine.vm.dialect.value if plan.td else None,
        "firmware": {
            "path": str(plan.firmware.path),
            "why": plan.firmware.why,
            "size": len(plan.firmware.image),
            "sha256": hashlib.sha256(plan.firmware.image).hexdigest(),
        },
        "memory": plan.memory_size,
        "cpus": plan.cpus,
        "smbios": list(plan.smbios.texts) if plan.smbios else [],
        "devices": [device.as_json() for device in plan.devices],
        "outcome": outcome.end.label,
        "status": outcome.status,
        "text": outcome.text,
        "details": outcome.details,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "exits": run.exits,
        "port_exits": {f"{port:#x}": count for port, count in run.port_exits.items()},
        "console": console.decode("utf-8", "replace"),
    }
    if injected := injections(machine.vm.kernel):
        kept["injections"] = injected
    if plan.td:
        kept.update(measurements(machine))
        kept["added"] = [region.as_json() for region in machine.added]
    return kept


def show(voice: Voice, kept: dict[str, Any]) -> None:
    """The table at the end, on stderr. Digests stay in one piece, so that they can be copied from any terminal."""
    for label, value in _rows(kept):
        for number, line in enumerate(_fitted(value, voice.console.width if voice.is_terminal else None)):
            style = "red" if label == "outcome" and kept["status"] else ""
            voice.print((f"{'' if number else label:<{_LABEL_WIDTH}}", "bold"), (line, style))


def _fitted(value: str, width: int | None) -> list[str]:
    """A value in lines for a terminal of this width; in one piece where it is not known.

    >>> _fitted("ab" * 48, 80) == ["ab" * 24] * 2, _fitted("a note", None)
    (True, ['a note'])
    """
    room = max(_LEAST_ROOM, (width or 0) - _LABEL_WIDTH)
    if width is None or len(value) <= room:
        return [value]
    if re.fullmatch(r"[0-9a-f]{96}", value):
        return [value[:48], value[48:]]
    return textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)


def _kernel_words(kept: dict[str, Any]) -> str:
    release = kept["kernel_release"]
    return f"the {kept['kernel']} kernel" + (f" ({KernelRelease(release).words})" if release else "")


def _rows(kept: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, value) of each line."""
    yield "outcome", kept["text"]
    kind = "TD" if kept["vm_type"] == "tdx" else "ordinary VM"
    cpus = f"{kept['cpus']} vCPU{'s' if kept['cpus'] > 1 else ''}"
    yield "machine", f"{kind} on {_kernel_words(kept)}, {readable_size(kept['memory'])}, {cpus}"
    if kept["vm_type"] == "tdx":
        yield "MRTD", kept["mrtd"]
        yield "", _origin(kept)
        if kept["rtmr"] is None:
            yield "RTMR0-3", "known only to the guest: the TDX module does not show them to the host"
        else:
            if any(int(digest, 16) for digest in kept["rtmr"]):
                for number, digest in enumerate(kept["rtmr"]):
                    yield f"RTMR{number}", digest
            else:
                yield "RTMR0-3", "all zero: the guest has extended nothing into them"
            if "rtmr_predicted" in kept:
                yield "", kept["rtmr_predicted"]["text"]
        if kept.get("passes_rbp"):
            yield "note", _RBP_NOTE
    exits = list(kept["exits"].items())
    shown = ", ".join(f"{name} {count:,}" for name, count in exits[:_SHOWN_EXITS])
    more = f", {len(exits) - _SHOWN_EXITS} more" if len(exits) > _SHOWN_EXITS else ""
    yield "exits", f"{sum(kept['exits'].values()):,} ({shown}{more})" if exits else "none"
    if "lies" in kept:
        yield "lies", f"{kept['lies']:,} told"
    for injected in kept.get("injections", []):
        yield "injected", injected["text"]
    yield "time", f"{kept['seconds']['build']:.2f} s to build, {kept['seconds']['run']:.2f} s running"


def _origin(kept: dict[str, Any]) -> str:
    """Return where the MRTD comes from, and whether it is what was expected."""
    if kept["mrtd_source"] == "predicted":
        return f"as predicted from what was added and measured, {kept['mrtd_order']}"
    if kept["mrtd_order"] is None:
        return "read from the TDX module; does NOT match the prediction from this launch's calls"
    return f"read from the TDX module; matches the {kept['mrtd_order'].replace(' ', '-')} prediction"


def as_bytes(kept: dict[str, Any]) -> bytes:
    """Return the record as a JSON document."""
    return json.dumps(kept, indent=1).encode() + b"\n"
