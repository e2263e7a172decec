# SPDX-License-Identifier: GPL-2.0-or-later
"""The test PKI of one machine: every key and certificate between a root of its own and a quote.

All keys follow from a seed, which is random unless it is given; the folder keeps the seed and the certificates.  Root,
Platform CA, Processor CA, PCK certificate and TCB signing certificate have the form of Intel's, and say in all that
verifiers leave free that they are a test (`swtdx.quoting.certificates`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from swtdx.quoting.certificates import Issuer, Role, Validity, certificate, derived_key, serial_number, subject
from swtdx.quoting.machine_folder import REPORT_KEY, REPORT_KEY_SIZE, FolderError, made, report_key, write_once
from swtdx.quoting.sgx_extension import sgx_extension

FORMAT = "swtdx test PKI, version 1"
DESCRIPTION = "pki.json"
ROOT_PEM, ROOT_DER, HTTPS_CA = "root-ca.pem", "root-ca.der", "https-ca.pem"
FMSPC = b"swtdx\0"
"""Family, model, stepping, platform: a value that no processor has."""
CPUSVN = bytes([3, *bytes(15)])
"""As the emulated processor's reports have it."""
PCESVN = 13
PCEID = bytes(2)
PORT = 8081
"""Where the collateral service listens, and where the certificates say that CRLs are: PCCS's port."""
ROOT_CRL_PATH = "/swtdx-test/root-ca.crl"
BEGIN = datetime(2020, 1, 1)
END = datetime(2049, 12, 31, 23, 59, 59)
CA_TYPES = ("platform", "processor")
_CA_ROLES = {"platform": Role.PLATFORM_CA, "processor": Role.PROCESSOR_CA}
_SIZE_LIMIT = 1 << 20
_OURS = (DESCRIPTION, ROOT_PEM, ROOT_DER, REPORT_KEY, HTTPS_CA)


class PkiError(FolderError):
    """A test PKI cannot be used; the text is one sentence for a person."""


