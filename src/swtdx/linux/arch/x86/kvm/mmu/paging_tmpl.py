# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's own page tables, walked by KVM (arch/x86/kvm/mmu/paging_tmpl.h).

The processor walks them too, but only as far as EPT maps them already; KVM reads them from the slots. `access` asks
also for the rights that they give and that PKRU takes away: KVM reaches in a guest's name what the guest may reach, and
nothing else. Code too: where EPT does not let the processor write an accessed bit, KVM is asked before the processor
has looked at any right. `walk` does not ask: it is for KVM_TRANSLATE.

Reserved bits are those of __reset_rsvds_bits_mask (mmu.c), with the MAXPHYADDR of the guest's CPUID. Those of a PDPTE
in PAE paging are looked at when CR3 is loaded, not by the walk (SDM volume 3, 4.4.1; walk_addr_generic).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.uaccess import get_user
from swtdx.x86 import Cr0, Cr4, Efer, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm

CR0_PG, CR0_WP, EFER_LMA = Cr0.PG, Cr0.WP, Efer.LMA
CR4_PSE, CR4_PAE, CR4_LA57, CR4_SMEP, CR4_SMAP, CR4_PKE = Cr4.PSE, Cr4.PAE, Cr4.LA57, Cr4.SMEP, Cr4.SMAP, Cr4.PKE
PRESENT, WRITABLE, USER, LARGE, EXECUTE_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
_ADDRESS = 0x000FFFFFFFFFF000
_BITS_51_0, _BITS_62_0 = (1 << 52) - 1, (1 << 63) - 1
_RESERVED_4M = 0x3E0000
"""Bits 21:17 of a page of 4 MiB: KVM knows 36 bits of its address (is_cpuid_PSE36)."""
_KEY, _KEY_SHIFT = 0xF << 59, 59
_PF_PRESENT, _PF_WRITE, _PF_USER, _PF_RSVD, _PF_FETCH, _PF_KEY = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5


def _entry(kvm: Kvm, gpa: int, size: int) -> int:
    slot = kvm.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT)
    if slot is None:
        return 0
    try:
        return get_user(slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT), size)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return 0


def walk(vcpu: Vcpu, context: GuestContext, address: int) -> int | None:
    """Return the GPA of a linear address, or None where the tables map nothing."""
    return _walk(vcpu, context, address)[0]


def access(
    vcpu: Vcpu, context: GuestContext, address: int, *, write: bool, user: bool, implicit: bool
) -> tuple[int | None, int]:
    """Return the GPA of data at that privilege; or None, and the error code of the #PF (permission_fault).

    ``implicit``: the processor's own access, to a descriptor table; EFLAGS.AC does not open the user's pages to those.
    """
    gpa, rights = _walk(vcpu, context, address)
    error = (_PF_WRITE if write else 0) | (_PF_USER if user else 0)
    if gpa is None:
        return None, error | rights
    if not context.cr0 & CR0_PG:
        return gpa, 0
    key = _refused_by_key(context, rights, write=write, user=user)
    if rights & USER:
        refused = not user and context.cr4 & CR4_SMAP and (implicit or not context.rflags & Rflags.AC)
    else:
        refused = user
    if write and not rights & WRITABLE and (user or context.cr0 & CR0_WP):
        refused = True
    return (None, error | key | _PF_PRESENT) if refused or key else (gpa, 0)


def fetch_access(vcpu: Vcpu, context: GuestContext, address: int, *, user: bool) -> tuple[int | None, int]:
    """Return the GPA of code at that privilege; or None, and the error code of the #PF (permission_fault)."""
    gpa, rights = _walk(vcpu, context, address)
    no_execute, smep = context.efer & Efer.NXE, context.cr4 & CR4_SMEP
    error = (_PF_USER if user else 0) | (_PF_FETCH if no_execute or smep else 0)
    if gpa is None:
        return None, error | rights
    if not context.cr0 & CR0_PG:
        return gpa, 0
    if (no_execute and rights & EXECUTE_DISABLE) or (smep and not user if rights & USER else user):
        return None, error | _PF_PRESENT
    return gpa, 0


