# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm itself: what the kernel can do, and the making of VMs and TDs."""

from __future__ import annotations

import errno
import os

from swtdx.uapi import kvm
from swtdx.uapi.client.descriptor import Descriptor
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.client.vm import Vm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel, dialect_spoken
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import u64


class Kvm(Descriptor):
    """An open /dev/kvm on ``kernel`` (the host's unless told).

    ``dialect`` is found out by asking the kernel; where it makes no TDs it stays upstream. Raises `KvmError` if the
    device does not open, with the ``ioctl`` name "open /dev/kvm".

    >>> with Kvm(kernel) as device:
    ...     device.api_version()
    12
    """

    def __init__(self, kernel: Kernel | None = None, dialect: Dialect | None = None, path: str = kvm.DEV_KVM) -> None:
        kernel = kernel or HostKernel()
        try:
            fd = kernel.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, f"open {path}") from None
        super().__init__(kernel, fd)
        try:
            self.dialect = dialect or dialect_spoken(kernel, fd) or Dialect.UPSTREAM
        except OSError as error:
            self.close()
            raise KvmError(error.errno or errno.EIO, "KVM_CHECK_EXTENSION") from None

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every kernel since 2007.

        >>> kvm.api_version()
        12
        """
        return self.ioctl(kvm.KVM_GET_API_VERSION)

    def vm_types(self) -> int:
        """KVM_CAP_VM_TYPES under the number it has in this dialect: bit n = `create_vm` takes type n.

        >>> kvm.vm_types() & 1
        1
        """
        return self.check_extension(self.dialect.cap_vm_types)

    def has_tdx(self) -> bool:
        """Whether `create_td` can succeed.

        >>> kvm.has_tdx() == bool(kvm.vm_types() >> kvm.dialect.vm_type_tdx & 1)
        True
        """
        return bool(self.vm_types() >> self.dialect.vm_type_tdx & 1)

    def create_vm(self, vm_type: int = kvm.VmType.DEFAULT) -> Vm:
        """KVM_CREATE_VM. EINVAL: a type that is not in `vm_types`.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.is_td
        False
        """
        mmap_size = self.vcpu_mmap_size()
        fd = self.ioctl(kvm.KVM_CREATE_VM, vm_type)
        return Vm(self.kernel, fd, self.dialect, mmap_size, is_td=vm_type == self.dialect.vm_type_tdx)

    def create_td(self) -> Vm:
        """KVM_CREATE_VM with the dialect's number for TDs. EINVAL: no TDX here (`has_tdx`)."""
        return self.create_vm(self.dialect.vm_type_tdx)

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE, in bytes: kvm_run, port I/O data, coalesced MMIO.

        >>> kvm.vcpu_mmap_size() >= 0x2000
        True
        """
        return self.ioctl(kvm.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[kvm.kvm_cpuid_entry2]:
        """KVM_GET_SUPPORTED_CPUID: what a vCPU may be given.

        >>> kvm.supported_cpuid()[0].function
        0
        """
        answer = self.listed(kvm.KVM_GET_SUPPORTED_CPUID, kvm.kvm_cpuid2, "nent", 64)
        return list(answer.entries[: answer.nent])

    def emulated_cpuid(self) -> list[kvm.kvm_cpuid_entry2]:
        """KVM_GET_EMULATED_CPUID: features that KVM provides although the processor may lack them.

        >>> isinstance(kvm.emulated_cpuid(), list)
        True
        """
        answer = self.listed(kvm.KVM_GET_EMULATED_CPUID, kvm.kvm_cpuid2, "nent", 64)
        return list(answer.entries[: answer.nent])

    def msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: MSRs that a VMM saves and restores.

        >>> 0xC0000080 in kvm.msr_index_list() or 0x174 in kvm.msr_index_list()
        True
        """
        answer = self.listed(kvm.KVM_GET_MSR_INDEX_LIST, kvm.kvm_msr_list, "nmsrs", 128)
        return list(answer.indices[: answer.nmsrs])

    def msr_feature_index_list(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: MSRs that `get_msrs` reads here, on /dev/kvm.

        >>> set(kvm.get_msrs(kvm.msr_feature_index_list())) <= set(kvm.msr_feature_index_list())
        True
        """
        answer = self.listed(kvm.KVM_GET_MSR_FEATURE_INDEX_LIST, kvm.kvm_msr_list, "nmsrs", 64)
        return list(answer.indices[: answer.nmsrs])

    def mce_cap_supported(self) -> int:
        """KVM_X86_GET_MCE_CAP_SUPPORTED: the mask that `Vcpu.setup_mce` takes, IA32_MCG_CAP format.

        >>> kvm.mce_cap_supported() > 0
        True
        """
        value = u64()
        self.put(kvm.KVM_X86_GET_MCE_CAP_SUPPORTED, value)
        return value.value
