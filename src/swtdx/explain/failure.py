# SPDX-License-Identifier: GPL-2.0-or-later
"""A failed ioctl: errno, hw_error, and the kernel's own reason if it gave one; also from a pasted line.

These lines are understood: those of swtdx and of its client, QEMU's (``TDX ioctl TDX_INIT_VM failed, hw_errors: ...``),
the kernel log's (``SEAMCALL TDH_MNG_INIT failed: 0x...``, ``SEAMCALL (0x8) failed: 0x...``), any line with the name of
a status in it, and the messages of `swtdx.explain.message`.
"""

from __future__ import annotations

import errno as errnos
import os
import re
from dataclasses import dataclass
from typing import Any

from swtdx.explain import Refusal, known_ioctls, refusals
from swtdx.explain.message import Message, find_message
from swtdx.explain.status import explain_status, is_known, is_name_alone, leaf_of_status, parse_leaf, parse_status
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS
from swtdx.uapi.reason import NO_REASON, Reason

_STATUS = re.compile(r"\b0x[0-9a-fA-F]{9,16}\b")
_STATUS_WITHOUT_0X = re.compile(r"\b[0-9a-fA-F]{16}\b")
# The number behind one of these words is the status, whatever other numbers the line has.
_CALLED_STATUS = re.compile(
    r"(?:(?:hw_errors?|status|failed|error|returned|ret|err)\b|extra data\[0\])"
    r"[ :=(]*(?:with |code |status )*(0x[0-9a-fA-F]{9,16})\b",
    re.IGNORECASE,
)
_IOCTL = re.compile(r"\bKVM_[A-Z0-9_]+\b")
_TDX_COMMAND = re.compile(
    r"\bTDX_(CAPABILITIES|INIT_VM|INIT_VCPU|INIT_MEM_REGION|FINALIZE_VM|GET_CPUID|TERMINATE_VM)\b"
)
_LEAF = re.compile(r"\bTD[HG][._][A-Za-z0-9._]+\b", re.IGNORECASE)
# Linux writes `SEAMCALL (0x0...0f) failed`: RAX of the call, with the version of the leaf function in bits 23:16.
_LEAF_NUMBER = re.compile(
    r"\bSEAMCALL\b[^()]{0,20}\((0x[0-9a-fA-F]+|\d+)\)|\bleaf\b[ :=]*(0x[0-9a-fA-F]+|\d+)\b", re.IGNORECASE
)
_TDCALL_NUMBER = re.compile(r"\bTDCALL\b[ (]*(0x[0-9a-fA-F]+|\d+)\b")
_LEAF_BITS = 0xFFFF
_NAME = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?:\|[A-Z0-9_]+)?")
_REGISTER_DUMP = re.compile(r"\b(?:RCX|RDX|R0?[89]|R1[0-5]) 0x[0-9a-f]+", re.IGNORECASE)
_OUTPUTS = (
    ("rcx", re.compile(r"\b(?:rcx|entry)[ =:]+(0x[0-9a-fA-F]+)", re.IGNORECASE)),
    ("rdx", re.compile(r"\b(?:rdx|level_state|level and state)[ =:]+(0x[0-9a-fA-F]+)", re.IGNORECASE)),
    ("r8", re.compile(r"\br0?8[ =:]+(0x[0-9a-fA-F]+)", re.IGNORECASE)),
    ("r9", re.compile(r"\br0?9[ =:]+(0x[0-9a-fA-F]+)", re.IGNORECASE)),
)
_ERRNO = re.compile(r"\bE[A-Z0-9]{2,}\b")
# `failed (-19)`, `ret: -5`, `error -22`: how a kernel prints an errno.
_NEGATIVE = re.compile(
    r"(?:\(|\b(?:ret|rc|r|err|errno|error|failed|result|returned)\b[ :=(]*(?:with |code |error )*)(-\d{1,3})\b",
    re.IGNORECASE,
)
_BY_TEXT = {os.strerror(number): errno_name(number) for number in errnos.errorcode}


@dataclass(frozen=True)
class Failed:
    """What is known of a failure; anything may be missing."""

    errno: str = ""
    ioctl: str = ""
    hw_error: int = 0
    leaf: str = ""
    reason: Reason = NO_REASON
    """The kernel's own, where it stated one."""
    any_operand: bool = False
    """``hw_error`` is the name of a status alone: its low 32 bits are not known."""
    outputs: tuple[tuple[str, int], ...] = ()
    """Registers (``rcx``, ``rdx``, ``r8``, ``r9``) that came with the status."""
    message: Message | None = None
    """The known message that the line is."""


def parse_errno(text: str) -> str | None:
    """An errno as people write it, or None.

    >>> parse_errno("einval"), parse_errno("-22"), parse_errno("Device or resource busy"), parse_errno("0xc0")
    ('EINVAL', 'EINVAL', 'EBUSY', None)
    """
    if re.fullmatch(r"-?\d{1,3}", text):
        number = abs(int(text))
        return errno_name(number) if number in errnos.errorcode else None
    named = getattr(errnos, text.upper(), None) if _ERRNO.fullmatch(text.upper()) else None
    return errno_name(named) if named is not None else _BY_TEXT.get(text)


