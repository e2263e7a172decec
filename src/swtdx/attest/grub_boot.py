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
from dataclasses import dataclass, field

from swtdx.attest.boot_prediction import EV_IPL, PredictionError, extension
from swtdx.attest.event_log import Event
from swtdx.attest.event_words import printable
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
        *{"echo", "true", "export", "terminal_output", "terminal_input", "clear", "sleep", "insmod", "gettext"},
        *{"menuentry", "submenu", "save_env", "play", "loadfont", "background_image", "rmmod", "serial", "keymap"},
        *{
            "unset",
            "setparams",
            "set",
            "videoinfo",
            "hiddenentry",
            "cutmem",
            "badram",
            "smbios",
            "fwsetup",
            "nativedisk",
        },
    }
)
"""Commands that change nothing that is measured later, or are modelled."""


class _UnknownError(Exception):
    """What is measured next is not known."""


class _StopError(Exception):
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
    run = _Run(grub, read, tuple(devices), verify)
    try:
        run.start(grub.configuration)
    except _UnknownError as error:
        run.boot.unknown.append(f"EV_IPL ({printable(str(error))}), and what follows it")
    except ScriptError as error:
        raise PredictionError(f"GRUB's configuration cannot be parsed: {printable(str(error))}") from None
    except RecursionError:
        raise PredictionError("GRUB's configuration is nested too deeply") from None
    except _StopError:
        raise PredictionError("GRUB's configuration leaves a loop or function where there is none") from None
    if not grub.measures:
        run.boot.events = [event for event in run.boot.events if event.event_type != EV_IPL]
        version = ".".join(map(str, grub.version or ()))
        run.boot.remarks.append(
            f"this GRUB ({version}) is taken to measure only where there is a TPM, as Debian's does before 2.14"
        )
    run.boot.remarks = [printable(each) for each in dict.fromkeys(run.boot.remarks)]
    return run.boot


class _Run:
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
        self.boot.events.append(extension(2, EV_IPL, measured, _bytes(label) + b"\0"))

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
            raise _UnknownError(f"{path}, on a device that is not known")
        return self.variables.get("root", ""), path

    # --- the whole boot -----------------------------------------------------------------------------------------------

    def start(self, configuration: str) -> None:
        if configuration:
            self.script(_without_comments(configuration))
        if self.kernel is None:
            self.normal(f"{self.variables.get('prefix', '')}/grub.cfg", first=True)
        if self.boot.loaded is None:
            raise _UnknownError("a command that is typed: the configuration starts no kernel")

    def normal(self, path: str, *, first: bool = False) -> None:
        """``normal`` and ``configfile``: read a configuration, then the menu that it has made."""
        if first:
            self.lists()
            self.open(path)
        source = self.open(path)
        if source is None:
            raise _UnknownError(f"a command that is typed: there is no {path}")
        kept, self.entries = self.entries, []
        self.script(_without_comments(source.decode("utf-8", "surrogateescape")))
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
            raise _UnknownError("the menu entry that is the default")
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
            raise _UnknownError(f"what follows the menu entry {entry.title!r}, which starts no Linux kernel")
        if self.boot.loaded is None:
            kernel, name, options = self.kernel
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
            except _StopError as stop:
                if stop.kind == "return":
                    raise
                if stop.count > 1:
                    raise _StopError(stop.kind, stop.count - 1) from None
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
        self.measure(f"grub_cmd: {line}", _bytes(line))
        inverted = words[0] == "!"
        status = self.carry(words[1:] if inverted else words, command)
        status = int(not status) if inverted else status
        self.variables["?"] = str(status)
        return status

    def carry(self, words: list[str], command: Command) -> int:
        if not words:
            return 1
        name, arguments = words[0], words[1:]
        method = _COMMANDS.get(name)
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
        self.calls += 1
        if self.calls > _MAXIMUM_CALLS:
            raise PredictionError(f"GRUB's configuration nests calls of functions more than {_MAXIMUM_CALLS} deep")
        kept, self.arguments = self.arguments, arguments
        try:
            return self.run(self.functions[name])
        except _StopError as stop:
            if stop.kind != "return":
                raise
            return stop.count
        finally:
            self.arguments = kept
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
            raise _UnknownError(f"a command with the value of ${name}, which is not known")
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


