# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier compares a quote with: TCB info, QE identity, CRLs, with the TCB status that is asked for.

The documents are written in the one form that all verifiers accept: compact JSON, members in Intel's order, hexadecimal
digits in upper case, dates to the second.  A status is not an entry in a table that a verifier looks up: the documents
have TCB levels such that a verifier which works right comes to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from swtdx.quoting.certificates import Role, Validity, revocation_list
from swtdx.quoting.enclave import QE_ISVPRODID, QE_ISVSVN, QE_MRSIGNER, signature
from swtdx.quoting.pki import CA_TYPES, CPUSVN, FMSPC, PCEID, PCESVN, Pki

TEE_TCB_SVN = bytes.fromhex("06010400000000000000000000000000")
"""Of the TDX module that machines come with."""
EVALUATION_NUMBER = 17
LIFETIME = timedelta(days=30)
RENEWAL = timedelta(hours=1)
"""How old documents may become before a server makes new ones."""
ADVISORY = "SWTDX-TEST-SA-00001"
DOCUMENTS = ("tcb_info", "qe_identity", "crl")
_MODULE_GENERATIONS = range(1, 6)
_LOWEST_TDX = (1, 0, 1)
_TOO_HIGH = 255


@dataclass(frozen=True)
class Scenario:
    """How the documents lead to a status."""

    summary: str
    level: str = "UpToDate"
    """Status of the TCB level that the platform reaches."""
    behind: bool = False
    """There is a higher level, which it does not reach."""
    module: str = "UpToDate"
    """Status of the level that the TDX module reaches."""
    relaunch: bool = False
    """The module at the TD's launch was out of date, the one that runs now is not."""
    qe: str = "UpToDate"
    expired: frozenset[str] = frozenset()
    revoked: frozenset[Role] = frozenset()
    unreachable: bool = False
    """No level fits the platform."""
    early: bool = False
    """The documents are of tomorrow."""
    foreign: bool = False
    """The TCB info is for another FMSPC."""


SCENARIOS: dict[str, Scenario] = {
    "UpToDate": Scenario("the highest level, without advisories"),
    "SWHardeningNeeded": Scenario("software must be hardened", level="SWHardeningNeeded"),
    "ConfigurationNeeded": Scenario("the platform is not configured as it should be", level="ConfigurationNeeded"),
    "ConfigurationAndSWHardeningNeeded": Scenario("both of these", level="ConfigurationAndSWHardeningNeeded"),
    "OutOfDate": Scenario("there is a higher level", level="OutOfDate", behind=True),
    "OutOfDateConfigurationNeeded": Scenario(
        "there is a higher level, and the configuration is not right", level="OutOfDateConfigurationNeeded", behind=True
    ),
    "Revoked": Scenario("the platform's level is revoked", level="Revoked", behind=True),
    "TDRelaunchAdvised": Scenario(
        "the TDX module was updated after the TD's launch (swtdx run --module-updated)", relaunch=True
    ),
    "TDRelaunchAdvisedConfigurationNeeded": Scenario(
        "the same, and the configuration is not right", level="ConfigurationNeeded", relaunch=True
    ),
    "ModuleOutOfDate": Scenario("there is a newer TDX module: OutOfDate", module="OutOfDate"),
    "ModuleRevoked": Scenario("the TDX module is revoked: Revoked", module="Revoked"),
    "QEOutOfDate": Scenario("there is a newer quoting enclave: OutOfDate", qe="OutOfDate"),
    "QERevoked": Scenario("the quoting enclave is revoked: Revoked", qe="Revoked"),
    "NoLevel": Scenario("no TCB level fits the platform", unreachable=True),
    "OtherPlatform": Scenario("the TCB info is for another FMSPC", foreign=True),
    "Expired": Scenario("all documents have expired", expired=frozenset(DOCUMENTS)),
    "TCBInfoExpired": Scenario("the TCB info has expired", expired=frozenset({"tcb_info"})),
    "QEIdentityExpired": Scenario("the QE identity has expired", expired=frozenset({"qe_identity"})),
    "CRLExpired": Scenario("the CRLs have expired", expired=frozenset({"crl"})),
    "NotYetValid": Scenario("the documents are of tomorrow", early=True),
    "PCKRevoked": Scenario("the PCK certificate is revoked", revoked=frozenset({Role.PCK})),
    "CARevoked": Scenario("the CA of the PCK certificate is revoked", revoked=frozenset({Role.PLATFORM_CA})),
    "TCBSigningRevoked": Scenario("the TCB signing certificate is revoked", revoked=frozenset({Role.TCB_SIGNING})),
}
"""What may be asked for -> how. The first eleven are statuses of Intel's, the others what else a verifier may meet."""