@dataclass(frozen=True)
class Pki:
    """Keys, and the certificates of them. ``seed``: 32 bytes."""

    seed: bytes
    ca_type: str = "platform"
    """Which CA certifies the platform: of CA_TYPES."""
    port: int = PORT
    end: datetime = END
    folder: Path | None = None
    stored: tuple[x509.Certificate, ...] = ()
    """Root, Platform CA, Processor CA, PCK, TCB signing, as the folder has them; else they are made."""

    @classmethod
    def new(cls, seed: str | None = None, **more: Any) -> Pki:
        """Return a PKI that is kept nowhere. The same ``seed``, a text, gives the same keys."""
        if seed is None:
            return cls(secrets.token_bytes(32), **more)
        return cls(hashlib.sha256(b"swtdx test PKI\0" + seed.encode()).digest(), **more)

    def key(self, label: str) -> ec.EllipticCurvePrivateKey:
        """Return the private key for a purpose."""
        return derived_key(self.seed, label)

    def secret(self, label: str, size: int) -> bytes:
        """Return bytes that are the same each time, and differ by purpose."""
        return hashlib.sha256(b"swtdx test value\0" + self.seed + b"\0" + label.encode()).digest()[:size]

    @property
    def report_key(self) -> bytes:
        """The machine's report key, where the folder has none yet."""
        return self.secret("report key", REPORT_KEY_SIZE)

    @property
    def base_url(self) -> str:
        """Where the collateral service is, by the certificates."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def certificates(self) -> dict[Role, x509.Certificate]:
        """All five, by role."""
        roles = (Role.ROOT, Role.PLATFORM_CA, Role.PROCESSOR_CA, Role.PCK, Role.TCB_SIGNING)
        return dict(zip(roles, self.stored or self._made(), strict=True))

    def _made(self) -> tuple[x509.Certificate, ...]:
        validity = Validity(BEGIN, self.end)
        root_crl = self.base_url + ROOT_CRL_PATH
        pck_crl = f"{self.base_url}/sgx/certification/v4/pckcrl?ca={self.ca_type}&encoding=der"
        root = self.issuer(Role.ROOT)

        def one(role: Role, issuer: Issuer, crl_url: str, **more: Any) -> x509.Certificate:
            number = serial_number(self.seed, role.value)
            return certificate(role, self.key(role.value), issuer, validity, serial=number, crl_url=crl_url, **more)

        return (
            one(Role.ROOT, root, root_crl, path_length=1),
            one(Role.PLATFORM_CA, root, root_crl, path_length=0),
            one(Role.PROCESSOR_CA, root, root_crl, path_length=0),
            one(Role.PCK, self.issuer(_CA_ROLES[self.ca_type]), pck_crl, sgx=self._sgx_extension()),
            one(Role.TCB_SIGNING, root, root_crl),
        )

    def _sgx_extension(self) -> bytes:
        return sgx_extension(
            ppid=self.secret("PPID", 16),
            cpusvn=CPUSVN,
            pcesvn=PCESVN,
            pceid=PCEID,
            fmspc=FMSPC,
            platform_instance=self.secret("platform instance", 16) if self.ca_type == "platform" else None,
        )

    def issuer(self, role: Role) -> Issuer:
        """Return key and name of a CA."""
        return Issuer(self.key(role.value), subject(role))

    def ca_role(self, ca_type: str | None = None) -> Role:
        """Return the CA of that type, not given: the one that certifies the platform."""
        return _CA_ROLES[ca_type or self.ca_type]

    @property
    def root(self) -> bytes:
        """The root certificate, in DER."""
        return self.certificates[Role.ROOT].public_bytes(Encoding.DER)

    def chain(self, *roles: Role) -> bytes:
        """Return certificates in PEM, one after the other."""
        return b"".join(self.certificates[role].public_bytes(Encoding.PEM) for role in roles)

    @property
    def pck_chain(self) -> bytes:
        """PCK certificate, its CA, the root: in PEM."""
        return self.chain(Role.PCK, self.ca_role(), Role.ROOT)

    def as_json(self) -> dict[str, Any]:
        """Return what a person wants to know of it; no secrets."""
        folder = None if self.folder is None else str(self.folder)
        return {
            "folder": folder,
            "root_ca": None if self.folder is None else str(self.folder / ROOT_PEM),
            "root_ca_sha256": self.certificates[Role.ROOT].fingerprint(SHA256()).hex(),
            "ca": self.ca_type,
            "fmspc": FMSPC.hex().upper(),
            "ppid_sha256": hashlib.sha256(self.secret("PPID", 16)).hexdigest(),
            "collateral_service": self.base_url,
            "valid_from": f"{BEGIN.isoformat()}Z",
            "valid_until": f"{self.end.isoformat()}Z",
        }


def open_pki(folder: Path, new: Pki | None = None, now: datetime | None = None) -> Pki:
    """Return the PKI of a folder; made (``new``, or random) if the folder has none. Raises `PkiError`, `FolderError`.

    The folder then has the report key, too.
    """
    if not (folder / DESCRIPTION).exists():
        _refuse_foreign(folder)
        _write(folder, new or Pki.new())
    pki = _read(folder)
    if new is not None and replace(pki, folder=None, stored=()) != replace(new, folder=None, stored=()):
        raise PkiError(f"{folder} has another test PKI already: remove the folder first, or name another one")
    moment = now or datetime.now(UTC).replace(tzinfo=None)
    if moment > pki.end:
        raise PkiError(
            f"the test PKI in {folder} expired at {pki.end.isoformat()}Z: remove the folder, and it is made again"
        )
    report_key(folder, pki.report_key)
    keep(folder / ROOT_PEM, pki.chain(Role.ROOT))
    keep(folder / ROOT_DER, pki.root)
    return pki


def _write(folder: Path, pki: Pki) -> None:
    """Keep a PKI, unless another process was quicker."""
    made(folder)
    report_key(folder, pki.report_key)
    description = {
        "format": FORMAT,
        "note": "These are test keys. They protect nothing.",
        "seed": pki.seed.hex(),
        "ca": pki.ca_type,
        "port": pki.port,
        "valid_until": pki.end.isoformat(),
        "certificates": pki.chain(*pki.certificates).decode(),
    }
    write_once(folder / DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")


def keep(path: Path, content: bytes) -> None:
    """Have a file that follows from the description. Raises `FolderError`.

    A run that was killed may have left the folder without it.
    """
    try:
        if path.read_bytes() == content:
            return
        path.unlink()  # of a PKI whose description was removed
    except FileNotFoundError:
        pass
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {error.strerror}") from None
    write_once(path, content)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to put keys beside other people's files."""
    try:
        others = sorted(each.name for each in folder.iterdir() if each.name not in _OURS and each.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return  # `made` reports it
    except OSError as error:
        raise PkiError(f"the folder {folder} cannot be read: {error.strerror}") from None
    if others:
        raise PkiError(f"{folder} holds something else ({others[0]}): name an empty folder, or one that does not exist")


def _read(folder: Path) -> Pki:
    path = folder / DESCRIPTION
    try:
        with path.open("rb") as file:
            text = file.read(_SIZE_LIMIT)
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {error.strerror}") from None
    foreign = PkiError(f"{path} does not describe a test PKI of swtdx's: name another folder, or remove this one")
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise foreign
        pki = Pki(
            seed=bytes.fromhex(content["seed"]),
            ca_type=str(content["ca"]),
            port=int(content["port"]),
            end=datetime.fromisoformat(content["valid_until"]),
            folder=folder,
            stored=tuple(x509.load_pem_x509_certificates(str(content["certificates"]).encode())),
        )
        belongs = all(each.public_key() == pki.key(role.value).public_key() for role, each in pki.certificates.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        raise foreign from None
    if not belongs or pki.ca_type not in CA_TYPES or not 0 < pki.port < 1 << 16 or len(pki.seed) != 32:
        raise PkiError(f"{path}: its keys and its certificates do not belong together")
    return pki
