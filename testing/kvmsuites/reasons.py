# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a test does not pass, as analysed by hand: test -> (a part of what it printed, a sentence).

Only an outcome that has that part gets the sentence, so that an old reason does not hide a new failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testing.kvmsuites.running import Outcome

Reasons = Mapping[str, Sequence[tuple[str, str]]]

_HOST_CPUID = (
    "The test executes CPUID in its own process, which under swtdx exec shows this machine's processor: on one of AMD "
    "it expects KVM's behaviour there. Built with host_cpu_is_intel = true (lib/x86/processor.c) it passes."
)
_BOTH_HYPERCALLS = (
    "Where this machine's processor is AMD's, that of swtdx exec has VMMCALL beside VMCALL: neither is undefined, and "
    "KVM has none to replace. With VMCALL alone, as on a machine of Intel's, and host_cpu_is_intel = true it passes."
)
_UNRESTRICTED = (
    "It runs on Intel's processors alone, and asks CPUID in its own process. Told that this is one it is skipped, too: "
    "it needs kvm_intel.unrestricted_guest=N, and a processor with EPT has Y."
)
_TSC = "The guest's TSC is the host's scaled to a multiple of 25 MHz; the test compares it with RDTSC of its process."
_SLOW = "It makes thousands of memory slots or maps gigabytes page by page, and did not end on the loaded machine."
_RACE = (
    "It assigns and takes away an eventfd 80,000 times while another thread does the same without a pause; that takes "
    "some 2 ms each here, of which the other thread has half."
)
_PARAVIRT = "The processor has no such feature (CPUID)."
_LOAD = "It compares times or counts switches of its threads, and others had the processors of the loaded machine."
_FORKS = "It makes 512 VMs, each in a process of its own, one after another, and did not end on the loaded machine."
_TURNS = (
    "Two virtual processors send each other 130,000 NMIs, each of which waits for the other in a loop: where others "
    "have the processors of the machine, it does not end in ten minutes."
)
_SIEVE = "It sieves up to 100 million numbers again and again; the emulated processor computes several times slower."
_BACKDOOR = (
    "kvm.enable_vmware_backdoor is off, as it is by default. The suite's own runner skips the test then (its 'check')."
)
_NO_PMU = "There is no PMU, as with kvm.enable_pmu=N. The suite's own runner skips the test then (its 'check')."

SELFTESTS: dict[str, list[tuple[str, str]]] = {
    "x86/feature_msrs_test": [("quirked MSR 0x8b", _HOST_CPUID)],
    "x86/fix_hypercall_test": [("native_hypercall_insn", _BOTH_HYPERCALLS)],
    "x86/xapic_state_test": [("kvm_amd/parameters", _HOST_CPUID)],
    "x86/vmx_exception_with_invalid_guest_state": [("host_cpu_is_intel", _UNRESTRICTED)],
    "x86/kvm_buslock_test": [("host_cpu_is_intel", _HOST_CPUID)],
    "x86/msrs_test": [("Unexpected #GP on WRMSR(0xc0000103", _HOST_CPUID)],
    "irqfd_test": [("did not end", _RACE)],
    "system_counter_offset_test": [("unexpected system counter value", _TSC)],
    "memslot_perf_test": [("did not end", _SLOW)],
    "mmu_stress_test": [("did not end", _SLOW)],
    "dirty_log_perf_test": [("did not end", _SLOW)],
    "x86/apic_bus_clock_test": [("Frequency =", _LOAD)],
    "rseq_test": [("disable this sanity check", _LOAD), ("did not end", _LOAD)],
    "hardware_disable_test": [("did not end", _FORKS)],
}
UNIT_TESTS: dict[str, list[tuple[str, str]]] = {
    "pks": [("PKS not enabled", _PARAVIRT)],
    "vmware_backdoors": [("rdpmc_test", _BACKDOOR)],
    "pmu": [("core cycles", _NO_PMU)],
    "sieve": [("did not end", _SIEVE)],
    "x2apic": [("did not end", _TURNS)],
    "xapic": [("did not end", _TURNS)],
}


def _reason(reasons: Reasons, name: str, outcome: Outcome) -> str:
    printed = f"{outcome.reason}\n{outcome.output}"
    return next((sentence for part, sentence in reasons.get(name, ()) if part in printed), "")


def selftest_reason(name: str, outcome: Outcome) -> str:
    """Return the sentence for a selftest of the kernel, or "" if it has not been analysed."""
    return _reason(SELFTESTS, name, outcome)


def unit_test_reason(name: str, outcome: Outcome) -> str:
    """Return the sentence for a kvm-unit-test, or "" if it has not been analysed."""
    return _reason(UNIT_TESTS, name, outcome)
