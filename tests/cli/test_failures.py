# SPDX-License-Identifier: GPL-2.0-or-later
"""Real failures: the embedded kernel refuses, and the explanation names the rule that was broken, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.cpu.platform import Platform
from swtdx.explain.failure import Failed, explain_failure
from swtdx.explain.notes import failure_lines
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vm
from swtdx.uapi.client.error import errno_name
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.reason import Reason
from testing.tdvf_image import image_with
from tests.cli.conftest import Command
from tests.vmm.fake_kernel import FakeKernel


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    dialect = getattr(request, "param", Dialect.UPSTREAM)
    with Kvm(open_kernel("emulated", dialect, Platform(memory_size=1 << 30, logical_processors=2)), dialect) as device:
        yield device


def initialise(device: Kvm, td: Vm, **changes: Any) -> None:
    capabilities = td.tdx_capabilities()
    cpuid = changes.pop("cpuid", capabilities.configure(device.supported_cpuid(), 48))
    given = {"attributes": 0, "xfam": 3 | capabilities.xfam_required} | changes
    td.tdx_init(given["attributes"], given["xfam"], cpuid)


def rules_of(error: KvmError, dialect: Dialect = Dialect.UPSTREAM) -> str:
    """What is said of it without the kernel's own reason, which a real one does not tell."""
    found = explain_failure(Failed(errno_name(error.errno or 0), error.ioctl, error.hw_error), dialect)
    if "status" in found:
        return " ".join([found["status"]["leaf"], *found["status"]["rules"]])
    return " ".join(rule["rule"] for rule in found["rules"])


def low_frequency(device: Kvm, td: Vm) -> None:
    td.ioctl(k.KVM_SET_TSC_KHZ, 50_000)
    initialise(device, td)


def a_vcpu_too_early(device: Kvm, td: Vm) -> None:
    td.create_vcpu(0)


def twice(device: Kvm, td: Vm) -> None:
    initialise(device, td)
    initialise(device, td)


def no_vcpu_at_all(device: Kvm, td: Vm) -> None:
    initialise(device, td)
    td.tdx_finalize()


def too_many_vcpus(device: Kvm, td: Vm) -> None:
    initialise(device, td)
    for number in range(3):
        td.create_vcpu(number)


def no_x2apic(device: Kvm, td: Vm) -> None:
    initialise(device, td)
    vcpu = td.create_vcpu(0)
    vcpu.set_cpuid2([])
    vcpu.tdx_init_vcpu()


@pytest.mark.parametrize(
    ("attempt", "ioctl", "errno", "words"),
    [
        (low_frequency, "KVM_TDX_INIT_VM", "EINVAL", ["TDH.MNG.INIT", "TSC_FREQUENCY is from 4 to 400"]),
        (a_vcpu_too_early, "KVM_CREATE_VCPU", "EIO", ["KVM_TDX_INIT_VM succeeded"]),
        (twice, "KVM_TDX_INIT_VM", "EINVAL", ["not initialised yet"]),
        (no_vcpu_at_all, "KVM_TDX_FINALIZE_VM", "EIO", ["TDH.MR.FINALIZE", "has a vCPU"]),
        (too_many_vcpus, "KVM_CREATE_VCPU", "EINVAL", ["KVM_CAP_MAX_VCPUS"]),
        (no_x2apic, "KVM_TDX_INIT_VCPU", "EINVAL", ["X2APIC"]),
    ],
)
def test_the_rule_that_was_broken_is_named(
    attempt: Callable[[Kvm, Vm], None], ioctl: str, errno: str, words: list[str], device: Kvm
) -> None:
    with device.create_td() as td:
        td.split_irqchip()
        with pytest.raises(KvmError) as caught:
            attempt(device, td)
    assert (caught.value.ioctl, errno_name(caught.value.errno or 0)) == (ioctl, errno)
    said = rules_of(caught.value)
    for word in words:
        assert word in said


@pytest.mark.parametrize("device", [Dialect.V10], indirect=True)
def test_v10_reports_what_the_module_says_of_attributes(device: Kvm) -> None:
    with device.create_td() as td:
        td.split_irqchip()
        with pytest.raises(KvmError) as caught:
            initialise(device, td, attributes=1 << 29 | 1)  # MIGRATABLE and DEBUG
    said = rules_of(caught.value, Dialect.V10)
    assert "TDH.MNG.INIT" in said
    assert "MIGRATABLE excludes DEBUG" in said


def test_the_cpuid_leaf_that_the_module_refuses_is_named(device: Kvm) -> None:
    """hw_error has the operand alone; RCX of the SEAMCALL has the leaf, and the reason has that."""
    with device.create_td() as td:
        td.split_irqchip()
        entries = td.tdx_capabilities().configure(device.supported_cpuid(), 48)
        topology = next(entry for entry in entries if entry.function == 4 and entry.index == 1)
        topology.eax |= 1 << 12  # reserved in leaf 4, and in no mask
        with pytest.raises(KvmError) as caught:
            initialise(device, td, cpuid=entries)
    said = "\n".join(failure_lines(caught.value, Dialect.UPSTREAM, device.kernel.last_refusal))  # type: ignore[attr-defined]
    assert "OPERAND_INVALID|CPUID_CONFIG" in said
    assert "leaf 0x4, sub-leaf 0x1" in said


