# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relying party accepts of a genuine quote: which TD, which identities, how good a platform.

A genuine quote proves that a TD runs, not that it is the expected one.  A policy does not look at what it leaves open,
with these exceptions: a TD that can be debugged, migrated or read by a service TD, one that takes #VE for its private
memory, reserved attributes, and a platform that is not up to date are refused unless they are allowed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from swtdx.attest.quote import QuoteBody, attribute_names

TCB_STATUSES = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded",
)  # fmt: skip
"""Those a policy can allow, best first; a revoked platform never verifies."""
Values: TypeAlias = "bytes | Collection[bytes] | None"
"""One accepted value, or several; None accepts any."""

_DEBUG_GROUP = 0xFF
_SEPT_VE_DISABLE, _MIGRATABLE = 1 << 28, 1 << 29
_KNOWN = _DEBUG_GROUP | sum(1 << bit for bit in (27, 28, 29, 30, 31, 62, 63))
_DIGESTS = ("mrtd", "mrconfigid", "mrowner", "mrownerconfig", "mrseam", "mrsignerseam", "mrservicetd")
SIZES = {**dict.fromkeys(_DIGESTS, 48), "reportdata": 64, "minimum_tee_tcb_svn": 16}


class _Accepted(NamedTuple):
    """The members of `Policy`."""

    mrtd: Values = None
    rtmrs: tuple[Values, Values, Values, Values] = (None, None, None, None)
    mrconfigid: Values = None
    mrowner: Values = None
    mrownerconfig: Values = None
    mrseam: Values = None
    mrsignerseam: Values = None
    mrservicetd: Values = None
    reportdata: Values = None
    xfam: int | Collection[int] | None = None
    attributes: int | Collection[int] | None = None
    allow_debug: bool = False
    allow_migratable: bool = False
    allow_service_td: bool = False
    allow_sept_ve: bool = False
    """Accept a TD without SEPT_VE_DISABLE, in which the host can raise #VE at any private page."""
    minimum_tee_tcb_svn: bytes | None = None
    """16 bytes; no component of the quote's may be smaller."""
    tcb_statuses: frozenset[str] = frozenset({"UpToDate"})


class Policy(_Accepted):
    """What must hold; None accepts anything. Raises ValueError for a value of the wrong size.

    >>> Policy(minimum_tee_tcb_svn=bytes(2))
    Traceback (most recent call last):
    ValueError: minimum_tee_tcb_svn has 2 bytes, it must have 16
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker sees the members

        def __new__(cls, *given: Any, **named: Any) -> Policy:
            policy = super().__new__(cls, *given, **named)
            policy._check_sizes()
            return policy

    def _check_sizes(self) -> None:
        named = [(name, getattr(self, name)) for name in self._fields if name in SIZES]
        for name, values in (*named, *((f"rtmrs[{index}]", each) for index, each in enumerate(self.rtmrs))):
            size = SIZES.get(name, 48)
            for value in _byte_strings(values):
                if len(value) != size:
                    raise ValueError(f"{name} has {len(value)} bytes, it must have {size}")


class Broken(NamedTuple):
    """A rule that a quote breaks: of which field, and how."""

    field: str
    """As a quote names it, in upper case; or TCB status."""
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"


def violations(policy: Policy, body: QuoteBody, tcb_status: str | None = None) -> list[str]:
    """Return one sentence for each rule that the quote breaks; nothing if it meets the policy.

    ``tcb_status`` is the result of verification; None leaves it out.

    >>> from swtdx.attest.quote import QuoteBody
    >>> zero, debug = bytes(48), 0x10000001
    >>> body = QuoteBody(bytes(16), zero, zero, 0, debug, 0, zero, zero, zero, zero, (zero,) * 4, bytes(64), None, None)
    >>> violations(Policy(), body)
    ['ATTRIBUTES: the TD can be debugged (DEBUG)']
    >>> violations(Policy(allow_debug=True), body, "OutOfDate")
    ['TCB status: OutOfDate is not among those allowed: UpToDate']
    """
    return [str(each) for each in broken_rules(policy, body, tcb_status)]


def broken_rules(policy: Policy, body: QuoteBody, tcb_status: str | None = None) -> list[Broken]:
    """Return the same with the field of each rule."""
    found = [Broken("ATTRIBUTES", text) for text in _attributes(policy, body)]
    for mask in ("attributes", "xfam"):
        wanted, has = _masks(getattr(policy, mask)), getattr(body, mask)
        if wanted and has not in wanted:
            text = f"{_one_of([f'{each:#x}' for each in wanted])} wanted, the quote has {has:#x}"
            found.append(Broken(mask.upper(), text))
    if any(body.mrservicetd or b"") and not policy.allow_service_td and policy.mrservicetd is None:
        found.append(Broken("MRSERVICETD", "a service TD is bound to the TD, and can read its state"))
    for name in (*_DIGESTS, "reportdata"):
        found += _differing(name.upper(), getattr(policy, name), getattr(body, name))
    for index, (values, register) in enumerate(zip(policy.rtmrs, body.rtmrs, strict=True)):
        found += _differing(f"RTMR{index}", values, register)
    found += _versions(policy, body)
    if tcb_status is not None and tcb_status not in policy.tcb_statuses:
        allowed = ", ".join(status for status in TCB_STATUSES if status in policy.tcb_statuses)
        found.append(Broken("TCB status", f"{tcb_status} is not among those allowed: {allowed}"))
    return found


def _attributes(policy: Policy, body: QuoteBody) -> list[str]:
    found = []
    if body.attributes & _DEBUG_GROUP and not policy.allow_debug:
        names = ", ".join(attribute_names(body.attributes & _DEBUG_GROUP))
        found.append(f"the TD can be {'debugged' if body.debug else 'observed'} ({names})")
    if body.attributes & _MIGRATABLE and not policy.allow_migratable:
        found.append("the TD can be migrated (MIGRATABLE)")
    if not body.attributes & _SEPT_VE_DISABLE and not policy.allow_sept_ve:
        found.append("SEPT_VE_DISABLE is not set, so that the host can raise #VE at any private page")
    unknown = body.attributes & ~_KNOWN
    if unknown and body.attributes not in _masks(policy.attributes):
        names = ", ".join(attribute_names(unknown))
        found.append(f"reserved bits, or bits that this policy does not know, are set ({names})")
    return found


def _versions(policy: Policy, body: QuoteBody) -> list[Broken]:
    minimum, has = policy.minimum_tee_tcb_svn, body.tee_tcb_svn
    if minimum is None or all(version >= least for version, least in zip(has, minimum, strict=True)):
        return []
    low = [index for index in range(len(has)) if has[index] < minimum[index]]
    which = ", ".join(f"component {index + 1} is {has[index]}, {minimum[index]} wanted" for index in low)
    return [Broken("TEE_TCB_SVN", f"at least {minimum.hex()} wanted, the quote has {has.hex()} ({which})")]


def _byte_strings(values: Values) -> tuple[bytes, ...]:
    if values is None:
        return ()
    return (values,) if isinstance(values, bytes) else tuple(values)


def _masks(values: int | Collection[int] | None) -> tuple[int, ...]:
    if values is None:
        return ()
    return (values,) if isinstance(values, int) else tuple(values)


def _one_of(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"


def _differing(name: str, values: Values, has: bytes | None) -> list[Broken]:
    wanted = _byte_strings(values)
    if not wanted or has in wanted:
        return []
    texts = [each.hex() for each in wanted]
    return [Broken(name, f"{_one_of(texts)} wanted, the quote has {'none' if has is None else has.hex()}")]
