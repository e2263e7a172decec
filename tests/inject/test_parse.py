# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person may ask to fail, and one sentence for what cannot."""

from __future__ import annotations

import doctest
import errno

import pytest

from swtdx.inject import parse as parser
from swtdx.inject.injection import InjectionError, Line, When
from swtdx.inject.parse import parse

PAGE_AUG = "TDH.MEM.PAGE.AUG"


def test_the_examples_of_the_docstring() -> None:
    assert doctest.testmod(parser).failed == 0


@pytest.mark.parametrize("name", ["TDH.MEM.PAGE.AUG", "TDH_MEM_PAGE_AUG", "tdh.mem.page.aug", " tdh_mem_page_aug "])
def test_a_leaf_function_by_its_name(name: str) -> None:
    found = parse(f"{name}: OPERAND_BUSY|SEPT_TREE")
    assert (found.line, found.target, found.number) == (Line.SEAMCALL, PAGE_AUG, 6)
    assert found.answer == 0x80000200_00000092


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("OPERAND_BUSY", 0x80000200_00000002),  # the first check that can fail so is that of the TDR, in RDX
        ("operand_busy|r8", 0x80000200_00000008),
        ("TDX_OPERAND_INVALID|RCX", 0xC0000100_00000001),
        ("EPT_WALK_FAILED", 0xC0000B00_00000001),
        ("TD_FATAL", 0xE0000604_00000000),
        ("RND_NO_ENTROPY", 0x80000203_00000000),
        ("NON_RECOVERABLE_TD|TRIPLE_FAULT", 0x60000002_00000002),
        ("0x8000020000000092", 0x80000200_00000092),
        ("SEAMCALL_VMFAILINVALID", 0x8000FF00_FFFF0000),
        ("SEAMCALL_UD", 0x8000FF00_00000006),
    ],
)
def test_a_status(answer: str, status: int) -> None:
    assert parse(f"{PAGE_AUG}: {answer}").answer == status


@pytest.mark.parametrize("answer", ["EINTR", "eintr", "-EINTR", "4"])
def test_an_errno(answer: str) -> None:
    found = parse(f"kvm_run: {answer}")
    assert (found.line, found.target, found.number, found.answer) == (Line.IOCTL, "KVM_RUN", 0xAE80, errno.EINTR)


def test_a_sub_command() -> None:
    found = parse("KVM_TDX_INIT_MEM_REGION: EAGAIN")
    assert (found.number, found.is_command) == (3, True)


@pytest.mark.parametrize(
    ("words", "when"),
    [
        ("", When()),
        ("@3", When(3, 3)),
        ("@3-5", When(3, 5)),
        ("@3+", When(3, None)),
        ("every 10", When(every=10)),
        ("2.5% seed 7", When(chance=0.025, seed=7)),
        ("@10+, every 2", When(10, None, 2)),
        ("gpa 0x1234", When(area=range(0x1000, 0x2000))),
        ("gpa 0x80000000-0x80200000", When(area=range(0x80000000, 0x80200000))),
    ],
)
def test_when(words: str, when: When) -> None:
    assert parse(f"{PAGE_AUG}: OPERAND_BUSY {words}").when == when


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["as in TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"]),
        ("TDH.MEM.PAGE.AUG OPERAND_BUSY", ["as in TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"]),
        ("TDH.MEM.PAGE.AUG:", ["as in TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"]),
        (": OPERAND_BUSY", ["as in TDH.MEM.PAGE.AUG: OPERAND_BUSY @3"]),
        ("TDH.MEM.PAGE.ADDD: OPERAND_BUSY", ["no leaf function or ioctl", "did you mean TDH.MEM.PAGE.ADD?"]),
        ("KVM_CREATE_VCPUS: EIO", ["no leaf function or ioctl", "did you mean KVM_CREATE_VCPU?"]),
        ("KVM_TDX_INIT_VN: EIO", ["did you mean KVM_TDX_INIT_VM?"]),
        ("frob: EIO", ["no leaf function or ioctl 'frob'"]),
        ("TDG.MR.REPORT: OPERAND_BUSY", ["called by guests"]),
        ("TDH.MEM.PAGE.AUG: OPERAND_BUSI", ["no status OPERAND_BUSI", "did you mean OPERAND_BUSY?"]),
        ("TDH.MEM.PAGE.AUG: OPERAND_BUSY|SEPT_TRE", ["no operand SEPT_TRE", "did you mean SEPT_TREE?"]),
        ("TDH.MEM.PAGE.AUG: EBUSY", ["EBUSY is an errno", "leaf function"]),
        ("TDH.MEM.PAGE.AUG: SUCCESS", ["not a failure"]),
        ("TDH.MEM.PAGE.AUG: 0x10000000000000000", ["within 64 bits"]),
        ("KVM_RUN: OPERAND_BUSY", ["KVM_RUN is an ioctl", "errno"]),
        ("KVM_RUN: EINTRR", ["no errno EINTRR", "did you mean EINTR?"]),
        ("KVM_RUN: 0", ["errno"]),
        ("KVM_RUN: EINTR @0", ["counted from 1"]),
        ("KVM_RUN: EINTR @5-3", ["counted from 1"]),
        ("KVM_RUN: EINTR sometimes", ["sometimes", "@3", "every 10"]),
        ("KVM_RUN: EINTR every", ["every"]),
        ("KVM_RUN: EINTR every 0", ["0 is not a valid number"]),
        ("KVM_RUN: EINTR every many", ["many is not a valid number"]),
        ("KVM_RUN: EINTR 0%", ["probability"]),
        ("KVM_RUN: EINTR 101%", ["probability"]),
        ("KVM_RUN: EINTR gpa 0x1000", ["KVM_RUN takes no guest physical address"]),
        ("TDH.VP.ENTER: TD_FATAL gpa 0x1000", ["TDH.VP.ENTER takes no guest physical address"]),
        ("TDH.MEM.PAGE.AUG: TD_FATAL gpa 2-1", ["not a range"]),
        ("TDH.MEM.PAGE.AUG: TD_FATAL gpa 0-0x20000000000000", ["not a range"]),
    ],
)
def test_one_sentence_for_what_is_not_an_injection(text: str, words: list[str]) -> None:
    with pytest.raises(InjectionError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(repr(text))
    for word in words:
        assert word in message
