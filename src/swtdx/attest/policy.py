# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relying party asks of a genuine quote: which TD, which identities, how good a platform.

A quote being genuine says that a TD runs, not that it is the one meant.  What a policy leaves open is not looked at,
but for two things: a debuggable TD and a platform that is not up to date are refused unless they are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.attest.quote import QuoteBody

TCB_STATUSES = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
    "OutOfDateConfigurationNeeded",
)  # fmt: skip
"""Those a policy can allow, best first; a revoked platform never verifies."""


@dataclass(frozen=True)
class Policy:
    """What must hold; None and absent keys ask nothing."""

    mrtd: bytes | None = None
    rtmrs: tuple[bytes | None, bytes | None, bytes | None, bytes | None] = (None, None, None, None)
    mrconfigid: bytes | None = None
    mrowner: bytes | None = None
    mrownerconfig: bytes | None = None
    mrseam: bytes | None = None
    reportdata: bytes | None = None
    xfam: int | None = None
    attributes: int | None = None
    allow_debug: bool = False
    minimum_tee_tcb_svn: bytes | None = None
    """16 bytes; no component of the quote's may be smaller."""
    tcb_statuses: frozenset[str] = frozenset({"UpToDate"})


def violations(policy: Policy, body: QuoteBody, tcb_status: str | None = None) -> list[str]:
    """One sentence for each thing the quote fails; empty if it meets the policy.

    ``tcb_status`` is what verification gave; None leaves it out.

    >>> from swtdx.attest.quote import QuoteBody
    >>> zero = bytes(48)
    >>> body = QuoteBody(bytes(16), zero, zero, 0, 1, 0, zero, zero, zero, zero, (zero,) * 4, bytes(64), None, None)
    >>> violations(Policy(), body)
    ['ATTRIBUTES: the TD can be debugged (bit 0)']
    >>> violations(Policy(allow_debug=True), body, "OutOfDate")
    ['TCB status: OutOfDate is not among those allowed: UpToDate']
    """
    found = []
    if body.debug and not policy.allow_debug:
        found.append("ATTRIBUTES: the TD can be debugged (bit 0)")
    for mask in ("attributes", "xfam"):
        wanted, has = getattr(policy, mask), getattr(body, mask)
        if wanted is not None and wanted != has:
            found.append(f"{mask.upper()}: {wanted:#x} wanted, the quote has {has:#x}")
    for name in ("mrtd", "mrconfigid", "mrowner", "mrownerconfig", "mrseam", "reportdata"):
        found += _differing(name.upper(), getattr(policy, name), getattr(body, name))
    for index, (wanted, has) in enumerate(zip(policy.rtmrs, body.rtmrs, strict=True)):
        found += _differing(f"RTMR{index}", wanted, has)
    minimum = policy.minimum_tee_tcb_svn
    if minimum is not None and any(has < least for has, least in zip(body.tee_tcb_svn, minimum, strict=True)):
        found.append(f"TEE_TCB_SVN: at least {minimum.hex()} wanted, the quote has {body.tee_tcb_svn.hex()}")
    if tcb_status is not None and tcb_status not in policy.tcb_statuses:
        allowed = ", ".join(status for status in TCB_STATUSES if status in policy.tcb_statuses)
        found.append(f"TCB status: {tcb_status} is not among those allowed: {allowed}")
    return found


def _differing(name: str, wanted: bytes | None, has: bytes) -> list[str]:
    if wanted is None or wanted == has:
        return []
    return [f"{name}: {wanted.hex()} wanted, the quote has {has.hex()}"]
