# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest asks and sets of itself: TDG.VP.INFO, VEINFO.GET, CPUIDVE.SET; metadata by VM.*, VP.*, SYS.*."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import metadata
from swtdx.seam.hardware import Args
from swtdx.seam.metadata import Accessor, Field, FieldTable
from swtdx.seam.metadata_values import read_td, read_vcpu, write_td, write_vcpu
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tdg.guest_memory import READ_WRITE, private_hpa
from swtdx.seam.tdg.tdcall import R8, R9, R10, R11, RAX, RCX, RDX, VERSION_SHIFT, tdcall_leaf
from swtdx.seam.tdh.sys_info import dump_system, read_system_field
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

CPUID_VE_SUPERVISOR, CPUID_VE_USER = 1, 2
GUEST = Accessor.GUEST


@tdcall_leaf("TDG.VP.INFO")
def tdg_vp_info(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Return GPA width, attributes, numbers of virtual CPUs and the own index."""
    td, gpr = vcpu.td, vcpu.context.gpr
    gpr[RCX], gpr[RDX] = td.gpaw, td.attributes
    gpr[R8], gpr[R9] = td.num_vcpus | td.max_vcpus << 32, vcpu.index
    gpr[R10], gpr[R11] = int(td.version.sys_rd), 0
    return 0


@tdcall_leaf("TDG.VP.VEINFO.GET", clears=(RCX, RDX, R8, R9, R10))
def tdg_vp_veinfo_get(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Return what the last #VE was about, and allow the next one."""
    info, context = vcpu.ve, vcpu.context
    if not info.valid:
        raise Status(StatusCode.NO_VALID_VE_INFO)
    gpr = context.gpr
    gpr[RCX], gpr[RDX], gpr[R8], gpr[R9] = info.exit_reason, info.qualification, info.gla, info.gpa
    gpr[R10] = info.instruction_length | info.instruction_info << 32
    info.valid = False
    if vcpu.pending_nmi:
        context.nmi_window_exiting = True
    return 0


@tdcall_leaf("TDG.VP.CPUIDVE.SET")
def tdg_vp_cpuidve_set(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Make every CPUID of the kernel (bit 0) or of programs (bit 1) raise #VE."""
    flags = vcpu.context.gpr[RCX]
    if flags & ~(CPUID_VE_SUPERVISOR | CPUID_VE_USER):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    vcpu.cpuid_supervisor_ve = bool(flags & CPUID_VE_SUPERVISOR)
    vcpu.cpuid_user_ve = bool(flags & CPUID_VE_USER)
    return 0


def _own_vm(vcpu: Vcpu) -> None:
    """Check that RCX names the own TD or virtual CPU: 0."""
    if vcpu.context.gpr[RCX]:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


def _readable(vcpu: Vcpu, table: FieldTable) -> tuple[Field, int]:
    identifier = vcpu.context.gpr[RDX]
    if identifier == metadata.NONE:
        raise Status(StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT, rdx=metadata.first(table, GUEST))
    return metadata.lookup(table, identifier, GUEST)


@tdcall_leaf("TDG.VM.RD", clears=(R8,), version=0)
@tdcall_leaf("TDG.VM.RD", clears=(R8,), sets=(RDX,), version=1, also=range(2, 256))
def tdg_vm_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Read a field of the TD into R8; version 1: RDX becomes the next field's id. Only this leaf refuses others."""
    gpr, td, table = vcpu.context.gpr, vcpu.td, metadata.td_fields(vcpu.td.version)
    version = gpr[RAX] >> VERSION_SHIFT
    if version > 1:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RAX)
    _own_vm(vcpu)
    if version:
        field, element = _readable(vcpu, table)
        gpr[RDX] = metadata.following(table, field, element, GUEST, td.cpuid.metadata_codes())
    else:
        field, element = metadata.lookup(table, gpr[RDX], GUEST)
    gpr[R8] = read_td(td, field, element) & field.masks[GUEST][0]
    return 0


@tdcall_leaf("TDG.VM.WR", clears=(R8,))
def tdg_vm_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Write a field of the TD under a mask; R8: its old value."""
    _own_vm(vcpu)
    gpr, td = vcpu.context.gpr, vcpu.td
    table = metadata.td_fields(td.version)
    field, element = metadata.lookup_writable(table, gpr[RDX], GUEST, gpr[R9])
    old = read_td(td, field, element)
    write_td(td, field, element, metadata.merge(table, field, GUEST, old, gpr[R8], gpr[R9]), gpr[R9])
    gpr[R8] = old & field.masks[GUEST][0]
    return 0


@tdcall_leaf("TDG.VP.RD", clears=(R8,), sets=(RDX,))
def tdg_vp_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Read a field of this virtual CPU into R8; RDX becomes the next field's id."""
    _own_vm(vcpu)
    gpr, table = vcpu.context.gpr, metadata.vcpu_fields(vcpu.td.version)
    field, element = _readable(vcpu, table)
    gpr[R8] = read_vcpu(vcpu, field, element) & field.masks[GUEST][0]
    gpr[RDX] = metadata.following(table, field, element, GUEST, [])
    return 0


@tdcall_leaf("TDG.VP.WR", clears=(R8,))
def tdg_vp_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Write a field of this virtual CPU under a mask; R8: its old value."""
    _own_vm(vcpu)
    gpr, table = vcpu.context.gpr, metadata.vcpu_fields(vcpu.td.version)
    field, element = metadata.lookup_writable(table, gpr[RDX], GUEST, gpr[R9])
    old = read_vcpu(vcpu, field, element)
    write_vcpu(module, vcpu, field, element, metadata.merge(table, field, GUEST, old, gpr[R8], gpr[R9]))
    gpr[R8] = old & field.masks[GUEST][0]
    return 0


@tdcall_leaf("TDG.SYS.RD", clears=(R8,), sets=(RDX,))
def tdg_sys_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Read a field of the module into R8; RDX becomes the next field's id."""
    gpr = vcpu.context.gpr
    gpr[RDX], gpr[R8] = read_system_field(module, gpr[RDX], GUEST)
    return 0


@tdcall_leaf("TDG.SYS.RDALL", sets=(R8,))
def tdg_sys_rdall(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Write the module's fields that a guest may see to the page at RDX; R8: where to start and where to go on."""
    gpr, td = vcpu.context.gpr, vcpu.td
    gpa = gpr[RDX]
    if gpa % PAGE_SIZE or gpa >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    hpa = private_hpa(module, vcpu, args, gpa, READ_WRITE)
    content, rest = dump_system(module, gpr[R8], GUEST)
    module.memory.write(hpa | td.hkid << module.host.hkid_shift, content)
    gpr[R8] = rest
    if rest != metadata.NONE:
        raise Status(StatusCode.METADATA_LIST_OVERFLOW, r8=rest)
    return 0