@dataclass(frozen=True)
class Collateral:
    """The documents for one platform, all of one moment."""

    pki: Pki
    scenario: str
    issued: datetime
    tcb_info: str
    tcb_info_signature: str
    qe_identity: str
    qe_identity_signature: str
    root_ca_crl: bytes
    """DER, as the next."""
    pck_crls: dict[str, bytes] = field(default_factory=dict)
    """By type of CA."""

    @property
    def tcb_signing_chain(self) -> bytes:
        """The issuers of TCB info and QE identity, in PEM."""
        return self.pki.chain(Role.TCB_SIGNING, Role.ROOT)

    def ca_chain(self, ca_type: str) -> bytes:
        """The issuers of a PCK CRL, in PEM."""
        return self.pki.chain(self.pki.ca_role(ca_type), Role.ROOT)

    @property
    def tcb_info_response(self) -> str:
        """As a PCS answers."""
        return f'{{"tcbInfo":{self.tcb_info},"signature":"{self.tcb_info_signature}"}}'

    @property
    def qe_identity_response(self) -> str:
        """As a PCS answers."""
        return f'{{"enclaveIdentity":{self.qe_identity},"signature":"{self.qe_identity_signature}"}}'

    def as_json(self) -> dict[str, str]:
        """Return the members that ``QuoteCollateralV3.from_json`` of dcap-qvl reads, and `swtdx quote verify`."""
        return {
            "pck_crl_issuer_chain": self.ca_chain(self.pki.ca_type).decode(),
            "root_ca_crl": self.root_ca_crl.hex(),
            "pck_crl": self.pck_crls[self.pki.ca_type].hex(),
            "tcb_info_issuer_chain": self.tcb_signing_chain.decode(),
            "tcb_info": self.tcb_info,
            "tcb_info_signature": self.tcb_info_signature,
            "qe_identity_issuer_chain": self.tcb_signing_chain.decode(),
            "qe_identity": self.qe_identity,
            "qe_identity_signature": self.qe_identity_signature,
        }

    def qgs_parts(self) -> tuple[bytes, ...]:
        """The seven parts of a QGS's GET_COLLATERAL_RESP, each with a NUL at its end, as Intel's."""
        crl = self.pck_crls[self.pki.ca_type]
        parts = (
            self.ca_chain(self.pki.ca_type),
            self.root_ca_crl.hex().encode(),
            crl.hex().encode(),
            self.tcb_signing_chain,
            self.tcb_info_response.encode(),
            self.tcb_signing_chain,
            self.qe_identity_response.encode(),
        )
        return tuple(part + b"\0" for part in parts)


