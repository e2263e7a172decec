# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx quote verify --policy``: a quote and its event log appraised by a policy file, the result as claims."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swtdx
from swtdx.attest.appraisal import appraise, claims
from swtdx.attest.policy_file import MAXIMUM_POLICY_SIZE, AppraisalPolicy, PolicyError, parse_policy
from swtdx.attest.quote import Quote
from swtdx.attest.tcb_facts import tcb_facts
from swtdx.attest.tcb_levels import TcbError
from swtdx.attest.verify import Verified
from swtdx.cli.input import file_bytes, result_file
from swtdx.cli.quote import MAXIMUM_COLLATERAL_SIZE, quote_of
from swtdx.cli.verdict import Failure, Verdict

if TYPE_CHECKING:
    from swtdx.attest.event import Event

_BUILD = f"swtdx {swtdx.__version__}"
_NOT_OF_A_POLICY = ("file", "collateral", "root", "at", "policy", "event_log", "claims", "json", "quiet")


def appraised(
    options: dict[str, Any], at: int, verified: Callable[[Quote, bytes], Verified]
) -> tuple[Quote, Verified, list[str], dict[str, Any]]:
    """Return quote, platform, what is not as the policy asks, and members for JSON. Raises `Failure`.

    ``verified`` judges a quote with the content of --collateral, which is read once: it may be a pipe.
    """
    given = [name for name, value in options.items() if value and name not in _NOT_OF_A_POLICY]
    if given:
        sentence = f"--{given[0].replace('_', '-')} and --policy exclude each other: write it into the file"
        raise Failure(sentence, Verdict.USAGE)
    path, file, log = options["policy"], options["file"], options["event_log"]
    inputs = (file, options["collateral"], path, log)
    if sum(str(each) == "-" for each in inputs) > 1:
        raise Failure("only one input can be standard input", Verdict.USAGE)
    with result_file("--claims", options["claims"], *inputs, quiet=options["quiet"] and not options["json"]) as out:
        text = file_bytes(path, MAXIMUM_POLICY_SIZE + 1)
        policy = _policy(path, text)
        if log is not None and not policy.needs_events:
            raise Failure(f"--event-log: {path} has no rules for events", Verdict.USAGE)
        events = None if log is None else _events(log)
        quote = quote_of(file)
        collateral = file_bytes(options["collateral"], MAXIMUM_COLLATERAL_SIZE)
        try:
            platform = verified(quote, collateral)
        except Failure as failure:
            if out is not None and failure.verdict is Verdict.FAILED:
                ear = claims(quote, text, at, None, None, str(failure), _BUILD)
                out.replace((json_format.dumps(ear, indent=2) + "\n").encode())
            raise
        try:
            facts = tcb_facts(quote, collateral)
        except TcbError as error:
            raise Failure(f"{file}: {error}", Verdict.FAILED) from None
        appraisal = appraise(policy, quote, platform, facts, events)
        ear = claims(quote, text, at, appraisal, platform, build=_BUILD)
        if out is not None:
            out.replace((json_format.dumps(ear, indent=2) + "\n").encode())
    return quote, platform, [each.text for each in appraisal.unmet], {"claims": ear}


def _policy(path: Path, text: bytes) -> AppraisalPolicy:
    try:
        return parse_policy(text)
    except PolicyError as error:
        raise Failure(f"{path}: {error}", Verdict.USAGE) from None


def _events(path: Path) -> list[Event]:
    from swtdx.attest.event_log import MAXIMUM_LOG_SIZE, EventLogError, parse_event_log

    try:
        return parse_event_log(file_bytes(path, MAXIMUM_LOG_SIZE + 1))
    except EventLogError as error:
        raise Failure(f"{path}: {error}", Verdict.EVENT_LOG) from None