def parse_ioctl(text: str) -> str | None:
    """An ioctl or sub-command as people write it: ``KVM_TDX_INIT_VM``, ``init_vm``, ``KVM_RUN``; or None."""
    known = {name for dialect in Dialect for name in known_ioctls(dialect)} | set(REQUESTS)
    name = text.upper()
    return next((each for each in (name, f"KVM_{name}", f"KVM_TDX_{name}", name.lower()) if each in known), None)


def complete_ioctl(incomplete: str) -> list[str]:
    """For a shell: the ioctls and sub-commands that begin so."""
    known = {name for dialect in Dialect for name in known_ioctls(dialect)}
    return sorted(name for name in known if name.startswith(incomplete.upper()))


def parse_line(text: str) -> Failed:
    """What a line of an error message or a log says."""
    message = find_message(text)
    names = [name for word in _ERRNO.findall(text) if (name := parse_errno(word))]
    names += [name for words, name in _BY_TEXT.items() if words in text]
    names += [name for word in _NEGATIVE.findall(text) if (name := parse_errno(word))]
    ioctls = [name for word in _IOCTL.findall(text) if (name := parse_ioctl(word))]
    ioctls += [f"KVM_TDX_{name}" for name in _TDX_COMMAND.findall(text)]
    outputs = tuple((name, int(match[1], 16)) for name, pattern in _OUTPUTS if (match := pattern.search(text)))
    status, any_operand = _status_in(text)
    return Failed(
        _first(names),
        _first(ioctls) or (message.command if message else ""),
        status or (message.status if message else 0),
        _leaf_in(text),
        any_operand=any_operand,
        outputs=outputs,
        message=message,
    )


def _status_in(text: str) -> tuple[int, bool]:
    """(status, whether its operand is unknown) in a line; 0 if there is none.

    Addresses and leaf functions are long numbers, too: a status is one that is called so, or else one that is known.
    """
    for called in (int(word, 16) for word in _CALLED_STATUS.findall(text)):
        return called, False
    rest = _LEAF_NUMBER.sub("", text)
    for pattern in (each for _, each in _OUTPUTS):
        rest = pattern.sub("", rest)
    rest = _REGISTER_DUMP.sub("", rest)
    for pattern in (_STATUS, _STATUS_WITHOUT_0X):
        # With an upper half of 0 it is a TD exit by its number, or an address below 4 GiB: only its name could tell.
        known = (n for word in pattern.findall(rest) if (n := int(word, 16)) >> 32 and is_known(n))
        if found := next(known, 0):
            return found, False
    for word in (*_NAME.findall(text), *_LEAF.findall(text)):
        if found := parse_status(word) or 0:
            return found, is_name_alone(word)
    return 0, False


def _leaf_in(text: str) -> str:
    """The leaf function in a line, by name or by number; empty if there is none."""
    named = [name for word in _LEAF.findall(text) if (name := parse_leaf(word.rstrip(".")))]
    named += [name for word in (*_LEAF.findall(text), *_NAME.findall(text)) if (name := leaf_of_status(word))]
    if named:
        return named[0]
    for pattern, numbers in ((_LEAF_NUMBER, SEAMCALL_NUMBERS), (_TDCALL_NUMBER, TDCALL_NUMBERS)):
        for match in pattern.finditer(text):
            number = int(_first([each for each in match.groups() if each]), 0) & _LEAF_BITS
            for name, other in numbers.items():
                if number == other:
                    return name
    return ""


def _first(found: list[str]) -> str:
    return next(iter(found), "")


def explain_failure(failed: Failed, dialect: Dialect) -> dict[str, Any]:
    """What is known and follows, as a dictionary for JSON. Without ``ioctl`` there is only the status to explain."""
    found: dict[str, Any] = {}
    if failed.message is not None:
        found["message"] = failed.message.as_json(failed.errno)
    if failed.ioctl:
        found["command"] = failed.ioctl
    if failed.errno:
        found["errno"] = failed.errno
        found["errno_text"] = os.strerror(getattr(errnos, failed.errno))
    if failed.reason:
        found["reason"] = failed.reason.text
    matching = _matching(failed, dialect)
    status, leaf, outputs = failed.hw_error, failed.leaf, failed.outputs
    if status in (0, failed.reason.status):
        status, leaf = failed.reason.status, failed.reason.leaf or leaf
        outputs = tuple(failed.reason.outputs.items()) or outputs
    if status:
        seamcalls = tuple(dict.fromkeys(name for each in matching for name in each.seamcalls))
        found["status"] = explain_status(
            status, leaf or None, dict(outputs), candidates=seamcalls, any_operand=failed.any_operand
        )
    if matching and (not status or (not leaf and not seamcalls)):
        found["rules"] = [_rule(each) for each in matching]
    return found


def _matching(failed: Failed, dialect: Dialect) -> list[Refusal]:
    """The rules that this errno can mean. With a status in hw_error it is one that the module broke off."""
    rules = [each for each in refusals(failed.ioctl, dialect) if not failed.errno or each.errno == failed.errno]
    if failed.hw_error:
        return [each for each in rules if each.hw_error] or [each for each in rules if each.seamcalls]
    return rules


def _rule(refusal: Refusal) -> dict[str, Any]:
    found: dict[str, Any] = {"errno": refusal.errno, "rule": refusal.rule, "remedy": refusal.remedy}
    if refusal.seamcalls:
        found["seamcalls"] = list(refusal.seamcalls)
    return found
