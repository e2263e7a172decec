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
    "it expects KVM's behaviour there."
)
_TSC = "The guest's TSC is the host's scaled to a multiple of 25 MHz; the test compares it with RDTSC of its process."
_SLOW = "It makes thousands of memory slots or maps gigabytes page by page, and did not end on the loaded machine."
_PARAVIRT = "The processor has no such feature (CPUID)."

SELFTESTS: dict[str, list[tuple[str, str]]] = {
    "x86/feature_msrs_test": [("quirked MSR 0x8b", _HOST_CPUID)],
    "x86/fix_hypercall_test": [("native_hypercall_insn", _HOST_CPUID)],
    "x86/xapic_state_test": [("kvm_amd/parameters", _HOST_CPUID)],
    "x86/vmx_exception_with_invalid_guest_state": [("host_cpu_is_intel", _HOST_CPUID)],
    "system_counter_offset_test": [("unexpected system counter value", _TSC)],
    "set_memory_region_test": [("did not end", _SLOW)],
    "memslot_perf_test": [("did not end", _SLOW)],
    "mmu_stress_test": [("did not end", _SLOW)],
    "dirty_log_perf_test": [("did not end", _SLOW)],
}
UNIT_TESTS: dict[str, list[tuple[str, str]]] = {
    "pks": [("PKS not enabled", _PARAVIRT)],
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