def test_a_status_that_only_the_kernels_log_has(device: Kvm) -> None:
    """KVM does not return what VP.INIT or PAGE.ADD says; the reason of the embedded kernel has it, as dmesg would.

    The facts of the reason are explained, whatever its sentence is.
    """
    error = KvmError(5, "KVM_TDX_INIT_MEM_REGION")
    reason = Reason("the page cannot be added", "TDH.MEM.PAGE.ADD", 0xC0000B0D_00000001, rcx=0, rdx=0x400)
    said = "\n".join(failure_lines(error, Dialect.UPSTREAM, reason))
    for words in (
        reason.text,
        "EPT_ENTRY_STATE_INCORRECT|RCX",
        "the Secure-EPT entry is FREE",
        "swtdx explain EIO --command",
    ):
        assert words in said


# --- The command ------------------------------------------------------------------------------------------------------


def test_run_explains_a_status_from_init_vm(command: Command, firmware: Path) -> None:
    result = command("run", "--firmware", firmware, "--dialect", "v10", "--attributes", "0x20000001")
    assert result.status == 1
    for words in (
        "swtdx: the kernel refused: KVM_TDX_INIT_VM: EIO", "TDH.MNG.INIT", "OPERAND_INVALID|ATTRIBUTES",
        "MIGRATABLE excludes DEBUG", "Ask KVM_TDX_CAPABILITIES",
        "swtdx explain EIO --command KVM_TDX_INIT_VM --hw-error 0xc000010000000040 --dialect v10",
    ):  # fmt: skip
        assert words in result.err


def test_what_run_says_to_type_says_more(command: Command, firmware: Path) -> None:
    said = command("run", "--firmware", firmware, "--dialect", "v10", "--attributes", "0x20000001", "--quiet").err
    typed = said.splitlines()[-1].partition("swtdx ")[2].split()
    assert "ATTRIBUTES has only bits" in command(*typed).out


def test_run_explains_an_errno_of_kvms_own(command: Command, firmware: Path) -> None:
    result = command("run", "--firmware", firmware, "--dialect", "v10", "--attributes", "0x8000000000000000")
    assert result.status == 1
    for words in ("EOPNOTSUPP", "PERFMON is not supported", "attributes have no PERFMON"):
        assert words in result.err


def test_run_lists_the_rules_that_a_kernel_without_reasons_can_mean(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    scripted(FakeKernel()).refuse["KVM_CREATE_VCPU"] = 22
    result = command("run", "--firmware", firmware)
    assert result.status == 1
    for words in (
        "KVM_CREATE_VCPU: EINVAL",
        "one of these does not hold",
        "KVM_CAP_SPLIT_IRQCHIP",
        "KVM_CAP_MAX_VCPUS",
    ):
        assert words in result.err


def test_run_says_what_a_host_without_kvm_needs(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    scripted(FakeKernel()).refuse["open"] = 2
    result = command("run", "--firmware", firmware, "--kvm", "host")
    assert result.status == 2
    for words in ("/dev/kvm cannot be used: No such file or directory", "kvm_intel"):
        assert words in result.err


@pytest.mark.parametrize(
    ("arguments", "image", "words"),
    [
        ((), image_with(entry_guid=bytes(16)), ["no TDX metadata", "OVMF with TDX support"]),
        (("--attributes", "0x40000000"), image_with(), ["0x40000000", "it offers 0x10000000"]),
        (("--dialect", "v10", "--cpus", "8"), image_with(), ["8 vCPUs are more than this kernel gives a TD (4)"]),
    ],
)
def test_what_is_refused_before_any_ioctl_needs_no_more_than_its_sentence(
    arguments: tuple[str, ...],
    image: bytes,
    words: list[str],
    command: Command,
    scripted: Callable[[FakeKernel], FakeKernel],
    tmp_path: Path,
) -> None:
    scripted(FakeKernel())
    (tmp_path / "image.fd").write_bytes(image)
    result = command("run", "--firmware", tmp_path / "image.fd", *arguments, "--quiet")
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    for word in words:
        assert word in result.err


def test_run_explains_why_the_kernel_stopped_the_guest(command: Command, firmware: Path) -> None:
    """The image is all NOPs: it runs into address 0, which it never accepted. That is the guest's own fault."""
    result = command("run", "--firmware", firmware, "--quiet")
    assert result.status == 3
    for words in ("KVM_RUN: EIO", "before accepting it", "TDG.MEM.PAGE.ACCEPT", "swtdx explain EIO --command KVM_RUN"):
        assert words in result.err


def test_the_kernels_log_is_the_commands_own_line(command: Command, firmware: Path) -> None:
    said = command("run", "--firmware", firmware).err
    assert re.search(r"^swtdx: kernel: VM \d+ is dead: the guest touched", said, re.MULTILINE)
    quiet = command("run", "--firmware", firmware, "--quiet").err
    assert quiet.startswith("swtdx: the kernel stopped vCPU 0: KVM_RUN: EIO")
