# SPDX-License-Identifier: GPL-2.0-or-later
"""An explanation for a person: one labelled line for each thing that is known."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

SHOWN_LEAVES = 8
LEAST_WIDTH = 30


def lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of what `explain_failure` or `explain_status` found."""
    if "command" in found or "errno" in found:
        errno = f"{found['errno']} ({found['errno_text']})" if "errno" in found else ""
        yield "failed", ": ".join(filter(None, [found.get("command", ""), errno]))
    if message := found.get("message"):
        yield "message", f"from {message['from']}"
        yield "meaning", message["meaning"]
        if "remedy" in message:
            yield "do", message["remedy"]
    if "reason" in found:
        yield "reason", found["reason"]
    status = found.get("status")
    if isinstance(status, dict):
        yield from status_lines(status)
    elif status is not None:
        yield from status_lines(found)
        return
    rules = found.get("rules", ())
    if len(rules) == 1:
        yield "rule", rules[0]["rule"]
        yield "do", rules[0]["remedy"]
        yield from _seamcalls(rules[0])
    elif rules:
        yield "rules", "one of these does not hold:"
        for rule in rules:
            yield rule["errno"] if "errno" not in found else "-", rule["rule"]
            yield "", rule["remedy"]
            yield from _seamcalls(rule)


def _seamcalls(rule: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "seamcalls" in rule:
        yield "", "SEAMCALLs: " + ", ".join(rule["seamcalls"])


def status_lines(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of a status or TD exit."""
    operand = f"|{status['operand']}" if "operand" in status else ""
    of = f", of {status['of']}" if "of" in status else ""
    yield "status", f"{status['name']}{operand} ({status['status']}){of}"
    if "leaf" in status:
        yield "from", status["leaf"]
    if "class" in status:
        yield "class", ", ".join([status["class"], *_nature(status)])
    if "module_version" in status:
        yield "module", f"a status of module {status['module_version']}; the rules here are those of 1.5.06"
    if reason := status.get("exit_reason"):
        failed = ", the entry itself failed" if reason.get("entry_failed") else ""
        yield "exit", f"reason {reason['number']}, {reason['name']}{failed}"
    yield "meaning", status["meaning"]
    if meaning := status.get("operand_of_leaf") or status.get("operand_is"):
        yield "operand", f"{status['operand']}: {meaning}"
    if "detail" in status:
        yield "detail", status["detail"]
    if entry := status.get("entry"):
        yield "entry", f"{entry['state']}, at level {entry['level']} ({entry['size']}): {entry['value']}"
    if cpuid := status.get("cpuid"):
        subleaf = "" if cpuid["subleaf"] is None else f", sub-leaf {cpuid['subleaf']:#x}"
        yield "CPUID", f"leaf {cpuid['leaf']}{subleaf}"
    yield from _exit_lines(status)
    if rules := status.get("rules"):
        yield "rule", rules[0]
        for rule in rules[1:]:
            yield "or", rule
    if "leaves" in status:
        names = status["leaves"]
        more = f" and {len(names) - SHOWN_LEAVES} more" if len(names) > SHOWN_LEAVES else ""
        shown = ", ".join(names[:SHOWN_LEAVES]) or "no leaf function of this module"
        yield "answers", f"{shown}{more}{': --leaf NAME shows the rule' if names else ''}"
    if remedy := status.get("remedy"):
        yield "do", remedy


def _nature(status: dict[str, Any]) -> Iterator[str]:
    if not status["error"]:
        yield "no error"
        return
    yield "retryable" if status["recoverable"] else "not retryable"
    if status["fatal"]:
        yield "the TD is dead"
    if status.get("host_can_recover"):
        yield "the host may go on with the TD"


def _exit_lines(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if qualification := status.get("qualification"):
        parts = [qualification["value"]]
        if "access" in qualification:
            parts.append(f"access: {', '.join(qualification['access']) or 'none named'}")
            parts.append(f"the entry allows: {', '.join(qualification['entry_allows']) or 'nothing'}")
        if "during" in qualification:
            parts.append(f"during {qualification['during']}")
        yield "RCX", "; ".join(parts)
    if extended := status.get("extended"):
        parts = [f"{extended['value']}: {extended['type']}", extended["meaning"]]
        if "entry_state" in extended:
            parts.append(f"level {extended['level']} of {extended['required_level']}, entry {extended['entry_state']}")
        yield "RDX", "; ".join(parts)
    if gpa := status.get("gpa"):
        yield "R8", f"{gpa['page']}: {gpa['nature']}"
    if interruption := status.get("interruption"):
        valid = f"{interruption['name']}, {interruption['type']}" if interruption["valid"] else "no event"
        yield "R9", f"{interruption['value']}: {valid}"


def text(found: dict[str, Any], columns: int | None = None) -> list[str]:
    """The lines as they are printed; ``columns`` is the width of the terminal, if there is one."""
    return aligned(list(lines(found)), columns)


def aligned(rows: list[tuple[str, str]], columns: int | None = None) -> list[str]:
    """Rows with their labels in a column, broken at ``columns`` where that leaves room for words."""
    width = max((len(label) for label, _ in rows), default=0)
    printed = []
    for label, words in rows:
        start = f"{label:<{width}}  "
        if columns is None or columns < 2 * LEAST_WIDTH:
            printed.append(start + words)
        else:
            printed += textwrap.wrap(words, columns, initial_indent=start, subsequent_indent=" " * len(start))
    return printed