def make_collateral(
    pki: Pki, scenario: str = "UpToDate", at: datetime | None = None, tee_tcb_svn: bytes = TEE_TCB_SVN
) -> Collateral:
    """Return the documents, issued an hour before ``at`` (now). Raises ValueError for an unknown ``scenario``.

    ``tee_tcb_svn``: of the TDX module that a TD was launched under, which matters for TDRelaunchAdvised alone.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"{scenario!r}: must be one of {', '.join(SCENARIOS)}")
    wanted = SCENARIOS[scenario]
    now = (at or datetime.now(UTC)).replace(tzinfo=None, microsecond=0)
    issued = now - timedelta(hours=1)

    def validity(document: str) -> Validity:
        if document in wanted.expired:
            return Validity(issued - 2 * LIFETIME, issued - LIFETIME)
        shift = timedelta(days=1, hours=1) if wanted.early else timedelta()
        return Validity(issued + shift, issued + shift + LIFETIME)

    tcb_info = _compact(_tcb_info(wanted, validity("tcb_info"), tee_tcb_svn))
    qe_identity = _compact(_qe_identity(wanted, validity("qe_identity")))
    key = pki.key(Role.TCB_SIGNING.value)
    crls = validity("crl")
    revoked = {pki.ca_role() if role is Role.PLATFORM_CA else role for role in wanted.revoked}

    def crl(issuer: Role, roles: set[Role]) -> bytes:
        serials = {pki.certificates[role].serial_number: crls.begin for role in roles & revoked}
        made = revocation_list(pki.issuer(issuer), int(issued.timestamp()), crls, serials)
        return made.public_bytes(Encoding.DER)

    return Collateral(
        pki=pki,
        scenario=scenario,
        issued=now,
        tcb_info=tcb_info,
        tcb_info_signature=signature(key, tcb_info.encode()).hex(),
        qe_identity=qe_identity,
        qe_identity_signature=signature(key, qe_identity.encode()).hex(),
        root_ca_crl=crl(Role.ROOT, {Role.PLATFORM_CA, Role.PROCESSOR_CA, Role.TCB_SIGNING}),
        pck_crls={name: crl(pki.ca_role(name), {Role.PCK} if name == pki.ca_type else set()) for name in CA_TYPES},
    )


def _compact(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _dated(document: str, version: int, validity: Validity) -> dict[str, Any]:
    dates = {"issueDate": _date(validity.begin), "nextUpdate": _date(validity.end)}
    return {"id": document, "version": version, **dates}


def _tcb_info(wanted: Scenario, validity: Validity, tee_tcb_svn: bytes) -> dict[str, Any]:
    day = _date(validity.begin.replace(hour=0, minute=0, second=0))
    seam = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    fmspc = hashlib.sha256(b"swtdx test, another platform").digest()[:6] if wanted.foreign else FMSPC
    statuses: list[tuple[int, str]] = [(0, wanted.level)]
    if wanted.behind or wanted.unreachable:
        statuses = [(1, "UpToDate"), *statuses]
    if wanted.unreachable:
        statuses = statuses[:1]
    else:
        statuses.append((-1, "OutOfDate"))
    identities = [
        {
            "id": f"TDX_{generation:02X}",
            **seam,
            "tcbLevels": _isv_levels(_module_levels(wanted, tee_tcb_svn), day),
        }
        for generation in _MODULE_GENERATIONS
    ]
    return {
        **_dated("TDX", 3, validity),
        "fmspc": fmspc.hex().upper(),
        "pceId": PCEID.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "tdxModule": seam,
        "tdxModuleIdentities": identities,
        "tcbLevels": [_level(above, status, day) for above, status in statuses],
    }


def _level(above: int, status: str, day: str) -> dict[str, Any]:
    """A TCB level that lies as many versions above the platform's."""
    sgx = bytes([CPUSVN[0] + above, *CPUSVN[1:]])
    tdx = bytes(_LOWEST_TDX).ljust(16, b"\0")
    level: dict[str, Any] = {
        "tcb": {
            "sgxtcbcomponents": _components(sgx, {0: ("BIOS", "Early Microcode Update")}),
            "pcesvn": PCESVN,
            "tdxtcbcomponents": _components(
                tdx, {0: ("OS/VMM", "TDX Module"), 2: ("OS/VMM", "TDX Late Microcode Update")}
            ),
        },
        "tcbDate": day,
        "tcbStatus": status,
    }
    return level if status == "UpToDate" else {**level, "advisoryIDs": [ADVISORY]}


def _components(svns: bytes, names: dict[int, tuple[str, str]]) -> list[dict[str, Any]]:
    def one(index: int, svn: int) -> dict[str, Any]:
        named = dict(zip(("category", "type"), names[index], strict=True)) if index in names else {}
        return {"svn": svn, **named}

    return [one(index, svn) for index, svn in enumerate(svns)]


def _module_levels(wanted: Scenario, tee_tcb_svn: bytes) -> list[tuple[int, str]]:
    """(ISVSVN, status) of the TDX module's levels, from the highest down."""
    if wanted.relaunch:
        return [(tee_tcb_svn[0] + 1, "UpToDate"), (1, "OutOfDate")]
    return [(1, "UpToDate")] if wanted.module == "UpToDate" else [(_TOO_HIGH, "UpToDate"), (1, wanted.module)]


def _isv_levels(levels: list[tuple[int, str]], day: str) -> list[dict[str, Any]]:
    return [{"tcb": {"isvsvn": svn}, "tcbDate": day, "tcbStatus": status} for svn, status in levels]


def _qe_identity(wanted: Scenario, validity: Validity) -> dict[str, Any]:
    day = _date(validity.begin.replace(hour=0, minute=0, second=0))
    levels = [(QE_ISVSVN, "UpToDate"), (QE_ISVSVN - 1, "OutOfDate")]
    if wanted.qe != "UpToDate":
        levels = [(QE_ISVSVN + 1, "UpToDate"), (QE_ISVSVN, wanted.qe)]
    return {
        **_dated("TD_QE", 2, validity),
        "tcbEvaluationDataNumber": EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_MRSIGNER.hex().upper(),
        "isvprodid": QE_ISVPRODID,
        "tcbLevels": _isv_levels(levels, day),
    }


class CollateralKeeper:
    """Collateral that is made when it is first wanted, and again when it has become old. ``clock``: the time now."""

    def __init__(
        self, pki: Pki, clock: Callable[[], datetime] = lambda: datetime.now(UTC).replace(tzinfo=None)
    ) -> None:
        self.pki = pki
        self._clock = clock
        self._kept: dict[str, Collateral] = {}

    def get(self, scenario: str) -> Collateral:
        """Return the documents of a scenario. Raises ValueError for an unknown one."""
        now = self._clock()
        kept = self._kept.get(scenario)
        if kept is None or not timedelta() <= now - kept.issued < RENEWAL:
            kept = self._kept[scenario] = make_collateral(self.pki, scenario, now)
        return kept