# --- commands ---------------------------------------------------------------------------------------------------------


def _set(run: _Run, arguments: list[str], command: Command) -> int:
    if arguments and "=" in arguments[0]:
        name, _, value = arguments[0].partition("=")
        run.assign(name, value)
    return 0


def _unset(run: _Run, arguments: list[str], command: Command) -> int:
    for each in arguments:
        run.variables.pop(each, None)
        run.unknown.discard(each)
    return 0


def _test(run: _Run, arguments: list[str], command: Command) -> int:
    return int(not _Test(run, arguments).result())


def _bracket(run: _Run, arguments: list[str], command: Command) -> int:
    return _test(run, arguments[:-1] if arguments[-1:] == ["]"] else arguments, command)


def _menu(run: _Run, arguments: list[str], command: Command) -> int:
    """``menuentry`` and ``submenu``: options with a value, then the title and further arguments, then the block."""
    if command.block is None:
        return 1
    given, identifier = [], ""
    at = 0
    while at < len(arguments) - 1:
        word = arguments[at]
        option, _, value = word.partition("=")
        if option in ("--class", "--users", "--hotkey", "--id", "--source"):
            if not value:
                at += 1
                value = arguments[at] if at < len(arguments) - 1 else ""
            if option == "--id":
                identifier = value
        elif word != "--unrestricted":
            given.append(word)
        at += 1
    if not given:
        return 1
    submenu = command.words[0].plain == "submenu"
    run.entries.append(Entry(given[0], identifier or given[0], command.block, tuple(given), submenu))
    return 0


def _source(run: _Run, arguments: list[str], command: Command) -> int:
    found = run.open(arguments[0]) if arguments else None
    if found is None:
        return 1
    run.calls += 1
    if run.calls > _MAXIMUM_CALLS:
        raise PredictionError(f"GRUB's configuration reads files more than {_MAXIMUM_CALLS} deep")
    status = run.script(_without_comments(found.decode("utf-8", "surrogateescape")))
    run.calls -= 1
    return status


def _configfile(run: _Run, arguments: list[str], command: Command) -> int:
    if not arguments or run.contents(arguments[0]) is None:
        return 1
    run.calls += 1
    if run.calls > _MAXIMUM_CALLS:
        raise PredictionError(f"GRUB's configuration reads files more than {_MAXIMUM_CALLS} deep")
    run.normal(arguments[0])
    run.calls -= 1
    return 0


def _normal(run: _Run, arguments: list[str], command: Command) -> int:
    run.normal(arguments[0] if arguments else f"{run.variables.get('prefix', '')}/grub.cfg", first=not arguments)
    return 0


def _load_env(run: _Run, arguments: list[str], command: Command) -> int:
    """Variables of a file of ``NAME=VALUE`` lines, those named only, if any are."""
    file, names, signed = f"{run.variables.get('prefix', '')}/grubenv", [], True
    words = iter(arguments)
    for each in words:
        if each in ("-f", "--file"):
            file = next(words, "")
        elif each in ("-s", "--skip-sig"):
            signed = False
        else:
            names.append(each.removeprefix("--file="))
    found = run.open(file) if signed else run.contents(file)
    if found is None:
        return 1
    for line in found.decode("utf-8", "replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#") and (not names or name in names):
            run.assign(name, value.replace("\\\\", "\\"))
    return 0


def _search(run: _Run, arguments: list[str], command: Command) -> int:
    """The first device with a file; by UUID or label, the only other one that there is."""
    name, targets, file = "root", [], False
    kind = ""
    words = iter(arguments)
    for each in words:
        if each in ("-s", "--set"):
            name = "root"
        elif each.startswith("--set="):
            name = each.removeprefix("--set=")
        elif each in ("-f", "--file"):
            file = True
        elif each in ("-u", "--fs-uuid", "-l", "--label"):
            kind = each
        elif each == "--hint":
            next(words, None)
        elif not each.startswith("-"):
            targets.append(each)
    if file:
        for device in run.stores:
            found = run.read(device, targets[0]) if targets else None
            if found is not None:
                run.measure(f"({device}){targets[0]}", found)
                run.assign(name, device)
                return 0
        return 1
    others = [device for device in run.stores if device != run.stores[0]] or list(run.stores)
    if kind and len(others) == 1:
        run.boot.remarks.append(f"search {kind} {' '.join(targets)} is taken to find ({others[0]})")
        run.assign(targets[1] if len(targets) > 1 and name == "root" else name, others[0])
        return 0
    run.unknown.add(name)
    return 0


