# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of tests, read from a Makefile of the form that tools/testing/selftests/x86 has."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.selftests.makefile import Test, read_tests
from testing.selftests.programs import FOLDER, InputError, command_for, read_tree, version_of

MAKEFILE = """
TARGETS_C_BOTHBITS := both \\
\t\t\tcontinued
TARGETS_C_BOTHBITS += added
TARGETS_C_32BIT_ONLY := narrow
TARGETS_C_64BIT_ONLY := wide
TARGETS_C_32BIT_NEEDED := needs
TARGETS_C_64BIT_ALL := $(TARGETS_C_BOTHBITS) $(TARGETS_C_64BIT_ONLY)
$(eval $(call extra-files,both_64,thunks.S))
$(OUTPUT)/continued_32: CFLAGS += -Wl,-estart -static
$(OUTPUT)/wide_64: EXTRA_FILES += xstate.c
"""


def tree_with(folder: Path, makefile: str = MAKEFILE) -> Path:
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "Makefile").write_text(makefile)
    (folder / FOLDER.parent / "kselftest.h").touch()
    return folder


def test_each_list_of_the_makefile_is_read_in_its_widths() -> None:
    programs = [test.program for test in read_tests(MAKEFILE)]
    assert programs == [
        *("added_64", "added_32", "both_64", "both_32", "continued_64", "continued_32"),
        *("narrow_32", "needs_64", "needs_32", "wide_64"),
    ]


def test_flags_and_files_belong_to_one_program() -> None:
    by_program = {test.program: test for test in read_tests(MAKEFILE)}
    assert by_program["both_64"].files == ("thunks.S",)
    assert by_program["both_32"].files == ()
    assert by_program["continued_32"].flags == ("-Wl,-estart", "-static")
    assert by_program["wide_64"].files == ("xstate.c",)


def test_a_program_is_static_unless_it_looks_up_the_vdso() -> None:
    for name, static in (("sigreturn", True), ("test_vsyscall", False)):
        command = command_for(Test(name, 32), Path("/tree"), Path("/out"))
        assert ("-static" in command) is static
        assert "-m32" in command
        assert f"/tree/{FOLDER}/{name}.c" in command


def test_what_is_not_a_kernel_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a directory"):
        read_tree(tmp_path / "missing")
    with pytest.raises(InputError, match="not a Linux source tree: it has no tools/testing"):
        read_tree(tmp_path)
    with pytest.raises(InputError, match="names no tests"):
        read_tree(tree_with(tmp_path, "all:\n"))


def test_the_version_is_that_of_the_trees_makefile(tmp_path: Path) -> None:
    assert version_of(tmp_path) == "unknown"
    (tmp_path / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 16\nSUBLEVEL = 1\nEXTRAVERSION = -rc1\nNAME = Baby\n")
    assert version_of(tmp_path) == "6.16.1-rc1"
