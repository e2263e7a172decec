# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file is that was given as something else, so that a refusal can name it and the command to use.

Each kind is recognised by what its specification fixes: a signature, a version with a type, a size.  This is for
messages only; nothing is parsed by what is guessed here.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

TDREPORT_SIZE = 1024
_HEAD = 4096
_MAXIMUM_TOKEN = 1 << 20
_SNP_REPORT_SIZE = 1184
_SNP_VERSIONS = (1, 2, 3, 4, 5)


class Kind(NamedTuple):
    """A kind of evidence: ``name`` with its article, and the command that reads it (empty: none)."""

    name: str
    command: str = ""

    def sentence(self) -> str:
        """``this is a TDREPORT: read it with swtdx report parse``."""
        return f"this is {self.name}" + (f": read it with {self.command}" if self.command else "")


TD_QUOTE = Kind("a quote of a TD", "swtdx quote parse")
SGX_QUOTE = Kind("an SGX quote, not one of a TD")
FIRMWARE = Kind("a firmware image", "swtdx inspect")


def kind_of(data: bytes) -> Kind | None:
    """Return what ``data`` are, as bytes; None if they are not recognised.

    >>> kind_of(bytes([0x81]) + bytes(1023)).name
    'a TDREPORT'
    >>> kind_of(b"\\x7fELF" + bytes(60)).name
    'an ELF file'
    """
    for matches, kind in _KINDS:
        if matches(data):
            return kind
    return None


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def is_tdreport(data: bytes) -> bool:
    """Whether ``data`` look like a TDREPORT."""
    return len(data) == TDREPORT_SIZE and data[0] == 0x81 and not any(data[4:16])


def is_td_quote(data: bytes) -> bool:
    """Whether ``data`` look like a quote of a TD."""
    return len(data) > 600 and _u16(data, 0) in (4, 5) and _u32(data, 4) == 0x81


def _is_sgx_quote(data: bytes) -> bool:
    version = _u16(data, 0)
    enclave = version == 3 or (version in (4, 5) and _u32(data, 4) == 0)
    return len(data) > 432 and enclave and _u16(data, 2) in (2, 3)


def _is_sgx_report(data: bytes) -> bool:
    return len(data) == 432 and any(data[64:96])


def _is_snp_report(data: bytes) -> bool:
    return len(data) >= _SNP_REPORT_SIZE and _u32(data, 0) in _SNP_VERSIONS and _u32(data, 0x34) == 1


def _is_ccel_table(data: bytes) -> bool:
    return data[:4] == b"CCEL"


def _is_acpi_table(data: bytes) -> bool:
    """A signature, and behind it the size of the table, FACS of 64 bytes first where several lie together."""
    return data[:4].isalpha() and data[:4].isupper() and 36 <= _u32(data, 4) <= len(data)


def _is_event_log(data: bytes) -> bool:
    return len(data) > 64 and _u32(data, 4) == 3 and data[32:47] == b"Spec ID Event03"


def _is_old_event_log(data: bytes) -> bool:
    return len(data) > 32 and _u32(data, 0) < 24 and _u32(data, 4) == 3 and data[32:44] == b"Spec ID Even"


def _is_nitro(data: bytes) -> bool:
    """COSE_Sign1, tagged or not, whose protected header names ES384."""
    return data.removeprefix(b"\xd2")[:6] == bytes.fromhex("8444a1013822")


def _is_web_token(data: bytes) -> bool:
    return re.fullmatch(rb"eyJ[\w-]+\.[\w-]+\.[\w-]*\s*", data[:_MAXIMUM_TOKEN]) is not None


def _is_ima_text(data: bytes) -> bool:
    return re.match(rb"\d{1,2} [0-9a-f]{40,128} (?:ima|evm|d-)[\w|-]* ", data) is not None


def _is_ima_binary(data: bytes) -> bool:
    return (
        len(data) > 40 and _u32(data, 0) in (2, 3, 10) and any(name in data[20:100] for name in (b"ima-", b"evm-sig"))
    )


def is_aael(data: bytes) -> bool:
    """Whether ``data`` are the attestation agent's log as text."""
    return data[:8] == b"INIT sha"


