# SPDX-License-Identifier: GPL-2.0-or-later
"""MRTD and RTMRs against published vectors (restated) and an independent computation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swtdx.seam import report
from swtdx.seam.identity import Identity
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.td import Td
from testing.seam.fake_host import GuestStep, Host
from tests.conftest import KnownFirmware

# Source of the digests: reference vectors of the module's facts, restated (tests/published compares them).
MRTD_NO_PAGES = "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"
MRTD_PAGE_0 = "8f3e9a8aca6784eab874f7aa4dda5d49104a88047f1f86695ef2a88f5691a90e34aac48ce45ffa1f5a23c7d62980d570"
MRTD_PAGE_TOP = "8d411e4377a0da03b249acbe9a7939b44b4483b5a6c81341f00d60c1f417257f9a5c1c03f2f223c59f010f4933f238b8"
MRTD_EXTENDED = "3796b423cf484928f5a91b2e3bb5b0b686dbcb5d0dcb336919cd44feb3b7160487d97c5c1f1039410a4f3d4cff7b68cf"
RTMR_ONES = "b2cdfa15c3fdc5772b099d6e1a5acb8a2eb8b94adb63393a7ae3068c8b4bd8cdad83d6eb649d8178d0fe7a8135d0a003"
TEE_INFO_OF_ZEROS = "d83d9a38c238ef3b7bc207bbea3287a8b37b37e731480a8d240d2a6953086c5ecbdf7ee4c72fec3a3e9d4a87f4f9b4fe"
VECTORS = {MRTD_NO_PAGES, MRTD_PAGE_0, MRTD_PAGE_TOP, MRTD_EXTENDED, RTMR_ONES, TEE_INFO_OF_ZEROS}
TOP = 0xFFFFF000
PATTERN = bytes((7 * i + i // 256) & 255 for i in range(4096))


def finalized(host: Host, td: Any) -> Any:
    host.vcpu(td, x2apic_id=0)
    host.ok("TDH.MR.FINALIZE", rcx=td)
    words = [host.ok("TDH.MNG.RD", rcx=td, rdx=0x1310000300000000 | n).r8 for n in range(6)]
    return b"".join(word.to_bytes(8, "little") for word in words).hex()


def extend(host: Host, td: Any, gpa: int) -> None:
    host.ok("TDH.MR.EXTEND", rcx=gpa, rdx=td)


def test_no_pages(host: Host) -> None:
    assert finalized(host, host.build()) == MRTD_NO_PAGES


@pytest.mark.parametrize(("gpa", "digest"), [(0, MRTD_PAGE_0), (TOP, MRTD_PAGE_TOP)])
def test_one_page_whose_content_is_not_measured(host: Host, gpa: int, digest: int) -> None:
    td = host.build()
    host.add(td, gpa, PATTERN)
    assert finalized(host, td) == digest


def test_a_page_and_its_sixteen_chunks(host: Host) -> None:
    td = host.build()
    host.add(td, TOP, PATTERN)
    for offset in range(0, 4096, 256):
        extend(host, td, TOP + offset)
    assert finalized(host, td) == MRTD_EXTENDED


def test_the_hash_of_an_empty_tdinfo() -> None:
    td = SimpleNamespace(attributes=0, xfam=0, rtmr=[bytes(48)] * 4)
    td.mrtd = td.mrconfigid = td.mrowner = td.mrownerconfig = td.servtd_hash = bytes(48)
    assert report.make(cast(Td, td), Identity(), bytes(64))[80:128].hex() == TEE_INFO_OF_ZEROS


@pytest.mark.parametrize("order", ["per_page", "per_region"])
def test_debian_12s_firmware_in_either_order(host: Host, known_firmware: KnownFirmware, order: str) -> None:
    """By SEAMCALLs, from the sections that the published vector lists."""
    image, known = known_firmware
    td = host.build()
    for section in known["sections"]:
        start, size = section["data_offset"], section["mem_size"]
        data = image[start : start + section["raw_size"]].ljust(size, b"\0")
        measured = section["attributes"] & 1
        for offset in range(0, size, 4096):
            host.add(td, section["gpa"] + offset, data[offset : offset + 4096])
            for chunk in range(0, 4096, 256) if measured and order == "per_page" else ():
                extend(host, td, section["gpa"] + offset + chunk)
        for offset in range(0, size, 256) if measured and order == "per_region" else ():
            extend(host, td, section["gpa"] + offset)
    assert finalized(host, td) == known[f"mrtd_{order}"]
    assert known[f"mrtd_{order}"].startswith({"per_page": "4c7206f0", "per_region": "acccbcc8"}[order])


def predicted(pages: Any, *, page_by_page: Any) -> Any:
    """The same by other means: each block built from its text, hashed at the end."""
    adds = {gpa: [b"MEM.PAGE.ADD" + bytes(4) + gpa.to_bytes(8, "little") + bytes(104)] for gpa in pages}
    extends = {
        gpa: [
            b"MR.EXTEND" + bytes(7) + (gpa + o).to_bytes(8, "little") + bytes(104) + data[o : o + 256]
            for o in range(0, 4096, 256)
        ]
        for gpa, data in pages.items()
    }
    if page_by_page:
        stream = [block for gpa in pages for block in adds[gpa] + extends[gpa]]
    else:
        stream = [block for gpa in pages for block in adds[gpa]] + [block for gpa in pages for block in extends[gpa]]
    return hashlib.sha384(b"".join(stream)).hexdigest()


@pytest.mark.parametrize("page_by_page", [True, False])
def test_the_order_of_calls_decides(host: Host, page_by_page: bool) -> None:
    pages = {0x100000 + 4096 * n: hashlib.sha512(bytes([n])).digest() * 64 for n in range(3)}
    td = host.build()
    for gpa, content in pages.items():
        host.add(td, gpa, content)
        if page_by_page:
            for offset in range(0, 4096, 256):
                extend(host, td, gpa + offset)
    if not page_by_page:
        for gpa in pages:
            for offset in range(0, 4096, 256):
                extend(host, td, gpa + offset)
    assert finalized(host, td) == predicted(pages, page_by_page=page_by_page)


def test_tables_and_removal_are_not_measured(host: Host) -> None:
    td = host.build()
    host.tables(td, 0x4000_0000)
    host.augment(td, 0x5000_0000)
    assert finalized(host, td) == MRTD_NO_PAGES


@pytest.mark.parametrize(
    ("rcx", "status"),
    [
        (TOP + 128, StatusCode.OPERAND_INVALID | Operand.RCX),
        (1 << 47, StatusCode.OPERAND_INVALID | Operand.RCX),
        (0, StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX),
        (TOP - 4096, StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX),
    ],
)
def test_extend_operand(host: Host, rcx: int, status: int) -> None:
    td = host.build()
    host.add(td, TOP)
    assert host.call("TDH.MR.EXTEND", rcx=rcx, rdx=td)[0] == status


def test_extend_of_a_pending_page_is_a_failed_walk(host: Host) -> None:
    """The entry maps nothing that could be accessed, and is shown."""
    td = host.build()
    host.augment(td, TOP)
    status, args = host.call("TDH.MR.EXTEND", rcx=TOP, rdx=td)
    assert status == StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX
    assert args.rcx


def test_finalize_needs_a_virtual_cpu(host: Host) -> None:
    td = host.build()
    assert host.call("TDH.MR.FINALIZE", rcx=td)[0] == StatusCode.NO_VCPUS


def test_after_finalize_nothing_is_measured(host: Host) -> None:
    tdr, *_ = host.runnable()
    assert host.call("TDH.MR.EXTEND", rcx=0, rdx=tdr)[0] == StatusCode.OP_STATE_INCORRECT
    assert host.call("TDH.MR.FINALIZE", rcx=tdr)[0] == StatusCode.OP_STATE_INCORRECT


# --- RTMR -------------------------------------------------------------------------------------------------------------


def test_rtmr_extension(host: Host, call: Callable[..., GuestStep]) -> None:
    td = host.build()
    host.add(td, TOP, b"\x01" * 48 + bytes(4048))
    tdvpr = host.vcpu(td, x2apic_id=0)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=td)
    host.guest(tdvpr, context, call(2, rcx=TOP, rdx=3))
    assert context.gpr[0] == 0
    registers = host.module.tds[td].rtmr
    assert registers[3].hex() == RTMR_ONES
    assert registers[:3] == [bytes(48)] * 3


@pytest.mark.parametrize(
    ("rcx", "rdx", "status"),
    [(TOP + 32, 0, 1), (TOP | 1 << 47, 0, 1), (TOP, 4, 2)],
)
def test_rtmr_operands(host: Host, call: Callable[..., GuestStep], rcx: int, rdx: int, status: int) -> None:
    td = host.build()
    host.add(td, TOP)
    tdvpr = host.vcpu(td, x2apic_id=0)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=td)
    host.guest(tdvpr, context, call(2, rcx=rcx, rdx=rdx))
    assert context.gpr[0] == StatusCode.OPERAND_INVALID | status
    assert host.module.tds[td].rtmr == [bytes(48)] * 4
