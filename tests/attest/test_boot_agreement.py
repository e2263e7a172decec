# SPDX-License-Identifier: GPL-2.0-or-later
"""A predicted boot beside launches that keep to it, stop early, go on, or do something else."""

from __future__ import annotations

from uuid import UUID

import pytest

from swtdx.attest.boot_agreement import Extension, agreement
from swtdx.attest.boot_prediction import BootPrediction
from swtdx.attest.direct_boot import predict_direct_boot
from swtdx.image.linux_image import LinuxBoot, parse
from testing.uefi_image import edk2_like, efi_kernel


@pytest.fixture(scope="module")
def prediction() -> BootPrediction:
    return predict_direct_boot(edk2_like(), LinuxBoot(parse(efi_kernel(), "vmlinuz")), 64 << 20)


def extensions(prediction: BootPrediction) -> list[Extension]:
    return [(event.rtmr, event.digest) for event in prediction.events if event.rtmr is not None]


def test_a_boot_that_keeps_to_it_and_goes_on(prediction: BootPrediction) -> None:
    seen = extensions(prediction)
    found = agreement(prediction, seen)
    assert found.complete
    assert str(found) == f"RTMR0-2 as predicted ({len(seen)} extensions)"
    found = agreement(prediction, [*seen, (3, bytes(48))])
    assert found.complete
    assert str(found).endswith("then 1 extension of the guest's own")


def test_a_boot_that_stops_early_contradicts_nothing(prediction: BootPrediction) -> None:
    found = agreement(prediction, extensions(prediction)[:-1])
    assert not found.complete
    assert not found.contradicted
    assert "Returned with Success" in str(found)


@pytest.mark.parametrize("at", [0, 5, -1])
def test_the_first_other_extension_is_named(prediction: BootPrediction, at: int) -> None:
    seen = extensions(prediction)
    seen[at] = (seen[at][0], bytes(48))
    found = agreement(prediction, seen)
    assert found.contradicted
    assert not found.complete
    assert found.equal == at % len(seen)
    assert prediction.events[at].words in str(found)


def test_a_silent_firmware_that_extends_is_contradicted() -> None:
    silent = predict_direct_boot(
        edk2_like(tcg=UUID(int=7), sec=b""), LinuxBoot(parse(efi_kernel(), "vmlinuz")), 64 << 20
    )
    assert agreement(silent, []).complete
    assert "none were expected" in str(agreement(silent, [(0, bytes(48))]))
