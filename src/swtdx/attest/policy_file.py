# SPDX-License-Identifier: GPL-2.0-or-later
"""An appraisal policy in TOML: which evidence a relying party accepts.

::

    [td]                                    # a value, or several of which the quote must have one
    mrtd = ["4c72...", "acce..."]
    rtmr1 = "3517..."
    attributes = { value = "0x10000000", mask = "0xffffffff" }
    reportdata = { value = "6e6f...", mask = "ffff..." }
    allow = ["debug"]                       # debug, migratable, service-td, sept-ve

    [tcb]
    statuses = ["UpToDate", "SWHardeningNeeded"]
    minimum_tee_tcb_svn = "03000500000000000000000000000000"
    maximum_age_days = 365                  # of the date of the platform's TCB level
    minimum_evaluation_number = 17          # of the collateral: tcbEvaluationDataNumber
    refused_advisories = ["INTEL-SA-00837"]
    accepted_advisories = ["INTEL-SA-00960"]  # if given, no other is accepted

    [events]                                # what the event log must show; it must lead to the quote
    command_line = ["console=ttyS0 root=/dev/vda1"]
    compose_hash = ["ab..."]                # of dstack
    aael = ["example.com load image"]       # of the attestation agent: domain, operation, content

    [[events.rule]]
    register = 2                            # the rest of a rule selects events, and says what they must have
    type = "EV_IPL"
    name = "compose-hash"
    text = ["..."]                          # or payload, or digest, in hexadecimal
    forbidden = true                        # no selected event may have it

What is left out is not looked at, with the exceptions of `swtdx.attest.policy`.  An unknown member is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swtdx.attest.policy import SIZES, TCB_STATUSES, Policy
from swtdx.attest.printable import printable

MAXIMUM_POLICY_SIZE = 1 << 20
_ALLOWANCES = {
    "debug": "allow_debug",
    "migratable": "allow_migratable",
    "service-td": "allow_service_td",
    "sept-ve": "allow_sept_ve",
}
_DIGESTS = ("mrtd", "mrconfigid", "mrowner", "mrownerconfig", "mrseam", "mrsignerseam", "mrservicetd", "reportdata")
_RTMRS = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")
_MASKS = ("attributes", "xfam", "seam_attributes")
_TCB = (
    *("statuses", "minimum_tee_tcb_svn", "maximum_age_days", "minimum_evaluation_number"),
    *("refused_advisories", "accepted_advisories"),
)
_RULE = ("register", "type", "name", "text", "payload", "digest", "forbidden")
_HEX_RULE = ("payload", "digest")


class PolicyError(ValueError):
    """The policy cannot be used; the text names the member and what is wrong with it."""


class Masked(NamedTuple):
    """A field of the quote of which only the bits of ``mask`` count: they must be those of one of the pairs."""

    name: str
    accepted: tuple[tuple[int, int], ...]
    """(value, mask); byte strings are numbers in big-endian order."""


class EventRule(NamedTuple):
    """Events that are selected, and what they must have."""

    register: int | None = None
    event_type: int | None = None
    name: str | None = None
    text: tuple[str, ...] = ()
    payload: tuple[bytes, ...] = ()
    digest: tuple[bytes, ...] = ()
    forbidden: bool = False


class AppraisalPolicy(NamedTuple):
    """A policy file, read."""

    policy: Policy
    masked: tuple[Masked, ...] = ()
    maximum_age_days: int | None = None
    minimum_evaluation_number: int | None = None
    refused_advisories: frozenset[str] = frozenset()
    accepted_advisories: frozenset[str] | None = None
    command_lines: tuple[str, ...] = ()
    compose_hashes: tuple[bytes, ...] = ()
    aael: tuple[str, ...] = ()
    rules: tuple[EventRule, ...] = ()
    named: frozenset[str] = frozenset()
    """The members that the file has."""

    @property
    def needs_events(self) -> bool:
        """Whether the policy has rules for an event log."""
        return bool(self.command_lines or self.compose_hashes or self.aael or self.rules)


def parse_policy(data: bytes) -> AppraisalPolicy:
    """Read a policy in TOML. Raises `PolicyError`.

    >>> parse_policy(b"[td]\\nmrtd = '" + b"00" * 48 + b"'").policy.mrtd == (bytes(48),)
    True
    >>> parse_policy(b"[td]\\nmtrd = '00'")
    Traceback (most recent call last):
    swtdx.attest.policy_file.PolicyError: td.mtrd is not known; did you mean mrtd?
    """
    if len(data) > MAXIMUM_POLICY_SIZE:
        raise PolicyError(f"a policy of more than {MAXIMUM_POLICY_SIZE >> 20} MiB is not read")
    try:
        content = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"not TOML: {error}") from None
    _known("", content, ("td", "tcb", "events"))
    td, tcb, events = (_table(content, name) for name in ("td", "tcb", "events"))
    _known("td.", td, (*_DIGESTS, *_RTMRS, *_MASKS, "allow"))
    _known("tcb.", tcb, _TCB)
    _known("events.", events, ("command_line", "compose_hash", "aael", "rule"))
    masked = [each for name in (*_DIGESTS, *_RTMRS, *_MASKS) if (each := _masked(name, td)) is not None]
    return AppraisalPolicy(
        _policy(td, tcb),
        tuple(masked),
        _number("tcb.maximum_age_days", tcb),
        _number("tcb.minimum_evaluation_number", tcb),
        frozenset(_texts("tcb.refused_advisories", tcb)),
        frozenset(_texts("tcb.accepted_advisories", tcb)) if "accepted_advisories" in tcb else None,
        _texts("events.command_line", events),
        tuple(_bytes("events.compose_hash", text) for text in _texts("events.compose_hash", events)),
        _texts("events.aael", events),
        tuple(_rule(number, each) for number, each in enumerate(_list("events.rule", events.get("rule", [])))),
        frozenset([*td, *tcb, *events]),
    )


def policy_text(mrtd: bytes, rtmrs: Mapping[int, bytes] = {}, made_of: Sequence[str] = ()) -> str:
    """Return a policy that accepts one MRTD, and the RTMRs given by number; ``made_of`` become comments.

    >>> print(policy_text(b"\\xab" * 48, made_of=["OVMF.fd"]).replace("ab" * 48, "ab..."))
    # Written by swtdx measure for:
    # OVMF.fd
    [td]
    mrtd = "ab..."
    <BLANKLINE>
    [tcb]
    statuses = ["UpToDate"]
    <BLANKLINE>
    """
    lines = [f"# {printable(line)}" for line in ("Written by swtdx measure for:", *made_of)]
    lines += ["[td]", f'mrtd = "{mrtd.hex()}"']
    lines += [f'rtmr{number} = "{digest.hex()}"' for number, digest in rtmrs.items()]
    return "\n".join([*lines, "", "[tcb]", 'statuses = ["UpToDate"]', ""])


def _policy(td: dict[str, Any], tcb: dict[str, Any]) -> Policy:
    allowed = _texts("td.allow", td)
    for each in allowed:
        if each not in _ALLOWANCES:
            raise PolicyError(f"td.allow: {each!r} is not known; there are {', '.join(_ALLOWANCES)}")
    statuses = _texts("tcb.statuses", tcb) or ("UpToDate",)
    for each in statuses:
        if each not in TCB_STATUSES:
            raise PolicyError(f"tcb.statuses: {each!r} is not one of {', '.join(TCB_STATUSES)}")
    minimum = _texts("tcb.minimum_tee_tcb_svn", tcb)
    values: dict[str, Any] = {name: _digests(name, td) for name in _DIGESTS}
    registers = [_digests(name, td) for name in _RTMRS]
    values |= {_ALLOWANCES[each]: True for each in allowed}
    return Policy(
        **values,
        rtmrs=(registers[0], registers[1], registers[2], registers[3]),
        minimum_tee_tcb_svn=_bytes("tcb.minimum_tee_tcb_svn", minimum[0], 16) if minimum else None,
        tcb_statuses=frozenset(statuses),
    )


def _digests(name: str, td: dict[str, Any]) -> tuple[bytes, ...] | None:
    """The values of a member without masks; None if it is not given, or has masks."""
    given = _several(td.get(name, []))
    if not given or any(isinstance(each, dict) for each in given):
        return None
    return tuple(_bytes(f"td.{name}", each, SIZES.get(name, 48)) for each in given)


def _masked(name: str, td: dict[str, Any]) -> Masked | None:
    """The values of a member of which at least one has a mask, or that is a mask itself."""
    given = _several(td.get(name, []))
    numeric = name in _MASKS
    if not given or not (numeric or any(isinstance(each, dict) for each in given)):
        return None
    size = 8 if numeric else SIZES.get(name, 48)

    def number(text: Any) -> int:
        where = f"td.{name}"
        return _mask(where, text) if numeric else int.from_bytes(_bytes(where, text, size), "big")

    pairs = []
    for each in given:
        table = each if isinstance(each, dict) else {"value": each}
        _known(f"td.{name}.", table, ("value", "mask"))
        if "value" not in table:
            raise PolicyError(f"td.{name}: a mask without a value")
        pairs.append((number(table["value"]), number(table["mask"]) if "mask" in table else (1 << 8 * size) - 1))
    return Masked(name, tuple(pairs))


def _rule(number: int, content: Any) -> EventRule:
    where = f"events.rule[{number}]"
    if not isinstance(content, dict):
        raise PolicyError(f"{where} is not a table")
    _known(f"{where}.", content, _RULE)
    register, kind, name = content.get("register"), content.get("type"), content.get("name")
    if register is not None and (type(register) is not int or not 0 <= register <= 3):
        raise PolicyError(f"{where}.register is not a number from 0 to 3")
    if name is not None and not isinstance(name, str):
        raise PolicyError(f"{where}.name is not text")
    forbidden = content.get("forbidden", False)
    if not isinstance(forbidden, bool):
        raise PolicyError(f"{where}.forbidden is not true or false")
    payload, digest = (
        tuple(_bytes(f"{where}.{member}", text) for text in _texts(f"{where}.{member}", content))
        for member in _HEX_RULE
    )
    if register is None and kind is None and name is None:
        raise PolicyError(f"{where} selects all events: give register, type or name")
    event_type = None if kind is None else _event_type(where, kind)
    return EventRule(register, event_type, name, _texts(f"{where}.text", content), payload, digest, forbidden)


def _event_type(where: str, kind: Any) -> int:
    if type(kind) is int and 0 <= kind < 1 << 32:
        return kind
    from swtdx.attest.event_words import TYPE_NAMES  # only here: few policies name a type

    number = next((number for number, name in TYPE_NAMES.items() if name == kind), None)
    if number is None:
        raise PolicyError(f"{where}.type: {kind!r} is not the name of an event's type, as EV_IPL is, nor a number")
    return number


def _known(prefix: str, content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in content:
        if name not in names:
            import difflib

            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise PolicyError(f"{prefix}{name} is not known; {hint}")


def _table(content: dict[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise PolicyError(f"{name} is not a table")
    return table


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PolicyError(f"{where} is not a list")
    return value


def _texts(where: str, content: dict[str, Any]) -> tuple[str, ...]:
    given = _several(content.get(where.rpartition(".")[2], []))
    if not all(isinstance(each, str) for each in given):
        raise PolicyError(f"{where} is not text, or a list of texts")
    return tuple(given)


def _number(where: str, content: dict[str, Any]) -> int | None:
    value = content.get(where.rpartition(".")[2])
    if value is not None and (type(value) is not int or value < 0):
        raise PolicyError(f"{where} is not a whole number")
    return value


def _bytes(where: str, text: Any, size: int | None = None) -> bytes:
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except (ValueError, AttributeError):
        raise PolicyError(f"{where}: {text!r} is not hexadecimal") from None
    if size is not None and len(value) != size:
        raise PolicyError(f"{where}: a value has {len(value)} bytes, it must have {size}")
    return value


def _mask(where: str, text: Any) -> int:
    try:
        value = text if type(text) is int else int(text, 16)
    except (ValueError, TypeError):
        value = -1
    if not 0 <= value < 1 << 64:
        raise PolicyError(f"{where}: {text!r} is not a 64-bit mask in hexadecimal, as '0x10000000' is")
    return int(value)