def _refused_by_key(context: GuestContext, rights: int, *, write: bool, user: bool) -> int:
    """Return the error code's bit for a page of the user that PKRU refuses, or 0."""
    if not (rights & USER and context.cr4 & CR4_PKE and context.efer & EFER_LMA):
        return 0
    disabled = context.pkru >> 2 * (rights >> _KEY_SHIFT & 0xF)
    return _PF_KEY if disabled & 1 or (disabled & 2 and write and (user or context.cr0 & CR0_WP)) else 0


def _walk(vcpu: Vcpu, context: GuestContext, address: int) -> tuple[int | None, int]:
    """Return the GPA, and as in an entry the permissions on the way and the page's protection key.

    Or None, and what of the error code of the #PF follows from the tables: nothing, or that a reserved bit is set.
    """
    kvm, cr3, cr4 = vcpu.kvm, context.cr3, context.cr4
    rights = WRITABLE | USER
    if not context.cr0 & CR0_PG:
        return address & 0xFFFFFFFF, rights
    # Bits 62:52 are ignored in IA-32e paging, and reserved in PAE paging.
    reserved = vcpu.cpuid.reserved_gpa_bits & (_BITS_51_0 if context.efer & EFER_LMA else _BITS_62_0)
    if not context.efer & Efer.NXE:
        reserved |= EXECUTE_DISABLE
    if context.efer & EFER_LMA:
        levels, table = (5 if cr4 & CR4_LA57 else 4), cr3 & _ADDRESS
        sign = address >> 9 * levels + 11
        if sign not in (0, (1 << 64 - (9 * levels + 11)) - 1):
            return None, 0
    elif cr4 & CR4_PAE:
        address &= 0xFFFFFFFF
        pdpte = _entry(kvm, (cr3 & 0xFFFFFFE0) + 8 * (address >> 30), 8)
        if not pdpte & PRESENT:
            return None, 0
        levels, table = 2, pdpte & _ADDRESS
    else:
        return _walk_32(kvm, cr3, bool(cr4 & CR4_PSE), address & 0xFFFFFFFF)
    never = 0
    for level in range(levels, 0, -1):
        shift = 9 * level + 3
        entry = _entry(kvm, table + 8 * (address >> shift & 511), 8)
        if not entry & PRESENT:
            return None, 0
        if entry & (reserved | _reserved_by_size(entry, level)):
            return None, _PF_PRESENT | _PF_RSVD
        rights &= entry & (WRITABLE | USER)
        never |= entry & EXECUTE_DISABLE
        if level == 1 or (entry & LARGE and level <= 3):
            mask = (1 << shift) - 1
            return entry & _ADDRESS & ~mask | address & mask, rights | never | entry & _KEY
        table = entry & _ADDRESS
    return None, 0


def _reserved_by_size(entry: int, level: int) -> int:
    """Return what is reserved in an entry of 64 bits because it maps a page of this size, or none."""
    if level > 3:
        return LARGE
    return (1 << 9 * level + 3) - (1 << 13) if level > 1 and entry & LARGE else 0


def _walk_32(kvm: Kvm, cr3: int, large_pages: bool, address: int) -> tuple[int | None, int]:
    directory = _entry(kvm, (cr3 & 0xFFFFF000) + 4 * (address >> 22), 4)
    if not directory & PRESENT:
        return None, 0
    if directory & LARGE and large_pages:
        if directory & _RESERVED_4M:
            return None, _PF_PRESENT | _PF_RSVD
        return (directory & 0x1E000) << 19 | directory & 0xFFC00000 | address & 0x3FFFFF, directory
    entry = _entry(kvm, (directory & 0xFFFFF000) + 4 * (address >> 12 & 1023), 4)
    if not entry & PRESENT:
        return None, 0
    return entry & 0xFFFFF000 | address & 0xFFF, directory & entry
