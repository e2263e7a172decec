# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference pages that follow from code and tables: commands, ioctls, sub-commands, leaf functions, status codes.

Each function returns Markdown; ``conf.py`` writes them to ``_generated/`` when the site is built, and the pages under
``reference/`` include them. What stands there is therefore what the code does, and is not edited.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import json
import re
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import typer
from diagram import Move, ladder

from swtdx.cli.app import whole_app
from swtdx.explain import general_refusals, known_ioctls, refusals
from swtdx.explain import leaves as leaves_of_rules
from swtdx.explain import table as explanations
from swtdx.explain.leaf import SEAMCALL, TDCALL, Leaf, all_leaves
from swtdx.linux import release as release_table
from swtdx.linux.release import NOT_REPRODUCED, RELEASES
from swtdx.seam import sept
from swtdx.seam.lifecycle import HKID_STATE, LIFECYCLE_STATE, OP_STATE, SYS_STATE, VCPU_STATE, Machine
from swtdx.seam.sept import SeptState
from swtdx.seam.status import ERROR, FATAL, NON_RECOVERABLE, StatusCode
from swtdx.seam.tables import load
from swtdx.uapi.capability import Cap
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect, TdxCommand
from swtdx.uapi.ioctl import IOC_READ, IOC_WRITE, Request
from swtdx.uapi.kvm import REQUESTS
from swtdx.uapi.release import KernelRelease

DIRECTIONS = {0: "", IOC_WRITE: "in", IOC_READ: "out", IOC_READ | IOC_WRITE: "in, out"}
MEMBERS = {
    TdxCommand.CAPABILITIES: "capabilities",
    TdxCommand.INIT_VM: "init_vm",
    TdxCommand.INIT_MEM_REGION: "init_mem_region",
}


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def prose(docstring: str | None) -> str:
    """A docstring's reST as Markdown: double backticks are single ones; the examples are left to the tests."""
    text = inspect.cleandoc(docstring or "").split("\n>>>")[0]
    return re.sub(r"``(.+?)``", r"`\1`", text).strip()


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments, options, examples and exit statuses."""
    parts = []
    for path, command in _commands_of("swtdx", whole_app()):
        parameters = [_Parameter(parameter) for parameter in _signature(command.callback).values()]
        arguments = " ".join(parameter.usage for parameter in parameters if not parameter.option)
        parts.append(f"(command-{path.replace(' ', '-')})=\n\n## {path}\n")
        parts.append(_markup(command.callback.__doc__) + "\n")
        parts.append(f"```text\n{path} [OPTIONS] {arguments}".rstrip() + "\n```\n")
        parts += [parameter.entry for parameter in parameters]
        if command.epilog:
            parts.append(_markup(command.epilog) + "\n")
    return "\n".join(parts)


def _commands_of(path: str, app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """(what one types, the command), ``run`` first and groups after the commands beside them."""
    for command in app.registered_commands:
        yield f"{path} {command.name or command.callback.__name__.replace('_', '-')}", command
    for group in app.registered_groups:
        yield from _commands_of(f"{path} {group.name}", group.typer_instance)


def _signature(callback: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(callback, eval_str=True).parameters)


class _Parameter:
    """An argument or option, from the annotation that typer reads too."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        kind, info = get_args(parameter.annotation)[:2]
        self.option = isinstance(info, typer.models.OptionInfo)
        self.required = parameter.default is inspect.Parameter.empty
        name = parameter.name
        kinds = [each for each in (get_args(kind) or (kind,)) if each is not type(None)]
        flag = kinds == [bool]
        if self.option:
            # The first name of an annotated option is where its default would be.
            names = (info.default, *(info.param_decls or ()))
            declared = [d for d in names if isinstance(d, str) and d.startswith("-")] or ["--" + name.replace("_", "-")]
            wanted = "" if flag else " " + (info.metavar or _metavar(kinds[0]))
            shown = ", ".join(f"`{each}{wanted}`" for each in declared)
        else:
            shown = f"`{name.upper()}`"
        self.usage = name.upper() if self.required else f"[{name.upper()}]"
        default = parameter.default
        given = (
            "" if self.required or default in (None, False) else f" Default: `{getattr(default, 'value', default)}`."
        )
        self.entry = f"{shown}\n: {_markup(info.help)}{given}\n"


