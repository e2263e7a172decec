# SPDX-License-Identifier: GPL-2.0-or-later
"""What collateral says of a platform beside its status: how old its TCB level is, and how new the collateral."""

from __future__ import annotations

from typing import NamedTuple

from swtdx.attest.pck import pck_of
from swtdx.attest.quote import Quote
from swtdx.attest.tcb_levels import TcbError, tcb_result
from swtdx.attest.text_form import JsonError, json_of
from swtdx.attest.verify import collateral_members, seconds


class TcbFacts(NamedTuple):
    """Of a platform and its collateral."""

    tcb_date: int
    """Seconds since 1970: the date of the platform's TCB level."""
    evaluation_number: int
    """tcbEvaluationDataNumber of the TCB info; it grows with each TCB recovery."""


def tcb_facts(quote: Quote, collateral: bytes | str) -> TcbFacts:
    """Read them for the platform of a quote that verifies. Raises `TcbError`, `swtdx.attest.verify.CollateralError`."""
    members = collateral_members(collateral)
    pck = pck_of(quote)
    if pck is None:
        raise TcbError("the quote has no PCK certificate chain")
    result = tcb_result(quote, pck, members["tcb_info"], members["qe_identity"])
    try:
        number = json_of(members["tcb_info"].encode())["tcbEvaluationDataNumber"]
        return TcbFacts(seconds(result.tcb_date), int(number))
    except (JsonError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise TcbError(f"the TCB info has no date or evaluation number ({error})") from None
