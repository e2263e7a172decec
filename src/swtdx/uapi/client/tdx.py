# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDX sub-commands of KVM_MEMORY_ENCRYPT_OP, in whichever dialect the kernel speaks.

The order of a launch: `Vm.tdx_capabilities`, `Vm.tdx_init` (before any vCPU), `Vm.create_vcpu`, `Vcpu.set_cpuid2` (with
X2APIC, which the next step demands), `Vcpu.tdx_init_vcpu`, `Vm.tdx_init_mem_region` for each region, `Vm.tdx_finalize`,
then `Vcpu.run`. KVM refuses any other order with EINVAL or EIO.

What a kernel says with EAGAIN (no entropy at the moment) or EINTR (a signal between two pages) is tried again, as QEMU
does. Every other errno is a `KvmError`, with the SEAMCALL status where KVM hands it on.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swtdx.uapi import kvm, tdx_upstream, tdx_v10
from swtdx.uapi.client.descriptor import MAX_ENTRIES, Descriptor
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.dialect import Dialect, Target, TdxCommand
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import filled, u64, with_entries

INIT_VM_ATTEMPTS = 10_000  # QEMU's patience with a random number generator that has run dry
FIRST_ROOM = 6  # QEMU's first guess at the number of CPUID configurations
SHA384_SIZE = 48

XSS_COMPONENTS = 0x1FD00
"""XFAM bits that IA32_XSS governs (8, 10 to 16); the others are XCR0's. Intel SDM volume 1, chapter 13."""


@dataclass(frozen=True)
class CpuidConfig:
    """One CPUID leaf of which a TD's owner may choose bits: registers are masks of those."""

    leaf: int
    subleaf: int | None
    """None if the leaf has none. Upstream gives 0 instead."""
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True)
class TdCapabilities:
    """What KVM_TDX_CAPABILITIES answers, the same in both dialects."""

    dialect: Dialect
    attributes_allowed: int
    """Mask of ATTRIBUTES bits that may be 1."""
    attributes_required: int
    """Mask of ATTRIBUTES bits that must be 1 (upstream 0: KVM sets them itself)."""
    xfam_allowed: int
    xfam_required: int
    cpuid: tuple[CpuidConfig, ...]
    kernel_tdvmcalls: tuple[int, int] = (0, 0)
    """GetTdVmCallInfo leaf 1, R11 and R12: TDVMCALLs that KVM serves itself. Upstream only."""
    user_tdvmcalls: tuple[int, int] = (0, 0)
    """The same for TDVMCALLs that KVM passes to the VMM."""
    can_terminate: bool = False
    """`Vm.tdx_terminate` is served."""

    def configure(self, entries: Iterable[kvm.kvm_cpuid_entry2], gpa_width: int = 48) -> list[kvm.kvm_cpuid_entry2]:
        """The CPUID entries for `Vm.tdx_init` that come as near to ``entries`` as the module lets one choose.

        Upstream: one entry for each configurable leaf that ``entries`` has, masked, and leaf 0x80000008 in any case,
        whose EAX[23:16] takes ``gpa_width`` (48 or 52). v10: all entries (KVM masks them), the width in EAX[7:0].
        """
        wanted = [_copy(entry) for entry in entries]
        if not any(entry.function == 0x80000008 for entry in wanted):
            wanted.append(kvm.kvm_cpuid_entry2(function=0x80000008))
        if self.dialect is Dialect.V10:
            for entry in wanted:
                if entry.function == 0x80000008:
                    entry.eax = entry.eax & ~0xFF | gpa_width
            return wanted
        chosen = []
        for config in self.cpuid:
            matching = [_copy(entry) for entry in wanted if _matches(entry, config)]
            if not matching:
                continue
            entry = matching[0]
            entry.index = config.subleaf or 0
            entry.eax &= config.eax
            entry.ebx &= config.ebx
            entry.ecx &= config.ecx
            entry.edx &= config.edx
            if config.leaf == 0x80000008:
                entry.eax = entry.eax & ~0xFF0000 | gpa_width << 16
            chosen.append(entry)
        return chosen


class TdDescriptor(Descriptor):
    """A VM or vCPU fd that takes TDX sub-commands."""

    def __init__(self, kernel: Kernel, fd: int, dialect: Dialect) -> None:
        super().__init__(kernel, fd)
        self.dialect = dialect

    def tdx_command(self, command: TdxCommand, data: int = 0, flags: int = 0) -> None:
        """One sub-command; ``data`` is a value or an address. Raises `KvmError` named after the sub-command.

        ENOTTY, or EINVAL on some kernels: this is not a TD.
        """
        cmd = self.dialect.cmd(id=command, flags=flags, data=data)
        try:
            self.kernel.ioctl(self.fd, kvm.KVM_MEMORY_ENCRYPT_OP, ctypes.addressof(cmd))
        except OSError as error:
            hw_error = getattr(cmd, self.dialect.hw_error_member)
            raise KvmError(error.errno or errno.EIO, f"KVM_TDX_{command.name}", hw_error) from None


