# SPDX-License-Identifier: GPL-2.0-or-later
"""TDCALL leaf functions other than VMCALL and ACCEPT: information, CPUID #VE, metadata, reports."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tdg.tdcall import LEAVES, TDCALL_NUMBERS
from testing.seam.fake_host import FakeContext, GuestStep, Host

INVALID = StatusCode.OPERAND_INVALID
NONE = (1 << 64) - 1
BUFFER = 0x10_0000
MISSING = sorted(set(TDCALL_NUMBERS.values()) - {fn & 0xFFFF for fn in LEAVES} - {0})


@pytest.fixture
def td(host: Host) -> Any:
    """A TD with 4 KiB of private memory at BUFFER: (TDR, TDVPR, context, HPA)."""
    tdr = host.build(attributes=0, config_flags=6)  # FLEXIBLE_PENDING_VE, NO_RBP_MOD
    hpa = host.add(tdr, BUFFER, bytes(range(256)) * 16)
    tdvpr = host.vcpu(tdr, x2apic_id=0)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    return tdr, tdvpr, context, hpa


@pytest.mark.parametrize("rax", [*MISSING, 0x1FF, 1 << 16 | 1, 1 << 24 | 1, 1 << 63 | 1, 2 << 16 | 7])
def test_unknown_leaves_versions_and_reserved_bits(host: Host, td: Any, rax: Any) -> None:
    _, tdvpr, context, _ = td

    def step(guest: FakeContext) -> int:
        guest.gpr[0] = rax
        return 77

    host.guest(tdvpr, context, step)
    assert context.gpr[0] == INVALID | Operand.RAX


def test_vp_info(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(1, r11=5))
    td = host.module.tds[tdr]
    assert [context.gpr[n] for n in (0, 1, 2, 8, 9, 10, 11)] == [0, 48, td.attributes, 1 | 4 << 32, 0, 1, 0]


@pytest.mark.parametrize(
    ("flags", "cpl", "raises"), [(0, 0, False), (1, 0, True), (1, 3, False), (2, 0, False), (2, 3, True), (3, 3, True)]
)
def test_cpuidve_set(host: Host, td: Any, call: Callable[..., GuestStep], flags: int, cpl: int, raises: bool) -> None:
    _, tdvpr, context, _ = td

    def cpuid(guest: FakeContext) -> int:
        guest.segments[2] = (0, 0, 0xFFFFFFFF, 0xC093 | cpl << 5)
        guest.gpr[0] = 0
        return 10

    host.guest(tdvpr, context, call(5, rcx=flags), cpuid)
    assert (context.injected != []) == raises


def test_cpuidve_set_operand(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(5, rcx=4))
    assert context.gpr[0] == INVALID | Operand.RCX


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0x9010000200000001, 1),  # NUM_VCPUS
        (0x1110000200000002, 4),  # MAX_VCPUS
        (0x1110000300000001, 3),  # XFAM
        (0x111000010000000C, 40),  # TSC_FREQUENCY
        (0x9110000300000016, 6),  # CONFIG_FLAGS
        (0x9110000000000019, 1),  # TOPOLOGY_ENUM_CONFIGURED
        (0x1310000300000010, 0x1111111111111111),  # MRCONFIGID
    ],
)
def test_vm_rd(host: Host, td: Any, call: Callable[..., GuestStep], field: int, value: int) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(7, rcx=0, rdx=field))
    assert (context.gpr[0], context.gpr[8]) == (0, value)


def test_vm_rd_of_the_hosts_fields(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(7, rdx=0x8010000300000004, r8=5))  # CHLDCNT
    assert (context.gpr[0], context.gpr[8]) == (StatusCode.METADATA_FIELD_NOT_READABLE, 0)
    host.guest(tdvpr, context, call(7, rcx=1, rdx=0x1110000300000001))
    assert context.gpr[0] == INVALID | Operand.RCX


def test_vm_rd_version_1_walks_what_the_guest_may_read(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(7, version=1, rdx=NONE))
    assert context.gpr[0] == StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT
    field, seen = context.gpr[2], []
    while field != NONE:
        seen.append(field)
        host.guest(tdvpr, context, call(7, version=1, rdx=field))
        assert context.gpr[0] == 0
        field = context.gpr[2]
    assert seen[0] == 0x8010000300000020  # TD_UUID
    assert 0x1310000300000040 + 23 in seen  # RTMR3, last word
    assert len(seen) == len(set(seen))


def test_vm_wr_td_ctls(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context, _ = td
    td_ctls = 0x9110000300000017
    host.guest(tdvpr, context, call(8, rdx=td_ctls, r8=7, r9=7))
    assert (context.gpr[0], context.gpr[8]) == (0, 0)
    assert host.module.tds[tdr].td_ctls == 7
    host.guest(tdvpr, context, call(8, rdx=td_ctls, r8=0, r9=2))
    assert (context.gpr[0], context.gpr[8]) == (0, 7)
    assert host.module.tds[tdr].td_ctls == 5
    host.guest(tdvpr, context, call(8, rdx=td_ctls, r8=8, r9=0xF))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    host.guest(tdvpr, context, call(8, rdx=0x1110000300000001, r8=0, r9=1))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_NOT_WRITABLE


def test_pending_ve_disable_is_fixed_without_the_flag(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=1 << 28, config_flags=4)
    host.guest(tdvpr, context, call(8, rdx=0x9110000300000017, r8=0, r9=1))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    assert host.module.tds[tdr].pending_ve_disable


def test_topology_needs_its_configuration(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr = host.build()
    tdvpr = host.vcpu(tdr)  # version 0
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    host.guest(tdvpr, context, call(8, rdx=0x9110000300000017, r8=2, r9=2))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_VALUE_NOT_VALID


def test_vp_rd_and_wr(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(9, rdx=0xA020000200000002))  # VCPU_INDEX
    assert (context.gpr[0], context.gpr[8]) == (0, 0)
    assert context.gpr[2] == 0xA020000000000007  # next: CPUID_SUPERVISOR_VE
    host.guest(tdvpr, context, call(10, rdx=0xA020000000000007, r8=1, r9=0xFF))
    assert context.gpr[0] == 0
    assert host.module.vcpus[tdvpr].cpuid_supervisor_ve
    host.guest(tdvpr, context, call(10, rdx=0xA020000200000002, r8=1, r9=0xFF))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_NOT_WRITABLE
    assert tdr in host.module.tds


def test_cpuid_control_of_one_leaf(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context, _ = td

    def cpuid(leaf: int) -> GuestStep:
        def step(guest: FakeContext) -> int:
            guest.gpr[0], guest.gpr[1] = leaf, 0
            return 10

        return step

    lookup_index_of_leaf_0 = 10
    host.guest(tdvpr, context, call(10, rdx=0xA120000000000000 + lookup_index_of_leaf_0, r8=1, r9=3), cpuid(0))
    assert context.injected == [(20, 3, None)]
    host.guest(tdvpr, context, call(3), cpuid(0x15))
    assert len(context.injected) == 1


def test_sys_rd_shows_the_guest_little(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(11, rdx=0x0800000200000000))
    assert (context.gpr[0], context.gpr[8]) == (0, 0x8086)
    assert context.gpr[2] == 0x0800000100000003  # MINOR_VERSION; the build stays hidden
    host.guest(tdvpr, context, call(11, rdx=0x9100000100000008))
    assert context.gpr[0] == StatusCode.METADATA_FIELD_NOT_READABLE


# --- reports ----------------------------------------------------------------------------------------------------------


def report(host: Host, td: Any, call: Callable[..., GuestStep], *, rdx: int = BUFFER, extra: Any = ()) -> Any:
    _, tdvpr, context, hpa = td
    host.guest(tdvpr, context, *extra, call(4, rcx=BUFFER + 0x800, rdx=rdx, r8=0))
    return context.gpr[0], host.memory.raw[hpa + 0x800 : hpa + 0xC00].tobytes()


def test_tdreport_layout_and_mac(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    """Offsets of TDREPORT_STRUCT; hashes and MAC recomputed here."""
    tdr, _, _, _ = td
    status, data = report(host, td, call, extra=[call(2, rcx=BUFFER, rdx=1)])
    assert status == 0
    module_td, identity = host.module.tds[tdr], host.module.identity
    assert data[:16] == bytes([0x81, 0, 0, 0]) + bytes(12)
    assert data[16:32] == identity.cpu_svn
    assert data[128:192] == bytes(range(64))
    assert data[192:224] == bytes(32)
    assert data[32:80] == hashlib.sha384(data[256:495]).digest()
    assert data[80:128] == hashlib.sha384(data[512:1024]).digest()
    assert data[224:256] == hmac.new(identity.report_key, data[:224], hashlib.sha256).digest()
    assert struct.unpack_from("<Q", data, 256) == (0x301FF,)
    assert data[264:280] == identity.tee_tcb_svn
    assert data[280:328] == identity.mrseam
    assert data[328:384] == bytes(56)
    assert data[400:512] == bytes(112)
    assert struct.unpack_from("<QQ", data, 512) == (module_td.attributes, module_td.xfam)
    assert data[528:576] == module_td.mrtd
    assert data[576:720] == b"\x11" * 48 + b"\x22" * 48 + b"\x33" * 48
    assert data[768:816] == hashlib.sha384(bytes(48) + bytes(range(48))).digest()
    assert data[720:768] + data[816:912] == bytes(144)
    assert data[912:] == bytes(112)


def test_a_report_is_verified_only_where_it_was_made(
    host: Host, td: Any, call: Callable[..., GuestStep], make_host: Callable[..., Host]
) -> None:
    tdr, tdvpr, context, hpa = td
    _, data = report(host, td, call)
    host.guest(tdvpr, context, call(22, rcx=BUFFER + 0x800))
    assert context.gpr[0] == 0
    host.memory.raw[hpa + 0x800 + 130] ^= 1
    host.guest(tdvpr, context, call(22, rcx=BUFFER + 0x800))
    assert context.gpr[0] == StatusCode.INVALID_REPORTMACSTRUCT
    other = make_host().module.identity
    assert other.report_key != host.module.identity.report_key
    assert other.mrseam == host.module.identity.mrseam
    assert tdr in host.module.tds
    assert data


@pytest.mark.parametrize(
    ("number", "registers"),
    [
        (2, {"rcx": BUFFER, "rdx": 0}),
        (4, {"rcx": BUFFER, "rdx": BUFFER, "r8": 0}),
        (22, {"rcx": BUFFER}),
        (12, {"rcx": 0, "rdx": BUFFER, "r8": NONE}),
    ],
    ids=["RTMR.EXTEND", "REPORT", "VERIFYREPORT", "SYS.RDALL"],
)
def test_a_page_whose_integrity_the_host_has_broken_ends_the_td(
    host: Host, td: Any, call: Callable[..., GuestStep], number: int, registers: dict[str, Any]
) -> None:
    """As when the guest touches it itself: a machine check, and the TD is not accessible any more."""
    tdr, tdvpr, context, hpa = td
    host.memory.write(hpa + 64, b"vandalism")
    context.queue(call(number, **registers))
    status, args = host.enter(tdvpr)
    assert (status, args.r9) == (StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE, 0x80000312)
    assert host.enter(tdvpr)[0] == StatusCode.TD_FATAL
    assert host.module.tds[tdr].rtmr == [bytes(48)] * 4


def test_report_data_from_shared_memory(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    """The walk of the host's own EPT: four levels made by hand."""
    _, tdvpr, _, _ = td
    shared = 1 << 47 | 0x1234_5000
    pages = [host.page() for _ in range(5)]
    for level, (table, below) in zip((3, 2, 1, 0), itertools.pairwise(pages), strict=True):
        index = shared >> 12 + 9 * level & 511
        host.memory.write(table + 8 * index, (below | 7 | (0x30 if level == 0 else 0)).to_bytes(8, "little"))
    host.memory.write(pages[4] + 64, b"\xaa" * 64)
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x203C, r8=pages[0], r9=0xFFFFFFFFFF000)
    status, data = report(host, td, call, rdx=shared + 64)
    assert status == 0
    assert data[128:192] == b"\xaa" * 64


