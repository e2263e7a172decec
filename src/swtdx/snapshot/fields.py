# SPDX-License-Identifier: GPL-2.0-or-later
"""What of each class is the state of a machine, and what is not.

Every attribute of every class that a machine consists of is named here, once: as *state*, which a snapshot holds, or as
*fixed*: what the machine was built with (wiring, limits, configuration), what belongs to this process (descriptors,
addresses, locks, threads), and what follows from the state. ``tests/snapshot/test_fields.py`` compares this table with
the source: an attribute that is new is in one of the two lists or the test fails.

A class may have two methods beside: ``kept()``, which gives more plain data, and ``go_on(data)``, which is called when
all its state is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Fields:
    """The attributes of one class, its base classes' among them.

    ``refused``: an attribute that must be false ("not NAME": true) for the machine to be kept, and the sentence if not.
    ``frozen``: a frozen dataclass.
    """

    state: tuple[str, ...]
    fixed: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()
    frozen: bool = False

    def refuses(self, value: Any) -> str:
        """Return why an object cannot be kept; empty if it can."""
        for name, sentence in self.refused:
            found = bool(attrgetter(name.removeprefix("not "))(value))
            if found is not name.startswith("not "):
                return sentence
        return ""


def _fields(state: str = "", fixed: str = "", *refused: tuple[str, str], frozen: bool = False) -> Fields:
    return Fields(tuple(state.split()), tuple(fixed.split()), refused, frozen)


_FILE = " references descriptors inode opened_again unnamed inside table mm"
_PCI_FUNCTION = "registers writable _intx _intx_line"
_PCI_FIXED = "_observers _mmio _bars _last_capability _next_capability set_intx"

_CPU = {
    "swtdx.cpu._engine.GuestContext": _fields(),
    "swtdx.cpu.memory.PhysicalMemory": _fields(
        "_keys poisoned",
        "size random keyid_shift _address_mask _map raw qwords keyids poison fresh uses on_broken _windows "
        "_window_bases _next_window _free_windows _windows_lock _engine regions",
    ),
    "swtdx.cpu.processor.Processor": _fields(
        "memory _interrupted _msrs msrs_changed",
        "platform clock random _tsc_ratio _tsc_bias _module _engine _engine_lock _on_lp _left_lp first_touches "
        "context_class",
    ),
    "swtdx.cpu.processor.SeamArgs": _fields("r8 r9 r10 r11 r12 r13 r14 r15 rbx rcx rdi rdx rsi"),
}

_SEAM = {
    "swtdx.seam.contention.Contention": _fields("_held _interrupted entropy", "_pamt _vcpus _tds"),
    "swtdx.seam.cpuid.VirtualCpuid": _fields("_static", "_td _processor _version values"),
    "swtdx.seam.identity.Identity": _fields(
        "cpu_svn tee_tcb_svn tee_tcb_svn2 tcb_info_valid mrseam mrsignerseam report_key", frozen=True
    ),
    "swtdx.seam.keys.KeyOwnershipTable": _fields("_state _write_back_pending", "private"),
    "swtdx.seam.module.TdxModule": _fields(
        "identity initialized_lps shut_down_lps packages_configured global_hkid tsc_adjust kot pamt tds vcpus "
        "interrupted_write_back contention _state",
        "version leaves tdcalls processor memory platform lock _open _presented host td_rules",
    ),
    "swtdx.seam.pamt.Pamt": _fields("_progress", "_memory _hkid_shift _qwords tdmrs blocks"),
    "swtdx.seam.sept.SecureEpt": _fields("levels root", "range table qwords"),
    "swtdx.seam.td.Td": _fields(
        "hpa hkid pamt_index uuid child_count tdcx packages_configured _lifecycle fatal _op_state tlb_tracking sept "
        "cpuid vcpus num_vcpus x2apic_ids num_associated epoch refcount attributes xfam max_vcpus num_l2_vms "
        "config_flags td_ctls notify_enables vm_ctls hp_lock_timeout topology_enum_configured virt_maxpa tsc_frequency "
        "tsc_multiplier tsc_offset arch_capabilities private_limit gpa_limit shared_bit illegal_gpa_bits debug "
        "passes_rbp mrtd mrconfigid mrowner mrownerconfig rtmr rtmr_events tee_info_hashed servtd_hash",
        "version allowed _locks msrs params mrtd_context",
        ("is_being_built", "a TD is being built: it can be kept when its measurement is final (KVM_TDX_FINALIZE_VM)"),
        ("_locks", "a lock of a TD is held"),
    ),
    "swtdx.seam.vcpu.Vcpu": _fields(
        "hpa td pamt_index pages state index x2apic_id lp epoch flush_needed last_td_exit host_waits_since pending_nmi "
        "last_exit_tsc ve injected cpuid_supervisor_ve cpuid_user_ve cpuid_control context msrs posted_vector "
        "posted_descriptor shared_eptp pin_controls proc2_controls instruction_timeout"
    ),
    "swtdx.seam.vcpu.VeInfo": _fields("valid exit_reason qualification gla gpa instruction_length instruction_info"),
}

_KVM = {
    "swtdx.linux.arch.x86.kvm.cpuid.CpuidTable": _fields(
        "entries _exact _any _max_basic _max_extended _features7 pv_features has_xsaves reserved_gpa_bits "
        "is_amd_compatible _speculation"
    ),
    "swtdx.linux.arch.x86.kvm.i8254.Pit": _fields("_timer _expires speaker state", "_kvm _lock _clock"),
    "swtdx.linux.arch.x86.kvm.i8259.Pic": _fields("chips output", "_kvm _lock"),
    "swtdx.linux.arch.x86.kvm.ioapic.IoApic": _fields("state", "_kvm _lock"),
    "swtdx.linux.arch.x86.kvm.irq_comm.IrqRouting": _fields("routes pins irqfds _sources", "_kvm _lock"),
    "swtdx.linux.arch.x86.kvm.lapic.Lapic": _fields(
        "page base arb_prio lvts lapic_timer _tmict_start _period tsc_deadline pending_init pending_sipi sipi_vector "
        "pending_ioapic_eoi",
        "vcpu _regs",
    ),
    "swtdx.linux.arch.x86.kvm.mmu.direct.DirectRoot": _fields("levels _tables leaves root", "_pages _qwords"),
    "swtdx.linux.arch.x86.kvm.mmu.mirror.KvmMmuPage": _fields("external_spt gfn leaves level tables"),
    "swtdx.linux.arch.x86.kvm.mmu.mirror.MirrorRoot": _fields("levels root mapped huge", "_kvm"),
    "swtdx.linux.arch.x86.kvm.mmu.tdp_mmu.TdpMmu": _fields("direct mirror invalidating direct_bits", "kvm lock"),
    "swtdx.linux.arch.x86.kvm.vmx.posted_intr.PostedInterruptDescriptor": _fields(
        "hpa requests", "_pages _qwords _lock"
    ),
    "swtdx.linux.arch.x86.kvm.vmx.tdx.KvmTdx": _fields(
        "state hkid tdr tdcs attributes xfam gpaw tsc_offset tsc_multiplier premapped wait_for_sept_zap source_page "
        "orphans",
        "host",
    ),
    "swtdx.linux.arch.x86.kvm.vmx.tdx_vcpu.VcpuTdx": _fields(
        "pi_desc initialized tdvpr tdcx associated_cpu vp_enter_args vp_enter_ret halted shared_eptp_written "
        "map_gpa_next map_gpa_end"
    ),
    "swtdx.linux.arch.x86.kvm.vmx.vmx.VcpuVmx": _fields(
        "context pi_desc exit_reason tsc_offset tsc_multiplier spec_ctrl entry_unchecked entry_fails event_injected "
        "exception_payload given guest_debug singlestep_rip guest_dr"
    ),
    "swtdx.linux.arch.x86.kvm.x86.async_pf.AsyncPf": _fields("wakes_all requested", "_vcpu"),
    "swtdx.linux.arch.x86.kvm.x86.mce.MachineCheck": _fields("mcg_cap mcg_status mcg_ctl mcg_ext_ctl banks ctl2"),
    "swtdx.linux.arch.x86.kvm.x86.msr_filter.MsrFilter": _fields("default_allow ranges", frozen=True),
    "swtdx.linux.arch.x86.kvm.x86.msrs.EmulatedMsrs": _fields(
        "values arch_capabilities feat_ctl mce tsc_adjust", "vcpu"
    ),
    "swtdx.linux.arch.x86.kvm.x86.pvclock.KvmClock": _fields(
        "wall_clock boot_vcpu_runs_old_kvmclock _hertz _zero_tsc _master_tsc _offset", "_kvm _lock"
    ),
    "swtdx.linux.arch.x86.kvm.x86.pvclock.PvTime": _fields("msr guest_stopped", "_vcpu"),
    "swtdx.linux.arch.x86.kvm.x86.steal_time.StealTime": _fields("msr waited_ns _last _preempted", "_vcpu"),
    "swtdx.linux.arch.x86.kvm.x86.tsc.TscGeneration": _fields("user_set offset multiplier", "lock"),
    "swtdx.linux.arch.x86.kvm.x86.vcpu.Vcpu": _fields(
        "run run_flags mp_state cpu entries spin_seconds _spin_backoff sigset has_run nmi_queued nmi_pending "
        "triple_fault_pending pv_features_enforced pv_unhalted pending_external_vector apic _apic_base cpuid "
        "cr4_guest_rsvd_bits virtual_tsc_khz msrs pv_time steal_time async_pf stat vmx tdx",
        "kvm ops is_td vcpu_id vcpu_idx mutex is_bsp in_guest blocking kicked _wait _signals interrupted "
        "complete_userspace_io",
        ("complete_userspace_io", "a vCPU has an exit that is not completed: KVM_RUN with immediate_exit completes it"),
    ),
}

_KERNEL = {
    "swtdx.linux.arch.x86.virt.vmx.tdx.tdx.TdxHost": _fields(
        "_free_hkids leaked_hkids",
        "processor pages seamcall packages package_cpus hkid_shift global_keyid _hkid_lock lock sysinfo tdmrs",
    ),
    "swtdx.linux.mm.PageAllocator": _fields("next_page end given_back _free_huge _numbers _used_huge", "memory lock"),
    "swtdx.linux.sched.Timer": _fields("shut_down", "_queue function expires _ticket"),
    "swtdx.linux.sched.TimerQueue": _fields(
        "", "_clock _heap _armed _tickets _changed _thread _running _returned _off"
    ),
    "swtdx.linux.uaccess.Mm": _fields("", "pid kept_maps _maps_lock"),
    "swtdx.linux.virt.kvm.binary_stats.Statistics": _fields("values", "_id _statistics _count _file"),
    "swtdx.linux.virt.kvm.coalesced_mmio.CoalescedRing": _fields("", "page descriptor _lock"),
    "swtdx.linux.virt.kvm.coalesced_mmio.Zone": _fields("address size pio", frozen=True),
    "swtdx.linux.virt.kvm.eventfd.Buses": _fields("ring pio mmio ccw", "ports"),
    "swtdx.linux.virt.kvm.eventfd.IoBus": _fields(
        "zones active", "listeners _ring", ("listeners", "the VM has ioeventfds, which belong to this process")
    ),
    "swtdx.linux.virt.kvm.eventfd.Irqfds": _fields(
        "", "_kvm _irqfds", ("_irqfds", "the VM has irqfds, which belong to this process")
    ),
    "swtdx.linux.virt.kvm.guest_memfd.GuestMemfd": _fields(
        "pages huge cleared bindings",
        "kvm length size supports_mmap init_shared" + _FILE,
        ("supports_mmap", "user space may map a guest_memfd: it is not the machine's memory alone"),
    ),
    "swtdx.linux.virt.kvm.hva.HvaMapping": _fields("_windows", "_pool _mm address length"),
    "swtdx.linux.virt.kvm.hva.UserWindows": _fields("_shared", "_memory _lock"),
    "swtdx.linux.virt.kvm.hva._Window": _fields("start end hpa writable shared", frozen=True),
    "swtdx.linux.virt.kvm.kvm_main.Kvm": _fields(
        "mm tdx dead _death memslots attributes has_attributes mmu created_vcpus stat max_vcpus max_vcpu_ids "
        "bsp_vcpu_id irqchip_mode irq_routing buses nr_reserved_ioapic_pins pic ioapic pit x2apic_format "
        "x2apic_broadcast_quirk_disabled suppress_eoi_broadcast apic_bus_cycle_ns tsc default_tsc_khz "
        "hypercall_exit_enabled user_space_msr_mask msr_filter disabled_quirks disabled_exits "
        "exception_payload_enabled bus_lock_detection manual_dirty_log_protect dirty_log_initially_set "
        "triple_fault_event exit_on_emulation_error guest_can_read_platform_info clock vcpus",
        "kernel ops pages processor cpus vm_type is_td is_sw_protected number users _users_lock lock slots_lock "
        "guest_memfds",
    ),
    "swtdx.linux.virt.kvm.memory_attributes.MemoryAttributes": _fields("_starts _ends _values generation"),
    "swtdx.linux.virt.kvm.memslots.Memslot": _fields(
        "flags base_gfn hva gmem gmem_pgoff dirty_bitmap", "slot_id as_id npages userspace_addr gmem_only gmem_window"
    ),
    "swtdx.linux.virt.kvm.memslots.Memslots": _fields("by_id _entries generation", "_hvas _sizes _indexed _hva_lock"),
    "swtdx.machine.MachineKernel": _fields(
        "processor pages module tdx vms user_windows",
        "config release release_name dialect tdx_huge_page last_refusal sees_signals files cpus timers irqfd_thread "
        "max_vcpu_ids supported_xcr0 supported_xfam arch_capabilities kvm_x86_ops supported_vm_types capabilities "
        "flush_trace _faults new_wait_queue msr_index_list",
    ),
    "swtdx.uapi.reason.Reason": _fields("text leaf status rcx rdx by_guest", frozen=True),
}

_VMM = {
    "swtdx.vmm.board.acpi_pm.AcpiPm": _fields(
        "_sci _events _enabled_events _control _reset_control", "_ports _request _clock _set_sci _base"
    ),
    "swtdx.vmm.board.bus.MmioBus": _fields("_ranges"),
    "swtdx.vmm.board.bus.MmioRange": _fields("start length", "device"),
    "swtdx.vmm.board.fw_cfg.FwCfg": _fields("_items _current _offset _dma_address", "_memory"),
    "swtdx.vmm.board.i8254.I8254": _fields("_counters _port61", "_clock"),
    "swtdx.vmm.board.i8254._Counter": _fields(
        "_mode _access _reload _started _gate _elapsed_at_stop _latched _status _high_next _pending_low", "_clock"
    ),
    "swtdx.vmm.board.i8259.I8259Pair": _fields("master slave _level"),
    "swtdx.vmm.board.i8259._Chip": _fields("request in_service mask vector_base _expecting _read_in_service"),
    "swtdx.vmm.board.ioapic.IoApic": _fields("_select _id _entries _level", "_signal _route"),
    "swtdx.vmm.board.pci.ConfigSpace": _fields("registers writable", "_observers"),
    "swtdx.vmm.board.pci.PciBus": _fields("_address functions", "ecam"),
    "swtdx.vmm.board.pci_function.Msix": _fields("_table _pending", "vectors _function _signal _control"),
    "swtdx.vmm.board.pci_function.PciFunction": _fields(_PCI_FUNCTION, _PCI_FIXED),
    "swtdx.vmm.board.q35.Board": _fields(
        "mmio power_event debug_exit_value ioapic pic timer pm _rtc_timer rtc fw_cfg com1 pci _virtio _asserted_intx",
        "lock ports clock acpi _build_acpi _other_files _alter_acpi debug_console reset_line pvpanic _signal_msi",
    ),
    "swtdx.vmm.board.rtc.Rtc": _fields("_offset _flags _irq _seen _index _memory", "_now _set_irq _alarm _set_timer"),
    "swtdx.vmm.board.timer.BoardTimer": _fields(
        "", "_lock _clock function _deadline _changed _thread _off _generation"
    ),
    "swtdx.vmm.board.uart16550.Uart16550": _fields(
        "_received _divisor _ier _fcr _lcr _mcr _scratch _transmitter_interrupt _overrun _irq", "_base _send _set_irq"
    ),
    "swtdx.vmm.board.virtio.blk.VirtioBlk": _fields(
        "",
        "_disk _capacity features config transport stopping",
        ("not _disk.read_only", "a disk can be written, and what is on it is not kept: use --disk FILE,ro"),
    ),
    "swtdx.vmm.board.virtio.console.VirtioConsole": _fields("_typed config features", "_put transport stopping"),
    "swtdx.vmm.board.virtio.pci.VirtioPci": _fields(
        _PCI_FUNCTION + " queues msix _status _accepted _device_feature_select _driver_feature_select _queue_select "
        "_config_vector _isr device _offered",
        _PCI_FIXED + " _window _say",
    ),
    "swtdx.vmm.board.virtio.ring.Virtqueue": _fields(
        "size enabled vector descriptors driver_area device_area _next_available _used", "_memory maximum_size altered"
    ),
    "swtdx.vmm.board.virtio.rng.VirtioRng": _fields("", "_random features config transport stopping"),
    "swtdx.vmm.launch.Machine": _fields(
        "slots board event_notification", "plan vm vcpus capabilities mrtd added _undo"
    ),
    "swtdx.vmm.memory.GuestMemory": _fields("_ranges"),
    "swtdx.vmm.memory.UserMemory": _fields("", "length address view _mapping regions"),
    "swtdx.vmm.slots.MemorySlots": _fields("memory", "vm slots"),
    "swtdx.vmm.tdvmcall.EventNotification": _fields("target"),
}

FIELDS: dict[str, Fields] = {**_CPU, **_SEAM, **_KVM, **_KERNEL, **_VMM}
"""By the name of the class."""

CREATABLE = frozenset(
    {
        "swtdx.linux.arch.x86.kvm.mmu.mirror.KvmMmuPage",
        "swtdx.linux.arch.x86.kvm.x86.msr_filter.MsrFilter",
        "swtdx.linux.virt.kvm.coalesced_mmio.Zone",
        "swtdx.linux.virt.kvm.hva._Window",
        "swtdx.uapi.reason.Reason",
    }
)
"""Classes of plain data, of which a machine may have more or fewer as it runs."""

ENUMERATIONS = frozenset(
    {
        "swtdx.cpu.vmx.ExitReason",
        "swtdx.image.fw_cfg_items.Key",
        "swtdx.linux.arch.x86.kvm.vmx.tdx.TdState",
        "swtdx.linux.virt.kvm.kvm_main.IrqchipMode",
        "swtdx.linux.virt.kvm.kvm_main.SuppressEoiBroadcast",
        "swtdx.seam.lifecycle.HkidState",
        "swtdx.seam.lifecycle.LastTdExit",
        "swtdx.seam.lifecycle.LifecycleState",
        "swtdx.seam.lifecycle.OpState",
        "swtdx.seam.lifecycle.SysState",
        "swtdx.seam.lifecycle.VcpuState",
        "swtdx.seam.status.Operand",
        "swtdx.vmm.board.acpi_pm.PowerEvent",
        "swtdx.x86.Msr",
    }
)

STRUCTURES = frozenset(
    {
        "swtdx.uapi.asm_kvm.kvm_cpuid_entry2",
        "swtdx.uapi.asm_kvm.kvm_ioapic_state",
        "swtdx.uapi.asm_kvm.kvm_pic_state",
        "swtdx.uapi.asm_kvm.kvm_pit_state2",
    }
)