class TdVcpu(TdDescriptor):
    """A vCPU's share of the sub-commands."""

    def tdx_init_vcpu(self, rcx: int = 0) -> None:
        """KVM_TDX_INIT_VCPU: the vCPU starts with RCX and R8 = ``rcx`` (firmware expects the TD HOB's address).

        EINVAL: initialised before, or the CPUID of `Vcpu.set_cpuid2` lacks X2APIC.
        """
        self.tdx_command(TdxCommand.INIT_VCPU, rcx)

    def tdx_get_cpuid(self) -> list[kvm.kvm_cpuid_entry2]:
        """KVM_TDX_GET_CPUID: the CPUID that the TDX module will show the TD. EINVAL in the v10 dialect."""
        room = 64
        while True:
            answer = with_entries(kvm.kvm_cpuid2, room)()
            answer.nent = room
            try:
                self.tdx_command(TdxCommand.GET_CPUID, ctypes.addressof(answer))
            except KvmError as error:
                if error.errno != errno.E2BIG or room >= MAX_ENTRIES:
                    raise
                room = max(answer.nent, room * 2)
            else:
                return list(answer.entries[: answer.nent])


class TdVm(TdDescriptor):
    """A VM's share of the sub-commands."""

    vcpus: Sequence[TdVcpu]

    def tdx_capabilities(self) -> TdCapabilities:
        """KVM_TDX_CAPABILITIES, asked with more and more room until it fits."""
        room = FIRST_ROOM
        while True:
            answer = with_entries(self.dialect.capabilities, room)()
            if self.dialect is Dialect.UPSTREAM:
                answer.cpuid.nent = room
            else:
                answer.nr_cpuid_configs = room
            try:
                self.tdx_command(TdxCommand.CAPABILITIES, ctypes.addressof(answer))
            except KvmError as error:
                if error.errno != errno.E2BIG or room >= MAX_ENTRIES:
                    raise
                room *= 2
            else:
                return _capabilities(self.dialect, answer)

    def tdx_init(
        self,
        attributes: int,
        xfam: int,
        cpuid: Iterable[kvm.kvm_cpuid_entry2],
        mrconfigid: bytes = bytes(SHA384_SIZE),
        mrowner: bytes = bytes(SHA384_SIZE),
        mrownerconfig: bytes = bytes(SHA384_SIZE),
        max_vcpus: int | None = None,
    ) -> None:
        """KVM_TDX_INIT_VM: fix the TD's configuration. ``cpuid`` as `TdCapabilities.configure` gives it.

        The three digests are 48 bytes each and end up in the TD's report. ``max_vcpus`` matters to the v10 dialect
        alone (default: KVM_CAP_MAX_VCPUS), where in turn ``xfam`` travels as CPUID leaf 0xD. Raises `KvmError`, for a
        configuration that the module refuses with EINVAL and ``hw_error``; ValueError for a digest of another size.
        """
        digests = [_words(mrconfigid), _words(mrowner), _words(mrownerconfig)]
        init: ctypes.Structure
        if self.dialect is Dialect.UPSTREAM:
            init = _init_vm_upstream(attributes, xfam, list(cpuid), digests)
        else:
            entries = _with_xfam(list(cpuid), xfam)
            table = filled(kvm.kvm_cpuid2, entries, nent=len(entries))
            init = tdx_v10.kvm_tdx_init_vm(
                max_vcpus=self.check_extension(kvm.Cap.MAX_VCPUS) if max_vcpus is None else max_vcpus,
                attributes=attributes,
                cpuid=ctypes.addressof(table),
            )
            init.mrconfigid, init.mrowner, init.mrownerconfig = digests
        for attempt in range(INIT_VM_ATTEMPTS):
            try:
                self.tdx_command(TdxCommand.INIT_VM, ctypes.addressof(init))
            except KvmError as error:
                if error.errno != errno.EAGAIN or attempt == INIT_VM_ATTEMPTS - 1:
                    raise
            else:
                break

    def tdx_init_mem_region(
        self, source: int, gpa: int, pages: int, measure: bool = False, vcpu: TdVcpu | None = None
    ) -> None:
        """KVM_TDX_INIT_MEM_REGION: ``pages`` pages of 4 KiB at address ``source`` become the TD's at ``gpa``.

        ``measure`` extends MRTD with their contents (that they were added is measured in any case). Upstream the range
        must lie in a slot with a guest_memfd and be PRIVATE, and the call goes by way of an initialised vCPU:
        ``vcpu``, or else the first one made. Raises `KvmError`; ValueError upstream if there is no vCPU.
        """
        region = self.dialect.init_mem_region(source_addr=source, gpa=gpa, nr_pages=pages)
        flags = tdx_upstream.KVM_TDX_MEASURE_MEMORY_REGION if measure else 0  # the same bit in both dialects
        target: TdDescriptor = self
        if self.dialect.target(TdxCommand.INIT_MEM_REGION) is Target.VCPU:
            if vcpu is None and not self.vcpus:
                raise ValueError("a TD's memory is initialised by way of a vCPU: create and initialise one first")
            target = vcpu or self.vcpus[0]
        while True:
            try:
                target.tdx_command(TdxCommand.INIT_MEM_REGION, ctypes.addressof(region), flags)
            except KvmError as error:
                # The kernel has written back what is left to do, so that the same structure carries on.
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
            else:
                break

    def tdx_finalize(self) -> None:
        """KVM_TDX_FINALIZE_VM: the measurement is complete, the TD may run."""
        self.tdx_command(TdxCommand.FINALIZE_VM)

    def tdx_terminate(self) -> None:
        """KVM_TDX_TERMINATE_VM: give up the TD's key at once. EINVAL where not served (`can_terminate`)."""
        self.tdx_command(TdxCommand.TERMINATE_VM)


