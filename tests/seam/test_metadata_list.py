# SPDX-License-Identifier: GPL-2.0-or-later
"""SYS.RDALL for host and guest: the list holds what SYS.RD reads field by field."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import metadata, metadata_list
from swtdx.seam.metadata import NONE, Accessor
from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Gpr
from testing.seam.fake_host import GuestStep, Host

GPA = 0x8000_0000
NUM_PKGS = 0x0000_0002_0000_0000


def parse(data: Any) -> Any:
    """{field id: value} of a metadata list, by the public format."""
    used, sequences, zero = struct.unpack_from("<HHI", data)
    assert zero == 0
    found, at = {}, 8
    for _ in range(sequences):
        header = struct.unpack_from("<Q", data, at)[0]
        at += 8
        count = ((header >> 34 & 0xF) + 1) * ((header >> 38 & 0x1FF) + 1)
        start = header & ~(0x1FFF << 34)
        for element, value in enumerate(struct.unpack_from(f"<{count}Q", data, at)):
            found[start + element] = value
        at += 8 * count
    assert at == used
    return found


def one_by_one(read: Any) -> Any:
    """{field id: value} by SYS.RD from the first id on."""
    identifier, found = read(NONE)[0], {}
    while identifier != NONE:
        following, value = read(identifier)
        found[identifier] = value
        identifier = following
    return found


def test_the_list_holds_what_sys_rd_reads(host: Host) -> None:
    def read(identifier: Any) -> Any:
        _, args = host.call("TDH.SYS.RD", rdx=identifier)
        return args.rdx, args.r8

    found: dict[int, int] = {}
    wanted, start = one_by_one(read), NONE
    page = host.page()
    while True:
        status, args = host.call("TDH.SYS.RDALL", rdx=page, r8=start)
        found |= parse(host.memory.raw[page : page + 4096].tobytes())
        start = args.r8
        if status == 0:
            break
        assert status == StatusCode.METADATA_LIST_OVERFLOW
    assert start == NONE
    assert found == wanted


def test_the_guest_sees_its_own(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    hpa = host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA), call(12, rdx=GPA, r8=NONE))
    assert (context.gpr[Gpr.RAX], context.gpr[Gpr.R8]) == (0, NONE)
    found = parse(host.memory.raw[hpa : hpa + 4096].tobytes())

    def read(identifier: Any) -> Any:
        host.guest(tdvpr, context, call(11, rdx=identifier))
        return context.gpr[Gpr.RDX], context.gpr[Gpr.R8]

    assert found == one_by_one(read)
    assert found[0x0800000200000000] == 0x8086


def test_the_guest_is_refused(host: Host, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable(attributes=1 << 28)
    for gpa in (GPA + 8, 1 << 47):
        host.guest(tdvpr, context, call(12, rdx=gpa, r8=NONE))
        assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RDX
    context.queue(call(12, rdx=GPA, r8=NONE))
    assert host.enter(tdvpr)[0] == 48  # not mapped


@pytest.mark.parametrize(
    "start", [NUM_PKGS | 1 << 34, NUM_PKGS + 0x99, NUM_PKGS ^ 3 << 32, 0x3F00_0003_0000_0000, 1 << 24]
)
def test_where_to_start_must_be_a_field(host: Host, start: int) -> None:
    status, args = host.call("TDH.SYS.RDALL", rdx=host.page(), r8=start)
    assert status == StatusCode.METADATA_FIELD_ID_INCORRECT
    assert args.r8 == NONE


def test_the_page_must_be_shared_and_aligned(cold: Host) -> None:
    assert cold.call("TDH.SYS.RDALL", rdx=0x100_0000, r8=NONE)[0] == StatusCode.SYS_LP_INIT_NOT_DONE
    cold.bring_up()
    for page in (0x100_0008, 0x100_0000 | 33 << 46):
        assert cold.call("TDH.SYS.RDALL", rdx=page, r8=NONE)[0] == StatusCode.OPERAND_INVALID | Operand.RDX


@pytest.mark.parametrize("size", [64, 200, 1000])
def test_a_list_in_pieces_is_the_same_list(size: int) -> None:
    table = metadata.system_fields()

    def read(field: Any, element: Any) -> Any:
        return hash((field.name, element)) & 0xFFFF_FFFF_FFFF_FFFF

    whole, rest = metadata_list.dump(table, NONE, Accessor.PRODUCTION, 1 << 15, read)
    assert rest == NONE
    found: dict[int, int] = {}
    start = NONE
    while True:
        piece, start = metadata_list.dump(table, start, Accessor.PRODUCTION, size, read)
        assert len(piece) <= size
        found |= parse(piece)
        if start == NONE:
            break
    assert found == parse(whole)
