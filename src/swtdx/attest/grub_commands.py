# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's commands, as far as they decide on what is measured: variables, files, the menu, the kernel (GRUB's manual).

A command takes the run, its arguments, and itself as parsed; it returns its status.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swtdx.attest.grub_boot import Entry, Run, StopError, UnknownError, encoded, without_comments
from swtdx.attest.grub_script import Command


def _set(run: Run, arguments: list[str], command: Command) -> int:
    if arguments and "=" in arguments[0]:
        name, _, value = arguments[0].partition("=")
        run.assign(name, value)
    return 0


def _unset(run: Run, arguments: list[str], command: Command) -> int:
    for each in arguments:
        run.variables.pop(each, None)
        run.unknown.discard(each)
    return 0


def _test(run: Run, arguments: list[str], command: Command) -> int:
    return int(not _Test(run, arguments).result())


def _bracket(run: Run, arguments: list[str], command: Command) -> int:
    return _test(run, arguments[:-1] if arguments[-1:] == ["]"] else arguments, command)


def _menu(run: Run, arguments: list[str], command: Command) -> int:
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


def _source(run: Run, arguments: list[str], command: Command) -> int:
    found = run.open(arguments[0]) if arguments else None
    if found is None:
        return 1
    with run.nested("reads files"):
        return run.script(without_comments(found.decode("utf-8", "surrogateescape")))


def _configfile(run: Run, arguments: list[str], command: Command) -> int:
    if not arguments or run.contents(arguments[0]) is None:
        return 1
    with run.nested("reads files"):
        run.normal(arguments[0])
    return 0


def _normal(run: Run, arguments: list[str], command: Command) -> int:
    run.normal(arguments[0] if arguments else f"{run.variables.get('prefix', '')}/grub.cfg", first=not arguments)
    return 0


def _load_env(run: Run, arguments: list[str], command: Command) -> int:
    """Variables of a file of ``NAME=VALUE`` lines, those named only, if any are."""
    file, names, signed = f"{run.variables.get('prefix', '')}/grubenv", [], True
    words = iter(arguments)
    for each in words:
        if each in ("-f", "--file"):
            file = next(words, "")
        elif each.startswith("--file="):
            file = each.removeprefix("--file=")
        elif each in ("-s", "--skip-sig"):
            signed = False
        else:
            names.append(each)
    found = run.open(file) if signed else run.contents(file)
    if found is None:
        return 1
    for line in found.decode("utf-8", "replace").split("\n"):
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#") and (not names or name in names):
            run.assign(name, value.replace("\\\\", "\\"))
    return 0


def _search(run: Run, arguments: list[str], command: Command) -> int:
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


def _search_fs(run: Run, arguments: list[str], command: Command) -> int:
    """``search.fs_uuid UUID [NAME]`` and its like."""
    kind = {"search.fs_uuid": "--fs-uuid", "search.fs_label": "--label", "search.file": "--file"}
    option = kind[command.words[0].plain or "search.fs_uuid"]
    name = [f"--set={arguments[1]}"] if len(arguments) > 1 and not arguments[1].startswith("-") else []
    return _search(run, [option, *name, *arguments[:1]], command)


def _opens(run: Run, arguments: list[str], command: Command) -> int:
    """Commands that read the files that they are given."""
    found = [run.open(each) for each in arguments if not each.startswith("-")]
    return int(not found or None in found)


def _loadfont(run: Run, arguments: list[str], command: Command) -> int:
    paths = [
        each if each.startswith(("/", "(")) else f"{run.variables.get('prefix', '')}/fonts/{each}.pf2"
        for each in arguments
    ]
    return _opens(run, paths, command)


def _insmod(run: Run, arguments: list[str], command: Command) -> int:
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


def _linux(run: Run, arguments: list[str], command: Command) -> int:
    kernel = run.open(arguments[0]) if arguments else None
    if kernel is None:
        return 1
    if run.verify is not None:
        run.boot.events += run.verify(kernel, arguments[0])
    line = command_line(arguments)
    run.measure(f"kernel_cmdline: {line}", encoded(line))
    run.kernel, run.initrds = (kernel, arguments[0], f"BOOT_IMAGE={line}"), []
    return 0


def _initrd(run: Run, arguments: list[str], command: Command) -> int:
    found = [run.open(each) for each in arguments]
    run.initrds = [each for each in found if each is not None]
    return int(None in found)


def _chain(run: Run, arguments: list[str], command: Command) -> int:
    run.open(arguments[-1]) if arguments else None
    raise UnknownError(f"what {' '.join(arguments[-1:])} extends, which GRUB starts")


def _boot(run: Run, arguments: list[str], command: Command) -> int:
    if run.kernel is None:
        return 1
    run.load(*run.kernel)
    return 0


def _left(kind: str) -> Callable[[Run, list[str], Command], int]:
    def leave(run: Run, arguments: list[str], command: Command) -> int:
        number = arguments[0] if arguments else "1" if kind != "return" else run.variables.get("?", "0")
        raise StopError(kind, int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0)

    return leave


def _shift(run: Run, arguments: list[str], command: Command) -> int:
    run.arguments = run.arguments[1:]
    return 0


def _setparams(run: Run, arguments: list[str], command: Command) -> int:
    run.arguments = tuple(arguments)
    return 0


def _failing(run: Run, arguments: list[str], command: Command) -> int:
    return 1


def _sets_unknown(run: Run, arguments: list[str], command: Command) -> int:
    """Commands that set a variable to what only the machine knows."""
    for at, each in enumerate(arguments):
        if each.startswith("--set="):
            run.unknown.add(each.removeprefix("--set="))
        elif each == "--set" and at + 1 < len(arguments):
            run.unknown.add(arguments[at + 1])
    return 0


COMMANDS: dict[str, Callable[[Run, list[str], Command], int]] = {
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

    def __init__(self, run: Run, words: list[str]) -> None:
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
