# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurement and reports for the guest: TDG.MR.RTMR.EXTEND, MR.REPORT, MR.VERIFYREPORT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import measurement, report
from swtdx.seam.hardware import Args, ExitReason
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import HASH_SIZE, NUM_RTMRS
from swtdx.seam.td_exit import Interrupted, asynchronous
from swtdx.seam.tdg.guest_memory import READ, READ_WRITE, private_hpa, shared_hpa
from swtdx.seam.tdg.tdcall import R8, RCX, RDX, tdcall_leaf

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

RTMR_ALIGNMENT = 64


def _aligned(gpa: int, alignment: int, operand: Operand) -> int:
    if gpa & (alignment - 1):
        raise Status(StatusCode.OPERAND_INVALID, operand)
    return gpa


def _private(vcpu: Vcpu, gpa: int, operand: Operand) -> int:
    if gpa >= vcpu.td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, operand)
    return gpa


@tdcall_leaf("TDG.MR.RTMR.EXTEND")
def tdg_mr_rtmr_extend(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Extend RTMR[RDX] by the 48 bytes at RCX."""
    gpr = vcpu.context.gpr
    gpa = _private(vcpu, _aligned(gpr[RCX], RTMR_ALIGNMENT, Operand.RCX), Operand.RCX)
    hpa = private_hpa(module, vcpu, args, gpa, READ)
    index = gpr[RDX]
    if index >= NUM_RTMRS:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    vcpu.td.check_lock(Operand.RTMR)
    vcpu.td.tee_info_hashed = False
    measurement.extend_rtmr(vcpu.td, index, module.memory.raw[hpa : hpa + HASH_SIZE].tobytes())
    return 0


@tdcall_leaf("TDG.MR.REPORT")
def tdg_mr_report(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Write a TDREPORT at RCX over the report data at RDX; each may be private or shared memory.

    To hash TDINFO takes so long that an interrupt stops it; the hash is kept until an RTMR changes.
    """
    gpr, td = vcpu.context.gpr, vcpu.td
    target = _aligned(gpr[RCX], report.REPORT_SIZE, Operand.RCX)
    source = _aligned(gpr[RDX], report.REPORTDATA_SIZE, Operand.RDX)
    data = _read(module, vcpu, args, source)
    if gpr[R8]:
        raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
    td.check_lock(Operand.RTMR, shared=True)
    if not td.tee_info_hashed:
        td.tee_info_hashed = True
        if module.contention.interrupted(vcpu.lp):
            raise Interrupted(None, resumes=True)
    _write(module, vcpu, args, target, report.make(td, module.identity, data))
    return 0


def _valid(vcpu: Vcpu, gpa: int, operand: Operand) -> int:
    """Check a GPA that may be private or shared: below the width of private addresses but for the shared bit."""
    td = vcpu.td
    if gpa & ~td.shared_bit >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, operand)
    return gpa


def _read(module: TdxModule, vcpu: Vcpu, args: Args, gpa: int) -> bytes:
    """Report data from private memory, or from shared memory: RAM, or a window on the host program's memory."""
    memory = module.memory
    if not _valid(vcpu, gpa, Operand.RDX) & vcpu.td.shared_bit:
        hpa = private_hpa(module, vcpu, args, gpa, READ)
        return memory.raw[hpa : hpa + report.REPORTDATA_SIZE].tobytes()
    hpa = shared_hpa(module, vcpu, args, gpa, READ)
    if hpa >= memory.size:
        data = memory.read_window(hpa, report.REPORTDATA_SIZE)
        if data is None:
            raise _taken_away(vcpu, args, gpa, READ)
        return data
    return module.read_host(hpa, report.REPORTDATA_SIZE)


def _write(module: TdxModule, vcpu: Vcpu, args: Args, gpa: int, data: bytes) -> None:
    """Write the report to private memory, or to shared memory like `_read`."""
    td, memory = vcpu.td, module.memory
    if not _valid(vcpu, gpa, Operand.RCX) & td.shared_bit:
        hpa = private_hpa(module, vcpu, args, gpa, READ_WRITE)
        memory.write(hpa | td.hkid << module.host.hkid_shift, data)
        return
    hpa = shared_hpa(module, vcpu, args, gpa, READ_WRITE)
    if hpa < memory.size:
        module.write_host(hpa, data)
    elif not memory.write_window(hpa, data):
        raise _taken_away(vcpu, args, gpa, READ_WRITE)


def _taken_away(vcpu: Vcpu, args: Args, gpa: int, access: int) -> Interrupted:
    """Exit as if the entry of the host's EPT had gone: the host program has unmapped what was behind it."""
    return Interrupted(asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, qualification=access, gpa=gpa))


@tdcall_leaf("TDG.MR.VERIFYREPORT")
def tdg_mr_verifyreport(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Check the REPORTMACSTRUCT at RCX: was it made on this machine, with this processor's security version?"""
    gpa = _aligned(vcpu.context.gpr[RCX], report.MAC_STRUCT_SIZE, Operand.RCX)
    hpa = private_hpa(module, vcpu, args, _private(vcpu, gpa, Operand.RCX), READ)
    mac_struct = module.memory.raw[hpa : hpa + report.MAC_STRUCT_SIZE].tobytes()
    if not report.verify(module.identity, mac_struct):
        raise Status(StatusCode.INVALID_REPORTMACSTRUCT)
    if mac_struct[16:32] != module.identity.cpu_svn:
        raise Status(StatusCode.INVALID_CPUSVN)
    return 0
