# SPDX-License-Identifier: GPL-2.0-or-later
"""A platform's TCB compared with TCB info and QE identity: the level, the status, and what is missing for a better one.

The order is that of Intel's quote verification library: the levels from the highest down, the first of which all
components are reached; then the status of the TDX module's identity and of the quoting enclave are merged into it.
Signatures are not checked here (see `swtdx.attest.verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from swtdx.attest.pck import COMPONENTS, Pck
from swtdx.attest.quote import Quote
from swtdx.attest.text_form import JsonError, json_of

_CONFIGURATION = {"ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}
_OUT_OF_DATE = {"OutOfDate", "OutOfDateConfigurationNeeded"}


class TcbError(ValueError):
    """No level fits, or the documents are not for this platform; the text says why, with values."""


class TcbResult(NamedTuple):
    """The platform's status, and why it is not better."""

    status: str
    advisory_ids: tuple[str, ...]
    tcb_date: str
    missing: tuple[str, ...]
    """What the platform lacks for the highest level, and why its status is not UpToDate, one sentence each."""


def tcb_result(quote: Quote, pck: Pck, tcb_info: str, qe_identity: str) -> TcbResult:
    """Judge a platform by TCB info and QE identity (JSON texts). Raises `TcbError`."""
    try:
        info, identity = json_of(tcb_info.encode()), json_of(qe_identity.encode())
        return _judged(quote, pck, info, identity)
    except (JsonError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise TcbError(f"TCB info or QE identity has not the members that it should have ({error})") from None


def _judged(quote: Quote, pck: Pck, info: dict[str, Any], identity: dict[str, Any]) -> TcbResult:
    if info["fmspc"].upper() != pck.fmspc.upper():
        raise TcbError(f"the TCB info is for FMSPC {info['fmspc'].upper()}, the platform has {pck.fmspc.upper()}")
    svns = [quote.body.tee_tcb_svn]
    if quote.body.tee_tcb_svn2 is not None:
        svns.append(quote.body.tee_tcb_svn2)
    results = [_platform(pck, svn, info) for svn in svns]
    launch = results[0]
    enclave, enclave_gaps = _isvsvn_level(identity["tcbLevels"], _qe_isvsvn(quote), "the quoting enclave's ISVSVN")
    status = converged(launch.status, [str(enclave["tcbStatus"])])
    if len(results) > 1:
        status = relaunched(status, converged(results[1].status, [str(enclave["tcbStatus"])]))
    advisories = dict.fromkeys([*launch.advisory_ids, *enclave.get("advisoryIDs", ())])
    missing = dict.fromkeys(each for result in results for each in (*result.missing, *enclave_gaps))
    return TcbResult(status, tuple(advisories), launch.tcb_date, tuple(missing))


def _platform(pck: Pck, tee_svn: bytes, info: dict[str, Any]) -> TcbResult:
    levels = sorted(info["tcbLevels"], key=_rank, reverse=True)
    major = tee_svn[1]
    gaps = [_gaps(pck, tee_svn, level["tcb"]) for level in levels]
    reached = next((number for number, gap in enumerate(gaps) if not gap), None)
    if reached is None:
        if not levels:
            raise TcbError("the TCB info has no TCB levels")
        lowest = "; ".join(gap.replace("the level wants", "the lowest level wants") for gap in gaps[-1])
        raise TcbError(f"no TCB level fits FMSPC {pck.fmspc.upper()}: {lowest} (of {levels[-1]['tcbDate']})")
    level = levels[reached]
    statuses, advisories = [], list(level.get("advisoryIDs", ()))
    missing = list(gaps[0])
    if level["tcbStatus"] != "UpToDate" and (not gaps[0] or level["tcbStatus"] == "Revoked"):
        missing.append(f"the platform's TCB level (of {level['tcbDate']}) is {level['tcbStatus']}")
    if major:
        wanted = f"TDX_{major:02X}"
        module = next((each for each in info.get("tdxModuleIdentities", ()) if each["id"].upper() == wanted), None)
        if module is None:
            raise TcbError(f"the TCB info has no TDX module identity {wanted}, which TEE_TCB_SVN[1] = {major} asks for")
        fit, lacks = _isvsvn_level(module["tcbLevels"], tee_svn[0], f"the TDX module's ISVSVN ({wanted})")
        missing += lacks
        statuses.append(str(fit["tcbStatus"]))
        advisories += fit.get("advisoryIDs", ())
    status = converged(str(level["tcbStatus"]), statuses)
    return TcbResult(status, tuple(advisories), str(level["tcbDate"]), tuple(missing))


def _rank(level: dict[str, Any]) -> tuple[list[int], int, list[int]]:
    tcb = level["tcb"]
    return (
        [each["svn"] for each in tcb["sgxtcbcomponents"]],
        tcb["pcesvn"],
        [each["svn"] for each in tcb["tdxtcbcomponents"]],
    )


def _gaps(pck: Pck, tee_svn: bytes, tcb: dict[str, Any]) -> list[str]:
    """What keeps a platform below a level."""
    found = []
    for kind, has, wanted, first in (
        ("SGX", pck.cpusvn, tcb["sgxtcbcomponents"], 0),
        # From 1.5 on the module's versions are judged by its identity, not here.
        ("TDX", tee_svn, tcb["tdxtcbcomponents"], 2 if tee_svn[1] else 0),
    ):
        for index in range(first, COMPONENTS):
            needed = wanted[index]["svn"]
            if has[index] < needed:
                label = f" ({wanted[index]['type']})" if wanted[index].get("type") else ""
                found.append(f"{kind} component {index + 1}{label} is {has[index]}, the level wants {needed}")
    if pck.pcesvn < tcb["pcesvn"]:
        found.append(f"PCESVN is {pck.pcesvn}, the level wants {tcb['pcesvn']}")
    return found


def _isvsvn_level(levels: Sequence[dict[str, Any]], isvsvn: int, what: str) -> tuple[dict[str, Any], list[str]]:
    """The level that a version reaches, and what it lacks if that is not UpToDate."""
    ordered = sorted(levels, key=lambda level: int(level["tcb"]["isvsvn"]), reverse=True)
    fit = next((level for level in ordered if isvsvn >= level["tcb"]["isvsvn"]), None)
    if fit is None:
        least = ordered[-1]["tcb"]["isvsvn"] if ordered else "none"
        raise TcbError(f"{what} is {isvsvn}, the lowest level wants {least}")
    if fit["tcbStatus"] == "UpToDate":
        return fit, []
    better = [level["tcb"]["isvsvn"] for level in ordered if level["tcbStatus"] == "UpToDate"]
    wants = f"; UpToDate wants {min(better)}" if better else ""
    return fit, [f"{what} is {isvsvn}, which is {fit['tcbStatus']}{wants}"]


def _qe_isvsvn(quote: Quote) -> int:
    if quote.signature.qe_report is None:
        raise TcbError("the quote has no report of its quoting enclave")
    return quote.signature.qe_report.isvsvn


def converged(platform: str, components: Sequence[str]) -> str:
    """Merge the statuses of module and quoting enclave into the platform's.

    >>> converged("ConfigurationNeeded", ["OutOfDate"]), converged("SWHardeningNeeded", ["UpToDate"])
    ('OutOfDateConfigurationNeeded', 'SWHardeningNeeded')
    """
    if "Revoked" in (platform, *components):
        return "Revoked"
    if "OutOfDate" in components and platform not in _OUT_OF_DATE:
        return "OutOfDateConfigurationNeeded" if platform in _CONFIGURATION else "OutOfDate"
    return platform


def relaunched(launch: str, current: str) -> str:
    """Merge the status at the TD's launch with that of the module which runs now (body types 3 and 4).

    >>> relaunched("OutOfDate", "UpToDate"), relaunched("UpToDate", "OutOfDate")
    ('TDRelaunchAdvised', 'UpToDate')
    """
    if launch in _OUT_OF_DATE and current not in (*_OUT_OF_DATE, "Revoked"):
        either = launch == "OutOfDateConfigurationNeeded" or current in _CONFIGURATION
        return "TDRelaunchAdvisedConfigurationNeeded" if either else "TDRelaunchAdvised"
    return launch
