# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx explain``: an errno with hw_error, or a status of the TDX module, in words: which rule, and what to do."""

from __future__ import annotations

import json as json_format
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from errno import errorcode
from typing import Annotated, Any

import typer

from swtdx.cli.colour import printed
from swtdx.cli.verdict import Failure, Verdict
from swtdx.explain import known_ioctls, refusals, words
from swtdx.explain.failure import Failed, complete_ioctl, explain_failure, parse_errno, parse_ioctl, parse_line
from swtdx.explain.status import (
    complete_leaf,
    explain_status,
    is_name_alone,
    leaf_of_status,
    parse_leaf,
    parse_status,
)
from swtdx.uapi.dialect import Dialect

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx explain 0xc000010000000041 --leaf TDH.MNG.INIT[/cyan] - which rule of that leaf, what to do

[cyan]swtdx explain EBUSY --command KVM_TDX_INIT_VM[/cyan] - an errno of KVM's own

[cyan]swtdx explain EINVAL --command KVM_TDX_INIT_VM --hw-error 0xc000010000000040[/cyan] - a failed ioctl

[cyan]swtdx explain 'SEAMCALL TDH_MEM_PAGE_ADD failed: 0xc0000b0d00000001, rcx 0x0, rdx 0x400'[/cyan] - a line of a log

[cyan]swtdx explain 'virt/tdx: module initialization failed (-19)'[/cyan] - a message of a kernel or of QEMU

[cyan]swtdx explain 0x30 --qualification 0x2 --extended 6 --gpa 0x1000[/cyan] - a TD exit, with RCX, RDX and R8

[cyan]swtdx explain OPERAND_BUSY --leaf TDG.MR.REPORT --json[/cyan]

[bold]Exit status[/bold]

0 explained; 1 wrong usage
"""


SHOWN_IOCTLS = 10


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="explain", epilog=EPILOG)(explain)


def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A status, by number or name; an errno; or a line of an error message.", show_default=False
        ),
    ] = None,
    errno: Annotated[str | None, typer.Option(metavar="ERRNO", help="The errno of the ioctl, such as EIO.")] = None,
    hw_error: Annotated[
        str | None, typer.Option(metavar="STATUS", help="The ioctl's hw_error (in v10: error).")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="IOCTL", help="The ioctl that failed, such as KVM_TDX_INIT_VM.", autocompletion=complete_ioctl
        ),
    ] = None,
    dialect: Annotated[
        Dialect, typer.Option(help="Whose rules: Linux 6.16 and later, or Nov 2022.")
    ] = Dialect.UPSTREAM,
    leaf: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The SEAMCALL or TDCALL that returned the status.", autocompletion=complete_leaf
        ),
    ] = None,
    qualification: Annotated[
        str | None, typer.Option(metavar="RCX", help="Of a TD exit: the exit qualification.")
    ] = None,
    extended: Annotated[
        str | None, typer.Option(metavar="RDX", help="Of a TD exit: the extended exit qualification.")
    ] = None,
    gpa: Annotated[str | None, typer.Option(metavar="R8", help="Of a TD exit: the guest physical address.")] = None,
    interruption: Annotated[
        str | None, typer.Option(metavar="R9", help="Of a TD exit: interruption information.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Explain a failed ioctl or a status of the TDX module: which SEAMCALL, which rule, what to do.

    The status is what SEAMCALL and TDCALL leave in RAX, KVM in hw_error, and TDH.VP.ENTER for a TD exit.
    """
    failed = _failed(what, errno, hw_error, command, leaf)
    registers = {"rcx": qualification, "rdx": extended, "r8": gpa, "r9": interruption}
    names = {"rcx": "--qualification", "rdx": "--extended", "r8": "--gpa", "r9": "--interruption"}
    outputs = {key: _number(names[key], text) for key, text in registers.items() if text is not None}
    if (
        failed.errno
        and not failed.ioctl
        and failed.message is None
        and len(givers := _givers(failed.errno, dialect)) == 1
    ):
        failed = replace(failed, ioctl=givers[0])
    if failed.errno or failed.ioctl or failed.message is not None:
        if outputs:
            raise Failure(f"{names[next(iter(outputs))]} goes with a status, not with an errno", Verdict.USAGE)
        found = explain_failure(failed, dialect)
    else:
        outputs = dict(failed.outputs) | outputs
        found = explain_status(failed.hw_error, failed.leaf or None, outputs, any_operand=failed.any_operand)
    if not found.get("rules") and "status" not in found and "message" not in found:
        raise Failure(_unexplained(failed, dialect), Verdict.USAGE)
    if json:
        print(json_format.dumps(found, indent=2))
        return
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    printed(words.text(found, columns))
    if what is not None and what.isdecimal() and (name := parse_errno(what)) is not None:
        print(f"errno    {what} is also {name}: swtdx explain {name}")


