# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx run`` was asked for, as values, from its command line, a snapshot or a recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.trace.format import TraceFormat
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.launch import TdParameters

if TYPE_CHECKING:
    from swtdx.lying.lie import Lie


class OnPanic(Enum):
    """What a panic of the guest's kernel does to the run."""

    STOP = "stop"
    CONTINUE = "continue"


@dataclass(frozen=True)
class Options:
    """What ``swtdx run`` was asked for."""

    firmware: Path | None = None
    memory: int = 256 << 20
    cpus: int = 1
    td: TdParameters | None = field(default_factory=TdParameters)
    kernel_release: str | None = None  # of the embedded kernel; None: the newest released one
    dialect: Dialect | None = None  # None: upstream, or whichever the host speaks
    kvm: str = "emulated"
    module_version: str | None = None  # of the TDX module; None: the platform's default
    cpu_features: frozenset[str] | None = None  # besides x86-64-v2; None: all that there is
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    no_rbp_mod: bool = False
    huge_pages: bool = True
    inject: tuple[str, ...] = ()
    lies: tuple[Lie, ...] = ()
    lies_from: Path | None = None
    lies_to: Path | None = None
    gdb: str | None = None  # where to listen for a debugger
    gdb_wait: bool = False
    until: str | None = None
    timeout: float | None = None
    json: Path | None = None
    debugcon: Path | None = None
    log: Path | None = None
    debug_exit: int | None = None
    quotes: bool = True
    quote_socket: str | None = None  # of a quote generation service; None: the machine's own quoting enclave
    pki: Path | None = None  # folder of the machine's test keys; None: the default one
    module_updated: bool = False
    on_panic: OnPanic | None = None  # None: stop, unless a terminal is attached
    smbios: tuple[str, ...] = ()  # type=N[,NAME=VALUE]...
    disks: tuple[str, ...] = ()  # FILE[,ro][,format=raw]
    virtio_console: bool = False
    rng: bool = False
    trace: Path | None = None
    trace_format: TraceFormat = TraceFormat.jsonl
    html: Path | None = None
    lint: bool = False
    lint_notes: bool = False
    symbols: Path | None = None
    snapshot_at: str | None = None
    snapshot: Path | None = None
    restored: Path | None = None
    record: Path | None = None
    replayed: Path | None = None  # a record
    quiet: bool = False
    verbose: bool = False
