# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz quoting``: what the quoting side makes of bytes that no VMM and no verifier would send.

Messages to the quote generation service and its answers, TDREPORTs, addresses and queries of the collateral service,
and quotes that were damaged on their way to the verifier.  Nothing may be raised but what is documented, no damaged
quote may verify, and the process may not grow.
"""

from __future__ import annotations

import json
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from swtdx.attest.quote import QuoteError, parse_quote
from swtdx.attest.verify import VerificationError, verify_quote
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QuoteVersion, QuotingEnclave, QuotingError
from swtdx.quoting.pccs import CollateralService, Refused
from swtdx.quoting.pki import FMSPC, Pki
from swtdx.quoting.qgs import QuoteService
from swtdx.vmm.qgs_message import (
    HEADER,
    MessageError,
    collateral_request,
    parse_quote_response,
    platform_info_request,
    quote_request,
    quote_response,
)
from swtdx.vmm.qgs_socket import AddressError, parse_address
from testing.fuzzing.mutation import Seed, mutated
from testing.fuzzing.result import Result
from testing.tdreport import UPDATED_SVN, TdReportFields

KEY = b"k" * 32
PATIENCE = 5.0
"""Seconds that a case may take."""
GROWTH = 64 << 20
"""Bytes that the process may grow by after the first thousand cases."""
_SETTLED = 1000


@dataclass(frozen=True)
class _World:
    pki: Pki
    enclave: QuotingEnclave
    qgs: QuoteService
    pccs: CollateralService
    collateral: str
    at: int
    quotes: tuple[Seed, ...]
    reports: tuple[Seed, ...]


@cache
def _world() -> _World:
    pki = Pki.new("fuzzing")
    enclave = QuotingEnclave(pki, MacCheck(KEY))
    reports = tuple(
        Seed(name, TdReportFields(key=KEY, version=version, svn2=svn2).pack())
        for name, version, svn2 in (("1.0", 0, UPDATED_SVN), ("1", 1, UPDATED_SVN), ("3", 3, UPDATED_SVN))
    )
    quotes = [QuotingEnclave(pki, MacCheck(KEY), version).quote(reports[0].data) for version in QuoteVersion]
    quotes.append(enclave.quote(reports[2].data))
    seeds = tuple(Seed(f"quote {number}", quote, ((0, len(quote)),)) for number, quote in enumerate(quotes))
    collateral = json.dumps(make_collateral(pki).as_json())
    service = QuoteService(enclave)
    return _World(pki, enclave, service, CollateralService(pki), collateral, int(time.time()), seeds, reports)


def _stated(error: Exception) -> None:
    """A refusal has a sentence."""
    if not str(error):
        raise AssertionError(f"no sentence: {error!r}")


def _message(random: Random) -> str:
    seeds = tuple(
        Seed(name, data, ((0, 64),))
        for name, data in (
            ("quote", quote_request(_world().reports[0].data)),
            ("collateral", collateral_request(FMSPC, "platform")),
            ("platform", platform_info_request()),
        )
    )
    answer = _world().qgs.message(mutated(random.choice(seeds), seeds, random))
    if not answer:
        return "no answer"
    _, _, kind, size, error = HEADER.unpack_from(answer)
    assert size == len(answer), "a message whose size is not its own"
    return f"answer {kind}, {'error' if error else 'success'}"


def _answer(random: Random) -> str:
    seeds = (Seed("answer", quote_response(_world().quotes[0].data), ((0, 32),)),)
    try:
        parse_quote_response(mutated(seeds[0], seeds, random))
    except MessageError as error:
        _stated(error)
        return "refused"
    return "taken"


def _report(random: Random) -> str:
    seeds = _world().reports
    data = mutated(random.choice(seeds), seeds, random)
    try:
        quote = _world().enclave.quote(data)
    except QuotingError as error:
        _stated(error)
        return "refused"
    known = [seed.data for seed in seeds]
    same = any(data[:495] == each[:495] and data[512:] == each[512:] for each in known)
    assert same, "a damaged report was quoted"
    parse_quote(quote)
    return "quoted"


def _quote(random: Random) -> str:
    world = _world()
    seeds = world.quotes
    data = mutated(random.choice(seeds), seeds, random)
    try:
        quote = parse_quote(data)
        verify_quote(quote, world.collateral, world.at, world.pki.root)
    except QuoteError:
        return "no quote"
    except VerificationError:
        return "not genuine"
    signed = [parse_quote(seed.data) for seed in seeds]
    genuine = any(quote.header == each.header and quote.body == each.body for each in signed)
    assert genuine, "a damaged quote verified"
    return "genuine"


_ADDRESSES = (
    b"unix:/run/tdx-qgs/qgs.socket", b"vsock:2:4050", b"127.0.0.1:4050", b"[::1]:4050",
    b'{"type": "vsock", "cid": "2", "port": "4050"}', b'{"type": "unix", "path": "/a"}',
)  # fmt: skip
_TARGETS = (
    b"/sgx/certification/v4/pckcrl?ca=platform&encoding=der", b"/sgx/certification/v4/rootcacrl",
    b"/sgx/certification/v4/crl?uri=http://127.0.0.1:8081/swtdx-test/root-ca.crl",
    b"/tdx/certification/v4/tcb?fmspc=737774647800&update=early", b"/tdx/certification/v4/qe/identity?update=standard",
    b"/sgx/certification/v4/pckcert?qeid=00&pceid=0000",
)  # fmt: skip


def _address(random: Random) -> str:
    seeds = tuple(Seed("address", text) for text in _ADDRESSES)
    try:
        str(parse_address(mutated(random.choice(seeds), seeds, random).decode("latin-1")))
    except AddressError as error:
        _stated(error)
        return "refused"
    return "taken"


def _target(random: Random) -> str:
    seeds = tuple(Seed("target", text) for text in _TARGETS)
    try:
        _world().pccs.get(mutated(random.choice(seeds), seeds, random).decode("latin-1"))
    except (Refused, ValueError) as error:
        _stated(error)
        return "refused"
    return "answered"


KINDS: dict[str, tuple[int, Callable[[Random], str]]] = {
    "message": (35, _message),
    "answer": (10, _answer),
    "report": (15, _report),
    "quote": (25, _quote),
    "address": (7, _address),
    "target": (8, _target),
}
"""Kind -> share of 100 cases, and what makes and feeds one."""


def campaign(cases: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Result:
    """Feed ``cases`` damaged inputs; ``progress`` is told how many are done. The same seed gives the same cases."""
    result = Result("cases")
    dealt = [name for name, (share, _) in KINDS.items() for _ in range(share)]
    settled = 0
    for number in range(cases):
        random = Random(f"{seed}:{number}")
        name = random.choice(dealt)
        started = time.monotonic()
        try:
            result.answers[f"{name}: {KINDS[name][1](random)}"] += 1
        except BaseException as error:  # a panic of a library below is not an Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            result.failures.append(f"{name}, seed {seed}, case {number}: {error!r} ({where.filename}:{where.lineno})")
        taken = time.monotonic() - started
        if taken > PATIENCE:
            result.failures.append(f"{name}, seed {seed}, case {number}: took {taken:.1f} s")
        if number == _SETTLED:
            settled = _resident()
        result.cases = number + 1
        progress(result.cases)
    if settled and _resident() - settled > GROWTH:
        result.failures.append(f"the process grew by {(_resident() - settled) >> 20} MiB")
    return result


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