def _capabilities(dialect: Dialect, answer: ctypes.Structure) -> TdCapabilities:
    if dialect is Dialect.V10:
        return TdCapabilities(
            dialect,
            attributes_allowed=answer.attrs_fixed0,
            attributes_required=answer.attrs_fixed1,
            xfam_allowed=answer.xfam_fixed0,
            xfam_required=answer.xfam_fixed1,
            cpuid=tuple(
                CpuidConfig(
                    config.leaf,
                    None if config.sub_leaf == tdx_v10.KVM_TDX_NO_SUB_LEAF else config.sub_leaf,
                    config.eax,
                    config.ebx,
                    config.ecx,
                    config.edx,
                )
                for config in answer.cpuid_configs[: answer.nr_cpuid_configs]
            ),
        )
    return TdCapabilities(
        dialect,
        attributes_allowed=answer.supported_attrs,
        attributes_required=0,
        xfam_allowed=answer.supported_xfam,
        xfam_required=0,
        cpuid=tuple(
            CpuidConfig(entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx)
            for entry in answer.cpuid.entries[: answer.cpuid.nent]
        ),
        kernel_tdvmcalls=(answer.kernel_tdvmcallinfo_1_r11, answer.kernel_tdvmcallinfo_1_r12),
        user_tdvmcalls=(answer.user_tdvmcallinfo_1_r11, answer.user_tdvmcallinfo_1_r12),
        can_terminate=bool(answer.reserved[0] & tdx_upstream.KVM_TDX_CAP_TERMINATE_VM),
    )


def _init_vm_upstream(
    attributes: int, xfam: int, entries: list[kvm.kvm_cpuid_entry2], digests: list[ctypes.Array[u64]]
) -> tdx_upstream.kvm_tdx_init_vm:
    init = filled(tdx_upstream.kvm_tdx_init_vm, entries, attributes=attributes, xfam=xfam)
    init.cpuid.nent = len(entries)
    init.mrconfigid, init.mrowner, init.mrownerconfig = digests
    return init


def _with_xfam(entries: list[kvm.kvm_cpuid_entry2], xfam: int) -> list[kvm.kvm_cpuid_entry2]:
    """CPUID leaf 0xD as it must be for KVM to derive ``xfam`` from it: XCR0's half in (0, EAX:EDX), XSS's in (1, ECX).

    EDX of sub-leaf 1 is 0: no component above 31 exists.
    """
    kept = [_copy(entry) for entry in entries if (entry.function, entry.index) not in ((0xD, 0), (0xD, 1))]
    found = {entry.index: _copy(entry) for entry in entries if entry.function == 0xD and entry.index in (0, 1)}
    flags = kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    user = found.get(0) or kvm.kvm_cpuid_entry2(function=0xD, index=0)
    supervisor = found.get(1) or kvm.kvm_cpuid_entry2(function=0xD, index=1)
    user.flags, user.eax, user.edx = flags, xfam & ~XSS_COMPONENTS & 0xFFFFFFFF, xfam >> 32
    supervisor.flags, supervisor.ecx, supervisor.edx = flags, xfam & XSS_COMPONENTS, 0
    return [*kept, user, supervisor]


def _matches(entry: kvm.kvm_cpuid_entry2, config: CpuidConfig) -> bool:
    """KVM's rule: an entry without a significant index stands for every sub-leaf."""
    significant = entry.flags & kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return bool(entry.function == config.leaf and (not significant or entry.index == (config.subleaf or 0)))


def _copy(entry: kvm.kvm_cpuid_entry2) -> kvm.kvm_cpuid_entry2:
    return kvm.kvm_cpuid_entry2.from_buffer_copy(entry)


def _words(digest: bytes) -> ctypes.Array[u64]:
    if len(digest) != SHA384_SIZE:
        raise ValueError(f"a TD's identity is a SHA-384 digest of {SHA384_SIZE} bytes, not {len(digest)}")
    return (u64 * 6).from_buffer_copy(digest)