def _search_fs(run: _Run, arguments: list[str], command: Command) -> int:
    """``search.fs_uuid UUID [NAME]`` and its like."""
    kind = {"search.fs_uuid": "--fs-uuid", "search.fs_label": "--label", "search.file": "--file"}
    option = kind[command.words[0].plain or "search.fs_uuid"]
    name = [f"--set={arguments[1]}"] if len(arguments) > 1 and not arguments[1].startswith("-") else []
    return _search(run, [option, *name, *arguments[:1]], command)


def _opens(run: _Run, arguments: list[str], command: Command) -> int:
    """Commands that read the files that they are given."""
    found = [run.open(each) for each in arguments if not each.startswith("-")]
    return int(not found or None in found)


def _loadfont(run: _Run, arguments: list[str], command: Command) -> int:
    paths = [
        each if each.startswith(("/", "(")) else f"{run.variables.get('prefix', '')}/fonts/{each}.pf2"
        for each in arguments
    ]
    return _opens(run, paths, command)


def _insmod(run: _Run, arguments: list[str], command: Command) -> int:
    """A module that is not in GRUB's executable comes from a file; what that needs is not followed."""
    for each in arguments:
        name = each.rsplit("/", 1)[-1].removesuffix(".mod")
        if name in run.modules:
            continue
        path = each if "/" in each else f"{run.variables.get('prefix', '')}/x86_64-efi/{each}.mod"
        if run.open(path) is None:
            return 1
        run.modules.add(name)
        run.boot.remarks.append(f"the module {name} is taken to need no others that GRUB has not loaded")
    return 0


def _linux(run: _Run, arguments: list[str], command: Command) -> int:
    kernel = run.open(arguments[0]) if arguments else None
    if kernel is None:
        return 1
    if run.verify is not None:
        run.boot.events += run.verify(kernel, arguments[0])
    line = command_line(arguments)
    run.measure(f"kernel_cmdline: {line}", _bytes(line))
    run.kernel, run.initrds = (kernel, arguments[0], f"BOOT_IMAGE={line}"), []
    return 0


def _initrd(run: _Run, arguments: list[str], command: Command) -> int:
    found = [run.open(each) for each in arguments]
    run.initrds = [each for each in found if each is not None]
    return int(None in found)


def _chain(run: _Run, arguments: list[str], command: Command) -> int:
    run.open(arguments[-1]) if arguments else None
    raise _UnknownError(f"what {' '.join(arguments[-1:])} extends, which GRUB starts")


def _boot(run: _Run, arguments: list[str], command: Command) -> int:
    if run.kernel is None:
        return 1
    kernel, name, options = run.kernel
    run.boot.loaded = Loaded(kernel, name, options, b"".join(_aligned(run.initrds)))
    return 0


def _left(kind: str) -> Callable[[_Run, list[str], Command], int]:
    def leave(run: _Run, arguments: list[str], command: Command) -> int:
        number = arguments[0] if arguments else "1" if kind != "return" else run.variables.get("?", "0")
        raise _StopError(kind, int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0)

    return leave


def _shift(run: _Run, arguments: list[str], command: Command) -> int:
    run.arguments = run.arguments[1:]
    return 0


def _setparams(run: _Run, arguments: list[str], command: Command) -> int:
    run.arguments = tuple(arguments)
    return 0


def _failing(run: _Run, arguments: list[str], command: Command) -> int:
    return 1


def _sets_unknown(run: _Run, arguments: list[str], command: Command) -> int:
    """Commands that set a variable to what only the machine knows."""
    for at, each in enumerate(arguments):
        if each.startswith("--set="):
            run.unknown.add(each.removeprefix("--set="))
        elif each == "--set" and at + 1 < len(arguments):
            run.unknown.add(arguments[at + 1])
    return 0


