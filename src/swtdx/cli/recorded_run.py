# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run --record FILE`` and ``swtdx replay-run FILE``: the file, and what makes a run repeatable.

A record is lines of JSON: what the machine is and from which files it was started, what came from outside and at which
count of instructions, and what the run is compared with. The last line is a SHA-256 of all others. The files are not in
it; a replay opens them again, and refuses others.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swtdx
from swtdx import __version__
from swtdx.cli.kernel_choice import checked_injections, checked_lies
from swtdx.cli.output import Output
from swtdx.cli.parameters import InputError
from swtdx.cli.saved_machine import ALIKE, td_as_json, td_from_json
from swtdx.cpu.counted import BoardClock, Chance, CountedClock, Happening, Moment
from swtdx.cpu.platform import Platform, host_features
from swtdx.image.firmware import NO_FIRMWARE, find_firmware
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.disk_image import parse_disk
from swtdx.vmm.launch import Machine
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run

if TYPE_CHECKING:
    from swtdx.cli.run_options import Options

_KIND = "swtdx record"
_ALIKE = (*ALIKE, "append")
_FILES = ("firmware", "kernel", "initrd")
_LARGEST = 1 << 30


def check(options: Options) -> None:
    """Refuse what cannot be repeated. Raises InputError, DiskError."""
    writable = next((text for text in options.disks if not parse_disk(text).read_only), None)
    for wrong, sentence in (
        (options.kvm == "host", "is for the embedded kernel: runs of the host's cannot be repeated"),
        (options.cpus > 1, "records machines with one vCPU only, so far: omit --cpus"),
        (options.restored is not None, "and --from cannot be used together, so far: record from the start"),
        (writable is not None, f"does not keep what is written to a disk: --disk {writable},ro"),
        (options.quote_socket is not None, "and --quote-generation-socket cannot be used together: quotes differ"),
        (options.snapshot is not None, "and --snapshot cannot be used together, so far"),
        (options.gdb is not None, "and --gdb cannot be used together: debug the replay (swtdx replay-run --gdb)"),
    ):
        if wrong:
            raise InputError(f"--record {sentence}")


