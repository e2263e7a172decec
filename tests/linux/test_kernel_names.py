# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions of the kernel are found under their names, or the reason why not is written down."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.linux import kernel_names
from tests.linux.kernel_names import EXCUSES, NAMES

DEFINED = kernel_names.defined()
EXCUSED = [name for names in EXCUSES.values() for name in names]


@pytest.mark.parametrize("file", NAMES)
def test_each_function_is_defined_or_has_a_reason(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, total = kernel_names.coverage()[file]
    with capsys.disabled():
        sys.stdout.write(f" {file}: {found} of {total} ")
    assert [name for name in NAMES[file] if name not in DEFINED and name not in EXCUSED] == []


def test_a_function_that_exists_has_no_excuse() -> None:
    assert [name for name in EXCUSED if name in DEFINED] == []


def test_an_excuse_is_for_a_function_of_the_kernel_and_given_once() -> None:
    counts = Counter(EXCUSED)
    listed = {name for names in NAMES.values() for name in names}
    assert [name for name, count in counts.items() if count > 1 or name not in listed] == []


def test_the_committed_page_is_up_to_date() -> None:
    assert kernel_names.PAGE_PATH.read_text(encoding="utf-8") == kernel_names.page(), (
        "run: python -m tests.linux.kernel_names"
    )