_COMMANDS: dict[str, Callable[[_Run, list[str], Command], int]] = {
    "set": _set, "unset": _unset, "test": _test, "[": _bracket, "false": _failing, "menuentry": _menu, "submenu": _menu,
    "source": _source, ".": _source, "configfile": _configfile, "normal": _normal, "load_env": _load_env,
    "search": _search, "search.fs_uuid": _search_fs, "search.fs_label": _search_fs, "search.file": _search_fs,
    "loadfont": _loadfont, "background_image": _opens, "cat": _opens, "insmod": _insmod, "linux": _linux,
    "linuxefi": _linux, "linux16": _linux, "initrd": _initrd, "initrdefi": _initrd, "initrd16": _initrd,
    "chainloader": _chain, "boot": _boot, "break": _left("break"), "continue": _left("continue"),
    "return": _left("return"), "shift": _shift, "setparams": _setparams, "probe": _sets_unknown,
    "smbios": _sets_unknown, "regexp": _sets_unknown, "read": _sets_unknown, "rdmsr": _sets_unknown,
}  # fmt: skip


class _Test:
    """``test``: strings, numbers, files; -a, -o, ! and parentheses."""

    def __init__(self, run: _Run, words: list[str]) -> None:
        self.run, self.words, self.at = run, words, 0

    def result(self) -> bool:
        value = self.both()
        while self.at < len(self.words) and self.words[self.at] == "-o":
            self.at += 1
            value = self.both() or value
        return value

    def both(self) -> bool:
        value = self.one()
        while self.at < len(self.words) and self.words[self.at] in ("-a", "&&"):
            self.at += 1
            value = self.one() and value
        return value

    def one(self) -> bool:
        left = self.words[self.at :]
        if not left:
            return False
        if left[0] == "!" and len(left) > 1:
            self.at += 1
            return not self.one()
        if left[0] == "(" and ")" in left:
            end = self.at + left.index(")")
            value = _Test(self.run, self.words[self.at + 1 : end]).result()
            self.at = end + 1
            return value
        if len(left) >= 3 and (found := _compared(left[0], left[1], left[2])) is not None:
            self.at += 3
            return found
        if len(left) >= 2 and left[0] in ("-e", "-f", "-s", "-d", "-n", "-z"):
            self.at += 2
            return self.about(left[0], left[1])
        self.at += 1
        return bool(left[0])

    def about(self, operator: str, word: str) -> bool:
        if operator in ("-n", "-z"):
            return bool(word) == (operator == "-n")
        if operator == "-s":  # the only one that opens the file
            found = self.run.open(word)
            return bool(found)
        return self.run.contents(word) is not None


def _compared(left: str, operator: str, right: str) -> bool | None:
    texts = {"=": left == right, "==": left == right, "!=": left != right, "<": left < right, "<=": left <= right}
    texts |= {">": left > right, ">=": left >= right}
    if operator in texts:
        return texts[operator]
    try:
        a, b = int(left or "0"), int(right or "0")
    except ValueError:
        a = b = 0
    numbers = {"-eq": a == b, "-ne": a != b, "-lt": a < b, "-le": a <= b, "-gt": a > b, "-ge": a >= b}
    return numbers.get(operator)


def command_line(arguments: Sequence[str]) -> str:
    """The command line that GRUB makes of arguments: backslashes and quotes escaped, those with a space quoted.

    >>> command_line(["/vmlinuz", "a b", "c'd"])
    '/vmlinuz "a b" c\\\\\\'d'
    """
    made = []
    for each in arguments:
        escaped = "".join("\\" + character if character in "\\'\"" else character for character in each)
        made.append(f'"{escaped}"' if " " in each else escaped)
    return " ".join(made)


def _bytes(text: str) -> bytes:
    """What GRUB has of a text, which may be in any encoding."""
    return text.encode("utf-8", "surrogateescape")


def _without_comments(source: str) -> str:
    """GRUB drops lines that begin with a hash before it looks at anything else."""
    return "\n".join(line for line in source.split("\n") if not line.startswith("#"))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _aligned(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Several files as one initrd: each but the last is padded to four bytes."""
    for at, each in enumerate(parts):
        yield each if at == len(parts) - 1 else each + bytes(-len(each) % 4)
