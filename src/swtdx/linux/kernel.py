# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated kernel: what boots on a `Processor`, and the system calls it serves (uapi.kernel.Kernel).

It allocates pages from the machine's RAM, brings the TDX module up if there is one, and offers /dev/kvm. Which Linux it
is, is `swtdx.linux.release`: the newest released one, if nothing else is asked for.
Whatever goes wrong, a caller sees OSError: an internal error is logged, kills the VM it happened in, and is EIO.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.vmx.main import vt_x86_ops
from swtdx.linux.arch.x86.kvm.vmx.tdx_params import tdx_get_supported_attrs, tdx_get_supported_xfam
from swtdx.linux.arch.x86.kvm.x86 import msrs
from swtdx.linux.arch.x86.kvm.x86.capability import system_capabilities
from swtdx.linux.arch.x86.virt.vmx.tdx.tdx import FEATURE_NO_RBP_MOD, FEATURE_TOPOLOGY_ENUM, TdxHost, TdxUnavailable
from swtdx.linux.config import KernelConfig
from swtdx.linux.err import err, reason_of
from swtdx.linux.files import FileTable, vfs_fallocate
from swtdx.linux.mm import PageAllocator
from swtdx.linux.release import release_for
from swtdx.linux.sched import HostCpus, TimerQueue, WaitQueue
from swtdx.linux.uaccess import current_mm
from swtdx.linux.virt.kvm import mmu_notifier
from swtdx.linux.virt.kvm.device import KvmDevice
from swtdx.linux.virt.kvm.eventfd import IrqfdThread
from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
from swtdx.linux.virt.kvm.hva import UserWindows
from swtdx.linux.virt.kvm.kvm_main import KVM_MAX_VCPU_IDS, Kvm
from swtdx.uapi.asm_kvm import KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.reason import NO_REASON, Reason

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor

log = logging.getLogger(__name__)

DEFAULT_CONFIG = KernelConfig()
_MODULE_FEATURES = (
    (FEATURE_NO_RBP_MOD, "NO_RBP_MOD", "virt/tdx: frame pointer (RBP) clobber bug present, upgrade TDX module"),
    (FEATURE_TOPOLOGY_ENUM, "TOPOLOGY_ENUM", "kvm_intel turns TDX off without a line in the log"),
)
"""What the kernel needs of TDX_FEATURES0, in its order, and what its log says where it is missing."""
ARCH_CAPABILITIES_PASSED_ON = sum(1 << bit for bit in (0, 1, 2, 4, 5, 7, 13, 14, 15, 17, 19, 24))
"""KVM_SUPPORTED_ARCH_CAP: RDCL_NO, IBRS_ALL, RSBA, SSB_NO, MDS_NO, TSX_CTRL, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR,
RRSBA and PBRSB_NO; without RTM not TAA_NO."""
ARCH_CAPABILITIES_OF_KVM = 1 << 3 | 1 << 6
"""What KVM sees to: SKIP_VMENTRY_L1DFLUSH, PSCHANGE_MC_NO."""
ARCH_CAPABILITIES_NEWER, ARCH_CAPABILITIES_OF_MODEL = 1 << 20 | 1 << 28, 1 << 26 | 1 << 27 | 1 << 62
"""BHI_NO and RFDS_CLEAR; GDS_NO, RFDS_NO and ITS_NO, which KVM adds: the processor's model is in no list of those that
have these faults."""