def _metavar(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return {Path: "FILE", int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _markup(text: str | None) -> str:
    """Rich's markup as Markdown."""
    text = inspect.cleandoc(text or "")
    text = re.sub(r"\[cyan\](.*?)\[/cyan\]", r"`\1`", text)
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", text)


# --- ioctls -----------------------------------------------------------------------------------------------------------


def ioctls() -> str:
    """Every request with its number and argument, then the layout of every argument."""
    rows = [_request(name, request) for name, request in sorted(REQUESTS.items())]
    structures: dict[str, Any] = {}
    for request in REQUESTS.values():
        argument: Any = request.argument
        if argument is not None and issubclass(argument, ctypes.Structure):
            structures.setdefault(argument.__name__, argument)
    head = table(("request", "number", "direction", "argument", "bytes"), rows)
    layouts = "\n".join(layout(s) for _, s in sorted(structures.items()))
    return f"{head}\n\n## Rules\n\n{_rules_of_ioctls()}\n\n## Structures\n\n{layouts}"


def _rules_of_ioctls() -> str:
    """What ioctls check, each with the errno of a call where it does not hold."""
    rows = []
    for name in sorted(set(REQUESTS) & set(known_ioctls(Dialect.UPSTREAM))):
        own = [each for each in refusals(name, Dialect.UPSTREAM) if each not in general_refusals()]
        rows += [(f"`{name}`", f"`{each.errno}`", each.rule, each.remedy) for each in own]
    general = [("every ioctl", f"`{each.errno}`", each.rule, each.remedy) for each in general_refusals()]
    return table(("request", "errno", "what must hold", "what to do"), general + rows)


def _request(name: str, request: Request) -> tuple[str, ...]:
    argument: Any = request.argument
    if argument is None:
        shown = "integer, or none"
    elif issubclass(argument, ctypes.Structure):
        shown = f"[`{argument.__name__}`](#struct-{argument.__name__.replace('_', '-')})"
    else:
        shown = f"`{argument.__name__}`"
    return f"`{name}`", f"`{int(request):#010x}`", DIRECTIONS[request.direction], shown, str(request.size or "")


def layout(structure: Any, suffix: str = "") -> str:
    """A structure: what its docstring says, and where its members are."""
    name = structure.__name__
    anchor = f"struct-{name.replace('_', '-')}{suffix}"
    rows = [
        (
            str(getattr(structure, field[0]).offset),
            f"`{field[0]}`",
            f"`{_type(field[1])}`",
            str(ctypes.sizeof(field[1])),
        )
        for field in structure._fields_
    ]
    own = structure.__dict__.get("__doc__")
    size = ctypes.sizeof(structure)
    flexible = rows and rows[-1][3] == "0"
    grows = ", and as many elements of the last member as it counts" if flexible else ""
    return (
        f"({anchor})=\n\n### struct {name}\n\n{prose(own)}\n\n{size} bytes{grows}.\n\n"
        + table(("offset", "member", "type", "bytes"), rows)
        + "\n"
    )


def _type(kind: Any) -> str:
    if issubclass(kind, ctypes.Array):
        return f"{_type(kind._type_)}[{kind._length_ or ''}]"
    names = {"c_ubyte": "u8", "c_ushort": "u16", "c_uint": "u32", "c_ulong": "u64", "c_byte": "s8", "c_short": "s16"}
    names |= {"c_int": "s32", "c_long": "s64"}
    if issubclass(kind, ctypes.Union):
        return "union"
    name = str(names.get(kind.__name__, kind.__name__))
    return f"struct {name}" if issubclass(kind, ctypes.Structure) else name


def subcommands() -> str:
    """KVM_MEMORY_ENCRYPT_OP's sub-commands in both dialects."""
    parts = []
    for dialect in (Dialect.UPSTREAM, Dialect.V10):
        suffix = f"-{dialect.value}"
        rows = []
        for command in sorted(dialect.commands):
            member = MEMBERS.get(command)
            data = ""
            if member is not None:
                name = getattr(dialect, member).__name__
                data = f"[`{name}`](#struct-{name.replace('_', '-')}{suffix})"
            elif command is TdxCommand.INIT_VCPU:
                data = "initial RCX and R8 of the vCPU"
            elif command is TdxCommand.GET_CPUID:
                data = "`kvm_cpuid2`"
            rows.append((f"`KVM_TDX_{command.name}`", str(int(command)), dialect.target(command).value, data))
        parts.append(f"## Dialect {dialect.value}\n")
        parts.append(
            f"`KVM_CREATE_VM` takes {dialect.vm_type_tdx} for a TD; `KVM_CAP_VM_TYPES` is capability "
            f"{dialect.cap_vm_types}, and bit {dialect.vm_type_tdx} of its answer says that TDs can be made. "
            f"The SEAMCALL status comes back in `{dialect.hw_error_member}`. "
            f"The first pages come from: {dialect.initial_memory.value}.\n"
        )
        parts.append(table(("sub-command", "id", "descriptor", "data"), rows))
        parts.append("")
        parts += [_refusals_of(command, dialect) for command in sorted(dialect.commands)]
        for structure in (dialect.cmd, *(getattr(dialect, member) for member in MEMBERS.values())):
            parts.append(layout(structure, suffix))
    return "\n".join(parts)


def _refusals_of(command: TdxCommand, dialect: Dialect) -> str:
    """A sub-command's rules, each with the errno of a call that breaks it."""
    name = f"KVM_TDX_{command.name}"
    rows = []
    for each in refusals(name, dialect):
        seamcalls = f" ({', '.join(f'`{leaf}`' for leaf in each.seamcalls)})" if each.seamcalls else ""
        rows.append((f"`{each.errno}`", each.rule + seamcalls, each.remedy))
    head = ("errno", "what must hold", "what to do")
    return f"### {name}, {dialect.value}\n\n{table(head, rows)}\n"


# --- The module -------------------------------------------------------------------------------------------------------


def leaves() -> str:
    """SEAMCALL and TDCALL leaf functions: what each does, its operands, where it is allowed, what serves it."""
    parts = [f"For the TDX module {load('leaves')['version']}.\n"]
    for kind in (SEAMCALL, TDCALL):
        parts.append(f"## {kind.upper()}\n")
        of_kind = [leaf for leaf in all_leaves().values() if leaf.kind == kind]
        # Those that answer as a module without them come last.
        parts += [_leaf(leaf) for leaf in sorted(of_kind, key=lambda leaf: (not leaf.reproduced, leaf.name))]
    functions = [
        (f"`{key}`", row[0], _operands(row[1]), _operands(row[2])) for key, row in load("operands")["vmcall"].items()
    ]
    parts.append("## Functions of TDG.VP.VMCALL\n\nWith R10 = 0, R11 selects a function of the GHCI:\n")
    parts.append(table(("R11", "function", "in", "out"), functions))
    return "\n".join(parts)


def _leaf(leaf: Leaf) -> str:
    """One leaf function as a section."""
    anchor = leaf.name.lower().replace(".", "-")
    parts = [f"({anchor})=\n\n### {leaf.name}\n", *([leaf.description + "\n"] if leaf.description else [])]
    served = f"`{leaf.served_by}`" if leaf.reproduced else "not reproduced: answers as a module without it"
    rows = [
        ("number", str(leaf.number)),
        ("versions", ", ".join(map(str, leaf.versions))),
        ("in", ", ".join(map(str, leaf.inputs))),
        ("out", ", ".join(map(str, leaf.outputs))),
        ("OP_STATE", ", ".join(leaf.op_states)),
        ("Secure EPT", ", ".join(f"{before} → {after}" for before, after in leaf.moves)),
        ("modules", ", ".join(leaf.module_versions)),
        ("served by", served),
    ]
    fields = "\n".join(parts) + "\n" + "\n".join(f":{label}: {text}" for label, text in rows if text) + "\n"
    rules = [(f"`{rule.answer}`", rule.text) for rule in leaf.rules]
    return fields + ("\n" + table(("status", "unless"), rules) if rules else "")


def _operands(text: str) -> str:
    return ", ".join(f"{part.split(':')[0].upper()} {part.split(':')[1]}" for part in text.split())


def statuses() -> str:
    """Every completion status that the module knows."""
    words = explanations("statuses")["statuses"]
    rows = [
        (f"`{code.name}` `{code.value:#018x}` {_nature(code.value)}", *words[code.name])
        for code in sorted(StatusCode, key=lambda code: (code.value >> 40 & 0xFF, code.value >> 32 & 0xFF))
    ]
    return table(("status", "meaning", "what to do"), rows)


def _nature(status: int) -> str:
    named = [
        name for bit, name in ((ERROR, "error"), (NON_RECOVERABLE, "non-recoverable"), (FATAL, "fatal")) if status & bit
    ]
    return ", ".join(named) or "success, or a remark"


# --- State machines ---------------------------------------------------------------------------------------------------


def state_machines() -> str:
    """A diagram of every state machine of the module, from the tables that it runs."""
    parts = []
    for machine, about in MACHINES:
        moves = [
            (old.name, new.name, str(event))
            for event, pairs in machine.transitions.items()
            for old, new in pairs.items()
        ]
        parts.append(_machine(machine.name, about, type(machine.initial), moves))
    return "\n".join(parts)


def _machine(name: str, about: str, states: type[IntEnum], moves: list[Move]) -> str:
    """One machine as a section: what it is, the diagram, and the states that nothing leads to."""
    reached = {state for move in moves for state in move[:2]}
    order = [state.name for state in states if state.name in reached]
    rest = [f"`{state.name}`" for state in states if state.name not in reached]
    unused = f"\nStates of features that swtdx does not reproduce: {', '.join(rest)}.\n" if rest else ""
    moves.sort(key=lambda move: (order.index(move[0]), order.index(move[1])))
    picture = f'<div style="overflow-x: auto">{ladder(name, order, moves)}</div>'
    return f"## {name}\n\n{about}\n\n```{{raw}} html\n{picture}\n```\n{unused}"


def secure_ept() -> str:
    """A diagram of the states of a Secure-EPT entry that can be reached without migration."""
    seen, moves = {SeptState.FREE}, []
    rows = [(leaf, "", pairs) for leaf, pairs in sept.TRANSITIONS.items()]
    rows += [
        (leaf, when, pairs) for leaf, whens in sept.CONDITIONAL_TRANSITIONS.items() for when, pairs in whens.items()
    ]
    rows = [row for row in rows if not row[0].startswith("TDH_EXPORT") and row[1] != "import in progress"]
    for _ in SeptState:
        seen |= {SeptState(new) for _, _, pairs in rows for old, new in pairs.items() if old in seen}
    for leaf, when, pairs in rows:
        event = leaf.replace("_", ".") + (f" ({when})" if when else "")
        moves += [(SeptState(old).name, SeptState(new).name, event) for old, new in pairs.items() if old in seen]
    return _machine("Secure-EPT entry", _SEPT, SeptState, moves)


_SEPT = "The state of an entry of the Secure EPT. An entry maps a page, or (`NL_...`, non-leaf) points to a table."
MACHINES: list[tuple[Machine[Any], str]] = [
    (SYS_STATE, "The module as a whole. `TDH.SYS.LP.SHUTDOWN` shuts down module 1.0 only."),
    (HKID_STATE, "A private KeyID in the key ownership table."),
    (
        LIFECYCLE_STATE,
        "A TD, as its key goes. It begins with `TDH.MNG.CREATE`; its TDR can be reclaimed in `TEARDOWN`.",
    ),
    (OP_STATE, "A TD, as it is built and run."),
    (VCPU_STATE, "A virtual CPU, which begins with `TDH.VP.CREATE`."),
]


def releases() -> str:
    """What changes for a VMM from release to release."""
    texts = _behaviours()
    parts = []
    names = [name for name in RELEASES if name is not KernelRelease.V10]
    for old, new in pairwise(names):
        changed = [each for each in texts if getattr(RELEASES[old], each) != getattr(RELEASES[new], each)]
        parts.append(f"## {new.value}, against {old.value}\n")
        if changed:
            rows = [
                (texts[each], *(_value(each, getattr(RELEASES[name], each)) for name in (old, new))) for each in changed
            ]
            parts.append(table(("behaviour", old.value, new.value), rows))
        else:
            parts.append("Nothing that is emulated.\n")
        if new in NOT_REPRODUCED:
            absent = "\n".join(f"- {text}" for text in NOT_REPRODUCED[new])
            parts.append(f"Not reproduced (a VMM finds what {old.value} does):\n\n{absent}\n")
    differing = [each for each in texts if len({getattr(RELEASES[name], each) for name in RELEASES}) > 1]
    rows = [(texts[each], *(_value(each, getattr(RELEASES[name], each)) for name in RELEASES)) for each in differing]
    parts.append("## All behaviours by release\n")
    parts.append(table(("behaviour", *(name.value for name in RELEASES)), rows))
    return "\n".join(parts)


def _behaviours() -> dict[str, str]:
    """The docstring of each behaviour of `swtdx.linux.release.Release`, by its name."""
    (record,) = (
        node
        for node in ast.parse(inspect.getsource(release_table)).body
        if isinstance(node, ast.ClassDef) and node.name == "Release"
    )
    found = {}
    for member, text in pairwise(record.body):
        if isinstance(member, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(member.target)] = " ".join(prose(str(text.value.value)).split())
    del found["dialect"]
    return found


def _value(behaviour: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if behaviour in _MASKS:
        return f"{value:#x}"
    if isinstance(value, int):
        return errno_name(value)
    return ", ".join(sorted(_NUMBERS.get(each, str(each)) for each in value)) or "none"


_MASKS = {"quirks"}
"""Behaviours whose number is a mask of bits. Other numbers are errnos."""
_NUMBERS: dict[object, str] = {
    **{int(request): name for name, request in REQUESTS.items()},
    **{cap: f"KVM_CAP_{cap.name}" for cap in Cap},
}


# --- The module's source ----------------------------------------------------------------------------------------------


def module_source() -> str:
    """What was read of the public source of the module, row by row, and what came of it."""
    reading = json.loads(READING.read_text(encoding="utf-8"))
    source = f"`{reading['repository']}` at commit `{reading['commit']}` (module {reading['version']})"
    parts = [f"Source: {source}.\n"]
    for name, head in READING_PARTS.items():
        rows = [
            (f"`{key}`", *(f"`{cell}`" if cell.startswith(("src/", "arch/")) else cell for cell in row))
            for key, row in reading[name].items()
        ]
        parts += [f"## {head[0]}\n", table(head[1], rows)]
    parts.append(f"## KVM\n\nSource: {reading['kernel']}.\n")
    for file, functions in reading["kvm"].items():
        rows = [(f"`{name}`", *row) for name, row in functions.items()]
        parts += [
            f"### {file}\n",
            table(("function", "verdict", "checks and errors, in order", "difference, or where"), rows),
        ]
    return "\n".join(parts)


READING = Path(__file__).parent / "module-source.json"
READING_PARTS = {
    "parts": ("Files with more than one leaf function", ("file", "verdict", "difference")),
    "leaves": ("Leaf functions", ("leaf", "file", "verdict", "difference")),
    "exits": ("Exits of a TD", ("exit", "file", "verdict", "difference")),
    "cpuid": ("CPUID leaves", ("leaf.sub-leaf", "verdict", "difference")),
    "msrs": ("MSRs", ("MSR", "verdict", "difference")),
}

# --- Statuses that are forced -----------------------------------------------------------------------------------------


def injected() -> str:
    """What each documented status of each leaf function of KVM's leads to, beside what Linux does."""
    reading = json.loads((Path(__file__).parent / "injected.json").read_text(encoding="utf-8"))
    parts = [f"Source: {reading['kernel']}.\n"]
    for leaf, sites in sorted(reading["leaves"].items()):
        parts.append(f"## {leaf}\n")
        for site in sites:
            rows = _forced_rows(leaf, site)
            where = "While the module is brought up" if site["during"] == "bring-up" else f"In `{site['during']}`"
            where = "At the last close" if site["during"] == "close" else where
            functions = ", ".join(f"`{name.strip()}`" for name in site["source"].split(","))
            parts += [
                f"{where}, {_CALLS.get(str(site.get('call', 1)), 'call ' + str(site.get('call')))}: {functions}.\n"
            ]
            parts.append(table(("status", "Linux", "swtdx"), rows))
    return "\n".join(parts)


_CALLS = {"1": "the first call", "last": "the last call", "1-10": "ten calls in a row", "1-2": "two calls in a row"}


def _forced_rows(leaf: str, site: dict[str, Any]) -> list[tuple[str, ...]]:
    statuses = [
        *site.get("only", dict.fromkeys(rule.answer for rule in leaves_of_rules()[leaf])),
        *site.get("more", ()),
    ]
    found: dict[int, list[str]] = {}
    for status in statuses:
        number = next(n for n, row in enumerate(site["rows"]) if any(fnmatchcase(status, p) for p in row[0].split()))
        found.setdefault(number, []).append(status)
    rows = []
    for number, names in sorted(found.items()):
        _, linux, *ours = site["rows"][number]
        same = f"{_in_words(site['during'], ours[0])}: {ours[1]}" if ours else "the same"
        rows.append((_grouped(names), _in_words(site["during"], linux), same))
    return rows


def _grouped(statuses: list[str]) -> str:
    """Statuses by name, the operands of each behind it."""
    operands: dict[str, list[str]] = {}
    for status in statuses:
        name, _, operand = status.partition("|")
        operands.setdefault(name, []).extend([operand] if operand else [])
    return ", ".join(f"`{name}`" + (f" ({', '.join(of)})" if of else "") for name, of in operands.items())


def _in_words(during: str, outcome: str) -> str:
    outcome, _, lost = outcome.partition("; lost: ")
    result, _, dead = outcome.partition(", ")
    words = _OUTCOMES.get(result)
    if words is None and result.startswith("KVM_EXIT"):
        words = f"`{during}` returns with `{result}`"
    if words is None:
        words = f"`{during}` fails with `{result}`" if result != "0" else f"`{during}` succeeds"
    if result == "0" and during == "close":
        words = "the close succeeds"
    words += "; the VM is dead" if dead else ""
    kept = [_LOST.get(each, f"{each} pages") for each in lost.split(", ")] if lost else []
    return words + (f"; lost until the next boot: {', '.join(kept)}" if kept else "")


_OUTCOMES = {
    "repeated": "the call is repeated, and nothing is seen",
    "ignored": "nothing is seen",
    "TDX is off": "TDX is off: KVM offers no TDs",
}
_LOST = {
    "KeyID": "the KeyID",
    "tdr": "the TDR",
    "tdcs": "TDCS",
    "tdvpr": "TDVPR",
    "tdcx": "a TDCX",
    "sept": "Secure EPT",
}

PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "ioctls": ioctls,
    "subcommands": subcommands,
    "leaves": leaves,
    "statuses": statuses,
    "state_machines": state_machines,
    "secure_ept": secure_ept,
    "releases": releases,
    "module_source": module_source,
    "injected": injected,
}
