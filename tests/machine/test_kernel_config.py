# SPDX-License-Identifier: GPL-2.0-or-later
"""The switches of an emulated kernel: one record, handed over whole or by keyword."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from swtdx.cpu.platform import Platform
from swtdx.linux.config import KernelConfig, KernelSwitches
from swtdx.machine import boot, open_kernel
from swtdx.uapi.dialect import Dialect

SMALL = Platform(memory_size=1 << 30)


def test_keywords_are_the_fields_of_the_record() -> None:
    assert get_type_hints(KernelSwitches) == get_type_hints(KernelConfig)


@pytest.mark.parametrize("name", [each.name for each in fields(KernelConfig)])
def test_boot_takes_each_switch_by_keyword(name: str) -> None:
    other: Any = "6.16" if name == "kernel_release" else not getattr(KernelConfig(), name)
    kernel = boot(Dialect.UPSTREAM, SMALL, **{name: other})
    assert kernel.config == KernelConfig(**{name: other})


def test_a_keyword_changes_the_record_that_was_given() -> None:
    kernel = boot(Dialect.V10, SMALL, KernelConfig(no_rbp_mod=False, debug_tds=True), debug_tds=False)
    assert kernel.config == KernelConfig(no_rbp_mod=False)


def test_an_unknown_switch_is_refused() -> None:
    with pytest.raises(TypeError, match="huge_pages"):
        open_kernel("emulated", platform=SMALL, huge_pages=True)  # type: ignore[call-arg]
