# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of ``script/fuzz board``, and that it finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.vmm.board.fw_cfg import FwCfg
from swtdx.vmm.board.i8254 import _Counter
from swtdx.vmm.board.i8259 import _Chip
from swtdx.vmm.board.ioapic import Msi
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.board.uart16550 import Uart16550
from testing.fuzzing.board import campaign


def test_a_guest_neither_breaks_nor_grows_the_board() -> None:
    result = campaign(120_000, 1)
    assert not result.failures
    assert result.cases >= 120_000
    assert min(result.accesses.values()) > 4_000
    assert result.requests["RESET"]


def _latch_without_end(self: _Counter) -> None:
    self._latched.insert(0, 0)


def _loop_without_end(self: Uart16550, byte: int) -> None:
    self._received.append(byte)


def _tell_kvm(self: Board, message: Msi) -> None:
    self._signal_msi(message)


def _expect_without_end(self: _Chip, port: int, size: int, value: int) -> None:
    self._expecting.extend(["ICW3"] * 4)


def _read_beyond(self: FwCfg, port: int, size: int) -> int:
    self._offset += 1
    return self._current[self._offset]


FAULTS: list[tuple[type, str, Callable[..., object], str]] = [
    (_Counter, "latch_status", _latch_without_end, "more than after power-on"),
    (Uart16550, "_receive_own", _loop_without_end, "more than after power-on"),
    (Board, "signal_msi", _tell_kvm, "not permitted"),
    (_Chip, "write_command", _expect_without_end, "more than after power-on"),
    (FwCfg, "_read_data", _read_beyond, "IndexError"),
]


@pytest.mark.parametrize(("device", "method", "broken", "found"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_a_seeded_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, device: type, method: str, broken: Callable[..., object], found: str
) -> None:
    monkeypatch.setattr(device, method, broken)
    for accesses, seed in ((20_000, 0), (300_000, 2), (300_000, 0), (300_000, 1)):
        result = campaign(accesses, seed)
        if result.failures:
            assert found in result.failures[0]
            return
    pytest.fail("the campaign does not find it")