class Repeatable:
    """What a run needs to be recorded or to be a replay: its clock, its random numbers, and the ends of both."""

    def __init__(self, recipe: dict[str, Any], script: list[Happening] | None, ending: str = "") -> None:
        seed = bytes.fromhex(recipe["seed"])
        self.recipe = recipe
        self.has_debug_port = bool(recipe["debugcon"])
        self.terminal: tuple[int, int] | None = tuple(recipe["terminal"]) if recipe["terminal"] else None
        """Columns and lines, as a virtio console tells its guest."""
        self.clock = CountedClock(recipe["real_ns"], script)
        self.board_clock = BoardClock(self.clock)
        self.chance = Chance(seed)
        self.report_key = Chance(seed + b"report")(32)
        self._ending = ending
        self._happenings: list[Happening] = []
        self._diverged: str | None = None

    def serial(self, put: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """Return ``put`` such that what the guest prints is compared, too."""

        def both(data: bytes) -> None:
            if new := self.clock.printed(data):
                put(new)

        return both

    def attach(self, machine: Machine, run: Run) -> None:
        """Connect the machine that was built with its script."""
        clock = self.clock
        clock.deliver = machine.board.type
        clock.note = self._happenings.append
        clock.ended = lambda: run.finish(Outcome(End.UNTIL, f"the recorded run ended here: {self._ending}"))
        clock.diverged = lambda text: self._lost(run, text)

    def _lost(self, run: Run, text: str) -> None:
        self._diverged = text
        run.finish(Outcome(End.INTERNAL_ERROR, text))

    def judged(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a run that is over: that of a replay which ended otherwise is an error."""
        self.clock.finish()
        own = outcome.end in (End.LEFT, End.INTERRUPTED, End.TIMEOUT)
        left = None if own or self._diverged else self.clock.left
        return outcome if left is None else Outcome(End.INTERNAL_ERROR, f"{left} ({outcome.text})")

    def write(self, output: Output, outcome: Outcome) -> None:
        """Write the record."""
        lines = [json.dumps({**self.recipe, "ending": outcome.text})]
        lines += [json.dumps([item.kind, *asdict(item.moment).values(), item.data]) for item in self._happenings]
        text = "".join(f"{line}\n" for line in lines).encode()
        end = json.dumps({"sha256": hashlib.sha256(text).hexdigest()})
        output.replace(text + f"{end}\n".encode(), private=True)


def recorder(options: Options, terminal: tuple[int, int] | None) -> Repeatable:
    """Return what records a run; ``terminal``: columns and lines. Raises InputError, DiskError, FirmwareError."""
    check(options)
    named = {name: path for name in _FILES if (path := getattr(options, name)) is not None}
    if str(options.firmware) == NO_FIRMWARE:
        del named["firmware"]
    else:
        named["firmware"] = find_firmware(options.firmware, tdx=options.td is not None).path
    recipe = {
        "kind": _KIND,
        "maker": _maker(),
        **{name: getattr(options, name) for name in _ALIKE},
        "dialect": (options.dialect or Dialect.UPSTREAM).value,
        "cpu_features": sorted(host_features() if options.cpu_features is None else options.cpu_features),
        "tsc_hz": Platform().tsc_hz,
        "td": td_as_json(options.td),
        "files": {name: _identity(f"--{name}", path) for name, path in named.items()},
        "disks": [_identity("--disk", parse_disk(text).path) for text in options.disks],
        "smbios": options.smbios,
        "inject": options.inject,
        "lies": [lie.text for lie in options.lies],
        "debugcon": options.debugcon is not None,
        "terminal": terminal,
        "seed": secrets.token_hex(32),
        "real_ns": time.time_ns(),
    }
    return Repeatable(recipe, None)


def replayer(path: Path, options: Options) -> tuple[Repeatable, Options]:
    """Return what repeats the run of a record, and its options. Raises InputError."""
    recipe, script = _read(path)
    try:
        return Repeatable(recipe, script, str(recipe["ending"])), _options(path, recipe, options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: it does not say what the machine is ({error})") from None


def _options(path: Path, recipe: dict[str, Any], options: Options) -> Options:
    here = Platform().tsc_hz
    if recipe["tsc_hz"] != here:
        raise InputError(
            f"{path} was made where the time-stamp counter runs at {recipe['tsc_hz'] / 1e9:g} GHz; here it runs at "
            f"{here / 1e9:g} GHz"
        )
    if options.debugcon is not None and not recipe["debugcon"]:
        raise InputError(f"--debugcon: the run in {path} had no debug port")
    given: dict[str, Any] = {"firmware": Path(NO_FIRMWARE)}
    for name, identity in recipe["files"].items():
        given[name] = _the_same(path, f"--{name}", getattr(options, name), identity)
    for name in _FILES:
        if name not in recipe["files"] and getattr(options, name) is not None:
            raise InputError(f"--{name}: the run in {path} had none")
    return replace(
        options,
        **{name: recipe[name] for name in _ALIKE},
        **given,
        disks=_disks(path, recipe["disks"], options.disks),
        smbios=tuple(recipe["smbios"]),
        inject=checked_injections(recipe["inject"]),
        lies=checked_lies(recipe["lies"], None),
        dialect=Dialect(recipe["dialect"]),
        cpu_features=frozenset(recipe["cpu_features"]),
        td=td_from_json(recipe["td"]),
        quotes=False,
        timeout=0.0,
    )


def _disks(path: Path, recorded: list[list[Any]], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments of --disk, with the serial numbers that the guest has read. Raises InputError, DiskError."""
    if given and len(given) != len(recorded):
        raise InputError(f"--disk: the run in {path} had {len(recorded) or 'none'}; give as many, in their order")
    files: list[Path] | list[None] = [parse_disk(text).path for text in given] or [None] * len(recorded)
    return tuple(
        "{},ro,format=raw,serial={}".format(
            *(str(name).replace(",", ",,") for name in (_the_same(path, "--disk", file, known), Path(known[0]).name))
        )
        for file, known in zip(files, recorded, strict=True)
    )


def _the_same(path: Path, option: str, given: Path | None, recorded: list[Any]) -> Path:
    """Return the file to use for one that was recorded. Raises InputError for another one."""
    file = Path(recorded[0]) if given is None else given
    if _identity(option, file)[1:] != recorded[1:]:
        raise InputError(f"{option} {file} is not the file that was recorded in {path}")
    return file


def _maker() -> list[str]:
    from swtdx.cpu import _engine

    return [__version__, _engine.state_layout(), _source()]


def _source() -> str:
    """Return a checksum of the package's Python files: each may change what a guest sees at which instruction."""
    package, digest = Path(swtdx.__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _identity(option: str, path: Path) -> list[Any]:
    """Return what a file is known by: path, size, SHA-256. Raises InputError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{option} {path} is not a regular file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return [str(path.absolute()), file.tell(), digest]
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read: {error.strerror or error}") from None


def _read(path: Path) -> tuple[dict[str, Any], list[Happening]]:
    """Read a record. Raises InputError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise InputError(f"{path} is not a record of a run")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    first, _, _ = data.partition(b"\n")
    try:
        recipe = json.loads(first)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or recipe.get("kind") != _KIND:
        raise InputError(f"{path} is not a record of a run")
    if recipe.get("maker") != _maker():
        made = recipe.get("maker")
        version = made[0] if isinstance(made, list) and made else "another version"
        if version == __version__:
            raise InputError(f"{path} was made by another build of swtdx {version}: a run is repeated by its own only")
        raise InputError(f"{path} was made by swtdx {version}: this is {__version__}")
    body, last = _last_line(data)
    try:
        told = json.loads(last)["sha256"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise InputError(f"{path} is cut short: its last line is not there") from None
    if told != hashlib.sha256(body).hexdigest():
        raise InputError(f"{path} is damaged: its SHA-256 is another")
    try:
        return recipe, [_happening(*json.loads(line)) for line in body.splitlines()[1:]]
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is damaged: a line of it is not readable ({error})") from None


def _last_line(data: bytes) -> tuple[bytes, bytes]:
    start = data.rfind(b"\n", 0, len(data) - 1) + 1
    return data[:start], data[start:]


def _happening(kind: str, count: int, visit: int, halted: bool, ns: int, data: str) -> Happening:
    if kind not in ("typed", "check", "end") or any(type(item) is not int for item in (count, visit, ns)):
        raise ValueError(kind)
    if kind == "typed":
        bytes.fromhex(data)
    return Happening(Moment(count, visit, bool(halted), ns), kind, str(data))