def _is_json_log(data: bytes) -> bool:
    head = data[:_HEAD]
    return head.lstrip()[:1] in (b"[", b"{") and b'"event_type"' in head and b'"imr"' in head


def _is_collateral(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{" and any(name in data for name in (b'"tcb_info', b'"tcbInfo', b'"enclaveIdentity'))


def _is_record(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{" and b'"mrtd_order"' in data


def _is_firmware(data: bytes) -> bool:
    return data[40:44] == b"_FVH" or (len(data) >= 1 << 16 and b"_FVH" in data[: 1 << 20])


def _is_kernel(data: bytes) -> bool:
    return data[0x202:0x206] == b"HdrS"


def _is_hcl(data: bytes) -> bool:
    return data[:4] == b"HCLA"


def _is_certificates(data: bytes) -> bool:
    return data.lstrip()[:27] == b"-----BEGIN CERTIFICATE-----"


def _is_tpm_quote(data: bytes) -> bool:
    return data[:4] == struct.pack(">I", 0xFF544347) or data[2:6] == struct.pack(">I", 0xFF544347)


_KINDS = (
    (is_tdreport, Kind("a TDREPORT", "swtdx report parse")),
    (is_td_quote, TD_QUOTE),
    (_is_sgx_quote, SGX_QUOTE),
    (_is_sgx_report, Kind("an SGX report, not evidence of a TD")),
    (_is_snp_report, Kind("an AMD SEV-SNP report, not evidence of a TD")),
    (_is_hcl, Kind("an Azure HCL report", "swtdx report parse")),
    (_is_ccel_table, Kind("the ACPI table CCEL, not the log", "swtdx replay LOG --table FILE")),
    (_is_event_log, Kind("an event log", "swtdx replay")),
    (_is_old_event_log, Kind("an event log of a TPM with SHA-1 only, not of a TD")),
    (_is_nitro, Kind("an attestation document of AWS Nitro, not of a TD")),
    (_is_web_token, Kind("a JSON Web Token, such as the result of an attestation service, not evidence")),
    (_is_ima_text, Kind("Linux's IMA log", "swtdx replay LOG --ima FILE")),
    (_is_ima_binary, Kind("Linux's IMA log", "swtdx replay LOG --ima FILE")),
    (is_aael, Kind("the event log of the attestation agent (AAEL)", "swtdx replay")),
    (_is_json_log, Kind("an event log", "swtdx replay")),
    (_is_collateral, Kind("collateral", "swtdx quote verify QUOTE --collateral FILE")),
    (_is_record, Kind("the record of a launch", "swtdx diff")),
    (_is_tpm_quote, Kind("a quote of a TPM, not of a TD")),
    (_is_kernel, Kind("a Linux kernel", "swtdx measure none --kernel FILE")),
    (_is_firmware, FIRMWARE),
    (_is_certificates, Kind("a certificate chain in PEM")),
    (lambda data: data[:4] == b"\x7fELF", Kind("an ELF file")),
    (lambda data: data[:2] == b"MZ", Kind("a PE file (an EFI application)")),
    (lambda data: data[:2] == b"\x1f\x8b", Kind("a gzip file")),
    (lambda data: data[:6] == b"\xfd7zXZ\0", Kind("an xz file")),
    (lambda data: data[:4] == b"PK\x03\x04", Kind("a zip file")),
    (lambda data: data[:4] == b"QFI\xfb", Kind("a qcow2 image")),
    (lambda data: data[:6] in (b"070701", b"070702"), Kind("an initrd (a cpio archive)")),
    (lambda data: data[:4] == b"\x28\xb5\x2f\xfd", Kind("a zstd file")),
    (lambda data: data[512:520] == b"EFI PART", Kind("the image of a disk")),
    (_is_acpi_table, Kind("an ACPI table")),
)
"""In order: the more specific first."""


def misplaced(data: bytes, *expected: str) -> str:
    """Return ``; this is ...`` for a message about ``data`` that could not be read, or nothing if it is not known.

    A kind whose command is among ``expected`` is the one that was asked for, and is left out.
    """
    kind = kind_of(data)
    return "" if kind is None or kind.command in expected else f"; {kind.sentence()}"
