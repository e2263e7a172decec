# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm (kvm_dev_ioctl, kvm_arch_dev_ioctl). An unknown request is EINVAL."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.cpuid import check_padding, cpuid2_to_user, emulated_cpuid, supported_cpuid
from swtdx.linux.arch.x86.kvm.x86 import msrs
from swtdx.linux.arch.x86.kvm.x86.capability import check_extension
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import msr_entries_from_user
from swtdx.linux.arch.x86.kvm.x86.vm_ioctl import VmFile
from swtdx.linux.err import err
from swtdx.linux.files import File
from swtdx.linux.uaccess import copy_to_user, get_user, put_user, struct_from_user
from swtdx.linux.virt.kvm.kvm_main import Kvm
from swtdx.linux.virt.kvm.run_struct import RUN_SIZE
from swtdx.uapi.kvm import (
    KVM_API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_DEVICE_ATTR,
    KVM_GET_EMULATED_CPUID,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_HAS_DEVICE_ATTR,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KVM_X86_GRP_SYSTEM,
    KVM_X86_XCOMP_GUEST_SUPP,
    kvm_device_attr,
)

if TYPE_CHECKING:
    from swtdx.linux.kernel import EmulatedKernel


class KvmDevice(File):
    """An open /dev/kvm."""

    name = "/dev/kvm"

    def __init__(self, kernel: EmulatedKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self._handlers = {
            int(KVM_GET_API_VERSION): self._get_api_version,
            int(KVM_CREATE_VM): self.kvm_dev_ioctl_create_vm,
            int(KVM_CHECK_EXTENSION): lambda arg: check_extension(kernel, None, arg),
            int(KVM_GET_VCPU_MMAP_SIZE): self._get_vcpu_mmap_size,
            int(KVM_GET_SUPPORTED_CPUID): self._get_supported_cpuid,
            int(KVM_GET_EMULATED_CPUID): self._get_emulated_cpuid,
            int(KVM_GET_MSR_INDEX_LIST): lambda arg: self._msr_list(arg, self.kernel.msr_index_list),
            int(KVM_GET_MSR_FEATURE_INDEX_LIST): lambda arg: self._msr_list(arg, msrs.FEATURE_MSRS),
            int(KVM_GET_MSRS): self._get_feature_msrs,
            int(KVM_X86_GET_MCE_CAP_SUPPORTED): self._get_mce_cap,
            int(KVM_GET_DEVICE_ATTR): self._get_device_attr,
            int(KVM_HAS_DEVICE_ATTR): self._has_device_attr,
        }

    def ioctl(self, request: int, arg: int) -> int:
        handler = self._handlers.get(request)
        if handler is None:
            raise err(errno.EINVAL, f"{request:#010x} is not a request for /dev/kvm")
        return handler(arg)

    def _get_api_version(self, arg: int) -> int:
        if arg:
            raise err(errno.EINVAL, "the argument must be 0")
        return KVM_API_VERSION

    def _get_vcpu_mmap_size(self, arg: int) -> int:
        if arg:
            raise err(errno.EINVAL, "the argument must be 0")
        return RUN_SIZE

    def kvm_dev_ioctl_create_vm(self, arg: int) -> int:
        kernel = self.kernel
        file = VmFile()
        fd = kernel.files.reserve(file)  # first: EMFILE wins
        try:
            if arg >= 32 or not kernel.supported_vm_types >> arg & 1:
                raise err(errno.EINVAL, f"VM type {arg} is not supported by this host")
            kvm = Kvm(kernel, arg)
        except BaseException:
            os.close(fd)
            raise
        file.attach(kvm)
        kernel.vms.add(kvm)
        return kernel.files.install(file, fd)

    def _get_supported_cpuid(self, arg: int) -> int:
        self._check_room(arg)
        cpuid2_to_user(
            # v10: the member was reserved and 0 until Linux 6.10.
            arg,
            supported_cpuid(self.kernel.processor, guest_phys_bits=self.kernel.release.reports_guest_phys_bits),
        )
        return 0

    def _get_emulated_cpuid(self, arg: int) -> int:
        """What KVM emulates where the processor lacks it; user space passes clean entries (sanity_check_entries)."""
        self._check_room(arg)
        check_padding(arg)
        entries = emulated_cpuid(self.kernel.processor)
        cpuid2_to_user(arg, entries, len(entries) + 1)  # the next leaf is looked at before it is found to be none
        return 0

    @staticmethod
    def _check_room(arg: int) -> None:
        if not get_user(arg, 4):
            raise err(errno.E2BIG, "room for no CPUID entry")

    def _msr_list(self, arg: int, indices: tuple[int, ...]) -> int:
        room = get_user(arg, 4)
        put_user(arg, len(indices), 4)
        if room < len(indices):
            raise err(errno.E2BIG, f"room for {room} MSRs, {len(indices)} exist")
        copy_to_user(arg + 4, b"".join(index.to_bytes(4, "little") for index in indices))
        return 0

    def _get_feature_msrs(self, arg: int) -> int:
        """What is advertised to be a vCPU's is 0 here."""
        entries = msr_entries_from_user(arg)
        done = 0
        for entry in entries:
            value = self.kernel.feature_msr(entry.index)
            entry.data = value or 0
            if value is None and entry.index not in self.kernel.msr_index_list:
                break
            done += 1
        copy_to_user(arg + 8, b"".join(bytes(entry) for entry in entries))
        return done

    def _get_mce_cap(self, arg: int) -> int:
        put_user(arg, msrs.MCG_CAP_SUPPORTED | msrs.KVM_MAX_MCE_BANKS, 8)
        return 0

    def _get_device_attr(self, arg: int) -> int:
        attr = struct_from_user(kvm_device_attr, arg)
        self._check_attr(attr)
        put_user(attr.addr, self.kernel.supported_xcr0, 8)
        return 0

    def _has_device_attr(self, arg: int) -> int:
        self._check_attr(struct_from_user(kvm_device_attr, arg))
        return 0

    @staticmethod
    def _check_attr(attr: kvm_device_attr) -> None:
        if attr.group != KVM_X86_GRP_SYSTEM or attr.attr != KVM_X86_XCOMP_GUEST_SUPP:
            raise err(errno.ENXIO, f"attribute {attr.group}.{attr.attr}")
