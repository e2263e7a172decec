# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of kernel logs and of QEMU, as they are written there, and what `swtdx explain` must make of them.

The lines are those of arch/x86/virt/vmx/tdx/tdx.c, arch/x86/kvm/vmx/tdx.c and arch/x86/coco/tdx/tdx.c in Linux, and of
target/i386/kvm/tdx.c, accel/kvm/kvm-all.c and system/runstate.c in QEMU.
"""

from __future__ import annotations

import json
import re

import pytest

from swtdx.explain import table
from swtdx.explain.message import messages
from tests.cli.conftest import Command

STATUSES = [
    # (line, leaf function, status, operand)
    (
        "SEAMCALL (0x000000000000000f) failed: 0xc0000b0800000001 RCX 0x12345002 RDX 0x0000000000000400 R8 0x0 R9 0x0",
        "TDH.MEM.PAGE.DEMOTE", "TLB_TRACKING_NOT_DONE", "RCX",
    ),
    ("virt/tdx: SEAMCALL (0x0000000000000021) failed: 0xc000050500000000", "TDH.SYS.INIT", "SYS_NOT_READY", None),
    ("[  1.2] virt/tdx: SEAMCALL (0x0000000000010016) failed: 0x8000020000000092", "TDH.VP.INIT", "OPERAND_BUSY",
     "SEPT_TREE"),
    ("tdx: SEAMCALL failed: leaf 0x24, error 0x8000020000000000", "TDH.SYS.TDMR.INIT", "OPERAND_BUSY", "RAX"),
    ("SEAMCALL failed: leaf 2 (0x2), error 0xc0000b0d00000001", "TDH.MEM.PAGE.ADD", "EPT_ENTRY_STATE_INCORRECT", "RCX"),
    ("kvm_intel: SEAMCALL TDH_MEM_PAGE_AUG failed: 0xc0000b0d00000001, rcx 0x8000000012345000, rdx 0x401",
     "TDH.MEM.PAGE.AUG", "EPT_ENTRY_STATE_INCORRECT", "RCX"),
    ("SEAMCALL[TDH_MR_EXTEND] failed: 0xc0000b0000000001 entry 0x0 level_state 0x2", "TDH.MR.EXTEND", "EPT_WALK_FAILED",
     "RCX"),
    ("kvm_intel: TDH_VP_RD[VMCS.0x4402] failed 0xc000030000000000", "TDH.VP.RD", "PAGE_METADATA_INCORRECT", None),
    ("kvm_intel: TDH_VP_WR[VMCS.0x2014]=0x8000020000000092 failed: 0xc000030000000000", "TDH.VP.WR",
     "PAGE_METADATA_INCORRECT", None),
    ("SEAMCALL TDH_PHYMEM_PAGE_RECLAIM failed: 0xc000030000000001, rcx 0x3, rdx 0x8000000012345000, r8 0x0",
     "TDH.PHYMEM.PAGE.RECLAIM", "PAGE_METADATA_INCORRECT", "RCX"),
    ("kvm_intel: TDX_OPERAND_BUSY", None, "OPERAND_BUSY", None),
    ("kvm: got TDX_EPT_WALK_FAILED|RCX on fault", None, "EPT_WALK_FAILED", "RCX"),
    ("tdh_mem_range_block() returned TLB_TRACKING_NOT_DONE", "TDH.MEM.RANGE.BLOCK", "TLB_TRACKING_NOT_DONE", None),
    ("tdh_mng_key_freeid failed with TDX_TDCX_NUM_INCORRECT", "TDH.MNG.KEY.FREEID", "TDCX_NUM_INCORRECT", None),
    ("virt/tdx: SEAMCALL failed: CPU 3 is not in VMX operation", None, "UD", None),
    # The names of arch/x86/include/asm/tdx.h and shared/tdx.h, and the GHCI's own for the results of a TDVMCALL.
    ("TDX_SEAMCALL_VMFAILINVALID", None, "VMFAILINVALID", None),
    ("virt/tdx: first SEAMCALL: TDX_SEAMCALL_GP", None, "GP", None),
    ("TDX_SEAMCALL_UD", None, "UD", None),
    ("TDVMCALL_STATUS_RETRY", None, "RETRY", None),
    ("tdx: MapGPA ended with TDVMCALL_STATUS_RETRY", None, "RETRY", None),
    ("tdx: MapGPA: TDVMCALL_STATUS_INVALID_OPERAND", None, "INVALID_OPERAND", None),
    ("TDG.VP.VMCALL_ALIGN_ERROR", None, "ALIGN_ERROR", None),
    ("tdx: TDG.VP.VMCALL_RETRY", None, "RETRY", None),
    # Without 0x.
    ("8000020000000001", None, "OPERAND_BUSY", "RCX"),
    ("C000060400000000", None, "TD_FATAL", None),
    ("Nov 30 07:00:01 host kernel: tdh_sys_init: c000050500000000", "TDH.SYS.INIT", "SYS_NOT_READY", None),
    ("KVM internal error. Suberror: 4, extra data[0]: 0x6000000200000000", "TDH.VP.ENTER", "NON_RECOVERABLE_TD", None),
]  # fmt: skip


@pytest.mark.parametrize(("line", "leaf", "name", "operand"), STATUSES)
def test_a_status_in_a_line(line: str, leaf: str | None, name: str, operand: str | None, command: Command) -> None:
    found = json.loads(command("explain", line, "--json").out)
    status = found["status"] if isinstance(found.get("status"), dict) else found
    assert (status.get("leaf"), status["name"], status.get("operand")) == (leaf, name, operand)


@pytest.mark.parametrize(
    "line",
    [
        "foo rcx 0x123 bar",
        "entry 0x5",
        "R8=0x0 R9=0x10",
        "read 0x0000000012345678 bar",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "kvm: vcpu0 RIP 0xffffffff8107a2d4",
        "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1]",
    ],
)
def test_a_line_without_a_status_is_not_given_one(line: str, command: Command) -> None:
    """Registers and addresses alone were taken for SUCCESS, or for a TD exit."""
    result = command("explain", line)
    assert (result.status, result.out) == (1, "")
    assert "no line that has one" in result.err


def test_an_operand_that_is_not_known_is_not_made_up(command: Command) -> None:
    """A bare name in a line says as much as the bare word."""
    line, word = (command("explain", text).out for text in ("kvm_intel: TDX_OPERAND_BUSY", "OPERAND_BUSY"))
    assert line == word


FAILURES = [
    # (line, ioctl, errno, a word of a rule)
    ("error: kvm run failed Input/output error", "KVM_RUN", "EIO", "accepted"),
    ("error: kvm run failed Bad address", "KVM_RUN", "EFAULT", "attribute"),
    ("qemu-system-x86_64: error: kvm run failed Invalid argument", "KVM_RUN", "EINVAL", "FINALIZE"),
    ("ioctl(KVM_CREATE_VM) failed: 22 Invalid argument", "KVM_CREATE_VM", "EINVAL", "type"),
    ("Could not access KVM kernel module: Permission denied", "open", "EACCES", "may use"),
    ("Could not access KVM kernel module: No such file or directory", "open", "ENOENT", "exists"),
    ("qemu-system-x86_64: TDX ioctl TDX_INIT_MEM_REGION failed, hw_errors: 0x0: Resource temporarily unavailable",
     "KVM_TDX_INIT_MEM_REGION", "EAGAIN", "slot"),
    ("ioctl(12, KVM_RUN, 0) = -1 EINTR (Interrupted system call)", "KVM_RUN", "EINTR", "signal"),
    ("qemu: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=0, start=0x0: File exists",
     "KVM_SET_USER_MEMORY_REGION2", "EEXIST", "overlap"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "ioctl", "errno", "word"), FAILURES)
def test_a_failed_ioctl_in_a_line(line: str, ioctl: str, errno: str, word: str, command: Command) -> None:
    found = json.loads(command("explain", line, "--json").out)
    assert (found["command"], found["errno"]) == (ioctl, errno)
    assert any(word in rule["rule"] for rule in found["rules"])


@pytest.mark.parametrize("dialect", ["upstream", "v10"])
def test_init_mem_region_can_ask_for_another_try(dialect: str, command: Command) -> None:
    result = command("explain", "EAGAIN", "--command", "KVM_TDX_INIT_MEM_REGION", "--dialect", dialect)
    assert result.status == 0
    assert "Repeat the call" in result.out


MESSAGES = [
    # (line, words that the answer must have)
    ("[    0.0] tdx: VMM did not configure X2APIC_IDs properly", ["x2APIC", "KVM_TDX_INIT_VCPU"]),
    ("WARNING: CPU: 0 PID: 1 at tdx.c: HLT emulation with IRQs enabled", ["HLT", "TDVMCALL"]),
    ("HLT instruction emulation failed", ["HLT"]),
    ("ve->instr_len is not defined for EPT violations", ["length"]),
    ("Access to userspace address is not supported", ["memory-mapped I/O", "ioremap"]),
    ("Unknown insn_decode_mmio() decode value?", ["memory-mapped I/O"]),
    ("tdx: Failed to stop shared<->private conversions", ["kexec", "MapGPA"]),
    ("tdx: Failed to unshare range 0x100000-0x200000", ["kexec"]),
    ("tdx: nr_shared = 1, nr_found = 2", ["kexec"]),
    ("tdx_mcall_get_report0() failed: -5", ["TDG.MR.REPORT"]),
    ("tdx_mcall_extend_rtmr(2) failed: -16", ["TDG.MR.RTMR.EXTEND", "again"]),
    ("tdx_guest: Failed to allocate Quote buffer", ["shared memory"]),
    ("tdx_guest: Failed to restore encryption mask for Quote buffer, leak it", ["MapGPA"]),
    ('"tdx_guest" ops already registered', ["one driver"]),
    ("configfs/tsm/report not empty", ["rmdir"]),
    ("kvm [812]: vcpu0, guest rIP: 0xffffffff8107a2d4 unhandled rdmsr: 0x1a2", ["ignore_msrs"]),
    ("kvm: vmtype 5 not supported", ["KVM_CAP_VM_TYPES"]),
    ("virt/tdx: module initialization failed (-19)", ["none is loaded", "BIOS"]),
    ("virt/tdx: module initialization failed (-95)", ["#GP", "SEAMRR"]),
    ("virt/tdx: module initialization failed (-13)", ["#UD", "enable_virt_at_load"]),
    ("virt/tdx: module initialization failed (-5)", ["SEAMCALL"]),
    ("virt/tdx: module initialization failed (-12)", ["PAMT"]),
    ("virt/tdx: module initialization failed (-28)", ["TDMR"]),
    ("virt/tdx: module initialization failed (-22)", ["NO_RBP_MOD"]),
    ("virt/tdx: module initialization failed (-110)", ["until the next boot"]),
    ("virt/tdx: TDX-Module initialization failed (-19)", ["none is loaded"]),
    ("virt/tdx: module not loaded", ["none is loaded"]),
    ("virt/tdx: initialization failed: too few private KeyIDs available.", ["KeyID"]),
    ("kvm_intel: tdx: no TDX private KeyIDs available", ["KeyID"]),
    ("virt/tdx: initialization failed: Hibernation support is enabled", ["nohibernate"]),
    ("virt/tdx: initialization failed: TDMRs exhausted.", ["memory map"]),
    ("virt/tdx: initialization failed: TDMR [0x0, 0x80000000): reserved areas exhausted.", ["memory map"]),
    ("virt/tdx: frame pointer (RBP) clobber bug present, upgrade TDX module", ["NO_RBP_MOD"]),
    ("virt/tdx: BIOS enabled: private KeyID range [64, 128)", ["No failure"]),
    ("virt/tdx: module initialized", ["No failure"]),
    ("kvm_intel: tdx: MOVDIR64B is required for TDX", ["processor"]),
    ("kvm_intel: TDP MMU and MMIO caching and EPT A/D bit is required for TDX", ["tdp_mmu=1"]),
    ("kvm_intel: tdx: tdx requires kvm.enable_virt_at_load=1", ["enable_virt_at_load"]),
    ("kvm_intel: Disable TDX: MAX_VCPU_PER_TD (8) smaller than number of logical CPUs (16).", ["vCPUs"]),
    ("kvm_intel: TDX requires all packages to have an online CPU. Delete all TDs in order to offline all CPUs",
     ["KeyID|keys"]),
    ("kvm_intel: tdh_mng_key_freeid() failed. HKID 33 is leaked.", ["KeyID"]),
    ("mce: [Hardware Error]: TDX private memory error. Possible kernel bug.", ["wrong key"]),
    ("qemu-system-x86_64: cpus are not resettable, terminating", ["reset", "TDX module"]),
    ("qemu-system-x86_64: vm-type tdx not supported by KVM", ["KVM_CAP_VM_TYPES"]),
    ("qemu-system-x86_64: TDX VM doesn't support SMM", ["smm=off"]),
    ("qemu-system-x86_64: TDX VM doesn't support PIC", ["pic=off"]),
    ("qemu-system-x86_64: TDX VM requires kernel_irqchip to be split", ["kernel-irqchip=split"]),
    ("qemu-system-x86_64: Named cpu model is not supported for TDX yet!", ["-cpu host"]),
    ("KVM internal error. Suberror: 4", ["TDH.VP.ENTER"]),
    ("KVM: entry failed, hardware error 0x80000021", ["VM entry"]),
    ("tdx: TD misconfiguration: SEPT_VE_DISABLE attribute must be set.", ["bit 28"]),
    ("TDVMCALL failed. TDX module bug?", ["RBP"]),
    ("TDCALL 4 failed (Buggy TDX module!)", ["TDCALL"]),
    ("Unexpected #VE: 30", ["exit reason"]),
    ("tdx: Guest detected", ["No failure"]),
    ("vCPU 0 shut down: a triple fault", ["CONFIG_INTEL_TDX_GUEST", "#VE"]),
    ("BdsDxe: failed to load Boot0001 \"UEFI Misc Device\": Access Denied", ["Secure Boot"]),
    ("Kernel panic - not syncing: Attempted to kill init!", ["panicked"]),
    ("virt/tdx: RCX 0x0000000000000000 RDX 0x0000000000000000 R08 0x0000000000000000", ["line before"]),
    ("[    2.5] virt/tdx: R09 0x0000000000000000 R10 0x0000000000000000 R11 0x0000000000000000", ["line before"]),
    ("Nov 30 07:00:00 host kernel: virt/tdx: RCX 0x0000000012345002 RDX 0x0000000000000400 R08 0x0000000000000000",
     ["line before"]),
    ("<3>[    1.0] virt/tdx: R09 0x0000000000000000 R10 0x0000000000000000 R11 0x0000000000000000", ["line before"]),
    ("virt/tdx: SEAMCALL failed: TDX Module not loaded.", ["none is loaded"]),
    ("kvm: enabling virtualization on CPU0 failed", ["another hypervisor"]),
    ("ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy", ["another hypervisor"]),
    ("kvm: disabled by bios", ["VT-x"]),
    ("kvm_intel: VMX not supported by CPU 0", ["VT-x"]),
    ("kvm_intel: VMX (outside TXT) disabled by BIOS on CPU 1", ["VT-x"]),
    ("qemu-system-x86_64: Convert non guest_memfd backed memory region (0x80000000 ,+ 0x1000) to private",
     ["guest_memfd"]),
    ("qemu-system-x86_64: -object tdx-guest,id=tdx0: invalid object type: tdx-guest", ["QEMU 10.1"]),
    ("error: unsupported configuration: domain configuration does not support 'tdx' launch security", ["libvirt"]),
    ("error: unsupported configuration: launch security type 'tdx' is not supported with this QEMU binary",
     ["libvirt"]),
    ("KVM: exception 6 exit (error code 0x0)", ["exception"]),
    ("TDX: Failed to connect to QGS: No such file or directory", ["quote generation service"]),
    ("TDMR [0x0, 0x40000000): unable to find local NUMA node for PAMT allocation, fallback to use", ["No failure"]),
    ("kvm_intel: APICv is required for TDX", ["enable_apicv"]),
    ("kvm_intel: All packages need to have online CPU to create TD. Online CPU and retry.", ["online"]),
    ("kvm_intel: Guest access before accepting 0x1000 on vCPU 0", ["EIO"]),
    ("kvm_intel: MSR 10a isn't included by kvm_find_user_return_msr", ["MSR"]),
    ("kvm_intel: tdh_mng_vpflushdone() failed. HKID 17 is leaked.", ["TDH.MNG.VPFLUSHDONE"]),
    ("qemu: TDX requires guest CPU physical bits (46) to match host CPU physical bits (52)", ["phys-bits"]),
    ("Some QEMU unsupported TD attribute bits being requested: 0x1 (QEMU supported: 0x10000000)", ["ATTRIBUTES"]),
    ("Invalid XFAM 0x602e7 for TDX VM (supported: 0x3))", ["XFAM"]),
    ("KVM doesn't support KVM_CAP_X86_APIC_BUS_CYCLES_NS", ["25 MHz"]),
    ("Unable to set core crystal clock frequency to 25MHz: Invalid argument", ["25 MHz"]),
    ("Unable to set TSC frequency to 2100000 kHz: Invalid argument", ["tsc-freq"]),
    ("TDX: injection interrupt 64 failed, interrupt lost (Invalid argument).", ["quote"]),
    ("TDX: get-quote: failed to write quote data.", ["MapGPA"]),
    ("TDX: failed to update GetQuote header.", ["MapGPA"]),
    ("TDX: REPORT_FATAL_ERROR: invalid error code: 0x1", ["ReportFatalError"]),
    ("quote-generation-socket is not set", ["quote generation service"]),
    ("KVM_HC_MAP_GPA_RANGE not enabled for guest", ["6.16"]),
    ("warning: TDX doesn't support requested feature: CPUID[eax=07h,ecx=00h].EBX.hle [bit 4]", ["enforce"]),
    ("warning: TDX forcibly sets the feature: CPUID[eax=01h].ECX.pcid [bit 17]", ["enforce"]),
    ("KVM TDX seems broken that number of CPUID entries in kvm_tdx_capabilities exceeds limit", ["KVM_TDX_CAP"]),
    ("TDVF metadata doesn't specify TD_HOB location.", ["TD_HOB"]),
    ("Hardware RNG (Random Number Generator) is busy occupied by someone (via RDRAND/RDSEED)", ["entropy"]),
    ("KVM: unknown exit, hardware reason 31", ["exit reason"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), MESSAGES)
def test_a_message_is_recognized(line: str, words: list[str], command: Command) -> None:
    result = command("explain", line)
    assert result.status == 0
    for word in words:
        assert re.search(re.escape(word).replace(r"\|", "|"), result.out), result.out
    found = json.loads(command("explain", line, "--json").out)
    assert found["message"]["from"]


def test_every_row_is_whole() -> None:
    rows = table("messages")["messages"]
    assert len(rows) == len(messages())
    for row, message in zip(rows, messages(), strict=True):
        assert len(row) == 5
        assert message.meaning.endswith(".")
        assert message.remedy.endswith(".") or message.command, message
        for meaning, remedy in message.errnos.values():
            assert meaning.endswith(".")
            assert remedy.endswith(".")


def test_every_row_has_a_line_in_these_tests() -> None:
    """No row hides behind an earlier one: each is the first match of some line here, or of a sibling below."""
    siblings = [
        "register_memory_notifier() failed (-12)",
        "virt/tdx: Disable ACPI S3. Turn off TDX in the BIOS to use ACPI S3.",
        "kvm_intel: TD VMX unexpected EPT violation",
        "Invalid attributes 0x1 for TDX VM (KVM supported: 0x10000000)",
        "Invalid TSC 2600001 KHz, it must be multiple of 25MHz",
        "TDX 'mrconfigid' sha384 digest was 47 bytes, length should be 48",
        "TDX guest reported fatal error: code 0x1",
        "Failed to find TDVF metadata in firmware",
        "Failed to accept memory for TDVF section 3",
        "failed to initialize kvm: Operation not permitted",
        "kvm_init_vcpu: kvm_create_vcpu failed (0)",
        "failed to set memory (0x0+0x1000) with attr 0x8 error 'Invalid argument'",
        "KVM internal error. Suberror: 1",
        "KVM internal error. Suberror: 3",
        "KVM internal error. Suberror: 9",
        "tdx: Accepting memory failed",
        "tdx_guest: No such device",
        "GetQuote request failed, ret: 8000000000000001",
        "EPT is required for TDX",
        "MOVDIR64B is required for TDX",
    ]
    lines = [str(line) for line, *_ in [*STATUSES, *FAILURES, *MESSAGES]] + siblings
    first = {next((m.pattern for m in messages() if m.pattern.search(line)), None) for line in lines}
    assert [m.pattern.pattern for m in messages() if m.pattern not in first] == []


@pytest.mark.parametrize("line", ["the disk is full", "Hello, world", "0xabc is an address", "E_NOTHING happened"])
def test_any_other_line_is_refused(line: str, command: Command) -> None:
    assert command("explain", line).status == 1