def _failed(what: str | None, errno: str | None, hw_error: str | None, command: str | None, leaf: str | None) -> Failed:
    """Return all that was given, checked and put together. Raises `Failure`."""
    told = Failed()
    if what is not None:
        told = _told(what)
    name = _known("--errno", errno, parse_errno, "errno", errorcode.values()) or told.errno
    ioctl = _known("--command", command, parse_ioctl, "ioctl or sub-command", complete_ioctl("")) or told.ioctl
    function = _known("--leaf", leaf, parse_leaf, "SEAMCALL or TDCALL", complete_leaf("")) or told.leaf
    status, any_operand = told.hw_error, told.any_operand
    given = what is not None and not told.errno and not told.ioctl
    if hw_error is not None:
        status, given, any_operand = _number("--hw-error", hw_error), True, is_name_alone(hw_error)
    if not (given or name or ioctl):
        raise Failure("give a status, an errno with --command, or a line of an error message", Verdict.USAGE)
    return Failed(name, ioctl, status, function, any_operand=any_operand, outputs=told.outputs, message=told.message)


def _unexplained(failed: Failed, dialect: Dialect) -> str:
    if failed.ioctl:
        served = any(refusals(failed.ioctl, dialect))
        why = f"gives no {failed.errno} that is known here" if served else f"does not exist in dialect {dialect.value}"
        return f"{failed.ioctl} {why}"
    givers = _givers(failed.errno, dialect)
    if not givers:
        return f"{failed.errno}: no ioctl that is known here gives it"
    more = f" and {len(givers) - SHOWN_IOCTLS} more" if len(givers) > SHOWN_IOCTLS else ""
    return f"{failed.errno}: say with --command which ioctl gave it: {', '.join(givers[:SHOWN_IOCTLS])}{more}"


def _givers(errno: str, dialect: Dialect) -> list[str]:
    """Return the ioctls that can fail with an errno."""
    return [name for name in known_ioctls(dialect) if any(each.errno == errno for each in refusals(name, dialect))]


def _told(what: str) -> Failed:
    status = parse_status(what)
    if status is not None:
        if not 0 <= status < 1 << 64:
            raise Failure(f"{what}: a status has 64 bits", Verdict.USAGE)
        return Failed(hw_error=status, leaf=leaf_of_status(what), any_operand=is_name_alone(what))
    if name := parse_errno(what):
        return Failed(name)
    line = parse_line(what)
    if line == Failed(leaf=line.leaf, outputs=line.outputs):
        raise Failure(f"{what!r} is neither a status nor an errno, and no line that has one", Verdict.USAGE)
    return line


def _known(option: str, text: str | None, parse: Any, kind: str, names: Iterable[str]) -> str:
    if text is None:
        return ""
    found: str | None = parse(text)
    if found is None:
        from difflib import get_close_matches

        spelt = {each.replace("_", "."): each for each in names}
        near = get_close_matches(text.upper().replace("_", "."), list(spelt), 1, 0.8)
        hint = f"; did you mean {spelt[near[0]]}?" if near else ""
        raise Failure(f"{option} {text!r}: there is no such {kind}{hint}", Verdict.USAGE)
    return found


def _number(option: str, text: str) -> int:
    value = parse_status(text) if option == "--hw-error" else _integer(text)
    if value is None or not 0 <= value < 1 << 64:
        raise Failure(f"{option} {text!r} is not a number of 64 bits", Verdict.USAGE)
    return value


def _integer(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None