class EmulatedKernel:
    """Linux on ``processor``, with or without a TDX module loaded there; ``config``: how it was built and booted."""

    name = "emulated"

    def __init__(
        self,
        processor: Processor,
        dialect: Dialect | None = None,
        config: KernelConfig = DEFAULT_CONFIG,
    ) -> None:
        """Raises ValueError for a release that does not exist, or that does not speak ``dialect``."""
        self.processor = processor
        self.config = config
        self.release = release_for(config.kernel_release, dialect)
        self.release_name = self.release.name
        self.dialect = self.release.dialect
        large = config.tdx_huge_page
        self.tdx_huge_page = self.release.maps_2m_private if large is None else large
        self.last_refusal = NO_REASON
        """Why the last call was refused."""
        self.sees_signals = False
        """Whether signal handlers of this process call ``swtdx_signal`` (`Processor.signal_pending`)."""
        self.pages = PageAllocator(processor.memory)
        self.files = FileTable()
        self.cpus = HostCpus(processor)
        self.timers = TimerQueue(processor.clock)
        self.new_wait_queue: Callable[[], WaitQueue] = WaitQueue
        """What a vCPU sleeps in."""
        self.irqfd_thread = IrqfdThread()
        self.user_windows = UserWindows(processor.memory)
        self.vms: set[Kvm] = set()
        self.max_vcpu_ids = KVM_MAX_VCPU_IDS

        self.supported_xcr0 = self._xcr0()
        self.supported_xfam = self.supported_xcr0  # no supervisor states
        self.msr_index_list = msrs.MSR_INDEX_LIST + (msrs.DEBUGCTL_LIST if self.release.lists_debugctl else ())
        self.arch_capabilities = self.feature_msr(msrs.IA32_ARCH_CAPABILITIES) or 0

        self.tdx: TdxHost | None = None
        if config.enable_tdx and processor.module_loaded:
            self.tdx = self.tdx_bringup()
        self.kvm_x86_ops = vt_x86_ops(self.tdx is not None)
        self.supported_vm_types = 1 << KVM_X86_DEFAULT_VM
        if self.release.makes_sw_protected_vms:
            self.supported_vm_types |= 1 << KVM_X86_SW_PROTECTED_VM
        if self.tdx is not None:
            self.supported_vm_types |= 1 << self.dialect.vm_type_tdx
        self.capabilities = system_capabilities(self)

    @property
    def last_reason(self) -> str:
        """The sentence of `last_refusal`."""
        return self.last_refusal.text

    @property
    def logical_processors(self) -> int:
        """How many logical processors the machine has."""
        return self.cpus.count

    def _xcr0(self) -> int:
        low, _, _, high = self.processor.cpuid(0xD, 0)
        return low | high << 32

    def tdx_bringup(self) -> TdxHost | None:
        """Initialise the module and check it; None, and TDX disabled, if it cannot be used."""
        try:
            host = TdxHost(self.processor, self.pages, sys_rd=self.release.reads_module_fields)
            self._check_for_kvm(host)
        except TdxUnavailable as unavailable:
            self.last_refusal = Reason(str(unavailable))
            log.error("TDX: %s", unavailable)
            return None
        log.info("TDX: module initialised, %d guest KeyIDs", host.free_hkids)
        return host

    def _check_for_kvm(self, host: TdxHost) -> None:
        """Check what KVM needs of the module (__tdx_bringup). Raises TdxUnavailable."""
        info = host.sysinfo
        # upstream: KVM gives x2APIC ids itself, a guest must not be able to change the host's RBP, and a TD must get as
        # many vCPUs as KVM_CAP_MAX_VCPUS promises. v10: the series did not ask.
        if not self.release.checks_module_features:
            return
        if not tdx_get_supported_attrs(info) or not tdx_get_supported_xfam(info, self.supported_xfam):
            raise TdxUnavailable("the module demands attributes or extended features that KVM does not support")
        for feature, name, line in _MODULE_FEATURES:
            if not info.features0 & feature:
                raise TdxUnavailable(f"the module lacks {name} ({line})")
        if info.max_vcpus_per_td < self.cpus.count:
            raise TdxUnavailable(
                f"Disable TDX: MAX_VCPU_PER_TD ({info.max_vcpus_per_td}) smaller than number of logical CPUs "
                f"({self.cpus.count})."
            )

    def feature_msr(self, index: int) -> int | None:
        """KVM_GET_MSRS on /dev/kvm: what KVM can virtualise of a feature MSR."""
        if index == msrs.IA32_ARCH_CAPABILITIES:
            try:
                native = self.processor.rdmsr(index)
            except KeyError:
                return 0
            known = native & ARCH_CAPABILITIES_PASSED_ON | ARCH_CAPABILITIES_OF_KVM
            if self.release.knows_newer_faults:
                known |= native & ARCH_CAPABILITIES_NEWER | ARCH_CAPABILITIES_OF_MODEL
            return known
        if index == msrs.IA32_UCODE_REV:
            return 1 << 32
        if index == msrs.PLATFORM_INFO:
            return 1 << 31
        if index == msrs.IA32_PERF_CAPABILITIES:
            return 0  # there is no PMU
        return None

    # --- System calls -------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDWR | os.O_CLOEXEC) -> int:
        """/dev/kvm is all there is. Raises OSError(ENOENT)."""
        if path != "/dev/kvm":
            raise err(errno.ENOENT, f"{path}: the emulated kernel has /dev/kvm only")
        return self.files.install(KvmDevice(self))

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Raises OSError; EBADF for a descriptor that is not open, ENOTTY for one that is not ours."""
        file = self.files.by_fd.get(fd)
        if file is None:
            file = self.files.get(fd)
            if file is None:
                self.fstat(fd)
                raise err(errno.ENOTTY, f"fd {fd} does not belong to the emulated kernel")
        try:
            return file.ioctl(request & 0xFFFFFFFF, arg & 0xFFFFFFFFFFFFFFFF)
        except OSError as error:
            self.last_refusal = reason_of(error)
            raise
        except MemoryError as error:
            self.last_refusal = Reason("the host has no memory left")
            raise err(errno.ENOMEM, self.last_refusal) from error
        except Exception as error:
            log.exception("internal error in ioctl %#010x", request)
            self.last_refusal = Reason(f"internal error: {error!r}")
            file.bug(self.last_reason)
            raise err(errno.EIO, self.last_refusal) from error

    def _mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        if not (0 < length < 1 << 63 and 0 <= offset < 1 << 63):
            raise err(errno.EINVAL, f"{length:#x} bytes at {offset:#x}")
        file = self.files.get(fd)
        if file is not None:
            file.enter()
            try:
                return file.mmap(fd, length, offset)
            finally:
                file.leave()
        self.fstat(fd)
        try:
            return mmap.mmap(fd, length, offset=offset)
        except (ValueError, OverflowError) as error:  # Python's own checks, before the system call
            raise err(errno.EINVAL, str(error)) from error

    def mmap(self, fd: int, length: int, offset: int = 0) -> mmap.mmap:
        """Raises OSError(ENODEV, EINVAL, EBADF). A mapping of a vCPU keeps it, and its VM, until it is closed."""
        try:
            return self._mmap(fd, length, offset)
        except OSError as error:  # the front ends report why the last call was refused: not why an earlier one was
            self.last_refusal = reason_of(error)
            raise

    def close(self, fd: int) -> None:
        """Raises OSError(EBADF)."""
        try:
            self.files.close(fd)
        except OSError:
            raise
        except OverflowError as error:
            raise err(errno.EBADF, f"fd {fd}") from error
        except Exception as error:
            log.exception("internal error in close")
            raise err(errno.EIO, f"internal error: {error!r}") from error

    # --- Reports of a front end that watches other system calls of the process ----------------------------------------

    def mmu_notifier_invalidate_range_start(self, start: int, end: int) -> None:
        """Call before munmap(2), mmap(2) with MAP_FIXED, mremap(2) or mprotect(2) of [start, end) of the caller."""
        mmu_notifier.invalidate_range_start(self, current_mm(), *mmu_notifier.whole_pages(start, end))

    def mmu_notifier_invalidate_range_end(self, start: int, end: int) -> None:
        """Call after it with the same range, also if it failed."""
        mmu_notifier.invalidate_range_end(self, current_mm(), *mmu_notifier.whole_pages(start, end))

    def mmu_notifier_invalidate_range(self, start: int, end: int) -> None:
        """Forget what is mapped of [start, end) of the caller.

        For a front end that cannot embrace the change with start and end: a fault in between sees what is there then.
        """
        self.mmu_notifier_invalidate_range_start(start, end)
        self.mmu_notifier_invalidate_range_end(start, end)

    def mmu_notifier_contents_changed(self, start: int, end: int) -> None:
        """Call after madvise(2) has discarded [start, end), or when its contents change otherwise."""
        mmu_notifier.contents_changed(self, current_mm(), *mmu_notifier.whole_pages(start, end))

    def shutdown(self) -> None:
        """Switch the machine off: every descriptor is closed, as when a process ends, and its threads end.

        No thread may be inside a system call. What is open may also be left to the end of the process.
        """
        for fd in list(self.files.by_fd):
            with contextlib.suppress(OSError):
                self.close(fd)
        for mapping in list(self.files.mappings):
            mapping.release()
        self.irqfd_thread.stop()
        self.timers.stop()
        self.cpus.stop()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """No vCPU runs, and no timer expires. Raises BlockingIOError if a vCPU is in an ioctl, which KVM_RUN is."""
        with contextlib.ExitStack() as held:
            for kvm in self.vms:
                for vcpu in kvm.vcpus:
                    if not vcpu.mutex.acquire(blocking=False):
                        raise BlockingIOError(errno.EBUSY, f"vCPU {vcpu.vcpu_id} is running")
                    held.callback(vcpu.mutex.release)
            held.enter_context(self.timers.quiet())
            yield

    def power_off(self) -> None:
        """Switch the machine off as it is: what is closed from here on is not taken down first.

        For a program that ends, and its machine with it. The end of a TD is BLOCK, TRACK, REMOVE and a write-back for
        each page that it ever touched, which takes seconds, on the real kernel too.
        """
        self.files.powered_off = True

    def overwrite(self, guest_memfd: int, offset: int, data: bytes) -> None:
        """As `swtdx.uapi.abilities.Overwriting`."""
        file = self.files.get(guest_memfd)
        if not isinstance(file, GuestMemfd):
            raise err(errno.EBADF, f"fd {guest_memfd} is not a guest_memfd")
        file.overwrite(offset, data)

    def eventfd(self, initval: int = 0, flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
        """Make a real one. Raises OSError(EINVAL, EMFILE)."""
        try:
            return os.eventfd(initval, flags)
        except (OverflowError, ValueError) as error:
            raise err(errno.EINVAL, f"eventfd of {initval}, flags {flags:#x}") from error

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """Raises OSError: EBADF, EOPNOTSUPP, EINVAL."""
        file = self.files.get(fd)
        if file is None:
            self.fstat(fd)
            raise err(errno.EOPNOTSUPP, f"fd {fd} does not belong to the emulated kernel")
        file.enter()
        try:
            vfs_fallocate(file, mode, offset, length)
        finally:
            file.leave()

    @staticmethod
    def fstat(fd: int) -> os.stat_result:
        """Raises OSError(EBADF) unless ``fd`` is open."""
        try:
            return os.fstat(fd)
        except OverflowError as error:
            raise err(errno.EBADF, f"fd {fd}") from error
