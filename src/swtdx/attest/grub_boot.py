# SPDX-License-Identifier: GPL-2.0-or-later
"""What GRUB extends while it carries its configuration out: every command, every file that it reads, the command line.

GRUB's module ``tpm`` (grub-core/commands/tpm.c) sees each command before it runs, its words joined by spaces (PCR 8),
each file when it is opened (PCR 9), and a kernel's command line (PCR 8); all are RTMR2 in a TD.  So the configuration
is carried out here, with the files of the machine given, without a keyboard and up to the start of a kernel: by the
default entry of the menu.  A command whose effect is not modelled is measured all the same; where something that it
would have set is then measured, that event is not known, and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from swtdx.attest.boot_prediction import EV_IPL, PredictionError, extension
from swtdx.attest.event_log import Event
from swtdx.attest.grub_image import GrubImage
from swtdx.attest.grub_script import (
    Command,
    For,
    Function,
    If,
    Loop,
    Script,
    ScriptError,
    Word,
    parse_script,
)
from swtdx.attest.printable import printable

Reader = Callable[[str, str], bytes | None]
"""(device, path) -> contents of a file; None if there is none."""
Verify = Callable[[bytes, str], Sequence[Event]]
"""(kernel, its name) -> what is extended as it is looked at."""

_MAXIMUM_STEPS = 20_000
_MAXIMUM_CALLS = 40
_FEATURES = (
    *("chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module", "menuentry_id"),
    *("menuentry_options", "200_final", "nativedisk_cmd", "timeout_style"),
)
_LISTS = ("command.lst", "fs.lst", "crypto.lst", "terminal.lst")
_QUIET = frozenset(
    {
        *{
            "echo",
            "true",
            "export",
            "terminal_output",
            "terminal_input",
            "clear",
            "sleep",
            "gettext",
            "save_env",
            "play",
        },
        *{"rmmod", "serial", "keymap", "videoinfo", "hiddenentry", "cutmem", "badram", "fwsetup", "nativedisk"},
    }
)
"""Commands that change nothing that is measured later."""


class UnknownError(Exception):
    """What is measured next is not known."""


class StopError(Exception):
    """``break``, ``continue`` or ``return``, with how many loops it leaves."""

    def __init__(self, kind: str, count: int = 1) -> None:
        super().__init__(kind)
        self.kind, self.count = kind, count


@dataclass(frozen=True)
class Entry:
    """An entry of the menu."""

    title: str
    identifier: str
    source: str
    arguments: tuple[str, ...]
    submenu: bool


@dataclass(frozen=True)
class Loaded:
    """What GRUB starts at the end."""

    kernel: bytes
    kernel_name: str
    options: str
    initrd: bytes


@dataclass
class GrubBoot:
    """What GRUB has measured, in order, and what it starts; ``unknown`` says what comes next and is not known."""

    events: list[Event] = field(default_factory=list)
    loaded: Loaded | None = None
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def carry_out(grub: GrubImage, read: Reader, devices: Sequence[str], verify: Verify | None = None) -> GrubBoot:
    """What GRUB extends that was started from the first of ``devices`` (as ``hd0,gpt1``), and what it starts.

    ``verify`` gives what shim extends as GRUB has it look at a kernel, under Secure Boot.
    Raises `PredictionError` for a configuration that cannot be parsed, or does not come to an end.
    """
    run = Run(grub, read, tuple(devices), verify)
    try:
        run.start(grub.configuration)
    except UnknownError as error:
        run.boot.unknown.append(f"EV_IPL ({printable(str(error))}), and what follows it")
    except ScriptError as error:
        raise PredictionError(f"GRUB's configuration cannot be parsed: {printable(str(error))}") from None
    except RecursionError:
        raise PredictionError("GRUB's configuration is nested too deeply") from None
    except StopError:
        raise PredictionError("GRUB's configuration leaves a loop or function where there is none") from None
    if not grub.measures:
        run.boot.events = [event for event in run.boot.events if event.event_type != EV_IPL]
        version = ".".join(map(str, grub.version or ()))
        run.boot.remarks.append(
            f"this GRUB ({version}) is taken to measure only where there is a TPM, as Debian's does before 2.14"
        )
    run.boot.remarks = [printable(each) for each in dict.fromkeys(run.boot.remarks)]
    return run.boot


class Run:
    def __init__(self, grub: GrubImage, read: Reader, stores: tuple[str, ...], verify: Verify | None) -> None:
        self.verify = verify
        self.read, self.modules, self.stores = read, set(grub.modules), stores
        self.boot = GrubBoot()
        self.functions: dict[str, Script] = {}
        self.arguments: tuple[str, ...] = ()
        self.entries: list[Entry] = []
        self.unknown: set[str] = set()
        self.steps = 0
        self.calls = 0
        self.variables = {
            "prefix": grub.prefix if grub.prefix.startswith("(") else f"({stores[0]}){grub.prefix}",
            "root": stores[0], "cmdpath": f"({stores[0]})/EFI/BOOT", "grub_platform": "efi", "grub_cpu": "x86_64",
            "?": "0", **{f"feature_{each}": "y" for each in _FEATURES},
        }  # fmt: skip
        self.kernel: tuple[bytes, str, str] | None = None
        self.initrds: list[bytes] = []

    # --- what is measured ---------------------------------------------------------------------------------------------

    def measure(self, label: str, measured: bytes) -> None:
        self.boot.events.append(extension(2, EV_IPL, measured, encoded(label) + b"\0"))

    def open(self, path: str) -> bytes | None:
        """The contents of a file, measured; None if there is none."""
        contents = self.contents(path)
        if contents is not None:
            self.measure(path, contents)
        return contents

    def contents(self, path: str) -> bytes | None:
        device, path = self.place(path)
        return self.read(device, path)

    def place(self, path: str) -> tuple[str, str]:
        if path.startswith("(") and ")" in path:
            device, _, rest = path[1:].partition(")")
            return device, rest
        if "root" in self.unknown:
            raise UnknownError(f"{path}, on a device that is not known")
        return self.variables.get("root", ""), path

    # --- the whole boot -----------------------------------------------------------------------------------------------

    def start(self, configuration: str) -> None:
        if configuration:
            self.script(without_comments(configuration))
        if self.kernel is None:
            self.normal(f"{self.variables.get('prefix', '')}/grub.cfg", first=True)
        if self.boot.loaded is None:
            raise UnknownError("a command that is typed: the configuration starts no kernel")

    def normal(self, path: str, *, first: bool = False) -> None:
        """``normal`` and ``configfile``: read a configuration, then the menu that it has made."""
        if first:
            self.lists()
            self.open(path)
        source = self.open(path)
        if source is None:
            raise UnknownError(f"a command that is typed: there is no {path}")
        kept, self.entries = self.entries, []
        self.script(without_comments(source.decode("utf-8", "surrogateescape")))
        if self.entries and self.kernel is None:
            self.choose(self.variables.get("default", "0"))
        self.entries = kept

    def lists(self) -> None:
        """Lists of modules, which GRUB reads where it finds them as the prefix is set."""
        for each in _LISTS:
            self.open(f"{self.variables.get('prefix', '')}/x86_64-efi/{each}")

    def choose(self, default: str) -> None:
        """Run the default entry of the menu; ``>`` leads into submenus."""
        wanted, _, rest = (default or "0").partition(">")
        if "default" in self.unknown:
            raise UnknownError("the menu entry that is the default")
        entry = next((each for each in self.entries if wanted in (each.title, each.identifier) and wanted), None)
        if entry is None:
            number = int(wanted) if wanted.isascii() and wanted.isdigit() else 0
            entry = self.entries[number] if number < len(self.entries) else self.entries[0]
        self.boot.remarks.append(f"GRUB's menu: {entry.title!r} is started without a key pressed")
        kept, self.entries = self.entries, []
        self.variables["chosen"] = entry.title
        with_parameters = "setparams " + " ".join(_quoted(each) for each in entry.arguments) + "\n" + entry.source
        kept_arguments, self.arguments = self.arguments, entry.arguments
        self.script(with_parameters)
        self.arguments = kept_arguments
        if self.kernel is None and entry.submenu and self.entries:
            self.choose(rest or "0")
        self.entries = kept
        if self.kernel is None:
            raise UnknownError(f"what follows the menu entry {entry.title!r}, which starts no Linux kernel")
        if self.boot.loaded is None:
            self.load(*self.kernel)

    def load(self, kernel: bytes, name: str, options: str) -> None:
        """Start a kernel, which is the end."""
        self.boot.loaded = Loaded(kernel, name, options, b"".join(_aligned(self.initrds)))

    # --- statements ---------------------------------------------------------------------------------------------------

    def script(self, source: str) -> int:
        return self.run(parse_script(source))

    def run(self, script: Script) -> int:
        status = 0
        for each in script:
            if self.boot.loaded is not None:
                break
            status = self.statement(each)
        return status

    def statement(self, each: Command | If | Loop | For | Function) -> int:
        self.steps += 1
        if self.steps > _MAXIMUM_STEPS:
            raise PredictionError(f"GRUB's configuration takes more than {_MAXIMUM_STEPS} steps")
        if isinstance(each, Function):
            self.functions[each.name] = each.body
            return 0
        if isinstance(each, If):
            for condition, body in each.branches:
                if self.run(condition) == 0:
                    return self.run(body)
            return self.run(each.otherwise)
        if isinstance(each, Loop):
            return self.loop(lambda: (self.run(each.condition) == 0) != each.until, each.body)
        if isinstance(each, For):
            words = iter([text for word in each.words for text in self.expand(word)])

            def take() -> bool:
                text = next(words, None)
                if text is not None:
                    self.variables[each.name] = text
                return text is not None

            return self.loop(take, each.body)
        return self.command(each)

    def loop(self, goes_on: Callable[[], bool], body: Script) -> int:
        status = 0
        while goes_on():
            self.steps += 1
            if self.steps > _MAXIMUM_STEPS:
                raise PredictionError(f"GRUB's configuration takes more than {_MAXIMUM_STEPS} steps")
            try:
                status = self.run(body)
            except StopError as stop:
                if stop.kind == "return":
                    raise
                if stop.count > 1:
                    raise StopError(stop.kind, stop.count - 1) from None
                if stop.kind == "break":
                    break
        return status

    def command(self, command: Command) -> int:
        words = [text for word in command.words for text in self.expand(word)]
        if command.block is not None:
            words.append("{" + command.block + "}")
        if not words or (not words[0] and len(words) == 1):
            return 0
        line = " ".join(words)
        self.measure(f"grub_cmd: {line}", encoded(line))
        inverted = words[0] == "!"
        status = self.carry(words[1:] if inverted else words, command)
        status = int(not status) if inverted else status
        self.variables["?"] = str(status)
        return status

    def carry(self, words: list[str], command: Command) -> int:
        if not words:
            return 1
        name, arguments = words[0], words[1:]
        from swtdx.attest.grub_commands import COMMANDS  # which needs this module

        method = COMMANDS.get(name)
        if method is not None:
            return method(self, arguments, command)
        if name in self.functions:
            return self.call(name, tuple(arguments))
        left, equals, right = name.partition("=")
        if equals and left.replace("_", "a").isalnum():
            self.assign(left, right)
            return 0
        if name not in _QUIET:
            self.boot.remarks.append(f"the GRUB command {name} is taken to succeed and to change nothing else")
        return 0

    def call(self, name: str, arguments: tuple[str, ...]) -> int:
        kept, self.arguments = self.arguments, arguments
        try:
            with self.nested("nests calls of functions"):
                return self.run(self.functions[name])
        except StopError as stop:
            if stop.kind != "return":
                raise
            return stop.count
        finally:
            self.arguments = kept

    @contextmanager
    def nested(self, does: str) -> Iterator[None]:
        """Count how deep functions and files are within one another. Raises `PredictionError`."""
        if self.calls == _MAXIMUM_CALLS:
            raise PredictionError(f"GRUB's configuration {does} more than {_MAXIMUM_CALLS} deep")
        self.calls += 1
        try:
            yield
        finally:  # a file may be left by a return
            self.calls -= 1

    # --- variables and words ------------------------------------------------------------------------------------------

    def assign(self, name: str, value: str) -> None:
        self.variables[name] = value
        self.unknown.discard(name)
        if name == "prefix":
            self.lists()

    def value(self, name: str) -> list[str]:
        """What a variable stands for: one text, or all arguments."""
        if name in ("*", "@"):
            return list(self.arguments)
        if name == "#":
            return [str(len(self.arguments))]
        if name.isdigit():
            number = int(name)
            return [self.arguments[number - 1]] if 0 < number <= len(self.arguments) else []
        if name in self.unknown:
            raise UnknownError(f"a command with the value of ${name}, which is not known")
        return [self.variables[name]] if name in self.variables else []

    def expand(self, word: Word) -> Iterator[str]:
        """The arguments that a word becomes: unquoted values are split at blanks, and may vanish."""
        current: str | None = None
        for piece in word.pieces:
            if not piece.variable:
                current = (current or "") + piece.text
                continue
            values = self.value(piece.text)
            if piece.quoted:
                joined = " ".join(values)
                current = (current or "") + joined
                continue
            for at, text in enumerate(values):
                parts = text.split()
                if at and current is not None:
                    yield current
                    current = None
                for number, part in enumerate(parts):
                    if number or (text[:1].isspace() and current is not None):
                        if current is not None:
                            yield current
                        current = None
                    current = (current or "") + part
        if current is not None:
            yield current


def encoded(text: str) -> bytes:
    """What GRUB has of a text, which may be in any encoding."""
    return text.encode("utf-8", "surrogateescape")


def without_comments(source: str) -> str:
    """GRUB drops lines that begin with a hash before it looks at anything else."""
    return "\n".join(line for line in source.split("\n") if not line.startswith("#"))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _aligned(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Several files as one initrd: each but the last is padded to four bytes."""
    for at, each in enumerate(parts):
        yield each if at == len(parts) - 1 else each + bytes(-len(each) % 4)
