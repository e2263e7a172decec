# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion status: values of module 1.5.06 and their reading."""

from __future__ import annotations

import pytest

from swtdx.seam.status import ERROR, Operand, Status, StatusCode, decode, describe, detail_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "SUCCESS (0x0000000000000000)"),
        (0xC000010000000001, "OPERAND_INVALID|RCX (0xC000010000000001)"),
        (0x8000020000000080, "OPERAND_BUSY|TDR (0x8000020000000080)"),
        (0xC0000A0000000003, "INVALID_TDMR|RBX (0xC0000A0000000003)"),
        (0x123400000000, "unknown status (0x0000123400000000)"),
    ],
)
def test_describe(value: int, text: str) -> None:
    assert describe(value) == text


@pytest.mark.parametrize(
    "name",
    [
        "PAGE_ALREADY_FREE",
        "KEY_CONFIGURED",
        "NO_HKID_READY_TO_WBCACHE",
        "TDMR_ALREADY_INITIALIZED",
        "GPA_RANGE_ALREADY_BLOCKED",
        "PAGE_ALREADY_ACCEPTED",
        "METADATA_FIRST_FIELD_ID_IN_CONTEXT",
        "PENDING_INTERRUPT",
        "NON_RECOVERABLE_VCPU",
    ],
)
def test_these_are_no_errors(name: str) -> None:
    assert not StatusCode[name] & ERROR


def test_decode_splits_code_and_details() -> None:
    assert decode(0xC000010000000008) == (StatusCode.OPERAND_INVALID, Operand.R8)
    assert decode(0x77)[0] is StatusCode.SUCCESS


def test_details_are_bytes_from_the_lowest() -> None:
    assert detail_bytes(1, 2, 3) == 0x030201


def test_a_status_carries_its_outputs() -> None:
    status = Status(StatusCode.EPT_WALK_FAILED, Operand.RCX, rcx=5, rdx=6)
    assert status.value == 0xC0000B0000000001
    assert status.outputs == {"rcx": 5, "rdx": 6}
    assert str(status).startswith("EPT_WALK_FAILED|RCX")