@pytest.mark.parametrize(
    ("change", "operand"),
    [
        ({"rcx": BUFFER + 512}, 1),
        ({"rcx": 1 << 48}, 1),
        ({"rdx": BUFFER + 32}, 2),
        ({"r8": 1}, 8),
        ({"rdx": 1 << 48}, 2),
        ({"rdx": 3 << 47}, 2),
        ({"rcx": 1 << 48, "rdx": BUFFER + 32}, 2),
        ({"rcx": 1 << 48, "r8": 1}, 8),  # where the report goes comes last
    ],
)
def test_report_operands(
    host: Host, td: Any, call: Callable[..., GuestStep], change: dict[str, Any], operand: int
) -> None:
    _, tdvpr, context, _ = td
    host.guest(tdvpr, context, call(4, **({"rcx": BUFFER, "rdx": BUFFER, "r8": 0} | change)))
    assert context.gpr[0] == INVALID | operand


def test_a_report_into_missing_memory_exits_like_the_guests_own_access(
    host: Host, td: Any, call: Callable[..., GuestStep]
) -> None:
    _, tdvpr, context, _ = td
    rip = context.rip
    context.queue(call(4, rcx=BUFFER + 0x4000, rdx=BUFFER, r8=0))
    status, args = host.enter(tdvpr)
    assert (status, args.r8, args.rcx) == (48, BUFFER + 0x4000, 3)  # what is written is mapped for reads, too
    assert context.rip == rip


def test_a_report_into_pending_memory_raises_ve(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context, _ = td
    host.augment(tdr, BUFFER + 0x4000)
    host.guest(tdvpr, context, call(4, rcx=BUFFER + 0x4000, rdx=BUFFER, r8=0))
    assert context.injected == [(20, 3, None)]
