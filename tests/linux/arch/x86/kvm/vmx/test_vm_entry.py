# SPDX-License-Identifier: GPL-2.0-or-later
"""State that user space sets and no VM entry takes: KVM_RUN ends with KVM_EXIT_FAIL_ENTRY.

Each row breaks one rule of SDM volume 3, 27.2.1.3 and 27.3.1 ("Checks on the Guest State Area"), or keeps to it by a
hair. The processor is Intel's with an unrestricted guest, so that hosts of other kinds are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vcpu
from testing.long_mode import CODE, STACK, LongModeVm, split_irqchip

OUT = b"\xe6\x80"
GUEST_STATE, CONTROL_FIELDS = 0x80000021, 7
WIDE_ERROR_CODE = {
    "exception.injected": 1, "exception.nr": 13, "exception.has_error_code": 1, "exception.error_code": 1 << 16
}  # fmt: skip
Change = Callable[[k.kvm_sregs], None]


@pytest.fixture
def machine() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=split_irqchip) as made:
        made.load(OUT)
        yield made


def outcome(vcpu: Vcpu) -> int:
    """0 if the guest ran, else what the failed entry reports."""
    vcpu.run()
    if vcpu.exit_reason == k.Exit.FAIL_ENTRY:
        return int(vcpu.kvm_run.fail_entry.hardware_entry_failure_reason)
    assert vcpu.exit_reason == k.Exit.IO
    return 0


def segment(name: str, **members: int) -> Change:
    def change(sregs: k.kvm_sregs) -> None:
        for member, value in members.items():
            setattr(getattr(sregs, name), member, value)

    return change


def register(name: str, value: int) -> Change:
    return lambda sregs: setattr(sregs, name, value)


def protected(sregs: k.kvm_sregs) -> None:
    """32-bit protected mode without paging."""
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3 = 0x31, 0, 0, 0
    sregs.cs.l, sregs.cs.db = 0, 1


def real(sregs: k.kvm_sregs) -> None:
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3 = 0x30, 0, 0, 0
    code = k.kvm_segment(limit=0xFFFF, type=3, present=1, s=1)
    sregs.cs = sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = code


REFUSED: dict[str, tuple[Change, ...]] = {
    "CS is data": (segment("cs", type=1),),
    "CS is data that grows down": (segment("cs", type=5),),
    "CS is data to write, its level not 0": (segment("cs", type=3, dpl=3),),
    "CS is a system segment": (segment("cs", s=0),),
    "CS is not present": (segment("cs", present=0),),
    "CS is unusable": (segment("cs", unusable=1),),
    "CS with L and D": (segment("cs", db=1),),
    "CS of another level than SS": (segment("cs", dpl=3),),
    "conforming CS above SS": (segment("cs", type=13, dpl=1),),
    "CS beyond 4 GiB": (segment("cs", base=1 << 32),),
    "CS in pages, the limit not": (segment("cs", limit=0xFFFF_F000),),
    "CS in bytes, the limit too large": (segment("cs", g=0),),
    "SS is code": (segment("ss", type=11),),
    "SS for reading": (segment("ss", type=1),),
    "SS is a system segment": (segment("ss", s=0),),
    "SS beyond 4 GiB": (segment("ss", base=1 << 32),),
    "SS of level 3, CS is data": (segment("cs", type=3), segment("ss", dpl=3)),
    "SS of level 3 in real mode": (real, segment("ss", dpl=3)),
    "DS is code that cannot be read": (segment("ds", type=9),),
    "DS is a system segment": (segment("ds", s=0),),
    "DS beyond 4 GiB": (segment("ds", base=1 << 32),),
    "ES in bytes, the limit too large": (segment("es", g=0),),
    "FS not canonical": (segment("fs", base=1 << 56),),
    "GS not canonical": (segment("gs", base=1 << 63),),
    "TR is unusable": (segment("tr", unusable=1),),
    "TR is not present": (segment("tr", present=0),),
    "TR is a code or data segment": (segment("tr", s=1),),
    "TR of 16 bits in long mode": (segment("tr", type=3),),
    "TR is a call gate": (segment("tr", type=12),),
    "TR of the LDT": (segment("tr", selector=4),),
    "TR not canonical": (segment("tr", base=1 << 56),),
    "TR in pages, the limit not": (segment("tr", g=1),),
    "LDTR is a TSS": (segment("ldt", type=9, present=1, unusable=0),),
    "LDTR of the LDT": (segment("ldt", type=2, present=1, unusable=0, selector=4),),
    "LDTR is data": (segment("ldt", type=2, present=1, unusable=0, s=1),),
    "GDT not canonical": (lambda sregs: setattr(sregs.gdt, "base", 1 << 56),),
    "IDT not canonical": (lambda sregs: setattr(sregs.idt, "base", 1 << 63),),
    "CR3 beyond 52 bits": (protected, register("cr3", 1 << 52)),
}
TAKEN: dict[str, tuple[Change, ...]] = {
    "as it is": (),
    "CS of compatibility mode": (segment("cs", l=0, db=1),),
    "CS is data to write": (segment("cs", type=3),),
    "conforming CS": (segment("cs", type=15),),
    "CS not marked as accessed": (segment("cs", type=10),),  # KVM marks it (vmx_set_segment)
    "SS that grows down": (segment("ss", type=7),),
    "SS is unusable": (segment("ss", unusable=1, type=0, base=1 << 40),),
    "CS and SS of level 3": (protected, segment("cs", dpl=3), segment("ss", dpl=3)),
    "DS not marked as accessed": (segment("ds", type=2),),
    "DS is code": (segment("ds", type=11),),
    "DS is unusable": (segment("ds", unusable=1, base=1 << 40),),
    "DS is not present": (segment("ds", present=0, s=0),),
    "FS at the end of the lower half": (segment("fs", base=(1 << 56) - 1),),
    "LDTR": (segment("ldt", type=2, present=1, unusable=0, base=0x8000, limit=0xFFF),),
    "protected mode": (protected,),
    "TR of 16 bits": (protected, segment("tr", type=3)),
    "TR not marked as busy": (protected, segment("tr", type=10)),  # KVM sets bit 0, bit 1 is there
    "real mode": (real,),
}


def changed(machine: LongModeVm, changes: tuple[Change, ...]) -> Vcpu:
    sregs = machine.vcpu.get_sregs()
    for change in changes:
        change(sregs)
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x3002, rsp=STACK))  # IOPL 3
    return machine.vcpu


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_processor_enters_is_taken_and_fails_at_the_entry(machine: LongModeVm, name: str) -> None:
    vcpu = changed(machine, REFUSED[name])
    assert outcome(vcpu) == GUEST_STATE
    assert outcome(vcpu) == GUEST_STATE, "until user space sets another"
    machine.reset()
    assert outcome(vcpu) == 0


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_processor_enters_runs(machine: LongModeVm, name: str) -> None:
    assert outcome(changed(machine, TAKEN[name])) == 0


@pytest.mark.parametrize(
    ("rip", "rflags", "expected"),
    [
        (CODE, 2, 0),
        (CODE, 0, 0),  # KVM sets bit 1
        *((CODE, 2 | 1 << bit, GUEST_STATE) for bit in (3, 5, 15, 22, 31, 32, 63)),
        (CODE, 2 | 1 << 17, GUEST_STATE),  # virtual-8086 mode in long mode
        (1 << 57, 2, GUEST_STATE),
        (1 << 63, 2, GUEST_STATE),
    ],
)
def test_rip_and_flags(machine: LongModeVm, rip: int, rflags: int, expected: int) -> None:
    machine.vcpu.set_regs(k.kvm_regs(rip=rip, rflags=rflags, rsp=STACK))
    assert machine.vcpu.get_regs().rflags == rflags | 2
    assert outcome(machine.vcpu) == expected


def test_rip_beyond_4_gib_in_protected_mode(machine: LongModeVm) -> None:
    changed(machine, (protected,))
    machine.vcpu.set_regs(k.kvm_regs(rip=1 << 32 | CODE, rflags=2, rsp=STACK))
    assert outcome(machine.vcpu) == GUEST_STATE


@pytest.mark.parametrize(
    ("flags", "members", "expected"),
    [
        (2, {"interrupt.shadow": 1}, 0),
        (2, {"interrupt.shadow": 2}, GUEST_STATE),  # blocked by STI, and RFLAGS.IF is 0
        (0x202, {"interrupt.shadow": 2}, 0),
        (2, {"interrupt.shadow": 3}, 0),  # KVM sets the one of MOV SS alone
        (2, {"interrupt.injected": 1, "interrupt.nr": 0x30}, GUEST_STATE),
        (0x202, {"interrupt.injected": 1, "interrupt.nr": 0x30}, 0),
        (0x202, {"interrupt.injected": 1, "interrupt.nr": 0x30, "interrupt.shadow": 1}, GUEST_STATE),
        (2, {"nmi.injected": 1}, 0),
        (2, {"nmi.injected": 1, "interrupt.shadow": 1}, GUEST_STATE),
        (2, {"exception.injected": 1, "exception.nr": 6}, 0),
        (2, {"exception.injected": 1, "exception.nr": 6, "exception.has_error_code": 1}, CONTROL_FIELDS),
        (2, {"exception.injected": 1, "exception.nr": 13}, CONTROL_FIELDS),
        (2, {"exception.injected": 1, "exception.nr": 13, "exception.has_error_code": 1}, 0),
        (2, WIDE_ERROR_CODE, CONTROL_FIELDS),
    ],
)
def test_events(machine: LongModeVm, flags: int, members: dict[str, int], expected: int) -> None:
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=flags, rsp=STACK))
    events = k.kvm_vcpu_events(flags=k.KVM_VCPUEVENT_VALID_SHADOW)
    for name, value in members.items():
        part, member = name.split(".")
        setattr(getattr(events, part), member, value)
    machine.vcpu.set_vcpu_events(events)
    assert outcome(machine.vcpu) == expected


def test_an_error_code_in_real_mode_is_left_out(machine: LongModeVm) -> None:
    changed(machine, (real,))
    events = k.kvm_vcpu_events()
    events.exception.injected, events.exception.nr, events.exception.has_error_code = 1, 13, 1
    machine.vcpu.set_vcpu_events(events)
    machine.vcpu.run()
    assert machine.vcpu.exit_reason != k.Exit.FAIL_ENTRY


@pytest.mark.parametrize(("release", "errno_"), [("6.16", None), ("7.1", None), ("7.2", 22), ("7.3", 22)])
def test_bits_of_efer_that_no_processor_has(release: str, errno_: int | None) -> None:
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm, LongModeVm(kvm, setup=split_irqchip) as machine:
        sregs = machine.vcpu.get_sregs()
        sregs.efer |= 1 << 4
        if errno_ is not None:
            with pytest.raises(OSError) as refused:
                machine.vcpu.set_sregs(sregs)
            assert refused.value.errno == errno_
            return
        machine.vcpu.set_sregs(sregs)
        assert machine.vcpu.get_sregs().efer == sregs.efer
        assert outcome(machine.vcpu) == GUEST_STATE
