# SPDX-License-Identifier: GPL-2.0-or-later
"""The test PKI: the form that verifiers insist on, names that say what it is, and a folder that keeps it."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from swtdx.attest.verify import INTEL_ROOT_SHA256
from swtdx.quoting.certificates import Role
from swtdx.quoting.machine_folder import FolderError, default_folder, report_key
from swtdx.quoting.pki import Pki, PkiError, open_pki

CA_EXTENSIONS = ["2.5.29.35", "2.5.29.31", "2.5.29.14", "2.5.29.15", "2.5.29.19"]
SGX = "1.2.840.113741.1.13.1"


@pytest.mark.parametrize("role", Role)
def test_certificates_have_the_extensions_of_intels_in_their_order(role: Role, pki: Pki) -> None:
    certificate = pki.certificates[role]
    wanted = [*CA_EXTENSIONS, *([SGX] if role is Role.PCK else [])]
    assert [each.oid.dotted_string for each in certificate.extensions] == wanted
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    depth = {Role.ROOT: 1, Role.PLATFORM_CA: 0, Role.PROCESSOR_CA: 0}.get(role)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (
        True,
        depth is not None,
        depth,
    )
    assert certificate.serial_number.bit_length() <= 159


@pytest.mark.parametrize("role", Role)
def test_all_that_verifiers_leave_free_says_that_it_is_a_test(role: Role, pki: Pki) -> None:
    certificate = pki.certificates[role]
    for name in (certificate.subject, certificate.issuer):
        (organization,) = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        (locality,) = name.get_attributes_for_oid(NameOID.LOCALITY_NAME)
        assert "swtdx test" in str(organization.value)
        assert "swtdx test" in str(locality.value)
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (point,) = [name.value for each in points for name in each.full_name or ()]
    assert point.startswith("http://127.0.0.1:")
    (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common.value == role.value  # on which Intel's verifier and go-tdx-guest insist


def test_the_root_is_not_intels(pki: Pki) -> None:
    root = pki.certificates[Role.ROOT]
    assert root.fingerprint(SHA256()).hex() != INTEL_ROOT_SHA256
    assert hashlib.sha256(pki.root).hexdigest() != INTEL_ROOT_SHA256


def test_issuers_signed_what_names_them(pki: Pki) -> None:
    made = pki.certificates
    for role, issuer in (
        (Role.ROOT, Role.ROOT),
        (Role.PLATFORM_CA, Role.ROOT),
        (Role.PROCESSOR_CA, Role.ROOT),
        (Role.TCB_SIGNING, Role.ROOT),
        (Role.PCK, Role.PLATFORM_CA),
    ):
        made[role].verify_directly_issued_by(made[issuer])


def test_a_seed_gives_the_same_keys_and_no_seed_others() -> None:
    one, same, other = Pki.new("a"), Pki.new("a"), Pki.new()
    assert one.key("x").private_numbers() == same.key("x").private_numbers()
    assert one.key("x").private_numbers() != other.key("x").private_numbers()
    assert one.key("x").private_numbers() != one.key("y").private_numbers()
    assert len({Pki.new().seed for _ in range(4)}) == 4


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    made = open_pki(tmp_path / "a" / "b", Pki.new("kept"))
    again = open_pki(tmp_path / "a" / "b")
    assert again.root == made.root
    assert again.pck_chain == made.pck_chain
    assert made.folder is not None
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((made.folder / "pki.json").stat().st_mode) == 0o600
    assert x509.load_pem_x509_certificate((made.folder / "root-ca.pem").read_bytes()) == made.certificates[Role.ROOT]
    assert (made.folder / "root-ca.der").read_bytes() == made.root
    assert report_key(made.folder) == made.report_key
    assert open_pki(made.folder, Pki.new("kept")).root == made.root


def test_a_folder_of_a_run_that_was_killed_is_completed(tmp_path: Path) -> None:
    """Whichever file was the last one written, the next run writes the others."""
    root = open_pki(tmp_path, Pki.new("killed")).root
    (tmp_path / "root-ca.pem").unlink()
    (tmp_path / "root-ca.der").unlink()
    assert open_pki(tmp_path).root == root
    assert (
        x509.load_pem_x509_certificate((tmp_path / "root-ca.pem").read_bytes()).fingerprint(SHA256())
        == hashlib.sha256(root).digest()
    )
    assert (tmp_path / "root-ca.der").read_bytes() == root


def test_the_root_files_are_those_of_the_description(tmp_path: Path) -> None:
    open_pki(tmp_path, Pki.new("first"))
    (tmp_path / "pki.json").unlink()
    second = open_pki(tmp_path, Pki.new("second"))
    assert (tmp_path / "root-ca.der").read_bytes() == second.root != Pki.new("first").root
    assert (tmp_path / "root-ca.pem").read_bytes() == second.chain(Role.ROOT)


def test_two_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    roots: list[bytes] = []
    keys: list[bytes] = []

    def make() -> None:
        roots.append(open_pki(tmp_path / "pki").root)
        keys.append(report_key(tmp_path / "pki"))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(roots) == len(keys) == 6
    assert (len(set(roots)), len(set(keys))) == (1, 1)
    assert not [path for path in (tmp_path / "pki").iterdir() if path.name.startswith(".")]


def test_a_report_key_that_was_there_first_stays(tmp_path: Path) -> None:
    key = report_key(tmp_path)
    open_pki(tmp_path, Pki.new("later"))
    assert report_key(tmp_path) == key != Pki.new("later").report_key


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": "another"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "swtdx test PKI, version 1"}',
    ],
)
def test_a_foreign_description_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pki.json").write_bytes(content)
    with pytest.raises(PkiError, match=r"does not describe a test PKI of swtdx's"):
        open_pki(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pki.json"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("seed", "00" * 32),
        ("seed", "xy"),
        ("seed", 5),
        ("ca", "root"),
        ("port", 0),
        ("port", "x"),
        ("valid_until", "never"),
        ("certificates", ""),
    ],
)
def test_a_damaged_description_is_refused(member: str, value: object, tmp_path: Path) -> None:
    open_pki(tmp_path, Pki.new("damaged"))
    content = json.loads((tmp_path / "pki.json").read_text())
    (tmp_path / "pki.json").write_text(json.dumps(content | {member: value}))
    with pytest.raises(PkiError):
        open_pki(tmp_path)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(PkiError, match=r"holds something else \(letter.txt\)"):
        open_pki(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_expired_one_is_named(tmp_path: Path) -> None:
    open_pki(tmp_path, Pki.new("old", end=datetime(2021, 1, 1)), now=datetime(2020, 6, 1))
    with pytest.raises(PkiError, match="expired at 2021-01-01T00:00:00Z"):
        open_pki(tmp_path)


def test_another_one_in_its_place_is_refused(tmp_path: Path) -> None:
    open_pki(tmp_path, Pki.new("one"))
    with pytest.raises(PkiError, match="another test PKI already"):
        open_pki(tmp_path, Pki.new("two"))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file"):
        open_pki(tmp_path / "file")
    with pytest.raises(FolderError, match="file"):
        report_key(tmp_path / "file" / "below")


@pytest.mark.parametrize("content", ["", "00", "xy" * 32, "00" * 33])
def test_a_damaged_report_key_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.key").write_text(content)
    with pytest.raises(FolderError, match="is not a report key"):
        report_key(tmp_path)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWTDX_PKI", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.delenv("SWTDX_PKI")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_folder() == Path("/state/swtdx/pki")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/the-home")
    assert default_folder() == Path("/the-home/.local/state/swtdx/pki")
